import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { connect, DeadlineExceeded, InvalidRequest, NotFound, Unreachable } from "../clients/typescript/index.ts";
import { faultyServer } from "./client-fixtures/faulty.ts";
import { dialects, type Org, start, unique, type World } from "./harness.ts";

const numbers = (count: number) => Array.from({ length: count }, (_, n) => n);

describe.each(dialects)("calls of one turn of the event loop, to a server on %s", (dialect) => {
  let world: World;
  let org: Org;
  beforeAll(async () => {
    world = await start(dialect);
    org = await world.org();
  });
  afterAll(() => world[Symbol.asyncDispose]());

  /** How many calls of a method have been answered, in whatever way. */
  const answered = async (method: string) =>
    (await world.server.app.metrics.text())
      .split("\n")
      .filter((line) => line.startsWith("moltwire_rpc_seconds_count{") && line.includes(`"moltwire.${method}"`))
      .reduce((sum, line) => sum + Number(line.split(" ").at(-1)), 0);
  const batches = () => answered("batch.v1.BatchService/Execute");
  const agent = async (options = {}) => connect({ url: world.url, apiKey: (await org.agent()).key, ...options });

  test("go as one batch, and each has its own answer", async () => {
    const mw = await agent();
    const before = await batches();
    await Promise.all(numbers(50).map((n) => mw.memory.set(`k${n}`, n)));
    expect(await batches()).toBe(before + 1);
    expect(await Promise.all(numbers(50).map((n) => mw.memory.get(`k${n}`)))).toEqual(numbers(50));
    expect(await batches()).toBe(before + 2);
  });

  test("beyond 500 go as several, and a large one by itself", async () => {
    const mw = await agent();
    const before = await batches();
    const sets = await answered("memory.v1.MemoryService/SetEntry");
    await Promise.all(numbers(1_200).map((n) => mw.memory.set("k", n)));
    expect(await batches()).toBe(before + 3);
    expect(await answered("memory.v1.MemoryService/SetEntry")).toBe(sets + 1_200);
  });

  test("that is but one goes by itself, and so do all when it is switched off", async () => {
    const [mw, off] = [await agent(), await agent({ coalesce: false })];
    const before = await batches();
    await mw.memory.set("k", 1);
    await Promise.all(numbers(5).map((n) => off.memory.set(`k${n}`, n)));
    expect(await batches()).toBe(before);
  });

  test("fail each for itself, with the error of its class", async () => {
    const mw = await agent();
    await mw.memory.set("there", 1);
    const [there, missing, wrong] = await Promise.allSettled([
      mw.memory.getEntry({ key: "there" }),
      mw.memory.getEntry({ key: "missing" }),
      mw.memory.getEntry({ key: "x".repeat(300) }),
    ]);
    expect(there.status).toBe("fulfilled");
    const reasons = [missing, wrong].map((result) => (result.status === "rejected" ? result.reason : undefined));
    expect(reasons[0]).toBeInstanceOf(NotFound);
    expect(reasons[1]).toBeInstanceOf(InvalidRequest);
    expect(reasons[1].fields.map(({ field }: { field: string }) => field)).toEqual(["key"]);
  });

  test("are not held up by one that waits for others, which goes by itself", async () => {
    const mw = await agent();
    const queue = unique("q");
    const before = await batches();
    const others = async () => {
      await Promise.all([mw.memory.set("a", 1), mw.memory.set("b", 2)]);
      expect(await batches()).toBe(before + 1);
      await mw.queue.submitJob({ job: { queue } });
    };
    const [{ jobs }] = await Promise.all([mw.queue.claimJobs({ queues: [queue], wait: { seconds: 60n } }), others()]);
    expect(jobs).toHaveLength(1);
  });

  test("are left one by one: who gives up is not sent, and the others are answered", async () => {
    const mw = await agent();
    const left = new AbortController();
    const [gone, ...others] = [
      mw.memory.setEntry(
        { write: { key: "gone", value: { kind: { case: "data", value: new Uint8Array(1) } } } },
        { signal: left.signal },
      ),
      mw.memory.set("a", 1),
      mw.memory.set("b", 2),
    ];
    left.abort();
    await expect(gone).rejects.toThrow();
    await Promise.all(others);
    await expect(mw.memory.getEntry({ key: "gone" })).rejects.toBeInstanceOf(NotFound);
  });

  test("whose answers are too many for one batch are answered all the same", async () => {
    const mw = await agent();
    await mw.memory.set("large", "x".repeat(48_000));
    const all = await Promise.all(numbers(400).map(() => mw.memory.get("large")));
    expect(all.filter((value) => value === "x".repeat(48_000))).toHaveLength(400);
  });
});

test("a server that knows no batches is sent calls one by one, and each is retried as it would be", async () => {
  await using server = await faultyServer();
  const mw = connect({ url: server.url });
  await Promise.all([mw.queue.getJob({ jobId: "a" }), mw.queue.cancelJob({ jobId: "b" })]);
  expect(server.asked.map(({ method }) => method).sort()).toEqual(["CancelJob", "GetJob"]);
});

test("a server that is not there is told to each caller, and a deadline ends each", async () => {
  const mw = connect({ url: "http://127.0.0.1:9", maxAttempts: 1 });
  for (const { reason } of (await Promise.allSettled([
    mw.memory.get("a"),
    mw.memory.get("b"),
  ])) as PromiseRejectedResult[])
    expect(reason).toBeInstanceOf(Unreachable);
  const late = connect({ url: "http://127.0.0.1:9", maxAttempts: 100, timeoutMs: 300 });
  for (const { reason } of (await Promise.allSettled([
    late.memory.get("a"),
    late.memory.get("b"),
  ])) as PromiseRejectedResult[])
    expect(reason instanceof DeadlineExceeded || reason instanceof Unreachable).toBe(true);
});
