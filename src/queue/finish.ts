/** How leases, attempts and jobs end. */
import type { JsonObject } from "@bufbuild/protobuf";
import { JobState, type Payload } from "../../gen/moltwire/queue/v1/job_pb.ts";
import type { App } from "../app.ts";
import { sql, type Tx } from "../db/db.ts";
import { emit } from "../ops/outbox.ts";
import { ownerOf } from "./access.ts";
import type { Change } from "./change-log.ts";
import { changeJob, insertAttempt, type JobRow, keepResult } from "./job-store.ts";
import { type JobFault, sealFault, sealPayload } from "./payload.ts";
import { afterFailure, expiryCode, type Failure } from "./rule.ts";

/** A leased job is done. The caller has locked it. */
export async function complete(
  tx: Tx,
  app: App,
  job: JobRow,
  result: Payload | undefined,
  now: number,
): Promise<Change> {
  const { org_id: orgId, job_id: jobId } = job;
  const sealed = sealPayload(app, { orgId, jobId }, "result", result);
  if (sealed) await keepResult(tx, orgId, jobId, sealed);
  const done = await changeJob(
    tx,
    job.seq,
    sql`state = 4, end_ms = ${now}, lease_token = '', lease_expire_ms = null, cancel_requested = 0`,
  );
  await emitEnd(tx, app, "job.completed", done, {}, now);
  return { job: done, from: JobState.LEASED };
}

/** An attempt failed, or its lease ended. The caller has locked the job. */
export async function failAttempt(
  tx: Tx,
  app: App,
  job: JobRow,
  failure: Failure & { readonly code: string; readonly message: string; readonly expired: boolean },
  now: number,
): Promise<Change> {
  const at = { orgId: job.org_id, jobId: job.job_id };
  const fault: JobFault = { code: failure.code, message: failure.message, attempt: job.attempts };
  const next = afterFailure(job, failure, now, app.ids.chance());
  await insertAttempt(tx, job, now, failure.expired, sealFault(app, at, { attempt: job.attempts }, fault));
  const ended = sql`state = ${next.state}, error = ${sealFault(app, at, "job", fault)}, lease_token = '', lease_expire_ms = null`;
  if ("runMs" in next) {
    const readyMs = next.state === JobState.PENDING ? next.runMs : null;
    const again = await changeJob(tx, job.seq, sql`${ended}, run_ms = ${next.runMs}, ready_ms = ${readyMs}`);
    return { job: again, from: JobState.LEASED, fault };
  }
  const over = await changeJob(tx, job.seq, sql`${ended}, end_ms = ${now}, cancel_requested = 0`);
  const { code, message } = fault;
  if (over.state === JobState.FAILED) await emitEnd(tx, app, "job.failed", over, { code, message }, now);
  return { job: over, from: JobState.LEASED, fault };
}

/** The lease of a job ran out: another worker may have it at once. The caller has locked the job. */
export const expireLease = (tx: Tx, app: App, job: JobRow, now: number): Promise<Change> => {
  const code = expiryCode(job);
  const message =
    code === "attempt_timeout"
      ? `the attempt took longer than ${job.timeout_ms} ms`
      : `no heartbeat came within ${job.lease_ms} ms`;
  return failAttempt(tx, app, job, { retryable: true, retryAfterMs: 0, code, message, expired: true }, now);
};

/** Cancels a job that is not terminal: at once, or by a mark for its worker (undefined). The caller has locked it. */
export async function cancel(tx: Tx, job: JobRow, now: number): Promise<Change | undefined> {
  if (job.state === JobState.LEASED) {
    await changeJob(tx, job.seq, sql`cancel_requested = 1`);
    return undefined;
  }
  return { job: await changeJob(tx, job.seq, sql`state = 6, end_ms = ${now}`), from: job.state };
}

/** The event of a job's end: to its submitter, or the owner of a private queue. */
const emitEnd = (
  tx: Tx,
  app: App,
  type: "job.completed" | "job.failed",
  job: JobRow,
  error: JsonObject,
  now: number,
): Promise<void> =>
  emit(tx, app, {
    orgId: job.org_id,
    type,
    agentId: job.submitter_agent_id || ownerOf(job.queue),
    timeMs: now,
    traceId: job.trace_id,
    payload: {
      job_id: job.job_id,
      queue: job.queue,
      attempts: job.attempts,
      worker_agent_id: job.worker_agent_id,
      ...(type === "job.failed" && { error }),
    },
  });
