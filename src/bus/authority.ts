/** Whether an attempt may still begin: what let the task in may have ended since, and policies spoke of one agent under one contract. */
import type { JsonValue } from "@bufbuild/protobuf";
import { ApprovalState } from "../../gen/moltwire/bus/v1/approval_pb.ts";
import { TraceEventKind } from "../../gen/moltwire/bus/v1/trace_pb.ts";
import type { App } from "../app.ts";
import { findPassword, passwordKeyId } from "../console/password.ts";
import type { Tx } from "../db/db.ts";
import { Fault } from "../errors.ts";
import { crossingOf, homeOf, isGuest } from "../federation/gateway/sides.ts";
import { takenBack } from "../federation/gateway/taken-back.ts";
import { isLive } from "../federation/key-lineage.ts";
import { configuredKeyId } from "../rpc/auth.ts";
import { type AgentRow, findAgent } from "./agent-store.ts";
import { approvable, approvalDigest, type Demand } from "./approval/gate.ts";
import { findApproval } from "./approval/store.ts";
import { stillWithinBudgets } from "./budget/reserve-budgets.ts";
import type { ContractRow } from "./contract-store.ts";
import { permitAgent, policyStep } from "./permit.ts";
import type { Decided, Origin } from "./policy/decide-task.ts";
import { asForeigner } from "./policy/entity.ts";
import type { TaskFault, TaskSummaryRow } from "./task-store.ts";
import type { Step } from "./trace-store.ts";

/** What there is to say before an attempt: the steps and decisions to write down, and why it may not begin if it may not. */
export type Reconsidered = {
  readonly steps: readonly Step[];
  readonly decisions: readonly Decided[];
  /** This agent may not do it under this contract; another may. */
  readonly refused?: Fault;
  /** Nobody may: the task is over. */
  readonly rejected?: TaskFault;
  /** As the organisation is told that asked for it, if it is another and that is its own doing. */
  readonly rejectedAtHome?: TaskFault | undefined;
};

/**
 * Asks again before an attempt: always for a task that was approved, whose authority is checked when it runs, and else for every agent and
 * contract other than those that were decided on when the task was accepted. Of one that waited here and came from another organisation, that one is asked too.
 */
export async function reconsider(
  tx: Tx,
  app: App,
  task: TaskSummaryRow,
  input: JsonValue,
  agent: AgentRow,
  contract: ContractRow,
): Promise<Reconsidered> {
  const approved = task.approval_id !== "";
  const withdrawn = approved ? await withdrawal(tx, app, task, input, agent.agent_id) : undefined;
  if (withdrawn) return { steps: [], decisions: [], rejected: withdrawn };
  const { org_id: orgId, caller_agent_id: callerId, origin, grant_id: grantId } = task;
  const from = isGuest(task) ? (await crossingOf(tx, task)).caller_org_id : undefined;
  const found = callerId ? await findAgent(tx, from ?? orgId, callerId) : undefined;
  const caller = from && found ? asForeigner(found) : found;
  if (callerId && !caller) return { steps: [], decisions: [], rejected: callerGone(callerId) };
  const now = app.clock.now();
  const back = approved && from ? await takenBack(tx, app, task, contract, now) : undefined;
  if (back) return { steps: [], decisions: [], rejected: back.here, rejectedAtHome: back.atHome };
  const asking = { orgId, caller, from, contract, origin: origin as Origin, grantId, now };
  const permit = await permitAgent(app, tx, asking, agent);
  const told = policyStep(permit);
  const kind = TraceEventKind.POLICY_DECIDED;
  const steps: Step[] = [{ kind, timeMs: now, ...told, targetAgentId: agent.agent_id }];
  const { decisions } = permit;
  const refused =
    permit.refusal ??
    (approved ? await stillWithinBudgets(tx, task, now) : permit.demand && approvalNeeded(permit.demand));
  if (!refused) return { steps, decisions };
  const { reason, message, metadata } = refused;
  return approved ? { steps, decisions, rejected: { reason, message, metadata } } : { steps, decisions, refused };
}

export const callerGone = (agentId: string): TaskFault => ({
  reason: "POLICY_DENIED",
  message: "the agent that asked for the task is gone",
  metadata: { action: "invoke", agent_id: agentId },
});

/** An approval is asked for when a task is accepted, and not for another agent or contract later. */
export const approvalNeeded = ({ policyIds, reasons }: Demand): Fault =>
  new Fault("APPROVAL_REQUIRED", `it would need an approval: ${reasons.join("; ")}`, {
    policy_ids: policyIds.join(","),
  });

/** Why an approved task may not run, or undefined: the approval is for something else, whoever asked may no longer ask, or it does not fit into its budgets any more. */
export async function withdrawal(
  tx: Tx,
  app: App,
  task: TaskSummaryRow,
  input: JsonValue,
  agentId: string,
): Promise<TaskFault | undefined> {
  const approval = await findApproval(tx, task.org_id, task.approval_id);
  const digest = approvalDigest({ ...approvable(task, input), targetAgentId: agentId });
  if (approval?.state !== ApprovalState.APPROVED || approval.digest !== digest)
    return {
      reason: "APPROVAL_DENIED",
      message: "the approval is not for this task as it is",
      metadata: { approval_id: task.approval_id },
    };
  const keyId = isGuest(task) ? (await homeOf(tx, task)).caller_key_id : task.caller_key_id;
  if (!(await mayStillAsk(tx, app, keyId)))
    return {
      reason: "KEY_REVOKED",
      message: "the key that asked for the task can no longer be used",
      metadata: { key_id: task.caller_key_id },
    };
  return stillWithinBudgets(tx, task, app.clock.now());
}

const mayStillAsk = async (tx: Tx, app: App, keyId: string): Promise<boolean> =>
  keyId === configuredKeyId
    ? app.config.operatorKeyDigest !== undefined
    : keyId === passwordKeyId
      ? (await findPassword(tx)) !== undefined
      : isLive(tx, keyId, app.clock.now());
