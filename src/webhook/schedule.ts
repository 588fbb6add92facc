/** When a delivery is tried again, and when a webhook is given up. Pure. */

const second = 1_000;
const minute = 60 * second;
const hour = 60 * minute;
const day = 24 * hour;

/** After the n-th failure of a series, so long: 8 attempts in 27.6 hours, as Standard Webhooks proposes. */
const waitsMs = [5 * second, 5 * minute, 30 * minute, 2 * hour, 5 * hour, 10 * hour, 10 * hour] as const;
/** How many attempts a series has. */
export const maxAttempts = waitsMs.length + 1;
const jitter = 0.1;
/** The longest that an endpoint can ask for. */
export const maxRetryAfterMs = 10 * hour;
/** A webhook whose attempts all failed for so long is disabled, once one of its deliveries has failed three times. */
export const failingLimitMs = 5 * day;

/**
 * When to try again after the n-th failure (from 1) of a series; undefined: never.
 *
 * @param chance from 0 to 1; waits are up to a tenth shorter or longer by it, so that deliveries that failed together come apart.
 * @param retryAfterMs what the endpoint asked for; 0: nothing.
 */
export function nextAttemptMs(failures: number, now: number, chance: number, retryAfterMs: number): number | undefined {
  const waitMs = waitsMs[failures - 1];
  if (waitMs === undefined) return undefined;
  const jittered = waitMs * (1 - jitter + 2 * jitter * chance);
  return Math.round(now + Math.max(jittered, Math.min(retryAfterMs, maxRetryAfterMs)));
}

/** What a `retry-after` header asks for (RFC 9110, 10.2.3: seconds or a date), in milliseconds from now; 0 for nothing and for nonsense. */
export function retryAfterMs(header: string | undefined, now: number): number {
  const text = header?.trim() ?? "";
  if (/^\d{1,10}$/.test(text)) return Number(text) * second;
  const date = /^[A-Z][a-z]{2}, \d{2} [A-Z][a-z]{2} \d{4} \d{2}:\d{2}:\d{2} GMT$/.test(text) ? Date.parse(text) : NaN;
  return Number.isNaN(date) ? 0 : Math.max(0, date - now);
}

/** So many failures in a row of one delivery are no bad moment. */
const failingAttempts = 3;

/**
 * Why a webhook is disabled after an attempt that failed, if it is. Two bad moments far apart, between which nothing was tried, are no failing of days: the delivery has to
 * have failed `failures` times, three at least.
 */
export function givenUp(
  status: number,
  failures: number,
  failingSinceMs: number,
  now: number,
): "GONE" | "FAILING" | undefined {
  if (status === 410) return "GONE";
  return failures >= failingAttempts && now - failingSinceMs >= failingLimitMs ? "FAILING" : undefined;
}
