/** Whoever asked for a task waits for it. */

import { TaskState } from "../../gen/moltwire/bus/v1/task_pb.ts";
import type { App } from "../app.ts";
import { notFound } from "../errors.ts";
import { findTask, isTerminal, type TaskRow, taskState } from "./task-store.ts";
import { taskTopic } from "./trace-store.ts";

/** A task's caller is woken by a bell, and after a lost connection all bells ring; this guards against what nobody thought of. */
const waitPollMs = 5_000;

/** When a task fails that has not ended, if its call has a deadline: a fifth of the time or 250 ms before that, so that the caller still hears how the task ended. */
export const deadlineOf = (nowMs: number, timeoutMs: number | undefined): number | null =>
  timeoutMs === undefined ? null : nowMs + timeoutMs - Math.min(250, Math.ceil(timeoutMs / 5));

/** Made once: an abort without a reason makes one, with a stack, each time. */
const nobodyWaits = new Error("nobody waits any more");

/** Waits until a task is terminal or waits for somebody's approval, wherever it runs. The signal ends the waiting, not the task. */
export async function ended(app: App, orgId: string, taskId: string, signal: AbortSignal): Promise<TaskRow> {
  const over = new AbortController();
  const waiting = AbortSignal.any([signal, over.signal, app.ending]);
  try {
    const bell = app.db.listen(taskTopic(taskId), waiting);
    for (;;) {
      const state = await taskState(app.db.query, orgId, taskId);
      if (state === undefined) throw notFound("task", taskId);
      if (isTerminal(state) || state === TaskState.AWAITING_APPROVAL)
        return (await findTask(app.db.query, orgId, taskId))!;
      await bell.wait(waitPollMs, waiting);
    }
  } finally {
    over.abort(nobodyWaits);
  }
}
