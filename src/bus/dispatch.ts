/** The work outside the transactions: calls agents for accepted tasks until each task has ended. */
import { TaskState } from "../../gen/moltwire/bus/v1/task_pb.ts";
import type { App } from "../app.ts";
import { openSlots, type Slots } from "../egress/slots.ts";
import { Fault } from "../errors.ts";
import { type AgentRow, endpointOf, urlOf } from "./agent-store.ts";
import {
  attemptOnce,
  deadlineFault,
  finalFault,
  LetGo,
  pastDeadline,
  type RefusedAttempt,
  type Run,
} from "./attempt.ts";
import { CircuitOpen } from "./circuit/conduct.ts";
import { type Blocked, circuitFault } from "./circuit/refusal.ts";
import type { HeldTask } from "./conclude.ts";
import { type ContractRef, type ContractRow, findContract } from "./contract-store.ts";
import { usableFallback } from "./fallback.ts";
import { newMeter } from "./pieces.ts";
import { backoffMs, mayRepeat } from "./retry.ts";
import { type Candidates, candidatesFor, stillFit } from "./route.ts";
import { type FailedAttempt, settleAttemptFailed, settleFailed, settleFallback, settleRejected } from "./settle.ts";
import type { Accepted } from "./submit.ts";
import { isHeld, openJson, type TaskFault, type TaskRow } from "./task-store.ts";
import { createTurns, type Turns } from "./turns.ts";

/** Rung when a task is canceled, wherever it runs. */
export const cancelTopic = (taskId: string): string => `cancel:${taskId}`;

/** How many tasks one server works on at once. */
const maxRunning = 10_000;
/** How many bytes of input they have in all: in memory an input takes some four times its bytes. */
const maxRunningBytes = 128 * 1_048_576;
/** How many of them are at one place at once, as many as egress lets out to it; the others wait here, and their attempts have not begun. */
export const maxPerPlace = 64;
/** Bells can be lost with a connection, so a task under way looks by itself now and then whether it is still wanted. */
const wantedPollMs = 30_000;

/** This contract gave nothing. Not set: the task has ended. */
type Failure = {
  readonly fault: TaskFault;
  /** The failed attempt, unless it is written down already or there was none. */
  readonly last?: FailedAttempt;
  readonly nextAllowed: boolean;
  /** Nothing was begun: policies refuse whoever is left. */
  readonly rejected?: boolean;
};

/** A task to work on, and whose turn it is among the agents that can do it. */
export type Job = HeldTask & { readonly task: TaskRow; readonly turn: number; readonly decidedAgentId?: string };

export type Dispatcher = {
  /** Works on a task that this server holds; returns at once. */
  start(job: Job): void;
  readonly turns: Turns;
  /** Whether it takes more tasks. */
  hasRoom(): boolean;
  /** Whether the task is being worked on here. */
  runs(taskId: string): boolean;
  /** Waits until nothing is worked on, at most so long. */
  drain(graceMs: number): Promise<void>;
};

/** OVERLOADED when the dispatcher takes no more tasks: asked before one is accepted. */
export function checkRoom(dispatcher: Dispatcher): void {
  if (!dispatcher.hasRoom())
    throw new Fault("OVERLOADED", "this server works on as many tasks as it can", {}, { retryAfterMs: 1_000 });
}

/** Works on a task that was accepted a moment ago, unless it waits for somebody's approval. */
export function startAccepted(dispatcher: Dispatcher, { task, turn, decidedAgentId }: Accepted): void {
  if (task.state === TaskState.AWAITING_APPROVAL) return;
  const hold = { orgId: task.org_id, taskId: task.task_id, token: task.lease_token };
  dispatcher.start({ hold, task, turn, decidedAgentId });
}

type Hands = { readonly app: App; readonly slots: Slots };

export function createDispatcher(app: App): Dispatcher {
  const running = new Map<string, Promise<void>>();
  let runningBytes = 0;
  const slots = openSlots({ perKey: maxPerPlace, waitingPerKey: 2 * maxRunning, total: 4 * maxRunning });
  for (const { name, help, read } of [
    { name: "moltwire_running_tasks", help: "Tasks this process works on", read: () => running.size },
    { name: "moltwire_running_tasks_limit", help: "The most tasks it works on", read: () => maxRunning },
    { name: "moltwire_running_bytes", help: "Bytes of their inputs", read: () => runningBytes },
    { name: "moltwire_running_bytes_limit", help: "The most bytes of inputs", read: () => maxRunningBytes },
  ])
    app.metrics.gauge({ name, help, read });
  return {
    start(job) {
      const { taskId } = job.hold;
      const bytes = job.task.input.byteLength;
      runningBytes += bytes;
      const run = runTask({ app, slots }, job).finally(() => {
        runningBytes -= bytes;
        if (running.get(taskId) === run) running.delete(taskId);
      });
      running.set(taskId, run);
    },
    turns: createTurns(),
    hasRoom: () => running.size < maxRunning && runningBytes < maxRunningBytes,
    runs: (taskId) => running.has(taskId),
    async drain(graceMs) {
      const { promise: graceOver, resolve } = Promise.withResolvers<"over">();
      const timer = app.clock.after(graceMs, () => resolve("over"));
      // Again and again: a call that was let in before the stop may start one while others are waited for.
      while (running.size > 0 && (await Promise.race([Promise.all(running.values()), graceOver])) !== "over");
      timer.cancel();
    },
  };
}

async function runTask(hands: Hands, job: Job): Promise<void> {
  const { app } = hands;
  const { task, hold } = job;
  const over = new AbortController();
  const signal = AbortSignal.any([over.signal, app.ending]);
  letGoWhenUnwanted(app, job, over).catch(() => {});
  try {
    const input = openJson(app, hold.orgId, hold.taskId, "input", task.input);
    await tryContracts(hands, { decidedAgentId: "", ...job, app, input, signal, meter: newMeter() }, job.turn);
  } catch (error) {
    if (error instanceof LetGo || app.ending.aborted) return;
    app.log.error({ err: error, task_id: task.task_id, trace_id: task.trace_id }, "a task could not be worked on");
    await failByOwnFault(app, job);
  } finally {
    over.abort(new LetGo("over"));
  }
}

/** Aborts once the task has been canceled or taken over. A bell only says to look: after a lost connection all of them ring. */
async function letGoWhenUnwanted(app: App, { hold }: HeldTask, over: AbortController): Promise<void> {
  const bell = app.db.listen(cancelTopic(hold.taskId), over.signal);
  do await bell.wait(wantedPollMs, over.signal);
  while (await isHeld(app.db.query, hold).catch(() => true));
  over.abort(new LetGo("canceled, or taken over"));
}

/** The server's own fault must not leave a task open for ever. Where even this fails, storage has, and recovery finds the task later. */
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
async function tryContracts(hands: Hands, run: Run, turn: number): Promise<void> {
  const { app, task } = run;
  const contract = await findContract(app.db.query, task.org_id, task.contract_id, task.contract_version);
  if (!contract) throw new Error(`contract ${task.contract_id}@${task.contract_version} of an accepted task is gone`);
  const wish = {
    orgId: task.org_id,
    input: run.input,
    wantedAgentId: boundAgent(task),
    turn,
    taskId: task.task_id,
  };
  const found = await candidatesFor(app.db.query, { ...wish, contract, now: app.clock.now() });
  let failure = await tryContract(hands, run, contract, decidedFirst(found, run.decidedAgentId));
  const approved = task.approval_id !== "";
  for (const ref of JSON.parse(contract.fallbacks) as ContractRef[]) {
    if (!failure?.nextAllowed || approved) break; // the approval was for this contract and this agent
    const fallback = await usableFallback(app, app.db.query, { ...wish, now: app.clock.now() }, ref);
    if (!fallback) continue;
    if (!(await settleFallback(app, run, fallback.contract, failure.last))) throw new LetGo("no longer held");
    failure = await tryContract(hands, run, fallback.contract, fallback);
  }
  if (!failure) return;
  const { fault, last, rejected } = failure;
  const ended = rejected ? await settleRejected(app, run, fault) : await settleFailed(app, run, fault, last);
  if (!ended) throw new LetGo("no longer held");
}

/** The agent that was decided on goes first: those before it were refused by a policy. */
const decidedFirst = ({ candidates, ...rest }: Candidates, agentId: string): Candidates => {
  const { first = [], others = [] } = Object.groupBy(candidates, (one) =>
    one.agent_id === agentId ? "first" : "others",
  );
  return { candidates: [...first, ...others], ...rest };
};

/** The only agent that may do it: the one that was approved, or the one that the caller insists on. */
const boundAgent = (task: TaskRow): string => (task.approval_id ? task.target_agent_id : task.wanted_agent_id);

/**
 * Attempts by one contract. An agent that never had the task gives way to the next one at once; other failures are repeated, after a wait,
 * as often as the contract's retry policy says and as far as repeating does no harm. An agent whose circuit has opened meanwhile is passed
 * over.
 */
async function tryContract(
  hands: Hands,
  run: Run,
  contract: ContractRow,
  { candidates, blocked }: Candidates,
): Promise<Failure | undefined> {
  const { app } = run;
  const shut = new Map(blocked.map((one) => [one.agent.agent_id, one]));
  let refused: Fault | undefined;
  const nobody = (): Failure =>
    refused && shut.size === 0
      ? { fault: refused, nextAllowed: true, rejected: true }
      : { fault: nobodyLeft(app, contract, [...shut.values()]), nextAllowed: true };
  if (candidates.length === 0) return nobody();
  let retries = 0;
  let gone = 0;
  for (let index = 0; ; index++) {
    const chosen = candidates[index % candidates.length]!;
    const release = await slotOf(hands, run, chosen);
    // Waiting can take long: the agent may have been changed, disabled or deleted meanwhile.
    const agent = await stillFit(app.db.query, chosen, contract);
    if (pastDeadline(run)) {
      release?.();
      return { fault: deadlineFault(run), nextAllowed: false };
    }
    const decided =
      index === 0 && chosen.agent_id === run.decidedAgentId && contract.contract_id === run.task.contract_id;
    const last = await attemptUnlessShut(run, contract, agent, decided).finally(release);
    if (!last) return undefined;
    shut.delete(chosen.agent_id);
    if (last === "gone" || last instanceof CircuitOpen || "refused" in last) {
      if (last instanceof CircuitOpen) shut.set(chosen.agent_id, last);
      else if (last !== "gone") ({ refused } = last);
      if (++gone === candidates.length) return nobody();
      continue;
    }
    gone = 0;
    const { cause } = last;
    const nextAllowed = mayRepeat(cause.aftermath, contract) && !pastDeadline(run);
    const untried = cause.aftermath === "not-begun" && index + 1 < candidates.length;
    if (!nextAllowed || (!untried && retries >= contract.max_retries))
      return { fault: finalFault(run, contract, last), last, nextAllowed };
    const waitMs = untried ? 0 : backoffMs(++retries, contract, app.ids.chance());
    if (!(await settleAttemptFailed(app, run, last, waitMs))) throw new LetGo("no longer held");
    if (waitMs > 0) await app.clock.sleep(untilDeadline(run, waitMs), run.signal);
  }
}

/** The attempt, or why there was none. */
async function attemptUnlessShut(
  run: Run,
  contract: ContractRow,
  agent: AgentRow | undefined,
  decided: boolean,
): Promise<FailedAttempt | RefusedAttempt | CircuitOpen | "gone" | undefined> {
  if (!agent) return "gone";
  try {
    return await attemptOnce(run, contract, agent, decided);
  } catch (error) {
    if (error instanceof CircuitOpen) return error;
    throw error;
  }
}

/** Waits until the agent's place takes one more, or undefined when the deadline came first. */
async function slotOf({ slots }: Hands, run: Run, agent: AgentRow): Promise<(() => void) | undefined> {
  const { app, signal } = run;
  const waiting = new AbortController();
  const timer = app.clock.after(untilDeadline(run, 2 ** 31 - 1), () => waiting.abort());
  try {
    return await slots.take(placeOf(agent), AbortSignal.any([signal, waiting.signal]));
  } catch (error) {
    signal.throwIfAborted();
    if (waiting.signal.aborted) return undefined;
    throw error;
  } finally {
    timer.cancel();
  }
}

/** Agents behind one server share it. */
function placeOf(agent: AgentRow): string {
  const endpoint = endpointOf(agent);
  return (endpoint && URL.parse(urlOf(endpoint)?.url ?? "")?.origin) ?? agent.agent_id;
}

/** So long, or as long as the deadline is away. */
const untilDeadline = ({ app, task }: Run, ms: number): number =>
  Math.max(0, Math.min(ms, (task.deadline_ms ?? Infinity) - app.clock.now()));

function nobodyLeft(app: App, { capability }: ContractRow, shut: readonly Blocked[]): TaskFault {
  if (shut.length > 0) return circuitFault(shut, app.clock.now());
  return {
    reason: "NO_CAPABLE_AGENT",
    message: `no agent with the capability ${capability} is left`,
    metadata: { capability },
  };
}
