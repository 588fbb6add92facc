/** The work outside the transactions: calls agents for accepted tasks until each task has ended. */
import { TaskState } from "../../gen/moltwire/bus/v1/task_pb.ts";
import type { App } from "../app.ts";
import { UnavailableError } from "../db/db.ts";
import { openSlots } from "../egress/slots.ts";
import { Fault } from "../errors.ts";
import { crossOver } from "../federation/gateway/cross-over.ts";
import { isAway } from "../federation/gateway/sides.ts";
import { LetGo } from "./attempt.ts";
import { cancelTopic } from "./cancel-topic.ts";
import type { HeldTask } from "./conclude.ts";
import { newMeter } from "./pieces.ts";
import { type Hands, type Resume, tryContracts } from "./pursue.ts";
import { settleFailed } from "./settle.ts";
import type { Accepted } from "./submit.ts";
import { isHeld, openJson, type TaskFault, type TaskRow } from "./task-store.ts";
import { createTurns, type Turns } from "./turns.ts";

/** How many tasks one server works on at once. */
const maxRunning = 10_000;
/** How many bytes of input they have in all: in memory an input takes some four times its bytes. */
const maxRunningBytes = 128 * 1_048_576;
/** How many of them are at one place at once, as many as egress lets out to it; the others wait here, and their attempts have not begun. */
export const maxPerPlace = 64;
/** Bells can be lost with a connection, so a task under way looks by itself now and then whether it is still wanted. */
const wantedPollMs = 30_000;

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
  const turns = createTurns();
  const dispatcher: Dispatcher = {
    start(job) {
      const { taskId } = job.hold;
      const bytes = job.task.input.byteLength;
      runningBytes += bytes;
      const work = isAway(job.task) ? goAcross(app, dispatcher, job) : runTask({ app, slots }, job);
      const run = work.finally(() => {
        runningBytes -= bytes;
        if (running.get(taskId) === run) running.delete(taskId);
      });
      running.set(taskId, run);
    },
    turns,
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
  return dispatcher;
}

/** A task for another organisation that waited for an approval of its own: it goes there, and the work on it begins. */
async function goAcross(app: App, dispatcher: Dispatcher, job: Job): Promise<void> {
  const { task, hold } = job;
  try {
    const input = openJson(app, hold.orgId, hold.taskId, "input", task.input);
    const turn = dispatcher.turns.take(task.target_org_id, task.contract_id);
    const work = await crossOver(app, job, input, turn);
    if (work) startAccepted(dispatcher, work);
  } catch (error) {
    if (error instanceof UnavailableError || app.ending.aborted) return;
    app.log.error(
      { err: error, task_id: task.task_id, trace_id: task.trace_id },
      "a task could not go to another organisation",
    );
    await failByOwnFault(app, job);
  }
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
    // Where storage was away for a question about the task, it is left: recovery takes up what this server holds and does not work on.
    if (error instanceof LetGo || error instanceof UnavailableError || app.ending.aborted) return;
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
