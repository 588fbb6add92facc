/** How long it is known how many requests of a free tier were used. */
import type { App } from "../../app.ts";
import { deleteOldFreeUse } from "./call-store.ts";

/** From the beginning of a period: longer than any is, by as much as a request may take that gives one back. */
export const freeUseKeptMs = 62 * 86_400_000;

const batch = 1_000;

/** Deletes the counts of periods that are over, a bounded number at a time. */
export async function sweepFreeUse(app: Pick<App, "db" | "clock" | "stopping">): Promise<void> {
  while (!app.stopping.aborted) {
    const before = app.clock.now() - freeUseKeptMs;
    if ((await app.db.tx((tx) => deleteOldFreeUse(tx, before, batch))) < batch) return;
  }
}
