/** The decision on an approval, and what becomes of the task: in one transaction, with the task locked first. */

import { ApprovalState } from "../../../gen/moltwire/bus/v1/approval_pb.ts";
import { TaskState } from "../../../gen/moltwire/bus/v1/task_pb.ts";
import { TraceEventKind } from "../../../gen/moltwire/bus/v1/trace_pb.ts";
import type { App } from "../../app.ts";
import type { Tx } from "../../db/db.ts";
import { nameIn } from "../../enum-name.ts";
import { Fault, notFound, Refused } from "../../errors.ts";
import { tellApproved } from "../../federation/gateway/echo.ts";
import { firstKey } from "../../federation/key-lineage.ts";
import type { Command } from "../../rpc/command.ts";
import { seesWholeOrg } from "../../rpc/scope.ts";
import { findAgent } from "../agent-store.ts";
import { concludeTask, rejectedStep, spanOf } from "../conclude.ts";
import { decideApprover } from "../policy/decide-approval.ts";
import { policyDenied } from "../policy/decide-task.ts";
import { recordDecisions } from "../policy/decision-store.ts";
import { asRefused } from "../policy/keeping.ts";
import { lockTask, resumeTask, type TaskFault, type TaskRow } from "../task-store.ts";
import { recordSteps } from "../trace-store.ts";
import { type ApprovalRow, endApproval, findApproval } from "./store.ts";

/** What somebody says about an approval. */
export type Word = { readonly approvalId: string; readonly digest: string; readonly note: string };

/** A task that may go on, in this server's hands. */
export type Resumed = { readonly task: TaskRow; readonly token: number };

/** What came of a word: the approval as it is now, and the task if it goes on by this. */
export type Decided = { readonly approval: ApprovalRow; readonly resumed?: Resumed };

const verdicts = { approve: ApprovalState.APPROVED, deny: ApprovalState.DENIED } as const;

/**
 * Approves or denies. The same word of the same party is answered as it stands; any other that comes second is FAILED_PRECONDITION, as is one
 * that comes too late, after which the approval is expired.
 */
export async function decideApproval(
  app: App,
  word: Word,
  verdict: keyof typeof verdicts,
  command: Command,
): Promise<Decided> {
  const { tx, caller, orgId, now } = command;
  const found = await findApproval(tx, orgId, word.approvalId);
  const task = found && (await lockTask(tx, orgId, found.task_id));
  const approval = task && (await findApproval(tx, orgId, word.approvalId)); // as it is now that nobody else can change it
  if (!approval) throw notFound("approval", word.approvalId);
  await askPolicies(app, command, approval, verdict);
  if (word.digest && word.digest !== approval.digest)
    throw new Fault("FAILED_PRECONDITION", "digest: this is not what waits for approval; read it again", {
      field: "digest",
    });
  if (approval.state === verdicts[verdict] && approval.decided_by === caller.keyId) return { approval };
  if (approval.state !== ApprovalState.PENDING) throw alreadyDecided(approval.state);
  if (approval.expire_ms <= now) {
    await expire(tx, app, approval, task, now);
    throw new Refused("FAILED_PRECONDITION", alreadyDecided(ApprovalState.EXPIRED).message, { state: "EXPIRED" });
  }
  await endApproval(tx, orgId, approval.approval_id, {
    state: verdicts[verdict],
    decideMs: now,
    decidedBy: caller.keyId,
    note: word.note,
  });
  const decided = (await findApproval(tx, orgId, approval.approval_id))!;
  if (verdict === "approve") return { approval: decided, resumed: await resume(tx, app, decided, task) };
  const said = word.note && `: ${word.note}`;
  await reject(tx, app, task, denied(approval, `the approval was denied${said}`), now);
  return { approval: decided };
}

/** Nobody has decided in time: counts as denied. False when somebody has. */
export async function expireApproval(tx: Tx, app: App, due: ApprovalRow, now: number): Promise<boolean> {
  const task = await lockTask(tx, due.org_id, due.task_id);
  return task !== undefined && expire(tx, app, due, task, now);
}

async function expire(tx: Tx, app: App, approval: ApprovalRow, task: TaskRow, now: number): Promise<boolean> {
  const end = { state: ApprovalState.EXPIRED, decideMs: now, decidedBy: "", note: "" };
  if ((await endApproval(tx, approval.org_id, approval.approval_id, end)) === 0) return false;
  return reject(tx, app, task, denied(approval, "nobody approved it in time"), now);
}

const denied = ({ approval_id }: ApprovalRow, message: string): TaskFault => ({
  reason: "APPROVAL_DENIED",
  message,
  metadata: { approval_id },
});

function reject(tx: Tx, app: App, task: TaskRow, fault: TaskFault, now: number): Promise<boolean> {
  const hold = { orgId: task.org_id, taskId: task.task_id, token: task.lease_token };
  const step = rejectedStep(task, fault, now);
  return concludeTask(tx, app, { hold, task }, { state: TaskState.REJECTED, endMs: now, fault, steps: [step] });
}

async function resume(tx: Tx, app: App, approval: ApprovalRow, task: TaskRow): Promise<Resumed> {
  const { approval_id, decided_by, note } = approval;
  const token = await resumeTask(tx, task, app.serverId);
  const step = {
    kind: TraceEventKind.APPROVED,
    timeMs: app.clock.now(),
    message: `approved by ${decided_by}`,
    details: { approval_id, decided_by, note },
    targetAgentId: task.target_agent_id,
  };
  await recordSteps(tx, app, spanOf(task), [step]);
  await tellApproved(tx, app, task, step.timeMs);
  return { task, token };
}

const alreadyDecided = (state: number): Fault => {
  const name = nameIn(ApprovalState, state);
  return new Fault("FAILED_PRECONDITION", `the approval is ${name} already`, { state: name });
};

/**
 * Who asked for a task neither approves nor denies it, with whatever key of the same line, and an organisation's own policies may forbid more. To an agent that
 * may not decide on it and did not ask for it, it is as if it were not there.
 */
async function askPolicies(
  app: App,
  { tx, caller, orgId, now, trace }: Command,
  approval: ApprovalRow,
  action: keyof typeof verdicts,
) {
  const ownRequest =
    caller.keyId === approval.caller_key_id ||
    (await firstKey(tx, caller.keyId)) === (await firstKey(tx, approval.caller_key_id));
  const decider = seesWholeOrg(caller) ? undefined : await findAgent(tx, orgId, caller.agentId);
  if (!seesWholeOrg(caller) && !decider) throw notFound("approval", approval.approval_id);
  const decided = await decideApprover(app, tx, { approval, action, decider, ownRequest, now });
  await recordDecisions(tx, app, { orgId, traceId: trace.traceId, taskId: approval.task_id, now }, [decided]);
  if (decided.answer.verdict === "ALLOW") return;
  const knows = seesWholeOrg(caller) || approval.caller_agent_id === caller.agentId;
  throw asRefused(knows ? policyDenied(decided) : notFound("approval", approval.approval_id));
}
