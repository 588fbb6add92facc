import { create, type MessageInitShape } from "@bufbuild/protobuf";
import { durationFromMs, timestampFromMs } from "@bufbuild/protobuf/wkt";
import {
  type JobAttemptSchema,
  JobProgressSchema,
  type JobSchema,
  type JobState,
} from "../../gen/moltwire/queue/v1/job_pb.ts";
import type { App } from "../app.ts";
import { type Queryable, type Sql, sql, type Tx } from "../db/db.ts";
import type { Fault } from "../errors.ts";
import { openFault, openProgress, readOr, unreadableFault } from "./payload.ts";
import { limits } from "./rule.ts";

/** A job as it is stored, without payload and result: `state` is the number of JobState, `error` and `progress` are sealed. */
export type JobRow = {
  readonly seq: number;
  readonly org_id: string;
  readonly job_id: string;
  readonly queue: string;
  readonly state: JobState;
  readonly priority: number;
  readonly max_attempts: number;
  readonly attempts: number;
  readonly attempt_limit: number;
  readonly redrives: number;
  readonly backoff_ms: number;
  readonly max_backoff_ms: number;
  readonly timeout_ms: number | null;
  readonly unique_key: string;
  readonly tags: string;
  readonly submitter_agent_id: string;
  readonly worker_agent_id: string;
  readonly lease_token: string;
  readonly lease_stream: string;
  readonly lease_ms: number;
  readonly lease_expire_ms: number | null;
  readonly cancel_requested: number;
  readonly trace_id: string;
  readonly span_id: string;
  readonly schedule_id: string;
  readonly nominal_ms: number | null;
  readonly create_ms: number;
  readonly run_ms: number;
  readonly ready_ms: number | null;
  readonly start_ms: number | null;
  readonly end_ms: number | null;
  readonly error: Uint8Array | null;
  readonly progress: Uint8Array | null;
};

/** Those that a writer gives; `seq` is the database's. */
export const givenColumns = sql`org_id, job_id, queue, state, priority, max_attempts, attempts, attempt_limit, redrives, backoff_ms, max_backoff_ms, timeout_ms,
  unique_key, tags, submitter_agent_id, worker_agent_id, lease_token, lease_stream, lease_ms, lease_expire_ms, cancel_requested, trace_id, span_id,
  schedule_id, nominal_ms, create_ms, run_ms, ready_ms, start_ms, end_ms, error, progress`;
export const jobColumns = sql`seq, ${givenColumns}`;

/** What is in a job at most, in bytes of protobuf, beside its unique key, its tags and what is sealed: ids, names, times. */
export const plainBytes = 1_024;

/** What a job without payload and result takes at most in an answer, in bytes of protobuf: what is sealed is no shorter than what it was made of. */
export const listedBytes = ({ unique_key, tags, progress, error }: JobRow): number =>
  plainBytes + Buffer.byteLength(unique_key) + Buffer.byteLength(tags) + (progress?.length ?? 0) + (error?.length ?? 0);

/** What a job carries, sealed. */
export type JobData = { readonly payload: Uint8Array | null; readonly result: Uint8Array | null };

export const findJob = (db: Queryable, orgId: string, jobId: string): Promise<JobRow | undefined> =>
  db.one<JobRow>(sql`select ${jobColumns} from queue_job where org_id = ${orgId} and job_id = ${jobId}`);

export const lockJob = (tx: Tx, orgId: string, jobId: string): Promise<JobRow | undefined> =>
  tx.one<JobRow>(
    sql`select ${jobColumns} from queue_job where org_id = ${orgId} and job_id = ${jobId} ${tx.dialect.forUpdate}`,
  );

/** The job under the lease that the token proves, if that is the latest and has not ended. */
export const lockLeased = (
  tx: Tx,
  orgId: string,
  jobId: string,
  token: string,
  now: number,
): Promise<JobRow | undefined> =>
  tx.one<JobRow>(sql`
    select ${jobColumns} from queue_job
    where org_id = ${orgId} and job_id = ${jobId} and state = 3 and lease_token = ${token} and lease_expire_ms > ${now}
    ${tx.dialect.forUpdate}`);

/** A change of a job that the caller has locked; gives it as it is now. */
export const changeJob = async (tx: Tx, seq: number, assignments: Sql): Promise<JobRow> =>
  (await tx.one<JobRow>(sql`update queue_job set ${assignments} where seq = ${seq} returning ${jobColumns}`))!;

export const findData = async (db: Queryable, orgId: string, jobId: string): Promise<JobData> =>
  (await db.one<JobData>(
    sql`select payload, result from queue_job_data where org_id = ${orgId} and job_id = ${jobId}`,
  )) ?? { payload: null, result: null };

/** Keeps a result beside the payload, if there was one. */
export const keepResult = (tx: Tx, orgId: string, jobId: string, result: Uint8Array): Promise<number> =>
  tx.run(sql`
    insert into queue_job_data (org_id, job_id, payload, result) values (${orgId}, ${jobId}, ${null}, ${result})
    on conflict (org_id, job_id) do update set result = ${result}`);

/** A failed attempt as it is stored; `error` is sealed. */
export type AttemptRow = {
  readonly attempt: number;
  readonly worker_agent_id: string;
  readonly start_ms: number;
  readonly end_ms: number;
  readonly error: Uint8Array;
};

export const insertAttempt = (tx: Tx, job: JobRow, endMs: number, expired: boolean, error: Uint8Array) =>
  tx.run(sql`
    insert into queue_attempt (org_id, job_id, attempt, worker_agent_id, start_ms, end_ms, expired, error)
    values (${job.org_id}, ${job.job_id}, ${job.attempts}, ${job.worker_agent_id}, ${job.start_ms}, ${endMs}, ${expired ? 1 : 0}, ${error})`);

/** The last failed attempts, first one first. */
export const failedAttempts = async (db: Queryable, orgId: string, jobId: string): Promise<AttemptRow[]> =>
  (
    await db.all<AttemptRow>(sql`
      select attempt, worker_agent_id, start_ms, end_ms, error from queue_attempt
      where org_id = ${orgId} and job_id = ${jobId} order by attempt desc limit ${limits.attemptsShown}`)
  ).reverse();

/** Whether the lease of an attempt ended by itself. */
export const hasExpired = async (db: Queryable, orgId: string, jobId: string, attempt: number): Promise<boolean> =>
  (await db.one(sql`
    select 1 as found from queue_attempt
    where org_id = ${orgId} and job_id = ${jobId} and attempt = ${attempt} and expired = 1`)) !== undefined;

type Reading = Pick<App, "vault">;
type JobInit = Extract<MessageInitShape<typeof JobSchema>, { $typeName?: never }>;

/** A job as it is read for itself. Throws KEY_DROPPED, DATA_NOT_AUTHENTIC. */
export const toReadJob = (app: Reading, row: JobRow): JobInit => {
  const at = { orgId: row.org_id, jobId: row.job_id };
  return {
    ...toPlainJob(row),
    ...(row.progress && { progress: openProgress(app, at, row.progress) }),
    ...(row.error && { error: openFault(app, at, "job", row.error) }),
  };
};

/**
 * A job as lists and commands answer it. Where its progress or error cannot be read any more, it says so: one such job must not keep others from being listed, nor
 * itself from being canceled.
 */
export const toJob = (app: Reading, row: JobRow): JobInit => {
  const at = { orgId: row.org_id, jobId: row.job_id };
  const { progress, error } = row;
  return {
    ...toPlainJob(row),
    ...(progress && { progress: readOr(() => openProgress(app, at, progress), toUnreadableProgress) }),
    ...(error && {
      error: readOr(
        () => openFault(app, at, "job", error),
        (fault) => unreadableFault(fault, row.attempts),
      ),
    }),
  };
};

const toUnreadableProgress = ({ message }: Fault) => create(JobProgressSchema, { message });

const toPlainJob = (row: JobRow): JobInit => ({
  orgId: row.org_id,
  jobId: row.job_id,
  queue: row.queue,
  state: row.state,
  priority: row.priority,
  maxAttempts: row.max_attempts,
  attempts: row.attempts,
  backoff: { initial: durationFromMs(row.backoff_ms), max: durationFromMs(row.max_backoff_ms) },
  ...(row.timeout_ms !== null && { timeout: durationFromMs(row.timeout_ms) }),
  uniqueKey: row.unique_key,
  tags: JSON.parse(row.tags) as Record<string, string>,
  submitterAgentId: row.submitter_agent_id,
  workerAgentId: row.worker_agent_id,
  ...(row.lease_expire_ms !== null && { leaseExpireTime: timestampFromMs(row.lease_expire_ms) }),
  cancelRequested: row.cancel_requested !== 0,
  traceId: row.trace_id,
  spanId: row.span_id,
  scheduleId: row.schedule_id,
  ...(row.nominal_ms !== null && { nominalTime: timestampFromMs(row.nominal_ms) }),
  createTime: timestampFromMs(row.create_ms),
  runTime: timestampFromMs(row.run_ms),
  ...(row.start_ms !== null && { startTime: timestampFromMs(row.start_ms) }),
  ...(row.end_ms !== null && { endTime: timestampFromMs(row.end_ms) }),
  redrives: row.redrives,
});

export const toAttempt = (
  app: Reading,
  at: { readonly orgId: string; readonly jobId: string },
  row: AttemptRow,
): MessageInitShape<typeof JobAttemptSchema> => ({
  attempt: row.attempt,
  workerAgentId: row.worker_agent_id,
  startTime: timestampFromMs(row.start_ms),
  endTime: timestampFromMs(row.end_ms),
  error: openFault(app, at, { attempt: row.attempt }, row.error),
});
