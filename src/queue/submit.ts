import { type Duration, durationMs, timestampMs } from "@bufbuild/protobuf/wkt";
import { JobState } from "../../gen/moltwire/queue/v1/job_pb.ts";
import { Conflict, type NewJob } from "../../gen/moltwire/queue/v1/queue_service_pb.ts";
import type { App } from "../app.ts";
import { join, sql, type Tx } from "../db/db.ts";
import { badField, Fault } from "../errors.ts";
import { recordChanges } from "./change-log.ts";
import { inChunks } from "./chunk.ts";
import { givenColumns, type JobRow, jobColumns } from "./job-store.ts";
import { checkPayload, sealPayload, tooLarge } from "./payload.ts";
import { checkRoom, lookForRoom } from "./quota.ts";
import { defaults, limits } from "./rule.ts";

/** From where jobs come. */
export type Origin = {
  readonly orgId: string;
  /** Empty for an administrator and for a schedule. */
  readonly submitterAgentId: string;
  readonly trace: { readonly traceId: string; readonly spanId: string };
  /** The schedule that makes them, and the time that each of them is for, if it is for one. */
  readonly schedule?: { readonly scheduleId: string; readonly nominalsMs: readonly (number | null)[] };
  readonly now: number;
};

/** A job that was put into a queue, or that was there under its unique key. */
export type Enqueued = { readonly job: JobRow; readonly existing: boolean };

/** The queue a new job goes to. */
export const queueOf = (job: Pick<NewJob, "queue">): string => job.queue || defaults.queue;

/** How often a key that was taken and came free meanwhile is tried. */
const maxRounds = 5;

/**
 * Puts jobs into queues in the caller's transaction, all or none; gives one result for each, in their order. `fieldOf` names the n-th one in errors:
 * "job", "jobs[3]". The caller has asked whether the queues may be used (see `authorize`).
 *
 * Throws ALREADY_EXISTS, PAYLOAD_TOO_LARGE, INVALID_REQUEST (`run_at` more than a year ahead), QUOTA_EXCEEDED.
 */
export async function enqueue(
  tx: Tx,
  app: App,
  origin: Origin,
  jobs: readonly NewJob[],
  fieldOf: (n: number) => string,
): Promise<Enqueued[]> {
  const rows = jobs.map((job, n) => newRow(app, origin, job, n, fieldOf(n)));
  checkTogether(jobs, fieldOf);
  const room = await lookForRoom(tx, origin.orgId, new Set(jobs.map(queueOf)));
  const results = new Map<number, Enqueued>();
  let left = [...rows.keys()];
  for (let round = 0; left.length > 0; round++) {
    const inserted = await insertJobs(
      tx,
      left.map((n) => rows[n]!),
    );
    for (const n of left) {
      const job = inserted.get(rows[n]!.job_id);
      if (job) results.set(n, { job, existing: false });
    }
    left = left.filter((n) => !results.has(n));
    for (const n of left) {
      const holder = await holderOf(tx, rows[n]!);
      if (!holder) continue;
      if (jobs[n]!.conflict === Conflict.REJECT) throw taken(fieldOf(n), rows[n]!, holder);
      results.set(n, { job: holder, existing: true });
    }
    left = left.filter((n) => !results.has(n));
    if (round === maxRounds) throw new Fault("OVERLOADED", "a unique key is contended: try again", {});
  }
  const made = [...results].filter(([, { existing }]) => !existing).sort(([a], [b]) => a - b);
  checkRoom(room, made.length);
  await keepPayloads(
    tx,
    app,
    origin.orgId,
    made.map(([n, { job }]) => ({ job, payload: jobs[n]!.payload })),
  );
  const changes = made.map(([, { job }]) => ({ job, from: undefined }));
  await recordChanges(tx, app, origin.orgId, changes, origin.now);
  const { orgId, submitterAgentId } = origin;
  if (submitterAgentId !== "") tx.afterCommit(() => app.activity.submittedJobs(orgId, submitterAgentId, made.length));
  return rows.map((_, n) => results.get(n)!);
}

type GivenRow = Omit<JobRow, "seq">;

function newRow(app: App, origin: Origin, job: NewJob, n: number, field: string): GivenRow {
  const { orgId, submitterAgentId, trace, schedule, now } = origin;
  const runMs = job.runAt ? timestampMs(job.runAt) : now;
  if (runMs > now + limits.runAheadMs) throw badField(`${field}.run_at`, "at most a year ahead");
  const waits = runMs > now;
  const maxAttempts = job.maxAttempts || defaults.maxAttempts;
  return {
    org_id: orgId,
    job_id: app.ids.next("job"),
    queue: queueOf(job),
    state: waits ? JobState.SCHEDULED : JobState.PENDING,
    priority: job.priority || defaults.priority,
    max_attempts: maxAttempts,
    attempts: 0,
    attempt_limit: maxAttempts,
    redrives: 0,
    backoff_ms: msOr(job.backoff?.initial, defaults.backoffMs),
    max_backoff_ms: msOr(job.backoff?.max, defaults.maxBackoffMs),
    timeout_ms: job.timeout ? durationMs(job.timeout) : null,
    unique_key: job.uniqueKey,
    tags: JSON.stringify(job.tags),
    submitter_agent_id: submitterAgentId,
    worker_agent_id: "",
    lease_token: "",
    lease_stream: "",
    lease_ms: 0,
    lease_expire_ms: null,
    cancel_requested: 0,
    trace_id: trace.traceId,
    span_id: trace.spanId,
    schedule_id: schedule?.scheduleId ?? "",
    nominal_ms: schedule?.nominalsMs[n] ?? null,
    create_ms: now,
    run_ms: runMs,
    ready_ms: waits ? null : now,
    start_ms: null,
    end_ms: null,
    error: null,
    progress: null,
  };
}

const msOr = (duration: Duration | undefined, otherwise: number): number =>
  duration ? durationMs(duration) : otherwise;

function checkTogether(jobs: readonly NewJob[], fieldOf: (n: number) => string): void {
  let bytes = 0;
  for (const [n, { payload }] of jobs.entries()) bytes += checkPayload(payload, `${fieldOf(n)}.payload`);
  if (bytes > limits.submitBytes)
    throw tooLarge("jobs", `payloads of ${bytes} bytes together`, limits.submitBytes, bytes);
}

/** Inserts what no unique key forbids; gives the jobs by id. On PostgreSQL waits for another transaction that is about to take a key. */
async function insertJobs(tx: Tx, rows: readonly GivenRow[]): Promise<ReadonlyMap<string, JobRow>> {
  const made = new Map<string, JobRow>();
  for (const some of inChunks(rows)) {
    const inserted = await tx.all<JobRow>(sql`
      insert into queue_job (${givenColumns}) values ${join(some.map(valuesOf))} on conflict do nothing returning ${jobColumns}`);
    for (const job of inserted) made.set(job.job_id, job);
  }
  return made;
}

const valuesOf = (
  row: GivenRow,
) => sql`(${row.org_id}, ${row.job_id}, ${row.queue}, ${row.state}, ${row.priority}, ${row.max_attempts}, ${row.attempts},
  ${row.attempt_limit}, ${row.redrives}, ${row.backoff_ms}, ${row.max_backoff_ms}, ${row.timeout_ms}, ${row.unique_key}, ${row.tags},
  ${row.submitter_agent_id}, ${row.worker_agent_id}, ${row.lease_token}, ${row.lease_stream}, ${row.lease_ms}, ${row.lease_expire_ms},
  ${row.cancel_requested}, ${row.trace_id}, ${row.span_id}, ${row.schedule_id}, ${row.nominal_ms}, ${row.create_ms}, ${row.run_ms}, ${row.ready_ms},
  ${row.start_ms}, ${row.end_ms}, ${row.error}, ${row.progress})`;

/** The unfinished job that has the key, by the unique index. */
const holderOf = (tx: Tx, { org_id, queue, unique_key }: GivenRow): Promise<JobRow | undefined> =>
  tx.one<JobRow>(sql`
    select ${jobColumns} from queue_job
    where org_id = ${org_id} and queue = ${queue} and unique_key = ${unique_key} and unique_key <> '' and state < 4`);

function taken(field: string, { unique_key, queue }: GivenRow, { job_id }: JobRow): Fault {
  const shown = JSON.stringify(unique_key.slice(0, 64));
  return new Fault(
    "ALREADY_EXISTS",
    `${field}.unique_key: job ${job_id} of queue ${queue} has ${shown} and is unfinished`,
    {
      resource: "job",
      id: job_id,
      field: `${field}.unique_key`,
    },
  );
}

async function keepPayloads(
  tx: Tx,
  app: App,
  orgId: string,
  made: readonly { readonly job: JobRow; readonly payload: NewJob["payload"] }[],
): Promise<void> {
  for (const some of inChunks(made.filter(({ payload }) => payload !== undefined))) {
    const values = some.map(({ job: { job_id }, payload }) => {
      const sealed = sealPayload(app, { orgId, jobId: job_id }, "payload", payload);
      return sql`(${orgId}, ${job_id}, ${sealed}, ${null})`;
    });
    await tx.run(sql`insert into queue_job_data (org_id, job_id, payload, result) values ${join(values)}`);
  }
}
