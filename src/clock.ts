/** Time. Passed in as `app.clock`, so that a test can set it. */
import { setTimeout as delay } from "node:timers/promises";

export type Clock = {
  /** Milliseconds since 1970. */
  now(): number;
  /** Waits; rejects with the signal's reason when it aborts. */
  sleep(ms: number, signal: AbortSignal): Promise<void>;
  /** Calls back after `ms` unless canceled. */
  after(ms: number, run: () => void): { cancel(): void };
};

export const systemClock = (): Clock => ({
  now: () => Date.now(),
  async sleep(ms, signal) {
    try {
      await delay(ms, undefined, { signal });
    } catch (error) {
      signal.throwIfAborted();
      throw error;
    }
  },
  after(ms, run) {
    const timer = setTimeout(run, ms);
    return { cancel: () => clearTimeout(timer) };
  },
});
