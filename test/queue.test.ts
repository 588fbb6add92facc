import { durationFromMs, timestampFromMs, timestampMs } from "@bufbuild/protobuf/wkt";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { TrustTier } from "../gen/moltwire/bus/v1/agent_pb.ts";
import { JobState } from "../gen/moltwire/queue/v1/job_pb.ts";
import { Conflict } from "../gen/moltwire/queue/v1/queue_service_pb.ts";
import { sql } from "../src/db/db.ts";
import { sweepOldJobs } from "../src/queue/sweep.ts";
import {
  dialects,
  eventually,
  fakeClock,
  type Org,
  type OrgAgent,
  refusal,
  start,
  unique,
  type World,
} from "./harness.ts";
import { bytes, claim, get, json, jsonOf, leaseOf, stateOf, statsOf, submit, swept } from "./queue-fixtures/jobs.ts";

const ms = durationFromMs;

describe.each(dialects)("a queue on %s", (dialect) => {
  const clock = fakeClock();
  let world: World;
  let org: Org;
  let worker: OrgAgent;
  beforeAll(async () => {
    world = await start(dialect, { clock });
    org = await world.org();
    worker = await org.agent();
  });
  afterAll(() => world[Symbol.asyncDispose]());

  /** Moves time and does what is due; the server's own sweep may be at it too. */
  const pass = async (time: number) => {
    clock.advance(time);
    await swept(world);
  };

  test("gives a job to one worker, with all that its submitter wrote, and keeps the result", async () => {
    const queue = unique("q");
    const job = await submit(worker.as, {
      queue,
      payload: json({ text: "hello", n: [1, null, true] }),
      tags: { a: "b" },
      priority: 7,
      maxAttempts: 3,
      timeout: ms(60_000),
      uniqueKey: "once",
    });
    expect(job).toMatchObject({ queue, priority: 7, maxAttempts: 3, tags: { a: "b" }, uniqueKey: "once", attempts: 0 });
    expect(stateOf(job)).toBe("PENDING");
    expect(job.jobId).toMatch(/^job_[0-9a-f]{32}$/);
    expect(job.submitterAgentId).toBe(worker.agentId);
    expect(job.traceId).toMatch(/^[0-9a-f]{32}$/);
    expect(job.payload).toBeUndefined();

    const [leased] = await claim(worker.as, { queues: [queue] });
    expect(jsonOf(leased!.job!.payload)).toEqual({ text: "hello", n: [1, null, true] });
    expect(leased!.job).toMatchObject({ attempts: 1, workerAgentId: worker.agentId });
    expect(timestampMs(leased!.leaseExpireTime!)).toBe(clock.now() + 30_000);
    expect(await claim(worker.as, { queues: [queue] })).toEqual([]);

    const done = await worker.as.queues.completeJob({
      ...leaseOf(leased!),
      result: bytes(Buffer.from("png"), "image/png"),
    });
    expect(stateOf(done.job)).toBe("COMPLETED");
    const { job: kept, attempts } = await worker.as.queues.getJob({ jobId: job.jobId });
    expect(kept!.result).toMatchObject({
      contentType: "image/png",
      kind: { case: "data", value: new Uint8Array(Buffer.from("png")) },
    });
    expect(jsonOf(kept!.payload)).toEqual({ text: "hello", n: [1, null, true] });
    expect(attempts).toHaveLength(1);
    expect(attempts[0]).toMatchObject({ attempt: 1, workerAgentId: worker.agentId });
    expect(attempts[0]!.error).toBeUndefined();
  });

  test("shows its submitter what its worker is at: payload, attempt, lease and progress", async () => {
    const queue = unique("followed");
    const submitter = await org.agent();
    const traceId = "c".repeat(32);
    const headers = { traceparent: `00-${traceId}-${"d".repeat(16)}-01` };
    const { job } = await submitter.as.queues.submitJob({ job: { queue, payload: json({ do: "it" }) } }, { headers });
    expect(job!.traceId).toBe(traceId);
    expect(job!.spanId).toMatch(/^[0-9a-f]{16}$/);
    const [leased] = await claim(worker.as, { queues: [queue], lease: ms(45_000) });
    expect(leased!.job!.traceId).toBe(traceId);
    const progress = { fraction: 0.5, message: "half" };
    await worker.as.queues.heartbeatJob({ ...leaseOf(leased!), progress });
    const seen = await get(submitter.as, job!.jobId);
    expect(seen).toMatchObject({ attempts: 1, workerAgentId: worker.agentId, progress });
    expect([stateOf(seen), jsonOf(seen.payload)]).toEqual(["LEASED", { do: "it" }]);
    expect(timestampMs(seen.leaseExpireTime!)).toBe(clock.now() + 45_000);
    await worker.as.queues.completeJob({ ...leaseOf(leased!), result: json("done") });
    expect(jsonOf((await get(submitter.as, job!.jobId)).result)).toBe("done");
  });

  test("has its defaults", async () => {
    const job = await submit(worker.as);
    expect(job).toMatchObject({ queue: "default", priority: 5, maxAttempts: 5 });
    expect(job.backoff).toMatchObject({ initial: { seconds: 1n }, max: { seconds: 600n } });
    const [leased] = await claim(worker.as);
    expect(leased!.job!.jobId).toBe(job.jobId);
    expect(leased!.job!.payload).toBeUndefined();
  });

  test("gives the highest priority first, then the oldest, over several queues", async () => {
    const [a, b, c] = [unique("a"), unique("b"), unique("c")];
    const results = await worker.as.queues.submitJobs({
      jobs: [
        { queue: a, priority: 1 },
        { queue: a, priority: 10 },
        { queue: b, priority: 5 },
        { queue: c, priority: 10 },
        { queue: a, priority: 5 },
        { queue: b, priority: 10 },
      ],
    });
    const ids = results.results.map(({ job }) => job!.jobId);
    const first = await claim(worker.as, { queues: [a, b, c], maxJobs: 2 });
    const rest = await claim(worker.as, { queues: [c, b, a], maxJobs: 10 });
    const order = [...first, ...rest].map(({ job }) => ids.indexOf(job!.jobId));
    expect(order).toEqual([1, 3, 5, 2, 4, 0]);
  });

  test("holds a job back until its time", async () => {
    const queue = unique("later");
    const job = await submit(worker.as, { queue, runAt: timestampFromMs(clock.now() + 10_000) });
    expect(stateOf(job)).toBe("SCHEDULED");
    expect(await claim(worker.as, { queues: [queue] })).toEqual([]);
    clock.advance(9_999);
    expect(await claim(worker.as, { queues: [queue] })).toEqual([]);
    clock.advance(1);
    expect(await claim(worker.as, { queues: [queue, unique("other")] })).toHaveLength(1);
    expect(
      (await refusal(submit(worker.as, { queue, runAt: timestampFromMs(clock.now() + 370 * 86_400_000) }))).metadata,
    ).toMatchObject({ field: "job.run_at" });
  });

  test("makes due jobs pending without a claim", async () => {
    const queue = unique("due");
    const job = await submit(worker.as, { queue, runAt: timestampFromMs(clock.now() + 1_000) });
    await pass(1_000);
    expect(stateOf(await get(worker.as, job.jobId))).toBe("PENDING");
  });

  describe("a unique key", () => {
    test("is one unfinished job's, whoever asks at once", async () => {
      const queue = unique("unique");
      const all = await Promise.all(
        Array.from({ length: 20 }, () => worker.as.queues.submitJob({ job: { queue, uniqueKey: "k" } })),
      );
      expect(new Set(all.map(({ job }) => job!.jobId)).size).toBe(1);
      expect(all.filter(({ existing }) => !existing)).toHaveLength(1);
      expect((await statsOf(worker.as, queue))!.pending).toBe(1n);
    });

    test("is another queue's own, and free once the job has ended", async () => {
      const queue = unique("unique");
      const first = await submit(worker.as, { queue, uniqueKey: "k" });
      const elsewhere = await submit(worker.as, { queue: unique("unique"), uniqueKey: "k" });
      expect(elsewhere.jobId).not.toBe(first.jobId);
      const [leased] = await claim(worker.as, { queues: [queue] });
      expect((await submit(worker.as, { queue, uniqueKey: "k" })).jobId).toBe(first.jobId);
      await worker.as.queues.completeJob(leaseOf(leased!));
      expect((await submit(worker.as, { queue, uniqueKey: "k" })).jobId).not.toBe(first.jobId);
    });

    test("refuses with REJECT, naming the job and the place, and undoes the whole batch", async () => {
      const queue = unique("unique");
      const first = await submit(worker.as, { queue, uniqueKey: "k" });
      const refused = await refusal(
        worker.as.queues.submitJobs({
          jobs: [{ queue }, { queue, uniqueKey: "k", conflict: Conflict.REJECT }],
        }),
      );
      expect(refused).toMatchObject({ reason: "ALREADY_EXISTS", metadata: { resource: "job", id: first.jobId } });
      expect(refused.metadata.field).toBe("jobs[1].unique_key");
      expect((await statsOf(worker.as, queue))!.pending).toBe(1n);
    });

    test("is taken by the first of a batch", async () => {
      const queue = unique("unique");
      const { results } = await worker.as.queues.submitJobs({
        jobs: [{ queue, uniqueKey: "k" }, { queue }, { queue, uniqueKey: "k" }],
      });
      expect(results.map(({ existing }) => existing)).toEqual([false, false, true]);
      expect(results[2]!.job!.jobId).toBe(results[0]!.job!.jobId);
    });
  });

  describe("limits", () => {
    test("of a payload name the field, the limit and what came", async () => {
      const queue = unique("large");
      const limit = 102_400;
      await submit(worker.as, { queue, payload: bytes(new Uint8Array(limit)) });
      await submit(worker.as, { queue, payload: json("x".repeat(limit - 2)) });
      expect(await refusal(submit(worker.as, { queue, payload: json("x".repeat(limit - 1)) }))).toMatchObject({
        reason: "PAYLOAD_TOO_LARGE",
        metadata: { field: "job.payload", limit: "102400", actual: "102401" },
      });
      const batch = worker.as.queues.submitJobs({
        jobs: [{ queue }, { queue, payload: bytes(new Uint8Array(limit + 1)) }],
      });
      expect((await refusal(batch)).metadata.field).toBe("jobs[1].payload");
      const deep = JSON.parse("[".repeat(33) + "]".repeat(33));
      expect(await refusal(submit(worker.as, { queue, payload: json(deep) }))).toMatchObject({
        reason: "PAYLOAD_TOO_LARGE",
        metadata: { limit: "32" },
      });
      const [leased] = await claim(worker.as, { queues: [queue] });
      const result = bytes(new Uint8Array(limit + 1));
      expect((await refusal(worker.as.queues.completeJob({ ...leaseOf(leased!), result }))).metadata.field).toBe(
        "result",
      );
    });

    test("of a batch are 1,000 jobs and 3 MiB", async () => {
      const queue = unique("batch");
      const { results } = await worker.as.queues.submitJobs({
        jobs: Array.from({ length: 1_000 }, (_, n) => ({ queue, payload: json(n) })),
      });
      expect(new Set(results.map(({ job }) => job!.jobId)).size).toBe(1_000);
      const claimed = await claim(worker.as, { queues: [queue], maxJobs: 100 });
      expect(claimed.map(({ job }) => jsonOf(job!.payload))).toEqual(Array.from({ length: 100 }, (_, n) => n));
      const many = worker.as.queues.submitJobs({ jobs: Array.from({ length: 1_001 }, () => ({ queue })) });
      expect((await refusal(many)).reason).toBe("INVALID_REQUEST");
      const heavy = worker.as.queues.submitJobs({
        jobs: Array.from({ length: 31 }, () => ({ queue, payload: bytes(new Uint8Array(102_000)) })),
      });
      expect(await refusal(heavy)).toMatchObject({
        reason: "PAYLOAD_TOO_LARGE",
        metadata: { field: "jobs", limit: "3145728" },
      });
    });

    test("of unfinished jobs are the organisation's", async () => {
      const full = await world.org();
      const { as } = await full.agent();
      await world.server.app.db.tx((tx) =>
        tx.run(sql`
          insert into queue_level (org_id, queue, shard, scheduled, pending, leased, failed)
          values (${full.orgId}, ${""}, ${99}, 0, ${999_999}, 0, 0)`),
      );
      const job = await submit(as);
      expect(await refusal(submit(as))).toMatchObject({
        code: "ResourceExhausted",
        reason: "QUOTA_EXCEEDED",
        metadata: { resource: "jobs", limit: "1000000" },
      });
      await as.queues.cancelJob({ jobId: job.jobId });
      await submit(as);
    });

    test("of queues are the organisation's; one without jobs is forgotten", async () => {
      const clock = fakeClock();
      await using world = await start(dialect, { clock });
      const { app } = world.server;
      const full = await world.org();
      const { as } = await full.agent();
      const spare = unique("spare");
      const job = await submit(as, { queue: spare });
      const names =
        dialect === "sqlite"
          ? sql`(with recursive n(n) as (select 1 union all select n + 1 from n where n < 9998) select n from n) names`
          : sql`generate_series(1, 9998) as names(n)`;
      await app.db.tx((tx) =>
        tx.run(sql`
          insert into queue_level (org_id, queue, shard, scheduled, pending, leased, failed)
          select ${full.orgId}, ${"q"} || n, 0, 0, 1, 0, 0 from ${names}`),
      );
      const tooMany = as.queues.submitJobs({ jobs: [{ queue: "one" }, { queue: "two" }, { queue: "one" }] });
      expect(await refusal(tooMany)).toMatchObject({
        code: "ResourceExhausted",
        reason: "QUOTA_EXCEEDED",
        metadata: { resource: "queues", limit: "10000" },
      });
      await submit(as, { queue: "one" });
      expect((await refusal(submit(as, { queue: "two" }))).reason).toBe("QUOTA_EXCEEDED");
      await submit(as, { queue: spare });
      await submit((await (await world.org()).agent()).as, { queue: "two" });
      // One of its two jobs is left to do.
      await as.queues.cancelJob({ jobId: job.jobId });
      clock.advance(2 * 3_600_000);
      await sweepOldJobs(app);
      expect((await refusal(submit(as, { queue: "two" }))).reason).toBe("QUOTA_EXCEEDED");
      const [left] = (await as.queues.listJobs({ queue: spare })).jobs;
      await as.queues.cancelJob({ jobId: left!.jobId });
      clock.advance(2 * 3_600_000);
      await submit(as, { queue: "one" }); // something happened here lately, and it has jobs
      await sweepOldJobs(app);
      // The hour was over before it was empty: now it goes with its last job.
      clock.advance(8 * 24 * 3_600_000);
      // The server's own sweep may be at some of it, which another passes over.
      await eventually(async () => {
        await sweepOldJobs(app);
        return (await as.queues.getQueueStats({ queue: spare })).queues.length === 0;
      });
      await submit(as, { queue: "two" });
      expect(await statsOf(as, "one")).toMatchObject({ pending: 2n });
    });

    test.each([
      ["queue", { queue: "no spaces" }],
      ["priority", { priority: 11 }],
      ["max_attempts", { maxAttempts: 101 }],
      ["timeout", { timeout: ms(999) }],
      ["backoff.initial", { backoff: { initial: ms(86_400_001) } }],
      ["unique_key", { uniqueKey: "x".repeat(257) }],
    ])("of %s are told by its name", async (field, job) => {
      expect(await refusal(submit(worker.as, job))).toMatchObject({
        reason: "INVALID_REQUEST",
        metadata: { field: `job.${field}` },
      });
    });
  });

  describe("a lease", () => {
    const lease = async (init = {}, claiming = {}) => {
      const queue = unique("lease");
      await submit(worker.as, { queue, ...init });
      const [leased] = await claim(worker.as, { queues: [queue], lease: ms(10_000), ...claiming });
      return { queue, leased: leased!, token: leaseOf(leased!) };
    };
    const expiry = async (jobId: string) => timestampMs((await get(worker.as, jobId)).leaseExpireTime!);

    test("is extended by a heartbeat and never shortened", async () => {
      const { token } = await lease();
      const began = clock.now();
      clock.advance(6_000);
      const { leaseExpireTime, cancelRequested } = await worker.as.queues.heartbeatJob(token);
      expect([timestampMs(leaseExpireTime!), cancelRequested]).toEqual([began + 16_000, false]);
      clock.advance(-3_000);
      await worker.as.queues.heartbeatJob(token);
      expect(await expiry(token.jobId)).toBe(began + 16_000);
      clock.advance(3_000);
    });

    test("hands its progress to the next attempt, which has another token", async () => {
      const { queue, token } = await lease();
      const progress = { fraction: 0.5, message: "half", details: { page: 7 } };
      await worker.as.queues.heartbeatJob({ ...token, progress });
      await worker.as.queues.heartbeatJob(token);
      await pass(10_000);
      const other = await org.agent();
      const [again] = await claim(other.as, { queues: [queue] });
      expect(again!.job).toMatchObject({ jobId: token.jobId, attempts: 2, progress });
      expect(again!.job!.error).toMatchObject({ code: "lease_expired", attempt: 1 });
      expect(again!.leaseToken).not.toBe(token.leaseToken);
      const stale = [
        () => worker.as.queues.heartbeatJob({ ...token, progress: { fraction: 1 } }),
        () => worker.as.queues.completeJob(token),
        () => worker.as.queues.failJob(token),
      ];
      for (const call of stale)
        expect(await refusal(call())).toMatchObject({ code: "FailedPrecondition", reason: "LEASE_LOST" });
      const now = await get(worker.as, token.jobId);
      expect(now).toMatchObject({ attempts: 2, workerAgentId: other.agentId, progress });
      await other.as.queues.completeJob(leaseOf(again!));
      expect((await refusal(other.as.queues.completeJob(leaseOf(again!)))).reason).toBe("LEASE_LOST");
    });

    test("is over when its time is, before anybody looked", async () => {
      const { token } = await lease();
      clock.advance(9_999);
      await worker.as.queues.heartbeatJob(token);
      clock.advance(10_000);
      expect((await refusal(worker.as.queues.heartbeatJob(token))).reason).toBe("LEASE_LOST");
      await swept(world);
    });

    test("lost at the last attempt makes exactly one dead job", async () => {
      const { queue, token } = await lease({ maxAttempts: 1 });
      clock.advance(10_000);
      await Promise.all([swept(world), swept(world)]);
      const { jobs } = await worker.as.queues.listDeadJobs({ queue });
      expect(jobs.map(({ jobId }) => jobId)).toEqual([token.jobId]);
      expect(jobs[0]).toMatchObject({ state: JobState.FAILED, error: { code: "lease_expired", attempt: 1 } });
      expect(await claim(worker.as, { queues: [queue] })).toEqual([]);
      const { attempts } = await worker.as.queues.getJob({ jobId: token.jobId });
      expect(attempts.map(({ error }) => error?.code)).toEqual(["lease_expired"]);
    });

    test("ends with the attempt's time, over all heartbeats", async () => {
      const { token } = await lease({ timeout: ms(15_000) });
      const began = clock.now();
      clock.advance(8_000);
      await worker.as.queues.heartbeatJob(token);
      expect(await expiry(token.jobId)).toBe(began + 15_000);
      await pass(7_000);
      const job = await get(worker.as, token.jobId);
      expect([stateOf(job), job.error?.code]).toEqual(["PENDING", "attempt_timeout"]);
    });

    test("of an unknown job, a foreign organisation's and a guessed token are all lost alike", async () => {
      const { token } = await lease();
      const foreign = await (await world.org()).agent();
      const answers = await Promise.all([
        refusal(worker.as.queues.completeJob({ ...token, leaseToken: "guess" })),
        refusal(worker.as.queues.completeJob({ jobId: `job_${"0".repeat(32)}`, leaseToken: "guess" })),
        refusal(foreign.as.queues.completeJob(token)),
      ]);
      expect(new Set(answers.map(({ error, reason }) => `${reason} ${error.rawMessage}`)).size).toBe(1);
      await worker.as.queues.completeJob(token);
    });
  });

  describe("an attempt that fails", () => {
    const failing = async (init = {}) => {
      const queue = unique("fail");
      const { jobId } = await submit(worker.as, { queue, ...init });
      const fail = async (request = {}) => {
        const [leased] = await claim(worker.as, { queues: [queue] });
        const error = { code: "boom", message: "it went wrong" };
        return (await worker.as.queues.failJob({ ...leaseOf(leased!), error, retryable: true, ...request })).job!;
      };
      return { queue, jobId, fail };
    };

    test("is tried again after a back-off that doubles up to its bound", async () => {
      const { fail } = await failing({ maxAttempts: 6, backoff: { initial: ms(1_000), max: ms(5_000) } });
      for (const full of [1_000, 2_000, 4_000, 5_000, 5_000]) {
        const job = await fail();
        expect(stateOf(job)).toBe("SCHEDULED");
        const wait = timestampMs(job.runTime!) - clock.now();
        expect(wait).toBeGreaterThanOrEqual(full / 2);
        expect(wait).toBeLessThanOrEqual(full);
        clock.advance(wait);
      }
      expect(stateOf(await fail())).toBe("FAILED");
    });

    test("waits as long as its worker says", async () => {
      const { queue, fail } = await failing();
      const job = await fail({ retryAfter: ms(77_000) });
      expect(timestampMs(job.runTime!)).toBe(clock.now() + 77_000);
      expect(job.error).toMatchObject({ code: "boom", message: "it went wrong", attempt: 1 });
      clock.advance(77_000);
      expect(stateOf(await fail({ retryAfter: ms(0) }))).toBe("PENDING");
      expect(await claim(worker.as, { queues: [queue] })).toHaveLength(1);
    });

    test("for good is dead at once, and says so in an event", async () => {
      const { queue, jobId, fail } = await failing();
      expect(stateOf(await fail({ retryable: false }))).toBe("FAILED");
      const ofJob = async () => {
        const { events } = await worker.as.events.listEvents({ types: ["job.*"], pageSize: 250 });
        return events.filter(({ payload }) => payload?.job_id === jobId);
      };
      await world.settled();
      expect(await ofJob()).toMatchObject([
        { type: "job.failed", payload: { queue, attempts: 1, error: { code: "boom", message: "it went wrong" } } },
      ]);
    });

    test("keeps its history when it is redriven, with as many attempts again", async () => {
      const { queue, jobId, fail } = await failing({ maxAttempts: 2, backoff: { initial: ms(0) } });
      await fail();
      await fail();
      expect(await worker.as.queues.redriveJob({ subject: { case: "jobId", value: jobId } })).toMatchObject({
        redriven: 1,
      });
      const [act] = (await org.admin.admin.listAuditEvents({ pageSize: 1 })).auditEvents;
      expect([act!.method, act!.agentId]).toEqual(["moltwire.queue.v1.QueueService/RedriveJob", worker.agentId]);
      const again = await get(worker.as, jobId);
      expect(again).toMatchObject({ attempts: 2, redrives: 1, state: JobState.PENDING });
      expect(again.endTime).toBeUndefined();
      const both = await refusal(worker.as.queues.redriveJob({ subject: { case: "jobId", value: jobId } }));
      expect(both).toMatchObject({ reason: "FAILED_PRECONDITION", metadata: { state: "PENDING" } });
      expect(stateOf(await fail())).toBe("PENDING");
      const [leased] = await claim(worker.as, { queues: [queue] });
      await worker.as.queues.completeJob(leaseOf(leased!));
      const { attempts } = await worker.as.queues.getJob({ jobId });
      expect(attempts.map(({ attempt, error }) => [attempt, error?.code])).toEqual([
        [1, "boom"],
        [2, "boom"],
        [3, "boom"],
        [4, undefined],
      ]);
      expect((await statsOf(worker.as, queue))!).toMatchObject({ pending: 0n, leased: 0n, failed: 0n, scheduled: 0n });
    });
  });

  test("redrives the dead jobs of a queue, oldest death first, but for those whose key is taken", async () => {
    const queue = unique("redrive");
    const jobs = Array.from({ length: 3 }, (_, n) => ({ queue, uniqueKey: `k${n}` }));
    const { results } = await worker.as.queues.submitJobs({ jobs });
    const dead = results.map(({ job }) => job!.jobId);
    for (const leased of await claim(worker.as, { queues: [queue], maxJobs: 3 })) {
      clock.advance(1);
      await worker.as.queues.failJob(leaseOf(leased));
    }
    const holder = await submit(worker.as, { queue, uniqueKey: "k1" });
    const one = await refusal(worker.as.queues.redriveJob({ subject: { case: "jobId", value: dead[1]! } }));
    expect(one).toMatchObject({ reason: "ALREADY_EXISTS", metadata: { resource: "job", id: holder.jobId } });
    expect(await worker.as.queues.redriveJob({ subject: { case: "queue", value: queue } })).toMatchObject({
      redriven: 2,
      more: false,
    });
    const { jobs: left } = await worker.as.queues.listDeadJobs({ queue });
    expect(left.map(({ jobId }) => jobId)).toEqual([dead[1]]);
  });

  test("redrives at most 1,000 at once, and says that there are more", async () => {
    const queue = unique("many-dead");
    for (const count of [1_000, 1])
      await worker.as.queues.submitJobs({ jobs: Array.from({ length: count }, () => ({ queue })) });
    await world.server.app.db.tx(async (tx) => {
      await tx.run(
        sql`update queue_job set state = 5, end_ms = ${clock.now()} where org_id = ${org.orgId} and queue = ${queue}`,
      );
      await tx.run(
        sql`update queue_level set failed = failed + pending, pending = 0 where org_id = ${org.orgId} and queue = ${queue}`,
      );
    });
    const redrive = () => worker.as.queues.redriveJob({ subject: { case: "queue", value: queue } });
    expect(await redrive()).toMatchObject({ redriven: 1_000, more: true });
    expect(await statsOf(worker.as, queue)).toMatchObject({ pending: 1_000n, failed: 1n });
    expect(await redrive()).toMatchObject({ redriven: 1, more: false });
  });

  describe("a cancelation", () => {
    test("ends a job that nobody has at once, and can be repeated", async () => {
      const queue = unique("cancel");
      const pending = await submit(worker.as, { queue });
      const later = await submit(worker.as, { queue, runAt: timestampFromMs(clock.now() + 1_000) });
      for (const { jobId } of [pending, later, pending])
        expect(stateOf((await worker.as.queues.cancelJob({ jobId })).job)).toBe("CANCELED");
      clock.advance(1_000);
      expect(await claim(worker.as, { queues: [queue], maxJobs: 10 })).toEqual([]);
    });

    test("of a leased job is told to its worker, and holds when the attempt fails or its lease ends", async () => {
      const queue = unique("cancel");
      await worker.as.queues.submitJobs({ jobs: [{ queue }, { queue }, { queue }] });
      const [a, b, c] = await claim(worker.as, { queues: [queue], maxJobs: 3, lease: ms(5_000) });
      for (const { job } of [a!, b!, c!]) {
        const { job: marked } = await worker.as.queues.cancelJob({ jobId: job!.jobId });
        expect(marked).toMatchObject({ state: JobState.LEASED, cancelRequested: true });
      }
      expect((await worker.as.queues.heartbeatJob(leaseOf(a!))).cancelRequested).toBe(true);
      expect(stateOf((await worker.as.queues.failJob({ ...leaseOf(a!), retryable: true })).job)).toBe("CANCELED");
      expect(stateOf((await worker.as.queues.completeJob(leaseOf(b!))).job)).toBe("COMPLETED");
      await pass(5_000);
      expect(stateOf(await get(worker.as, c!.job!.jobId))).toBe("CANCELED");
      const late = await refusal(worker.as.queues.cancelJob({ jobId: b!.job!.jobId }));
      expect(late).toMatchObject({ reason: "FAILED_PRECONDITION", metadata: { state: "COMPLETED" } });
    });
  });

  test("tells of completed jobs by events, and of its submitter's only", async () => {
    const queue = unique("events");
    const submitter = await org.agent();
    const other = await org.agent();
    const job = await submit(submitter.as, { queue });
    const [leased] = await claim(worker.as, { queues: [queue] });
    await worker.as.queues.completeJob(leaseOf(leased!));
    const seen = async (by: OrgAgent) => (await by.as.events.listEvents({ types: ["job.completed"] })).events;
    await world.settled();
    expect(await seen(submitter)).toMatchObject([
      { payload: { job_id: job.jobId, queue, worker_agent_id: worker.agentId, attempts: 1 }, traceId: job.traceId },
    ]);
    expect(await seen(other)).toEqual([]);
  });

  test("lists pending and leased jobs unless told otherwise, newest first, page by page", async () => {
    const queue = unique("list");
    const { results } = await worker.as.queues.submitJobs({
      jobs: [...Array.from({ length: 5 }, () => ({ queue })), { queue, runAt: timestampFromMs(clock.now() + 99_000) }],
    });
    const ids = results.map(({ job }) => job!.jobId);
    const [leased, completed] = await claim(worker.as, { queues: [queue], maxJobs: 2 });
    await worker.as.queues.completeJob(leaseOf(completed!));
    const list = async (request = {}) => {
      const found: string[] = [];
      for (let pageToken = ""; ; ) {
        const page = await worker.as.queues.listJobs({ queue, pageSize: 2, pageToken, ...request });
        found.push(...page.jobs.map(({ jobId }) => jobId));
        if (!(pageToken = page.nextPageToken)) return found.map((id) => ids.indexOf(id));
      }
    };
    expect(leased!.job!.jobId).toBe(ids[0]);
    expect(await list()).toEqual([4, 3, 2, 0]);
    expect(await list({ states: [JobState.SCHEDULED, JobState.COMPLETED] })).toEqual([5, 1]);
    expect(await list({ agentId: worker.agentId })).toEqual([4, 3, 2, 0]);
    expect(await list({ agentId: "agt_nobody" })).toEqual([]);
    const page = await worker.as.queues.listJobs({ queue, pageSize: 1 });
    const wrong = await refusal(worker.as.queues.listJobs({ queue: unique("other"), pageToken: page.nextPageToken }));
    expect(wrong.reason).toBe("INVALID_PAGE_TOKEN");
  });

  test("knows how it stands, and how long jobs waited within the last hour", async () => {
    const queue = unique("stats");
    const oldest = clock.now();
    await worker.as.queues.submitJobs({ jobs: Array.from({ length: 10 }, () => ({ queue, maxAttempts: 1 })) });
    clock.advance(1_000);
    const [a, b] = await claim(worker.as, { queues: [queue], maxJobs: 4 });
    clock.advance(19_000);
    await claim(worker.as, { queues: [queue], maxJobs: 1 });
    await worker.as.queues.completeJob(leaseOf(a!));
    await worker.as.queues.failJob(leaseOf(b!));
    await submit(worker.as, { queue, runAt: timestampFromMs(clock.now() + 5_000) });
    const stats = (await statsOf(worker.as, queue))!;
    expect(stats).toMatchObject({ scheduled: 1n, pending: 5n, leased: 3n, failed: 1n });
    expect(timestampMs(stats.oldestPendingTime!)).toBe(oldest);
    expect(stats.lastHour).toMatchObject({ submitted: 11n, completed: 1n, failed: 1n, canceled: 0n });
    const { jobs } = await worker.as.queues.listJobs({ queue, states: [JobState.PENDING], pageSize: 2 });
    for (const { jobId } of jobs) await worker.as.queues.cancelJob({ jobId });
    expect(await statsOf(worker.as, queue)).toMatchObject({ pending: 3n, lastHour: { canceled: 2n } });
    const waits = [stats.lastHour!.p50Wait!, stats.lastHour!.p99Wait!].map(
      (d) => Number(d.seconds) * 1_000 + d.nanos / 1e6,
    );
    expect(waits[0]).toBeGreaterThanOrEqual(1_000);
    expect(waits[0]).toBeLessThanOrEqual(1_251);
    expect(waits[1]).toBeGreaterThanOrEqual(20_000);
    expect(waits[1]).toBeLessThanOrEqual(25_001);
    await pass(3_660_000);
    expect((await statsOf(worker.as, queue))!.lastHour).toMatchObject({
      ...{ submitted: 0n, completed: 0n, canceled: 0n },
    });
  });

  describe("a private queue", () => {
    test("is its owner's and its administrators', and as if it were not there to others", async () => {
      const owner = await org.agent();
      const queue = `${owner.agentId}/mine`;
      const job = await submit(owner.as, { queue });
      const other = worker.as.queues;
      for (const call of [
        () => other.submitJob({ job: { queue } }),
        () => other.claimJobs({ queues: ["default", queue] }),
      ])
        expect(await refusal(call())).toMatchObject({ code: "PermissionDenied", reason: "POLICY_DENIED" });
      expect((await refusal(other.getJob({ jobId: job.jobId }))).reason).toBe("NOT_FOUND");
      expect((await refusal(other.cancelJob({ jobId: job.jobId }))).reason).toBe("NOT_FOUND");
      expect((await other.listJobs({ queue })).jobs).toEqual([]);
      expect((await other.listJobs({ pageSize: 250 })).jobs.filter((one) => one.queue === queue)).toEqual([]);
      expect((await other.getQueueStats({ queue })).queues).toEqual([]);
      expect((await other.getQueueStats({})).queues.filter((one) => one.queue === queue)).toEqual([]);
      expect(await other.redriveJob({ subject: { case: "queue", value: queue } })).toMatchObject({ redriven: 0 });
      expect((await org.admin.queues.listJobs({ queue })).jobs).toHaveLength(1);
      const [leased] = await claim(owner.as, { queues: [queue] });
      await owner.as.queues.failJob(leaseOf(leased!));
      expect((await other.listDeadJobs({})).jobs.filter((one) => one.queue === queue)).toEqual([]);
      const { decisions } = await org.admin.policies.listDecisions({ agentId: worker.agentId });
      // Submit and claim; then get, cancel and redrive, to which the queue is not there since both are denied.
      const four = (action: string) => Array.from({ length: 4 }, () => action);
      expect(decisions.map(({ question }) => question?.action).toSorted()).toEqual([
        ...four("claim_job"),
        ...four("enqueue_job"),
      ]);
    });

    test("is all that an agent of an outer tier has", async () => {
      const partner = await org.agent({ trustTier: TrustTier.EXTERNAL_PARTNER });
      expect((await refusal(submit(partner.as, { queue: "shared" }))).reason).toBe("POLICY_DENIED");
      const own = `${partner.agentId}/own`;
      await submit(partner.as, { queue: own });
      expect(await claim(partner.as, { queues: [own] })).toHaveLength(1);
    });
  });

  test("of another organisation is empty and its jobs are not there", async () => {
    const queue = unique("foreign");
    const job = await submit(worker.as, { queue });
    const stranger = await (await world.org()).agent();
    expect(await claim(stranger.as, { queues: [queue] })).toEqual([]);
    expect((await stranger.as.queues.getQueueStats({ queue })).queues).toEqual([]);
    const [foreign, random] = await Promise.all(
      [job.jobId, `job_${"0".repeat(32)}`].map((jobId) => refusal(stranger.as.queues.getJob({ jobId }))),
    );
    expect([foreign!.reason, foreign!.error.rawMessage]).toEqual([random!.reason, random!.error.rawMessage]);
  });

  test("lets an administrator act for an agent, and for none", async () => {
    const queue = unique("admin");
    const { job } = await org.admin.queues.submitJob({ agentId: worker.agentId, job: { queue } });
    expect(job!.submitterAgentId).toBe(worker.agentId);
    expect(await submit(org.admin, { queue })).toMatchObject({ submitterAgentId: "" });
    const claimed = await claim(org.admin, { queues: [queue], maxJobs: 2, agentId: worker.agentId });
    expect(claimed.map((one) => one.job!.workerAgentId)).toEqual([worker.agentId, worker.agentId]);
    expect((await refusal(claim(worker.as, { agentId: "agt_other" }))).reason).toBe("NOT_FOUND");
  });

  test("answers a repeated claim with the same leases", async () => {
    const queue = unique("repeat");
    await worker.as.queues.submitJobs({ jobs: [{ queue }, { queue }] });
    const headers = { "idempotency-key": unique("key") };
    const first = await worker.as.queues.claimJobs({ queues: [queue] }, { headers });
    const again = await worker.as.queues.claimJobs({ queues: [queue] }, { headers });
    expect(again.jobs).toEqual(first.jobs);
    expect((await statsOf(worker.as, queue))!.pending).toBe(1n);
  });
});
