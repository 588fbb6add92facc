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

/** How often a task goes to another instance because its lease ran out, beyond the retries of its contract: a task that kills whoever has it must come to an end. */
export const maxLostLeases = 3;

/** How far the work on a task has come. */
export type Tried = {
  /** Whose turn it is among the agents. */
  readonly turn: number;
  /** Under which contract: 0 its own, n its n-th fallback. */
  readonly step: number;
  /** Which of the contract's agents is next, counted on through all rounds. */
  readonly agent: number;
  /** The ids of those that were before it, and its own, in their order; not set while it never waited to be pulled. */
  readonly passed?: readonly string[];
  readonly retries: number;
  readonly lostLeases: number;
};

/** Nothing yet, under the n-th contract. */
export const nothingTried = (turn: number, step: number): Tried => ({
  turn,
  step,
  agent: 0,
  retries: 0,
  lostLeases: 0,
});

/** A failed attempt, and what decides on the next one. */
export type Failed = {
  readonly aftermath: Aftermath;
  readonly contract: Pick<ContractRow, "repeatable" | "max_retries" | "backoff_ms" | "max_backoff_ms">;
  /** Before the attempt. */
  readonly tried: Tried;
  /** How many agents can do it. */
  readonly agents: number;
  /** The task's deadline has passed. */
  readonly late: boolean;
  /** An instance that pulls let its lease run out. */
  readonly leaseLost?: boolean;
  /** The agent says that trying again does not help. */
  readonly hopeless?: boolean;
  readonly chance: () => number;
};

/** What follows a failed attempt: another one after a wait, the next contract if there is one, or nothing. */
export type FollowUp =
  | { readonly kind: "again"; readonly tried: Tried; readonly waitMs: number }
  | { readonly kind: "next contract" }
  | { readonly kind: "end" };

/**
 * An agent that never had the task gives way to the next one at once; an instance whose lease ran out to another one of the same agent; other
 * failures are repeated, after a wait, as often as the contract's retry policy says and as far as repeating does no harm.
 */
export function followUp(failed: Failed): FollowUp {
  const { aftermath, contract, tried, late } = failed;
  if (late || !mayRepeat(aftermath, contract)) return { kind: "end" };
  if (aftermath === "not-begun" && tried.agent + 1 < failed.agents)
    return { kind: "again", tried: { ...tried, agent: tried.agent + 1 }, waitMs: 0 };
  if (failed.leaseLost && tried.lostLeases < maxLostLeases)
    return { kind: "again", tried: { ...tried, lostLeases: tried.lostLeases + 1 }, waitMs: 0 };
  if (failed.hopeless || tried.retries >= contract.max_retries) return { kind: "next contract" };
  const retries = tried.retries + 1;
  return {
    kind: "again",
    tried: { ...tried, agent: tried.agent + 1, retries },
    waitMs: backoffMs(retries, contract, failed.chance()),
  };
}
