/** The work outside the transactions: calls agents for accepted tasks until each task has ended. */
import type { JsonValue } from "@bufbuild/protobuf";
import type { App } from "../app.ts";
import { Fault } from "../errors.ts";
import { traceparent } from "../rpc/trace-context.ts";
import { type Adapter, type Answer, AttemptFault } from "./adapter.ts";
import { type AgentRow, endpointOf } from "./agent-store.ts";
import { type ContractRef, type ContractRow, findContract } from "./contract-store.ts";
import { inputViolations, outputViolations, violationFault } from "./decide.ts";
import { resolveContract } from "./resolve.ts";
import { backoffMs, mayRepeat } from "./retry.ts";
import { route } from "./route.ts";
import {
  type Attempt,
  type HeldTask,
  settleAttemptFailed,
  settleBegin,
  settleCompleted,
  settleFailed,
  settleFallback,
} from "./settle.ts";
import { openJson, type TaskFault, type TaskRow } from "./task-store.ts";

/** Rung when a task is canceled, wherever it runs. */
export const cancelTopic = (taskId: string): string => `cancel:${taskId}`;

/** Why a task is let go without an end: somebody else has it, or this server stops and a later start finds it. */
class LetGo extends Error {
  override readonly name = "LetGo";
}

/** How trying one contract came out: the task has ended, or this contract gave nothing and the next may be tried. */
type Tried =
  | "ended"
  | {
      readonly fault: TaskFault;
      readonly attempt?: Attempt;
      readonly cause?: AttemptFault;
      readonly nextAllowed: boolean;
    };

type Run = HeldTask & {
  readonly app: App;
  readonly input: JsonValue;
  readonly task: TaskRow;
  readonly signal: AbortSignal;
};

export type Dispatcher = {
  /** Works on a task that this server holds; returns at once. */
  start(held: HeldTask & { readonly task: TaskRow }): void;
  /** Whose turn it is among equal agents: counts up. */
  turn(): number;
  /** How many tasks are being worked on. */
  running(): number;
  /** Waits until nothing is worked on, at most so long. */
  drain(graceMs: number): Promise<void>;
};

export function createDispatcher(app: App): Dispatcher {
  const runs = new Set<Promise<void>>();
  let turns = 0;
  const dispatcher: Dispatcher = {
    start(held) {
      const run = runTask(app, held, dispatcher.turn()).finally(() => runs.delete(run));
      runs.add(run);
    },
    turn: () => turns++,
    running: () => runs.size,
    async drain(graceMs) {
      const { promise: graceOver, resolve } = Promise.withResolvers<void>();
      const timer = app.clock.after(graceMs, resolve);
      await Promise.race([Promise.all(runs), graceOver]);
      timer.cancel();
    },
  };
  return dispatcher;
}

async function runTask(app: App, held: HeldTask & { readonly task: TaskRow }, turn: number): Promise<void> {
  const { task, hold } = held;
  const over = new AbortController();
  const signal = AbortSignal.any([over.signal, app.ending]);
  const canceled = app.db.listen(cancelTopic(task.task_id), over.signal);
  canceled.wait(2 ** 31 - 1, over.signal).then(
    () => over.abort(new LetGo("canceled")),
    () => {},
  );
  try {
    const input = openJson(app, hold.orgId, hold.taskId, "input", task.input);
    await tryContracts({ ...held, app, input, signal }, turn);
  } catch (error) {
    if (error instanceof LetGo || app.ending.aborted) return;
    app.log.error({ err: error, task_id: task.task_id, trace_id: task.trace_id }, "a task could not be worked on");
    await failByOwnFault(app, held);
  } finally {
    over.abort(new LetGo("over"));
  }
}

/** The server's own fault must not leave a task open for ever. Where even this fails, storage has, and the next start finds the task. */
async function failByOwnFault(app: App, held: HeldTask): Promise<void> {
  const fault: TaskFault = {
    reason: "INTERNAL",
    message: `internal fault; the server's log tells more under trace id ${held.task.trace_id}`,
    metadata: {},
  };
  try {
    await settleFailed(app, held, fault);
  } catch (error) {
    app.log.error({ err: error, task_id: held.task.task_id }, "a task could not be ended");
  }
}

/** The task's contract, then its fallbacks in turn; ends the task. */
async function tryContracts(run: Run, turn: number): Promise<void> {
  const { app, task } = run;
  const contract = await findContract(app.db.query, task.org_id, task.contract_id, task.contract_version);
  if (!contract) throw new Error(`contract ${task.contract_id}@${task.contract_version} of an accepted task is gone`);
  let tried = await tryContract(run, contract, turn, true);
  for (const ref of JSON.parse(contract.fallbacks) as ContractRef[]) {
    if (tried === "ended" || !tried.nextAllowed) break;
    const fallback = await usableFallback(run, ref);
    if (!fallback) continue;
    await settleFallback(app, run, fallback);
    const next = await tryContract(run, fallback, turn, false);
    tried = next === "ended" || next.attempt ? next : tried; // a fallback that found no agent says less than what was tried before
  }
  if (tried !== "ended") await settleFailed(app, run, tried.fault, tried.attempt, tried.cause);
}

/** The fallback's version, if it takes this input. */
async function usableFallback({ app, task, input }: Run, ref: ContractRef): Promise<ContractRow | undefined> {
  try {
    const contract = await resolveContract(app.db.query, task.org_id, ref);
    const fits =
      contract.deprecate_ms === null &&
      contract.approval_required === 0 &&
      inputViolations(app, contract, input).length === 0;
    return fits ? contract : undefined;
  } catch (error) {
    if (error instanceof Fault) return undefined;
    throw error;
  }
}

/**
 * Attempts by one contract. An agent that never had the task gives way to the next one at once; other failures are repeated, after a wait,
 * as often as the contract's retry policy says and as far as repeating does no harm.
 */
async function tryContract(run: Run, contract: ContractRow, turn: number, isFirst: boolean): Promise<Tried> {
  const { app, task } = run;
  const { candidates } = await route(app.db.query, task.org_id, contract, isFirst ? task.wanted_agent_id : "", turn);
  if (candidates.length === 0) {
    const fault: TaskFault = {
      reason: "NO_CAPABLE_AGENT",
      message: `no agent with the capability ${contract.capability} is left`,
      metadata: { capability: contract.capability },
    };
    return { fault, nextAllowed: true };
  }
  let retries = 0;
  for (let index = 0; ; index++) {
    const agent = candidates[index % candidates.length]!;
    const outcome = await attemptOnce(run, contract, agent);
    if (outcome === "ended") return "ended";
    const { attempt, cause } = outcome;
    const repeatable = mayRepeat(cause.aftermath, contract) && !pastDeadline(run);
    const untried = cause.aftermath === "not-begun" && index + 1 < candidates.length;
    if (!repeatable || (!untried && retries >= contract.max_retries)) {
      const hasFallback = isFirst && contract.fallbacks !== "[]";
      if (repeatable && hasFallback && !(await settleAttemptFailed(app, run, attempt, cause, "fallback", 0)))
        throw new LetGo("no longer held");
      return {
        fault: finalFault(run, contract, attempt, cause),
        attempt,
        nextAllowed: repeatable,
        ...(!(repeatable && hasFallback) && { cause }),
      };
    }
    const waitMs = untried ? 0 : backoffMs(++retries, contract, app.ids.chance());
    if (!(await settleAttemptFailed(app, run, attempt, cause, "retry", waitMs))) throw new LetGo("no longer held");
    if (waitMs > 0) await app.clock.sleep(waitMs, run.signal);
  }
}

async function attemptOnce(
  run: Run,
  contract: ContractRow,
  agent: AgentRow,
): Promise<"ended" | { readonly attempt: Attempt; readonly cause: AttemptFault }> {
  const { app, task } = run;
  run.signal.throwIfAborted();
  const endpoint = endpointOf(agent)!;
  const timeoutMs = Math.max(1, Math.min(contract.timeout_ms, (task.deadline_ms ?? Infinity) - app.clock.now()));
  const attempt = await settleBegin(app, run, agent, contract, String(endpoint.kind.case), timeoutMs);
  if (!attempt) throw new LetGo("no longer held");
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
    return "ended";
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

const pastDeadline = ({ app, task }: Run): boolean => task.deadline_ms !== null && app.clock.now() >= task.deadline_ms;

/** What the task ends with after its last attempt. */
function finalFault(run: Run, contract: ContractRow, { agent, number }: Attempt, cause: AttemptFault): TaskFault {
  const late = pastDeadline(run);
  const metadata = { ...cause.metadata, agent_id: agent.agent_id, attempts: String(number) };
  if (cause.aftermath === "lost" && contract.repeatable === 0) {
    const message = `${cause.message}; the work may have been done, and ${contract.contract_id} is not repeatable`;
    return {
      reason: "OUTCOME_UNKNOWN",
      message,
      metadata: { ...metadata, cause: late ? "DEADLINE_EXCEEDED" : cause.reason },
    };
  }
  if (late) {
    const deadlineTime = new Date(run.task.deadline_ms!).toISOString();
    return {
      reason: "DEADLINE_EXCEEDED",
      message: `the task's deadline passed: ${cause.message}`,
      metadata: { ...metadata, deadline_time: deadlineTime, cause: cause.reason },
    };
  }
  return { reason: cause.reason, message: cause.message, metadata };
}
