import { timestampFromMs } from "@bufbuild/protobuf/wkt";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { QuotaFailureSchema } from "../gen/google/rpc/error_details_pb.ts";
import { ErrorReason } from "../gen/moltwire/api/v1/error_reason_pb.ts";
import { TrustTier } from "../gen/moltwire/bus/v1/agent_pb.ts";
import { BudgetPeriod, BudgetScope } from "../gen/moltwire/bus/v1/budget_pb.ts";
import { PolicyVerdict } from "../gen/moltwire/bus/v1/policy_pb.ts";
import { TaskState } from "../gen/moltwire/bus/v1/task_pb.ts";
import type { GrantDayUsage } from "../gen/moltwire/federation/v1/grant_pb.ts";
import { AuditKind } from "../gen/moltwire/ops/v1/admin_service_pb.ts";
import type { Adapter, Adapters, Assignment } from "../src/server.ts";
import {
  contract,
  echoEndpoint,
  eventsOf,
  httpEndpoint,
  json,
  kindsOf,
  reasonOf,
  stateOf,
  value,
  whenEnded,
} from "./bus-fixtures/bus.ts";
import { deadUrl, httpAgent } from "./bus-fixtures/http-agent.ts";
import { pullEndpoint, respond, serving } from "./bus-fixtures/instance.ts";
import { asTold } from "./bus-fixtures/metered.ts";
import { told } from "./bus-fixtures/watch.ts";
import { type Across, across, granted } from "./federation-fixtures/across.ts";
import { dialects, eventually, fakeClock, type Org, refusal, start, unique, type World } from "./harness.ts";
import { hook } from "./webhook-fixtures/hooks.ts";
import { receiver, verify } from "./webhook-fixtures/receiver.ts";

const { ALLOW, DENY, REQUIRE_APPROVAL, UNSPECIFIED } = PolicyVerdict;
const soon = { returnImmediately: true } as const;
const scripted = { kind: { case: "custom", value: { adapter: "scripted", config: {} } } } as const;

/** Another id of the same form. */
const randomOrg = () => `org_${"0123456789abcdef".repeat(2)}`;

describe.each(dialects)("%s", (dialect) => {
  let world: World;
  /** One whose time stands still until it is moved. */
  let still: World;
  const clock = fakeClock(Date.now());
  /** What the custom adapter does with the next attempts. */
  let work: (assignment: Assignment, signal: AbortSignal) => ReturnType<Adapter>;
  beforeAll(async () => {
    const adapters: Adapters = { scripted: (_endpoint, assignment, signal) => work(assignment, signal) };
    world = await start(dialect, { adapters });
    still = await start(dialect, { adapters, clock });
  });
  afterAll(async () => {
    await world[Symbol.asyncDispose]();
    await still[Symbol.asyncDispose]();
  });

  const usageOf = async ({ doing, grantId }: Across): Promise<Partial<GrantDayUsage>> =>
    (await doing.admin.grants.getGrantUsage({ grantId })).days[0] ?? {};
  const statusOf = async (org: Org, traceId: string) => (await org.admin.gateway.getStatus({ traceId })).statuses[0]!;
  const decisionsOf = async (org: Org, traceId: string) =>
    (await org.admin.policies.listDecisions({ traceId })).decisions;
  const policy = (org: Org, cedarText: string, policyId = "own") =>
    org.admin.policies.putPolicy({ policyId, cedarText });
  const answerOf = async (call: Promise<unknown>) => {
    const { code, reason, metadata, error } = await refusal(call);
    const { trace_id: _, ...rest } = metadata;
    return { code, reason, message: error.rawMessage, metadata: rest };
  };

  describe("a task for another organisation", () => {
    test("is done by its agent and is the caller's own: answered, read, listed, watched and told by its event", async () => {
      const at = await across(world);
      const task = await at.go({ input: { say: "hello" }, labels: { mine: "yes" } });
      expect(stateOf(task)).toBe("COMPLETED");
      expect(json(task.output)).toEqual({ say: "hello" });
      expect(task).toMatchObject({
        ...{ orgId: at.asking.orgId, callerAgentId: at.asker.agentId, targetOrgId: at.doing.orgId, targetAgentId: "" },
        ...{ grantId: at.grantId, contractId: at.contractId, contractVersion: "1.0.0", labels: { mine: "yes" } },
      });
      const { taskId } = task;
      expect((await at.asker.as.bus.getTask({ taskId })).task).toEqual(task);
      expect((await at.asker.as.bus.listTasks({})).tasks.map((one) => one.taskId)).toEqual([taskId]);
      expect(await whenEnded(at.asker.as, taskId)).toEqual(task);
      await world.settled();
      const events = (await at.asking.admin.events.listEvents({})).events.filter(({ type }) =>
        type.startsWith("task."),
      );
      expect(events.map(({ type, agentId }) => [type, agentId])).toEqual([["task.completed", at.asker.agentId]]);
      const theirs = (await at.doing.admin.events.listEvents({})).events;
      expect(theirs.filter(({ type }) => type.startsWith("task."))).toEqual([]);
    });

    test("has one trace id, and each organisation's trace has its own side with both verdicts and the grant's revision", async () => {
      const at = await across(world);
      const { traceId, taskId } = await at.go();
      const [mine, theirs] = [await eventsOf(at.asking.admin, traceId), await eventsOf(at.doing.admin, traceId)];
      expect(kindsOf(mine)).toEqual([
        ...["SUBMITTED", "POLICY_DECIDED", "POLICY_DECIDED", "ACCEPTED", "DISPATCHED", "COMPLETED"],
      ]);
      expect(kindsOf(theirs)).toEqual([
        ...["SUBMITTED", "INPUT_CHECKED", "ROUTED", "POLICY_DECIDED", "POLICY_DECIDED", "ACCEPTED", "DISPATCHED"],
        ...["ANSWERED", "OUTPUT_CHECKED", "COMPLETED"],
      ]);
      const verdicts = (events: typeof mine) => events.flatMap(({ details }) => (details?.verdict ? [details] : []));
      const under = { grant_id: at.grantId, grant_revision: 2 };
      expect(verdicts(mine)).toEqual([
        {
          verdict: "ALLOW",
          policy_ids: ["builtin/granted-out"],
          reasons: [expect.any(String)],
          ...under,
          direction: "out",
        },
        { verdict: "ALLOW", org_id: at.doing.orgId, ...under, direction: "in" },
      ]);
      expect(verdicts(theirs)).toEqual([
        { verdict: "ALLOW", policy_ids: ["builtin/granted-in"], reasons: [expect.any(String)] },
        { verdict: "ALLOW", org_id: at.asking.orgId, ...under, direction: "out" },
      ]);
      for (const org of [at.asking, at.doing])
        expect(await statusOf(org, traceId)).toMatchObject({
          ...{ taskId, traceId, state: TaskState.COMPLETED, callerOrgId: at.asking.orgId, targetOrgId: at.doing.orgId },
          ...{ grantId: at.grantId, grantRevision: 2n, callerVerdict: ALLOW, targetVerdict: ALLOW },
        });
    });

    test("is decided in both logs: each organisation reads its own question and reasons, and nothing of the other's", async () => {
      const at = await across(world);
      const { traceId } = await at.go();
      const [mine] = await decisionsOf(at.asking, traceId);
      const [theirs] = await decisionsOf(at.doing, traceId);
      expect(mine).toMatchObject({
        orgId: at.asking.orgId,
        question: {
          principal: { type: "Agent", id: at.asker.agentId, orgId: at.asking.orgId },
          resource: { type: "Contract", id: at.contractId, orgId: at.doing.orgId },
          context: { origin: "gateway", direction: "out", grant_id: at.grantId },
        },
        answer: { determiningPolicies: [{ policyId: "builtin/granted-out" }] },
      });
      expect(theirs).toMatchObject({
        orgId: at.doing.orgId,
        question: {
          principal: { type: "Agent", id: at.asker.agentId, orgId: at.asking.orgId },
          context: { origin: "gateway", direction: "in", grant_id: at.grantId, target_agent_id: at.worker.agentId },
        },
        answer: { determiningPolicies: [{ policyId: "builtin/granted-in" }] },
      });
      expect(await decisionsOf(at.asking, traceId)).toHaveLength(1);
      expect(await decisionsOf(at.doing, traceId)).toHaveLength(1);
    });

    test("leaves each decision in the audit log of the organisation that made it, the refused ones too", async () => {
      const at = await across(world);
      const rowsOf = async (org: Org, traceId: string) =>
        (await org.admin.admin.listAuditEvents({})).auditEvents
          .filter((row) => row.kind === AuditKind.DECISION && row.traceId === traceId)
          .map(({ agentId, resource }) => ({ agentId, ...resource }));
      const { taskId, traceId } = await at.go();
      const under = { contract_id: at.contractId, grant_id: at.grantId, grant_revision: "2", task_id: taskId };
      expect(await rowsOf(at.asking, traceId)).toEqual([
        {
          ...{ ...under, agentId: at.asker.agentId },
          ...{ direction: "out", verdict: "ALLOW", other_org_id: at.doing.orgId },
        },
      ]);
      expect(await rowsOf(at.doing, traceId)).toEqual([
        {
          ...{ ...under, agentId: "", from_agent_id: at.asker.agentId },
          ...{ direction: "in", verdict: "ALLOW", other_org_id: at.asking.orgId },
        },
      ]);
      await policy(at.doing, "forbid (principal, action, resource);");
      const { metadata } = await refusal(at.go());
      expect(await rowsOf(at.asking, metadata.trace_id!)).toMatchObject([{ direction: "out", verdict: "ALLOW" }]);
      expect(await rowsOf(at.doing, metadata.trace_id!)).toMatchObject([
        { direction: "in", verdict: "DENY", reason: "POLICY_DENIED" },
      ]);
    });

    test("streams what its agent streams, to whoever watches it on the asking side", async () => {
      work = async ({ progress, chunk }) => {
        await progress(0.5, "half");
        await chunk("Hello");
        return { output: "done", usage: { inputTokens: 3, outputTokens: 4, model: "their-model" } };
      };
      const at = await across(world, { agent: { endpoint: scripted } });
      const { taskId, traceId } = await at.go(soon);
      const seen = [];
      for await (const message of at.asker.as.bus.watchTask({ taskId })) seen.push(told(message));
      expect(seen.filter((one) => !one.startsWith("checkpoint")).slice(-5)).toEqual([
        ...["step DISPATCHED", "progress 0.5 half", "chunk Hello", "step COMPLETED", "task COMPLETED"],
      ]);
      expect((await statusOf(at.asking, traceId)).usage).toMatchObject({
        inputTokens: 3n,
        outputTokens: 4n,
        model: "",
      });
      expect((await statusOf(at.doing, traceId)).usage).toMatchObject({ model: "their-model" });
    });

    test("ends with the work, and the work with it: a cancel by the caller stops the agent", async () => {
      await using agent = await httpAgent(() => undefined);
      const at = await across(world, { agent: { endpoint: httpEndpoint(agent.url) } });
      const { taskId, traceId } = await at.go(soon);
      const call = await agent.call(0);
      const { task } = await at.asker.as.bus.cancelTask({ taskId, note: "my secret reason" });
      expect([stateOf(task), reasonOf(task), task!.error!.message]).toEqual([
        "CANCELED",
        "TASK_CANCELED",
        "my secret reason",
      ]);
      await call.hungUp;
      const there = (await at.doing.admin.bus.getTask({ taskId })).task!;
      expect([stateOf(there), there.error!.message]).toEqual(["CANCELED", "canceled by the organisation that asked"]);
      expect(
        JSON.stringify(await eventsOf(at.doing.admin, traceId), (_key, of) =>
          typeof of === "bigint" ? String(of) : of,
        ),
      ).not.toContain("secret");
    });

    test("that fails is told in general words, is the caller's dead letter alone, and can be tried again", async () => {
      const at = await across(world, { agent: { name: unique("hidden"), endpoint: httpEndpoint(await deadUrl()) } });
      const task = await at.go();
      expect([stateOf(task), reasonOf(task)]).toEqual(["FAILED", "AGENT_UNREACHABLE"]);
      expect(task.error!.message).toBe(
        `the organisation ${at.doing.orgId} did not do it: its agent could not be reached`,
      );
      expect(task.error!.metadata).toEqual({ org_id: at.doing.orgId });
      const there = (await at.doing.admin.bus.getTask({ taskId: task.taskId })).task!;
      expect(there.error!.metadata.agent_id).toBe(at.worker.agentId);
      expect((await at.doing.admin.deadLetters.listDeadLetters({})).deadLetters).toEqual([]);
      const [letter] = (await at.asking.admin.deadLetters.listDeadLetters({})).deadLetters;
      await at.doing.admin.agents.updateAgent({
        agentId: at.worker.agentId,
        change: { endpoint: echoEndpoint },
        updateMask: { paths: ["endpoint"] },
      });
      const { taskId } = await at.asking.admin.deadLetters.retryDeadLetter({ deadLetterId: letter!.deadLetterId });
      expect(stateOf(await whenEnded(at.asking.admin, taskId))).toBe("COMPLETED");
    });

    test("sent again under its idempotency key is one task on both sides", async () => {
      const at = await across(world);
      const headers = { "idempotency-key": unique("key") };
      const [first, second] = [await at.go({}, { headers }), await at.go({}, { headers })];
      expect(second.taskId).toBe(first.taskId);
      expect((await at.doing.admin.bus.listTasks({})).tasks).toHaveLength(1);
      expect(await usageOf(at)).toMatchObject({ requests: 1n });
    });

    test("that is only validated is decided and changes nothing", async () => {
      const at = await across(world, { grant: { terms: { requestsPerDay: 1n } } });
      const dry = () =>
        at.asker.as.gateway.submitTask({ targetOrgId: at.doing.orgId, contractId: at.contractId, validateOnly: true });
      expect(await dry()).toMatchObject({ grantId: at.grantId, grantRevision: 2n });
      expect(kindsOf((await dry()).decisionPath)).toEqual(["SUBMITTED", "POLICY_DECIDED", "POLICY_DECIDED"]);
      expect(await usageOf(at)).toEqual({});
      await at.go();
      const refused = (await dry()).decisionPath.at(-1)!;
      expect(refused.details).toMatchObject({ reason: "GRANT_QUOTA_EXCEEDED", unit: "requests" });
    });
  });

  describe("without a fitting grant in force", () => {
    const end = {
      suspended: (at: Across) => at.doing.admin.grants.suspendGrant({ grantId: at.grantId }),
      "revoked by the grantor": (at: Across) => at.doing.admin.grants.revokeGrant({ grantId: at.grantId }),
      "revoked by the grantee": (at: Across) => at.asking.admin.grants.revokeGrant({ grantId: at.grantId }),
      expired: async (at: Across) => {
        const change = { expireTime: timestampFromMs(clock.now() + 300) };
        await at.doing.admin.grants.updateGrant({
          grantId: at.grantId,
          change,
          updateMask: { paths: ["expire_time"] },
        });
        clock.advance(300);
      },
    };

    const notThere = async (at: Across, wish: Parameters<Across["go"]>[0] = {}) => {
      const headers = { traceparent: `00-${"a".repeat(32)}-${"b".repeat(16)}-00` };
      const answers = [
        await answerOf(at.go(wish, { headers })),
        await answerOf(at.go({ ...wish, targetOrgId: randomOrg() }, { headers })),
      ];
      expect(answers[0]).toEqual(answers[1]);
      expect(answers[0]).toMatchObject({ code: "NotFound", reason: "NOT_FOUND" });
      expect((await at.asker.as.gateway.listContracts({})).contracts).toEqual([]);
    };

    test.each(Object.keys(end) as (keyof typeof end)[])("a contract whose grant is %s is not there", async (how) => {
      const at = await across(still);
      expect(stateOf(await at.go())).toBe("COMPLETED");
      await end[how](at);
      await notThere(at);
      await notThere(at, { grantId: at.grantId });
    });

    test("a contract is not there with no grant, one that is only proposed, of another capability, or of another organisation", async () => {
      const [doing, asking] = [await world.org(), await world.org()];
      const contractId = await contract(doing);
      await doing.agent({ capabilities: [contractId], endpoint: echoEndpoint });
      const asker = await asking.agent({ trustTier: TrustTier.INTERNAL_TRUSTED });
      const go: Across["go"] = async ({ input = {}, by = asker.as, ...wish } = {}, options) =>
        (await by.gateway.submitTask({ targetOrgId: doing.orgId, contractId, input: value(input), ...wish }, options))
          .task!;
      const at = { asking, asker, doing, contractId, go } as Across;
      await notThere(at);
      await doing.admin.grants.createGrant({
        granteeOrgId: asking.orgId,
        subject: { case: "contractId", value: contractId },
      });
      await notThere(at);
      const other = await across(world);
      await granted(other.doing, asking, other.contractId, { subject: { case: "capability", value: contractId } });
      await notThere(at, {});
      await granted(doing, asking, contractId, { subject: { case: "capability", value: "else" } });
      await notThere(at);
      await granted(doing, asking, contractId, { subject: { case: "capability", value: contractId } });
      expect(stateOf(await go())).toBe("COMPLETED");
      // A contract of the own organisation is the bus's.
      const own = await contract(asking);
      expect(await answerOf(go({ targetOrgId: asking.orgId, contractId: own }))).toMatchObject({ reason: "NOT_FOUND" });
    });

    test("which agents the other organisation has is told by no answer: an id of one that cannot is answered like a random one", async () => {
      const at = await across(world);
      const idle = await at.doing.agent();
      const told = [];
      for (const targetAgentId of [idle.agentId, `agt_${"0123456789abcdef".repeat(2)}`]) {
        const { reason, metadata, error } = await refusal(at.go({ targetAgentId }));
        const { reason: later } = await statusOf(at.asking, metadata.trace_id!);
        told.push([reason, error.rawMessage, later]);
      }
      expect(told[0]).toEqual(told[1]);
      expect(told[0]).toMatchObject(["NO_CAPABLE_AGENT", expect.any(String), ErrorReason.NO_CAPABLE_AGENT]);
    });

    test("nothing is open of an organisation that is disabled, and none of its contracts is listed", async () => {
      const at = await across(world);
      const listed = async () =>
        (await at.asking.admin.gateway.listContracts({})).contracts.map(({ contractId }) => contractId);
      expect(await listed()).toEqual([at.contractId]);
      const change = { disabled: true };
      const { orgId } = at.doing;
      await world.operator.organizations.updateOrganization({ orgId, change, updateMask: { paths: ["disabled"] } });
      expect(await listed()).toEqual([]);
      for (const contractVersion of ["", "9.9.9"])
        expect(await answerOf(at.go({ contractVersion }))).toMatchObject({ reason: "NOT_FOUND" });
    });

    test("a refused request leaves nothing with the other organisation", async () => {
      const at = await across(world);
      await at.doing.admin.grants.revokeGrant({ grantId: at.grantId });
      const { metadata } = await refusal(at.go());
      const { trace_id: traceId = "" } = metadata;
      expect(kindsOf(await eventsOf(at.asking.admin, traceId))).toEqual(["SUBMITTED", "REFUSED"]);
      expect(await answerOf(at.doing.admin.traces.getTrace({ traceId }))).toMatchObject({ reason: "NOT_FOUND" });
      expect(await answerOf(at.doing.admin.gateway.getStatus({ traceId }))).toMatchObject({ reason: "NOT_FOUND" });
    });

    test("the contracts of the bus stay closed, whatever the grants", async () => {
      const at = await across(world);
      const { asker, contractId, worker } = at;
      expect(await answerOf(asker.as.bus.submitTask({ contractId }))).toMatchObject({ reason: "CONTRACT_NOT_FOUND" });
      expect(await answerOf(asker.as.agents.getAgent({ agentId: worker.agentId }))).toMatchObject({
        reason: "NOT_FOUND",
      });
    });
  });

  describe("policies of both", () => {
    const forbid = (of: string) =>
      `forbid (principal, action == Action::"invoke", resource) when { context has direction && context.direction == "${of}" };`;

    test("policies of the caller's organisation see nothing of how the other's contract is done", async () => {
      const at = await across(world, {
        contract: { requiredTools: ["secret"], securityClass: TrustTier.INTERNAL_RESTRICTED },
        agent: { allowedTools: ["secret"], trustTier: TrustTier.INTERNAL_TRUSTED },
      });
      const guess = (what: string) =>
        `forbid (principal, action == Action::"invoke", resource) when { context has direction && context.direction == "out" && ${what} };`;
      await policy(at.asking, guess('resource.tools.contains(Tool::"secret")'), "guess-tool");
      await policy(at.asking, guess("resource.security_rank < 4"), "guess-class");
      expect(stateOf(await at.go())).toBe("COMPLETED");
    });

    test("the caller's organisation forbids it from going out, and the other hears nothing of it", async () => {
      const at = await across(world);
      await policy(at.asking, forbid("out"), "stay");
      const { reason, metadata } = await refusal(at.go());
      expect([reason, metadata.policy_ids]).toEqual(["POLICY_DENIED", "stay"]);
      const { trace_id: traceId = "" } = metadata;
      expect((await decisionsOf(at.asking, traceId))[0]?.answer?.verdict).toBe(DENY);
      expect(await decisionsOf(at.doing, traceId)).toEqual([]);
      expect(await usageOf(at)).toEqual({});
    });

    test("the other organisation forbids it from coming in: the caller reads the verdict and not whose policy it was", async () => {
      const at = await across(world);
      await policy(at.doing, forbid("in"), "keep-out");
      const { reason, metadata, error } = await refusal(at.go());
      const { trace_id: traceId = "" } = metadata;
      expect([reason, metadata]).toEqual(["POLICY_DENIED", { org_id: at.doing.orgId, trace_id: traceId }]);
      expect(error.rawMessage).not.toContain("keep-out");
      const [mine, theirs] = [await statusOf(at.asking, traceId), await statusOf(at.doing, traceId)];
      for (const status of [mine, theirs])
        expect(status).toMatchObject({
          ...{ taskId: "", state: TaskState.UNSPECIFIED, reason: ErrorReason.POLICY_DENIED },
          ...{ callerVerdict: ALLOW, targetVerdict: DENY },
        });
      const texts = await Promise.all(
        [at.asking, at.doing].map(async (org) =>
          JSON.stringify((await eventsOf(org.admin, traceId)).map(({ message, details }) => [message, details])),
        ),
      );
      expect(texts[0]).not.toContain("keep-out");
      expect(texts[1]).toContain("keep-out");
      expect((await decisionsOf(at.doing, traceId))[0]?.answer?.determiningPolicies[0]?.policyId).toBe("keep-out");
      expect(await usageOf(at)).toMatchObject({ requests: 0n, denials: 1n });
    });

    test("agents of the internal tiers go out, others where a policy of their organisation lets them", async () => {
      const at = await across(world, { asker: { trustTier: TrustTier.EXTERNAL_PARTNER } });
      expect(await answerOf(at.go())).toMatchObject({ reason: "POLICY_DENIED" });
      expect(stateOf(await at.go({ by: at.asking.admin }))).toBe("COMPLETED");
      await policy(
        at.asking,
        `permit (principal == Agent::"${at.asker.agentId}", action == Action::"invoke", resource == Contract::"${at.doing.orgId}/${at.contractId}");`,
      );
      expect(stateOf(await at.go())).toBe("COMPLETED");
    });

    test("to the other organisation a foreign agent is an external partner, however far its own trusts it", async () => {
      const at = await across(world, { asker: { trustTier: TrustTier.INTERNAL_TRUSTED } });
      await policy(
        at.doing,
        'forbid (principal is Agent, action == Action::"invoke", resource) when { principal.tier == Tier::"EXTERNAL_PARTNER" };',
      );
      expect(await answerOf(at.go())).toMatchObject({ reason: "POLICY_DENIED", metadata: { org_id: at.doing.orgId } });
    });

    test.each(["asking", "doing"] as const)(
      "the %s organisation asks for an approval first; both hear that it waits, and it goes on once it is approved",
      async (side) => {
        const at = await across(world);
        await policy(
          at[side],
          `@approval("a human looks")\npermit (principal, action == Action::"invoke", resource) when { context.origin == "gateway" };`,
          "look",
        );
        const task = await at.go();
        expect(stateOf(task)).toBe("AWAITING_APPROVAL");
        const [mine, theirs] = side === "asking" ? [REQUIRE_APPROVAL, UNSPECIFIED] : [ALLOW, REQUIRE_APPROVAL];
        expect(await statusOf(at.asking, task.traceId)).toMatchObject({ callerVerdict: mine, targetVerdict: theirs });
        if (side === "asking")
          expect(await answerOf(statusOf(at.doing, task.traceId))).toMatchObject({ reason: "NOT_FOUND" });
        const { approvals } = await at[side].admin.approvals.listApprovals({});
        expect(approvals).toMatchObject([{ taskId: task.taskId, callerAgentId: at.asker.agentId }]);
        const other = side === "asking" ? at.doing : at.asking;
        expect((await other.admin.approvals.listApprovals({})).approvals).toEqual([]);
        await at[side].admin.approvals.approve({ approvalId: approvals[0]!.approvalId });
        const ended = await whenEnded(at.asker.as, task.taskId);
        expect([stateOf(ended), reasonOf(ended)]).toEqual(["COMPLETED", "undefined"]);
        expect(await statusOf(at.doing, task.traceId)).toMatchObject({
          callerVerdict: side === "asking" ? REQUIRE_APPROVAL : ALLOW,
          state: TaskState.COMPLETED,
        });
        expect(await usageOf(at)).toMatchObject({ requests: 1n });
      },
    );

    test("an approval that is denied ends it on both sides", async () => {
      const at = await across(world, { contract: { approvalRequired: true } });
      const { taskId } = await at.go();
      const { approvals } = await at.doing.admin.approvals.listApprovals({});
      await at.doing.admin.approvals.deny({ approvalId: approvals[0]!.approvalId, note: "not for you" });
      const task = await whenEnded(at.asker.as, taskId);
      expect([stateOf(task), reasonOf(task)]).toEqual(["REJECTED", "APPROVAL_DENIED"]);
      expect(task.error!.message).not.toContain("not for you");
      expect(await usageOf(at)).toMatchObject({ requests: 1n, reservedTokens: 0n, tokens: 0n });
    });
  });

  describe("the terms of a grant", () => {
    test("allowed tiers are those of the asker in its own organisation", async () => {
      const at = await across(world, { grant: { terms: { allowedTiers: [TrustTier.INTERNAL_TRUSTED] } } });
      expect(await answerOf(at.go())).toMatchObject({
        reason: "GRANT_TERMS_EXCEEDED",
        metadata: { grant_id: at.grantId, term: "allowed_tiers", actual: "INTERNAL_RESTRICTED" },
      });
      expect(stateOf(await at.go({ by: at.asking.admin }))).toBe("COMPLETED");
      expect(await usageOf(at)).toMatchObject({ requests: 1n, denials: 1n });
    });

    test("allowed tools hold for what the work needs", async () => {
      const at = await across(world, {
        ...{ contract: { requiredTools: ["web", "shell"] }, agent: { allowedTools: ["web", "shell"] } },
        grant: { terms: { allowedTools: ["web"] } },
      });
      expect(await answerOf(at.go())).toMatchObject({ metadata: { term: "allowed_tools", actual: "shell" } });
      const change = { allowedTools: ["web", "shell"] };
      await at.doing.admin.grants.updateGrant({
        grantId: at.grantId,
        change,
        updateMask: { paths: ["allowed_tools"] },
      });
      expect(stateOf(await at.go())).toBe("COMPLETED");
    });

    test.each([
      ["the most that it declares", { estimatedTokens: 10n, maxTokens: 1_000n }, "1001"],
      ["its most alone", { maxTokens: 1_000n }, "1001"],
      ["nothing that it declares, and so is refused", {}, "unknown"],
    ])("under a price cap a contract is held to %s", async (_what, declared, actual) => {
      const at = await across(world, { contract: declared, grant: { terms: { priceCapMicros: 1_000n } } });
      const rate = (micros: bigint) =>
        at.doing.admin.costs.setRates({ rates: [{ inputPer1000TokensMicros: micros, outputPer1000TokensMicros: 0n }] });
      // What costs nothing needs to declare nothing.
      expect(stateOf(await at.go())).toBe("COMPLETED");
      await rate(1_001n);
      expect(await answerOf(at.go())).toMatchObject({
        ...{ reason: "GRANT_TERMS_EXCEEDED", metadata: { term: "price_cap_micros", actual } },
      });
      const updateMask = { paths: ["price_cap_micros"] };
      await at.doing.admin.grants.updateGrant({ grantId: at.grantId, change: {}, updateMask });
      expect(stateOf(await at.go())).toBe("COMPLETED");
    });

    test("the price cap is held against the estimate by the rates of the organisation that does the work", async () => {
      const at = await across(world, {
        contract: { estimatedTokens: 1_000n },
        grant: { terms: { priceCapMicros: 1_000n } },
      });
      const rate = (inputMicros: bigint) =>
        at.doing.admin.costs.setRates({
          rates: [{ inputPer1000TokensMicros: inputMicros, outputPer1000TokensMicros: 1n }],
        });
      await rate(1_001n);
      expect(await answerOf(at.go())).toMatchObject({ metadata: { term: "price_cap_micros", actual: "1001" } });
      const [shown] = (await at.asker.as.gateway.listContracts({})).contracts;
      expect([shown!.estimatedTokens, shown!.estimatedCostMicros]).toEqual([1_000n, 1_001n]);
    });
  });

  test("a grant on a namespace opens the contracts of that namespace, and no others of its organisation", async () => {
    const [doing, asking] = [await world.org(), await world.org()];
    const namespace = unique("family");
    await doing.admin.namespaces.createNamespace({ name: namespace });
    const at = await across(world, {
      ...{ doing, asking, contract: { namespace }, grant: { subject: { case: "namespace", value: namespace } } },
    });
    const other = await contract(doing, { capability: at.contractId });
    expect(stateOf(await at.go())).toBe("COMPLETED");
    const shown = (await at.asker.as.gateway.listContracts({})).contracts;
    expect(shown.map((one) => [one.contractId, one.namespace, one.grantId])).toEqual([
      [at.contractId, namespace, at.grantId],
    ]);
    expect((await answerOf(at.go({ contractId: other }))).reason).toBe("NOT_FOUND");
    // What joins it later is open from then on.
    const later = await contract(doing, { namespace, capability: at.contractId });
    expect(await at.go({ contractId: later })).toMatchObject({ grantId: at.grantId, contractId: later });
    await doing.admin.grants.revokeGrant({ grantId: at.grantId });
    for (const contractId of [at.contractId, later])
      expect((await answerOf(at.go({ contractId }))).reason).toBe("NOT_FOUND");
  });

  test("what comes of a task that nobody waits for is told to a webhook of those who asked, and to none of those who did it", async () => {
    await using mine = await receiver();
    await using theirs = await receiver();
    const at = await across(world, { agent: { endpoint: pullEndpoint } });
    const eventTypes = ["task.*"];
    const { secret } = await hook(at.asker.as, mine.url, { eventTypes });
    const { webhookId } = await hook(at.doing.admin, theirs.url, { eventTypes });
    const { taskId, traceId } = await at.go(soon);
    await using instance = serving(at.worker.as);
    await respond(at.worker.as, await instance.delivery(0));
    expect(stateOf(await whenEnded(at.asker.as, taskId))).toBe("COMPLETED");
    const told = await mine.nth(1);
    expect(verify(secret, told)).toMatchObject({
      type: "task.completed",
      trace_id: traceId,
      data: { task_id: taskId },
    });
    await world.settled();
    // A marker that comes after all that was to come.
    await at.doing.admin.webhooks.testWebhook({ webhookId });
    await theirs.nth(1);
    expect(theirs.received.map(({ body }) => (JSON.parse(body) as { type: string }).type)).toEqual(["webhook.test"]);
  });

  describe("the quota of a grant", () => {
    test("of four hundred requests at once a hundred are let in, exactly, and the others are told the figures", async () => {
      const at = await across(world, { grant: { terms: { requestsPerDay: 100n } } });
      const results = await Promise.allSettled(Array.from({ length: 400 }, () => at.go()));
      const refused = results.flatMap((one) => (one.status === "rejected" ? [one.reason as unknown] : []));
      expect(refused).toHaveLength(300);
      expect([...new Set(refused.map((error) => (error as Error).message.replaceAll(/\d+/g, "N")))]).toEqual([
        expect.stringContaining("allows N requests a day"),
      ]);
      expect(await usageOf(at)).toMatchObject({ requests: 100n, denials: 300n });
      expect((await at.doing.admin.bus.listTasks({ pageSize: 250 })).tasks).toHaveLength(100);
      const { code, metadata, error } = await refusal(at.go());
      expect([code, metadata]).toMatchObject([
        "ResourceExhausted",
        { grant_id: at.grantId, unit: "requests", limit: "100", used: "100" },
      ]);
      expect(Date.parse(metadata.reset_time!)).toBeGreaterThan(Date.now());
      expect(error.metadata.get("retry-after")).toMatch(/^\d+$/);
    });

    test("tokens are set aside when a request comes in, and settled with what it used; the rest is free again", async () => {
      await using agent = await httpAgent(asTold);
      const at = await across(world, {
        contract: { estimatedTokens: 400n },
        agent: { endpoint: httpEndpoint(agent.url) },
        grant: { terms: { tokensPerDay: 1_000n } },
      });
      await at.doing.admin.costs.setRates({
        rates: [{ inputPer1000TokensMicros: 1_000n, outputPer1000TokensMicros: 2_000n }],
      });
      const task = await at.go({ input: { usage: { inputTokens: 100, outputTokens: 50 } } });
      expect(task).toMatchObject({ costMicros: 200n, usage: { inputTokens: 100n, outputTokens: 50n } });
      expect(await usageOf(at)).toMatchObject({ tokens: 150n, reservedTokens: 0n, costMicros: 200n, requests: 1n });
      agent.handle = () => undefined;
      const open = [await at.go(soon), await at.go(soon)];
      expect(await usageOf(at)).toMatchObject({ tokens: 150n, reservedTokens: 800n });
      expect(await answerOf(at.go())).toMatchObject({
        reason: "GRANT_QUOTA_EXCEEDED",
        metadata: { unit: "tokens", limit: "1000", used: "150", reserved: "800", wanted: "400" },
      });
      await agent.call(2);
      for (const { taskId } of open) await at.asker.as.bus.cancelTask({ taskId });
      // Nobody knows what these used: all that was set aside counts.
      expect(await usageOf(at)).toMatchObject({ tokens: 950n, reservedTokens: 0n });
      const { totals } = await at.doing.admin.costs.getAgentCosts({ agentId: at.worker.agentId });
      expect(totals).toMatchObject({ tasks: 3n, inputTokens: 100n });
    });

    test("what it leaves is in the headers of the answer", async () => {
      const at = await across(world, {
        contract: { estimatedTokens: 10n },
        grant: { terms: { requestsPerDay: 5n, tokensPerDay: 100n } },
      });
      let header: Headers | undefined;
      await at.go({}, { onHeader: (given) => void (header = given) });
      expect(
        ["requests-limit", "requests-remaining", "tokens-limit", "tokens-remaining"].map((name) =>
          header?.get(`grant-${name}`),
        ),
      ).toEqual(["5", "4", "100", "90"]);
    });

    test("budgets of either organisation refuse, and nothing is left set aside by what was refused", async () => {
      const at = await across(world, {
        contract: { estimatedTokens: 60n },
        grant: { terms: { tokensPerDay: 1_000n } },
      });
      const total = { scope: BudgetScope.ORG, period: BudgetPeriod.TOTAL };
      const reserved = async (org: Org) => Number((await org.admin.budgets.getBudget(total)).budget!.tokens!.reserved);
      await at.asking.admin.budgets.setBudget({ ...total, limitTokens: 100n });
      await at.doing.admin.budgets.setBudget({ ...total, limitTokens: 50n });
      expect(await answerOf(at.go())).toMatchObject({
        reason: "BUDGET_EXCEEDED",
        metadata: { org_id: at.doing.orgId },
      });
      expect(await Promise.all([reserved(at.asking), reserved(at.doing)])).toEqual([0, 0]);
      expect(await usageOf(at)).toMatchObject({ requests: 0n, denials: 1n, reservedTokens: 0n });
      await at.doing.admin.budgets.setBudget({ ...total, limitTokens: 100n });
      await at.asking.admin.budgets.setBudget({ ...total, limitTokens: 50n });
      expect(await answerOf(at.go())).toMatchObject({ reason: "BUDGET_EXCEEDED", metadata: { limit: "50" } });
      expect(await Promise.all([reserved(at.asking), reserved(at.doing)])).toEqual([0, 0]);
      await at.asking.admin.budgets.setBudget({ ...total, limitTokens: 100n });
      expect(stateOf(await at.go())).toBe("COMPLETED");
      expect(await Promise.all([reserved(at.asking), reserved(at.doing)])).toEqual([0, 0]);
    });
  });

  describe("a grant that leaves its force ends what is under way within a second", () => {
    const endings = {
      suspended: (at: Across) => at.doing.admin.grants.suspendGrant({ grantId: at.grantId }),
      revoked: (at: Across) => at.doing.admin.grants.revokeGrant({ grantId: at.grantId }),
      expired: (at: Across) => {
        const change = { expireTime: timestampFromMs(clock.now() + 300) };
        return at.doing.admin.grants.updateGrant({
          grantId: at.grantId,
          change,
          updateMask: { paths: ["expire_time"] },
        });
      },
    };
    const hows = Object.keys(endings) as (keyof typeof endings)[];

    /** What comes when a second has passed; a round of the server's that was under way then has its next one a little later. */
    async function aSecondLater<T>(coming: Promise<T>): Promise<T> {
      const over = coming.then(
        () => true,
        () => true,
      );
      clock.advance(1_000);
      await eventually(async () => {
        clock.advance(10);
        return Promise.race([over, Promise.resolve(false)]);
      });
      return coming;
    }

    /** Ends the grant and gives the task as it ended. */
    async function endsWith(at: Across, taskId: string, how: keyof typeof endings) {
      await endings[how](at);
      const task = await aSecondLater(whenEnded(at.asker.as, taskId));
      expect([stateOf(task), reasonOf(task), task.error!.metadata]).toEqual([
        "REJECTED",
        "GRANT_NOT_ACTIVE",
        { grant_id: at.grantId, state: how.toUpperCase() },
      ]);
      expect((await usageOf(at)).reservedTokens ?? 0n).toBe(0n);
    }

    test.each(hows)(
      "with an agent that streams, when it is %s: the agent is hung up on, the stream of the watcher ends",
      async (how) => {
        const aborted = Promise.withResolvers<void>();
        work = async ({ chunk }, signal) => {
          await chunk("begun");
          await new Promise((_resolve, reject) =>
            signal.addEventListener("abort", () => {
              aborted.resolve();
              reject(signal.reason as Error);
            }),
          );
          throw new Error("never");
        };
        const at = await across(still, { contract: { estimatedTokens: 70n }, agent: { endpoint: scripted } });
        const { taskId } = await at.go(soon);
        const watching = (async () => {
          const seen = [];
          for await (const message of at.asker.as.bus.watchTask({ taskId })) seen.push(told(message));
          return seen;
        })();
        await eventually(
          async () =>
            (await eventsOf(at.asking.admin, (await at.asker.as.bus.getTask({ taskId })).task!.traceId)).length > 4,
        );
        await endsWith(at, taskId, how);
        await aborted.promise;
        expect((await aSecondLater(watching)).at(-1)).toBe("task REJECTED");
        // Nobody knows what it used.
        expect(await usageOf(at)).toMatchObject({ tokens: 70n });
      },
    );

    test.each(hows)("waiting for an agent that pulls, when it is %s", async (how) => {
      const at = await across(still, { contract: { estimatedTokens: 70n }, agent: { endpoint: pullEndpoint } });
      const { taskId } = await at.go(soon);
      await endsWith(at, taskId, how);
      expect(await usageOf(at)).toMatchObject({ tokens: 0n });
      await using instance = serving(at.worker.as);
      const other = await granted(at.doing, at.asking, at.contractId);
      const next = await at.go({ ...soon, grantId: other });
      expect((await instance.delivery(0)).task?.taskId).toBe(next.taskId);
    });

    test.each(hows)(
      "leased to an agent that pulls, when it is %s: the instance is told, and its answer comes too late",
      async (how) => {
        const at = await across(still, { agent: { endpoint: pullEndpoint } });
        await using instance = serving(at.worker.as);
        const { taskId } = await at.go(soon);
        const delivery = await instance.delivery(0);
        await endsWith(at, taskId, how);
        await eventually(() => instance.revoked.includes(taskId));
        expect(await answerOf(respond(at.worker.as, delivery))).toMatchObject({ reason: "LEASE_LOST" });
      },
    );

    test.each(["asking", "doing"] as const)("waiting for an approval of the %s organisation", async (side) => {
      const at = await across(still);
      await policy(
        at[side],
        `@approval("a human looks")\npermit (principal, action == Action::"invoke", resource) when { context.origin == "gateway" };`,
        "look",
      );
      const { taskId } = await at.go();
      const [approval] = (await at[side].admin.approvals.listApprovals({})).approvals;
      await endsWith(at, taskId, "revoked");
      expect(await answerOf(at[side].admin.approvals.approve({ approvalId: approval!.approvalId }))).toMatchObject({
        reason: "FAILED_PRECONDITION",
      });
    });

    test("waiting between two attempts: the next one does not begin", async () => {
      await using agent = await httpAgent(() => undefined);
      const at = await across(still, {
        contract: { retries: 1, backoffMs: 60_000, repeatable: true, timeoutMs: 300 },
        agent: { endpoint: httpEndpoint(agent.url) },
      });
      agent.handle = ({ answer }) => answer({ code: "unavailable", message: "later" }, 503);
      const { taskId } = await at.go(soon);
      await agent.call(0);
      await endsWith(at, taskId, "revoked");
      expect(agent.calls).toHaveLength(1);
    });

    test("and not later", async () => {
      // Of a server whose periodic work has not begun yet, a second holds its first rounds.
      const own = fakeClock();
      await using fresh = await start(dialect, { clock: own });
      const at = await across(fresh, { agent: { endpoint: pullEndpoint } });
      const { taskId } = await at.go(soon);
      await endings.revoked(at);
      own.advance(1_000);
      const { task } = await eventually(async () => {
        const read = await at.asker.as.bus.getTask({ taskId });
        return read.task!.endTime && read;
      });
      expect([stateOf(task!), reasonOf(task!)]).toEqual(["REJECTED", "GRANT_NOT_ACTIVE"]);
    });
  });

  describe("while no sweep comes, since time stands still", () => {
    let still: World;
    const clock = fakeClock(Date.now());
    beforeAll(async () => {
      still = await start(dialect, { clock });
    });
    afterAll(() => still[Symbol.asyncDispose]());
    const revoke = ({ doing, grantId }: Across) => doing.admin.grants.revokeGrant({ grantId });
    const refusedAtLast = async (at: Across, taskId: string) => {
      const task = await whenEnded(at.asker.as, taskId);
      expect([stateOf(task), reasonOf(task)]).toEqual(["REJECTED", "GRANT_NOT_ACTIVE"]);
    };

    test("a task that waits to be pulled is not handed out once its grant is revoked", async () => {
      const at = await across(still, { agent: { endpoint: pullEndpoint } });
      const { taskId } = await at.go(soon);
      await revoke(at);
      await using instance = serving(at.worker.as);
      await refusedAtLast(at, taskId);
      expect(instance.deliveries).toEqual([]);
    });

    test.each(["asking", "doing"] as const)(
      "an approval of the %s organisation that comes after the end of the grant brings nothing about",
      async (side) => {
        await using agent = await httpAgent();
        const at = await across(still, { agent: { endpoint: httpEndpoint(agent.url) } });
        const cedarText = `@approval("a human looks")\npermit (principal, action == Action::"invoke", resource) when { context.origin == "gateway" };`;
        await policy(at[side], cedarText, "look");
        const { taskId } = await at.go();
        const [approval] = (await at[side].admin.approvals.listApprovals({})).approvals;
        await revoke(at);
        await at[side].admin.approvals.approve({ approvalId: approval!.approvalId });
        const task = await whenEnded(at.asker.as, taskId);
        // What has not come to the other organisation yet finds nothing open there.
        expect([stateOf(task), reasonOf(task)]).toEqual([
          "REJECTED",
          side === "asking" ? "NOT_FOUND" : "GRANT_NOT_ACTIVE",
        ]);
        expect(agent.calls).toEqual([]);
      },
    );

    test("terms that were narrowed since hold for the next attempt", async () => {
      const tools = { requiredTools: ["web"] };
      const at = await across(still, { contract: tools, agent: { endpoint: pullEndpoint, allowedTools: ["web"] } });
      const { taskId } = await at.go(soon);
      const change = { allowedTools: ["else"] };
      await at.doing.admin.grants.updateGrant({
        grantId: at.grantId,
        change,
        updateMask: { paths: ["allowed_tools"] },
      });
      await using instance = serving(at.worker.as);
      const task = await whenEnded(at.asker.as, taskId);
      expect([stateOf(task), reasonOf(task), instance.deliveries.length]).toEqual([
        "REJECTED",
        "GRANT_TERMS_EXCEEDED",
        0,
      ]);
    });

    // From here on time goes by: what comes before needs it to stand still.
    test.each(["suspended", "revoked"] as const)(
      "and within a second of it a sweep ends what is open under a grant that is %s",
      async (how) => {
        const at = await across(still, { agent: { endpoint: pullEndpoint } });
        const { taskId } = await at.go(soon);
        const { grantId } = at;
        const { grants } = at.doing.admin;
        await (how === "revoked" ? grants.revokeGrant({ grantId }) : grants.suspendGrant({ grantId }));
        const state = async () => stateOf((await at.asker.as.bus.getTask({ taskId })).task);
        expect(await state()).toBe("SUBMITTED");
        clock.advance(500);
        // A sweep that was under way by then is over after some time of the machine, and the next comes half a second of the clock later.
        await eventually(async () => (await state()) === "REJECTED", 10_000).catch(() => clock.advance(500));
        await refusedAtLast(at, taskId);
      },
    );

    test("no more requests come under a grant in a minute than it lets, and nothing is left of the others", async () => {
      const terms = { requestsPerMinute: 2 };
      const at = await across(still, { grant: { terms } });
      const free = await across(still, { doing: at.doing, grant: { terms } });
      const told: string[] = [];
      const onHeader = (headers: Headers) =>
        void told.push(`${headers.get("grant-ratelimit-remaining")} of ${headers.get("grant-ratelimit-limit")}`);
      const headers = { "idempotency-key": unique("again") };
      const first = await at.go({}, { headers, onHeader });
      // It is decided about and refused, and so counts: the organisation's own quota of a grant is another thing.
      const update = (change: object, ...paths: string[]) =>
        at.doing.admin.grants.updateGrant({ grantId: at.grantId, change, updateMask: { paths } });
      await update({ requestsPerDay: 0n }, "requests_per_day");
      expect((await refusal(at.go({}, { onHeader }))).reason).toBe("GRANT_QUOTA_EXCEEDED");
      await update({}, "requests_per_day");
      const { reason, metadata, error } = await refusal(at.go({}, { onHeader }));
      expect([reason, metadata.limit, error.metadata.get("retry-after")]).toEqual(["RATE_LIMITED", "2", "60"]);
      expect(error.findDetails(QuotaFailureSchema)[0]?.violations[0]?.subject).toBe(`grant:${at.grantId}`);
      expect(error.metadata.get("grant-ratelimit-remaining")).toBe("0");
      expect(told.slice(0, 1)).toEqual(["1 of 2"]);
      // What is only asked about is not counted, nor what was done before; other grants count for themselves.
      const dry = await at.asker.as.gateway.submitTask({
        ...{ targetOrgId: at.doing.orgId, contractId: at.contractId, input: value({}), validateOnly: true },
      });
      expect(dry.grantId).toBe(at.grantId);
      expect((await at.go({}, { headers })).taskId).toBe(first.taskId);
      await free.go();
      expect(await usageOf(at)).toMatchObject({ requests: 1n, denials: 1n });
      const { contractId } = at;
      expect((await at.asking.admin.traces.listTraces({ contractId })).traces).toHaveLength(2);
      clock.advance(60_000);
      await at.go();
      await update({}, "requests_per_minute");
      for (let i = 0; i < 3; i++) await at.go();
    });
  });

  test("of requests that race with the end of their grant none is left open", async () => {
    const at = await across(world, { agent: { endpoint: pullEndpoint } });
    const asked = Array.from({ length: 40 }, () => at.go(soon));
    await Promise.race(asked);
    const [results] = await Promise.all([
      Promise.allSettled(asked),
      at.doing.admin.grants.revokeGrant({ grantId: at.grantId }),
    ]);
    const accepted = results.flatMap((one) => (one.status === "fulfilled" ? [one.value.taskId] : []));
    for (const one of results)
      if (one.status === "rejected")
        expect((await refusal(Promise.reject(one.reason))).reason).toMatch(/^(NOT_FOUND|GRANT_NOT_ACTIVE)$/);
    for (const taskId of accepted) expect(reasonOf(await whenEnded(at.asker.as, taskId))).toBe("GRANT_NOT_ACTIVE");
    const open = (await at.doing.admin.bus.listTasks({ pageSize: 250 })).tasks.filter(({ endTime }) => !endTime);
    expect(open).toEqual([]);
    expect(await usageOf(at)).toMatchObject({ requests: BigInt(accepted.length), reservedTokens: 0n });
  });

  describe("the contracts that are open to an organisation", () => {
    test("are those of its grants in force, with what is needed to ask and nothing of how it is done", async () => {
      const [doing, asking] = [await world.org(), await world.org()];
      const description = "finds things";
      const inputSchema = { type: "object" };
      const first = await contract(doing, {
        capability: "search",
        description,
        inputSchema,
        requiredTools: ["secret-tool"],
      });
      const second = await contract(doing, { capability: "search" });
      const third = await contract(doing, { capability: "other" });
      const onSearch = await granted(doing, asking, first, { subject: { case: "capability", value: "search" } });
      const onThird = await granted(doing, asking, third);
      const list = async (filter = {}) => (await asking.admin.gateway.listContracts(filter)).contracts;
      const found = [[onThird, third], ...[first, second].toSorted().map((id) => [onSearch, id])];
      expect((await list()).map(({ grantId, contractId }) => [grantId, contractId])).toEqual(found);
      expect(await list({ capability: "other" })).toHaveLength(1);
      expect(await list({ grantId: onSearch })).toHaveLength(2);
      expect(await list({ targetOrgId: doing.orgId })).toHaveLength(3);
      expect(await list({ targetOrgId: asking.orgId })).toEqual([]);
      const shown = (await list()).find(({ contractId }) => contractId === first)!;
      expect(shown).toMatchObject({
        orgId: doing.orgId,
        capability: "search",
        description,
        inputSchema,
        version: "1.0.0",
      });
      expect(shown.orgName).toMatch(/^org-/);
      expect(JSON.stringify(shown, (_key, of) => (typeof of === "bigint" ? String(of) : of))).not.toContain(
        "secret-tool",
      );
      const paged: string[] = [];
      for (let pageToken = ""; ; ) {
        const page = await asking.admin.gateway.listContracts({ pageSize: 1, pageToken });
        paged.push(...page.contracts.map(({ contractId }) => contractId));
        pageToken = page.nextPageToken;
        if (!pageToken) break;
      }
      expect(paged).toEqual(found.map(([, id]) => id));
      expect((await doing.admin.gateway.listContracts({})).contracts).toEqual([]);
      await doing.admin.contracts.deprecateContract({ contractId: third, version: "1.0.0" });
      expect(await list({ grantId: onThird })).toEqual([]);
    });
  });

  test("what an organisation keeps to itself is in no byte that the other reads", async () => {
    const canary = unique("canary");
    await using agent = await httpAgent(({ answer }) => answer({ code: "internal", message: `${canary} broke` }, 500));
    const doing = await world.org(`${canary}-ok`.slice(0, 60));
    const at = await across(world, {
      doing,
      contract: { requiredTools: [`${canary}-tool`] },
      agent: {
        name: `${canary}-name`,
        description: canary,
        endpoint: httpEndpoint(`${agent.url}/${canary}`),
        allowedTools: [`${canary}-tool`],
      },
      asker: { name: `${canary}-asker`, description: canary },
    });
    const cedarText = "permit (principal, action, resource);";
    for (const org of [at.asking, at.doing])
      await org.admin.policies.putPolicy({ policyId: `${canary}-policy`, cedarText, description: canary });
    const asked = [await at.go({ labels: { [canary]: canary } })];
    await at.doing.admin.policies.putPolicy({
      policyId: `${canary}-stop`,
      cedarText: 'forbid (principal, action, resource) when { context.origin == "gateway" };',
    });
    const { metadata } = await refusal(at.go());
    const read = async (org: Org, traceId: string, taskId = "") =>
      JSON.stringify(
        [
          await eventsOf(org.admin, traceId),
          await org.admin.gateway.getStatus({ traceId }),
          await org.admin.traces.getTrace({ traceId }),
          await org.admin.costs.getTraceCosts({ traceId }),
          ...(taskId ? [await org.admin.bus.getTask({ taskId })] : []),
          await org.admin.bus.listTasks({}),
          (await org.admin.deadLetters.listDeadLetters({})).deadLetters,
        ],
        (_key, of) => (typeof of === "bigint" ? String(of) : of),
      );
    const hidden = ["-tool", "-name", "-policy", "-stop", "-asker", " broke", `/${canary}`].map((part) =>
      part.startsWith("/") ? part : canary + part,
    );
    for (const traceId of [asked[0]!.traceId, metadata.trace_id!]) {
      const task = traceId === asked[0]!.traceId ? asked[0]!.taskId : "";
      const [mine, theirs] = [await read(at.asking, traceId, task), await read(at.doing, traceId, task)];
      // Each knows its own names, and these are the other's.
      for (const part of hidden.filter((one) => !one.endsWith("-asker") && !one.endsWith("-policy")))
        expect(mine).not.toContain(part);
      for (const part of [`${canary}-asker`, `"${canary}":"${canary}"`]) expect(theirs).not.toContain(part);
    }
    expect(await read(at.doing, asked[0]!.traceId)).toContain(`${canary}-tool`.slice(0, 12));
  });
});
