import type { App } from "./app.ts";

/** Work that is done again and again. `stop` waits for a round under way. */
export type Periodic = { stop(): Promise<void> };

/**
 * Does the work every so often, one round at a time; a round that fails is logged and the next one comes all the same. A round may give after how many
 * milliseconds it wants the next one, if that is sooner.
 */
export function every(
  app: Pick<App, "clock" | "log">,
  ms: number,
  name: string,
  work: (() => Promise<void>) | (() => Promise<number>),
): Periodic {
  let stopped = false;
  let running = Promise.resolve();
  let timer = app.clock.after(ms, round);
  function round(): void {
    running = (work() as Promise<unknown>)
      .catch((error: unknown) => app.log.error({ err: error, work: name }, "periodic work failed"))
      .then((soonerMs) => {
        if (!stopped) timer = app.clock.after(typeof soonerMs === "number" ? Math.min(ms, soonerMs) : ms, round);
      });
  }
  return {
    stop() {
      stopped = true;
      timer.cancel();
      return running;
    },
  };
}
