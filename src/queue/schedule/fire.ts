/** One look at a schedule that is due: one transaction takes its times, makes their jobs and sets its next time. */
import { Overlap } from "../../../gen/moltwire/queue/v1/schedule_pb.ts";
import type { App } from "../../app.ts";
import type { Tx } from "../../db/db.ts";
import { Fault, Refused } from "../../errors.ts";
import { authorize } from "../access.ts";
import { queueOf } from "../submit.ts";
import { type Due, dueNow } from "./due.ts";
import { makeJobs } from "./jobs.ts";
import { timingOf } from "./settings.ts";
import { standingFault } from "./standing.ts";
import {
  hasUnfinished,
  jobOf,
  lockDue,
  type ScheduleRef,
  type ScheduleRow,
  sealError,
  takeTimes,
  updateProgress,
} from "./store.ts";

/** What came of a look: the nominal times that made a job, and how many made none. */
export type Fired = { readonly times: readonly number[]; readonly missed: number; readonly skipped: number };

/** Why the times make no job. */
class Refusal {
  readonly fault: Fault;
  constructor(fault: Fault) {
    this.fault = fault;
  }
}

/**
 * Does what is due of one schedule; undefined when nothing is, or another server is at it. What refuses the jobs lets their times pass as missed, in a transaction
 * of its own, since the one that found out is undone.
 */
export async function fire(app: App, ref: ScheduleRef): Promise<Fired | undefined> {
  try {
    return await app.db.tx((tx) => fireIn(tx, app, ref, undefined));
  } catch (error) {
    if (!(error instanceof Refusal)) throw error;
    return app.db.tx((tx) => fireIn(tx, app, ref, error.fault));
  }
}

async function fireIn(tx: Tx, app: App, ref: ScheduleRef, refused: Fault | undefined): Promise<Fired | undefined> {
  const now = app.clock.now();
  const row = await lockDue(tx, ref, now);
  if (!row || row.next_ms === null) return undefined;
  const { misfire, catch_up_ms: catchUpMs, next_ms: nextMs } = row;
  const due = dueNow({ ...timingOf(row), misfire, catchUpMs, nextMs }, now);
  const fault = refused ?? (due.times.length > 0 ? await refusalOf(tx, app, row, now) : undefined);
  if (fault) {
    await updateProgress(tx, missedAll(app, row, due, fault));
    return { times: [], missed: due.missed + due.times.length, skipped: 0 };
  }
  const { wanted, skipped } = await allowed(tx, row, due.times);
  const times = await takeTimes(tx, ref, wanted);
  const trace = { traceId: app.ids.trace(), spanId: app.ids.span() };
  const jobs = await orRefused(makeJobs(tx, app, row, { nominalsMs: times, jittered: true, trace, now }));
  const last = jobs.at(-1);
  await updateProgress(tx, {
    ...row,
    ...progress(due),
    missed_count: row.missed_count + due.missed,
    skipped_count: row.skipped_count + skipped,
    run_count: row.run_count + jobs.length,
    ...(last && {
      last_run_ms: now,
      last_job_id: last.job_id,
      last_nominal_ms: Math.max(row.last_nominal_ms ?? 0, times.at(-1)!),
      last_error: null,
    }),
  });
  return { times, missed: due.missed, skipped };
}

const progress = ({ seenMs, nextMs }: Due) => ({ seen_ms: seenMs, next_ms: nextMs ?? null, due_ms: nextMs ?? null });

const missedAll = (app: App, row: ScheduleRow, due: Due, { reason, message }: Fault): ScheduleRow => ({
  ...row,
  ...progress(due),
  missed_count: row.missed_count + due.missed + due.times.length,
  last_error: sealError(app, row, { reason, message, nominalMs: due.times.at(-1) ?? due.seenMs }),
});

/** Why the agent may not submit the jobs now; what the policies decided against it is kept. */
async function refusalOf(tx: Tx, app: App, row: ScheduleRow, now: number): Promise<Fault | undefined> {
  const fault = await standingFault(tx, row, now);
  if (fault) return fault;
  const asking = { orgId: row.org_id, agentId: row.agent_id, now, traceId: app.ids.trace() };
  try {
    await authorize(tx, app, asking, "enqueue_job", [queueOf(jobOf(row))]);
    return undefined;
  } catch (error) {
    if (error instanceof Refused) return error;
    throw error;
  }
}

/** The times that may make a job: with SKIP only the first, and that only when no job of the schedule is unfinished. */
async function allowed(
  tx: Tx,
  row: ScheduleRow,
  times: readonly number[],
): Promise<{ wanted: readonly number[]; skipped: number }> {
  if (row.overlap !== Overlap.SKIP || times.length === 0) return { wanted: times, skipped: 0 };
  const wanted = (await hasUnfinished(tx, row)) ? [] : times.slice(0, 1);
  return { wanted, skipped: times.length - wanted.length };
}

/** What refuses jobs, told from what fails and is tried again. */
const refusals: ReadonlySet<string> = new Set(["QUOTA_EXCEEDED", "KEY_DROPPED"]);

/** What refuses jobs undoes the transaction, and the times have passed all the same. */
async function orRefused<T>(making: Promise<T>): Promise<T> {
  try {
    return await making;
  } catch (error) {
    throw error instanceof Fault && refusals.has(error.reason) ? new Refusal(error) : error;
  }
}
