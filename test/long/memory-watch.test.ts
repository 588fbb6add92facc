import { describe, expect, test } from "vitest";
import type { EntryChange } from "../../gen/moltwire/memory/v1/memory_pb.ts";
import { storage } from "../bus-fixtures/storage.ts";
import { type Clients, dialects, refusal, start } from "../harness.ts";
import { jsonOf, write } from "../memory-fixtures/memory.ts";

/** FULL: 100,000 changes. */
const total = process.env.FULL ? 100_000 : 10_000;
const [readers, reconnectsEach, batch] = [4, 25, 50];

/** What one reader was told: each stretch without a hole, and how often it was told that there is one. */
type Told = { readonly changes: EntryChange[]; holes: number; connections: number };

describe.each(dialects)("on %s", (dialect) => {
  test("watchers that reconnect at random are told every change once, in order, or that there is a hole: across a compaction and a restart", async () => {
    await using place = await storage(dialect);
    const options = { ...place.options, memoryLogChanges: Math.ceil(total / 4) };
    let world = await start(dialect, options);
    const one = await (await world.org()).agent();
    let up = Promise.resolve(one.as);
    const told = Array.from({ length: readers }, (): Told => ({ changes: [], holes: 0, connections: 0 }));
    const follow = told.map((of, n) => followAll(of, () => up, Math.ceil(total / reconnectsEach), n));

    for (let written = 0; written < total; written += batch) {
      if (written === Math.floor(total / 2 / batch) * batch) {
        const next = Promise.withResolvers<Clients>();
        up = next.promise;
        await world.server.close();
        world = await start(dialect, options);
        next.resolve(world.as(one.key));
      }
      const changes = Array.from({ length: batch }, (_, n) => ({
        change: { case: "set" as const, value: write(`k${(written + n) % 97}`, written + n + 1) },
      }));
      await (await up).memory.batchSetEntries({ changes });
    }
    await Promise.all(follow);

    for (const { changes, holes, connections } of told) {
      let last = 0;
      let jumps = 0;
      for (const { revision, entry } of changes) {
        if (Number(revision) !== last + 1) jumps++;
        expect(Number(revision)).toBeGreaterThan(last);
        last = Number(revision);
        if (jsonOf(entry!.value) !== last || entry!.key !== `k${(last - 1) % 97}`) expect(entry).toBe(last);
      }
      expect(last).toBe(total);
      expect(jumps).toBeLessThanOrEqual(holes);
      expect(connections).toBeGreaterThanOrEqual(reconnectsEach);
    }
    const late = (await up).memory.watchEntries({ afterRevision: 1n })[Symbol.asyncIterator]().next();
    expect(await refusal(late)).toMatchObject({ code: "OutOfRange", reason: "CURSOR_EXPIRED" });
    await world[Symbol.asyncDispose]();
  }, 600_000);
});

/** Follows the log to its end, and leaves the stream after so many changes at most, to come back after the last revision it saw. */
async function followAll(told: Told, up: () => Promise<Clients>, patience: number, seed: number): Promise<void> {
  let after = 0n;
  while (after < BigInt(total)) {
    const as = await up();
    const leave = new AbortController();
    const most = 1 + ((told.connections * 7_919 + seed * 104_729) % patience);
    let seen = 0;
    told.connections++;
    try {
      for await (const { event, revision } of as.memory.watchEntries(
        { afterRevision: after },
        { signal: leave.signal },
      )) {
        if (event.case !== "change") continue;
        told.changes.push(event.value);
        after = revision;
        if (++seen === most || after === BigInt(total)) break;
      }
    } catch (error) {
      const { reason, metadata } = await refusal(Promise.reject(error));
      if (reason !== "CURSOR_EXPIRED") {
        await new Promise((resolve) => setTimeout(resolve, 10)); // the server is away
        continue;
      }
      expect(BigInt(metadata.oldest_revision!)).toBeGreaterThan(after);
      told.holes++;
      after = BigInt(metadata.oldest_revision!);
    } finally {
      leave.abort();
    }
  }
}
