/** The work outside the transactions: calls agents for accepted tasks until each task has ended. */
import { TaskState } from "../../gen/moltwire/bus/v1/task_pb.ts";
import type { App } from "../app.ts";
import { openSlots, type Slots } from "../egress/slots.ts";
import { Fault } from "../errors.ts";
import { type AgentRow, endpointOf, pulls, urlOf } from "./agent-store.ts";
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
import { followUp, nothingTried, type Tried } from "./retry.ts";
import { type Candidates, candidatesFor, stillFit } from "./route.ts";
import { parkTask } from "./serve/park.ts";
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

/** Where the work on a task goes on that an agent that pulls had: at a further attempt under this contract, or after it. */
export type Resume = {
  readonly contract: ContractRow;
  readonly tried: Tried;
  readonly waitMs: number;
  /** The contract gave nothing, for this; the failed attempt is written down. */
  readonly failure?: TaskFault;
  /** Nobody fetched it in the time it waited. */
  readonly unfetched?: boolean;
};

/** A task to work on, and whose turn it is among the agents that can do it. */
export type Job = HeldTask & {
  readonly task: TaskRow;
  readonly turn: number;
  readonly decidedAgentId?: string;
  readonly resume?: Resume;
};

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
    const run = { decidedAgentId: "", ...job, app, input, signal, meter: newMeter() };
    await tryContracts(hands, run, job.turn, job.resume);
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

/** The task's contract, then its fallbacks in turn; ends the task. Goes on where `resume` says. */
async function tryContracts(hands: Hands, run: Run, turn: number, resume?: Resume): Promise<void> {
  const { app, task } = run;
  const contract = await findContract(app.db.query, task.org_id, task.contract_id, task.contract_version);
  if (!contract) throw new Error(`contract ${task.contract_id}@${task.contract_version} of an accepted task is gone`);
  const wish = wishOf(run, turn);
  const begin = resume ?? { contract, tried: nothingTried(turn, 0), waitMs: 0 };
  let failure = await beginContract(hands, run, begin);
  const approved = task.approval_id !== "";
  for (const [index, ref] of (JSON.parse(contract.fallbacks) as ContractRef[]).entries()) {
    if (!failure?.nextAllowed || approved) break; // the approval was for this contract and this agent
    if (index < begin.tried.step) continue;
    const fallback = await usableFallback(app, app.db.query, { ...wish, now: app.clock.now() }, ref);
    if (!fallback) continue;
    if (!(await settleFallback(app, run, fallback.contract, failure.last))) throw new LetGo("no longer held");
    failure = await tryContract(hands, run, fallback.contract, fallback, nothingTried(turn, index + 1));
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

/** What the task asks of a contract. */
const wishOf = ({ task, input }: Run, turn: number) => ({
  orgId: task.org_id,
  input,
  wantedAgentId: boundAgent(task),
  turn,
  taskId: task.task_id,
});

/** The contract with which the work begins or goes on. */
async function beginContract(hands: Hands, run: Run, begin: Resume): Promise<Failure | undefined> {
  const { app } = run;
  const { contract, tried, waitMs } = begin;
  if (begin.failure) return { fault: begin.failure, nextAllowed: true };
  const found = await candidatesFor(app.db.query, { ...wishOf(run, tried.turn), contract, now: app.clock.now() });
  if (begin.unfetched && tried.agent >= found.candidates.length)
    return { fault: notFetched(contract), nextAllowed: true };
  if (waitMs > 0) await app.clock.sleep(untilDeadline(run, waitMs), run.signal);
  return tryContract(hands, run, contract, decidedFirst(found, run.decidedAgentId), tried);
}

/**
 * Attempts by one contract, as {@link followUp} says. An agent whose circuit has opened meanwhile is passed over, as is one that policies
 * refuse. A task whose agent pulls is left to that agent.
 */
async function tryContract(
  hands: Hands,
  run: Run,
  contract: ContractRow,
  { candidates, blocked }: Candidates,
  from: Tried,
): Promise<Failure | undefined> {
  const { app } = run;
  const shut = new Map(blocked.map((one) => [one.agent.agent_id, one]));
  let refused: Fault | undefined;
  const nobody = (): Failure =>
    refused && shut.size === 0
      ? { fault: refused, nextAllowed: true, rejected: true }
      : { fault: nobodyLeft(app, contract, [...shut.values()]), nextAllowed: true };
  if (candidates.length === 0) return nobody();
  let tried = from;
  let gone = 0;
  for (;;) {
    const chosen = candidates[tried.agent % candidates.length]!;
    const release = await slotOf(hands, run, chosen);
    // Waiting can take long: the agent may have been changed, disabled or deleted meanwhile.
    const agent = await stillFit(app.db.query, chosen, contract);
    if (pastDeadline(run)) {
      release?.();
      return { fault: deadlineFault(run), nextAllowed: false };
    }
    const first = tried.agent === 0 && contract.contract_id === run.task.contract_id;
    const decided = first && chosen.agent_id === run.decidedAgentId;
    const last = await attemptUnlessShut(run, contract, agent, decided, tried).finally(release);
    if (!last) return undefined;
    shut.delete(chosen.agent_id);
    if (last === "gone" || last instanceof CircuitOpen || "refused" in last) {
      if (last instanceof CircuitOpen) shut.set(chosen.agent_id, last);
      else if (last !== "gone") ({ refused } = last);
      if (++gone === candidates.length) return nobody();
      tried = { ...tried, agent: tried.agent + 1 };
      continue;
    }
    gone = 0;
    const { aftermath } = last.cause;
    const late = pastDeadline(run);
    const next = followUp({ aftermath, contract, tried, agents: candidates.length, late, chance: app.ids.chance });
    if (next.kind !== "again")
      return { fault: finalFault(run, contract, last), last, nextAllowed: next.kind === "next contract" };
    if (!(await settleAttemptFailed(app, run, last, next.waitMs))) throw new LetGo("no longer held");
    if (next.waitMs > 0) await app.clock.sleep(untilDeadline(run, next.waitMs), run.signal);
    tried = next.tried;
  }
}

/** The attempt, or why there was none. */
async function attemptUnlessShut(
  run: Run,
  contract: ContractRow,
  agent: AgentRow | undefined,
  decided: boolean,
  tried: Tried,
): Promise<FailedAttempt | RefusedAttempt | CircuitOpen | "gone" | undefined> {
  if (!agent) return "gone";
  if (pulls(agent)) {
    const parked = await parkTask(run.app, run, agent, contract, tried, decided);
    if (parked && "refused" in parked) return parked;
    throw new LetGo("left to an agent that pulls, ended, or no longer held");
  }
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

const notFetched = ({ capability }: ContractRow): TaskFault => ({
  reason: "AGENT_UNREACHABLE",
  message: `no instance of an agent with the capability ${capability} has fetched it with Serve; the work was not begun`,
  metadata: { capability },
});

function nobodyLeft(app: App, { capability }: ContractRow, shut: readonly Blocked[]): TaskFault {
  if (shut.length > 0) return circuitFault(shut, app.clock.now());
  return {
    reason: "NO_CAPABLE_AGENT",
    message: `no agent with the capability ${capability} is left`,
    metadata: { capability },
  };
}
