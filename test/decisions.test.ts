/** The decision log: what of which area is in it. */
import { timestampDate } from "@bufbuild/protobuf/wkt";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { TrustTier } from "../gen/moltwire/bus/v1/agent_pb.ts";
import { type PolicyDecision, PolicyVerdict } from "../gen/moltwire/bus/v1/policy_pb.ts";
import { type TraceEvent, TraceEventKind } from "../gen/moltwire/bus/v1/trace_pb.ts";
import { submit as ask, contract, echoEndpoint, eventsOf, nameOf, stateOf } from "./bus-fixtures/bus.ts";
import {
  type Clients,
  dialects,
  fakeClock,
  type Org,
  type OrgAgent,
  refusal,
  start,
  unique,
  type World,
} from "./harness.ts";
import { write } from "./memory-fixtures/memory.ts";
import { claim, submit } from "./queue-fixtures/jobs.ts";
import { create } from "./queue-fixtures/schedules.ts";
import { tell, toAgent, toChannel } from "./relay-fixtures/relay.ts";

/** What the log has of a trace or an agent, oldest first: verdict, action, and what with. */
const short = (decisions: readonly PolicyDecision[]) =>
  decisions
    .map(({ question, answer }) => [
      nameOf(PolicyVerdict, answer!.verdict),
      question!.action,
      `${question!.resource!.type} ${question!.resource!.id}`,
    ])
    .toReversed();
const logOf = async (org: Org, filter: { agentId?: string; traceId?: string; verdict?: PolicyVerdict }) =>
  (await org.admin.policies.listDecisions({ pageSize: 250, ...filter })).decisions;

/** Waits for the first word of a stream, and leaves. */
async function first(open: (options: { signal: AbortSignal }) => AsyncIterable<unknown>): Promise<void> {
  const leave = new AbortController();
  try {
    await open({ signal: leave.signal })[Symbol.asyncIterator]().next();
  } finally {
    leave.abort();
  }
}

type Call = readonly [
  action: string,
  resource: string,
  call: (by: Clients) => Promise<unknown>,
  /** What else is asked on the way: an action and a resource. */
  more?: readonly [string, string],
];

describe.each(dialects)("%s", (dialect) => {
  let world: World;
  beforeAll(async () => {
    world = await start(dialect);
  });
  afterAll(() => world[Symbol.asyncDispose]());

  /** An organisation with something of each area that belongs to `owner`, and what an agent can do with its own of each. */
  async function scene() {
    const org = await world.org();
    const owner = await org.agent();
    await owner.as.sharedMemory.publishSharedEntry({ write: write("k", 1, { namespace: "team" }) });
    await owner.as.relay.createChannel({ name: "news" });
    await owner.as.relay.createConsumerGroup({ channel: "news", name: "readers" });
    return { org, owner };
  }

  /** Calls of an agent about its own things, with what is asked of policies. */
  async function ownCalls(org: Org, { agentId }: OrgAgent): Promise<Call[]> {
    const job = { queue: `${agentId}/q` };
    const { scheduleId } = await create(org.admin, "@daily", { job }, agentId);
    const { jobId } = await submit(org.admin, { queue: `${agentId}/q` });
    const memory = `Namespace ${agentId}/default`;
    const [inbox, queue, schedule] = [`Agent ${agentId}`, `Queue ${agentId}/q`, `Schedule ${scheduleId}`];
    const read = { case: "throughSequence", value: 1n } as const;
    return [
      ["write_memory", memory, (by) => by.memory.setEntry({ write: write("k", 1) })],
      ["read_memory", memory, (by) => by.memory.getEntry({ key: "k" })],
      ["read_memory", memory, (by) => by.memory.listEntries({})],
      ["read_memory", memory, (by) => by.memory.batchGetEntries({ keys: [{ key: "k" }] })],
      [
        "write_memory",
        memory,
        (by) => by.memory.batchSetEntries({ changes: [{ change: { case: "set", value: write("b", 1) } }] }),
      ],
      ["read_memory", memory, (by) => first((options) => by.memory.watchEntries({}, options))],
      ["write_memory", memory, (by) => by.memory.deleteEntry({ key: "k" })],
      ["send_message", inbox, (by) => tell(by, toAgent(agentId), "hello")],
      ["read_messages", inbox, (by) => by.relay.listInbox({})],
      ["read_messages", inbox, (by) => by.relay.markRead({ read })],
      ["read_messages", inbox, (by) => first((options) => by.relay.subscribe({}, options))],
      ["enqueue_job", queue, (by) => submit(by, { queue: `${agentId}/q` })],
      ["claim_job", queue, (by) => by.queues.getJob({ jobId })],
      ["claim_job", queue, (by) => claim(by, { queues: [`${agentId}/q`] })],
      ["claim_job", queue, (by) => first((options) => by.queues.work({ queues: [`${agentId}/q`] }, options))],
      ["read_schedule", schedule, (by) => by.schedules.getSchedule({ scheduleId })],
      [
        "read_schedule",
        schedule,
        (by) => by.schedules.previewSchedule({ subject: { case: "scheduleId", value: scheduleId } }),
      ],
      ["write_schedule", schedule, (by) => by.schedules.triggerSchedule({ scheduleId }), ["enqueue_job", queue]],
      ["write_schedule", schedule, (by) => by.schedules.deleteSchedule({ scheduleId })],
    ];
  }

  /** Calls about what is shared. */
  const sharedCalls: readonly Call[] = [
    ["read_memory", "Namespace team", (by) => by.sharedMemory.getSharedEntry({ namespace: "team", key: "k" })],
    ["read_memory", "Namespace team", (by) => by.sharedMemory.listSharedEntries({ namespace: "team" })],
    [
      "read_memory",
      "Namespace team",
      (by) => first((options) => by.sharedMemory.watchSharedEntries({ namespace: "team" }, options)),
    ],
    ["send_message", "Channel news", (by) => tell(by, toChannel("news"), "hello")],
    ["read_messages", "Channel news", (by) => by.relay.listMessages({ channel: "news" })],
    ["read_messages", "Channel news", (by) => by.relay.joinChannel({ channel: "news" })],
    ["read_messages", "Channel news", (by) => by.relay.pullMessages({ channel: "news", group: "readers" })],
    ["read_messages", "Channel news", (by) => first((options) => by.relay.subscribe({ channel: "news" }, options))],
    ["enqueue_job", "Queue jobs", (by) => submit(by, { queue: "jobs" })],
    ["claim_job", "Queue jobs", (by) => claim(by, { queues: ["jobs"] })],
  ];

  test("every denial of a call is in it, in each area, with the trace that the caller is told and how to ask again", async () => {
    const { org } = await scene();
    const agents: OrgAgent[] = [];
    const calls: (readonly [OrgAgent, Call])[] = [];
    // An agent for each, since a read that is denied again within seconds is not kept.
    for (let n = 0; n < 19 + sharedCalls.length; n++) {
      const agent = await org.agent({ name: unique("shut") });
      agents.push(agent);
      const call = n < 19 ? (await ownCalls(org, agent))[n]! : sharedCalls[n - 19]!;
      calls.push([agent, call]);
    }
    await org.admin.policies.putPolicy({
      policyId: "shut",
      cedarText: 'forbid (principal is Agent, action, resource) when { principal.name like "shut*" };',
    });
    for (const [agent, [action, resource, call]] of calls) {
      const found = await refusal(call(agent.as));
      const what = `${action} ${resource}`;
      // A job in a queue that one may not know of is not there.
      const hidden = found.reason === "NOT_FOUND";
      expect([what, found.reason]).toEqual([what, hidden ? "NOT_FOUND" : "POLICY_DENIED"]);
      const kept = await logOf(org, { traceId: found.metadata.trace_id! });
      const denied = short(kept);
      expect(denied).toContainEqual(["DENY", action, resource]);
      expect(kept.every(({ question }) => question?.principal?.id === agent.agentId)).toBe(true);
      expect(kept[0]!.answer!.determiningPolicies.map(({ policyId }) => policyId)).toEqual(["shut"]);
      if (hidden) continue;
      expect(found.metadata).toMatchObject({ policy_ids: "shut", action, principal_id: agent.agentId });
      const { principal_type, principal_id, resource_type, resource_id } = found.metadata;
      const again = await org.admin.policies.testPolicy({
        subject: {
          case: "question",
          value: {
            principal: { type: principal_type!, id: principal_id! },
            action: found.metadata.action!,
            resource: { type: resource_type!, id: resource_id! },
          },
        },
      });
      expect(again.answer!.determiningPolicies.map(({ policyId }) => policyId)).toEqual(["shut"]);
      expect(found.error.rawMessage).toContain("PolicyService/TestPolicy");
    }
  });

  test("a denial is in it too where the caller is told that there is nothing", async () => {
    const { org, owner } = await scene();
    const { agentId } = owner;
    const { scheduleId } = await create(owner.as, "@daily");
    const { jobId } = await submit(owner.as, { queue: `${agentId}/q` });
    const hidden: Call[] = [
      ["read_memory", `Namespace ${agentId}/default`, (by) => by.memory.getEntry({ agentId, key: "k" })],
      ["write_memory", `Namespace ${agentId}/default`, (by) => by.memory.setEntry({ agentId, write: write("k", 1) })],
      ["read_messages", `Agent ${agentId}`, (by) => by.relay.listInbox({ agentId })],
      ["read_schedule", `Schedule ${scheduleId}`, (by) => by.schedules.getSchedule({ scheduleId })],
      ["write_schedule", `Schedule ${scheduleId}`, (by) => by.schedules.deleteSchedule({ scheduleId })],
      ["claim_job", `Queue ${agentId}/q`, (by) => by.queues.getJob({ jobId })],
      ["enqueue_job", `Queue ${agentId}/q`, (by) => by.queues.cancelJob({ jobId })],
    ];
    for (const [action, resource, call] of hidden) {
      const other = await org.agent();
      const found = await refusal(call(other.as));
      expect(found.reason).toBe("NOT_FOUND");
      const kept = await logOf(org, { agentId: other.agentId });
      expect(short(kept)).toContainEqual(["DENY", action, resource]);
      expect(kept[0]!.traceId).toBe(found.metadata.trace_id);
    }
    expect((await owner.as.schedules.getSchedule({ scheduleId })).schedule!.scheduleId).toBe(scheduleId);
  });

  test("work on the marketplace is offered and taken on as each organisation's own policies say, by category and reward", async () => {
    const [mine, theirs] = [await world.org(), await world.org()];
    const [poster, worker] = [await mine.agent(), await theirs.agent({ trustTier: TrustTier.PUBLIC_VENDOR })];
    await mine.admin.billing.transferCredits({ toAgentId: poster.agentId, amountMicros: 1_000n });
    const post = (rewardMicros: bigint, by: Clients = poster.as) =>
      by.market.postTask({ title: "Sum it up", category: "writing/short", rewardMicros });
    await mine.admin.policies.putPolicy({
      policyId: "cheap",
      cedarText:
        'forbid (principal is Agent, action == Action::"post_task", resource) when { context.reward_micros > 100 };',
    });
    const dear = await refusal(post(101n));
    const resource = { type: "MarketCategory", id: "writing/short" };
    expect([dear.reason, dear.metadata.policy_ids]).toEqual(["POLICY_DENIED", "cheap"]);
    expect(dear.metadata).toMatchObject({
      action: "post_task",
      resource_type: resource.type,
      resource_id: resource.id,
    });
    const [denied] = await logOf(mine, { traceId: dear.metadata.trace_id! });
    expect(denied!.question!.context).toMatchObject({ reward_micros: 101 });
    const principal = { type: "Agent", id: poster.agentId };
    const asked = async (reward_micros: number) => {
      const value = { principal, action: "post_task", resource, context: { reward_micros } };
      const { answer } = await mine.admin.policies.testPolicy({ subject: { case: "question", value } });
      return [nameOf(PolicyVerdict, answer!.verdict), answer!.determiningPolicies.map(({ policyId }) => policyId)];
    };
    expect([await asked(101), await asked(100)]).toEqual([
      ["DENY", ["cheap"]],
      ["ALLOW", ["builtin/marketplace"]],
    ]);
    // What costs the organisation's own wallet an administrator decides, who may.
    expect((await post(101n, mine.admin)).task!.rewardMicros).toBe(101n);
    expect((await poster.as.billing.getBalance({})).balance!.availableMicros).toBe(1_000n);
    const { taskId } = (await post(100n)).task!;
    expect(await logOf(mine, { agentId: poster.agentId })).toHaveLength(1);

    const forbid = 'forbid (principal, action == Action::"claim_task", resource == MarketCategory::"writing/short");';
    await theirs.admin.policies.putPolicy({ policyId: "no-writing", cedarText: forbid });
    const kept = await refusal(worker.as.market.claimTask({ taskId }));
    expect([kept.reason, kept.metadata.policy_ids, kept.metadata.action]).toEqual([
      ...["POLICY_DENIED", "no-writing", "claim_task"],
    ]);
    expect((await worker.as.market.getTask({ taskId })).task!.workerAgentId).toBe("");
    await theirs.admin.policies.deletePolicy({ policyId: "no-writing" });
    await worker.as.market.claimTask({ taskId });
    const log = await logOf(theirs, { agentId: worker.agentId });
    expect(short(log)).toEqual(
      ["DENY", "ALLOW"].map((verdict) => [verdict, "claim_task", "MarketCategory writing/short"]),
    );
    expect(log[0]!.question!.context).toMatchObject({ task_id: taskId, reward_micros: 100 });
  });

  test("every call of an agent of the outer tiers is in it, also when it is allowed; of the inner ones none that is", async () => {
    const { org } = await scene();
    for (const trustTier of [TrustTier.EXTERNAL_PARTNER, TrustTier.PUBLIC_VENDOR, TrustTier.INTERNAL_RESTRICTED]) {
      const agent = await org.agent({ trustTier });
      const calls = await ownCalls(org, agent);
      const before = (await logOf(org, { agentId: agent.agentId })).length;
      for (const [, , call] of calls) await call(agent.as);
      const kept = (await logOf(org, { agentId: agent.agentId })).slice(0, -before || undefined);
      const asked = calls.flatMap(([action, resource, , more]) => [[action, resource], ...(more ? [more] : [])]);
      const expected = trustTier === TrustTier.INTERNAL_RESTRICTED ? [] : asked.map((one) => ["ALLOW", ...one]);
      expect(short(kept).toSorted()).toEqual(expected.toSorted());
    }
  });

  test("what a list shows or leaves out for an agent of the outer tiers is in it once in ten seconds, and no denial for others", async () => {
    const { org, owner } = await scene();
    const partner = await org.agent({ trustTier: TrustTier.EXTERNAL_PARTNER });
    const inner = await org.agent();
    await submit(owner.as, { queue: `${owner.agentId}/q` });
    await submit(partner.as, { queue: `${partner.agentId}/q` });
    for (let n = 0; n < 3; n++) {
      expect((await partner.as.queues.listJobs({})).jobs).toHaveLength(1);
      expect((await partner.as.sharedMemory.listSharedNamespaces({})).namespaces).toEqual([]);
      expect((await inner.as.queues.listJobs({})).jobs).toEqual([]);
    }
    expect(short(await logOf(org, { agentId: partner.agentId })).toSorted()).toEqual(
      [
        ["ALLOW", "claim_job", `Queue ${partner.agentId}/q`],
        ["ALLOW", "enqueue_job", `Queue ${partner.agentId}/q`],
        ["DENY", "claim_job", `Queue ${owner.agentId}/q`],
        ["DENY", "enqueue_job", `Queue ${owner.agentId}/q`],
        ["DENY", "read_memory", "Namespace team"],
      ].toSorted(),
    );
    expect(await logOf(org, { agentId: inner.agentId })).toEqual([]);
  });

  test("a flood of reads that are denied leaves one decision in ten seconds, and a hundred of one agent; the metric counts the rest", async () => {
    const clock = fakeClock();
    await using aged = await start(dialect, { clock });
    const org = await aged.org();
    const [agent, other] = [await org.agent(), await org.agent()];
    await org.admin.policies.putPolicy({
      policyId: "no-memory",
      cedarText: 'forbid (principal, action == Action::"read_memory", resource);',
    });
    const read = (by: OrgAgent, namespace = "") => refusal(by.as.memory.getEntry({ key: "k", namespace }));
    const count = async (by: OrgAgent) => (await logOf(org, { agentId: by.agentId })).length;
    const leftOut = async () => {
      const headers = { authorization: `Bearer ${aged.operatorKey}` };
      const text = await (await fetch(`${aged.url}/metrics`, { headers })).text();
      return Number(/^moltwire_policy_decisions_left_out_total (\d+)/m.exec(text)![1]);
    };
    for (let n = 0; n < 5; n++) expect(await read(agent)).toMatchObject({ reason: "POLICY_DENIED" });
    await read(other);
    expect([await count(agent), await count(other), await leftOut()]).toEqual([1, 1, 4]);
    await read(agent, "elsewhere");
    expect(await count(agent)).toBe(2);
    clock.advance(10_000);
    await read(agent);
    expect(await count(agent)).toBe(3);
    for (let n = 0; n < 120; n++) await read(other, `n${n}`);
    expect([await count(other), await leftOut()]).toEqual([101, 24]);
    const [latest] = await logOf(org, { agentId: agent.agentId });
    expect(timestampDate(latest!.time!).getTime()).toBe(clock.now());
  });

  test("denied commands are kept each time", async () => {
    const { org } = await scene();
    const vendor = await org.agent({ trustTier: TrustTier.PUBLIC_VENDOR });
    for (let n = 0; n < 3; n++) await refusal(submit(vendor.as, { queue: "jobs" }));
    expect(await logOf(org, { agentId: vendor.agentId })).toHaveLength(3);
  });

  describe("a task that policies keep from sixty agents", () => {
    const routed = async (org: Org, traceId: string): Promise<TraceEvent> =>
      (await eventsOf(org.admin, traceId)).find(({ kind }) => kind === TraceEventKind.ROUTED)!;
    type Verdict = { agent_id: string; chosen: boolean; score: number; why: string };
    const verdicts = (step: TraceEvent) => step.details!.candidates as unknown as Verdict[];

    async function crowd() {
      const org = await world.org();
      const contractId = await contract(org, { requiredTools: ["browser"] });
      const does = { capabilities: [contractId], endpoint: echoEndpoint, allowedTools: ["browser"] };
      const barred: string[] = [];
      for (let n = 0; n < 60; n++) barred.push((await org.agent({ name: unique("barred"), ...does })).agentId);
      await org.admin.policies.putPolicy({
        policyId: "barred",
        cedarText:
          'forbid (principal is Agent, action == Action::"use_tool", resource) when { principal.name like "barred*" };',
      });
      return { org, contractId, does, barred };
    }

    test("is done by the sixty-first; the log has fifty of the others, and the trace says who does it and why not they", async () => {
      const { org, contractId, does, barred } = await crowd();
      const able = await org.agent({ name: unique("able"), ...does });
      const task = await ask(org.admin, contractId);
      expect([stateOf(task), task.targetAgentId]).toEqual(["COMPLETED", able.agentId]);
      const kept = await logOf(org, { traceId: task.traceId });
      const denied = kept.filter(({ answer }) => answer!.verdict === PolicyVerdict.DENY);
      expect(denied.map(({ question }) => question!.principal!.id).toSorted()).toEqual(barred.toSorted().slice(0, 50));
      const tools = kept.filter(
        ({ question }) => question!.action === "use_tool" && question!.principal!.id === able.agentId,
      );
      expect(tools.map(({ answer }) => answer!.verdict)).toEqual([PolicyVerdict.ALLOW]);
      const step = await routed(org, task.traceId);
      expect([step.targetAgentId, step.message]).toEqual([able.agentId, expect.stringMatching(/^able-.* will do it$/)]);
      const shown = verdicts(step);
      expect(shown).toHaveLength(20);
      expect(shown.filter(({ chosen }) => chosen).map(({ agent_id }) => agent_id)).toEqual([able.agentId]);
      expect(shown[0]).toMatchObject({ agent_id: able.agentId, why: "the first that policies let do it" });
      for (const { score, why } of shown.slice(1))
        expect([score, why]).toEqual([0, expect.stringMatching(/^policies refuse it: .*browser.*barred/)]);
    });

    test("is refused where there is no other, and the trace says that nobody was chosen", async () => {
      const { org, contractId } = await crowd();
      const found = await refusal(ask(org.admin, contractId));
      expect(found).toMatchObject({ reason: "POLICY_DENIED", metadata: { tool: "browser", policy_ids: "barred" } });
      const step = await routed(org, found.metadata.trace_id!);
      expect([step.targetAgentId, step.message]).toEqual(["", "policies let none of 60 do it"]);
      expect(verdicts(step).filter(({ chosen }) => chosen)).toEqual([]);
      const kept = await logOf(org, { traceId: found.metadata.trace_id!, verdict: PolicyVerdict.DENY });
      expect(kept).toHaveLength(50);
    });
  });
});
