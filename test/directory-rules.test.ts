import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { Outcome } from "../gen/moltwire/directory/v1/collaboration_pb.ts";
import { Availability } from "../gen/moltwire/directory/v1/profile_pb.ts";
import { availabilityAt } from "../src/directory/availability.ts";
import { type Candidate, factorsOf, scoreOf } from "../src/directory/match.ts";
import { addRating, halfLifeMs, reputationMilli, unrated, worthOf } from "../src/directory/reputation.ts";
import { wordsOf } from "../src/directory/words.ts";
import { addressGroup } from "../src/rpc/limits.ts";

const outcome = fc.constantFrom(Outcome.SUCCESS, Outcome.PARTIAL, Outcome.FAILURE);
const rated = fc.record({ rating: fc.integer({ min: 1, max: 5 }), outcome, atMs: fc.integer({ min: 1, max: 5e12 }) });
type Rated = { readonly rating: number; readonly outcome: Outcome; readonly atMs: number };

const reputationOf = (ratings: readonly Rated[]): number =>
  reputationMilli(
    ratings.reduce(
      (standing, { rating, outcome, atMs }) => addRating(standing, worthOf(rating, outcome), atMs),
      unrated,
    ),
  ) / 1_000;

/** The formula as it is written down, over the whole list, at a moment. */
function byTheFormula(ratings: readonly Rated[], nowMs: number): number {
  let [sum, weights] = [0, 0];
  for (const { rating, outcome, atMs } of ratings) {
    const worth = 0.7 * rating + 0.3 * (outcome === Outcome.SUCCESS ? 5 : outcome === Outcome.PARTIAL ? 2.5 : 0);
    const weight = 2 ** (-(nowMs - atMs) / (180 * 86_400_000));
    sum += weight * worth;
    weights += weight;
  }
  return sum / weights;
}

describe("reputation", () => {
  test("is 0 without ratings, and with them from 0.7 to 5", () => {
    expect(reputationMilli(unrated)).toBe(0);
    fc.assert(
      fc.property(fc.array(rated, { minLength: 1, maxLength: 50 }), (ratings) => {
        const reputation = reputationOf(ratings);
        expect(reputation).toBeGreaterThanOrEqual(0.7);
        expect(reputation).toBeLessThanOrEqual(5);
      }),
    );
  });

  test("is the weighted mean of the formula, at whatever time one looks", () => {
    const within = fc.record({
      rating: fc.integer({ min: 1, max: 5 }),
      outcome,
      atMs: fc.integer({ min: 1, max: 2e11 }),
    });
    fc.assert(
      fc.property(
        fc.array(within, { minLength: 1, maxLength: 30 }),
        fc.integer({ min: 0, max: 1e11 }),
        (some, later) => {
          const inTime = some.toSorted((a, b) => a.atMs - b.atMs);
          expect(reputationOf(inTime)).toBeCloseTo(byTheFormula(inTime, 2e11 + later), 2);
        },
      ),
    );
  });

  test("is the same in whatever order ratings come, so that a clock that steps back changes nothing", () => {
    fc.assert(
      fc.property(
        fc.uniqueArray(fc.integer({ min: 1, max: 1e11 }), { minLength: 1, maxLength: 20 }),
        fc.infiniteStream(outcome),
        fc.infiniteStream(fc.integer({ min: 1, max: 5 })),
        (times, outcomes, numbers) => {
          const some = times.map((atMs) => ({ atMs, outcome: outcomes.next().value!, rating: numbers.next().value! }));
          const inTime = some.toSorted((a, b) => a.atMs - b.atMs);
          expect(Math.abs(reputationOf(some) - reputationOf(inTime))).toBeLessThanOrEqual(0.001);
        },
      ),
    );
  });

  test("rises with a better rating and with a better outcome, and counts the newer of two more", () => {
    fc.assert(
      fc.property(fc.array(rated, { maxLength: 10 }), fc.integer({ min: 1, max: 4 }), (before, rating) => {
        const atMs = Math.max(0, ...before.map((one) => one.atMs)) + 1;
        const after = (one: Omit<Rated, "atMs">) =>
          reputationOf([...before.toSorted((a, b) => a.atMs - b.atMs), { ...one, atMs }]);
        const success = Outcome.SUCCESS;
        expect(after({ rating: rating + 1, outcome: success })).toBeGreaterThanOrEqual(
          after({ rating, outcome: success }),
        );
        expect(after({ rating, outcome: success })).toBeGreaterThanOrEqual(after({ rating, outcome: Outcome.PARTIAL }));
        expect(after({ rating, outcome: Outcome.PARTIAL })).toBeGreaterThanOrEqual(
          after({ rating, outcome: Outcome.FAILURE }),
        );
      }),
    );
    const good = { rating: 5, outcome: Outcome.SUCCESS };
    const bad = { rating: 1, outcome: Outcome.FAILURE };
    const goodLast = reputationOf([
      { ...bad, atMs: 1 },
      { ...good, atMs: 1 + halfLifeMs },
    ]);
    expect(goodLast).toBeCloseTo((0.7 / 2 + 5) / 1.5, 3);
    expect(
      reputationOf([
        { ...good, atMs: 1 },
        { ...bad, atMs: 1 + halfLifeMs },
      ]),
    ).toBeLessThan(goodLast);
  });
});

describe("a match", () => {
  const base: Candidate = {
    ...{ granted: ["a"], advertised: [], availability: Availability.AVAILABLE, reputation: 4, ratings: 3 },
    ...{ openTasks: 0, latencyMs: 0 },
  };
  const score = (over: Partial<Candidate>, needs = ["a"], foreign = false) =>
    scoreOf(factorsOf({ ...base, ...over }, needs, foreign));

  test("is scored from 0 to 1, by weights that add up to 1, and the perfect agent has 1", () => {
    expect(score({ reputation: 5 })).toBeCloseTo(1, 9);
    const candidate = fc.record({
      granted: fc.subarray(["a", "b", "c"]),
      advertised: fc.subarray(["a", "b", "c"]),
      availability: fc.constantFrom(Availability.AVAILABLE, Availability.BUSY, Availability.AWAY),
      reputation: fc.double({ min: 0, max: 5, noNaN: true }),
      ratings: fc.nat(),
      openTasks: fc.option(fc.nat(), { nil: undefined }),
      latencyMs: fc.option(fc.double({ min: 0, max: 1e9, noNaN: true }), { nil: undefined }),
    });
    fc.assert(
      fc.property(candidate, fc.boolean(), (one, foreign) => {
        const factors = factorsOf(one, ["a", "b"], foreign);
        expect(factors.map(({ name }) => name)).toEqual(["fit", "availability", "reputation", "load", "latency"]);
        expect(factors.reduce((sum, { weight }) => sum + weight, 0)).toBeCloseTo(1, 9);
        for (const { value } of factors) expect(value >= 0 && value <= 1).toBe(true);
        for (const { reason } of factors) expect(reason).not.toBe("");
      }),
    );
  });

  test("is better for each thing that is better, all else equal", () => {
    expect(score({ granted: ["a", "b"] }, ["a", "b"])).toBeGreaterThan(score({ advertised: ["b"] }, ["a", "b"]));
    expect(score({ advertised: ["b"] }, ["a", "b"])).toBeGreaterThan(score({}, ["a", "b"]));
    expect(score({})).toBeGreaterThan(score({ availability: Availability.BUSY }));
    expect(score({ availability: Availability.BUSY })).toBeGreaterThan(score({ availability: Availability.AWAY }));
    expect(score({ reputation: 4.5 })).toBeGreaterThan(score({}));
    expect(score({})).toBeGreaterThan(score({ openTasks: 1 }));
    expect(score({})).toBeGreaterThan(score({ latencyMs: 100 }));
  });

  test("says why, and that an advertised capability is not routed to", () => {
    const reasons = factorsOf({ ...base, advertised: ["b"], openTasks: 1, latencyMs: 120 }, ["a", "b", "c"], false);
    expect(reasons.map(({ reason }) => reason)).toEqual([
      "has 2 of 3: a, b (not granted, so not routed to: b)",
      "available",
      "reputation 4.0 of 3 ratings",
      "1 open task",
      "completes in 120 ms",
    ]);
  });
});

test("who is busy until a time is available from that time on, and not a moment before; a disabled agent is away", () => {
  const said = { availability: Availability.BUSY, busy_until_ms: 1_000, disabled: 0 };
  expect(availabilityAt(said, 999)).toEqual({ availability: Availability.BUSY, busyUntilMs: 1_000 });
  expect(availabilityAt(said, 1_000)).toEqual({ availability: Availability.AVAILABLE });
  expect(availabilityAt({ ...said, busy_until_ms: null }, 1e15)).toEqual({ availability: Availability.BUSY });
  expect(availabilityAt({ ...said, disabled: 1 }, 1_000)).toEqual({ availability: Availability.AWAY });
});

test("words are what is between all that is no letter or digit, without case and accents", () => {
  expect(wordsOf("Déjà-vu: web_search/V2, ÉCOLE & 東京!")).toEqual([
    "deja",
    "vu",
    "web",
    "search",
    "v2",
    "ecole",
    "東京",
  ]);
  expect(wordsOf("'\" OR * -- :")).toEqual(["or"]);
  fc.assert(
    fc.property(fc.string({ unit: "binary" }), (text) => wordsOf(text).every((word) => /^[\p{L}\p{N}]*$/u.test(word))),
  );
});

test("addresses of one IPv6 network of 64 bits count as one, in every spelling, and no others", () => {
  expect(addressGroup("192.0.2.7")).toBe("192.0.2.7");
  for (const address of [
    "2001:db8:0:7::1",
    "2001:0db8:0000:0007:ffff::",
    "2001:db8:0:7:1:2:3:4",
    "2001:DB8::7:0:0:0:9",
  ])
    expect(addressGroup(address)).toBe("2001:db8:0:7::/64");
  expect(addressGroup("2001:db8::8:0:0:0:9")).toBe("2001:db8:0:8::/64");
  expect(addressGroup("::1")).toBe("0:0:0:0::/64");
  expect(addressGroup("fe80::1%eth0")).toBe("fe80:0:0:0::/64");
});
