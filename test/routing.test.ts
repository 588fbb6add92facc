import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { TrustTier } from "../gen/moltwire/bus/v1/agent_pb.ts";
import { TraceEventKind } from "../gen/moltwire/bus/v1/trace_pb.ts";
import { Visibility } from "../gen/moltwire/directory/v1/profile_pb.ts";
import { contract, echoEndpoint, eventsOf, stateOf, submit, worker } from "./bus-fixtures/bus.ts";
import { deadUrl, failing, httpAgent } from "./bus-fixtures/http-agent.ts";
import { puller, serving } from "./bus-fixtures/instance.ts";
import { type Clients, dialects, eventually, type Org, refusal, start, unique, type World } from "./harness.ts";

type Verdict = {
  readonly agent_id: string;
  readonly chosen: boolean;
  readonly score: number;
  readonly why: string;
};

/** What the trace says of the agents that were considered. */
async function verdictsOf(by: Clients, traceId: string): Promise<Verdict[]> {
  const routed = (await eventsOf(by, traceId)).find(({ kind }) => kind === TraceEventKind.ROUTED);
  return routed!.details!.candidates as never;
}

describe.each(dialects)("%s", (dialect) => {
  let world: World;
  beforeAll(async () => {
    world = await start(dialect);
  });
  afterAll(() => world[Symbol.asyncDispose]());

  const echoer = (org: Org, capability: string, init: { weight?: number; trustTier?: TrustTier } = {}) =>
    org.agent({ name: unique("echoer"), capabilities: [capability], endpoint: echoEndpoint, ...init });

  /** Whom so many tasks go to, one after the other. */
  async function targets(org: Org, contractId: string, count: number): Promise<string[]> {
    const found: string[] = [];
    for (let n = 0; n < count; n++) found.push((await submit(org.admin, contractId)).targetAgentId);
    return found;
  }
  const countsOf = (ids: readonly string[]) =>
    Object.fromEntries(Object.entries(Object.groupBy(ids, (id) => id)).map(([id, same]) => [id, same!.length]));

  test("among equals one of weight 3 gets three tasks for each one of weight 1, in every cycle, and never all at the end", async () => {
    const org = await world.org();
    const contractId = await contract(org);
    const heavy = await echoer(org, contractId, { weight: 3 });
    const light = await echoer(org, contractId, { weight: 1 });
    for (let cycle = 0; cycle < 3; cycle++)
      expect(countsOf(await targets(org, contractId, 4))).toEqual({ [heavy.agentId]: 3, [light.agentId]: 1 });
    await org.admin.agents.updateAgent({
      agentId: light.agentId,
      updateMask: { paths: ["weight"] },
      change: { weight: 3 },
    });
    expect(countsOf(await targets(org, contractId, 6))).toEqual({ [heavy.agentId]: 3, [light.agentId]: 3 });
  });

  test("what an agent advertises brings it nothing: only what its organisation granted it is routed by, chosen, claimed or fallen back on", async () => {
    const org = await world.org();
    const [contractId, granted] = [await contract(org), unique("granted")];
    const boaster = await org.agent({ capabilities: [granted], endpoint: echoEndpoint });
    await boaster.as.directory.updateProfile({
      change: { capabilities: [contractId], visibility: Visibility.PUBLIC },
      updateMask: { paths: ["capabilities", "visibility"] },
    });
    const { matches } = await org.admin.directory.matchAgents({ needs: [contractId] });
    expect(matches.map(({ profile }) => profile?.agentId)).toEqual([boaster.agentId]);
    for (const targetAgentId of ["", boaster.agentId])
      expect((await refusal(submit(org.admin, contractId, { targetAgentId }))).reason).toBe("NO_CAPABLE_AGENT");
    const first = await contract(org, { fallbacks: [{ contractId }] });
    expect((await refusal(submit(org.admin, first))).reason).toBe("NO_CAPABLE_AGENT");
    await org.admin.agents.updateAgent({
      agentId: boaster.agentId,
      updateMask: { paths: ["capabilities"] },
      change: { capabilities: [granted, contractId] },
    });
    expect((await submit(org.admin, contractId)).targetAgentId).toBe(boaster.agentId);
  });

  test("the most trusted tier has all tasks while it can do them, whatever the weights, and the next one those it cannot", async () => {
    const org = await world.org();
    const contractId = await contract(org, { securityClass: TrustTier.EXTERNAL_PARTNER });
    const partner = await echoer(org, contractId, { trustTier: TrustTier.EXTERNAL_PARTNER, weight: 1_000 });
    const trusted = await worker(org, contractId, await deadUrl(), { trustTier: TrustTier.INTERNAL_TRUSTED });
    const vendor = await echoer(org, contractId, { trustTier: TrustTier.PUBLIC_VENDOR });
    const task = await submit(org.admin, contractId);
    expect([task.targetAgentId, task.attempts]).toEqual([partner.agentId, 2]);
    const verdicts = await verdictsOf(org.admin, task.traceId);
    expect(verdicts.map(({ agent_id, chosen }) => [agent_id, chosen])).toEqual([
      [trusted.agentId, true],
      [partner.agentId, false],
      [vendor.agentId, false],
    ]);
    expect(verdicts.map(({ why }) => why)).toEqual([
      "its turn",
      expect.stringContaining("more trusted"),
      expect.stringContaining("below"),
    ]);
    const scores = verdicts.map(({ score }) => score);
    expect(scores).toEqual(scores.toSorted((a, b) => b - a));
    expect(new Set(scores).size).toBe(3);
    expect(scores[2]).toBe(0);
  });

  test("a trace names no more than twenty of those that were considered, the chosen one among them", async () => {
    const org = await world.org();
    const contractId = await contract(org);
    for (let n = 0; n < 22; n++) await echoer(org, contractId);
    await echoer(org, contractId, { trustTier: TrustTier.PUBLIC_VENDOR });
    const task = await submit(org.admin, contractId);
    const verdicts = await verdictsOf(org.admin, task.traceId);
    expect(verdicts).toHaveLength(20);
    expect(verdicts.find(({ chosen }) => chosen)?.agent_id).toBe(task.targetAgentId);
    expect(new Set(verdicts.map(({ score }) => score)).size).toBe(20);
  });

  test("agents are fallen back on in the order of the trace, then contracts in their own, and none is gone back to", async () => {
    const org = await world.org();
    await using bad = await httpAgent(failing("unavailable", 503));
    await using last = await httpAgent();
    const [second, third] = [await contract(org), await contract(org)];
    const first = await contract(org, { fallbacks: [{ contractId: second }, { contractId: third }] });
    for (let n = 0; n < 3; n++) await worker(org, first, bad);
    for (let n = 0; n < 2; n++) await worker(org, second, bad);
    await worker(org, third, last);
    const task = await submit(org.admin, first);
    expect(stateOf(task)).toBe("COMPLETED");
    const steps = await eventsOf(org.admin, task.traceId);
    const dispatched = steps.filter(({ kind }) => kind === TraceEventKind.DISPATCHED);
    const ofFirst = (await verdictsOf(org.admin, task.traceId)).map(({ agent_id }) => agent_id);
    expect(dispatched.slice(0, 3).map(({ targetAgentId }) => targetAgentId)).toEqual(ofFirst);
    expect(dispatched.map(({ details }) => details?.contract_id)).toEqual([first, first, first, second, second, third]);
    expect(new Set(dispatched.map(({ targetAgentId }) => targetAgentId)).size).toBe(6);
  });

  test("contracts that are fallen back on tell of their agents too: who goes first, and why the others do not", async () => {
    const org = await world.org();
    const second = await contract(org, { securityClass: TrustTier.EXTERNAL_PARTNER });
    const trusted = await echoer(org, second, { trustTier: TrustTier.INTERNAL_TRUSTED });
    const partner = await echoer(org, second, { trustTier: TrustTier.EXTERNAL_PARTNER });
    const vendor = await echoer(org, second, { trustTier: TrustTier.PUBLIC_VENDOR });
    const first = await contract(org, { fallbacks: [{ contractId: second }] });
    await worker(org, first, await deadUrl());
    const task = await submit(org.admin, first);
    expect([stateOf(task), task.targetAgentId]).toEqual(["COMPLETED", trusted.agentId]);
    const fallback = (await eventsOf(org.admin, task.traceId)).find(({ kind }) => kind === TraceEventKind.FALLBACK)!;
    expect(fallback.details).toMatchObject({ contract_id: second, contract_version: "1.0.0", considered: 3 });
    expect(fallback.details!.candidates).toMatchObject([
      { agent_id: trusted.agentId, chosen: false, why: "goes first" },
      { agent_id: partner.agentId, chosen: false, why: expect.stringContaining("more trusted") },
      { agent_id: vendor.agentId, chosen: false, score: 0, why: expect.stringContaining("below") },
    ]);
  });

  test("where circuits leave nobody but a fallback's agents, the routing tells of those as well", async () => {
    const org = await world.org();
    const second = await contract(org);
    const one = await echoer(org, second, { trustTier: TrustTier.INTERNAL_TRUSTED });
    const other = await echoer(org, second);
    const first = await contract(org, { fallbacks: [{ contractId: second }] });
    const broken = await worker(org, first, await deadUrl(), { breaker: { failureThreshold: 1 } });
    await submit(org.admin, first);
    await org.admin.policies.putPolicy({
      policyId: "not-one",
      cedarText: `forbid (principal, action == Action::"invoke", resource) when { context has target_agent_id && context.target_agent_id == "${one.agentId}" };`,
    });
    const task = await submit(org.admin, first);
    expect([stateOf(task), task.targetAgentId]).toEqual(["COMPLETED", other.agentId]);
    const { details, message } = (await eventsOf(org.admin, task.traceId)).find(
      ({ kind }) => kind === TraceEventKind.ROUTED,
    )!;
    expect(message).toContain(`will do it under ${second}@1.0.0`);
    expect(details!.candidates).toMatchObject([{ agent_id: broken.agentId, chosen: false, score: 0 }]);
    expect(details!.fallback).toMatchObject({
      contract_id: second,
      considered: 2,
      candidates: [
        { agent_id: other.agentId, chosen: true },
        { agent_id: one.agentId, chosen: false, score: 0, why: expect.stringContaining("not-one") },
      ],
    });
  });

  describe("of agents that pull", () => {
    const later = { returnImmediately: true };
    const targetOf = async (org: Org, contractId: string) => {
      const { traceId } = await submit(org.admin, contractId, later);
      const verdicts = await verdictsOf(org.admin, traceId);
      return { chosen: verdicts.find(({ chosen }) => chosen)!.agent_id, verdicts };
    };

    test("one that is not there comes after those that are, of whatever tier, and the trace says so", async () => {
      const org = await world.org();
      const contractId = await contract(org, { securityClass: TrustTier.EXTERNAL_PARTNER });
      const absent = await puller(org, contractId);
      const there = await puller(org, contractId);
      const called = await echoer(org, contractId, { trustTier: TrustTier.EXTERNAL_PARTNER });
      const instance = serving(there.as, { capacity: 10 });
      await eventually(async () => {
        const { chosen } = await targetOf(org, contractId);
        return chosen === there.agentId;
      });
      for (let n = 0; n < 6; n++) {
        const { chosen, verdicts } = await targetOf(org, contractId);
        expect(chosen).toBe(there.agentId);
        expect(verdicts).toMatchObject([
          { agent_id: there.agentId, why: "its turn" },
          { agent_id: called.agentId, why: expect.stringContaining("more trusted") },
          { agent_id: absent.agentId, why: expect.stringContaining("no instance of it is serving") },
        ]);
        const scores = verdicts.map(({ score }) => score);
        expect([scores[0]! > scores[1]!, scores[1]! > scores[2]!, scores[2]! > 0]).toEqual([true, true, true]);
      }
      await instance.leave();
      // The echo agent, though less trusted, is the only one that is there.
      await eventually(async () => (await targetOf(org, contractId)).chosen === called.agentId);
    });

    test("those of whom none is there take turns, and the trace says that the task waits", async () => {
      const org = await world.org();
      const contractId = await contract(org);
      const pullers = [await puller(org, contractId), await puller(org, contractId)];
      const routes = [await targetOf(org, contractId), await targetOf(org, contractId)];
      expect(routes.map(({ chosen }) => chosen).toSorted()).toEqual(pullers.map(({ agentId }) => agentId).toSorted());
      expect(routes[0]!.verdicts[0]!.why).toMatch(/^its turn, though .* the task waits for it$/);
    });

    test("a stream that drains is not there for new tasks", async () => {
      const org = await world.org();
      const contractId = await contract(org);
      const [draining, there] = [await puller(org, contractId), await puller(org, contractId)];
      await using _ = serving(there.as);
      await eventually(async () => (await targetOf(org, contractId)).chosen === there.agentId);
      for await (const _ of draining.as.bus.serve({ drain: true, instance: "last" }));
      expect((await targetOf(org, contractId)).chosen).toBe(there.agentId);
      expect((await targetOf(org, contractId)).chosen).toBe(there.agentId);
    });
  });
});
