import { durationFromMs, timestampFromMs, timestampMs } from "@bufbuild/protobuf/wkt";
import { ConnectError } from "@connectrpc/connect";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { type Job, JobState } from "../gen/moltwire/queue/v1/job_pb.ts";
import type { JobChange, WorkResponse } from "../gen/moltwire/queue/v1/queue_service_pb.ts";
import { sweepOldJobs } from "../src/queue/sweep.ts";
import { nameOf } from "./bus-fixtures/bus.ts";
import { storage } from "./bus-fixtures/storage.ts";
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
import { claim, get, json, jsonOf, leaseOf, stateOf, statsOf, submit, swept } from "./queue-fixtures/jobs.ts";

const ms = durationFromMs;
const reasonOf = async (call: Promise<unknown>) => (await refusal(call)).reason;

describe.each(dialects)("waiting for jobs on %s", (dialect) => {
  let world: World;
  let org: Org;
  let worker: OrgAgent;
  beforeAll(async () => {
    world = await start(dialect);
    org = await world.org();
    worker = await org.agent();
  });
  afterAll(() => world[Symbol.asyncDispose]());

  /** As long as a claim may wait: one that is answered in less was told. */
  const longMs = 60_000;
  const waitFor = (queue: string, wait = longMs, options = {}) =>
    worker.as.queues.claimJobs({ queues: [unique("empty"), queue], wait: ms(wait) }, options);

  test("a claim waits until a job comes", async () => {
    const queue = unique("wait");
    const began = Date.now();
    const waiting = waitFor(queue);
    await new Promise((resolve) => setTimeout(resolve, 50));
    const job = await submit(worker.as, { queue, payload: json("come") });
    const { jobs } = await waiting;
    expect(jobs.map((one) => [one.job!.jobId, jsonOf(one.job!.payload)])).toEqual([[job.jobId, "come"]]);
    expect(Date.now() - began).toBeLessThan(longMs);
  });

  test("a claim waits until the time of a job, submitted before or meanwhile", async () => {
    const queue = unique("due");
    await submit(worker.as, { queue, runAt: timestampFromMs(Date.now() + 3_600_000) });
    const waiting = waitFor(queue);
    const dueMs = Date.now() + 300;
    const job = await submit(worker.as, { queue, runAt: timestampFromMs(dueMs) });
    const { jobs } = await waiting;
    expect(jobs.map((one) => one.job!.jobId)).toEqual([job.jobId]);
    const lateMs = timestampMs(jobs[0]!.job!.startTime!) - dueMs;
    expect(lateMs).toBeGreaterThanOrEqual(0);
    expect(lateMs).toBeLessThan(longMs - 1_000);
  });

  test("a claim waits for a lease that ends", async () => {
    const queue = unique("expire");
    await submit(worker.as, { queue });
    const [held] = await claim(worker.as, { queues: [queue], lease: ms(1_000) });
    const { jobs } = await waitFor(queue);
    expect(jobs[0]!.job).toMatchObject({ jobId: held!.job!.jobId, attempts: 2 });
    const lateMs = timestampMs(jobs[0]!.job!.startTime!) - timestampMs(held!.leaseExpireTime!);
    expect(lateMs).toBeGreaterThanOrEqual(0);
    expect(lateMs).toBeLessThan(longMs - 2_000);
  });

  test("a claim that waited in vain answers that there was none", async () => {
    const began = Date.now();
    expect((await waitFor(unique("vain"), 300)).jobs).toEqual([]);
    expect(Date.now() - began).toBeGreaterThanOrEqual(300);
    expect(await reasonOf(waitFor(unique("long"), 60_001))).toBe("INVALID_REQUEST");
  });

  test("many that wait hold no connection, and one of them gets the job", async () => {
    const queue = unique("crowd");
    const leave = new AbortController();
    const waiting = Array.from({ length: 60 }, () => waitFor(queue, longMs, { signal: leave.signal }));
    const settled: Job[] = [];
    for (const call of waiting)
      call.then(
        ({ jobs }) => settled.push(...jobs.map(({ job }) => job!)),
        () => {},
      );
    await new Promise((resolve) => setTimeout(resolve, 200));
    const other = unique("other");
    await submit(worker.as, { queue: other });
    expect(await claim(worker.as, { queues: [other] })).toHaveLength(1);
    const job = await submit(worker.as, { queue });
    await eventually(() => settled.length > 0);
    leave.abort();
    await Promise.allSettled(waiting);
    expect(settled.map(({ jobId }) => jobId)).toEqual([job.jobId]);
    expect(await get(worker.as, job.jobId)).toMatchObject({ state: JobState.LEASED, attempts: 1 });
  });

  /** How many claims the server has seen end because their callers had gone. */
  const canceledClaims = async () => {
    const headers = { authorization: `Bearer ${world.operatorKey}` };
    const text = await (await fetch(`${world.url}/metrics`, { headers })).text();
    return Number(/^moltwire_rpc_seconds_count\{(?=.*ClaimJobs)(?=.*"canceled").*\} (\d+)$/m.exec(text)?.[1] ?? 0);
  };

  test("a claim whose caller has gone takes nothing", async () => {
    const queue = unique("gone");
    const leave = new AbortController();
    const waiting = waitFor(queue, longMs, { signal: leave.signal });
    await new Promise((resolve) => setTimeout(resolve, 50));
    const before = await canceledClaims();
    leave.abort();
    await expect(waiting).rejects.toThrow();
    // The server hears of it a little later.
    await eventually(async () => (await canceledClaims()) > before);
    const job = await submit(worker.as, { queue });
    await new Promise((resolve) => setTimeout(resolve, 50));
    expect(stateOf(await get(worker.as, job.jobId))).toBe("PENDING");
  });

  test("a claim ends with its key", async () => {
    const { apiKey, secret } = await org.admin.keys.createApiKey({ agentId: worker.agentId });
    const waiting = reasonOf(world.as(secret).queues.claimJobs({ queues: [unique("key")], wait: ms(longMs) }));
    await new Promise((resolve) => setTimeout(resolve, 50));
    await org.admin.keys.revokeApiKey({ keyId: apiKey!.keyId });
    expect(await waiting).toBe("KEY_REVOKED");
  });

  test("a repeated claim that waits answers what the first one got", async () => {
    const queue = unique("repeat");
    const headers = { "idempotency-key": unique("key") };
    const wish = { queues: [queue], wait: ms(longMs) };
    const both = [worker.as.queues.claimJobs(wish, { headers }), worker.as.queues.claimJobs(wish, { headers })];
    await new Promise((resolve) => setTimeout(resolve, 50));
    await worker.as.queues.submitJobs({ jobs: [{ queue }, { queue }] });
    const [a, b] = await Promise.all(both);
    expect(a!.jobs).toHaveLength(1);
    expect(a!.jobs).toEqual(b!.jobs);
    expect((await statsOf(worker.as, queue))!.pending).toBe(1n);
  });

  test("heartbeats count nothing against the rate limit", async () => {
    await using limited = await start(dialect, { rateLimit: 4 });
    const { as } = await (await limited.org()).agent();
    await submit(as);
    const [leased] = await claim(as);
    for (let n = 0; n < 10; n++) await as.queues.heartbeatJob(leaseOf(leased!));
    await as.queues.completeJob(leaseOf(leased!));
    await submit(as);
    expect(await reasonOf(submit(as))).toBe("RATE_LIMITED");
  });

  test("a server that stops answers those who wait", async () => {
    const stopped = await start(dialect);
    const { as } = await (await stopped.org()).agent();
    const waiting = reasonOf(as.queues.claimJobs({ wait: ms(longMs) }));
    // What comes after it on the same port has been answered: so it has been heard.
    for (let n = 0; n < 3; n++) await as.queues.getQueueStats({});
    await stopped[Symbol.asyncDispose]();
    expect(await waiting).toBe("SHUTTING_DOWN");
  });

  /** A stream, read in the background. */
  function read(stream: AsyncIterable<WorkResponse>) {
    const seen: WorkResponse["event"][] = [];
    const ended = (async () => {
      for await (const { event } of stream) seen.push(event);
    })().then(
      () => undefined,
      (error: unknown) => ConnectError.from(error),
    );
    const leased = () => seen.flatMap((event) => (event.case === "job" ? [event.value] : []));
    const lost = () => seen.flatMap((event) => (event.case === "lostJobId" ? [event.value] : []));
    return { seen, leased, lost, ended, times: (n: number) => eventually(() => leased().length >= n && leased()) };
  }

  test("a Work stream holds as many jobs as it has room for, and gets more as they end", async () => {
    const queue = unique("work");
    await worker.as.queues.submitJobs({ jobs: Array.from({ length: 5 }, (_, n) => ({ queue, payload: json(n) })) });
    const leave = new AbortController();
    const stream = read(worker.as.queues.work({ queues: [queue], capacity: 2 }, { signal: leave.signal }));
    const [a, b] = await stream.times(2);
    expect(stream.seen[0]!.case).toBe("checkpoint");
    expect((await statsOf(worker.as, queue))!).toMatchObject({ leased: 2n, pending: 3n });
    expect([a, b].map((one) => jsonOf(one!.job!.payload))).toEqual([0, 1]);
    await worker.as.queues.completeJob(leaseOf(a!));
    const [, , c] = await stream.times(3);
    await worker.as.queues.failJob({ ...leaseOf(b!), retryable: false });
    await stream.times(4);
    expect((await statsOf(worker.as, queue))!).toMatchObject({ leased: 2n, pending: 1n });
    expect(stream.lost()).toEqual([]);
    leave.abort();
    await stream.ended;
    await worker.as.queues.completeJob(leaseOf(c!)); // its leases run on
  });

  test("a Work stream says which of its leases ended, and is given the job again", async () => {
    const queue = unique("revoke");
    const job = await submit(worker.as, { queue, maxAttempts: 2 });
    const leave = new AbortController();
    const wish = { queues: [queue], lease: ms(1_000) };
    const stream = read(worker.as.queues.work(wish, { signal: leave.signal }));
    await stream.times(2);
    expect(stream.seen.map(({ case: what }) => what)).toEqual(["checkpoint", "job", "lostJobId", "job"]);
    await eventually(() => stream.lost().length === 2);
    expect(stream.lost()).toEqual([job.jobId, job.jobId]);
    leave.abort();
    await stream.ended;
    expect(stateOf(await get(worker.as, job.jobId))).toBe("FAILED");
  });

  test("a Work stream ends with its key, refuses a queue that is not its agent's, and ends with the server", async () => {
    const other = await org.agent();
    const refused = read(worker.as.queues.work({ queues: [`${other.agentId}/own`] }));
    expect((await refused.ended)?.message).toContain("no policy permits");
    const { apiKey, secret } = await org.admin.keys.createApiKey({ agentId: worker.agentId });
    const keyed = read(world.as(secret).queues.work({ queues: [unique("key")] }));
    await eventually(() => keyed.seen.length > 0);
    await org.admin.keys.revokeApiKey({ keyId: apiKey!.keyId });
    expect((await keyed.ended)?.message).toContain("revoked");
    const stopped = await start(dialect);
    const { as } = await (await stopped.org()).agent();
    const stream = read(as.queues.work({}));
    await eventually(() => stream.seen.length > 0);
    await stopped[Symbol.asyncDispose]();
    expect((await stream.ended)?.message).toContain("the server is stopping");
  });
});

describe.each(dialects)("WatchJobs on %s", (dialect) => {
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

  /** The changes up to the n-th, with the last cursor. */
  async function changes(by: OrgAgent, n: number, request = {}) {
    const found: JobChange[] = [];
    const leave = new AbortController();
    try {
      for await (const { cursor, event } of by.as.queues.watchJobs(request, { signal: leave.signal })) {
        if (event.case === "change") found.push(event.value);
        if (found.length === n) return { found, cursor };
      }
    } finally {
      leave.abort();
    }
    throw new Error("the feed ended");
  }
  const statesOf = (found: readonly JobChange[]) => found.map(({ state }) => nameOf(JobState, state));

  test("tells every change once, in order, and resumes after its cursor", async () => {
    const queue = unique("watch");
    const job = await submit(worker.as, { queue, maxAttempts: 2, runAt: timestampFromMs(clock.now() + 1_000) });
    clock.advance(1_000);
    const [first] = await claim(worker.as, { queues: [queue], lease: ms(2_000) });
    const error = { code: "boom", message: "no" };
    await worker.as.queues.failJob({ ...leaseOf(first!), error, retryable: true, retryAfter: ms(0) });
    await claim(worker.as, { queues: [queue], lease: ms(2_000) });
    clock.advance(2_000);
    await swept(world);
    const all = ["SCHEDULED", "PENDING", "LEASED", "PENDING", "LEASED", "FAILED"];
    const { found } = await changes(worker, 6, { queue, fromStart: true });
    expect(statesOf(found)).toEqual(all);
    expect(found.map(({ error: why }) => why?.code)).toEqual([
      undefined,
      undefined,
      undefined,
      "boom",
      undefined,
      "lease_expired",
    ]);
    expect(found.map(({ attempts }) => attempts)).toEqual([0, 0, 1, 1, 2, 2]);
    expect(found[5]).toMatchObject({ jobId: job.jobId, queue, workerAgentId: worker.agentId });
    for (let n = 1; n < 6; n++) {
      const { cursor } = await changes(worker, n, { jobId: job.jobId, fromStart: true });
      const rest = await changes(worker, 6 - n, { jobId: job.jobId, afterCursor: cursor });
      expect(statesOf(rest.found)).toEqual(all.slice(n));
    }
  });

  test("tells others nothing of a private queue", async () => {
    const other = await org.agent();
    await submit(worker.as, { queue: `${worker.agentId}/own` });
    const open = await submit(worker.as, { queue: unique("open") });
    const { found } = await changes(other, 1, { fromStart: true, jobId: open.jobId });
    expect(found[0]!.jobId).toBe(open.jobId);
    const seen = await changes(other, 1, { fromStart: true });
    expect(seen.found.filter(({ queue }) => queue.startsWith("agt_"))).toEqual([]);
  });

  test("what has ended is kept as long as the setting says, and a cursor from before it has expired", async () => {
    await using kept = await start(dialect, { clock, queueRetentionDays: 2 });
    const { as, agentId } = await (await kept.org()).agent();
    const by = { as, agentId, key: "" };
    const queue = unique("old");
    const jobs = [{ queue }, { queue, maxAttempts: 1 }, { queue }, { queue, payload: json(1) }];
    const { results } = await as.queues.submitJobs({ jobs });
    const { cursor } = await changes(by, 1, { fromStart: true });
    const [a, b] = await claim(as, { queues: [queue], maxJobs: 2, lease: ms(1_000) });
    await as.queues.completeJob({ ...leaseOf(a!), result: json("kept") });
    await as.queues.failJob(leaseOf(b!));
    await as.queues.cancelJob({ jobId: results[2]!.job!.jobId });
    clock.advance(86_400_000);
    await sweepOldJobs(kept.server.app);
    expect((await as.queues.listDeadJobs({ queue })).jobs).toHaveLength(1);
    clock.advance(86_400_001);
    // The server's own sweep may be at some of it, which another passes over.
    const isGone = (call: Promise<unknown>) =>
      call.then(
        () => false,
        () => true,
      );
    await eventually(async () => {
      await sweepOldJobs(kept.server.app);
      const told = changes(by, 1, { afterCursor: cursor });
      const read = results.slice(0, 3).map(({ job }) => as.queues.getJob({ jobId: job!.jobId }));
      return (await Promise.all([told, ...read].map(isGone))).every(Boolean);
    });
    for (const { job } of results.slice(0, 3))
      expect((await refusal(as.queues.getJob({ jobId: job!.jobId }))).reason).toBe("NOT_FOUND");
    expect((await statsOf(as, queue))!).toMatchObject({ pending: 1n, failed: 0n, leased: 0n });
    expect(await claim(as, { queues: [queue] })).toHaveLength(1); // unfinished ones stay
    const expired = await refusal(changes(by, 1, { afterCursor: cursor }));
    expect(expired).toMatchObject({ code: "OutOfRange", reason: "CURSOR_EXPIRED" });
    const { found } = await changes(by, 1, { afterCursor: expired.metadata.oldest_cursor });
    expect(statesOf(found)).toEqual(["LEASED"]);
  });
});

describe.skipIf(!dialects.includes("postgres"))("two servers on one PostgreSQL", () => {
  test("share queues: what one takes a job into, the other's waiting worker gets, and no job is had twice", async () => {
    await using place = await storage("postgres");
    await using one = await start("postgres", place.options);
    await using two = await start("postgres", { ...place.options, operatorKeyDigest: undefined });
    const worker = await (await one.org()).agent();
    const [here, there] = [one.as(worker.key).queues, two.as(worker.key).queues];
    const waiting = there.claimJobs({ wait: ms(60_000) });
    await new Promise((resolve) => setTimeout(resolve, 100));
    await here.submitJob({ job: {} });
    expect((await waiting).jobs).toHaveLength(1);

    const queue = unique("shared");
    await here.submitJobs({ jobs: Array.from({ length: 200 }, () => ({ queue })) });
    const had: string[] = [];
    const drain = async (by: typeof here) => {
      for (;;) {
        const { jobs } = await by.claimJobs({ queues: [queue, unique("none")], maxJobs: 3, wait: ms(300) });
        if (jobs.length === 0) return;
        had.push(...jobs.map(({ job }) => job!.jobId));
        for (const job of jobs) await by.completeJob(leaseOf(job));
      }
    };
    await Promise.all([here, there, here, there, here, there].map(drain));
    expect([had.length, new Set(had).size]).toEqual([200, 200]);
    const [stats] = (await here.getQueueStats({ queue })).queues;
    expect(stats).toMatchObject({ pending: 0n, leased: 0n, lastHour: { submitted: 200n, completed: 200n } });
  });
});
