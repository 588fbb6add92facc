// What ends a call from outside: its caller leaving, its deadline, the server's shutdown.

import type { ConnectError } from "@connectrpc/connect";

/** How a stream is ended when its signal is aborted. */
export type Ending = {
  /** Aborted when the caller leaves, the deadline passes or the server shuts down. */
  signal: AbortSignal;
  /** How long the stream's source may still go on once the signal is aborted, in milliseconds. Asked at that moment. */
  graceMs: () => number;
  /** The error that says why the signal was aborted. */
  reason: () => ConnectError;
  /** What an error of the source becomes on its way out. */
  outward: (error: unknown) => ConnectError;
};

/**
 * The same messages, which end with `reason` once the signal is aborted and the grace is over, even if their source waits
 * for something that never comes and hears nothing. A source that ends after the abort has stopped short, however it ended, so the
 * end is `reason` then too; an error of its own (a ConnectError, perhaps with a cursor in it) goes before.
 */
export function endOnAbort<T>(messages: AsyncIterable<T>, ending: Ending): AsyncIterable<T> {
  return { [Symbol.asyncIterator]: () => endableIterator(messages[Symbol.asyncIterator](), ending) };
}

function endableIterator<T>(source: AsyncIterator<T>, { signal, graceMs, reason, outward }: Ending): AsyncIterator<T> {
  let graceTimer: NodeJS.Timeout | undefined;
  let isEnded = false;
  let stopWaiting: ((error: ConnectError) => void) | undefined;
  const release = () => {
    clearTimeout(graceTimer);
    signal.removeEventListener("abort", onAbort);
  };
  const end = () => {
    isEnded = true;
    release();
    stopWaiting?.(reason());
    // Not awaited: a generator that waits runs this only when its wait is over.
    source.return?.().catch(() => {});
  };
  const onAbort = () => {
    const wait = graceMs();
    if (wait > 0) graceTimer = setTimeout(end, wait);
    else end();
  };
  if (signal.aborted) onAbort();
  else signal.addEventListener("abort", onAbort, { once: true });

  return {
    // One promise per message and none that outlives it: a race against a lasting promise would keep every loser.
    next: () =>
      new Promise((resolve, reject) => {
        if (isEnded) return reject(reason());
        stopWaiting = reject;
        source.next().then(
          (result) => {
            if (result.done !== true) return resolve(result);
            release();
            if (signal.aborted) reject(reason());
            else resolve(result);
          },
          (error) => {
            release();
            reject(outward(error));
          },
        );
      }),
    return: async (value) => {
      release();
      isEnded = true;
      source.return?.().catch(() => {});
      return { done: true, value };
    },
  };
}

/** A signal that is aborted with the first of two, the second under a reason of its own. Call `release` when the call is over. */
export function linkSignals(
  first: AbortSignal,
  second: AbortSignal | undefined,
  secondReason: () => unknown,
): { signal: AbortSignal; release(): void } {
  if (second === undefined) return { signal: first, release: () => {} };
  const controller = new AbortController();
  const onFirst = () => controller.abort(first.reason);
  const onSecond = () => controller.abort(secondReason());
  const release = () => {
    first.removeEventListener("abort", onFirst);
    second.removeEventListener("abort", onSecond);
  };
  if (first.aborted) onFirst();
  else if (second.aborted) onSecond();
  first.addEventListener("abort", onFirst, { once: true });
  second.addEventListener("abort", onSecond, { once: true });
  return { signal: controller.signal, release };
}
