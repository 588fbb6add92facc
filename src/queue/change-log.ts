/** Every change of a job, as WatchJobs tells it: an order-only log. */
import type { MessageInitShape } from "@bufbuild/protobuf";
import { timestampFromMs } from "@bufbuild/protobuf/wkt";
import { JobState } from "../../gen/moltwire/queue/v1/job_pb.ts";
import type { JobChangeSchema } from "../../gen/moltwire/queue/v1/queue_service_pb.ts";
import type { App } from "../app.ts";
import { join, type Queryable, sql, type Tx } from "../db/db.ts";
import { type LogPosition, settled, settledAfter } from "../db/log.ts";
import { logStart } from "../rpc/log-position.ts";
import { inChunks } from "./chunk.ts";
import type { JobRow } from "./job-store.ts";
import { type JobFault, openFault, readOr, sealFault, unreadableFault } from "./payload.ts";
import { type Move, tally } from "./tally.ts";

/** Rung when a queue has a job that can be claimed, or will have one at another time than before. */
export const queueTopic = (orgId: string, queue: string): string => `queue:${orgId}:${queue}`;
/** Rung when a lease that a Work stream took has ended. */
export const streamTopic = (stream: string): string => `work:${stream}`;
/** Rung when any job of the organisation came to another state. */
export const changesTopic = (orgId: string): string => `jobs:${orgId}`;

/** A job that has come to another state: `job` is as it is now. */
export type Change = {
  readonly job: JobRow;
  /** Undefined: it is new. */
  readonly from: JobState | undefined;
  /** Where an attempt failed: why. */
  readonly fault?: JobFault;
  readonly waitMs?: number;
};

/**
 * Keeps what changes of jobs of one organisation bring with them: the log, the counts, the bells. Comes last in a transaction, since the counts are rows that others
 * wait for.
 */
export async function recordChanges(
  tx: Tx,
  app: Pick<App, "vault">,
  orgId: string,
  changes: readonly Change[],
  now: number,
): Promise<void> {
  const [first] = changes;
  if (!first) return;
  for (const rows of inChunks(changes)) {
    const values = rows.map(({ job, fault }) => {
      const error = fault ? sealFault(app, { orgId, jobId: job.job_id }, { changeOf: job.attempts }, fault) : null;
      return sql`(${orgId}, ${tx.dialect.xid}, ${job.job_id}, ${job.queue}, ${job.state}, ${job.attempts}, ${job.worker_agent_id}, ${now}, ${error})`;
    });
    await tx.run(sql`
      insert into queue_change (org_id, xid, job_id, queue, state, attempts, worker_agent_id, time_ms, error) values ${join(values)}`);
  }
  const moves = changes.map(({ job, from, waitMs }): Move => ({ queue: job.queue, from, to: job.state, waitMs }));
  await tally(tx, orgId, moves, now, first.job.job_id);
  tx.ring(changesTopic(orgId));
  for (const { job } of changes) {
    if (isWaiting(job.state)) tx.ring(queueTopic(orgId, job.queue));
    if (job.lease_stream) tx.ring(streamTopic(job.lease_stream));
  }
}

const isWaiting = (state: JobState): boolean => state === JobState.SCHEDULED || state === JobState.PENDING;

/** A change as it is stored; `error` is sealed. */
export type ChangeRow = LogPosition & {
  readonly org_id: string;
  readonly job_id: string;
  readonly queue: string;
  readonly state: JobState;
  readonly attempts: number;
  readonly worker_agent_id: string;
  readonly time_ms: number;
  readonly error: Uint8Array | null;
};

/** The settled changes after a position, oldest first. */
export const readChanges = (db: Queryable, orgId: string, after: LogPosition, limit: number): Promise<ChangeRow[]> =>
  db.all<ChangeRow>(sql`
    select xid, seq, org_id, job_id, queue, state, attempts, worker_agent_id, time_ms, error from queue_change
    where org_id = ${orgId} and ${settledAfter(db.dialect, after)} order by xid, seq limit ${limit}`);

/** Where the log of an organisation ends now. */
export const lastChange = async (db: Queryable, orgId: string): Promise<LogPosition> =>
  (await db.one<LogPosition>(sql`
    select xid, seq from queue_change where org_id = ${orgId} and ${settled(db.dialect)} order by xid desc, seq desc limit 1`)) ??
  changeFloor(db, orgId);

/** The last change that is no longer kept: a reader that has seen it has missed nothing. */
export const changeFloor = async (db: Queryable, orgId: string): Promise<LogPosition> =>
  (await db.one<LogPosition>(sql`select xid, seq from queue_change_floor where org_id = ${orgId}`)) ?? logStart;

/**
 * Deletes a bounded number of old changes, by the primary key, in whose order they were written; gives how many. What is deleted is the beginning of each log but for
 * writers that took seconds, and the floor never goes back.
 */
export async function deleteOldChanges(tx: Tx, before: number, limit: number): Promise<number> {
  const oldest = await tx.all<LogPosition & { org_id: string; time_ms: number }>(sql`
    select seq, xid, org_id, time_ms from queue_change order by seq limit ${limit}`);
  const kept = oldest.findIndex(({ time_ms }) => time_ms >= before);
  const old = kept < 0 ? oldest : oldest.slice(0, kept);
  const last = old.at(-1);
  if (!last) return 0;
  const floors = new Map<string, LogPosition>();
  for (const row of old) {
    const floor = floors.get(row.org_id) ?? logStart;
    if (row.xid > floor.xid || (row.xid === floor.xid && row.seq > floor.seq)) floors.set(row.org_id, row);
  }
  for (const [orgId, { xid, seq }] of [...floors].sort(([a], [b]) => (a < b ? -1 : 1))) {
    await tx.run(sql`
      insert into queue_change_floor (org_id, xid, seq) values (${orgId}, ${xid}, ${seq})
      on conflict (org_id) do update set xid = ${xid}, seq = ${seq}
      where queue_change_floor.xid < ${xid} or (queue_change_floor.xid = ${xid} and queue_change_floor.seq < ${seq})`);
  }
  return tx.run(sql`delete from queue_change where seq <= ${last.seq}`);
}

/** A change as watchers get it. An error that cannot be read any more says so: it must not end every stream that comes to it. */
export function toChange(app: Pick<App, "vault">, row: ChangeRow): MessageInitShape<typeof JobChangeSchema> {
  const { job_id: jobId, queue, state, attempts, error } = row;
  const open = (sealed: Uint8Array) => openFault(app, { orgId: row.org_id, jobId }, { changeOf: attempts }, sealed);
  return {
    jobId,
    queue,
    state,
    attempts,
    workerAgentId: row.worker_agent_id,
    ...(error && {
      error: readOr(
        () => open(error),
        (fault) => unreadableFault(fault, attempts),
      ),
    }),
    time: timestampFromMs(row.time_ms),
  };
}
