/** Limits of requests that replicas share, over any interleaving of replicas, times and lost answers. */
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { allotmentMs, type Book, windowMs } from "../src/rpc/allotment.ts";
import { type BookStore, nothingSeen, type Seen } from "../src/rpc/allotment-store.ts";
import { type SharedLimiter, sharedWindow } from "../src/rpc/shared-window.ts";
import { fakeClock } from "./harness.ts";

/** Books in memory, each of whose answers comes when `reach` lets it; a lost answer is an error, though the change is made. */
function books(reach: <T>(work: () => T) => Promise<T>) {
  const held = new Map<string, Seen>();
  let swaps = 0;
  const store: BookStore = {
    read: (id) => reach(() => held.get(id) ?? nothingSeen),
    swap: (id, seen, next) =>
      reach(() => {
        if ((held.get(id) ?? nothingSeen).stamp !== seen) return false;
        held.set(id, next);
        swaps++;
        return true;
      }),
  };
  return { store, held, swaps: () => swaps };
}

const atOnce = async <T>(work: () => T): Promise<T> => work();
const turns = () => new Promise((resolve) => setImmediate(resolve));

/** The most requests that came in one window. */
function most(times: readonly number[]): number {
  const sorted = times.toSorted((a, b) => a - b);
  let first = 0;
  let found = 0;
  for (let last = 0; last < sorted.length; last++) {
    while (sorted[first]! <= sorted[last]! - windowMs) first++;
    found = Math.max(found, last - first + 1);
  }
  return found;
}

describe("a limit that replicas share", () => {
  test("is never passed in any window, whichever replica is asked when, answers early or late or never, or dies", async () => {
    const step = fc.record({
      replica: fc.nat(2),
      count: fc.constantFrom(1, 1, 1, 2, 5),
      bursts: fc.constantFrom(1, 1, 3, 8),
      waitMs: fc.constantFrom(0, 0, 1, 100, 700, 2_600, 5_000, 20_000, 59_000),
      answers: fc.nat(4),
      what: fc.constantFrom("call", "call", "call", "call", "call", "call", "die", "give back"),
      lost: fc.constantFrom(false, false, false, true),
    });
    await fc.assert(
      fc.asyncProperty(
        fc.scheduler(),
        fc.integer({ min: 1, max: 30 }),
        fc.array(step, { minLength: 5, maxLength: 40 }),
        async (scheduler, limit, steps) => {
          const clock = fakeClock();
          let losing = false;
          const { store } = books(async (work) => {
            await scheduler.schedule(Promise.resolve());
            const done = work();
            const isLost = losing;
            await scheduler.schedule(Promise.resolve());
            if (isLost) throw new Error("the answer was lost");
            return done;
          });
          let made = 0;
          const replica = (): SharedLimiter => sharedWindow(limit, store, clock, `srv_${++made}`);
          const replicas = [replica(), replica(), replica()];
          const times: number[] = [];
          const pending: Promise<unknown>[] = [];
          for (const { replica: n, count, bursts, waitMs, answers, what, lost } of steps) {
            losing = lost;
            if (what === "die") replicas[n] = replica();
            else if (what === "give back") pending.push(replicas[n]!.giveBack().catch(() => {}));
            else
              for (let i = 0; i < bursts; i++)
                pending.push(
                  (async () => replicas[n]!.take("id", count))().then(
                    ({ allowed }) => {
                      if (allowed) for (let one = 0; one < count; one++) times.push(clock.now());
                    },
                    () => {},
                  ),
                );
            await turns();
            for (let i = 0; i < answers && scheduler.count() > 0; i++) {
              await scheduler.waitOne();
              await turns(); // what was let in is noted before the time goes on
            }
            clock.advance(waitMs);
          }
          losing = false;
          while (scheduler.count() > 0) {
            await scheduler.waitOne();
            await turns();
          }
          await Promise.all(pending);
          expect(most(times)).toBeLessThanOrEqual(limit);
        },
      ),
      { numRuns: 300 },
    );
  });

  test("is used up to the last request by one replica, free again after exactly a window, and says so", async () => {
    const clock = fakeClock();
    const { store } = books(atOnce);
    const limiter = sharedWindow(12, store, clock, "srv_1");
    for (let n = 1; n <= 12; n++)
      expect(await limiter.take("id")).toMatchObject({ allowed: true, limit: 12, remaining: 12 - n });
    expect(await limiter.take("id")).toMatchObject({ allowed: false, remaining: 0, retryAfterMs: windowMs });
    clock.advance(windowMs - 1);
    expect(await limiter.take("id")).toMatchObject({ allowed: false, retryAfterMs: 1 });
    clock.advance(1);
    expect(await limiter.take("id", 12)).toMatchObject({ allowed: true, remaining: 0 });
    expect(await limiter.take("other", 13)).toMatchObject({ allowed: false, retryAfterMs: undefined });
  });

  test("is used up nearly by three replicas that are asked in turn, and what one of them did not use comes back", async () => {
    const clock = fakeClock();
    const { store } = books(atOnce);
    const replicas = [1, 2, 3].map((n) => sharedWindow(120, store, clock, `srv_${n}`));
    let allowed = 0;
    for (let n = 0; n < 400; n++) if ((await replicas[n % 3]!.take("id")).allowed) allowed++;
    expect(allowed).toBe(120);
    const [one, two] = replicas as [SharedLimiter, SharedLimiter];
    clock.advance(windowMs);
    for (let n = 0; n < 17; n++) await one.take("id"); // has some left
    expect((await two.take("id", 103)).allowed).toBe(false);
    clock.advance(allotmentMs);
    await one.giveBack();
    expect((await two.take("id", 103)).allowed).toBe(true);
  });

  test("counts what is taken while an allotment is being asked for", async () => {
    let gate = Promise.resolve();
    const { store } = books(async (work) => {
      const done = work();
      await gate;
      return done;
    });
    const limiter = sharedWindow(40, store, fakeClock(), "srv_1");
    await limiter.take("id");
    await limiter.take("id"); // of two that it was allotted
    const { promise, resolve } = Promise.withResolvers<void>();
    gate = promise;
    const more = [limiter.take("id", 5)];
    await turns();
    more.push(limiter.take("id"), limiter.take("id"));
    resolve();
    expect((await Promise.all(more)).every(({ allowed }) => allowed)).toBe(true);
    let allowed = 2 + 5 + 2;
    while ((await limiter.take("id")).allowed) allowed++;
    expect(allowed).toBe(40);
  });

  test("counts what a replica that died may have used at the last moment, until a window after that", async () => {
    const clock = fakeClock();
    const { store } = books(atOnce);
    const [died, other] = [1, 2].map((n) => sharedWindow(100, store, clock, `srv_${n}`)) as [
      SharedLimiter,
      SharedLimiter,
    ];
    for (let n = 0; n < 8; n++) await died.take("id"); // of 15 that it was allotted
    clock.advance(allotmentMs - 1);
    for (let n = 0; n < 7; n++) expect(died.take("id")).toMatchObject({ allowed: true });
    clock.advance(windowMs - allotmentMs + 1);
    expect((await other.take("id", 100)).allowed).toBe(false);
    expect((await other.take("id", 92)).allowed).toBe(true);
    clock.advance(allotmentMs);
    expect((await other.take("id", 8)).allowed).toBe(true);
  });

  test("costs a write for many requests and not for each, and a flood that is refused costs no writes", async () => {
    const clock = fakeClock();
    const { store, swaps, held } = books(atOnce);
    const limiter = sharedWindow(1_000, store, clock, "srv_1");
    for (let n = 0; n < 1_000; n++) await limiter.take("id");
    const writes = swaps();
    expect(writes).toBeLessThan(50);
    for (let n = 0; n < 1_000; n++) expect((await limiter.take("id")).allowed).toBe(false);
    expect(swaps()).toBe(writes);
    const size = (book: Book) => JSON.stringify(book).length;
    expect(size(held.get("id")!.book)).toBeLessThan(1_000);
  });
});
