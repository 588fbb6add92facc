/** What happens to jobs by themselves: their time comes, their lease ends, they are no longer kept. Any number of replicas may do this at once. */
import { JobState } from "../../gen/moltwire/queue/v1/job_pb.ts";
import type { App } from "../app.ts";
import { join, type Queryable, sql, type Tx } from "../db/db.ts";
import { type Change, deleteOldChanges, recordChanges } from "./change-log.ts";
import { expireLease } from "./finish.ts";
import { type JobRow, jobColumns } from "./job-store.ts";
import { forgetIdle, type Move, minuteMs, tally } from "./tally.ts";

/** How often due jobs and ended leases are looked for. */
export const sweepQueuesMs = 500;

const dueBatch = 500;
const leaseBatch = 100;
const oldBatch = 500;
const keptMinutes = 61;

/** Makes due jobs claimable and ends leases that ran out. */
export async function sweepQueues(app: App): Promise<void> {
  await repeat(app, hasDue, promoteDue, dueBatch);
  await repeat(app, hasEndedLease, endLeases, leaseBatch);
}

/** Deletes jobs that ended long ago, with what belongs to them, and changes and counts of then; then the names of queues of which nothing is left to tell. */
export async function sweepOldJobs(app: App): Promise<void> {
  const keptMs = app.config.queueRetentionDays * 86_400_000;
  const touched: Touched = new Map();
  await repeat(app, always, (tx, now) => deleteOldJobs(tx, now - keptMs, touched), oldBatch);
  await repeat(app, always, (tx, now) => deleteOldChanges(tx, now - keptMs, oldBatch), oldBatch);
  await repeat(app, always, (tx, now) => deleteOldMinutes(tx, now, touched), oldBatch);
  for (const [orgId, queues] of touched) await app.db.tx((tx) => forgetIdle(tx, orgId, queues));
}

/** Queues, by organisation, from which something was deleted. */
type Touched = Map<string, Set<string>>;

function touch(touched: Touched, rows: readonly { readonly org_id: string; readonly queue: string }[]): void {
  for (const { org_id, queue } of rows) touched.set(org_id, (touched.get(org_id) ?? new Set()).add(queue));
}

type Look = (db: Queryable, now: number) => Promise<boolean>;
type Work = (tx: Tx, now: number, app: App) => Promise<number>;

/** Works in batches, one transaction each, until there is no whole one left. */
async function repeat(app: App, look: Look, work: Work, batch: number): Promise<void> {
  while (!app.stopping.aborted && (await look(app.db.query, app.clock.now()))) {
    if ((await app.db.tx((tx) => work(tx, app.clock.now(), app))) < batch) break;
  }
}

const always: Look = async () => true;

/** Whether a job's time has come. */
export const hasDue: Look = async (db, now) =>
  (await db.one(sql`select 1 as found from queue_job where state = 1 and run_ms + 0 <= ${now} limit 1`)) !== undefined;

/** Whether a lease has ended. */
export const hasEndedLease: Look = async (db, now) =>
  (await db.one(sql`select 1 as found from queue_job where state = 3 and lease_expire_ms <= ${now} limit 1`)) !==
  undefined;

const promoteDue: Work = async (tx, now, app) => {
  const jobs = await tx.all<JobRow>(sql`
    with due as materialized (
      select seq as due_seq from queue_job where state = 1 and run_ms + 0 <= ${now} order by run_ms + 0 limit ${dueBatch} ${tx.dialect.skipLocked})
    update queue_job set state = 2, ready_ms = run_ms from due where seq = due_seq returning ${jobColumns}`);
  await recordAll(
    tx,
    app,
    jobs.map((job) => ({ job, from: JobState.SCHEDULED })),
    now,
  );
  return jobs.length;
};

const endLeases: Work = async (tx, now, app) => {
  const jobs = await tx.all<JobRow>(sql`
    select ${jobColumns} from queue_job where state = 3 and lease_expire_ms <= ${now}
    order by lease_expire_ms limit ${leaseBatch} ${tx.dialect.skipLocked}`);
  const changes: Change[] = [];
  for (const job of jobs) changes.push(await expireLease(tx, app, job, now));
  await recordAll(tx, app, changes, now);
  return jobs.length;
};

/** Organisation by organisation, in the order of their ids: two sweeps wait for one another's counts in the same order. */
async function recordAll(tx: Tx, app: App, changes: readonly Change[], now: number): Promise<void> {
  for (const [orgId, own] of byOrg(changes, ({ job }) => job.org_id)) await recordChanges(tx, app, orgId, own, now);
}

const byOrg = <T>(rows: readonly T[], orgOf: (row: T) => string): [string, T[]][] =>
  [...Map.groupBy(rows, orgOf)].sort(([a], [b]) => (a < b ? -1 : 1));

async function deleteOldJobs(tx: Tx, before: number, touched: Touched): Promise<number> {
  const gone = await tx.all<Pick<JobRow, "org_id" | "job_id" | "queue" | "state">>(sql`
    delete from queue_job where seq in (
      select seq from queue_job where end_ms is not null and end_ms < ${before} order by end_ms limit ${oldBatch} ${tx.dialect.skipLocked})
    returning org_id, job_id, queue, state`);
  touch(touched, gone);
  for (const [orgId, jobs] of byOrg(gone, ({ org_id }) => org_id)) {
    const ids = join(jobs.map(({ job_id }) => job_id));
    await tx.run(sql`delete from queue_job_data where org_id = ${orgId} and job_id in (${ids})`);
    await tx.run(sql`delete from queue_attempt where org_id = ${orgId} and job_id in (${ids})`);
    const moves = jobs.map(({ queue, state }): Move => ({ queue, from: state, to: undefined }));
    await tally(tx, orgId, moves, before, jobs[0]!.job_id);
  }
  return gone.length;
}

async function deleteOldMinutes(tx: Tx, now: number, touched: Touched): Promise<number> {
  const gone = await tx.all<{ org_id: string; queue: string }>(sql`
    delete from queue_minute where (org_id, queue, minute, kind, shard) in (
      select org_id, queue, minute, kind, shard from queue_minute where minute < ${Math.floor(now / minuteMs) - keptMinutes}
      order by minute limit ${oldBatch})
    returning org_id, queue`);
  touch(touched, gone);
  return gone.length;
}
