import { durationFromMs, timestampFromMs, timestampMs } from "@bufbuild/protobuf/wkt";
import fc from "fast-check";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { JobState } from "../gen/moltwire/queue/v1/job_pb.ts";
import {
  afterFailure,
  backoffMs,
  bucketEndMs,
  bucketOf,
  extendedUntil,
  type Life,
  quantileMs,
} from "../src/queue/rule.ts";
import { dialects, fakeClock, type OrgAgent, refusal, start, unique, type World } from "./harness.ts";
import { get, statsOf, swept } from "./queue-fixtures/jobs.ts";

const full = Boolean(process.env.FULL);
const leaseMs = 5_000;

/** A job as the promises have it, in a few lines and without a database. */
type ModelJob = {
  readonly id: string;
  readonly seq: number;
  readonly priority: number;
  readonly maxAttempts: number;
  readonly timeoutMs: number | undefined;
  limit: number;
  state: JobState;
  attempts: number;
  redrives: number;
  runMs: number;
  startMs: number;
  expireMs: number;
  canceling: boolean;
  /** The latest lease, as the number of the claim that gave it. */
  lease: number;
};
type ModelLease = { readonly job: ModelJob; readonly number: number; readonly token: string };

type Step =
  | {
      readonly do: "submit";
      readonly priority: number;
      readonly maxAttempts: number;
      readonly delayMs: number;
      readonly timeoutMs: number | undefined;
    }
  | { readonly do: "claim"; readonly n: number }
  | { readonly do: "heartbeat" | "complete"; readonly lease: number }
  | { readonly do: "fail"; readonly lease: number; readonly retryable: boolean; readonly retryMs: number }
  | { readonly do: "cancel" | "redrive"; readonly job: number }
  | { readonly do: "pass"; readonly ms: number };

const index = fc.nat({ max: 11 });
const pause = fc.constantFrom(0, 1_000, 3_000);
const step: fc.Arbitrary<Step> = fc.oneof(
  {
    weight: 4,
    arbitrary: fc.record({
      do: fc.constant("submit" as const),
      priority: fc.integer({ min: 1, max: 3 }),
      maxAttempts: fc.integer({ min: 1, max: 3 }),
      delayMs: pause,
      timeoutMs: fc.constantFrom(undefined, 7_000),
    }),
  },
  { weight: 5, arbitrary: fc.record({ do: fc.constant("claim" as const), n: fc.integer({ min: 1, max: 3 }) }) },
  { weight: 4, arbitrary: fc.record({ do: fc.constantFrom("heartbeat" as const, "complete" as const), lease: index }) },
  {
    weight: 3,
    arbitrary: fc.record({ do: fc.constant("fail" as const), lease: index, retryable: fc.boolean(), retryMs: pause }),
  },
  { weight: 2, arbitrary: fc.record({ do: fc.constantFrom("cancel" as const, "redrive" as const), job: index }) },
  {
    weight: 3,
    arbitrary: fc.record({ do: fc.constant("pass" as const), ms: fc.constantFrom(1, 1_000, 4_999, 5_000, 10_000) }),
  },
);

/** Lets the model fail an attempt. */
function failed(job: ModelJob, retryable: boolean, runMs: number, now: number): void {
  job.lease = -1;
  if (job.canceling) job.state = JobState.CANCELED;
  else if (!retryable || job.attempts >= job.limit) job.state = JobState.FAILED;
  else {
    job.state = runMs > now ? JobState.SCHEDULED : JobState.PENDING;
    job.runMs = runMs;
  }
}

/** What happens by itself when it is `now`. */
function elapse(jobs: readonly ModelJob[], now: number): void {
  for (const job of jobs) {
    if (job.state === JobState.LEASED && job.expireMs <= now) failed(job, true, now, now);
    if (job.state === JobState.SCHEDULED && job.runMs <= now) job.state = JobState.PENDING;
  }
}

const capped = (job: ModelJob, ms: number): number =>
  job.timeoutMs === undefined ? ms : Math.min(ms, job.startMs + job.timeoutMs);

describe.each(dialects)("the life of jobs on %s", (dialect) => {
  const clock = fakeClock();
  let world: World;
  let worker: OrgAgent;
  beforeAll(async () => {
    world = await start(dialect, { clock });
    worker = await (await world.org()).agent();
  });
  afterAll(() => world[Symbol.asyncDispose]());

  async function live(steps: readonly Step[]): Promise<void> {
    const queue = unique("model");
    const { queues } = worker.as;
    const jobs: ModelJob[] = [];
    const leases: ModelLease[] = [];
    const isHeld = ({ job, number }: ModelLease) =>
      job.state === JobState.LEASED && job.lease === number && job.expireMs > clock.now();
    for (const one of steps) {
      const now = clock.now();
      switch (one.do) {
        case "submit": {
          const { priority, maxAttempts, delayMs, timeoutMs } = one;
          const { job } = await queues.submitJob({
            job: {
              queue,
              priority,
              maxAttempts,
              ...(delayMs > 0 && { runAt: timestampFromMs(now + delayMs) }),
              ...(timeoutMs && { timeout: durationFromMs(timeoutMs) }),
              backoff: { initial: durationFromMs(0) },
            },
          });
          const state = delayMs > 0 ? JobState.SCHEDULED : JobState.PENDING;
          const rest = {
            attempts: 0,
            redrives: 0,
            runMs: now + delayMs,
            startMs: 0,
            expireMs: 0,
            canceling: false,
            lease: -1,
          };
          jobs.push({
            id: job!.jobId,
            seq: jobs.length,
            priority,
            maxAttempts,
            timeoutMs,
            limit: maxAttempts,
            state,
            ...rest,
          });
          break;
        }
        case "claim": {
          const best = jobs
            .filter(({ state }) => state === JobState.PENDING)
            .sort((a, b) => b.priority - a.priority || a.seq - b.seq)
            .slice(0, one.n);
          const answer = await queues.claimJobs({ queues: [queue], maxJobs: one.n, lease: durationFromMs(leaseMs) });
          expect(answer.jobs.map(({ job }) => job!.jobId)).toEqual(best.map(({ id }) => id));
          for (const [n, job] of best.entries()) {
            const lease = { job, number: leases.length, token: answer.jobs[n]!.leaseToken };
            leases.push(lease);
            Object.assign(job, {
              state: JobState.LEASED,
              attempts: job.attempts + 1,
              startMs: now,
              lease: lease.number,
            });
            job.expireMs = capped(job, now + leaseMs);
            expect(timestampMs(answer.jobs[n]!.leaseExpireTime!)).toBe(job.expireMs);
          }
          break;
        }
        case "heartbeat":
        case "complete":
        case "fail": {
          const lease = leases.at(-1 - one.lease);
          if (!lease) break;
          const { job } = lease;
          const token = { jobId: job.id, leaseToken: lease.token };
          const call = {
            heartbeat: () => queues.heartbeatJob(token),
            complete: () => queues.completeJob(token),
            fail: () => {
              const { retryable = false, retryMs = 0 } = one as Extract<Step, { do: "fail" }>;
              return queues.failJob({ ...token, retryable, retryAfter: durationFromMs(retryMs) });
            },
          }[one.do];
          if (!isHeld(lease)) {
            expect((await refusal(call())).reason).toBe("LEASE_LOST");
            break;
          }
          await call();
          if (one.do === "heartbeat") job.expireMs = Math.max(job.expireMs, capped(job, now + leaseMs));
          else if (one.do === "fail") failed(job, one.retryable, now + one.retryMs, now);
          else job.state = JobState.COMPLETED;
          break;
        }
        case "cancel": {
          const job = jobs.at(-1 - one.job);
          if (!job) break;
          const call = queues.cancelJob({ jobId: job.id });
          if (job.state === JobState.COMPLETED || job.state === JobState.FAILED)
            expect((await refusal(call)).reason).toBe("FAILED_PRECONDITION");
          else await call;
          if (job.state === JobState.LEASED) job.canceling = true;
          else if (job.state < JobState.COMPLETED) job.state = JobState.CANCELED;
          break;
        }
        case "redrive": {
          const job = jobs.at(-1 - one.job);
          if (!job) break;
          const call = queues.redriveJob({ subject: { case: "jobId", value: job.id } });
          if (job.state !== JobState.FAILED) {
            expect((await refusal(call)).reason).toBe("FAILED_PRECONDITION");
            break;
          }
          await call;
          Object.assign(job, {
            state: JobState.PENDING,
            limit: job.attempts + job.maxAttempts,
            redrives: job.redrives + 1,
          });
          break;
        }
        case "pass":
          clock.advance(one.ms);
          await swept(world);
          elapse(jobs, clock.now());
      }
    }
    for (const job of jobs) {
      const { state, attempts, redrives } = await get(worker.as, job.id);
      expect({ state, attempts, redrives }).toEqual({
        state: job.state,
        attempts: job.attempts,
        redrives: job.redrives,
      });
    }
    const count = (state: JobState) => BigInt(jobs.filter((job) => job.state === state).length);
    if (jobs.length > 0)
      expect(await statsOf(worker.as, queue)).toMatchObject({
        scheduled: count(JobState.SCHEDULED),
        pending: count(JobState.PENDING),
        leased: count(JobState.LEASED),
        failed: count(JobState.FAILED),
      });
  }

  test("whatever is done in whatever order, jobs are as the model has them", async () => {
    const numRuns = (dialect === "sqlite" ? 60 : 20) * (full ? 20 : 1);
    await fc.assert(fc.asyncProperty(fc.array(step, { minLength: 10, maxLength: 50, size: "max" }), live), { numRuns });
  }, 600_000);
});

describe("the rules of a job", () => {
  const job: Life = {
    attempts: 1,
    attempt_limit: 5,
    max_attempts: 5,
    backoff_ms: 1_000,
    max_backoff_ms: 600_000,
    timeout_ms: null,
    start_ms: 0,
    lease_ms: 1_000,
    lease_expire_ms: 1_000,
    cancel_requested: 0,
  };
  const chance = fc.double({ min: 0, max: 1, noNaN: true });

  test("a back-off lies between half and all of min(max, initial · 2^(n-1)), counted anew after a redrive", () => {
    fc.assert(
      fc.property(
        fc.integer({ min: 1, max: 100 }),
        fc.nat({ max: 100 }),
        fc.nat({ max: 86_400_000 }),
        fc.nat({ max: 86_400_000 }),
        chance,
        (n, before, initial, max, luck) => {
          const life = {
            ...job,
            attempts: before + n,
            attempt_limit: before + 100,
            max_attempts: 100,
            backoff_ms: initial,
            max_backoff_ms: max,
          };
          const most = Math.min(max, initial * 2 ** (n - 1));
          const wait = backoffMs(life, luck);
          expect(wait).toBeGreaterThanOrEqual(Math.floor(most / 2));
          expect(wait).toBeLessThanOrEqual(Math.ceil(most));
        },
      ),
    );
  });

  test("a heartbeat never shortens a lease and never passes the attempt's time", () => {
    const time = fc.nat({ max: 100_000 });
    fc.assert(
      fc.property(time, time, time, fc.option(time), (start, now, leaseMs, timeout) => {
        const life = {
          ...job,
          start_ms: start,
          lease_ms: leaseMs,
          timeout_ms: timeout,
          lease_expire_ms: start + Math.min(leaseMs, timeout ?? leaseMs),
        };
        const until = extendedUntil(life, start + now);
        expect(until).toBeGreaterThanOrEqual(life.lease_expire_ms);
        if (timeout !== null) expect(until).toBeLessThanOrEqual(start + timeout);
      }),
    );
  });

  test("what is to be canceled is canceled when its attempt fails, whatever else may be", () => {
    for (const retryable of [true, false])
      expect(afterFailure({ ...job, cancel_requested: 1 }, { retryable, retryAfterMs: 0 }, 0, 0.5).state).toBe(
        JobState.CANCELED,
      );
  });

  test("a wait is told at most 25 % too long, and never too short", () => {
    fc.assert(
      fc.property(fc.nat({ max: 40 * 86_400_000 }), (wait) => {
        const told = bucketEndMs(bucketOf(wait));
        expect(told).toBeGreaterThanOrEqual(wait * (1 - 1e-6));
        expect(told).toBeLessThanOrEqual(wait * 1.25 * (1 + 1e-6));
      }),
    );
    const counts = new Map([
      [bucketOf(10), 99],
      [bucketOf(1_000), 1],
    ]);
    expect(quantileMs(counts, 0.5)).toBeLessThanOrEqual(12.5);
    expect(quantileMs(counts, 0.99)).toBeLessThanOrEqual(12.5);
    expect(quantileMs(counts, 0.991)).toBeGreaterThanOrEqual(999);
    expect(quantileMs(new Map(), 0.5)).toBeUndefined();
  });
});
