import { durationFromMs, timestampMs } from "@bufbuild/protobuf/wkt";
import { Code, ConnectError } from "@connectrpc/connect";
import { describe, expect, test } from "vitest";
import { Role } from "../../gen/moltwire/api/v1/access_pb.ts";
import { JobState, type LeasedJob } from "../../gen/moltwire/queue/v1/job_pb.ts";
import { keyDigest } from "../../src/federation/key-text.ts";
import { type ServerProcess, serverProcess } from "../bus-fixtures/process.ts";
import { storage } from "../bus-fixtures/storage.ts";
import { type Clients, clientsAt, dialects, refusal, unique } from "../harness.ts";
import { json, leaseOf } from "../queue-fixtures/jobs.ts";

/** FULL: 10,000 jobs and 20 kills. */
const full = Boolean(process.env.FULL);
const jobs = full ? 10_000 : 2_000;
const kills = full ? 20 : 2;
const workers = 64;
const stalling = 0.2;
const leaseMs = 1_000;
const operatorKey = "queue-crash-0123456789-abcdefghijklmnopqrstuvwxyz";
const program = new URL("../bus-fixtures/server.ts", import.meta.url).pathname;

const sleep = (ms: number) => new Promise((resolve) => setTimeout(resolve, ms));

/** One lease as its worker knows it. */
type Lease = { readonly jobId: string; readonly attempt: number; readonly startMs: number; readonly expireMs: number };

describe.each(dialects)("64 workers, a fifth of which stall, and kill -9 on %s", (dialect) => {
  test(
    `${jobs} jobs and ${kills} kills: every job ends exactly once, and none is two workers' at a time`,
    async () => {
      await using place = await storage(dialect);
      const options = JSON.stringify({ ...place.options, operatorKeyDigest: keyDigest(operatorKey) });
      let server: ServerProcess = await serverProcess(program, [options]);
      const queue = unique("crash");
      const run = { leases: [] as Lease[], completed: new Set<string>(), lost: 0, stale: 0, cut: 0, over: false };
      try {
        const operator = clientsAt(server.url, operatorKey);
        const { agent } = await operator.agents.registerAgent({ name: unique("worker") });
        const { secret: key } = await operator.keys.createApiKey({ agentId: agent!.agentId, role: Role.AGENT });
        let as: Clients = clientsAt(server.url, key);
        for (let from = 0; from < jobs; from += 500)
          await as.queues.submitJobs({
            jobs: Array.from({ length: 500 }, (_, n) => ({
              queue,
              payload: json(from + n),
              priority: 1 + (n % 10),
              maxAttempts: 4,
              backoff: { initial: durationFromMs(1) },
            })),
          });

        const work = async (worker: number) => {
          for (let n = 0; !run.over; n++) {
            const by = as;
            try {
              const claimed = await by.queues.claimJobs({
                queues: [queue, "other"],
                maxJobs: 3,
                lease: durationFromMs(leaseMs),
                wait: durationFromMs(500),
              });
              run.leases.push(...claimed.jobs.map(toLease));
              const stalls = Math.random() < stalling && claimed.jobs.length > 0;
              if (stalls) await sleep(leaseMs + 200);
              for (const leased of claimed.jobs) await end(by, leased, stalls, worker + n);
            } catch (error) {
              const { code } = ConnectError.from(error);
              if (![Code.Unavailable, Code.Internal, Code.Unknown, Code.Aborted, Code.Canceled].includes(code))
                throw error;
              run.cut++;
              await sleep(20);
            }
          }
        };
        const end = async (by: Clients, leased: LeasedJob, stalls: boolean, n: number) => {
          const { jobId, leaseToken } = leaseOf(leased);
          try {
            if (n % 20 === 0) await by.queues.failJob({ jobId, leaseToken, retryable: n % 40 === 0 });
            else await by.queues.completeJob({ jobId, leaseToken });
          } catch (error) {
            if (!ConnectError.from(error).message.includes("lease has ended")) throw error;
            run.lost++;
            if (stalls) run.stale++;
            return;
          }
          if (stalls) throw new Error(`the lease of ${jobId} outlived its time`);
          if (n % 20 !== 0) run.completed.add(jobId);
        };
        const working = Array.from({ length: workers }, (_, worker) => work(worker));
        const failed = Promise.all(working).then(() => {});
        failed.catch(() => (run.over = true));

        for (let kill = 1; kill <= kills && !run.over; kill++) {
          const target = Math.floor((jobs * 0.7 * kill) / (kills + 1));
          const until = Date.now() + 20_000;
          while (run.completed.size < target && Date.now() < until && !run.over) await sleep(5);
          await server.kill();
          server = await serverProcess(program, [options]);
          as = clientsAt(server.url, key);
        }
        for (;;) {
          const [stats] = (await as.queues.getQueueStats({ queue })).queues;
          if (stats!.scheduled + stats!.pending + stats!.leased === 0n || run.over) break;
          await sleep(50);
        }
        run.over = true;
        await failed;
        await verify(as, queue, run);
      } finally {
        run.over = true;
        await server.kill();
      }
    },
    full ? 900_000 : 300_000,
  );
});

const toLease = ({ job, leaseExpireTime }: LeasedJob): Lease => ({
  jobId: job!.jobId,
  attempt: job!.attempts,
  startMs: timestampMs(job!.startTime!),
  expireMs: timestampMs(leaseExpireTime!),
});

/** What the server holds and what the workers saw, against what was promised. */
async function verify(
  as: Clients,
  queue: string,
  run: { readonly leases: Lease[]; readonly completed: Set<string>; lost: number; stale: number; cut: number },
): Promise<void> {
  const states = new Map<string, number[]>();
  const leave = new AbortController();
  const [stats] = (await as.queues.getQueueStats({ queue })).queues;
  let ended = 0;
  for await (const { event } of as.queues.watchJobs({ queue, fromStart: true }, { signal: leave.signal })) {
    if (event.case === "checkpoint" && states.size > 0) break;
    if (event.case !== "change") continue;
    const { jobId, state } = event.value;
    states.set(jobId, [...(states.get(jobId) ?? []), state]);
    if (state >= JobState.COMPLETED) ended++;
    if (ended >= jobs) break;
  }
  leave.abort();
  expect(states.size).toBe(jobs);
  const wrong: string[] = [];
  for (const [jobId, seen] of states) {
    const ends = seen.filter((state) => state >= JobState.COMPLETED);
    if (ends.length !== 1 || seen.at(-1)! < JobState.COMPLETED) wrong.push(`${jobId} went ${seen}`);
    if (seen.some((state, n) => state === JobState.LEASED && seen[n + 1] === JobState.LEASED))
      wrong.push(`${jobId} was leased while it was: ${seen}`);
    if (run.completed.has(jobId) && ends[0] !== JobState.COMPLETED) wrong.push(`${jobId} was completed and is ${ends}`);
  }
  // By the server's own times: a lease begins when the one before has ended or its time was over.
  for (const [jobId, leases] of Map.groupBy(run.leases, (lease) => lease.jobId)) {
    if (new Set(leases.map(({ attempt }) => attempt)).size !== leases.length) wrong.push(`${jobId}: an attempt twice`);
    if (leases.length < 2) continue;
    const { attempts } = await as.queues.getJob({ jobId });
    for (const [n, { attempt, startTime }] of attempts.entries()) {
      const before = attempts[n - 1];
      if (before && timestampMs(startTime!) < timestampMs(before.endTime!))
        wrong.push(`${jobId}: attempt ${attempt} overlaps`);
      if (attempt !== n + 1) wrong.push(`${jobId}: attempt ${attempt} is the ${n + 1}th`);
    }
  }
  const dead = [...states.values()].filter((seen) => seen.at(-1) === JobState.FAILED).length;
  const completed = jobs - dead;
  expect(wrong.slice(0, 10)).toEqual([]);
  expect(stats).toMatchObject({ pending: 0n, leased: 0n, scheduled: 0n, failed: BigInt(dead) });
  expect(stats!.lastHour).toMatchObject({
    submitted: BigInt(jobs),
    completed: BigInt(completed),
    failed: BigInt(dead),
  });
  // Or the run has put nothing to the test.
  expect(run.stale).toBeGreaterThan(0);
  expect(run.cut).toBeGreaterThan(0);
  expect((await refusal(as.queues.completeJob({ jobId: run.leases[0]!.jobId, leaseToken: "stale" }))).reason).toBe(
    "LEASE_LOST",
  );
  console.log(
    `${jobs} jobs, ${kills} kills: ${completed} completed, ${dead} dead, ${run.leases.length} leases, ${run.stale} stale tokens refused, ${run.cut} calls cut`,
  );
}
