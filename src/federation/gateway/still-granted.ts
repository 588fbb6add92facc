/** Whether a guest may still be worked on: its grant is in force, and its terms are as wide as that takes. */
import { GrantState } from "../../../gen/moltwire/federation/v1/grant_pb.ts";
import { findAgent } from "../../bus/agent-store.ts";
import { callerGone } from "../../bus/authority.ts";
import type { ContractRow } from "../../bus/contract-store.ts";
import type { TaskFault, TaskSummaryRow } from "../../bus/task-store.ts";
import type { Queryable } from "../../db/db.ts";
import type { Fault } from "../../errors.ts";
import { asOf, findGrant, type GrantRow } from "../grant/store.ts";
import { crossingOf, isGuest } from "./sides.ts";
import { beyondTerms, notInForce, tierOf } from "./terms.ts";

/** Why an attempt under this contract may not begin, or undefined, as for every task that is no guest. Asked in the transaction in which it would begin. */
export async function grantFault(
  db: Queryable,
  task: TaskSummaryRow,
  contract: ContractRow,
  now: number,
): Promise<TaskFault | undefined> {
  if (!isGuest(task)) return undefined;
  const grant = await inForce(db, task, now);
  if ("reason" in grant) return grant;
  const { caller_org_id: callerOrgId, caller_agent_id: callerAgentId } = await crossingOf(db, task);
  const caller = callerAgentId ? await findAgent(db, callerOrgId, callerAgentId) : undefined;
  if (callerAgentId && !caller) return callerGone(callerAgentId);
  const beyond = beyondTerms(grant, tierOf(caller), contract);
  return beyond && asTaskFault(beyond);
}

/** The grant, or GRANT_NOT_ACTIVE when it is not in force; `org_id` is either party's. */
export async function inForce(
  db: Queryable,
  { org_id, grant_id }: Pick<GrantRow, "org_id" | "grant_id">,
  now: number,
): Promise<GrantRow | TaskFault> {
  const grant = await findGrant(db, org_id, grant_id);
  const state = grant ? asOf(grant, now).state : GrantState.REVOKED;
  return grant && state === GrantState.ACTIVE ? grant : asTaskFault(notInForce(grant_id, state));
}

export const asTaskFault = ({ reason, message, metadata }: Fault): TaskFault => ({ reason, message, metadata });
