import type { App } from "../../app.ts";
import { lockTask } from "./carry-out.ts";
import { dueTasks } from "./store.ts";

/** How often what is due is looked for. Nobody waits for it but the credits: tasks are read as time has made them. */
export const sweepMarketMs = 1_000;

const batch = 100;

/** Writes down what time has made of tasks. Any number of replicas may do this at once; one task that fails keeps no other waiting. */
export async function sweepMarket(app: App): Promise<void> {
  let after = { due_ms: -1, seq: 0 };
  while (!app.stopping.aborted) {
    const due = await dueTasks(app.db.query, app.clock.now(), after, batch);
    for (const { task_id: taskId } of due) {
      const at = () => ({ now: app.clock.now(), traceId: app.ids.trace() });
      await app.db
        .tx((tx) => lockTask(tx, app, taskId, at()))
        .catch((error: unknown) => app.log.error({ err: error, task_id: taskId }, "a marketplace task was not swept"));
    }
    if (due.length < batch) return;
    after = due.at(-1)!;
  }
}
