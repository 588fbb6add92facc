/** Whether the organisation that asked still wants what waited for an approval of the other: its policies and budgets are asked again, as they are when it has not waited. */

import type { App } from "../../app.ts";
import { findAgent } from "../../bus/agent-store.ts";
import { approvalNeeded, callerGone } from "../../bus/authority.ts";
import { stillWithinBudgets } from "../../bus/budget/reserve-budgets.ts";
import type { ContractRow } from "../../bus/contract-store.ts";
import type { Origin } from "../../bus/policy/decide-task.ts";
import type { TaskFault, TaskSummaryRow } from "../../bus/task-store.ts";
import { recordSteps } from "../../bus/trace-store.ts";
import type { Tx } from "../../db/db.ts";
import { findGrant } from "../grant/store.ts";
import { spanAtHome } from "./echo.ts";
import { decideOutward, keepOutward } from "./outward.ts";
import { homeOf } from "./sides.ts";
import { asTaskFault } from "./still-granted.ts";
import { toldOfTakenBack } from "./told.ts";
import { outwardStep } from "./trace.ts";

/** Why a task is not to go on, for either side. */
export type TakenBack = { readonly here: TaskFault; readonly atHome: TaskFault };

/** Asks the side that asked for a guest once more, and keeps its decision there; undefined when the guest may go on. Its grant is in force. */
export async function takenBack(
  tx: Tx,
  app: App,
  guest: TaskSummaryRow,
  contract: ContractRow,
  now: number,
): Promise<TakenBack | undefined> {
  const home = await homeOf(tx, guest);
  const { org_id: orgId, caller_agent_id: callerAgentId, task_id: taskId, trace_id: traceId } = home;
  const caller = callerAgentId ? await findAgent(tx, orgId, callerAgentId) : undefined;
  if (callerAgentId && !caller) return { here: callerGone(callerAgentId), atHome: callerGone(callerAgentId) };
  const grant = await findGrant(tx, guest.org_id, guest.grant_id);
  if (!grant) throw new Error(`task ${taskId} came in under no grant`);
  const origin = home.origin as Origin;
  const out = { orgId, caller, contract, grant, wantedAgentId: home.wanted_agent_id, origin, now };
  const outward = await decideOutward(app, tx, out);
  const of = { orgId, callerAgentId, targetOrgId: guest.org_id, traceId, taskId, keyId: home.caller_key_id, now };
  await keepOutward(tx, app, outward, { ...of, contractId: contract.contract_id });
  await recordSteps(tx, app, spanAtHome(home), [outwardStep(outward, grant, now)]);
  const { demand } = outward;
  const fault =
    outward.refusal ??
    // What was approved there before it went may go.
    (demand && !home.approval_id ? approvalNeeded(demand) : await stillWithinBudgets(tx, home, now));
  return fault && { here: asTaskFault(toldOfTakenBack(fault, orgId)), atHome: asTaskFault(fault) };
}
