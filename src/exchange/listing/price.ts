/** What a request for a listing costs. Pure. Amounts are micro-credits. */
import { Charge } from "../../../gen/moltwire/bus/v1/receipt_pb.ts";

/** Prices of a request as they are when it is accepted; 0: none. */
export type Prices = {
  readonly requestMicros: bigint;
  readonly thousandTokensMicros: bigint;
  readonly maxTokens: bigint;
};

/** What covers a request, as far as there is any. */
export type Cover = {
  /** A subscription whose period is paid for. */
  readonly subscription?: { readonly included: bigint; readonly used: bigint; readonly overageMicros: bigint };
  /** The free requests of the period. */
  readonly free?: { readonly requests: bigint; readonly used: bigint };
};

/** By what a request is paid, and the prices of that. */
export type Tariff = { readonly charge: Exclude<Charge, typeof Charge.UNSPECIFIED>; readonly prices: Prices };

/** The most that one request can cost: 1,000,000,000 credits. */
export const mostMicros = 1_000_000_000_000_000n;

const int64Most = 2n ** 63n - 1n;
const nothing: Prices = { requestMicros: 0n, thousandTokensMicros: 0n, maxTokens: 0n };
const basisPoints = 10_000n;

/** By what a request is paid: a subscription before the free tier before the pricing. */
export function tariffOf(pricing: Prices, { subscription, free }: Cover): Tariff {
  if (subscription) {
    if (subscription.used < subscription.included) return { charge: Charge.INCLUDED, prices: nothing };
    return { charge: Charge.OVERAGE, prices: { ...nothing, requestMicros: subscription.overageMicros } };
  }
  if (free && free.used < free.requests) return { charge: Charge.FREE, prices: nothing };
  return { charge: Charge.PRICED, prices: pricing };
}

/** What a request costs that took so many tokens, of which no more than `maxTokens` count; a part of a micro-credit counts as one. */
export function amountOf({ requestMicros, thousandTokensMicros, maxTokens }: Prices, tokens: bigint): bigint {
  const counted = tokens < maxTokens ? tokens : maxTokens;
  return within(requestMicros + (counted * thousandTokensMicros + 999n) / 1_000n);
}

/** The most that a request can cost: what is set aside for it. */
export const mostOf = (prices: Prices): bigint => amountOf(prices, prices.maxTokens);

/** Whether such prices may be published: no request costs more than {@link mostMicros}. */
export const isPayable = ({ requestMicros, thousandTokensMicros, maxTokens }: Prices): boolean =>
  requestMicros * 1_000n + thousandTokensMicros * maxTokens <= mostMicros * 1_000n;

/** What of an amount goes to the platform, rounded down to a whole micro-credit; the provider has the rest. */
export const feeOf = (amount: bigint, feeBps: number): bigint => (within(amount) * BigInt(feeBps)) / basisPoints;

/** Amounts are kept in 64 bits. What is published never comes near: this is for a fault of the program. */
function within(amount: bigint): bigint {
  if (amount < 0n || amount > int64Most) throw new RangeError(`${amount} micro-credits are no amount`);
  return amount;
}
