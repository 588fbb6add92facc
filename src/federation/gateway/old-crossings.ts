/** How long requests across organisations are told by GetStatus. Their tasks, traces and audit rows stay. */
import type { App } from "../../app.ts";
import { deleteOldCrossings } from "./crossing-store.ts";

/** Longer than a year, so that a year's figures can be held against the requests behind them. */
export const crossingsKeptMs = 400 * 86_400_000;

const batch = 1_000;

/** Deletes those that are kept no longer, a bounded number at a time. A request whose task is still open stays. */
export async function sweepCrossings(app: Pick<App, "db" | "clock" | "stopping">): Promise<void> {
  while (!app.stopping.aborted) {
    const before = app.clock.now() - crossingsKeptMs;
    if ((await app.db.tx((tx) => deleteOldCrossings(tx, before, batch))) < batch) return;
  }
}
