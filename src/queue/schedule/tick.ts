/** What fires schedules: each server looks when the next one is due, and no row is two servers' at a time. */
import type { App } from "../../app.ts";
import { type Fired, fire } from "./fire.ts";
import { limits } from "./limits.ts";
import type { ScheduleMetrics } from "./metrics.ts";
import { deleteOldRuns, dueSchedules, nextDue, postpone, type ScheduleRef } from "./store.ts";

/** How long a server sleeps at most before it asks again when the next schedule is due: others make some, and clocks are set. */
export const tickMs = 500;
/** How soon it asks again where another server was at all that was due. */
const contendedMs = 50;
/** Schedules that are looked at together, and at once. */
const batch = 128;
const together = 8;
/** How long a schedule waits after a fault of the server's own. */
const postponeMs = 60_000;
const oldBatch = 500;

/** Does what is due; gives in how many milliseconds something is due again, if that is soon. */
export async function tick(app: App, metrics: ScheduleMetrics): Promise<number> {
  while (!app.stopping.aborted) {
    const dueMs = await nextDue(app.db.query);
    const now = app.clock.now();
    if (dueMs === undefined || dueMs > now) return Math.min(tickMs, (dueMs ?? Number.MAX_SAFE_INTEGER) - now);
    if ((await fireAll(app, metrics, await dueSchedules(app.db.query, now, batch))) === 0) return contendedMs;
  }
  return tickMs;
}

/** Fires schedules, some at once; gives at how many this server was. */
async function fireAll(app: App, metrics: ScheduleMetrics, due: readonly ScheduleRef[]): Promise<number> {
  let done = 0;
  const left = due.values();
  const lane = async () => {
    for (const ref of left) {
      if (app.stopping.aborted) break;
      const fired = await fireOrPostpone(app, ref);
      if (!fired) continue;
      done++;
      metrics.looked(fired, app.clock.now());
    }
  };
  await Promise.all(Array.from({ length: together }, lane));
  return done;
}

const none: Fired = { times: [], missed: 0, skipped: 0 };

/** One that fails keeps no other from being fired, and is tried again later. */
async function fireOrPostpone(app: App, ref: ScheduleRef): Promise<Fired | undefined> {
  try {
    return await fire(app, ref);
  } catch (error) {
    if (app.stopping.aborted) return undefined;
    app.log.error(
      { err: error, scheduleId: ref.schedule_id },
      "a schedule could not be fired, and is tried again later",
    );
    const now = app.clock.now();
    await app.db.tx((tx) => postpone(tx, ref, now, now + postponeMs));
    return none;
  }
}

/** Forgets times that made a job longer ago than anybody can ask for; gives how many. */
export async function forgetOldRuns(app: App): Promise<void> {
  const before = app.clock.now() - limits.reachMs - 86_400_000;
  while (!app.stopping.aborted && (await app.db.tx((tx) => deleteOldRuns(tx, before, oldBatch))) === oldBatch);
}
