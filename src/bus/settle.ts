/** The transactions that move an accepted task: each changes it only while it is still held, and writes the steps with the change. */
import type { JsonValue } from "@bufbuild/protobuf";
import { TaskState } from "../../gen/moltwire/bus/v1/task_pb.ts";
import { TraceEventKind } from "../../gen/moltwire/bus/v1/trace_pb.ts";
import type { App } from "../app.ts";
import type { Tx } from "../db/db.ts";
import { tellPieces } from "../federation/gateway/echo.ts";
import { type Answer, type AttemptFault, noUsage, type Usage } from "./adapter.ts";
import type { AgentRow } from "./agent-store.ts";
import type { AttemptOutcome } from "./attempt-end.ts";
import type { Verdict } from "./circuit/circuit.ts";
import { verdictOf } from "./circuit/verdict.ts";
import { concludeAttempt, concludeTask, type HeldTask, spanOf } from "./conclude.ts";
import type { ContractRow } from "./contract-store.ts";
import type { Fallback } from "./fallback.ts";
import { jsonBytes } from "./payload.ts";
import { persist } from "./persist.ts";
import { type Piece, recordPieces } from "./piece-store.ts";
import { lockHeld, type TaskFault } from "./task-store.ts";
import { recordSteps, type Step } from "./trace-store.ts";

/** An attempt that gave nothing. */
export type FailedAttempt = {
  readonly attempt: Attempt;
  readonly cause: AttemptFault;
  /** What it tells of the agent, where that is not to be told from the cause. */
  readonly verdict?: Verdict;
};

/** One attempt that has begun. */
export type Attempt = {
  readonly number: number;
  readonly agent: Pick<AgentRow, "agent_id" | "name">;
  /** The same whole; undefined once it is gone. */
  readonly agentRow: AgentRow | undefined;
  readonly contract: ContractRow;
  readonly startMs: number;
  /** How long the agent was given. */
  readonly timeoutMs: number;
};

/** Writes pieces of what the agent streams, and, once a task has streamed all that is kept, a step that says so. */
export const settlePieces = (
  app: App,
  { hold, task }: HeldTask,
  agent: AgentRow,
  pieces: readonly Piece[],
  cutAtBytes: number | undefined,
): Promise<boolean> =>
  persist(app, async (tx) => {
    if (!(await lockHeld(tx, hold))) return false;
    const span = spanOf(task);
    await recordPieces(tx, app, span, agent.agent_id, pieces);
    await tellPieces(tx, app, task, pieces);
    if (cutAtBytes === undefined) return true;
    const message = `${agent.name} has streamed ${cutAtBytes} bytes; further pieces are left out`;
    await recordSteps(tx, app, span, [
      {
        kind: TraceEventKind.STREAM_CUT,
        timeMs: app.clock.now(),
        message,
        details: { limit_bytes: cutAtBytes },
        targetAgentId: agent.agent_id,
      },
    ]);
    return true;
  });

/** The task is done. */
export const settleCompleted = (app: App, held: HeldTask, attempt: Attempt, answer: Answer): Promise<boolean> =>
  persist(app, (tx) => completed(tx, app, held, attempt, answer));

/** As {@link settleCompleted}, in a transaction that there is. */
export function completed(tx: Tx, app: App, held: HeldTask, attempt: Attempt, answer: Answer): Promise<boolean> {
  const endMs = app.clock.now();
  const at = { timeMs: endMs, targetAgentId: attempt.agent.agent_id };
  const steps: Step[] = [
    {
      ...at,
      kind: TraceEventKind.ANSWERED,
      message: `${attempt.agent.name} answered${tokenText(answer.usage)}`,
      details: answered(attempt, answer.output, answer.usage),
      durationMs: endMs - attempt.startMs,
    },
    {
      ...at,
      kind: TraceEventKind.OUTPUT_CHECKED,
      message: "the output fits the contract",
      details: { violations: [] },
    },
    { ...at, kind: TraceEventKind.COMPLETED, message: "completed", durationMs: endMs - held.task.create_ms },
  ];
  const { output, usage } = answer;
  return concludeTask(tx, app, held, {
    state: TaskState.COMPLETED,
    endMs,
    output,
    attempt: { ...whoOf(attempt), usage, verdict: "success" },
    steps,
  });
}

/** An attempt failed and another one follows after a wait. */
export const settleAttemptFailed = (app: App, held: HeldTask, last: FailedAttempt, waitMs: number): Promise<boolean> =>
  persist(app, (tx) => attemptFailed(tx, app, held, last, "retry", waitMs));

/** As {@link settleAttemptFailed}, in a transaction that there is; `next` says whether a retry or a fallback follows. */
export function attemptFailed(
  tx: Tx,
  app: App,
  held: HeldTask,
  last: FailedAttempt,
  next: "retry" | "fallback",
  waitMs: number,
): Promise<boolean> {
  const endMs = app.clock.now();
  return concludeAttempt(tx, app, held, outcomeOf(last), endMs, [failedStep(endMs, last, next, waitMs)]);
}

/** The task falls back to another contract, after an attempt that failed or because nobody was left for one. */
export const settleFallback = (
  app: App,
  held: HeldTask,
  { contract, considered, verdicts }: Fallback,
  last: FailedAttempt | undefined,
): Promise<boolean> =>
  persist(app, (tx) => {
    const timeMs = app.clock.now();
    const { contract_id, version, capability } = contract;
    const details = { contract_id, contract_version: version, capability, considered, candidates: verdicts() };
    const message = `falls back to ${contract_id}@${version}`;
    const fallback: Step = { kind: TraceEventKind.FALLBACK, timeMs, message, details };
    const failed = last ? [failedStep(timeMs, last, "fallback", 0)] : [];
    return concludeAttempt(tx, app, held, last && outcomeOf(last), timeMs, [...failed, fallback]);
  });

/** The task failed for good, at an attempt or between two. */
export const settleFailed = (app: App, held: HeldTask, fault: TaskFault, last?: FailedAttempt): Promise<boolean> =>
  persist(app, (tx) => failed(tx, app, held, fault, last));

/** As {@link settleFailed}, in a transaction that there is. */
export function failed(tx: Tx, app: App, held: HeldTask, fault: TaskFault, last?: FailedAttempt): Promise<boolean> {
  const { task } = held;
  const endMs = app.clock.now();
  const steps: Step[] = last ? [failedStep(endMs, last, "fail", 0)] : [];
  const end = {
    kind: TraceEventKind.FAILED,
    timeMs: endMs,
    message: fault.message,
    details: { reason: fault.reason, message: fault.message, ...fault.metadata },
    targetAgentId: last?.attempt.agent.agent_id ?? task.target_agent_id,
    durationMs: endMs - task.create_ms,
  };
  const attempt = last && outcomeOf(last);
  return concludeTask(tx, app, held, { state: TaskState.FAILED, endMs, fault, attempt, steps: [...steps, end] });
}

const whoOf = ({ number, agent, agentRow }: Attempt) => ({ number, agentId: agent.agent_id, agent: agentRow });

const outcomeOf = ({ attempt, cause, verdict }: FailedAttempt): AttemptOutcome => ({
  ...whoOf(attempt),
  usage: cause.usage,
  unknown: cause.aftermath === "lost",
  fault: { reason: cause.reason, message: cause.message, metadata: cause.metadata },
  verdict: verdict ?? verdictOf(cause, attempt.timeoutMs, attempt.contract.timeout_ms),
});

const tokenText = ({ inputTokens, outputTokens, model }: Usage): string =>
  inputTokens + outputTokens === 0
    ? ""
    : `: ${inputTokens} tokens read, ${outputTokens} written${model && ` by ${model}`}`;

const answered = (attempt: Attempt, output: JsonValue, usage: Usage) => ({
  attempt: attempt.number,
  output_bytes: jsonBytes(output),
  ...used(usage),
});

/** What a step tells of an attempt's use. */
const used = ({ inputTokens, outputTokens, model }: Usage) => ({
  input_tokens: inputTokens,
  output_tokens: outputTokens,
  ...(model && { model }),
});

const failedStep = (timeMs: number, { attempt, cause: fault }: FailedAttempt, next: string, waitMs: number): Step => ({
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
    ...(fault.usage !== noUsage && used(fault.usage)),
    ...fault.metadata,
  },
  targetAgentId: attempt.agent.agent_id,
  durationMs: timeMs - attempt.startMs,
});
