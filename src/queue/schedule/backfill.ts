import type { App } from "../../app.ts";
import type { Tx } from "../../db/db.ts";
import { badField } from "../../errors.ts";
import type { TraceContext } from "../../rpc/trace-context.ts";
import type { JobRow } from "../job-store.ts";
import { makeJobs } from "./jobs.ts";
import { limits } from "./limits.ts";
import { timingOf } from "./settings.ts";
import { type ScheduleRow, takenTimes, takeTimes, updateProgress } from "./store.ts";
import { timesAfter } from "./times.ts";

/** A stretch of the past, with its begin and without its end. */
export type Window = { readonly startMs: number; readonly endMs: number };

/** INVALID_REQUEST for a window that is empty, not past, or begins before what is remembered. */
export function checkWindow({ startMs, endMs }: Window, now: number): void {
  if (endMs <= startMs) throw badField("end_time", "must be after start_time");
  if (endMs > now) throw badField("end_time", "must not be after now: what is to come comes by itself");
  if (startMs < now - limits.reachMs)
    throw badField("start_time", `at most ${limits.reachMs / 86_400_000} days ago: it is not known what ran before`);
}

/** Makes jobs for the first times of a window that made none. The caller has locked the schedule. */
export async function backfill(
  tx: Tx,
  app: App,
  schedule: ScheduleRow,
  window: Window,
  maxJobs: number,
  { trace, now }: { readonly trace: TraceContext; readonly now: number },
): Promise<{ jobs: JobRow[]; more: boolean }> {
  const open = openTimes(schedule, window, await takenTimes(tx, schedule, window.startMs, window.endMs), maxJobs + 1);
  const times = await takeTimes(tx, schedule, open.slice(0, maxJobs));
  const jobs = await makeJobs(tx, app, schedule, { nominalsMs: times, jittered: false, trace, now });
  const last = jobs.at(-1);
  if (last) {
    await updateProgress(tx, {
      ...schedule,
      run_count: schedule.run_count + jobs.length,
      last_run_ms: now,
      last_job_id: last.job_id,
      last_nominal_ms: Math.max(schedule.last_nominal_ms ?? 0, times.at(-1)!),
    });
  }
  return { jobs, more: open.length > maxJobs };
}

/** The first times of the window that are not taken. */
function openTimes(schedule: ScheduleRow, window: Window, taken: ReadonlySet<number>, limit: number): number[] {
  const { cron, zone, startMs, endMs } = timingOf(schedule);
  const open: number[] = [];
  for (const timeMs of timesAfter(cron, zone, Math.max(window.startMs, startMs ?? 0) - 1)) {
    if (timeMs >= window.endMs || timeMs > (endMs ?? timeMs) || open.length === limit) break;
    if (!taken.has(timeMs)) open.push(timeMs);
  }
  return open;
}
