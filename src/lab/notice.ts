import type { Clock } from "../clock.ts";

/** For waiting until something is so that others bring about, without looking again and again. */
export type Notice = {
  /** Something has changed: who waits looks. */
  changed(): void;
  /** True once the test holds, false after `ms` without; rejects with the signal's reason. */
  until(test: () => boolean, ms: number): Promise<boolean>;
};

export function notice(clock: Clock, signal: AbortSignal): Notice {
  let waiting: (() => void)[] = [];
  const changed = () => {
    const woken = waiting;
    waiting = [];
    for (const wake of woken) wake();
  };
  signal.addEventListener("abort", changed, { once: true });
  return {
    changed,
    async until(test, ms) {
      const untilMs = clock.now() + ms;
      for (;;) {
        signal.throwIfAborted();
        if (test()) return true;
        const leftMs = untilMs - clock.now();
        if (leftMs <= 0) return false;
        await new Promise<void>((resolve) => {
          const timer = clock.after(leftMs, resolve);
          waiting.push(() => {
            timer.cancel();
            resolve();
          });
        });
      }
    },
  };
}
