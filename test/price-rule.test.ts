import fc from "fast-check";
import { expect, test } from "vitest";
import { Charge } from "../gen/moltwire/bus/v1/receipt_pb.ts";
import { BillingPeriod } from "../gen/moltwire/exchange/v1/listing_pb.ts";
import {
  amountOf,
  type Cover,
  feeOf,
  isPayable,
  mostMicros,
  mostOf,
  type Prices,
  tariffOf,
} from "../src/exchange/listing/price.ts";
import { calendarStart, periodEnd } from "../src/exchange/subscription/period.ts";

const int64Most = 2n ** 63n - 1n;
const least = (a: bigint, b: bigint): bigint => (a < b ? a : b);
const micros = fc.bigInt(0n, mostMicros);
/** Prices that can be published. */
const prices: fc.Arbitrary<Prices> = fc
  .record({
    requestMicros: micros,
    thousandTokensMicros: micros,
    maxTokens: fc.bigInt(0n, 1_000_000_000n),
  })
  .filter(isPayable);
const tokens = fc.bigInt(0n, 2n ** 53n);

test("a request never costs more than what was set aside for it, whatever tokens are reported", () => {
  fc.assert(
    fc.property(prices, tokens, (of, used) => {
      const amount = amountOf(of, used);
      expect(amount >= of.requestMicros && amount <= mostOf(of) && mostOf(of) <= mostMicros).toBe(true);
    }),
  );
});

test("more tokens never cost less, and a part of a micro-credit costs one", () => {
  fc.assert(
    fc.property(prices, tokens, tokens, (of, one, other) => {
      const [fewer, more] = one < other ? [one, other] : [other, one];
      expect(amountOf(of, fewer) <= amountOf(of, more)).toBe(true);
      const thousandths = least(more, of.maxTokens) * of.thousandTokensMicros;
      const rounded = (amountOf(of, more) - of.requestMicros) * 1_000n;
      expect(rounded >= thousandths && rounded - thousandths < 1_000n).toBe(true);
    }),
  );
  expect(amountOf({ requestMicros: 0n, thousandTokensMicros: 1n, maxTokens: 10n }, 1n)).toBe(1n);
  expect(amountOf({ requestMicros: 7n, thousandTokensMicros: 2_000n, maxTokens: 5_000n }, 1_500n)).toBe(3_007n);
});

test("fee and earnings are the price to the last micro-credit, and 10 % of 5 credits leave 4.5", () => {
  fc.assert(
    fc.property(fc.bigInt(0n, int64Most), fc.integer({ min: 0, max: 10_000 }), (amount, bps) => {
      const fee = feeOf(amount, bps);
      expect(fee >= 0n && fee <= amount).toBe(true);
      // Rounded down, by less than one.
      expect(fee * 10_000n <= amount * BigInt(bps) && (fee + 1n) * 10_000n > amount * BigInt(bps)).toBe(true);
    }),
  );
  expect(5_000_000n - feeOf(5_000_000n, 1_000)).toBe(4_500_000n);
  expect([feeOf(1n, 9_999), feeOf(1n, 10_000), feeOf(9n, 1_000), feeOf(10n, 1_000)]).toEqual([0n, 1n, 0n, 1n]);
});

test("what does not fit into 64 bits is no amount", () => {
  const huge = { requestMicros: int64Most, thousandTokensMicros: 1_000n, maxTokens: 1n };
  expect(() => mostOf(huge)).toThrow(RangeError);
  expect([isPayable(huge), isPayable({ ...huge, requestMicros: mostMicros, maxTokens: 0n })]).toEqual([false, true]);
  expect(isPayable({ ...huge, requestMicros: mostMicros })).toBe(false);
  expect(() => feeOf(int64Most + 1n, 1_000)).toThrow(RangeError);
  expect(() => feeOf(-1n, 1_000)).toThrow(RangeError);
  expect(feeOf(int64Most, 10_000)).toBe(int64Most);
});

test("of any sequence of requests exactly the included ones, or exactly the free ones, cost nothing, and the others their price", () => {
  const count = fc.bigInt(0n, 30n);
  fc.assert(
    fc.property(
      prices,
      count,
      count,
      count,
      micros,
      fc.boolean(),
      (of, requests, included, asked, overageMicros, has) => {
        const charges: Charge[] = [];
        for (let used = 0n; used < asked; used++) {
          const cover: Cover = {
            free: { requests, used },
            ...(has && { subscription: { included, used, overageMicros } }),
          };
          const { charge, prices: at } = tariffOf(of, cover);
          charges.push(charge);
          const isFree = charge === Charge.FREE || charge === Charge.INCLUDED;
          expect(mostOf(at)).toBe(isFree ? 0n : charge === Charge.OVERAGE ? overageMicros : mostOf(of));
        }
        const number = (of: Charge) => BigInt(charges.filter((one) => one === of).length);
        const [covered, rest] = has ? [Charge.INCLUDED, Charge.OVERAGE] : [Charge.FREE, Charge.PRICED];
        expect(number(covered)).toBe(least(asked, has ? included : requests));
        expect(number(covered) + number(rest)).toBe(asked);
      },
    ),
  );
});

const at = (text: string) => Date.parse(text);
const { DAY, MONTH } = BillingPeriod;

test("months end on the day they began on, or on their last, and never drift", () => {
  const anchor = at("2025-01-31T23:30:00.001Z");
  const ends = [1, 2, 3, 13, 14].map((count) => new Date(periodEnd(MONTH, anchor, count)).toISOString());
  expect(ends).toEqual([
    "2025-02-28T23:30:00.001Z",
    "2025-03-31T23:30:00.001Z",
    "2025-04-30T23:30:00.001Z",
    "2026-02-28T23:30:00.001Z",
    "2026-03-31T23:30:00.001Z",
  ]);
  expect(periodEnd(DAY, anchor, 2)).toBe(anchor + 2 * 86_400_000);
  expect(calendarStart(MONTH, anchor)).toBe(at("2025-01-01T00:00:00Z"));
  expect(calendarStart(DAY, anchor)).toBe(at("2025-01-31T00:00:00Z"));
});

test("every period ends after it began, and the next one begins there", () => {
  const anchors = fc.integer({ min: at("2000-01-01T00:00:00Z"), max: at("2100-01-01T00:00:00Z") });
  fc.assert(
    fc.property(anchors, fc.constantFrom(DAY, MONTH), fc.integer({ min: 0, max: 600 }), (anchor, period, count) => {
      const days = (periodEnd(period, anchor, count + 1) - periodEnd(period, anchor, count)) / 86_400_000;
      expect(days).toBeGreaterThanOrEqual(period === DAY ? 1 : 28);
      expect(days).toBeLessThanOrEqual(period === DAY ? 1 : 31);
    }),
  );
});
