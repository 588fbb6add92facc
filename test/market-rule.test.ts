import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { MarketplaceTaskState as State } from "../gen/moltwire/exchange/v1/marketplace_pb.ts";
import {
  type Act,
  forWorkerAfter,
  hasEnded,
  heldUntil,
  type Life,
  limits,
  nextByTime,
  sharesOf,
  stepsUntil,
  take,
} from "../src/exchange/market/rule.ts";

const taken: readonly State[] = [State.CLAIMED, State.DELIVERED, State.DISPUTED, State.COMPLETED];
const { OPEN, CLAIMED, DISPUTED, EXPIRED } = State;
const workers = ["agt_a", "agt_b"] as const;
const acts: readonly Act[] = ["claim", "deliver", "accept", "reject", "dispute", "settle", "cancel"];

const posted = fc.record({
  deadlineMs: fc.constantFrom(null, 5, 20, limits.reviewMs),
  claimTimeoutMs: fc.constantFrom(null, 3, 50),
  disputeWindowMs: fc.constantFrom(0, 4, 40),
});
const deed = fc.record({
  act: fc.constantFrom(...acts, "claim" as const, "claim" as const, "deliver" as const),
  by: fc.constantFrom(...workers),
  waitMs: fc.oneof(
    { weight: 8, arbitrary: fc.constantFrom(0, 0, 1, 2, 5) },
    { weight: 1, arbitrary: fc.constantFrom(30, limits.reviewMs) },
  ),
});

const begun = (of: Pick<Life, "deadlineMs" | "claimTimeoutMs" | "disputeWindowMs">): Life => ({
  ...of,
  ...{ state: OPEN, sinceMs: 0, heldUntilMs: null, worker: "" },
});
/** What time has made of it. */
const at = (life: Life, now: number): Life => stepsUntil(life, now).at(-1)?.life ?? life;

describe("the life of a task", () => {
  test("pays its reward out once, never changes after its end, and is always some worker's while it is claimed", () => {
    const ends = new Map<State, number>();
    fc.assert(
      fc.property(posted, fc.array(deed, { minLength: 4, maxLength: 30, size: "max" }), (of, deeds) => {
        let life = begun(of);
        let [now, payments] = [0, 0];
        const pass = (act: Parameters<typeof forWorkerAfter>[0], next: Life) => {
          if (forWorkerAfter(act, 10n, 4n) !== undefined) payments++;
          expect(next.sinceMs).toBeGreaterThanOrEqual(life.sinceMs);
          life = next;
        };
        for (const { act, by, waitMs } of deeds) {
          now += waitMs;
          for (const step of stepsUntil(life, now)) pass(step.act, step.life);
          const before = life;
          const outcome = take(life, act, by, now);
          if (hasEnded(before.state)) expect(outcome).toEqual({ refusal: { why: "state" } });
          if ("life" in outcome) pass(act, outcome.life);
          expect(payments).toBe(hasEnded(life.state) ? 1 : 0);
          expect(life.worker !== "" || !taken.includes(life.state)).toBe(true);
          if (hasEnded(life.state)) expect(nextByTime(life)).toBeUndefined();
        }
        ends.set(life.state, (ends.get(life.state) ?? 0) + 1);
      }),
      { numRuns: 2_000, seed: 8 },
    );
    // Every state was an end of some run.
    expect([...ends.keys()].sort()).toEqual([1, 2, 3, 4, 5, 6, 7, 8]);
  });

  test("is at each instant what it would be had one looked at every instant before", () => {
    fc.assert(
      fc.property(
        posted,
        fc.array(deed, { maxLength: 12 }),
        fc.nat({ max: 60 }),
        fc.nat({ max: 60 }),
        (of, deeds, early, more) => {
          let life = begun(of);
          let now = 0;
          for (const { act, by, waitMs } of deeds) {
            now += waitMs;
            const outcome = take(at(life, now), act, by, now);
            if ("life" in outcome) life = outcome.life;
          }
          const [first, second] = [now + early, now + early + more];
          expect(at(at(life, first), second)).toEqual(at(life, second));
          const next = nextByTime(life);
          if (next && next.atMs > life.sinceMs) {
            expect(at(life, next.atMs - 1)).toEqual(life);
            expect(at(life, next.atMs).state).not.toBe(life.state);
          }
        },
      ),
      { numRuns: 2_000, seed: 8 },
    );
  });

  test("who has claimed it delivers, and nobody else", () => {
    fc.assert(
      fc.property(posted, fc.constantFrom(...workers), fc.constantFrom(...workers), (of, claimer, other) => {
        const claimed = take(begun(of), "claim", claimer, 0);
        if (!("life" in claimed)) throw new Error("an open task can be claimed");
        expect("life" in take(claimed.life, "deliver", other, 0)).toBe(other === claimer);
        expect(take(claimed.life, "claim", other, 0)).toEqual({ refusal: { why: "state" } });
      }),
    );
  });

  test("a rejected result leaves the task to its worker for the dispute window, and nothing takes it from it meanwhile", () => {
    const of = { deadlineMs: 10, claimTimeoutMs: null, disputeWindowMs: 100 };
    const rejected: Life = { ...begun(of), sinceMs: 9, heldUntilMs: 109, worker: "agt_a" };
    for (const now of [9, 10, 108]) {
      const life = at(rejected, now);
      expect([life.state, heldUntil(life, now)]).toEqual([OPEN, 109]);
      expect(take(life, "claim", "agt_b", now)).toEqual({ refusal: { why: "held", untilMs: 109 } });
      expect(take(life, "cancel", "", now)).toEqual({ refusal: { why: "held", untilMs: 109 } });
      expect(take(life, "dispute", "agt_b", now)).toEqual({ refusal: { why: "worker" } });
      expect(take(life, "dispute", "agt_a", now)).toMatchObject({ life: { state: DISPUTED } });
      expect(take(life, "claim", "agt_a", now)).toMatchObject({ life: { state: CLAIMED } });
    }
    expect(at(rejected, 109)).toMatchObject({ state: EXPIRED, sinceMs: 109, worker: "" });
    const open = { ...rejected, deadlineMs: null };
    expect(take(open, "dispute", "agt_a", 109)).toEqual({ refusal: { why: "state" } });
    expect(take(open, "claim", "agt_b", 109)).toMatchObject({ life: { state: CLAIMED, worker: "agt_b" } });
    expect(take(open, "cancel", "", 109)).toMatchObject({ life: { worker: "" } });
  });

  test("a claim that ends after the deadline ends with the task", () => {
    const claimed = (claimTimeoutMs: number): Life => ({
      ...begun({ deadlineMs: 10, claimTimeoutMs, disputeWindowMs: 0 }),
      ...{ state: CLAIMED, worker: "agt_a" },
    });
    expect(stepsUntil(claimed(9), 10).map(({ act }) => act)).toEqual(["release", "expire"]);
    expect(stepsUntil(claimed(10), 10).map(({ act }) => act)).toEqual(["expire"]);
  });
});

test("the shares of a reward are never less than nothing, and add up to it, whatever the fee and however large it is", () => {
  const most = 2n ** 63n - 1n;
  fc.assert(
    fc.property(
      fc.bigInt({ min: 1n, max: most }),
      fc.bigInt({ min: 0n, max: most }),
      fc.nat({ max: 10_000 }),
      (reward, wish, bps) => {
        const forWorker = wish % (reward + 1n);
        const { worker, fee, creator } = sharesOf(reward, forWorker, bps);
        expect(worker + fee + creator).toBe(reward);
        for (const share of [worker, fee, creator]) expect(share).toBeGreaterThanOrEqual(0n);
        expect(fee * 10_000n).toBeLessThanOrEqual(forWorker * BigInt(bps));
      },
    ),
  );
  expect(sharesOf(5_000_000n, 5_000_000n, 1_000)).toEqual({ worker: 4_500_000n, fee: 500_000n, creator: 0n });
});
