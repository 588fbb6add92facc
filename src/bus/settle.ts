/** The transactions that move an accepted task: each changes it only while it is still held, and writes the steps with the change. */
import type { JsonValue } from "@bufbuild/protobuf";
import { TaskState } from "../../gen/moltwire/bus/v1/task_pb.ts";
import { TraceEventKind } from "../../gen/moltwire/bus/v1/trace_pb.ts";
import type { App } from "../app.ts";
import { type Body, OutcomeUnknownError, OverloadedError, type Tx } from "../db/db.ts";
import { isLost } from "../db/postgres-wire.ts";
import { emit } from "../ops/outbox.ts";
import { type Answer, type AttemptFault, noUsage, type Usage } from "./adapter.ts";
import type { AgentRow } from "./agent-store.ts";
import type { ContractRow } from "./contract-store.ts";
import { jsonBytes } from "./payload.ts";
import {
  beginAttempt,
  endAttempt,
  endTask,
  type Hold,
  InFlight,
  sealFault,
  sealJson,
  type TaskFault,
  type TaskSummaryRow,
} from "./task-store.ts";
import { recordSteps, type Span, type Step } from "./trace-store.ts";

/** A task in the hands of this server. */
export type HeldTask = { readonly hold: Hold; readonly task: TaskSummaryRow };

/** An attempt that gave nothing. */
export type FailedAttempt = { readonly attempt: Attempt; readonly cause: AttemptFault };

/** One attempt that has begun. */
export type Attempt = {
  readonly number: number;
  readonly agent: AgentRow;
  readonly contract: ContractRow;
  readonly startMs: number;
};

export const spanOf = (task: TaskSummaryRow): Span => ({
  orgId: task.org_id,
  traceId: task.trace_id,
  spanId: task.span_id,
  parentSpanId: task.parent_span_id,
  taskId: task.task_id,
  callerAgentId: task.caller_agent_id,
  contractId: task.contract_id,
});

/**
 * Storage that is overloaded, or away for a moment, must not cost a task its end. To try again does no harm: what moves a task asks for the
 * hold, and so moves it once.
 */
async function persist<T>(app: App, body: Body<T>): Promise<T> {
  for (let attempt = 1; ; attempt++) {
    try {
      return await app.db.tx(body);
    } catch (error) {
      if (attempt === maxStorageAttempts || !mayPass(error)) throw error;
      await app.clock.sleep(firstStorageWaitMs * 2 ** (attempt - 1), app.ending);
    }
  }
}

const maxStorageAttempts = 8;
const firstStorageWaitMs = 50;
const mayPass = (error: unknown): boolean =>
  error instanceof OverloadedError || error instanceof OutcomeUnknownError || isLost(error);

/** Writes down, before the agent is called, that it will be; undefined when the task is no longer held. */
export const settleBegin = (
  app: App,
  { hold, task }: HeldTask,
  agent: AgentRow,
  contract: ContractRow,
  adapter: string,
  timeoutMs: number,
): Promise<Attempt | undefined> =>
  persist(app, async (tx) => {
    const startMs = app.clock.now();
    const inFlight = contract.repeatable !== 0 ? InFlight.repeatable : InFlight.once;
    const number = await beginAttempt(tx, hold, agent.agent_id, inFlight);
    if (number === undefined) return undefined;
    const details = {
      attempt: number,
      adapter,
      timeout_ms: timeoutMs,
      contract_id: contract.contract_id,
      contract_version: contract.version,
    };
    await recordSteps(tx, app, spanOf(task), [
      {
        kind: TraceEventKind.DISPATCHED,
        timeMs: startMs,
        message: `attempt ${number} goes to ${agent.name}`,
        details,
        targetAgentId: agent.agent_id,
      },
    ]);
    return { number, agent, contract, startMs };
  });

/** The task is done. */
export const settleCompleted = (app: App, held: HeldTask, attempt: Attempt, answer: Answer): Promise<boolean> =>
  persist(app, async (tx) => {
    const { hold, task } = held;
    const endMs = app.clock.now();
    const output = sealJson(app, hold.orgId, hold.taskId, "output", answer.output);
    if (
      (await endTask(tx, hold, { state: TaskState.COMPLETED, output, error: null, usage: answer.usage, endMs })) === 0
    )
      return false;
    const at = { timeMs: endMs, targetAgentId: attempt.agent.agent_id };
    await recordSteps(tx, app, spanOf(task), [
      {
        ...at,
        kind: TraceEventKind.ANSWERED,
        message: `${attempt.agent.name} answered`,
        details: answered(attempt, answer.output, answer.usage),
        durationMs: endMs - attempt.startMs,
      },
      {
        ...at,
        kind: TraceEventKind.OUTPUT_CHECKED,
        message: "the output fits the contract",
        details: { violations: [] },
      },
      { ...at, kind: TraceEventKind.COMPLETED, message: "completed", durationMs: endMs - task.create_ms },
    ]);
    await emitEnd(tx, app, task, task.contract_version, TaskState.COMPLETED, "", endMs);
    return true;
  });

/** An attempt failed and another one follows after a wait. */
export const settleAttemptFailed = (
  app: App,
  { hold, task }: HeldTask,
  attempt: Attempt,
  fault: AttemptFault,
  waitMs: number,
): Promise<boolean> =>
  persist(app, async (tx) => {
    if ((await endAttempt(tx, hold, fault.usage)) === 0) return false;
    await recordSteps(tx, app, spanOf(task), [failedStep(app.clock.now(), attempt, fault, "retry", waitMs)]);
    return true;
  });

/** The task falls back to another contract, after an attempt that failed or because nobody was left for one. */
export const settleFallback = (
  app: App,
  { hold, task }: HeldTask,
  contract: ContractRow,
  last: FailedAttempt | undefined,
): Promise<boolean> =>
  persist(app, async (tx) => {
    if ((await endAttempt(tx, hold, last?.cause.usage ?? noUsage)) === 0) return false;
    const timeMs = app.clock.now();
    const { contract_id, version } = contract;
    const fallback: Step = {
      kind: TraceEventKind.FALLBACK,
      timeMs,
      message: `falls back to ${contract_id}@${version}`,
      details: { contract_id, contract_version: version },
    };
    const failed = last ? [failedStep(timeMs, last.attempt, last.cause, "fallback", 0)] : [];
    await recordSteps(tx, app, spanOf(task), [...failed, fallback]);
    return true;
  });

/** The task failed for good, at an attempt or between two. */
export const settleFailed = (app: App, held: HeldTask, fault: TaskFault, last?: FailedAttempt): Promise<boolean> =>
  persist(app, async (tx) => {
    const { hold, task } = held;
    const endMs = app.clock.now();
    const usage = last?.cause.usage ?? noUsage;
    const error = sealFault(app, hold.orgId, hold.taskId, fault);
    if ((await endTask(tx, hold, { state: TaskState.FAILED, output: null, error, usage, endMs })) === 0) return false;
    const steps: Step[] = last ? [failedStep(endMs, last.attempt, last.cause, "fail", 0)] : [];
    const failed = {
      kind: TraceEventKind.FAILED,
      timeMs: endMs,
      message: fault.message,
      details: { reason: fault.reason, message: fault.message, ...fault.metadata },
      targetAgentId: last?.attempt.agent.agent_id ?? task.target_agent_id,
      durationMs: endMs - task.create_ms,
    };
    await recordSteps(tx, app, spanOf(task), [...steps, failed]);
    await emitEnd(tx, app, task, task.contract_version, TaskState.FAILED, fault.reason, endMs);
    return true;
  });

const answered = (attempt: Attempt, output: JsonValue, usage: Usage) => ({
  attempt: attempt.number,
  output_bytes: jsonBytes(output),
  input_tokens: usage.inputTokens,
  output_tokens: usage.outputTokens,
});

const failedStep = (timeMs: number, attempt: Attempt, fault: AttemptFault, next: string, waitMs: number): Step => ({
  kind: TraceEventKind.ATTEMPT_FAILED,
  timeMs,
  message: `attempt ${attempt.number}: ${fault.message}`,
  details: {
    attempt: attempt.number,
    reason: fault.reason,
    message: fault.message,
    aftermath: fault.aftermath,
    next,
    wait_ms: waitMs,
    ...fault.metadata,
  },
  targetAgentId: attempt.agent.agent_id,
  durationMs: timeMs - attempt.startMs,
});

/** Tells the world how a task ended; the caller's agent is the one concerned. */
export const emitEnd = (
  tx: Tx,
  app: App,
  task: TaskSummaryRow,
  version: string,
  state: TaskState,
  reason: string,
  timeMs: number,
): Promise<void> =>
  emit(tx, app, {
    orgId: task.org_id,
    type: state === TaskState.COMPLETED ? "task.completed" : "task.failed",
    agentId: task.caller_agent_id,
    timeMs,
    traceId: task.trace_id,
    payload: {
      task_id: task.task_id,
      contract_id: task.contract_id,
      contract_version: version,
      state: stateName(state),
      reason,
    },
  });

export const stateName = (state: number): string =>
  Object.keys(TaskState).find((name) => TaskState[name as keyof typeof TaskState] === state) ?? String(state);
