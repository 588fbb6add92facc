/** The side that asks follows the work of the other, in the transactions in which that goes on. */
import { TaskState } from "../../../gen/moltwire/bus/v1/task_pb.ts";
import { TraceEventKind } from "../../../gen/moltwire/bus/v1/trace_pb.ts";
import type { App } from "../../app.ts";
import { usedInAll } from "../../bus/budget/use-store.ts";
import type { HeldTask, TaskEnd } from "../../bus/conclude.ts";
import { type Piece, recordPieces } from "../../bus/piece-store.ts";
import { advanceTask, isTerminal, type TaskFault, type TaskSummaryRow, type Used } from "../../bus/task-store.ts";
import { recordSteps, type Span, type Step } from "../../bus/trace-store.ts";
import type { Tx } from "../../db/db.ts";
import { closeCrossing } from "./crossing-store.ts";
import { settleQuota } from "./quota.ts";
import { homeOf, isAway, isGuest } from "./sides.ts";
import { toldAcross } from "./told.ts";

/** Where the steps of the side that asked belong. */
export const spanAtHome = (home: TaskSummaryRow): Span => ({
  orgId: home.org_id,
  traceId: home.trace_id,
  spanId: home.span_id,
  parentSpanId: home.parent_span_id,
  taskId: home.task_id,
  callerAgentId: home.caller_agent_id,
  contractId: home.contract_id,
});

/** An agent has a guest: its organisation is told so the first time. Nothing for any other task. */
export async function tellBegun(
  tx: Tx,
  app: App,
  task: TaskSummaryRow,
  attempt: number,
  timeMs: number,
): Promise<void> {
  if (!isGuest(task) || attempt > 1) return;
  const home = await homeOf(tx, task);
  if ((await advanceTask(tx, home.org_id, home.task_id, TaskState.SUBMITTED, TaskState.WORKING)) === 0) return;
  const step: Step = {
    kind: TraceEventKind.DISPATCHED,
    timeMs,
    message: `an agent of the organisation ${task.org_id} has it`,
    details: { org_id: task.org_id, attempt },
  };
  await recordSteps(tx, app, spanAtHome(home), [step]);
}

/** Somebody approved a guest: it waits no more on either side. Nothing for any other task. */
export async function tellApproved(tx: Tx, app: App, task: TaskSummaryRow, timeMs: number): Promise<void> {
  if (!isGuest(task)) return;
  const home = await homeOf(tx, task);
  await advanceTask(tx, home.org_id, home.task_id, TaskState.AWAITING_APPROVAL, TaskState.SUBMITTED);
  const message = `approved by the organisation ${task.org_id}`;
  await recordSteps(tx, app, spanAtHome(home), [
    { kind: TraceEventKind.APPROVED, timeMs, message, details: { approval_id: "", org_id: task.org_id } },
  ]);
}

/** What an agent streams for a guest is for those who asked. Nothing for any other task. */
export async function tellPieces(tx: Tx, app: App, task: TaskSummaryRow, pieces: readonly Piece[]): Promise<void> {
  if (!isGuest(task) || pieces.length === 0) return;
  await recordPieces(tx, app, spanAtHome(await homeOf(tx, task)), "", pieces);
}

/** The end of the side that asks, which follows from that of a guest; undefined for any other task, and when that side has ended. */
export async function endAtHome(
  tx: Tx,
  task: TaskSummaryRow,
  end: TaskEnd,
): Promise<{ readonly held: HeldTask; readonly end: TaskEnd } | undefined> {
  if (!isGuest(task)) return undefined;
  const home = await homeOf(tx, task);
  if (isTerminal(home.state)) return undefined;
  const held = { hold: { orgId: home.org_id, taskId: home.task_id, token: home.lease_token }, task: home };
  const used = await usedAway(tx, task);
  if (end.home) return { held, end: { ...end.home, used } };
  const { state, endMs, output, fault: raw, faultAtHome } = end;
  const fault = faultAtHome ?? (raw && toldAcross(raw, task.org_id));
  const told: TaskFault | undefined = fault && {
    reason: fault.reason,
    message: fault.message,
    metadata: fault.metadata,
  };
  const steps = [endStep(home, state, endMs, told)];
  return {
    held,
    end: { state, endMs, ...(output !== undefined && { output }), ...(told && { fault: told }), used, steps },
  };
}

/** What is left to do under the grant when a task has ended: the quota is settled, once. A side that asked and of which nothing came in has set nothing aside. */
export async function endUnderGrant(tx: Tx, task: TaskSummaryRow, { used }: TaskEnd): Promise<void> {
  if (isAway(task) && !used) await closeCrossing(tx, task.target_org_id, task.task_id);
  const crossing = isGuest(task) ? await closeCrossing(tx, task.org_id, task.task_id) : undefined;
  if (crossing) await settleQuota(tx, crossing);
}

/** Which models did the work is told to nobody else. */
async function usedAway(tx: Tx, { org_id, task_id }: TaskSummaryRow): Promise<Used> {
  const { inputTokens, outputTokens, costMicros } = await usedInAll(tx, org_id, task_id);
  return { usage: { inputTokens, outputTokens, model: "" }, costMicros };
}

const endStep = (home: TaskSummaryRow, state: TaskState, timeMs: number, fault: TaskFault | undefined): Step => ({
  kind: kinds[state] ?? TraceEventKind.FAILED,
  timeMs,
  message: fault?.message ?? "completed",
  ...(fault && { details: { reason: fault.reason, message: fault.message, ...fault.metadata } }),
  durationMs: timeMs - home.create_ms,
});

const kinds: Readonly<Partial<Record<number, TraceEventKind>>> = {
  [TaskState.COMPLETED]: TraceEventKind.COMPLETED,
  [TaskState.FAILED]: TraceEventKind.FAILED,
  [TaskState.CANCELED]: TraceEventKind.CANCELED,
  [TaskState.REJECTED]: TraceEventKind.REJECTED,
};
