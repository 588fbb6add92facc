import { fileURLToPath } from "node:url";
import { describe, expect, test } from "vitest";
import { CursorExpired, connect, contentOf, Unreachable } from "../clients/typescript/index.ts";
import { contract } from "./bus-fixtures/bus.ts";
import { puller } from "./bus-fixtures/instance.ts";
import { serverProcess } from "./bus-fixtures/process.ts";
import { storage } from "./bus-fixtures/storage.ts";
import { wireTo } from "./client-fixtures/proxy.ts";
import { freePort } from "./crash/server-process.ts";
import { clientsAt, dialects, eventually, start, unique } from "./harness.ts";

const main = fileURLToPath(new URL("../src/main.ts", import.meta.url));
const operatorKey = "kR7w2Qz9XvB4nT6mLp3sYf8hJd5gCa1e";

describe.each(dialects)("a server on %s that is killed while streams are open", (dialect) => {
  test("each stream goes on by itself at the next one, with nothing lost, repeated or reordered; tasks and jobs too", async () => {
    await using place = await storage(dialect);
    const port = String(await freePort());
    const where = "databaseUrl" in place.options ? ["--database-url", place.options.databaseUrl] : [];
    const args = ["--data", place.folder, "--port", port, "--rate-limit", "0", "--log-level", "silent", ...where];
    const run = () => serverProcess(main, args, { MOLTWIRE_OPERATOR_KEY: operatorKey });
    const before = await run();
    const { url } = before;
    const { organizations, keys, agents, contracts } = clientsAt(url, operatorKey);
    const { organization } = await organizations.createOrganization({ name: unique("org") });
    const { orgId } = organization!;
    const contractId = unique("contract");
    await contracts.registerContract({
      orgId,
      contractId,
      version: "1.0.0",
      repeatable: true,
      timeout: { seconds: 60n },
    });
    const endpoint = { kind: { case: "pull", value: {} } } as const;
    // Its leases run out while no server is there, as often as it takes the server to come back.
    const breaker = { disabled: true };
    const { agent } = await agents.registerAgent({ orgId, name: "a", capabilities: [contractId], endpoint, breaker });
    const { agentId } = agent!;
    const { secret: apiKey } = await keys.createApiKey({ orgId, agentId });

    const problems: unknown[] = [];
    // A server takes longer to come back than calls wait by default.
    const mw = connect({ url, apiKey, maxAttempts: 30, onProblem: (error) => problems.push(error) });
    const stop = new AbortController();
    const { signal } = stop;
    const heard = { memory: [] as bigint[], relay: [] as unknown[], events: [] as string[], jobs: [] as string[] };
    const served: unknown[] = [];
    const worked: unknown[] = [];
    const reading = [
      (async () => {
        for await (const { revision } of mw.memory.watch({ afterRevision: 0n }, { signal }))
          heard.memory.push(revision);
      })(),
      (async () => {
        for await (const { payload } of mw.relay.subscribe({ afterSequence: 0n }, { signal }))
          heard.relay.push(contentOf(payload));
      })(),
      (async () => {
        for await (const { event } of mw.events.watch({ fromStart: true, types: ["message.received"] }, { signal }))
          heard.events.push(event.eventId);
      })(),
      (async () => {
        for await (const { cursor } of mw.queue.watch({ fromStart: true }, { signal })) heard.jobs.push(cursor);
      })(),
      mw.bus.serve(({ input }) => served.push(input), { capacity: 4, leaseMs: 2_000, signal }),
      mw.queue.work(({ payload }) => worked.push(payload), { capacity: 4, leaseMs: 2_000, signal }),
    ];
    const write = async (from: number, to: number) => {
      for (let n = from; n < to; n++) {
        await mw.memory.set("n", n);
        await mw.relay.send({ agentId }, n);
        await mw.queue.submit("default", n);
        await mw.bus.submit(contractId, n);
      }
    };
    await write(0, 20);
    await eventually(() => heard.relay.length >= 20 && heard.memory.length >= 20 && served.length >= 20);
    await before.kill();
    // Its callers wait for it as its readers do.
    const writing = write(20, 40);
    await using after = await run();
    await writing;
    await eventually(
      () =>
        heard.relay.length >= 40 &&
        heard.memory.length >= 40 &&
        heard.events.length >= 40 &&
        new Set(served).size >= 40 &&
        new Set(worked).size >= 40,
    );
    const all = Array.from({ length: 40 }, (_, n) => n);
    expect(heard.relay).toEqual(all);
    expect(heard.memory).toEqual(all.map((n) => BigInt(n + 1)));
    expect([heard.events.length, new Set(heard.events).size]).toEqual([40, 40]);
    expect(new Set(heard.jobs).size).toBe(heard.jobs.length);
    expect([...new Set(served)].toSorted((a, b) => Number(a) - Number(b))).toEqual(all);
    expect([...new Set(worked)].toSorted((a, b) => Number(a) - Number(b))).toEqual(all);
    expect(problems.some((problem) => problem instanceof Unreachable)).toBe(true);
    stop.abort();
    await Promise.all(reading);
    expect(after.url).toBe(url);
  });
});

test("a stream that loses its connection again and again tells each message once", async () => {
  await using world = await start();
  await using wire = await wireTo(world.url);
  const org = await world.org();
  const { agentId, key } = await org.agent();
  const writer = connect({ url: world.url, apiKey: key });
  const reader = connect({ url: wire.url, apiKey: key });
  const heard: unknown[] = [];
  const reading = (async () => {
    for await (const { payload } of reader.relay.subscribe({ afterSequence: 0n })) {
      heard.push(contentOf(payload));
      if (heard.length === 60) return;
    }
  })();
  for (let n = 0; n < 60; n++) {
    await writer.relay.send({ agentId }, n);
    if (n % 20 === 10) {
      // Some of what is on its way is lost with the connection.
      if (n > 10) wire.hold();
      await eventually(() => n > 10 || heard.length > 5);
      wire.cut();
    }
  }
  await reading;
  expect(heard).toEqual(Array.from({ length: 60 }, (_, n) => n));
});

test("whoever leaves the loop hangs up, and what no waiting mends is thrown", async () => {
  await using world = await start();
  const org = await world.org();
  const contractId = await contract(org);
  const { key } = await puller(org, contractId);
  const { memory } = connect({ url: world.url, apiKey: key });
  await memory.set("a", 1);
  const open = async () =>
    /^moltwire_open_streams (\d+)/m.exec(
      await (await fetch(`${world.url}/metrics`, { headers: { authorization: `Bearer ${world.operatorKey}` } })).text(),
    )?.[1];
  for await (const message of memory.rpc.watchEntries({ afterRevision: 0n })) {
    expect(message.event.case).toBe("checkpoint");
    break;
  }
  for await (const { revision } of memory.watch({ afterRevision: 0n })) {
    expect(revision).toBe(1n);
    break;
  }
  await eventually(async () => (await open()) === "0");
  const lost = (async () => {
    for await (const _ of memory.watch({ afterRevision: 99n })) break;
  })();
  await expect(lost).rejects.toBeInstanceOf(CursorExpired);
});
