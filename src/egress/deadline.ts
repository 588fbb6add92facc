import type { Stop } from "./error.ts";

/** A signal whose abort ends the work too: with `stop` if given, else with the signal's own reason, a {@link Stop}. */
export type Parent = { readonly signal: AbortSignal; readonly stop?: Stop };

const maxMs = 3_600_000;

/**
 * Runs work under a signal that stops with `late` after `ms` (at most 1 h), or when any parent's signal aborts. The timer
 * and the ties to the parents are gone when the work is.
 */
export const within = async <T>(
  ms: number,
  late: Stop,
  parents: readonly Parent[],
  work: (signal: AbortSignal) => Promise<T>,
): Promise<T> => {
  const controller = new AbortController();
  const timer = setTimeout(() => controller.abort(late), Math.min(ms, maxMs));
  const untie = parents.map(({ signal, stop }) => {
    const follow = () => controller.abort(stop ?? signal.reason);
    if (signal.aborted) follow();
    signal.addEventListener("abort", follow, { once: true });
    return () => signal.removeEventListener("abort", follow);
  });
  try {
    return await work(controller.signal);
  } finally {
    clearTimeout(timer);
    for (const cut of untie) cut();
  }
};
