import type { DescService } from "@bufbuild/protobuf";
import { createClient, type Interceptor } from "@connectrpc/connect";
import { createConnectTransport, createGrpcTransport } from "@connectrpc/connect-node";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { MemoryService } from "../gen/moltwire/memory/v1/memory_service_pb.ts";
import type { LeasedJob, Payload } from "../gen/moltwire/queue/v1/job_pb.ts";
import { QueueService } from "../gen/moltwire/queue/v1/queue_service_pb.ts";
import { dialects, type Org, type OrgAgent, type Protocol, refusal, start, unique, type World } from "./harness.ts";
import * as memory from "./memory-fixtures/memory.ts";
import { bytes, claim, json, leaseOf, statsOf, submit } from "./queue-fixtures/jobs.ts";

/** What most gRPC clients take in one answer. */
const readMaxBytes = 4 * 1_048_576;
const readers = ["grpc", "connect", "connect-json"] as const;

/** A client that takes no more than that; bytes are a third longer in JSON, and who speaks that has no such limit. */
function modest<S extends DescService>(service: S, baseUrl: string, key: string, protocol: (typeof readers)[number]) {
  const withKey: Interceptor = (next) => (request) => {
    request.header.set("authorization", `Bearer ${key}`);
    return next(request);
  };
  const common = { baseUrl, interceptors: [withKey] };
  if (protocol === "grpc") return createClient(service, createGrpcTransport({ ...common, readMaxBytes }));
  const binary = protocol === "connect";
  const transport = createConnectTransport({
    ...common,
    httpVersion: "2",
    useBinaryFormat: binary,
    ...(binary && { readMaxBytes }),
  });
  return createClient(service, transport);
}

/** JSON of as many bytes, all small numbers, which protobuf makes 5.5 times as long. */
const numbers = (length: number): number[] => Array.from({ length: (length - 2) / 2 }, (_, n) => n % 10);
const job100KB = { bytes: bytes(new Uint8Array(102_400).fill(7)), numbers: json(numbers(102_400)) };

describe.each(dialects)("large answers on %s", (dialect) => {
  let world: World;
  let org: Org;
  let worker: OrgAgent;
  beforeAll(async () => {
    world = await start(dialect);
    org = await world.org();
    worker = await org.agent();
  });
  afterAll(() => world[Symbol.asyncDispose]());

  /** Submits jobs in the form in which a request of them is smallest. */
  async function fill(queue: string, payload: (typeof job100KB)["bytes" | "numbers"], count: number) {
    const as = world.as(worker.key, payload.kind.case === "json" ? "connect-json" : "connect");
    for (let left = count; left > 0; left -= 25)
      await as.queues.submitJobs({ jobs: Array.from({ length: Math.min(25, left) }, () => ({ queue, payload })) });
  }
  const sizeOf = (payload: Payload | undefined) =>
    payload?.kind.case === "data"
      ? payload.kind.value.length
      : payload?.kind.value?.kind.case === "listValue"
        ? payload.kind.value.kind.value.values.length
        : 0;

  test.each(readers)(
    "a claim takes as many large jobs as fit into an answer over %s, and leaves the rest to the next",
    async (protocol) => {
      const queues = modest(QueueService, world.url, worker.key, protocol);
      for (const [kind, count, size, parts] of [
        ["bytes", 100, 102_400, [30, 30, 30, 10]],
        ["numbers", 8, 51_199, [5, 3]],
      ] as const) {
        const queue = unique(kind);
        await fill(queue, job100KB[kind], count);
        const parts1: number[] = [];
        const all: LeasedJob[] = [];
        for (;;) {
          const { jobs } = await queues.claimJobs({ queues: [queue], maxJobs: 100, lease: { seconds: 3_600n } });
          if (jobs.length === 0) break;
          all.push(...jobs);
          parts1.push(jobs.length);
          const { pending, leased } = (await statsOf(worker.as, queue))!;
          expect([Number(pending), Number(leased)]).toEqual([count - all.length, all.length]);
        }
        expect(parts1).toEqual(parts);
        expect(new Set(all.map(({ job }) => job!.jobId)).size).toBe(count);
        for (const { job } of all) expect([job!.attempts, sizeOf(job!.payload)]).toEqual([1, size]);
        for (const job of all.slice(0, 2)) await queues.completeJob(leaseOf(job));
      }
    },
    240_000,
  );

  test("a claim from several queues fits too, and passes no large job over for a smaller one behind it", async () => {
    const queues = modest(QueueService, world.url, worker.key, "grpc");
    const [a, b] = [unique("a"), unique("b")];
    await fill(a, job100KB.bytes, 20);
    await fill(b, job100KB.bytes, 20);
    const small = await submit(worker.as, { queue: b });
    const first = await queues.claimJobs({ queues: [a, b], maxJobs: 100 });
    expect(first.jobs).toHaveLength(30);
    expect(first.jobs.filter(({ job }) => job!.queue === a)).toHaveLength(20);
    const second = await queues.claimJobs({ queues: [b, a], maxJobs: 100 });
    expect(second.jobs.map(({ job }) => job!.jobId).indexOf(small.jobId)).toBe(10);
    expect((await queues.claimJobs({ queues: [a, b], maxJobs: 100 })).jobs).toEqual([]);
  });

  test("a stream of work gets them one by one, whatever its capacity", async () => {
    const queues = modest(QueueService, world.url, worker.key, "grpc");
    const queue = unique("streamed");
    await fill(queue, job100KB.bytes, 100);
    const got = new Set<string>();
    for await (const { event } of queues.work({ queues: [queue], capacity: 100 }))
      if (event.case === "job" && got.add(event.value.job!.jobId).size === 100) break;
    expect((await statsOf(worker.as, queue))!).toMatchObject({ pending: 0n, leased: 100n });
  });

  test("a page of jobs with much to tell ends early, and the pages have all of them", async () => {
    const queues = modest(QueueService, world.url, worker.key, "grpc");
    const queue = unique("progress");
    await worker.as.queues.submitJobs({ jobs: Array.from({ length: 200 }, () => ({ queue })) });
    const progress = { details: { n: numbers(4_000) } };
    for (let round = 0; round < 2; round++) {
      const leased = await claim(worker.as, { queues: [queue], maxJobs: 100, lease: { seconds: 3_600n } });
      await Promise.all(leased.map((one) => worker.as.queues.heartbeatJob({ ...leaseOf(one), progress })));
    }
    const found = new Set<string>();
    let pages = 0;
    for (let pageToken = ""; pages === 0 || pageToken; pages++) {
      const page = await queues.listJobs({ queue, pageSize: 250, pageToken });
      for (const { jobId } of page.jobs) found.add(jobId);
      pageToken = page.nextPageToken;
    }
    expect([found.size, pages]).toEqual([200, 2]);
  });

  test("entries listed with their values fit, also where protobuf makes them longer; a batch that no answer holds is refused", async () => {
    const { key, as } = await org.agent();
    const entries = modest(MemoryService, world.url, key, "grpc");
    const json = world.as(key, "connect-json");
    const set = (n: number) => ({
      change: { case: "set" as const, value: memory.write(`k${n}`, numbers(51_200)) },
    });
    await json.memory.batchSetEntries({ changes: Array.from({ length: 16 }, (_, n) => set(n)) });
    const keys: string[] = [];
    for (let pageToken = ""; ; ) {
      const page = await entries.listEntries({ withValues: true, pageSize: 250, pageToken });
      keys.push(...page.entries.map((entry) => entry.key));
      pageToken = page.nextPageToken;
      if (!pageToken) break;
    }
    expect(keys).toHaveLength(16);
    const many = (count: number) =>
      as.memory.batchGetEntries({ keys: Array.from({ length: count }, () => ({ key: "k0" })) });
    expect((await many(2)).results).toHaveLength(2);
    expect(await refusal(many(62))).toMatchObject({
      code: "InvalidArgument",
      reason: "PAYLOAD_TOO_LARGE",
      metadata: { field: "keys", limit: String(16 * 1_048_576) },
    });
  });

  test.each(["connect", "connect-json", "grpc", "grpc-web"] satisfies Protocol[])(
    "batches of nearly 3 MiB of jobs and 4 MiB of entries are taken over %s",
    async (protocol) => {
      const { key } = await org.agent();
      const as = world.as(key, protocol);
      const queue = unique("batch");
      const jobs = Array.from({ length: 30 }, () => ({ queue, payload: job100KB.bytes }));
      expect((await as.queues.submitJobs({ jobs })).results).toHaveLength(30);
      // Numbers are small in JSON, and bytes in protobuf: the other way round, what is within the limit of jobs is more than a request may be.
      const inJson = protocol === "connect-json";
      const heavy = inJson
        ? Array.from({ length: 31 }, () => ({ queue, payload: bytes(new Uint8Array(101_475)) }))
        : Array.from({ length: 8 }, () => ({ queue, payload: job100KB.numbers }));
      expect((await refusal(as.queues.submitJobs({ jobs: heavy }))).code).toBe("ResourceExhausted");
      expect(Number((await statsOf(as, queue))!.pending)).toBe(30);

      const value = memory.data(new Uint8Array(51_200));
      const changes = (count: number) =>
        Array.from({ length: count }, (_, n) => ({ change: { case: "set" as const, value: { key: `k${n}`, value } } }));
      const most = inJson ? 60 : 80;
      const { results } = await as.memory.batchSetEntries({ changes: changes(most) });
      expect(results.map(({ revision }) => Number(revision))).toEqual(changes(most).map((_, n) => n + 1));
      expect((await refusal(as.memory.batchSetEntries({ changes: changes(most + 2) }))).code).toBe("ResourceExhausted");
    },
    240_000,
  );
});
