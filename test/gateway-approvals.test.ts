/** Approvals of what crosses between organisations: what is asked again when one comes, and what policies on approvers see. */
import { createHash } from "node:crypto";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { TrustTier } from "../gen/moltwire/bus/v1/agent_pb.ts";
import { BudgetPeriod, BudgetScope } from "../gen/moltwire/bus/v1/budget_pb.ts";
import { approvalDigest } from "../src/bus/approval/gate.ts";
import { contract, echoEndpoint, httpEndpoint, reasonOf, stateOf, submit, whenEnded } from "./bus-fixtures/bus.ts";
import { type HttpAgent, httpAgent } from "./bus-fixtures/http-agent.ts";
import { pullEndpoint, serving } from "./bus-fixtures/instance.ts";
import { type Across, across, granted } from "./federation-fixtures/across.ts";
import { type Clients, dialects, type Org, refusal, start, type World } from "./harness.ts";

const total = { scope: BudgetScope.ORG, period: BudgetPeriod.TOTAL };
const looking = `@approval("a human looks")\npermit (principal, action == Action::"invoke", resource) when { context.origin == "gateway" };`;

describe.each(dialects)("%s", (dialect) => {
  let world: World;
  beforeAll(async () => {
    world = await start(dialect);
  });
  afterAll(() => world[Symbol.asyncDispose]());

  const policy = (org: Org, cedarText: string, policyId = "own") =>
    org.admin.policies.putPolicy({ policyId, cedarText });
  const approvalOf = async (org: Org) => (await org.admin.approvals.listApprovals({})).approvals[0]!;

  describe("what waited for the approval of those who do it", () => {
    /** A task that waits there, and what came of it once it is approved after a change. */
    async function afterChange(agent: HttpAgent, change: (at: Across) => Promise<unknown>) {
      const at = await across(world, {
        contract: { estimatedTokens: 60n, approvalRequired: true },
        agent: { endpoint: httpEndpoint(agent.url) },
        grant: { terms: { priceCapMicros: 1_000n } },
      });
      await at.asking.admin.budgets.setBudget({ ...total, limitTokens: 100n });
      const { taskId, traceId } = await at.go();
      await change(at);
      const { approvalId } = await approvalOf(at.doing);
      await at.doing.admin.approvals.approve({ approvalId });
      const task = await whenEnded(at.asker.as, taskId);
      const there = await whenEnded(at.doing.admin, taskId);
      return { at, task, there, traceId };
    }

    test("is done when nothing has changed, with a decision of those who asked for when it came and for when it went on", async () => {
      await using agent = await httpAgent();
      const { at, task, traceId } = await afterChange(agent, async () => {});
      expect([stateOf(task), agent.calls.length]).toEqual(["COMPLETED", 1]);
      expect((await at.asking.admin.policies.listDecisions({ traceId })).decisions).toHaveLength(2);
    });

    test("is not done when policies of those who asked let it out no more: they read whose, the others that it is so", async () => {
      await using agent = await httpAgent();
      const { at, task, there } = await afterChange(agent, ({ asking }) =>
        policy(
          asking,
          'forbid (principal, action == Action::"invoke", resource) when { context has direction && context.direction == "out" };',
          "stay",
        ),
      );
      expect([stateOf(task), reasonOf(task), task.error!.metadata.policy_ids]).toEqual([
        "REJECTED",
        "POLICY_DENIED",
        "stay",
      ]);
      expect([stateOf(there), reasonOf(there), there.error!.metadata]).toEqual([
        "REJECTED",
        "POLICY_DENIED",
        { org_id: at.asking.orgId },
      ]);
      expect(there.error!.message).not.toContain("stay");
      expect(agent.calls).toEqual([]);
    });

    test("is not done when policies of those who asked ask for an approval by now that nobody has given there", async () => {
      await using agent = await httpAgent();
      const { task } = await afterChange(agent, ({ asking }) => policy(asking, looking, "look"));
      expect([stateOf(task), reasonOf(task), agent.calls]).toEqual(["REJECTED", "APPROVAL_REQUIRED", []]);
    });

    test("is not done when it does not fit into a budget of those who asked any more, whose figures they alone read", async () => {
      await using agent = await httpAgent();
      const { at, task, there } = await afterChange(agent, ({ asking }) =>
        asking.admin.budgets.setBudget({ ...total, limitTokens: 59n }),
      );
      expect([stateOf(task), reasonOf(task), task.error!.metadata.limit]).toEqual([
        "REJECTED",
        "BUDGET_EXCEEDED",
        "59",
      ]);
      expect(there.error!.metadata).toEqual({ org_id: at.asking.orgId });
      const { reserved } = (await at.asking.admin.budgets.getBudget(total)).budget!.tokens!;
      expect([reserved, agent.calls]).toEqual([0n, []]);
    });

    test("is not done when it has become dearer than the grant's price cap", async () => {
      await using agent = await httpAgent();
      const { task } = await afterChange(agent, ({ doing }) =>
        doing.admin.costs.setRates({ rates: [{ inputPer1000TokensMicros: 1_000_000n }] }),
      );
      expect([stateOf(task), reasonOf(task), task.error!.metadata.term, agent.calls]).toEqual([
        "REJECTED",
        "GRANT_TERMS_EXCEEDED",
        "price_cap_micros",
        [],
      ]);
    });
  });

  test("of tasks that wait to be pulled those that may not be done any more end, and the others are handed out at once", async () => {
    const at = await across(world, { agent: { endpoint: pullEndpoint } });
    const other = await granted(at.doing, at.asking, at.contractId);
    const soon = { returnImmediately: true };
    const under = (grantId: string) => at.go({ ...soon, grantId });
    const asked = [
      await under(at.grantId),
      await under(other),
      await under(at.grantId),
      await under(other),
      await under(at.grantId),
    ];
    const change = { allowedTiers: [TrustTier.INTERNAL_TRUSTED] };
    await at.doing.admin.grants.updateGrant({ grantId: at.grantId, change, updateMask: { paths: ["allowed_tiers"] } });
    await using instance = serving(at.worker.as, { capacity: 5 });
    await instance.delivery(1);
    const ids = (tasks: readonly { taskId: string }[]) => tasks.map(({ taskId }) => taskId);
    expect(ids(instance.deliveries.map(({ task }) => task!))).toEqual(ids([asked[1]!, asked[3]!]));
    for (const { taskId } of [asked[0]!, asked[2]!, asked[4]!])
      expect(reasonOf(await whenEnded(at.asker.as, taskId))).toBe("GRANT_TERMS_EXCEEDED");
  });

  test("a price cap that was lowered since holds for a task that waits to be pulled", async () => {
    const at = await across(world, {
      contract: { estimatedTokens: 1_000n },
      agent: { endpoint: pullEndpoint },
      grant: { terms: { priceCapMicros: 1_000n } },
    });
    const { taskId } = await at.go({ returnImmediately: true });
    await at.doing.admin.costs.setRates({ rates: [{ inputPer1000TokensMicros: 2_000n }] });
    await using instance = serving(at.worker.as);
    const task = await whenEnded(at.asker.as, taskId);
    expect([stateOf(task), reasonOf(task), instance.deliveries]).toEqual(["REJECTED", "GRANT_TERMS_EXCEEDED", []]);
  });

  describe("policies on approvers", () => {
    const approve = (by: Clients, approvalId: string) => by.approvals.approve({ approvalId });

    test("see the contract of the organisation that is to do it, and none of one's own that has its id", async () => {
      const at = await across(world, { contract: { requiredTools: ["secret"] }, agent: { allowedTools: ["secret"] } });
      await contract(at.asking, { contractId: at.contractId, capability: "own", requiredTools: ["own-tool"] });
      await policy(at.asking, looking, "look");
      const approver = await at.asking.agent({ trustTier: TrustTier.INTERNAL_TRUSTED });
      const { taskId } = await at.go();
      const { approvalId } = await approvalOf(at.asking);
      const forbids = (what: string, policyId: string) =>
        policy(at.asking, `forbid (principal, action == Action::"approve", resource) when { ${what} };`, policyId);
      // What is so of the own one, and what nobody else is told.
      await forbids('resource.contract.tools.contains(Tool::"own-tool")', "own-tool");
      await forbids('resource.contract.capability == "own"', "own-capability");
      await forbids("resource.contract.org == resource.org", "own-org");
      await forbids(`resource.contract == Contract::"${at.contractId}"`, "own-name");
      await forbids('resource.contract.tools.contains(Tool::"secret")', "their-tool");
      await forbids(
        `resource.contract == Contract::"${at.doing.orgId}/${at.contractId}" && resource.contract.capability == "${at.contractId}" && context.origin == "gateway"`,
        "theirs",
      );
      // To an agent that may not decide it is as if it were not there; why stands in the log.
      expect((await refusal(approve(approver.as, approvalId))).reason).toBe("NOT_FOUND");
      const [decision] = (await at.asking.admin.policies.listDecisions({ agentId: approver.agentId })).decisions;
      expect(decision!.answer!.determiningPolicies.map(({ policyId }) => policyId)).toEqual(["theirs"]);
      await at.asking.admin.policies.deletePolicy({ policyId: "theirs" });
      await approve(approver.as, approvalId);
      expect(stateOf(await whenEnded(at.asker.as, taskId))).toBe("COMPLETED");
    });

    test("see who asks of another organisation as the foreigner it is, and that it came by the gateway", async () => {
      const at = await across(world, {
        contract: { approvalRequired: true },
        asker: { trustTier: TrustTier.INTERNAL_TRUSTED, allowedTools: ["secret"] },
      });
      const approver = await at.doing.agent({ trustTier: TrustTier.INTERNAL_RESTRICTED });
      await policy(
        at.doing,
        `permit (principal == Agent::"${approver.agentId}", action == Action::"approve", resource) when {
          resource has requester && resource.requester.tier == Tier::"EXTERNAL_PARTNER" && resource.requester.org == Org::"${at.asking.orgId}" &&
          resource.requester.name == "${at.asker.agentId}" && !resource.requester.tools.contains(Tool::"secret") && context.origin == "gateway" };`,
      );
      const { taskId } = await at.go();
      const { approvalId } = await approvalOf(at.doing);
      const { approvals } = await approver.as.approvals.listApprovals({});
      expect(approvals.map((one) => one.approvalId)).toEqual([approvalId]);
      await approve(approver.as, approvalId);
      expect(stateOf(await whenEnded(at.asker.as, taskId))).toBe("COMPLETED");
    });

    test("of a task of the own organisation see that it came by the bus", async () => {
      const org = await world.org();
      const contractId = await contract(org, { approvalRequired: true });
      await org.agent({ capabilities: [contractId], endpoint: echoEndpoint });
      await policy(org, 'forbid (principal, action == Action::"approve", resource) when { context.origin != "bus" };');
      const { taskId } = await submit((await org.agent({ trustTier: TrustTier.INTERNAL_TRUSTED })).as, contractId);
      await approve(org.admin, (await approvalOf(org)).approvalId);
      expect(stateOf(await whenEnded(org.admin, taskId))).toBe("COMPLETED");
    });

    test("an approval is bound to the organisation that is to do it", async () => {
      const what = {
        ...{ orgId: "org_1", callerAgentId: "agt_1", callerKeyId: "key_1", targetAgentId: "", contractId: "c" },
        ...{ contractVersion: "1.0.0", input: null },
      };
      const of = (targetOrgId: string) => approvalDigest({ ...what, targetOrgId });
      expect(new Set([of("org_1"), of("org_2"), of("org_3")]).size).toBe(3);
      // That of a task at home is what it was before there were others.
      const array = '["org_1","agt_1","key_1","","c","1.0.0",null]';
      expect(of("org_1")).toBe(createHash("sha256").update(array).digest("hex"));
    });
  });
});
