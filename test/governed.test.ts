/** Policies in the pipeline: what they say decides what becomes of a task. */
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { TrustTier } from "../gen/moltwire/bus/v1/agent_pb.ts";
import { BudgetPeriod, BudgetScope } from "../gen/moltwire/bus/v1/budget_pb.ts";
import { PolicyVerdict } from "../gen/moltwire/bus/v1/policy_pb.ts";
import {
  contract,
  eventsOf,
  httpEndpoint,
  kindsOf,
  reasonOf,
  stateOf,
  submit,
  whenEnded,
  worker,
} from "./bus-fixtures/bus.ts";
import { deadUrl, failing, httpAgent } from "./bus-fixtures/http-agent.ts";
import { puller, respond, serving } from "./bus-fixtures/instance.ts";
import { dialects, type Org, refusal, start, type World } from "./harness.ts";

const put = (org: Org, policyId: string, cedarText: string) => org.admin.policies.putPolicy({ policyId, cedarText });

describe.each(dialects)("%s", (dialect) => {
  let world: World;
  beforeAll(async () => {
    world = await start(dialect);
  });
  afterAll(() => world[Symbol.asyncDispose]());

  describe("a submit that a policy forbids", () => {
    test("is refused before anybody has the task, names the policy, and leaves decision and trace", async () => {
      await using agent = await httpAgent();
      const org = await world.org();
      const contractId = await contract(org);
      await worker(org, contractId, agent);
      const asker = await org.agent();
      await put(
        org,
        "no-research",
        `forbid (principal, action == Action::"invoke", resource == Contract::"${contractId}");`,
      );
      const found = await refusal(submit(asker.as, contractId));
      expect(found).toMatchObject({ code: "PermissionDenied", reason: "POLICY_DENIED" });
      expect(found.metadata).toMatchObject({
        policy_ids: "no-research",
        action: "invoke",
        principal_type: "Agent",
        principal_id: asker.agentId,
        resource_type: "Contract",
        resource_id: contractId,
      });
      expect(found.error.rawMessage).toContain("no-research forbids it");
      expect(found.error.rawMessage).toContain(
        `ask PolicyService/TestPolicy: principal Agent ${asker.agentId}, action invoke, resource Contract ${contractId}`,
      );
      expect(agent.calls).toHaveLength(0);
      const events = await eventsOf(org.admin, found.metadata.trace_id!);
      expect(kindsOf(events)).toEqual(["SUBMITTED", "INPUT_CHECKED", "ROUTED", "POLICY_DECIDED", "REFUSED"]);
      const { decisions } = await org.admin.policies.listDecisions({ traceId: found.metadata.trace_id! });
      expect(decisions.map(({ answer }) => answer!.verdict)).toEqual([PolicyVerdict.DENY]);
      expect(decisions[0]!.answer!.determiningPolicies.map(({ policyId }) => policyId)).toEqual(["no-research"]);
    });

    test("tells, where nothing permits it, which policy would, and how to ask", async () => {
      const org = await world.org();
      const contractId = await contract(org, { capability: "work" });
      await worker(org, "work", await deadUrl());
      const vendor = await org.agent({ trustTier: TrustTier.PUBLIC_VENDOR });
      const { metadata, error } = await refusal(submit(vendor.as, contractId));
      expect(metadata).toMatchObject({ policy_ids: "", principal_id: vendor.agentId, resource_id: contractId });
      expect(error.rawMessage).toMatch(/no policy permits .*; this one would: permit \(/);
      expect(error.rawMessage).toContain(
        `ask PolicyService/TestPolicy: principal Agent ${vendor.agentId}, action invoke, resource Contract ${contractId}`,
      );
    });

    test("goes through as soon as the policy is gone", async () => {
      await using agent = await httpAgent();
      const org = await world.org();
      const contractId = await contract(org);
      await worker(org, contractId, agent);
      await put(org, "nothing", "forbid (principal, action, resource);");
      expect(await refusal(submit(org.admin, contractId))).toMatchObject({ reason: "POLICY_DENIED" });
      await org.admin.policies.deletePolicy({ policyId: "nothing" });
      expect(stateOf(await submit(org.admin, contractId))).toBe("COMPLETED");
    });
  });

  test("each tier reaches by default what the built-in policies give it", async () => {
    await using agent = await httpAgent();
    const org = await world.org();
    const partner = await org.agent({ trustTier: TrustTier.EXTERNAL_PARTNER });
    const other = await org.agent({ trustTier: TrustTier.EXTERNAL_PARTNER });
    const vendor = await org.agent({ trustTier: TrustTier.PUBLIC_VENDOR });
    const trusted = await org.agent({ trustTier: TrustTier.INTERNAL_TRUSTED });
    const restricted = await org.agent({ trustTier: TrustTier.INTERNAL_RESTRICTED });
    const open = await contract(org, { capability: "work" });
    const secret = await contract(org, { capability: "work", securityClass: TrustTier.INTERNAL_TRUSTED });
    const named = await contract(org, { capability: "work", partnerAgentIds: [partner.agentId] });
    await worker(org, "work", agent, { trustTier: TrustTier.INTERNAL_TRUSTED });
    const reached = async (by: { as: typeof org.admin }) =>
      Promise.all(
        [open, secret, named].map((contractId) =>
          submit(by.as, contractId).then(stateOf, async (error) => (await refusal(Promise.reject(error))).reason),
        ),
      );
    expect(await reached(trusted)).toEqual(["COMPLETED", "COMPLETED", "COMPLETED"]);
    expect(await reached(restricted)).toEqual(["COMPLETED", "POLICY_DENIED", "COMPLETED"]);
    expect(await reached(partner)).toEqual(["POLICY_DENIED", "POLICY_DENIED", "COMPLETED"]);
    expect(await reached(other)).toEqual(["POLICY_DENIED", "POLICY_DENIED", "POLICY_DENIED"]);
    expect(await reached(vendor)).toEqual(["POLICY_DENIED", "POLICY_DENIED", "POLICY_DENIED"]);
  });

  describe("tools", () => {
    test("that no agent has are named in the refusal", async () => {
      await using agent = await httpAgent();
      const org = await world.org();
      const contractId = await contract(org, { requiredTools: ["web_search"] });
      const { agentId } = await worker(org, contractId, agent);
      const found = await refusal(submit(org.admin, contractId));
      expect(found).toMatchObject({ reason: "POLICY_DENIED" });
      expect(found.metadata).toMatchObject({
        tool: "web_search",
        agent_id: agentId,
        action: "use_tool",
        policy_ids: "builtin/allowed-tools",
        principal_id: agentId,
        resource_type: "Tool",
        resource_id: "web_search",
      });
      expect(found.error.rawMessage).toContain(
        `ask PolicyService/TestPolicy: principal Agent ${agentId}, action use_tool, resource Tool web_search`,
      );
    });

    test("that a policy forbids to one agent send the task to another", async () => {
      await using first = await httpAgent();
      await using second = await httpAgent();
      const org = await world.org();
      const contractId = await contract(org, { requiredTools: ["web_search"] });
      const tools = { allowedTools: ["web_search"] };
      const { agentId } = await worker(org, contractId, first, tools);
      await worker(org, contractId, second, tools);
      await put(
        org,
        "no-web",
        `forbid (principal == Agent::"${agentId}", action == Action::"use_tool", resource == Tool::"web_search");`,
      );
      for (let n = 0; n < 4; n++) expect(stateOf(await submit(org.admin, contractId))).toBe("COMPLETED");
      expect([first.calls.length, second.calls.length]).toEqual([0, 4]);
    });

    test("that a policy forbids to all are refused by name", async () => {
      await using agent = await httpAgent();
      const org = await world.org();
      const contractId = await contract(org, { requiredTools: ["web_search"] });
      const { agentId } = await worker(org, contractId, agent, { allowedTools: ["web_search"] });
      await put(org, "no-web", `forbid (principal, action == Action::"use_tool", resource == Tool::"web_search");`);
      const found = await refusal(submit(org.admin, contractId));
      expect(found.error.rawMessage).toContain(
        `ask PolicyService/TestPolicy: principal Agent ${agentId}, action use_tool, resource Tool web_search`,
      );
      expect(found.metadata).toMatchObject({ tool: "web_search", policy_ids: "no-web", action: "use_tool" });
      expect(agent.calls).toHaveLength(0);
    });
  });

  describe("a policy that asks for an approval", () => {
    const asksFirst = (contractId: string) =>
      `@approval("large work is looked at") permit (principal, action == Action::"invoke", resource == Contract::"${contractId}");`;

    test("lets the task wait, and says on the approval which policy asked and why", async () => {
      await using agent = await httpAgent();
      const org = await world.org();
      const contractId = await contract(org);
      await worker(org, contractId, agent);
      const asker = await org.agent();
      await put(org, "look-first", asksFirst(contractId));
      const task = await submit(asker.as, contractId);
      expect(stateOf(task)).toBe("AWAITING_APPROVAL");
      const { approval } = await org.admin.approvals.getApproval({ approvalId: task.approvalId });
      expect(approval).toMatchObject({ requiredByContract: false, policyIds: ["look-first"] });
      expect(approval!.reasons.join()).toContain("large work is looked at");
      await org.admin.approvals.approve({ approvalId: task.approvalId });
      expect(stateOf(await whenEnded(org.admin, task.taskId))).toBe("COMPLETED");
      expect(agent.calls).toHaveLength(1);
    });

    test("and one that forbids meanwhile: the approved task is REJECTED when it would run", async () => {
      await using agent = await httpAgent();
      const org = await world.org();
      const contractId = await contract(org, { approvalRequired: true });
      await worker(org, contractId, agent);
      const asker = await org.agent();
      const { approvalId, taskId } = await submit(asker.as, contractId);
      await put(org, "stop", `forbid (principal, action == Action::"invoke", resource == Contract::"${contractId}");`);
      await org.admin.approvals.approve({ approvalId });
      const ended = await whenEnded(org.admin, taskId);
      expect([stateOf(ended), reasonOf(ended)]).toEqual(["REJECTED", "POLICY_DENIED"]);
      expect(ended.error!.metadata).toMatchObject({ policy_ids: "stop" });
      expect(agent.calls).toHaveLength(0);
    });
  });

  describe("an approved task", () => {
    test("is REJECTED when a budget was lowered below what it has reserved, and nothing stays reserved", async () => {
      await using agent = await httpAgent();
      const org = await world.org();
      const contractId = await contract(org, { approvalRequired: true, estimatedTokens: 50n });
      await worker(org, contractId, agent);
      const asker = await org.agent();
      const budget = { scope: BudgetScope.ORG, period: BudgetPeriod.TOTAL };
      await org.admin.budgets.setBudget({ ...budget, limitTokens: 100n });
      const { approvalId, taskId } = await submit(asker.as, contractId);
      const { approval } = await org.admin.approvals.getApproval({ approvalId });
      expect(approval!.reservedTokens).toBe(50n);
      await org.admin.budgets.setBudget({ ...budget, limitTokens: 10n });
      await org.admin.approvals.approve({ approvalId });
      const ended = await whenEnded(org.admin, taskId);
      expect([stateOf(ended), reasonOf(ended)]).toEqual(["REJECTED", "BUDGET_EXCEEDED"]);
      expect(agent.calls).toHaveLength(0);
      const { budget: after } = await org.admin.budgets.getBudget(budget);
      expect(after!.tokens).toMatchObject({ limit: 10n, spent: 0n, reserved: 0n });
    });

    test("is looked at again when an agent that pulls fetches it, and not handed out if its authority is gone", async () => {
      const org = await world.org();
      const contractId = await contract(org, { approvalRequired: true });
      const agent = await puller(org, contractId);
      const asker = await org.agent();
      const [kept, stopped] = [await submit(asker.as, contractId), await submit(asker.as, contractId)];
      await org.admin.approvals.approve({ approvalId: kept.approvalId });
      await using one = serving(agent.as, { capacity: 2 });
      const delivery = await one.delivery(0);
      expect(delivery.task!.taskId).toBe(kept.taskId);
      await respond(agent.as, delivery);
      expect(stateOf(await whenEnded(org.admin, kept.taskId))).toBe("COMPLETED");
      await put(org, "stop", `forbid (principal, action == Action::"invoke", resource == Contract::"${contractId}");`);
      await org.admin.approvals.approve({ approvalId: stopped.approvalId });
      const ended = await whenEnded(org.admin, stopped.taskId);
      expect([stateOf(ended), reasonOf(ended), ended.attempts]).toEqual(["REJECTED", "POLICY_DENIED", 0]);
    });

    test("of a denied approval releases what was reserved", async () => {
      const org = await world.org();
      const contractId = await contract(org, { approvalRequired: true, estimatedTokens: 50n });
      await worker(org, contractId, "http://127.0.0.1:9");
      const asker = await org.agent();
      const budget = { scope: BudgetScope.ORG, period: BudgetPeriod.TOTAL };
      await org.admin.budgets.setBudget({ ...budget, limitTokens: 100n });
      const { approvalId } = await submit(asker.as, contractId);
      await org.admin.approvals.deny({ approvalId });
      expect((await org.admin.budgets.getBudget(budget)).budget!.tokens).toMatchObject({ spent: 0n, reserved: 0n });
    });
  });

  test("an agent or contract that stands in for another is asked about too, and one that is denied gets nothing", async () => {
    await using standIn = await httpAgent();
    const org = await world.org();
    const fallback = await contract(org, { capability: "fallback" });
    await worker(org, "fallback", standIn);
    const contractId = await contract(org, { fallbacks: [{ contractId: fallback }] });
    await worker(org, contractId, await deadUrl());
    await put(org, "not-that", `forbid (principal, action == Action::"invoke", resource == Contract::"${fallback}");`);
    const task = await submit(org.admin, contractId);
    expect([stateOf(task), reasonOf(task)]).toEqual(["REJECTED", "POLICY_DENIED"]);
    expect(standIn.calls).toHaveLength(0);
    await org.admin.policies.deletePolicy({ policyId: "not-that" });
    expect(stateOf(await submit(org.admin, contractId))).toBe("COMPLETED");
  });

  test("a retry at the same agent asks again: what was forbidden meanwhile is not repeated", async () => {
    await using agent = await httpAgent(failing("internal"));
    const org = await world.org();
    const contractId = await contract(org, { retries: 5 });
    await worker(org, contractId, agent);
    agent.handle = async (call) => {
      await put(org, "stop", "forbid (principal, action, resource);").catch(() => {});
      call.answer({ code: "internal", message: "as told" }, 500);
    };
    const task = await submit(org.admin, contractId);
    expect([stateOf(task), reasonOf(task)]).toEqual(["REJECTED", "POLICY_DENIED"]);
    expect(agent.calls).toHaveLength(1);
  });

  test("a dry run says what policies would say, and writes nothing into the decision log", async () => {
    const org = await world.org();
    const contractId = await contract(org);
    await org.agent({ capabilities: [contractId], endpoint: httpEndpoint("http://127.0.0.1:9") });
    await put(org, "stop", `forbid (principal, action == Action::"invoke", resource);`);
    const { decisionPath } = await org.admin.bus.submitTask({ contractId, validateOnly: true });
    expect(kindsOf(decisionPath).slice(-2)).toEqual(["POLICY_DECIDED", "REFUSED"]);
    expect(decisionPath.at(-1)!.details).toMatchObject({ reason: "POLICY_DENIED", policy_ids: "stop" });
    expect((await org.admin.policies.listDecisions({})).decisions).toEqual([]);
  });
});
