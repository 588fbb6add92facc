/** Whether a guest may still be worked on: its grant is in force, and its terms are as wide as that takes. */
import { GrantState } from "../../../gen/moltwire/federation/v1/grant_pb.ts";
import { findAgent } from "../../bus/agent-store.ts";
import { callerGone } from "../../bus/authority.ts";
import type { ContractRow } from "../../bus/contract-store.ts";
import type { TaskFault, TaskSummaryRow } from "../../bus/task-store.ts";
import type { Queryable } from "../../db/db.ts";
import { Fault } from "../../errors.ts";
import { asOf, findGrant, type GrantRow, termsOf } from "../grant/store.ts";
import { crossingOf, isGuest } from "./sides.ts";
import { beyondCap, beyondTerms, notInForce, tierOf } from "./terms.ts";
import { priceOf } from "./weigh.ts";

/** Why an attempt may not begin. `only`: with this agent; another may cost less. */
export type GrantFault = { readonly fault: Fault; readonly only: "agent" | undefined };

/** Undefined when an attempt of this agent under this contract may begin, as for every task that is no guest. Asked in the transaction in which it would. */
export async function grantFault(
  db: Queryable,
  task: TaskSummaryRow,
  contract: ContractRow,
  agentId: string,
  now: number,
): Promise<GrantFault | undefined> {
  if (!isGuest(task)) return undefined;
  const grant = await grantInForce(db, task, now);
  if (grant instanceof Fault) return { fault: grant, only: undefined };
  const beyond = await beyondTermsOf(db, task, grant, contract);
  if (beyond) return { fault: beyond, only: undefined };
  if (termsOf(grant).priceCapMicros === undefined) return undefined;
  const { mostMicros } = await priceOf(db, contract, agentId, now);
  const dear = beyondCap(grant, mostMicros);
  return dear && { fault: dear, only: "agent" };
}

/** Which contracts a guest may be done under, by the terms of its grant; any other task under all. Whether the grant is in force is not asked here. */
export async function allowedContracts(
  db: Queryable,
  task: TaskSummaryRow,
): Promise<((contract: ContractRow) => boolean) | undefined> {
  if (!isGuest(task)) return undefined;
  const grant = await findGrant(db, task.org_id, task.grant_id);
  const { caller_org_id: callerOrgId, caller_agent_id: callerAgentId } = await crossingOf(db, task);
  const caller = callerAgentId ? await findAgent(db, callerOrgId, callerAgentId) : undefined;
  return grant && ((contract) => beyondTerms(grant, tierOf(caller), contract) === undefined);
}

/** What the terms of a guest's grant say to a contract under which it would be done. */
async function beyondTermsOf(
  db: Queryable,
  task: TaskSummaryRow,
  grant: GrantRow,
  contract: ContractRow,
): Promise<Fault | undefined> {
  const { caller_org_id: callerOrgId, caller_agent_id: callerAgentId } = await crossingOf(db, task);
  const caller = callerAgentId ? await findAgent(db, callerOrgId, callerAgentId) : undefined;
  if (!callerAgentId || caller) return beyondTerms(grant, tierOf(caller), contract);
  const { reason, message, metadata } = callerGone(callerAgentId);
  return new Fault(reason, message, { ...metadata });
}

/** The grant, or GRANT_NOT_ACTIVE when it is not in force; `org_id` is either party's. */
export async function grantInForce(
  db: Queryable,
  { org_id, grant_id }: Pick<GrantRow, "org_id" | "grant_id">,
  now: number,
): Promise<GrantRow | Fault> {
  const grant = await findGrant(db, org_id, grant_id);
  const state = grant ? asOf(grant, now).state : GrantState.REVOKED;
  return grant && state === GrantState.ACTIVE ? grant : notInForce(grant_id, state);
}

export const asTaskFault = ({ reason, message, metadata }: Fault): TaskFault => ({ reason, message, metadata });
