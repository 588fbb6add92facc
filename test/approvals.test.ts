import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { TrustTier } from "../gen/moltwire/bus/v1/agent_pb.ts";
import { ApprovalState } from "../gen/moltwire/bus/v1/approval_pb.ts";
import { BudgetPeriod, BudgetScope } from "../gen/moltwire/bus/v1/budget_pb.ts";
import { type Task, TaskState } from "../gen/moltwire/bus/v1/task_pb.ts";
import { sealJson } from "../src/bus/task-store.ts";
import { type Sql, sql } from "../src/db/db.ts";
import {
  contract,
  eventsOf,
  json,
  kindsOf,
  nameOf,
  reasonOf,
  stateOf,
  submit,
  whenEnded,
  worker,
} from "./bus-fixtures/bus.ts";
import { httpAgent } from "./bus-fixtures/http-agent.ts";
import { storage } from "./bus-fixtures/storage.ts";
import { dialects, eventually, fakeClock, type Org, refusal, start, type World } from "./harness.ts";

const dayMs = 24 * 3_600_000;

/** A contract that asks for approvals, an agent that does it, one that asks for it, and an administrator of their organisation. */
async function scene(world: World, init: Parameters<typeof contract>[1] = {}) {
  const org = await world.org();
  const agent = await httpAgent();
  const contractId = await contract(org, { approvalRequired: true, ...init });
  const { agentId: workerId } = await worker(org, contractId, agent);
  const asker = await org.agent();
  return { org, agent, contractId, workerId, asker, [Symbol.asyncDispose]: () => agent[Symbol.asyncDispose]() };
}

const approvalOf = async (org: Org, approvalId: string) =>
  (await org.admin.approvals.getApproval({ approvalId })).approval!;
const stateName = (state: ApprovalState) => nameOf(ApprovalState, state);

describe.each(dialects)("%s", (dialect) => {
  let world: World;
  beforeAll(async () => {
    world = await start(dialect);
  });
  afterAll(() => world[Symbol.asyncDispose]());

  describe("a task whose contract asks for approvals", () => {
    test("is answered as AWAITING_APPROVAL at once, whatever the call's deadline, and nobody has it", async () => {
      await using at = await scene(world);
      const task = await submit(at.asker.as, at.contractId, { input: { sum: 3 } }, { timeoutMs: 60_000 });
      expect(stateOf(task)).toBe("AWAITING_APPROVAL");
      expect(task.deadlineTime).toBeUndefined();
      expect(at.agent.calls).toHaveLength(0);
      const approval = await approvalOf(at.org, task.approvalId);
      expect(approval).toMatchObject({
        state: ApprovalState.PENDING,
        taskId: task.taskId,
        traceId: task.traceId,
        callerAgentId: at.asker.agentId,
        targetAgentId: at.workerId,
        contractId: at.contractId,
        contractVersion: "1.0.0",
        requiredByContract: true,
      });
      expect(json(approval.input)).toEqual({ sum: 3 });
      expect(approval.digest).toMatch(/^[0-9a-f]{64}$/);
      expect(Number(approval.expireTime!.seconds - approval.createTime!.seconds)).toBe(dayMs / 1000);
      expect(kindsOf(await eventsOf(at.org.admin, task.traceId)).slice(-2)).toEqual(["ACCEPTED", "AWAITING_APPROVAL"]);
    });

    test("runs once it is approved, and the trace says by whom", async () => {
      await using at = await scene(world);
      const task = await submit(at.asker.as, at.contractId, { input: { sum: 3 } });
      const { digest } = await approvalOf(at.org, task.approvalId);
      const { approval } = await at.org.admin.approvals.approve({ approvalId: task.approvalId, digest, note: "fine" });
      expect(approval).toMatchObject({ state: ApprovalState.APPROVED, note: "fine" });
      expect(approval!.decidedBy).toMatch(/^key_/);
      const ended = await whenEnded(at.org.admin, task.taskId);
      expect([stateOf(ended), json(ended.output)]).toEqual(["COMPLETED", { sum: 3 }]);
      expect(at.agent.calls).toHaveLength(1);
      const events = await eventsOf(at.org.admin, task.traceId);
      expect(kindsOf(events).slice(4)).toEqual([
        "ACCEPTED",
        "AWAITING_APPROVAL",
        "APPROVED",
        "POLICY_DECIDED",
        "DISPATCHED",
        "ANSWERED",
        "OUTPUT_CHECKED",
        "COMPLETED",
      ]);
    });

    test("ends REJECTED when it is denied, with what was written on it, and nobody ever had it", async () => {
      await using at = await scene(world);
      const task = await submit(at.asker.as, at.contractId);
      await at.org.admin.approvals.deny({ approvalId: task.approvalId, note: "too dear" });
      const ended = await whenEnded(at.asker.as, task.taskId);
      expect([stateOf(ended), reasonOf(ended)]).toEqual(["REJECTED", "APPROVAL_DENIED"]);
      expect(ended.error!.message).toContain("too dear");
      expect(ended.error!.metadata).toEqual({ approval_id: task.approvalId });
      expect(at.agent.calls).toHaveLength(0);
    });

    test("says in a dry run that somebody would have to approve", async () => {
      await using at = await scene(world);
      const { decisionPath } = await at.asker.as.bus.submitTask({ contractId: at.contractId, validateOnly: true });
      expect(kindsOf(decisionPath).at(-1)).toBe("AWAITING_APPROVAL");
      const { approvals } = await at.org.admin.approvals.listApprovals({});
      expect(approvals).toEqual([]);
    });

    test("is announced as approval.requested", async () => {
      await using at = await scene(world);
      const task = await submit(at.asker.as, at.contractId);
      const events = await eventually(async () => {
        const found = await at.org.admin.events.listEvents({ types: ["approval.requested"] });
        return found.events.length > 0 && found.events;
      });
      expect(events.map(({ payload }) => payload)).toMatchObject([
        { approval_id: task.approvalId, task_id: task.taskId },
      ]);
    });

    test("falls back to no other agent or contract: the approval was for one", async () => {
      await using other = await httpAgent();
      await using at = await scene(world);
      const open = await contract(at.org, {});
      await worker(at.org, open, other);
      const guarded = await contract(at.org, { approvalRequired: true, fallbacks: [{ contractId: open }] });
      const dead = await worker(at.org, guarded, "http://127.0.0.1:9");
      const task = await submit(at.asker.as, guarded, { targetAgentId: dead.agentId });
      await worker(at.org, guarded, other);
      await at.org.admin.approvals.approve({ approvalId: task.approvalId });
      expect(reasonOf(await whenEnded(at.asker.as, task.taskId))).toBe("AGENT_UNREACHABLE");
      expect(other.calls).toHaveLength(0);
    });
  });

  describe("who may decide", () => {
    test("whoever asked neither approves nor denies, not with a rotated key either", async () => {
      await using at = await scene(world);
      const task = await submit(at.org.admin, at.contractId);
      const approvalId = task.approvalId;
      const { apiKeys } = await at.org.admin.keys.listApiKeys({});
      const { secret } = await world.operator.keys.rotateApiKey({ orgId: at.org.orgId, keyId: apiKeys[0]!.keyId });
      for (const by of [at.org.admin, world.as(secret)]) {
        const approve = await refusal(by.approvals.approve({ approvalId }));
        expect(approve).toMatchObject({ code: "PermissionDenied", reason: "POLICY_DENIED" });
        expect(approve.metadata).toMatchObject({ policy_ids: "builtin/approver-is-not-requester", action: "approve" });
        expect(await refusal(by.approvals.deny({ approvalId }))).toMatchObject({ reason: "POLICY_DENIED" });
      }
      await world.operator.approvals.approve({ orgId: at.org.orgId, approvalId });
      expect(stateOf(await whenEnded(at.org.admin, task.taskId))).toBe("COMPLETED");
    });

    test("an INTERNAL_TRUSTED agent may, on what others asked for: it finds what waits, and its word counts", async () => {
      await using at = await scene(world);
      const trusted = await at.org.agent({ trustTier: TrustTier.INTERNAL_TRUSTED });
      const tasks = [await submit(at.asker.as, at.contractId), await submit(at.org.admin, at.contractId)];
      const { approvals } = await trusted.as.approvals.listApprovals({ state: ApprovalState.PENDING });
      expect(approvals.map(({ taskId }) => taskId)).toEqual(tasks.map(({ taskId }) => taskId).toReversed());
      const [approvalId, deniedId] = tasks.map((task) => task.approvalId) as [string, string];
      const { digest } = (await trusted.as.approvals.getApproval({ approvalId })).approval!;
      const { approval } = await trusted.as.approvals.approve({ approvalId, digest });
      expect(approval!.state).toBe(ApprovalState.APPROVED);
      await trusted.as.approvals.deny({ approvalId: deniedId });
      expect(stateOf(await whenEnded(at.org.admin, tasks[0]!.taskId))).toBe("COMPLETED");
      expect(stateOf(await whenEnded(at.org.admin, tasks[1]!.taskId))).toBe("REJECTED");
      const { decisions } = await trusted.as.policies.listDecisions({});
      expect(
        decisions.map(({ question, answer }) => [
          question!.action,
          answer!.determiningPolicies.map(({ policyId }) => policyId),
        ]),
      ).toEqual([
        ["deny", ["builtin/trusted-approvers"]],
        ["approve", ["builtin/trusted-approvers"]],
      ]);
    });

    test("no agent decides on its own request: not with another key of its own, and not on what was asked for in its name", async () => {
      await using at = await scene(world);
      const trusted = await at.org.agent({ trustTier: TrustTier.INTERNAL_TRUSTED });
      const { secret } = await at.org.admin.keys.createApiKey({ agentId: trusted.agentId });
      const own = await submit(trusted.as, at.contractId);
      const inItsName = await submit(at.org.admin, at.contractId, { agentId: trusted.agentId });
      for (const { approvalId } of [own, inItsName])
        for (const by of [trusted.as, world.as(secret)])
          for (const word of ["approve", "deny"] as const) {
            const found = await refusal(by.approvals[word]({ approvalId }));
            expect(found).toMatchObject({ code: "PermissionDenied", reason: "POLICY_DENIED" });
            expect(found.metadata).toMatchObject({ policy_ids: "builtin/approver-is-not-requester", action: word });
            expect((await approvalOf(at.org, approvalId)).state).toBe(ApprovalState.PENDING);
          }
      expect(at.agent.calls).toHaveLength(0);
      const { decisions } = await at.org.admin.policies.listDecisions({ agentId: trusted.agentId, action: "approve" });
      expect(decisions).toHaveLength(4);
    });

    test("a policy lets an agent of another tier decide, or keeps an INTERNAL_TRUSTED one from it", async () => {
      await using at = await scene(world);
      const trusted = await at.org.agent({ trustTier: TrustTier.INTERNAL_TRUSTED });
      const clerk = await at.org.agent();
      const { approvalId, taskId } = await submit(at.asker.as, at.contractId);
      expect((await clerk.as.approvals.listApprovals({})).approvals).toEqual([]);
      const put = (policyId: string, cedarText: string) => at.org.admin.policies.putPolicy({ policyId, cedarText });
      await put(
        "clerk",
        `permit (principal == Agent::"${clerk.agentId}", action == Action::"approve", resource is Approval);`,
      );
      await put("not-you", `forbid (principal == Agent::"${trusted.agentId}", action, resource is Approval);`);
      expect((await trusted.as.approvals.listApprovals({})).approvals).toEqual([]);
      expect(await refusal(trusted.as.approvals.approve({ approvalId }))).toMatchObject({ reason: "NOT_FOUND" });
      expect(await refusal(clerk.as.approvals.deny({ approvalId }))).toMatchObject({ reason: "NOT_FOUND" });
      expect((await clerk.as.approvals.listApprovals({})).approvals.map((one) => one.taskId)).toEqual([taskId]);
      await clerk.as.approvals.approve({ approvalId });
      expect(stateOf(await whenEnded(at.org.admin, taskId))).toBe("COMPLETED");
    });

    test("any other agent may not, and sees only approvals of what it asked for", async () => {
      await using at = await scene(world);
      const task = await submit(at.asker.as, at.contractId);
      const bystander = await at.org.agent();
      expect(await refusal(at.asker.as.approvals.approve({ approvalId: task.approvalId }))).toMatchObject({
        reason: "POLICY_DENIED",
      });
      for (const word of ["approve", "deny"] as const) {
        const hidden = await refusal(bystander.as.approvals[word]({ approvalId: task.approvalId }));
        const absent = await refusal(bystander.as.approvals[word]({ approvalId: "apr_nothing" }));
        expect([hidden.code, hidden.error.rawMessage]).toEqual([absent.code, absent.error.rawMessage]);
      }
      const mine = await at.asker.as.approvals.listApprovals({});
      expect(mine.approvals.map((one) => one.approvalId)).toEqual([task.approvalId]);
      expect((await bystander.as.approvals.listApprovals({})).approvals).toEqual([]);
      const hidden = await refusal(bystander.as.approvals.getApproval({ approvalId: task.approvalId }));
      const absent = await refusal(bystander.as.approvals.getApproval({ approvalId: "apr_nothing" }));
      expect([hidden.code, hidden.error.rawMessage]).toEqual([absent.code, absent.error.rawMessage]);
    });

    test("another organisation gets the answer of an id that does not exist", async () => {
      await using at = await scene(world);
      const { approvalId } = await submit(at.asker.as, at.contractId);
      const stranger = await world.org();
      for (const call of ["getApproval", "approve", "deny"] as const) {
        const foreign = await refusal(stranger.admin.approvals[call]({ approvalId }));
        const absent = await refusal(stranger.admin.approvals[call]({ approvalId: "apr_nothing" }));
        expect([foreign.code, foreign.reason, foreign.error.rawMessage]).toEqual([
          absent.code,
          absent.reason,
          absent.error.rawMessage,
        ]);
      }
      expect((await stranger.admin.approvals.listApprovals({})).approvals).toEqual([]);
    });
  });

  describe("a second word", () => {
    test("of the same party is answered as it stands; any other is refused with the state", async () => {
      await using at = await scene(world);
      const { approvalId, taskId } = await submit(at.asker.as, at.contractId);
      await at.org.admin.approvals.deny({ approvalId });
      const again = await at.org.admin.approvals.deny({ approvalId });
      expect(again.approval!.state).toBe(ApprovalState.DENIED);
      const late = await refusal(at.org.admin.approvals.approve({ approvalId }));
      expect(late).toMatchObject({ code: "FailedPrecondition", reason: "FAILED_PRECONDITION" });
      expect(late.metadata).toMatchObject({ state: "DENIED" });
      const other = await refusal(world.operator.approvals.deny({ orgId: at.org.orgId, approvalId }));
      expect(other.metadata).toMatchObject({ state: "DENIED" });
      expect(stateOf(await whenEnded(at.org.admin, taskId))).toBe("REJECTED");
    });

    test("with another digest than what waits is refused and decides nothing", async () => {
      await using at = await scene(world);
      const { approvalId } = await submit(at.asker.as, at.contractId);
      const wrong = await refusal(at.org.admin.approvals.approve({ approvalId, digest: "0".repeat(64) }));
      expect(wrong).toMatchObject({ code: "FailedPrecondition", metadata: { field: "digest" } });
      expect((await approvalOf(at.org, approvalId)).state).toBe(ApprovalState.PENDING);
    });

    test("after CancelTask finds the approval CANCELED", async () => {
      await using at = await scene(world);
      const { approvalId, taskId } = await submit(at.asker.as, at.contractId);
      await at.asker.as.bus.cancelTask({ taskId });
      const late = await refusal(at.org.admin.approvals.approve({ approvalId }));
      expect(late.metadata).toMatchObject({ state: "CANCELED" });
      expect(at.agent.calls).toHaveLength(0);
    });

    test("in a race has one winner, and the task runs once if, and only if, that one approved", {
      timeout: 120_000,
    }, async () => {
      await using at = await scene(world);
      const rounds = process.env.RACES === "full" ? 200 : 40;
      const { secret } = await at.org.admin.keys.createApiKey({ role: 3 });
      const deciders = [at.org.admin, world.as(secret)];
      let approved = 0;
      for (let round = 0; round < rounds; round += 10) {
        const tasks = await Promise.all(
          Array.from({ length: 10 }, (_, n) => submit(at.asker.as, at.contractId, { input: { n: round + n } })),
        );
        const outcomes = await Promise.all(
          tasks.map(async ({ approvalId }, lead) => {
            const words = Array.from({ length: 50 }, (_, n) => {
              const { approvals } = deciders[n % 2]!;
              return (n + 2 * lead) % 4 < 2
                ? approvals.approve({ approvalId, note: String(n) })
                : approvals.deny({ approvalId, note: String(n) });
            });
            const said = await Promise.allSettled(words);
            const won = said.flatMap((one) => (one.status === "fulfilled" ? [one.value.approval!] : []));
            return new Set(won.map(({ state, note, decidedBy }) => `${stateName(state)} ${note} ${decidedBy}`));
          }),
        );
        for (const [index, winners] of outcomes.entries()) {
          expect(winners.size).toBe(1);
          const yes = [...winners][0]!.startsWith("APPROVED");
          if (yes) approved++;
          expect(stateOf(await whenEnded(at.org.admin, tasks[index]!.taskId))).toBe(yes ? "COMPLETED" : "REJECTED");
        }
      }
      expect(at.agent.calls).toHaveLength(approved);
      expect(new Set(at.agent.calls.map(({ task }) => JSON.stringify(task.input))).size).toBe(approved);
      expect(approved).toBeGreaterThan(0);
      expect(approved).toBeLessThan(rounds);
    });
  });

  describe("what an approval is bound to", () => {
    /** Changes something of a stored task behind the server's back, approves, and tells how it ended. */
    async function tampered(
      change: (at: Awaited<ReturnType<typeof scene>>, task: Task) => Promise<Sql>,
    ): Promise<string> {
      await using at = await scene(world);
      const task = await submit(at.asker.as, at.contractId, { input: { sum: 3 } });
      const { taskId, approvalId } = task;
      const set = await change(at, task);
      const where = sql`org_id = ${at.org.orgId} and task_id = ${taskId}`;
      expect(await world.server.app.db.tx((tx) => tx.run(sql`update task set ${set} where ${where}`))).toBe(1);
      await at.org.admin.approvals.approve({ approvalId });
      const ended = await whenEnded(at.org.admin, taskId);
      const went = at.agent.calls.length > 0 ? "was called" : "was not called";
      return `${stateOf(ended)} ${reasonOf(ended)}: ${ended.error?.message}; the agent ${went}`;
    }
    const other = "REJECTED APPROVAL_DENIED: the approval is not for this task as it is; the agent was not called";

    test("is the caller", async () => {
      expect(await tampered(async ({ org }) => sql`caller_agent_id = ${(await org.agent()).agentId}`)).toBe(other);
    });

    test("is the target", async () => {
      const target = async (at: Awaited<ReturnType<typeof scene>>) =>
        sql`target_agent_id = ${(await worker(at.org, at.contractId, at.agent)).agentId}`;
      expect(await tampered(target)).toBe(other);
    });

    test("is the version of the contract", async () => {
      const version = async ({ org, contractId }: Awaited<ReturnType<typeof scene>>) => {
        await contract(org, { contractId, version: "1.1.0", approvalRequired: true });
        return sql`contract_version = ${"1.1.0"}`;
      };
      expect(await tampered(version)).toBe(other);
    });

    test("is the input", async () => {
      const { app } = world.server;
      const input = async ({ org }: Awaited<ReturnType<typeof scene>>, { taskId }: Task) =>
        sql`input = ${sealJson(app, org.orgId, taskId, "input", { sum: 4 })}`;
      expect(await tampered(input)).toBe(other);
    });

    test("is nothing else: a task that is as it was runs", async () => {
      const same = await tampered(async (_, { taskId }) => sql`task_id = ${taskId}`);
      expect(same).toBe("COMPLETED undefined: undefined; the agent was called");
    });
  });

  describe("authority at execution", () => {
    test("a key that was revoked meanwhile rejects the task; one that was rotated does not", async () => {
      await using at = await scene(world);
      const keyed = async () => {
        const { apiKey, secret } = await at.org.admin.keys.createApiKey({ agentId: at.asker.agentId });
        const task = await submit(world.as(secret), at.contractId);
        return { keyId: apiKey!.keyId, ...task };
      };
      const [revoked, rotated] = [await keyed(), await keyed()];
      await at.org.admin.keys.revokeApiKey({ keyId: revoked.keyId });
      await at.org.admin.keys.rotateApiKey({ keyId: rotated.keyId });
      await at.org.admin.keys.revokeApiKey({ keyId: rotated.keyId });
      for (const { approvalId } of [revoked, rotated]) await at.org.admin.approvals.approve({ approvalId });
      const ended = await whenEnded(at.org.admin, revoked.taskId);
      expect([stateOf(ended), reasonOf(ended)]).toEqual(["REJECTED", "KEY_REVOKED"]);
      expect(stateOf(await whenEnded(at.org.admin, rotated.taskId))).toBe("COMPLETED");
      expect(at.agent.calls).toHaveLength(1);
    });

    test("a limit that was lowered meanwhile rejects the task, and its reserve is released", async () => {
      await using at = await scene(world, { estimatedTokens: 10n });
      const budget = { scope: BudgetScope.ORG, period: BudgetPeriod.TOTAL };
      await at.org.admin.budgets.setBudget({ ...budget, limitTokens: 10n });
      const { approvalId, taskId } = await submit(at.asker.as, at.contractId);
      await at.org.admin.budgets.setBudget({ ...budget, limitTokens: 9n });
      await at.org.admin.approvals.approve({ approvalId });
      const ended = await whenEnded(at.org.admin, taskId);
      expect([stateOf(ended), reasonOf(ended)]).toEqual(["REJECTED", "BUDGET_EXCEEDED"]);
      expect(at.agent.calls).toHaveLength(0);
      const { tokens } = (await at.org.admin.budgets.getBudget(budget)).budget!;
      expect([tokens!.spent, tokens!.reserved]).toEqual([0n, 0n]);
    });

    test("an agent that was disabled meanwhile does not get the task", async () => {
      await using at = await scene(world);
      const { approvalId, taskId } = await submit(at.asker.as, at.contractId);
      await at.org.admin.agents.updateAgent({
        agentId: at.workerId,
        change: { disabled: true },
        updateMask: { paths: ["disabled"] },
      });
      await at.org.admin.approvals.approve({ approvalId });
      expect(reasonOf(await whenEnded(at.org.admin, taskId))).toBe("NO_CAPABLE_AGENT");
      expect(at.agent.calls).toHaveLength(0);
    });
  });

  describe("time", () => {
    test("a day without a word counts as denied, and a later word finds it EXPIRED", async () => {
      const clock = fakeClock();
      await using aged = await start(dialect, { clock });
      await using at = await scene(aged);
      const swept = await submit(at.asker.as, at.contractId);
      clock.advance(dayMs - 1);
      expect((await approvalOf(at.org, swept.approvalId)).state).toBe(ApprovalState.PENDING);
      // The sweep may be at work as time goes on, and comes again with the next step of it.
      const ended = await eventually(async () => {
        clock.advance(5_000);
        const { task } = await at.org.admin.bus.getTask({ taskId: swept.taskId });
        return stateOf(task) === "REJECTED" && task!;
      });
      expect([stateOf(ended), reasonOf(ended)]).toEqual(["REJECTED", "APPROVAL_DENIED"]);
      const late = await refusal(at.org.admin.approvals.approve({ approvalId: swept.approvalId }));
      expect(late.metadata).toMatchObject({ state: "EXPIRED" });
    });

    test("a word at the instant of expiry is too late, even before the sweep", async () => {
      const clock = fakeClock();
      await using aged = await start(dialect, { clock });
      await using at = await scene(aged);
      clock.advance(2_000); // the sweep comes every five seconds from the start, the expiry two seconds after one
      const { approvalId, taskId } = await submit(at.asker.as, at.contractId);
      clock.advance(dayMs);
      const late = await refusal(at.org.admin.approvals.approve({ approvalId }));
      expect(late.metadata).toMatchObject({ state: "EXPIRED" });
      expect(stateOf(await whenEnded(at.org.admin, taskId))).toBe("REJECTED");
    });
  });

  test("a waiting task outlives its server, and runs on the next one once it is approved", async () => {
    await using place = await storage(dialect);
    const first = await start(dialect, place.options);
    await using at = await scene(first);
    const { taskId, approvalId } = await submit(at.asker.as, at.contractId);
    const key = at.org.adminKey;
    await first[Symbol.asyncDispose]();
    await using second = await start(dialect, place.options);
    const admin = second.as(key);
    expect(stateOf((await admin.bus.getTask({ taskId })).task)).toBe("AWAITING_APPROVAL");
    await admin.approvals.approve({ approvalId });
    expect(stateOf(await whenEnded(admin, taskId))).toBe("COMPLETED");
  });

  test("lists are by the newest, filtered and paged, and leave the input out", async () => {
    await using at = await scene(world);
    const tasks: Task[] = [];
    for (let n = 0; n < 5; n++) tasks.push(await submit(at.asker.as, at.contractId, { input: { n } }));
    await at.org.admin.approvals.deny({ approvalId: tasks[1]!.approvalId });
    const list = async (filter: object) => {
      const ids: string[] = [];
      for (let pageToken = ""; ; ) {
        const page = await at.org.admin.approvals.listApprovals({ pageSize: 2, pageToken, ...filter });
        for (const one of page.approvals) expect(one.input).toBeUndefined();
        ids.push(...page.approvals.map(({ taskId }) => taskId));
        pageToken = page.nextPageToken;
        if (!pageToken) return ids;
      }
    };
    const all = tasks.map(({ taskId }) => taskId).toReversed();
    expect(await list({})).toEqual(all);
    expect(await list({ state: ApprovalState.PENDING })).toEqual(all.filter((id) => id !== tasks[1]!.taskId));
    expect(await list({ agentId: at.workerId })).toEqual(all);
    expect(await list({ agentId: at.asker.agentId, state: ApprovalState.DENIED })).toEqual([tasks[1]!.taskId]);
    expect(await list({ contractId: at.contractId })).toEqual(all);
    expect(await list({ taskId: all[0] })).toEqual([all[0]]);
    expect(await list({ traceId: tasks[2]!.traceId })).toEqual([tasks[2]!.taskId]);
    expect(await list({ contractId: "other" })).toEqual([]);
  });
});

test.runIf(dialects.includes("postgres"))(
  "a task accepted by one replica and approved on another runs once, and its caller hears of it",
  async () => {
    await using place = await storage("postgres");
    await using one = await start("postgres", place.options);
    await using two = await start("postgres", place.options);
    await using at = await scene(one);
    const task = await submit(at.asker.as, at.contractId);
    const admin = two.as(at.org.adminKey);
    await admin.approvals.approve({ approvalId: task.approvalId });
    const ended = await eventually(async () => {
      const { task: now } = await at.asker.as.bus.getTask({ taskId: task.taskId });
      return now!.state === TaskState.COMPLETED && now;
    });
    expect(ended.attempts).toBe(1);
    expect(at.agent.calls).toHaveLength(1);
  },
);
