import { randomUUIDv7 } from "node:crypto";
import fc from "fast-check";
import { expect, test } from "vitest";
import { ascending, randomIds } from "../src/ids.ts";

/** Versions and variants of RFC 9562, section 5.7, without the dashes. */
const uuid7 = /^[0-9a-f]{12}7[0-9a-f]{3}[89ab][0-9a-f]{15}$/;

/** A UUIDv7 of this millisecond. */
function at(ms: number): string {
  const hex = ms.toString(16).padStart(12, "0");
  return `${hex.slice(0, 8)}-${hex.slice(8)}${randomUUIDv7().slice(13)}`;
}

test("ids of one process sort in the order in which they were made, however many there are in a millisecond", () => {
  const { next } = randomIds();
  const made = Array.from({ length: 20_000 }, () => next("msg"));
  expect(made.every((id) => id.startsWith("msg_") && uuid7.test(id.slice(4)))).toBe(true);
  expect(made.findIndex((id, n) => n > 0 && id <= made[n - 1]!)).toBe(-1);
});

test("ids ascend while the clock stands still, runs back or leaps, and never lag behind it", () => {
  const leaps = fc.array(fc.integer({ min: -5_000, max: 5_000 }), { maxLength: 20 });
  // More than a millisecond has room for.
  const counts = [10_000, 100];
  fc.assert(
    fc.property(leaps, (leaps) => {
      let now = 1_800_000_000_000;
      const next = ascending(() => at(now));
      let before = "";
      for (const [n, leap] of [0, ...leaps].entries()) {
        now += leap;
        const made = Array.from({ length: counts[n] ?? 10 }, next);
        expect(made.filter((id) => !uuid7.test(id) || Number.parseInt(id.slice(0, 12), 16) < now)).toEqual([]);
        expect([before, ...made].toSorted()).toEqual([...new Set([before, ...made])]);
        before = made.at(-1)!;
      }
    }),
    { numRuns: 20 },
  );
});

test("trace and span ids are as long as W3C has them, and none comes twice, however many are drawn", () => {
  const { trace, span } = randomIds();
  const made = Array.from({ length: 2_000 }, () => [trace(), span()]).flat();
  expect(made.filter((id, n) => !(n % 2 ? /^[0-9a-f]{16}$/ : /^[0-9a-f]{32}$/).test(id))).toEqual([]);
  expect(new Set(made).size).toBe(made.length);
});
