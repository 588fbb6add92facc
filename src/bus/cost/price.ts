/** What tokens cost. */
import type { Usage } from "../adapter.ts";

/** Prices of 1,000 tokens, in micro-credits. */
export type Price = { readonly input_micros: number; readonly output_micros: number };

/** The most that one attempt can cost, in micro-credits: as large as the largest budget, so that sums of many stay exact. */
export const maxCostMicros = 1_000_000_000_000_000;

/** (input tokens · input price + output tokens · output price) / 1,000, rounded up, in micro-credits; at most {@link maxCostMicros}. */
export function costMicros({ inputTokens, outputTokens }: Usage, price: Price | undefined): number {
  if (!price) return 0;
  const thousandths =
    BigInt(inputTokens) * BigInt(price.input_micros) + BigInt(outputTokens) * BigInt(price.output_micros);
  return Number(bigMin((thousandths + 999n) / 1_000n, BigInt(maxCostMicros)));
}

/**
 * Tokens of which nobody knows yet whether they are read or written: they count as the dearer kind, so that what is reserved for a task
 * covers it whichever it is.
 */
export const unknownUsage = (tokens: number, model: string, price: Price | undefined): Usage =>
  price && price.output_micros > price.input_micros
    ? { inputTokens: 0, outputTokens: tokens, model }
    : { inputTokens: tokens, outputTokens: 0, model };

const bigMin = (a: bigint, b: bigint): bigint => (a < b ? a : b);
