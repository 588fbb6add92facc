/** An agent of one organisation has work done by another's: both decide, one trace id, and both read the same figures. */
import { PolicyVerdict, PolicyVerdictSchema } from "../../../gen/moltwire/bus/v1/policy_pb.ts";
import { PolicyService } from "../../../gen/moltwire/bus/v1/policy_service_pb.ts";
import { TaskState } from "../../../gen/moltwire/bus/v1/task_pb.ts";
import { GatewayService } from "../../../gen/moltwire/federation/v1/gateway_service_pb.ts";
import type { Clients } from "../../cli/connect.ts";
import { nameIn } from "../../cli/names.ts";
import { outputOf } from "../ask.ts";
import { claim, same } from "./claim.ts";
import { addFlaky } from "./flaky-agent.ts";
import { addPartner, agree, askAcross, usageOf } from "./partner.ts";
import type { Outcome, World } from "./scenario.ts";

const tokensPerDay = 50_000;
const input = { text: "words that cross from one organisation to another" };
const { ALLOW } = PolicyVerdict;

/** Asks across, and compares what the two organisations read of it. */
export async function crossOrg(world: World): Promise<Outcome> {
  const { admin, made } = world;
  const { contractId, calls } = await addFlaky(world, "cross-org", { estimatedTokens: 100n });
  const partner = await addPartner(world, "cross-org");
  const subject = { case: "contractId", value: contractId } as const;
  const { grantId } = await agree(world, partner, subject, { tokensPerDay: BigInt(tokensPerDay) });

  const task = await askAcross(world, partner, contractId, input);
  const { traceId, taskId } = task;
  same("what the other organisation's agent answers", outputOf(task), { words: input.text.split(" ").length });
  same("whose task it is, and whose work", [task.orgId, task.targetOrgId], [partner.orgId, made.orgId]);
  same("calls of the agent", await calls(), 1);

  const both = [partner.admin, admin] as const;
  for (const reader of both) {
    const [status] = (await reader(GatewayService).getStatus({ traceId })).statuses;
    same(
      "task, state, grant and verdicts of both",
      [status?.taskId, status?.state, status?.grantId, status?.callerVerdict, status?.targetVerdict],
      [taskId, TaskState.COMPLETED, grantId, ALLOW, ALLOW],
    );
  }
  const decisions = await Promise.all(both.map((reader) => decisionOf(reader, traceId)));
  const spent = Number(task.usage!.inputTokens + task.usage!.outputTokens);
  claim(spent > 0, "the task says of no tokens that it used them");
  for (const reader of both)
    same("what was used of the grant", await usageOf(reader, grantId), {
      ...{ tokens: spent, reserved: 0 },
      ...{ requests: 1, denials: 0 },
    });
  return {
    proof: `COMPLETED by another organisation's agent, in one trace; ${decisions[0]} on the way out and ${decisions[1]} on the way in; both read ${spent} of ${tokensPerDay.toLocaleString("en")} tokens used`,
    traceId,
  };
}

/** The only decision in an organisation's log of this trace: the verdict, and the policy that brought it about. */
async function decisionOf(reader: Clients, traceId: string): Promise<string> {
  const { decisions } = await reader(PolicyService).listDecisions({ traceId });
  same("decisions in an organisation's log", decisions.length, 1);
  const { verdict, determiningPolicies } = decisions[0]!.answer!;
  same("its verdict", verdict, ALLOW);
  return `${nameIn(PolicyVerdictSchema, verdict)} by ${determiningPolicies.map(({ policyId }) => policyId).join(", ")}`;
}
