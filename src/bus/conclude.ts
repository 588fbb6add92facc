/** Every end of a task, and of an attempt, is here: what depends on either is written in the same transaction. */

import type { JsonValue } from "@bufbuild/protobuf";
import { ApprovalState } from "../../gen/moltwire/bus/v1/approval_pb.ts";
import { TaskState } from "../../gen/moltwire/bus/v1/task_pb.ts";
import { TraceEventKind } from "../../gen/moltwire/bus/v1/trace_pb.ts";
import type { App } from "../app.ts";
import type { Tx } from "../db/db.ts";
import { inLockOrder } from "../db/lock-order.ts";
import { nameIn } from "../enum-name.ts";
import { type Charged, charge, pay } from "../exchange/call/pay.ts";
import { endAtHome, endUnderGrant } from "../federation/gateway/echo.ts";
import { isAway, isGuest } from "../federation/gateway/sides.ts";
import { emit } from "../ops/outbox.ts";
import { endApproval } from "./approval/store.ts";
import {
  type AttemptOutcome,
  abandonAttempt,
  attemptFor,
  endClaimed,
  finishAttempt,
  isClaimed,
  usedBy,
} from "./attempt-end.ts";
import { settleBudgets } from "./budget/settle-budgets.ts";
import { leaveCircuit } from "./circuit/conduct.ts";
import { type CountedAttempt, countAttempt } from "./cost/cost-store.ts";
import { writeDeadLetter } from "./dead-letter/write.ts";
import { pullOwner, removePulled } from "./serve/pulled-store.ts";
import {
  endAttempt,
  endTask,
  type Hold,
  isTerminal,
  type LatestAttempt,
  lockTask,
  sealFault,
  sealJson,
  type TaskFault,
  type TaskSummaryRow,
  type Used,
} from "./task-store.ts";
import { recordSteps, type Span, type Step } from "./trace-store.ts";

/** A task in the hands of this server. */
export type HeldTask = { readonly hold: Hold; readonly task: TaskSummaryRow };

/** How a task ends. `attempt` is the one that ended with it, if one did; without it, one that still ran is abandoned. */
export type TaskEnd = {
  readonly state: TaskState;
  readonly endMs: number;
  readonly output?: JsonValue;
  readonly fault?: TaskFault;
  readonly attempt?: AttemptOutcome | undefined;
  readonly steps: readonly Step[];
  /** Of a task that another organisation's agents worked on: what they used. */
  readonly used?: Used;
  /** Of a guest of another organisation: how its own side ends, if not as follows from this. */
  readonly home?: TaskEnd;
  /** The same with nothing but another fault: one that arose on its own side, and is told there as it is. */
  readonly faultAtHome?: TaskFault | undefined;
  /** What is written of its refusal for the organisation that refused it: before accounts are locked, as usage under grants always is. */
  readonly keep?: (() => Promise<void>) | undefined;
};

export const spanOf = (task: TaskSummaryRow): Span => ({
  orgId: task.org_id,
  traceId: task.trace_id,
  spanId: task.span_id,
  parentSpanId: task.parent_span_id,
  taskId: task.task_id,
  callerAgentId: task.caller_agent_id,
  contractId: task.contract_id,
  echo: isGuest(task),
});

/**
 * Ends a task, once: false when it is no longer held or has ended already, and then nothing was written. With a guest of another organisation the side that asked for it
 * ends too. What others want as well is taken in the order of `lock-order.ts`.
 */
export async function concludeTask(tx: Tx, app: App, held: HeldTask, end: TaskEnd): Promise<boolean> {
  const work = await endSide(tx, app, held, end);
  if (!work) return false;
  const home = await endAtHome(tx, held.task, end);
  const asked = home && (await endSide(tx, app, home.held, home.end));
  const sides = asked ? [asked, work] : [work];
  const settled = new Map<Side, Step[]>();
  for (const side of sides.toSorted((a, b) => inLockOrder(a.task.org_id, b.task.org_id)))
    settled.set(side, side.budgeted ? await settleBudgets(tx, app, side.task, side.end.endMs, paidBy(side)) : []);
  for (const side of sides) await tellEnd(tx, app, side, settled.get(side)!);
  if (work.counted) await countAttempt(tx, work.counted);
  await end.keep?.();
  for (const { charged, end } of sides) if (charged) await pay(tx, app, charged, end.state);
  return true;
}

/** One side of a task whose rows have ended: what is left to settle and to tell. */
type Side = {
  readonly task: TaskSummaryRow;
  readonly end: TaskEnd;
  readonly targetAgentId: string;
  readonly budgeted: boolean;
  readonly changed: readonly Step[];
  readonly counted: CountedAttempt | undefined;
  readonly charged: Charged | undefined;
};

/** What the side that asked pays for a request that has a price. */
const paidBy = ({ task, charged }: Side): number | undefined =>
  charged && isAway(task) ? charged.call.amount_micros : undefined;

/** The task, what hangs on it alone, and the circuit of its agent. */
async function endSide(tx: Tx, app: App, { hold, task }: HeldTask, end: TaskEnd): Promise<Side | undefined> {
  const { orgId, taskId } = hold;
  const claimed = end.attempt && isClaimed(end.attempt) ? end.attempt : undefined;
  const ending = end.attempt && !claimed ? await attemptFor(tx, task, end.attempt, end.endMs) : undefined;
  const ended = await endTask(tx, hold, {
    state: end.state,
    output: end.output === undefined ? null : sealJson(app, orgId, taskId, "output", end.output),
    error: end.fault ? sealFault(app, orgId, taskId, end.fault) : null,
    used: end.used ?? usedBy(ending),
    endMs: end.endMs,
  });
  if (!ended) return undefined;
  if (task.lease_owner === pullOwner) await removePulled(tx, orgId, taskId);
  if (task.approval_id) await cancelApproval(tx, orgId, task.approval_id, end.endMs);
  if (ending) await finishAttempt(tx, app, ending, end.attempt?.fault);
  const abandoned =
    !end.attempt && ended.attempts > 0 && end.fault
      ? await abandonAttempt(tx, app, task, ended.attempts, end.fault)
      : undefined;
  const changed = isAway(task) ? [] : await noteOnCircuit(tx, app, task, ended, end.attempt, end.endMs);
  const bound = claimed && (await endClaimed(tx, app, task, claimed, end.endMs));
  const charged = await charge(tx, task, bound ? { ...end, attempt: bound.ending } : end);
  const { target_agent_id: targetAgentId } = ended;
  return {
    ...{ task, end, targetAgentId, budgeted: ended.budgeted !== 0, charged },
    changed: [...changed, ...(bound?.steps ?? [])],
    counted: bound?.ending ?? ending ?? abandoned,
  };
}

/** The steps of the end, and what is told of it. Events and dead letters are for those who asked. */
async function tellEnd(
  tx: Tx,
  app: App,
  { task, end, changed, targetAgentId, charged }: Side,
  budgeted: readonly Step[],
): Promise<void> {
  await endUnderGrant(tx, task, end);
  const steps = end.steps.toSpliced(-1, 0, ...changed, ...budgeted, ...(charged?.steps ?? []));
  await recordSteps(tx, app, spanOf(task), steps);
  if (isGuest(task)) return;
  await emitEnd(tx, app, task, end);
  if (end.state === TaskState.FAILED && end.fault)
    await writeDeadLetter(tx, app, task, targetAgentId, end.fault.reason, end.endMs);
}

/**
 * As {@link concludeTask}, from the side of those who asked, for a task that another organisation's agents may have: the work ends first, as `there`, and this side with
 * it. The work is locked before this side.
 */
export async function concludeAcross(tx: Tx, app: App, held: HeldTask, end: TaskEnd, there: TaskEnd): Promise<boolean> {
  const { target_org_id: orgId, task_id: taskId } = held.task;
  const guest = isAway(held.task) ? await lockTask(tx, orgId, taskId) : undefined;
  if (!guest || isTerminal(guest.state)) return concludeTask(tx, app, held, end);
  const hold = { orgId, taskId, token: guest.lease_token };
  return concludeTask(tx, app, { hold, task: guest }, { ...there, home: end });
}

/** What nobody has decided when the task ends needs no decision any more. */
const cancelApproval = (tx: Tx, orgId: string, approvalId: string, decideMs: number): Promise<number> =>
  endApproval(tx, orgId, approvalId, { state: ApprovalState.CANCELED, decideMs, decidedBy: "", note: "" });

/** The step of a task that is refused after it was accepted. */
export const rejectedStep = (task: TaskSummaryRow, fault: TaskFault, timeMs: number): Step => ({
  kind: TraceEventKind.REJECTED,
  timeMs,
  message: fault.message,
  details: { reason: fault.reason, message: fault.message, ...fault.metadata },
  targetAgentId: task.target_agent_id,
  durationMs: timeMs - task.create_ms,
});

/** Ends an attempt after which the task goes on: false when the task is no longer held, and then nothing was written. */
export async function concludeAttempt(
  tx: Tx,
  app: App,
  { hold, task }: HeldTask,
  attempt: AttemptOutcome | undefined,
  endMs: number,
  steps: readonly Step[],
): Promise<boolean> {
  const claimed = attempt && isClaimed(attempt) ? attempt : undefined;
  const ending = attempt && !claimed ? await attemptFor(tx, task, attempt, endMs) : undefined;
  const ended = await endAttempt(tx, hold, usedBy(ending));
  if (!ended) return false;
  if (ending) await finishAttempt(tx, app, ending, attempt?.fault);
  const changed = await noteOnCircuit(tx, app, task, ended, attempt, endMs);
  const bound = claimed && (await endClaimed(tx, app, task, claimed, endMs));
  await recordSteps(tx, app, spanOf(task), [...steps, ...changed, ...(bound?.steps ?? [])]);
  const counted = bound?.ending ?? ending;
  if (counted) await countAttempt(tx, counted);
  return true;
}

/** What the end of the task's latest attempt does to the circuit of its agent. An attempt that was given up tells nothing. */
const noteOnCircuit = (
  tx: Tx,
  app: App,
  { org_id, task_id, trace_id }: TaskSummaryRow,
  { attempts, target_agent_id, probe }: LatestAttempt,
  attempt: AttemptOutcome | undefined,
  now: number,
): Promise<Step[]> => {
  const verdict = attempt?.verdict ?? "nothing";
  const of = { orgId: org_id, agentId: target_agent_id, agent: attempt?.agent, traceId: trace_id };
  return leaveCircuit(tx, app, { ...of, taskId: task_id, attempt: attempts, verdict, probe: probe !== 0 }, now);
};

/** Tells the world how a task ended; the caller's agent is the one concerned. */
const emitEnd = (tx: Tx, app: App, task: TaskSummaryRow, { state, fault, endMs }: TaskEnd): Promise<void> =>
  emit(tx, app, {
    orgId: task.org_id,
    type: state === TaskState.COMPLETED ? "task.completed" : "task.failed",
    agentId: task.caller_agent_id,
    timeMs: endMs,
    traceId: task.trace_id,
    payload: {
      task_id: task.task_id,
      contract_id: task.contract_id,
      contract_version: task.contract_version,
      state: stateName(state),
      reason: fault?.reason ?? "",
    },
  });

export const stateName = (state: number): string => nameIn(TaskState, state);
