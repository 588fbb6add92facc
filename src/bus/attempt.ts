/** One attempt to have a task done by one agent. */
import type { JsonValue } from "@bufbuild/protobuf";
import type { App } from "../app.ts";
import type { Fault } from "../errors.ts";
import { traceparent } from "../rpc/trace-context.ts";
import { type Adapter, type Answer, AttemptFault } from "./adapter.ts";
import { type AgentRow, endpointOf } from "./agent-store.ts";
import type { HeldTask } from "./conclude.ts";
import type { ContractRow } from "./contract-store.ts";
import { violationFault } from "./decide.ts";
import { type Attempt, type FailedAttempt, settleBegin, settleCompleted } from "./settle.ts";
import type { TaskFault, TaskRow } from "./task-store.ts";
import { outputViolations } from "./violations.ts";

/** A task that this server works on. The signal says to let it go. */
export type Run = HeldTask & {
  readonly app: App;
  readonly input: JsonValue;
  readonly task: TaskRow;
  readonly signal: AbortSignal;
  /** The agent that was decided on when the task was accepted, a moment ago; empty: that was by another server, or long ago. */
  readonly decidedAgentId: string;
};

/** Policies let this agent not do it: nothing was begun. */
export type RefusedAttempt = { readonly refused: Fault };

/** Why a task is let go without an end: somebody else has it, or this server stops and a later start finds it. */
export class LetGo extends Error {
  override readonly name = "LetGo";
}

/**
 * Calls the agent and, if its answer is good, ends the task; gives what went wrong, or undefined when the task has ended. Throws
 * {@link CircuitOpen} when the agent cannot be called now.
 */
export async function attemptOnce(
  run: Run,
  contract: ContractRow,
  agent: AgentRow,
  decided: boolean,
): Promise<FailedAttempt | RefusedAttempt | undefined> {
  const { app, task } = run;
  run.signal.throwIfAborted();
  const endpoint = endpointOf(agent)!;
  const timeoutMs = Math.max(1, Math.min(contract.timeout_ms, (task.deadline_ms ?? Infinity) - app.clock.now()));
  const adapter = String(endpoint.kind.case);
  const begun = await settleBegin(app, run, run.input, { agent, contract, adapter, timeoutMs, decided });
  if (!begun) throw new LetGo("no longer held");
  if ("rejected" in begun) return undefined;
  if ("refused" in begun) return begun;
  const { attempt } = begun;
  try {
    const answer = await call(run, contract, attempt, endpoint, timeoutMs);
    const violations = outputViolations(app, contract, answer.output);
    if (violations.length > 0) {
      const { message, metadata } = violationFault("output", violations, contract);
      throw new AttemptFault("CONTRACT_VIOLATION", "unusable", `the agent's output breaks the contract: ${message}`, {
        metadata: { ...metadata },
        usage: answer.usage,
      });
    }
    if (!(await settleCompleted(app, run, attempt, answer))) throw new LetGo("no longer held");
    return undefined;
  } catch (error) {
    run.signal.throwIfAborted(); // let go: what became of the call is for whoever ends the task to say
    if (error instanceof AttemptFault) return { attempt, cause: error };
    throw error;
  }
}

function call(
  { app, task, input, signal }: Run,
  contract: ContractRow,
  attempt: Attempt,
  endpoint: NonNullable<ReturnType<typeof endpointOf>>,
  timeoutMs: number,
): Promise<Answer> {
  const adapter: Adapter | undefined = endpoint.kind.case && app.adapters[endpoint.kind.case];
  if (!adapter)
    throw new AttemptFault(
      "ENDPOINT_REFUSED",
      "not-begun",
      `this server has no adapter for ${String(endpoint.kind.case)} endpoints`,
    );
  return adapter(
    endpoint,
    {
      taskId: task.task_id,
      attempt: attempt.number,
      contractId: contract.contract_id,
      contractVersion: contract.version,
      capability: contract.capability,
      input,
      timeoutMs,
      deadlineMs: attempt.startMs + timeoutMs,
      traceparent: traceparent({ traceId: task.trace_id, spanId: task.span_id }),
    },
    signal,
  );
}

/** Timers count in a clock of their own, and can be this much early by the other one. */
const timerSlackMs = 1;

export const pastDeadline = ({ app, task }: Run): boolean =>
  task.deadline_ms !== null && app.clock.now() >= task.deadline_ms - timerSlackMs;

/** What a task ends with whose deadline passed while no agent had it. */
export const deadlineFault = ({ task }: Run, metadata: Record<string, string> = {}, why = ""): TaskFault => ({
  reason: "DEADLINE_EXCEEDED",
  message: `the task's deadline passed${why && `: ${why}`}`,
  metadata: { ...metadata, deadline_time: new Date(task.deadline_ms!).toISOString() },
});

/** What the task ends with when nothing follows a failed attempt. */
export function finalFault(run: Run, contract: ContractRow, { attempt, cause }: FailedAttempt): TaskFault {
  const late = pastDeadline(run);
  const { agent, number } = attempt;
  const metadata = { ...cause.metadata, agent_id: agent.agent_id, attempts: String(number) };
  if (cause.aftermath === "lost" && contract.repeatable === 0) {
    const message = `${cause.message}; the work may have been done, and ${contract.contract_id} is not repeatable`;
    return {
      reason: "OUTCOME_UNKNOWN",
      message,
      metadata: { ...metadata, cause: late ? "DEADLINE_EXCEEDED" : cause.reason },
    };
  }
  if (late) return deadlineFault(run, { ...metadata, cause: cause.reason }, cause.message);
  return { reason: cause.reason, message: cause.message, metadata };
}
