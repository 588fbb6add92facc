/** The question of approvals: may this party decide on this request? */
import type { App } from "../../app.ts";
import type { Queryable } from "../../db/db.ts";
import type { ApprovalRow } from "../approval/store.ts";
import type { Decided } from "./decide-task.ts";
import { type AgentFacts, agentEntity, orgEntity } from "./entity.ts";
import type { Question } from "./policies.ts";
import { approvalEntities } from "./resolve-entity.ts";

export type ApproverAsked = {
  readonly approval: ApprovalRow;
  readonly action: "approve" | "deny";
  /** Undefined: an administrator, for no agent. */
  readonly decider: AgentFacts | undefined;
  /** Whether the key that decides is the one that asked, or of its line. */
  readonly ownRequest: boolean;
  readonly now: number;
};

/** Whether somebody may approve or deny a request, by the policies of the request's organisation. Nobody decides on its own. */
export async function decideApprover(
  { policies }: Pick<App, "policies">,
  db: Queryable,
  { approval, action, decider, ownRequest, now }: ApproverAsked,
): Promise<Decided> {
  const orgId = approval.org_id;
  const { entity: resource, related, origin } = await approvalEntities(db, approval);
  const tokens = approval.reserved_tokens;
  const question: Question = {
    principal: decider ? agentEntity(decider) : orgEntity(orgId),
    action,
    resource,
    related,
    context: { tokens, origin, time: { ms: now }, own_request: ownRequest },
  };
  return { question, answer: await policies.decide(db, orgId, question) };
}
