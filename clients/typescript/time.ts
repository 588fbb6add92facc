/** Waiting, in Node and in browsers. */

/** Waits so long; ends early, without a word, when the signal aborts. */
export function pause(ms: number, signal?: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    if (signal?.aborted) return resolve();
    const end = () => {
      clearTimeout(timer);
      signal?.removeEventListener("abort", end);
      resolve();
    };
    const timer = setTimeout(end, ms);
    signal?.addEventListener("abort", end, { once: true });
  });
}

/** The wait after so many failures in a row: from `firstMs`, doubled each time up to `longestMs`, and by chance down to half of that. */
export const backoffMs = (failures: number, firstMs: number, longestMs: number, chance: number): number =>
  Math.min(longestMs, firstMs * 2 ** Math.min(failures, 20)) * (0.5 + chance / 2);

/** A signal that aborts when any of these does. */
export const anySignal = (...signals: readonly (AbortSignal | undefined)[]): AbortSignal =>
  AbortSignal.any(signals.filter((signal) => signal !== undefined));
