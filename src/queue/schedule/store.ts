import { create, fromBinary, fromJsonString, type MessageInitShape, toBinary, toJsonString } from "@bufbuild/protobuf";
import { durationFromMs, timestampFromMs } from "@bufbuild/protobuf/wkt";
import { type Payload, PayloadSchema } from "../../../gen/moltwire/queue/v1/job_pb.ts";
import {
  type Misfire,
  type Overlap,
  type ScheduledJob,
  ScheduledJobSchema,
  type ScheduleSchema,
} from "../../../gen/moltwire/queue/v1/schedule_pb.ts";
import type { App } from "../../app.ts";
import { join, type Queryable, sql, type Tx } from "../../db/db.ts";
import { inChunks } from "../chunk.ts";

/** What its owner says of a schedule, as it is stored: `job` is JSON without the payload. */
export type SettingsRow = {
  readonly name: string;
  readonly cron: string;
  readonly time_zone: string;
  readonly start_ms: number | null;
  readonly end_ms: number | null;
  readonly job: string;
  readonly disabled: number;
  readonly misfire: Misfire;
  readonly catch_up_ms: number;
  readonly overlap: Overlap;
  readonly jitter_ms: number;
};

/** A schedule as it is stored; `last_error` is sealed. */
export type ScheduleRow = SettingsRow & {
  readonly org_id: string;
  readonly schedule_id: string;
  readonly agent_id: string;
  readonly revision: number;
  readonly create_ms: number;
  readonly update_ms: number;
  readonly next_ms: number | null;
  readonly due_ms: number | null;
  readonly seen_ms: number;
  readonly last_run_ms: number | null;
  readonly last_nominal_ms: number | null;
  readonly last_job_id: string;
  readonly run_count: number;
  readonly missed_count: number;
  readonly skipped_count: number;
  readonly last_error: Uint8Array | null;
};

/** Which schedule. */
export type ScheduleRef = Pick<ScheduleRow, "org_id" | "schedule_id">;

const columns = sql`org_id, schedule_id, agent_id, name, cron, time_zone, start_ms, end_ms, job, disabled, misfire, catch_up_ms, overlap, jitter_ms, revision,
  create_ms, update_ms, next_ms, due_ms, seen_ms, last_run_ms, last_nominal_ms, last_job_id, run_count, missed_count, skipped_count, last_error`;

export const findSchedule = (db: Queryable, orgId: string, scheduleId: string): Promise<ScheduleRow | undefined> =>
  db.one<ScheduleRow>(
    sql`select ${columns} from queue_schedule where org_id = ${orgId} and schedule_id = ${scheduleId}`,
  );

export const lockSchedule = (tx: Tx, orgId: string, scheduleId: string): Promise<ScheduleRow | undefined> =>
  tx.one<ScheduleRow>(sql`
    select ${columns} from queue_schedule where org_id = ${orgId} and schedule_id = ${scheduleId} ${tx.dialect.forUpdate}`);

/** When the next schedule is due, of all organisations: the first of the index. */
export const nextDue = async (db: Queryable): Promise<number | undefined> =>
  (
    await db.one<{ due_ms: number }>(
      sql`select due_ms from queue_schedule where due_ms is not null order by due_ms limit 1`,
    )
  )?.due_ms;

/** Those that are due, the longest first, by the same index. */
export const dueSchedules = (db: Queryable, now: number, limit: number): Promise<ScheduleRef[]> =>
  db.all<ScheduleRef>(sql`
    select org_id, schedule_id from queue_schedule where due_ms is not null and due_ms <= ${now} order by due_ms limit ${limit}`);

/** The schedule if it is due and nobody else is at it. An expression, so that PostgreSQL does not walk along all that are due to find it. */
export const lockDue = (tx: Tx, { org_id, schedule_id }: ScheduleRef, now: number): Promise<ScheduleRow | undefined> =>
  tx.one<ScheduleRow>(sql`
    select ${columns} from queue_schedule where org_id = ${org_id} and schedule_id = ${schedule_id} and due_ms + 0 <= ${now} ${tx.dialect.skipLocked}`);

/** Has the schedule looked at later, after a fault of the server's own. */
export const postpone = (tx: Tx, { org_id, schedule_id }: ScheduleRef, now: number, dueMs: number): Promise<number> =>
  tx.run(sql`
    update queue_schedule set due_ms = ${dueMs} where org_id = ${org_id} and schedule_id = ${schedule_id} and due_ms + 0 <= ${now}`);

/** How many schedules an agent has, counted up to a bound; by the index on agents. */
export const countSchedules = async (db: Queryable, orgId: string, agentId: string, bound: number): Promise<number> =>
  (await db.one<{ n: number }>(
    sql`select count(*) as n from (select 1 as one from queue_schedule where org_id = ${orgId} and agent_id = ${agentId} limit ${bound}) counted`,
  ))!.n;

/** Oldest first: ids sort by time. Those of one agent by its index, all of them by the primary key. */
export const listSchedules = (
  db: Queryable,
  orgId: string,
  agentId: string,
  afterId: string,
  limit: number,
): Promise<ScheduleRow[]> =>
  db.all<ScheduleRow>(sql`
    select ${columns} from queue_schedule
    where org_id = ${orgId} ${agentId ? sql`and agent_id = ${agentId}` : sql``} and schedule_id > ${afterId} order by schedule_id limit ${limit}`);

export const insertSchedule = (tx: Tx, row: ScheduleRow): Promise<number> =>
  tx.run(sql`
    insert into queue_schedule (${columns}) values (${row.org_id}, ${row.schedule_id}, ${row.agent_id}, ${row.name}, ${row.cron}, ${row.time_zone}, ${row.start_ms},
      ${row.end_ms}, ${row.job}, ${row.disabled}, ${row.misfire}, ${row.catch_up_ms}, ${row.overlap}, ${row.jitter_ms}, ${row.revision}, ${row.create_ms},
      ${row.update_ms}, ${row.next_ms}, ${row.due_ms}, ${row.seen_ms}, ${row.last_run_ms}, ${row.last_nominal_ms}, ${row.last_job_id}, ${row.run_count},
      ${row.missed_count}, ${row.skipped_count}, ${row.last_error})`);

/** What the caller, who has locked the row, changed of its settings. */
export const updateSettings = (tx: Tx, row: ScheduleRow): Promise<number> =>
  tx.run(sql`
    update queue_schedule set name = ${row.name}, cron = ${row.cron}, time_zone = ${row.time_zone}, start_ms = ${row.start_ms}, end_ms = ${row.end_ms},
      job = ${row.job}, disabled = ${row.disabled}, misfire = ${row.misfire}, catch_up_ms = ${row.catch_up_ms}, overlap = ${row.overlap},
      jitter_ms = ${row.jitter_ms}, revision = ${row.revision}, update_ms = ${row.update_ms}, next_ms = ${row.next_ms}, due_ms = ${row.due_ms}
    where org_id = ${row.org_id} and schedule_id = ${row.schedule_id}`);

/** What became of the caller's, who has locked the row, look at it. */
export const updateProgress = (tx: Tx, row: ScheduleRow): Promise<number> =>
  tx.run(sql`
    update queue_schedule set next_ms = ${row.next_ms}, due_ms = ${row.due_ms}, seen_ms = ${row.seen_ms}, last_run_ms = ${row.last_run_ms},
      last_nominal_ms = ${row.last_nominal_ms}, last_job_id = ${row.last_job_id}, run_count = ${row.run_count}, missed_count = ${row.missed_count},
      skipped_count = ${row.skipped_count}, last_error = ${row.last_error}
    where org_id = ${row.org_id} and schedule_id = ${row.schedule_id}`);

/** Takes nominal times of a schedule; gives those that had made no job yet, ascending. */
export async function takeTimes(tx: Tx, ref: ScheduleRef, times: readonly number[]): Promise<number[]> {
  const taken: number[] = [];
  for (const some of inChunks(times)) {
    const values = some.map((nominalMs) => sql`(${ref.org_id}, ${ref.schedule_id}, ${nominalMs})`);
    const rows = await tx.all<{ nominal_ms: number }>(sql`
      insert into queue_schedule_run (org_id, schedule_id, nominal_ms) values ${join(values)} on conflict do nothing returning nominal_ms`);
    taken.push(...rows.map(({ nominal_ms }) => nominal_ms));
  }
  return taken.sort((a, b) => a - b);
}

/** Which nominal times of a window have made a job, by the primary key. */
export const takenTimes = async (
  db: Queryable,
  { org_id, schedule_id }: ScheduleRef,
  startMs: number,
  endMs: number,
): Promise<ReadonlySet<number>> => {
  const rows = await db.all<{ nominal_ms: number }>(sql`
    select nominal_ms from queue_schedule_run
    where org_id = ${org_id} and schedule_id = ${schedule_id} and nominal_ms >= ${startMs} and nominal_ms < ${endMs}`);
  return new Set(rows.map(({ nominal_ms }) => nominal_ms));
};

/** Forgets a bounded number of old times, by their index; gives how many. */
export const deleteOldRuns = (tx: Tx, before: number, limit: number): Promise<number> =>
  tx.run(sql`
    delete from queue_schedule_run where (org_id, schedule_id, nominal_ms) in (
      select org_id, schedule_id, nominal_ms from queue_schedule_run where nominal_ms < ${before} order by nominal_ms limit ${limit})`);

/** Whether a job of the schedule is unfinished, by the partial index. */
export const hasUnfinished = async (db: Queryable, { org_id, schedule_id }: ScheduleRef): Promise<boolean> =>
  (await db.one(sql`
    select 1 as found from queue_job where org_id = ${org_id} and schedule_id = ${schedule_id} and schedule_id <> '' and state < 4 limit 1`)) !==
  undefined;

/** Deletes a schedule and what it carries. The times that it took go with those that are old: nobody looks for them, since no other has its id. */
export async function deleteSchedule(tx: Tx, { org_id, schedule_id }: ScheduleRef): Promise<number> {
  await tx.run(sql`delete from queue_schedule_data where org_id = ${org_id} and schedule_id = ${schedule_id}`);
  return tx.run(sql`delete from queue_schedule where org_id = ${org_id} and schedule_id = ${schedule_id}`);
}

/** Where what its jobs carry is sealed. */
export const payloadPlace = ({ org_id, schedule_id }: ScheduleRef) => ({
  orgId: org_id,
  table: "queue_schedule_data",
  id: schedule_id,
});

/** Keeps what its jobs carry, in place of what they did. */
export async function putPayload(
  tx: Tx,
  app: Pick<App, "vault">,
  ref: ScheduleRef,
  payload: Payload | undefined,
): Promise<void> {
  const { org_id, schedule_id } = ref;
  await tx.run(sql`delete from queue_schedule_data where org_id = ${org_id} and schedule_id = ${schedule_id}`);
  if (!payload) return;
  const sealed = app.vault.seal(payloadPlace(ref), toBinary(PayloadSchema, payload));
  await tx.run(
    sql`insert into queue_schedule_data (org_id, schedule_id, payload) values (${org_id}, ${schedule_id}, ${sealed})`,
  );
}

export async function findPayload(
  db: Queryable,
  app: Pick<App, "vault">,
  ref: ScheduleRef,
): Promise<Payload | undefined> {
  const row = await db.one<{ payload: Uint8Array }>(
    sql`select payload from queue_schedule_data where org_id = ${ref.org_id} and schedule_id = ${ref.schedule_id}`,
  );
  return row && fromBinary(PayloadSchema, app.vault.open(payloadPlace(ref), row.payload));
}

/** Why the last time made no job. */
export type LastError = { readonly reason: string; readonly message: string; readonly nominalMs: number };

/** Where its last error is sealed. */
export const errorPlace = ({ org_id, schedule_id }: ScheduleRef) => ({
  orgId: org_id,
  table: "queue_schedule",
  id: `${schedule_id} error`,
});
export const sealError = (app: Pick<App, "vault">, ref: ScheduleRef, error: LastError): Uint8Array =>
  app.vault.seal(errorPlace(ref), Buffer.from(JSON.stringify(error)));

/** The job's settings as text to store, without the payload. */
export const jobText = (job: ScheduledJob): string =>
  toJsonString(ScheduledJobSchema, create(ScheduledJobSchema, { ...job, payload: undefined }));
export const jobOf = ({ job }: Pick<ScheduleRow, "job">): ScheduledJob => fromJsonString(ScheduledJobSchema, job);

/** A schedule as it is answered, with its payload where that is given. */
export function toSchedule(
  app: Pick<App, "vault">,
  row: ScheduleRow,
  payload?: Payload,
): MessageInitShape<typeof ScheduleSchema> {
  const at = (ms: number | null) => (ms === null ? undefined : timestampFromMs(ms));
  const error =
    row.last_error &&
    (JSON.parse(Buffer.from(app.vault.open(errorPlace(row), row.last_error)).toString()) as LastError);
  return {
    orgId: row.org_id,
    scheduleId: row.schedule_id,
    agentId: row.agent_id,
    settings: {
      name: row.name,
      timing: { cron: row.cron, timeZone: row.time_zone, startTime: at(row.start_ms), endTime: at(row.end_ms) },
      job: { ...jobOf(row), payload },
      disabled: row.disabled !== 0,
      misfire: row.misfire,
      catchUp: durationFromMs(row.catch_up_ms),
      overlap: row.overlap,
      jitter: durationFromMs(row.jitter_ms),
    },
    revision: BigInt(row.revision),
    createTime: timestampFromMs(row.create_ms),
    updateTime: timestampFromMs(row.update_ms),
    nextTime: at(row.next_ms),
    lastRunTime: at(row.last_run_ms),
    lastNominalTime: at(row.last_nominal_ms),
    lastJobId: row.last_job_id,
    runCount: BigInt(row.run_count),
    missedCount: BigInt(row.missed_count),
    skippedCount: BigInt(row.skipped_count),
    ...(error && {
      lastError: {
        reason: error.reason,
        message: error.message,
        nominalTime: timestampFromMs(error.nominalMs),
      },
    }),
  };
}
