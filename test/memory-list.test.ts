import fc from "fast-check";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { EntryOrder } from "../gen/moltwire/memory/v1/memory_pb.ts";
import { endOfPrefix } from "../src/memory/prefix.ts";
import { dialects, start, unique, type World } from "./harness.ts";
import { listAll, write } from "./memory-fixtures/memory.ts";

/** Characters that sort, escape or match otherwise somewhere: wildcards, separators, controls, and the edges of UTF-8 and UTF-16. */
const nasty = [
  "%",
  "_",
  "/",
  "\\",
  "*",
  "'",
  '"',
  " ",
  "\u0001",
  "\n",
  "a",
  "A",
  "ä",
  "a\u0308",
  "\u07ff",
  "\u0800",
  "\ud7ff",
  "\ue000",
  "\ufffd",
  "\uffff",
  "\u{10000}",
  "\u{1f98a}",
  "\u{10ffff}",
];
const text = fc.string({ unit: fc.constantFrom(...nasty), maxLength: 5 });
const key = text.filter((one) => one !== "");
const byBytes = (a: string, b: string) => Buffer.compare(Buffer.from(a), Buffer.from(b));

test("a prefix is exactly the range from itself to its end, in the order of bytes", () => {
  fc.assert(
    fc.property(text, text, (prefix, other) => {
      const end = endOfPrefix(prefix);
      const inRange = byBytes(other, prefix) >= 0 && (end === undefined || byBytes(other, end) < 0);
      expect(inRange).toBe(other.startsWith(prefix));
      expect(endOfPrefix(`${prefix}${other}`)?.isWellFormed() ?? true).toBe(true);
    }),
    { numRuns: 20_000 },
  );
});

describe.each(dialects)("on %s", (dialect) => {
  let world: World;
  beforeAll(async () => {
    world = await start(dialect);
  });
  afterAll(() => world[Symbol.asyncDispose]());

  test("lists of any keys, by any prefix, in pages of any size, are those of a plain map", async () => {
    const { as } = await (await world.org()).agent();
    const round = async (keys: string[], deleted: string[], prefixes: string[], pageSize: number) => {
      const namespace = unique("ns");
      const changes = [
        ...keys.map((one) => ({ change: { case: "set" as const, value: write(one, one, { namespace }) } })),
        ...deleted.map((one) => ({ change: { case: "delete" as const, value: { key: one, namespace } } })),
      ];
      const { results } = await as.memory.batchSetEntries({ changes });
      const revisions = new Map<string, bigint>();
      for (const [n, one] of keys.entries()) revisions.set(one, results[n]!.revision);
      for (const one of deleted) revisions.delete(one);
      for (const prefix of ["", ...prefixes]) {
        const fitting = [...revisions.keys()].filter((one) => one.startsWith(prefix));
        const listed = await listAll(as, { namespace, prefix, pageSize });
        expect(listed.map((entry) => entry.key)).toEqual(fitting.toSorted(byBytes));
        const order = EntryOrder.UPDATE_TIME;
        const latest = await listAll(as, { namespace, prefix, pageSize, order });
        expect(latest.map((entry) => entry.key)).toEqual(
          fitting.toSorted((a, b) => Number(revisions.get(b)! - revisions.get(a)!)),
        );
      }
    };
    await fc.assert(
      fc.asyncProperty(
        fc.array(key, { minLength: 1, maxLength: 30 }),
        fc.array(key, { maxLength: 5 }),
        fc.array(text, { maxLength: 3 }),
        fc.integer({ min: 1, max: 7 }),
        round,
      ),
      { numRuns: 25 },
    );
  });
});
