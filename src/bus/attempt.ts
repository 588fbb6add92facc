/** One attempt to have a task done by one agent. */
import type { JsonValue } from "@bufbuild/protobuf";
import type { Endpoint } from "../../gen/moltwire/bus/v1/agent_pb.ts";
import type { App } from "../app.ts";
import type { Fault } from "../errors.ts";
import { traceparent } from "../rpc/trace-context.ts";
import { type Answer, AttemptFault, adapterFor } from "./adapter.ts";
import { type AgentRow, endpointOf } from "./agent-store.ts";
import { settleBegin } from "./begin.ts";
import type { HeldTask } from "./conclude.ts";
import type { ContractRow } from "./contract-store.ts";
import { violationFault } from "./decide.ts";
import { maxTaskBytes, openPieces, type PieceMeter, type Pieces } from "./pieces.ts";
import { type Attempt, type FailedAttempt, settleCompleted, settlePieces } from "./settle.ts";
import type { TaskFault, TaskRow, TaskSummaryRow } from "./task-store.ts";
import { outputViolations } from "./violations.ts";

/** A task that this server works on. The signal says to let it go. */
export type Run = HeldTask & {
  readonly app: App;
  readonly input: JsonValue;
  readonly task: TaskRow;
  readonly signal: AbortSignal;
  /** The agent that was decided on when the task was accepted, a moment ago; empty: that was by another server, or long ago. */
  readonly decidedAgentId: string;
  /** What the task's agents have streamed. */
  readonly meter: PieceMeter;
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
  const adapter = adapterName(endpoint);
  const begun = await settleBegin(app, run, run.input, { agent, contract, adapter, timeoutMs, decided });
  if (!begun) throw new LetGo("no longer held");
  if ("rejected" in begun) return undefined;
  if ("refused" in begun) return begun;
  const { attempt } = begun;
  const pieces = openPieces(app.clock, run.meter, (batch, cut) =>
    settlePieces(app, run, agent, batch, cut ? maxTaskBytes : undefined),
  );
  try {
    // What the agent streamed is written before how the attempt ended.
    const answer = await call(run, attempt, endpoint, timeoutMs, pieces).finally(() => pieces.close());
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

/** As traces tell it. */
const adapterName = ({ kind }: Endpoint): string => (kind.case === "custom" ? kind.value.adapter : String(kind.case));

async function call(
  { app, task, input, signal }: Run,
  { number, contract, agent, startMs }: Attempt,
  endpoint: Endpoint,
  timeoutMs: number,
  pieces: Pieces,
): Promise<Answer> {
  const adapter = adapterFor(app.adapters, endpoint);
  if (!adapter)
    throw new AttemptFault(
      "ENDPOINT_REFUSED",
      "not-begun",
      `this server has no adapter for ${adapterName(endpoint)} endpoints`,
    );
  return adapter(
    endpoint,
    {
      taskId: task.task_id,
      attempt: number,
      contractId: contract.contract_id,
      contractVersion: contract.version,
      capability: contract.capability,
      input,
      timeoutMs,
      deadlineMs: startMs + timeoutMs,
      traceparent: traceparent({ traceId: task.trace_id, spanId: task.span_id }),
      orgId: task.org_id,
      agentId: agent.agent_id,
      // Most adapters do not ask.
      get outputSchema() {
        return JSON.parse(contract.output_schema) as JsonValue;
      },
      maxTokens: contract.max_tokens,
      progress: (fraction, message) => pieces.add({ case: "progress", value: { fraction, message } }),
      chunk: (text) => pieces.add({ case: "chunk", value: text }),
    },
    signal,
  );
}

type Late = { readonly app: Pick<App, "clock">; readonly task: TaskSummaryRow };

/** Timers count in a clock of their own, and can be this much early by the other one. */
const timerSlackMs = 1;

export const pastDeadline = ({ app, task }: Late): boolean =>
  task.deadline_ms !== null && app.clock.now() >= task.deadline_ms - timerSlackMs;

/** What a task ends with whose deadline passed while no agent had it. */
export const deadlineFault = ({ task }: Late, metadata: Record<string, string> = {}, why = ""): TaskFault => ({
  reason: "DEADLINE_EXCEEDED",
  message: `the task's deadline passed${why && `: ${why}`}`,
  metadata: { ...metadata, deadline_time: new Date(task.deadline_ms!).toISOString() },
});

/** What the task ends with when nothing follows a failed attempt. */
export function finalFault(run: Late, contract: ContractRow, { attempt, cause }: FailedAttempt): TaskFault {
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
