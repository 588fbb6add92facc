import { create } from "@bufbuild/protobuf";
import { durationFromMs } from "@bufbuild/protobuf/wkt";
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { FaultsSchema, Pattern, ScenarioState, SuccessCriteriaSchema } from "../gen/moltwire/lab/v1/scenario_pb.ts";
import { checkAuction } from "../src/lab/check/auction.ts";
import { checkBalancing, deviationOf } from "../src/lab/check/balancing.ts";
import { checkConsensus } from "../src/lab/check/consensus.ts";
import { checkElection } from "../src/lab/check/election.ts";
import { checkFanout, measureFanout } from "../src/lab/check/fanout.ts";
import type { Check, Observation, Seen } from "../src/lab/observation.ts";
import { playOf } from "../src/lab/patterns/patterns.ts";
import { maxCopies, type Plan, plannedFaults, planOf } from "../src/lab/plan.ts";
import { resultsOf } from "../src/lab/results.ts";
import { fakeClock } from "./harness.ts";

const seeds = fc.bigInt({ min: 0n, max: 2n ** 53n - 1n });
const rate = fc.double({ min: 0, max: 1, noNaN: true });
const rates = fc.record({ drop: rate, delay: rate, crash: rate, partition: rate });
const agents = fc.integer({ min: 2, max: 50 });
const noFaults = { drop: 0, delay: 0, crash: 0, partition: 0 };

/** All that a plan says of some names, asked in this order. */
const toldOf = (plan: Plan, names: readonly string[]) =>
  new Map(
    names.map((name) => [
      name,
      [plan.pick(name, 1_000), plan.messageFate(name), [1, 2, 3].map((n) => plan.callFate(name, n))],
    ]),
  );

describe("a plan", () => {
  test("says the same of the same seed, whatever is asked in which order", () => {
    fc.assert(
      fc.property(seeds, agents, rates, fc.uniqueArray(fc.string(), { maxLength: 10 }), (seed, count, given, names) => {
        const [one, other] = [planOf(seed, count, given), planOf(seed, count, given)];
        const backwards = toldOf(other, names.toReversed());
        for (const [name, told] of toldOf(one, names)) expect(told).toEqual(backwards.get(name));
        expect([plannedFaults(one), [...one.crashes]]).toEqual([plannedFaults(other), [...other.crashes]]);
      }),
    );
  });

  test("keeps within its limits: who is cut off are fewer than half, crashes are early, delays are short", () => {
    fc.assert(
      fc.property(seeds, agents, rates, (seed, count, given) => {
        const plan = planOf(seed, count, given);
        for (const [agent, { atCall, downMs }] of plan.crashes) {
          expect(agent).toBeLessThan(count);
          expect([atCall >= 1 && atCall <= 4, downMs >= 100 && downMs <= 500]).toEqual([true, true]);
        }
        if (plan.partition) {
          const { agents: cut, fromMs, untilMs } = plan.partition;
          expect(cut.length).toBeGreaterThan(0);
          expect(cut.length).toBeLessThan(count === 2 ? 2 : count / 2);
          expect(untilMs - fromMs).toBeGreaterThanOrEqual(300);
          expect(untilMs - fromMs).toBeLessThanOrEqual(1_500);
        }
        const { lost, lostCopies, delayMs } = plan.messageFate("vote 3->5");
        expect(lost).toBe(lostCopies === maxCopies);
        expect(delayMs === 0 || (delayMs >= 10 && delayMs <= 200)).toBe(true);
      }),
    );
  });

  test("of another seed is another one, and without faults nothing happens", () => {
    const drop = { ...noFaults, drop: 0.5 };
    const fates = (seed: bigint) =>
      Array.from({ length: 64 }, (_, n) => planOf(seed, 5, drop).callFate(`c${n}`, 1).lost);
    expect(fates(1n)).not.toEqual(fates(2n));
    const plan = planOf(7n, 50, noFaults);
    expect([plan.crashes.size, plan.partition]).toEqual([0, undefined]);
    expect(plan.messageFate("x")).toEqual({ lostCopies: 0, lost: false, delayMs: 0 });
    expect(plan.callFate("x", 1)).toEqual({ lost: "", delayMs: 0 });
  });

  test("loses about as much as it is told to: 5 % of 20,000 calls within a tenth, requests as often as answers", () => {
    const plan = planOf(3n, 2, { ...noFaults, drop: 0.05 });
    const lost = Array.from({ length: 20_000 }, (_, n) => plan.callFate(`call ${n}`, 1).lost).filter(
      (one) => one !== "",
    );
    expect(Math.abs(lost.length - 1_000)).toBeLessThan(100);
    expect(Math.abs(lost.filter((one) => one === "request_lost").length - lost.length / 2)).toBeLessThan(70);
  });
});

/** What a check finds of what was seen, one after another, a millisecond each unless told. */
const violationsOf = (check: Check, log: readonly (Seen & { readonly atMs?: number })[], count = 3) =>
  Object.fromEntries(
    check(
      log.map((one, n): Observation => ({ atMs: n, ...one })),
      count,
    ).map(({ name, violations }) => [name, violations.length]),
  );

describe("each safety check says so when it is broken", () => {
  const leads = (agent: number, term: number, atMs: number, token = term * 10) =>
    ({ kind: "leads", agent, term, token, atMs, untilMs: atMs + 100 }) as const;

  test("leader election: two leaders at once, two of one term, tokens that shrink, a write without the lease", () => {
    const sound = [leads(0, 1, 0), { kind: "steps_down", agent: 0, term: 1, atMs: 50 } as const, leads(1, 2, 60)];
    expect(violationsOf(checkElection, sound)).toEqual({ one_leader: 0, agreement: 0, fencing: 0 });
    expect(violationsOf(checkElection, [leads(0, 1, 0), leads(1, 2, 60)])).toMatchObject({ one_leader: 1 });
    // Until its lease is over the other one could have acted; a crash ends it, and so does its own clock.
    expect(violationsOf(checkElection, [leads(0, 1, 0), leads(1, 2, 100)])).toMatchObject({ one_leader: 0 });
    const crashed = { kind: "crashed", agent: 0, atMs: 10 } as const;
    expect(violationsOf(checkElection, [leads(0, 1, 0), crashed, leads(1, 2, 20)])).toMatchObject({ one_leader: 0 });
    const follows = { kind: "follows", agent: 2, term: 1, leader: 1, atMs: 5 } as const;
    expect(violationsOf(checkElection, [...sound, follows])).toMatchObject({ agreement: 1 });
    const shrunk = [
      leads(0, 1, 0, 10),
      { kind: "steps_down", agent: 0, term: 1, atMs: 5 } as const,
      leads(1, 2, 60, 9),
    ];
    expect(violationsOf(checkElection, shrunk)).toMatchObject({ one_leader: 0, fencing: 1 });
    const stale = { kind: "wrote", agent: 0, term: 2, token: 10 } as const;
    expect(violationsOf(checkElection, [...sound, stale])).toMatchObject({ fencing: 1 });
    const wrote = { kind: "wrote", agent: 0, term: 1, token: 10 } as const;
    const other = { kind: "record", agent: 1, term: 1, token: 10 } as const;
    expect(violationsOf(checkElection, [...sound, wrote, other])).toMatchObject({ fencing: 1 });
  });

  test("consensus: two decisions, one that nobody proposed, two votes of one agent, too few votes", () => {
    const proposed = [0, 1, 2].map((agent) => ({ kind: "proposed", agent, value: `v${agent}` }) as const);
    const voted = (agent: number, value: string) => ({ kind: "voted", agent, value }) as const;
    const decided = (agent: number, value: string) => ({ kind: "decided", agent, value, votes: 2 }) as const;
    const sound = [...proposed, voted(0, "v0"), voted(1, "v0"), decided(0, "v0"), decided(2, "v0")];
    expect(violationsOf(checkConsensus, sound)).toEqual({ agreement: 0, validity: 0, one_vote: 0 });
    expect(violationsOf(checkConsensus, [...sound, decided(1, "v1")])).toMatchObject({ agreement: 1, one_vote: 1 });
    expect(violationsOf(checkConsensus, [...sound, voted(1, "v0")])).toMatchObject({ one_vote: 0 });
    expect(violationsOf(checkConsensus, [...sound, voted(1, "v2")])).toMatchObject({ one_vote: 1 });
    const made = [...proposed, voted(0, "v9"), voted(1, "v9"), decided(0, "v9")];
    expect(violationsOf(checkConsensus, made)).toMatchObject({ validity: 1 });
    expect(violationsOf(checkConsensus, [...proposed, voted(0, "v0"), decided(0, "v0")])).toMatchObject({
      one_vote: 1,
    });
  });

  test("load balancing: a job done twice, by another than the queue says, lost, or out of nowhere", () => {
    const submitted = ["a", "b"].map((job) => ({ kind: "submitted", job }) as const);
    const completed = (agent: number, job: string) => ({ kind: "completed", agent, job }) as const;
    const stored = (agent: number, job: string) => ({ kind: "job", agent, job }) as const;
    const sound = [...submitted, completed(0, "a"), completed(1, "b"), stored(0, "a"), stored(1, "b")];
    expect(violationsOf(checkBalancing, sound)).toEqual({ completed_once: 0, none_lost: 0 });
    expect(violationsOf(checkBalancing, [...sound, completed(2, "a")])).toMatchObject({ completed_once: 1 });
    expect(violationsOf(checkBalancing, [...submitted, completed(0, "a"), stored(1, "a")])).toMatchObject({
      completed_once: 1,
    });
    expect(violationsOf(checkBalancing, [...submitted, completed(0, "a")])).toMatchObject({ none_lost: 1 });
    expect(violationsOf(checkBalancing, [...sound, completed(0, "c"), stored(0, "c")])).toMatchObject({
      completed_once: 1,
    });
    expect(deviationOf([10, 10, 10])).toBe(0);
    expect(deviationOf([8, 12])).toBeCloseTo(0.2);
  });

  test("fan-out: twice, out of order, changed; a restarted reader may read anew, and what is missing is counted", () => {
    const published = [1, 2].map((number) => ({ kind: "published", number, text: `t${number}` }) as const);
    const got = (agent: number, number: number, life = 1, text = `t${number}`) =>
      ({ kind: "received", agent, life, number, text }) as const;
    const sound = [...published, got(1, 1), got(1, 2), got(2, 1), got(2, 1, 2), got(2, 2, 2)];
    expect(violationsOf(checkFanout, sound)).toEqual({ once_in_order: 0, unchanged: 0 });
    expect(violationsOf(checkFanout, [...sound, got(1, 2)])).toMatchObject({ once_in_order: 1 });
    expect(violationsOf(checkFanout, [...published, got(1, 2), got(1, 1)])).toMatchObject({ once_in_order: 1 });
    expect(violationsOf(checkFanout, [...published, got(1, 1, 1, "else")])).toMatchObject({ unchanged: 1 });
    const log = [...published, got(1, 1), got(1, 2), got(2, 1)].map((one, n): Observation => ({ ...one, atMs: n }));
    expect(measureFanout(log, 3).measures.delivery_rate).toBe(0.75);
  });

  test("auction: two winners, one who is not the lowest or not the earliest, a bid that was not made, another award that is heard", () => {
    const bid = (agent: number, amount: number) => ({ kind: "bid", agent, amount }) as const;
    const stored = (agent: number, amount: number, sequence: number) =>
      ({ kind: "bid_stored", agent, amount, sequence }) as const;
    const bids = [bid(1, 5), bid(2, 3), bid(3, 3), stored(1, 5, 1), stored(2, 3, 3), stored(3, 3, 2)];
    const award = (winner: number, amount: number, closedAt = 3) =>
      ({ kind: "awarded", winner, amount, closedAt }) as const;
    const heard = (agent: number, winner: number, amount: number) =>
      ({ kind: "heard_award", agent, winner, amount }) as const;
    const sound = [...bids, award(3, 3), heard(1, 3, 3)];
    expect(violationsOf(checkAuction, sound, 4)).toEqual({ single_winner: 0, lowest_wins: 0, one_bid: 0 });
    expect(violationsOf(checkAuction, [...sound, award(3, 3)], 4)).toMatchObject({ single_winner: 1 });
    expect(violationsOf(checkAuction, [...bids, award(1, 5)], 4)).toMatchObject({ lowest_wins: 1 });
    expect(violationsOf(checkAuction, [...bids, award(2, 3)], 4)).toMatchObject({ lowest_wins: 1 });
    // A bid that came after the end does not count.
    expect(violationsOf(checkAuction, [...bids, award(1, 5, 1)], 4)).toMatchObject({ lowest_wins: 0 });
    expect(violationsOf(checkAuction, [...sound, heard(2, 2, 3)], 4)).toMatchObject({ single_winner: 1 });
    expect(violationsOf(checkAuction, [...sound, stored(1, 4, 4)], 4)).toMatchObject({ one_bid: 1 });
  });
});

test("a run with a violation fails with it, also when all criteria are met; a missed criterion fails it too", () => {
  const play = playOf(Pattern.CONSENSUS, fakeClock());
  const seen: Seen[] = [
    ...[0, 1].map((agent) => ({ kind: "proposed", agent, value: "v" }) as const),
    ...[0, 1].map((agent) => ({ kind: "voted", agent, value: "v" }) as const),
    ...[0, 1].map((agent) => ({ kind: "decided", agent, value: "v", votes: 2 }) as const),
  ];
  const results = (log: readonly Seen[], completed: boolean, cutShort = "") =>
    resultsOf({
      ...{ scenarioId: "scn_a", run: 1, pattern: Pattern.CONSENSUS, play, plan: planOf(1n, 2, noFaults) },
      ...{
        criteria: create(SuccessCriteriaSchema),
        faults: create(FaultsSchema),
        injected: [],
        durationMs: 9,
        cutShort,
      },
      log: log.map((one, n) => ({ ...one, atMs: n })),
      fared: [true, completed].map((one) => ({ completed: one, reason: "", calls: 1, received: 1, crashes: 0 })),
    });
  expect(results(seen, true)).toMatchObject({ state: ScenarioState.SUCCEEDED, reason: "" });
  expect(results([...seen, { kind: "decided", agent: 1, value: "w", votes: 2 }], true)).toMatchObject({
    state: ScenarioState.FAILED,
    reason: expect.stringContaining("agreement was violated"),
  });
  expect(results(seen, false)).toMatchObject({
    state: ScenarioState.FAILED,
    reason: "min_participation is not met: 1 was wanted, and it was 0.5",
  });
  expect(results(seen, true, "the time was over")).toMatchObject({
    state: ScenarioState.FAILED,
    reason: "the time was over",
  });
});

describe("a criterion is met at what it says and missed beyond, and the run says which it missed", () => {
  const at = { max_latency: 250, min_delivery_rate: 0.9, max_deviation: 0.2 };
  const criteria = create(SuccessCriteriaSchema, {
    maxLatency: durationFromMs(at.max_latency),
    minDeliveryRate: at.min_delivery_rate,
    maxDeviation: at.max_deviation,
  });
  type Measures = Partial<typeof at>;
  const results = (pattern: Pattern, measured: Measures) => {
    const { max_latency: latency, min_delivery_rate, max_deviation } = { ...at, ...measured };
    const measures = { delivery_rate: min_delivery_rate, deviation: max_deviation };
    const play = {
      ...playOf(pattern, fakeClock()),
      check: () => [],
      measure: () => ({ latenciesMs: [10, latency], done: [1, 1], measures }),
    };
    return resultsOf({
      ...{ scenarioId: "scn_a", run: 1, pattern, play, plan: planOf(1n, 2, noFaults), criteria },
      ...{ faults: create(FaultsSchema), injected: [], durationMs: 9, cutShort: "", log: [] },
      fared: [0, 1].map(() => ({ completed: true, reason: "", calls: 1, received: 1, crashes: 0 })),
    });
  };
  const { PUB_SUB_FANOUT, LOAD_BALANCING } = Pattern;

  test.each<[keyof typeof at, Pattern, number]>([
    ["max_latency", PUB_SUB_FANOUT, 251],
    ["max_latency", LOAD_BALANCING, 251],
    ["min_delivery_rate", PUB_SUB_FANOUT, 0.89],
    ["max_deviation", LOAD_BALANCING, 0.21],
  ])("%s of pattern %i", (name, pattern, beyond) => {
    const met = results(pattern, {});
    expect([met.state, met.reason]).toEqual([ScenarioState.SUCCEEDED, ""]);
    expect(met.criteria.find((one) => one.name === name)).toMatchObject({
      wanted: at[name],
      measured: at[name],
      met: true,
    });
    const missed = results(pattern, { [name]: beyond });
    expect([missed.state, missed.reason]).toEqual([
      ScenarioState.FAILED,
      `${name} is not met: ${at[name]} was wanted, and it was ${beyond}`,
    ]);
    expect(missed.criteria.filter((one) => !one.met).map((one) => one.name)).toEqual([name]);
  });
});
