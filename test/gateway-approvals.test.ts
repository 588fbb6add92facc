/** Approvals of what crosses between organisations: what is asked again when one comes, and what policies on approvers see. */
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { BudgetPeriod, BudgetScope } from "../gen/moltwire/bus/v1/budget_pb.ts";
import { httpEndpoint, reasonOf, stateOf, whenEnded } from "./bus-fixtures/bus.ts";
import { type HttpAgent, httpAgent } from "./bus-fixtures/http-agent.ts";
import { pullEndpoint, serving } from "./bus-fixtures/instance.ts";
import { type Across, across } from "./federation-fixtures/across.ts";
import { dialects, type Org, start, type World } from "./harness.ts";

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
      expect([stateOf(task), reasonOf(task), task.error!.metadata.limit]).toEqual(["REJECTED", "BUDGET_EXCEEDED", "59"]);
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
});
