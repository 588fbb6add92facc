import type { Aftermath } from "./adapter.ts";
import type { ContractRow } from "./contract-store.ts";

/**
 * Whether the work may be begun again after a failed attempt. Work that certainly was not begun, always. Work that the agent says has
 * failed, too: the contract's retry policy asks for it. Work that may be done already, only if doing it twice does no harm.
 */
export const mayRepeat = (aftermath: Aftermath, contract: Pick<ContractRow, "repeatable">): boolean =>
  aftermath === "not-begun" || aftermath === "failed" || contract.repeatable !== 0;

/**
 * How long to wait before the n-th repetition (from 1), in milliseconds: "full jitter", a random part of an exponential bound
 * (https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/). `chance` is from 0 to 1.
 */
export const backoffMs = (
  retry: number,
  { backoff_ms, max_backoff_ms }: Pick<ContractRow, "backoff_ms" | "max_backoff_ms">,
  chance: number,
): number => Math.round(chance * Math.min(max_backoff_ms, backoff_ms * 2 ** (retry - 1)));
