/** A contract asks for an approval: the task waits, nobody approves what they asked for themselves, and another's word lets it run. */
import { Role } from "../../../gen/moltwire/api/v1/access_pb.ts";
import { ApprovalService } from "../../../gen/moltwire/bus/v1/approval_service_pb.ts";
import { ApiKeyService } from "../../../gen/moltwire/federation/v1/api_key_service_pb.ts";
import { connectClients } from "../../cli/connect.ts";
import { stateName } from "../../cli/names.ts";
import { ask, outputOf, watch } from "../ask.ts";
import { refused, same } from "./claim.ts";
import { addFlaky } from "./flaky-agent.ts";
import type { Outcome, World } from "./scenario.ts";

const note = "looked at it";

/** Asks with one administrator's key and approves with another's. */
export async function approval(world: World): Promise<Outcome> {
  const { admin, url } = world;
  const { contractId, calls } = await addFlaky(world, "approval", { approvalRequired: true });
  const { apiKey, secret } = await admin(ApiKeyService).createApiKey({ name: "demo approver", role: Role.ORG });
  const approver = connectClients({ url, key: secret });

  const { taskId, traceId, state, approvalId } = await ask(admin, contractId, { text: "may I" });
  same("the state of the task", stateName(state), "AWAITING_APPROVAL");
  const own = await refused("POLICY_DENIED", admin(ApprovalService).approve({ approvalId }));
  same("the policy that the refusal names", own.metadata.policy_ids, "builtin/approver-is-not-requester");
  same("calls of the agent before the approval", await calls(), 0);

  const { digest } = (await approver(ApprovalService).getApproval({ approvalId })).approval!;
  const { approval } = await approver(ApprovalService).approve({ approvalId, digest, note });
  same("who decided, and what they wrote", [approval!.decidedBy, approval!.note], [apiKey!.keyId, note]);
  same("what the agent answers", outputOf(await watch(admin, taskId)), { words: 2 });
  same("calls of the agent after it", await calls(), 1);
  return {
    proof: `${stateName(state)}, and the agent is not called; who asked may not approve (${own.metadata.policy_ids}); approved by another, it COMPLETED`,
    traceId,
  };
}
