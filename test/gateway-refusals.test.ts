/** What is kept, told and counted of requests that another organisation refuses. */
import { durationFromMs } from "@bufbuild/protobuf/wkt";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { TrustTier } from "../gen/moltwire/bus/v1/agent_pb.ts";
import { BudgetPeriod, BudgetScope } from "../gen/moltwire/bus/v1/budget_pb.ts";
import { PolicyVerdict } from "../gen/moltwire/bus/v1/policy_pb.ts";
import { TraceEventKind } from "../gen/moltwire/bus/v1/trace_pb.ts";
import { AuditKind } from "../gen/moltwire/ops/v1/admin_service_pb.ts";
import { findAgent } from "../src/bus/agent-store.ts";
import { findApproval } from "../src/bus/approval/store.ts";
import { dayStart } from "../src/bus/cost/day.ts";
import { decideApprover } from "../src/bus/policy/decide-approval.ts";
import { keepInTx } from "../src/bus/policy/keeping.ts";
import { maxRefusalsKept } from "../src/federation/gateway/enter.ts";
import { crossingsKeptMs, sweepCrossings } from "../src/federation/gateway/old-crossings.ts";
import { denyUnderGrant } from "../src/federation/grant/usage-store.ts";
import { contract, echoEndpoint, eventsOf, stateOf, submit, worker } from "./bus-fixtures/bus.ts";
import { deadUrl } from "./bus-fixtures/http-agent.ts";
import { type Across, across } from "./federation-fixtures/across.ts";
import { dialects, fakeClock, type Org, refusal, start, type World } from "./harness.ts";

const total = { scope: BudgetScope.ORG, period: BudgetPeriod.TOTAL };
const looking = `@approval("a human looks")\npermit (principal, action == Action::"invoke", resource) when { context.origin == "gateway" };`;
const closing = {
  breaker: { failureThreshold: 1, window: durationFromMs(60_000), openDuration: durationFromMs(60_000) },
};

describe.each(dialects)("%s", (dialect) => {
  let world: World;
  beforeAll(async () => {
    world = await start(dialect);
  });
  afterAll(() => world[Symbol.asyncDispose]());

  const statusOf = async (org: Org, traceId: string) => (await org.admin.gateway.getStatus({ traceId })).statuses[0]!;

  test("that nobody can be called now is no verdict of policies: what they said stands beside it", async () => {
    const doing = await world.org();
    const second = await contract(doing);
    await doing.agent({ capabilities: [second], endpoint: echoEndpoint });
    const shut = await contract(doing);
    await worker(doing, shut, await deadUrl(), closing);
    expect(stateOf(await submit(doing.admin, shut))).toBe("FAILED");
    const at = await across(world, {
      doing,
      contract: { capability: shut, fallbacks: [{ contractId: second }] },
      agent: { capabilities: ["else"] },
    });
    // An approval is for one contract, and so for no fallback.
    await doing.admin.policies.putPolicy({ policyId: "look", cedarText: looking });
    const { reason, metadata } = await refusal(at.go());
    expect(reason).toBe("CIRCUIT_OPEN");
    for (const org of [at.asking, doing])
      expect((await statusOf(org, metadata.trace_id!)).targetVerdict).toBe(PolicyVerdict.REQUIRE_APPROVAL);
    const rows = (await doing.admin.admin.listAuditEvents({})).auditEvents.filter(
      ({ kind }) => kind === AuditKind.DECISION,
    );
    expect(rows[0]!.resource).toMatchObject({ verdict: "REQUIRE_APPROVAL", reason: "CIRCUIT_OPEN" });
  });

  test("budgets warn of what was let in, and not of what a quota refused after they had room for it", async () => {
    const at = await across(world, {
      contract: { estimatedTokens: 90n },
      grant: { terms: { tokensPerDay: 50n } },
    });
    const sides = [at.asking, at.doing];
    for (const org of sides) await org.admin.budgets.setBudget({ ...total, limitTokens: 100n });
    const warnings = async () => {
      await world.settled();
      const lists = sides.map((org) => org.admin.events.listEvents({ types: ["budget.warning"] }));
      return (await Promise.all(lists)).map(({ events }) => events.length);
    };
    expect((await refusal(at.go())).reason).toBe("GRANT_QUOTA_EXCEEDED");
    expect(await warnings()).toEqual([0, 0]);
    await at.doing.admin.grants.updateGrant({
      ...{ grantId: at.grantId, change: { tokensPerDay: 500n }, updateMask: { paths: ["tokens_per_day"] } },
    });
    await at.go();
    expect(await warnings()).toEqual([1, 1]);
  });

  test("a decision that is only noted is noted by the next command when the one that made it fails", async () => {
    const { app } = world.server;
    const org = await world.org();
    const outer = await org.agent({ trustTier: TrustTier.EXTERNAL_PARTNER });
    const contractId = await contract(org, { approvalRequired: true });
    await org.agent({ capabilities: [contractId], endpoint: echoEndpoint });
    await submit(org.admin, contractId);
    const [{ approvalId } = { approvalId: "" }] = (await org.admin.approvals.listApprovals({})).approvals;
    const note = (fails: boolean) =>
      app.db.tx(async (tx) => {
        const decider = await findAgent(tx, org.orgId, outer.agentId);
        const approval = (await findApproval(tx, org.orgId, approvalId))!;
        const now = app.clock.now();
        const decided = await decideApprover(app, tx, { approval, action: "approve", decider, ownRequest: false, now });
        const keeping = keepInTx(tx, app, { orgId: org.orgId, traceId: app.ids.trace(), now });
        await keeping.note([decided]);
        await keeping.note([decided]);
        if (fails) throw new Error("it came to nothing");
      });
    const kept = async () => (await org.admin.policies.listDecisions({ agentId: outer.agentId })).decisions.length;
    await expect(note(true)).rejects.toThrow("it came to nothing");
    expect(await kept()).toBe(0);
    await note(false);
    expect(await kept()).toBe(1);
    await note(false);
    expect(await kept()).toBe(1);
  });

  describe("a fallback that the grant does not allow is passed over for the next", () => {
    type Terms = { allowedTools?: string[]; priceCapMicros?: bigint };
    /** A contract that nobody does, the fallback that is not allowed, and one that is. */
    async function chain(terms: Terms, init: Parameters<typeof contract>[1], agent = {}) {
      const doing = await world.org();
      const [barred, open] = [await contract(doing, init), await contract(doing)];
      const wrong = await doing.agent({ capabilities: [barred], endpoint: echoEndpoint, ...agent });
      await doing.agent({ capabilities: [open], endpoint: echoEndpoint });
      const shut = await contract(doing);
      await worker(doing, shut, await deadUrl(), closing);
      const fallbacks = [{ contractId: barred }, { contractId: open }];
      const at = await across(world, {
        ...{ doing, grant: { terms }, contract: { capability: shut, fallbacks }, agent: { capabilities: ["else"] } },
      });
      const attempts = async (traceId: string) =>
        (await eventsOf(doing.admin, traceId))
          .filter(({ kind }) => kind === TraceEventKind.DISPATCHED)
          .map(({ details }) => details!.contract_id);
      return { at, shut, barred, open, wrong, attempts };
    }
    const shell = { requiredTools: ["shell"] };
    const able = { allowedTools: ["shell"] };

    test("when the attempt before it has failed", async () => {
      const { at, open, attempts } = await chain({ allowedTools: ["web"] }, shell, able);
      const task = await at.go();
      expect(stateOf(task)).toBe("COMPLETED");
      expect(await attempts(task.traceId)).toEqual([at.contractId, open]);
    });

    test("when a circuit is open and the first attempt is by a fallback", async () => {
      const { at, shut, open, attempts } = await chain({ allowedTools: ["web"] }, shell, able);
      expect(stateOf(await submit(at.doing.admin, shut))).toBe("FAILED");
      const task = await at.go();
      expect(stateOf(task)).toBe("COMPLETED");
      expect(await attempts(task.traceId)).toEqual([open]);
    });

    test("when its agent would cost more than the price cap", async () => {
      const { at, open, wrong, attempts } = await chain({ priceCapMicros: 1_000n }, { estimatedTokens: 1_000n });
      await at.doing.admin.costs.setRates({ rates: [{ agentId: wrong.agentId, inputPer1000TokensMicros: 2_000n }] });
      const task = await at.go();
      expect(stateOf(task)).toBe("COMPLETED");
      expect(await attempts(task.traceId)).toEqual([at.contractId, open]);
    });
  });

  describe("of many refusals", () => {
    const dayOf = (at: Across) => ({
      orgId: at.doing.orgId,
      grantId: at.grantId,
      dayMs: dayStart(world.server.app.clock.now()),
    });

    test("under a grant on a day the organisation that refuses keeps a thousand, and counts the others", async () => {
      const at = await across(world);
      const { doing, asking } = at;
      await doing.admin.policies.putPolicy({
        policyId: "stop",
        cedarText: 'forbid (principal, action == Action::"invoke", resource);',
      });
      await world.server.app.db.tx(async (tx) => {
        for (let n = 0; n < maxRefusalsKept - 1; n++) await denyUnderGrant(tx, dayOf(at));
      });
      const traceIds: string[] = [];
      for (let n = 0; n < 3; n++) traceIds.push((await refusal(at.go())).metadata.trace_id!);
      const kept = async (org: Org) => ({
        traces: (await org.admin.traces.listTraces({})).traces.map(({ traceId }) => traceId),
        decisions: (await org.admin.policies.listDecisions({ action: "invoke" })).decisions.length,
        audited: (await org.admin.admin.listAuditEvents({})).auditEvents
          .filter(({ kind }) => kind === AuditKind.DECISION)
          .map(({ traceId, resource }) => [traceId, resource.further]),
      });
      expect(await kept(doing)).toEqual({
        traces: [traceIds[0]],
        decisions: 1,
        audited: [
          [traceIds[1], "COUNTED_ONLY"],
          [traceIds[0], undefined],
        ],
      });
      // What an organisation does itself, it keeps.
      expect(await kept(asking)).toMatchObject({ traces: traceIds.toReversed(), decisions: 3 });
      const statuses = traceIds.map((traceId) =>
        statusOf(asking, traceId).then(
          () => "told",
          () => "not told",
        ),
      );
      expect(await Promise.all(statuses)).toEqual(["told", "not told", "not told"]);
      const [day] = (await doing.admin.grants.getGrantUsage({ grantId: at.grantId })).days;
      expect(day).toMatchObject({ denials: BigInt(maxRefusalsKept + 2), requests: 0n });
      // Whatever was refused before, what is let in is kept whole.
      await doing.admin.policies.deletePolicy({ policyId: "stop" });
      const task = await at.go();
      expect((await statusOf(doing, task.traceId)).taskId).toBe(task.taskId);
      expect((await kept(doing)).traces).toEqual([task.traceId, traceIds[0]]);
    });

    test("those by budgets beyond the thousand send no event either", async () => {
      const at = await across(world, { contract: { estimatedTokens: 90n } });
      await at.doing.admin.budgets.setBudget({ ...total, limitTokens: 80n });
      const events = async () => {
        await world.settled();
        return (await at.doing.admin.events.listEvents({ types: ["budget.exceeded"] })).events.length;
      };
      expect((await refusal(at.go())).reason).toBe("BUDGET_EXCEEDED");
      expect(await events()).toBe(1);
      await world.server.app.db.tx(async (tx) => {
        for (let n = 0; n < maxRefusalsKept; n++) await denyUnderGrant(tx, dayOf(at));
      });
      expect((await refusal(at.go())).reason).toBe("BUDGET_EXCEEDED");
      expect(await events()).toBe(1);
    });

    test("a trace that the other organisation had before is not taken from it by one that is only counted", async () => {
      const at = await across(world);
      const { traceId } = await at.go();
      await world.server.app.db.tx(async (tx) => {
        for (let n = 0; n < maxRefusalsKept; n++) await denyUnderGrant(tx, dayOf(at));
      });
      await at.doing.admin.policies.putPolicy({
        policyId: "stop",
        cedarText: 'forbid (principal, action == Action::"invoke", resource);',
      });
      await refusal(at.go({}, { headers: { traceparent: `00-${traceId}-${"b".repeat(16)}-00` } }));
      expect((await at.doing.admin.traces.getTrace({ traceId })).trace?.tasks).toBe(1);
    });
  });

  test("requests are told for 400 days, and those whose tasks are open for as long as they are", async () => {
    const clock = fakeClock(Date.now());
    await using aged = await start(dialect, { clock });
    const at = await across(aged);
    const ended = await at.go();
    const waits = await across(aged, { contract: { approvalRequired: true } });
    const open = await waits.go();
    const found = async (org: Org, traceId: string) =>
      statusOf(org, traceId).then(
        () => true,
        () => false,
      );
    const { app } = aged.server;
    const later = (ms: number) => ({ ...app, clock: { ...app.clock, now: () => clock.now() + ms } });
    await sweepCrossings(later(crossingsKeptMs - 1_000));
    expect([await found(at.asking, ended.traceId), await found(at.doing, ended.traceId)]).toEqual([true, true]);
    await sweepCrossings(later(crossingsKeptMs + 60_000));
    expect([await found(at.asking, ended.traceId), await found(at.doing, ended.traceId)]).toEqual([false, false]);
    expect(await found(waits.asking, open.traceId)).toBe(true);
    expect(stateOf((await at.asker.as.bus.getTask({ taskId: ended.taskId })).task)).toBe("COMPLETED");
  });
});
