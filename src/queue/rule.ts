/** The rules of a job's life. Nothing here reads a clock, a table or chance. */

import { JobState } from "../../gen/moltwire/queue/v1/job_pb.ts";
import { nameIn } from "../enum-name.ts";

export const defaults = {
  queue: "default",
  priority: 5,
  maxAttempts: 5,
  backoffMs: 1_000,
  maxBackoffMs: 600_000,
  leaseMs: 30_000,
} as const;

/** The most jobs of one claim, submit or redrive, and the most unfinished jobs and queues of an organisation. */
export const limits = {
  submitJobs: 1_000,
  submitBytes: 3 * 1_048_576,
  payloadBytes: 102_400,
  progressBytes: 4_096,
  redrive: 1_000,
  unfinished: 1_000_000,
  queues: 10_000,
  attemptsShown: 100,
  runAheadMs: 366 * 86_400_000,
} as const;

/** What the rules look at. */
export type Life = {
  readonly attempts: number;
  readonly attempt_limit: number;
  readonly max_attempts: number;
  readonly backoff_ms: number;
  readonly max_backoff_ms: number;
  readonly timeout_ms: number | null;
  readonly start_ms: number | null;
  readonly lease_ms: number;
  readonly lease_expire_ms: number | null;
  readonly cancel_requested: number;
};

/** How an attempt failed. */
export type Failure = {
  readonly retryable: boolean;
  /** How long to wait before the next attempt; undefined: as long as the back-off says. */
  readonly retryAfterMs: number | undefined;
};

/** What becomes of the job: its state, and from when on it can be claimed where it is tried again. */
export type Next =
  | { readonly state: typeof JobState.PENDING | typeof JobState.SCHEDULED; readonly runMs: number }
  | { readonly state: typeof JobState.FAILED | typeof JobState.CANCELED };

/** What becomes of a job whose attempt failed. `chance` is from 0 to 1. */
export function afterFailure(job: Life, { retryable, retryAfterMs }: Failure, now: number, chance: number): Next {
  if (job.cancel_requested !== 0) return { state: JobState.CANCELED };
  if (!retryable || job.attempts >= job.attempt_limit) return { state: JobState.FAILED };
  const waitMs = retryAfterMs ?? backoffMs(job, chance);
  return { state: waitMs > 0 ? JobState.SCHEDULED : JobState.PENDING, runMs: now + waitMs };
}

/** Between half and all of min(max, initial · 2^(n-1)) after the n-th failed attempt since the job was submitted or redriven. */
export function backoffMs(job: Life, chance: number): number {
  const failed = job.attempts - (job.attempt_limit - job.max_attempts);
  const fullMs = Math.min(job.max_backoff_ms, job.backoff_ms * 2 ** (failed - 1));
  return Math.round((fullMs / 2) * (1 + chance));
}

/** When a heartbeat lets the lease end: later than before or as before, never beyond the attempt's time. */
export function extendedUntil(job: Life, now: number): number {
  const attemptEndMs = job.timeout_ms === null ? Number.MAX_SAFE_INTEGER : (job.start_ms ?? now) + job.timeout_ms;
  return Math.max(job.lease_expire_ms ?? 0, Math.min(now + job.lease_ms, attemptEndMs));
}

/** Why a lease that ran out did: the attempt took its whole time, or no heartbeat came. */
export const expiryCode = (job: Life): "attempt_timeout" | "lease_expired" =>
  job.timeout_ms !== null && (job.lease_expire_ms ?? 0) >= (job.start_ms ?? 0) + job.timeout_ms
    ? "attempt_timeout"
    : "lease_expired";

/** Whether nothing changes any more, unless it is redriven. */
export const isTerminal = (state: JobState): boolean => state >= JobState.COMPLETED;

/** The name of a state as metadata has it. */
export const stateName = (state: JobState): string => nameIn(JobState, state);

/** Buckets of waits: 0 is no wait, b is up to 1.25^(b-1) ms. */
const growth = 1.25;
export const bucketOf = (waitMs: number): number =>
  waitMs <= 0 ? 0 : 1 + Math.ceil(Math.log(waitMs) / Math.log(growth) - 1e-9);
export const bucketEndMs = (bucket: number): number => (bucket === 0 ? 0 : growth ** (bucket - 1));

/** The end of the bucket in which the share of the counts is reached, in milliseconds; undefined when nothing was counted. */
export function quantileMs(counts: ReadonlyMap<number, number>, share: number): number | undefined {
  const total = [...counts.values()].reduce((sum, n) => sum + n, 0);
  let reached = 0;
  for (const [bucket, n] of [...counts].sort(([a], [b]) => a - b)) {
    reached += n;
    if (reached >= share * total) return bucketEndMs(bucket);
  }
  return undefined;
}
