import type { App } from "../../app.ts";
import { Fault } from "../../errors.ts";
import { takeLease } from "../../lease.ts";
import { expire } from "./post.ts";
import { dueHolds } from "./store.ts";

/** How often what is due is looked for. Nobody waits for it: what has expired counts as released from its time on. */
export const expireReservesMs = 5_000;

const batch = 100;
const leaseMs = 30_000;

/** Writes down that reserves have expired, as they are read since. One server at a time, so that replicas do not do it all at once. */
export async function expireReserves(app: Pick<App, "db" | "clock" | "serverId" | "stopping">): Promise<void> {
  // Not the server's own name, by whose leases others tell whether it lives.
  const owner = `ledger:${app.serverId}`;
  while (!app.stopping.aborted) {
    const due = await dueHolds(app.db.query, app.clock.now(), batch);
    if (due.length === 0) return;
    const now = app.clock.now();
    if (!(await app.db.tx((tx) => takeLease(tx, "ledger expiry", owner, now, leaseMs)))) return;
    for (const one of due)
      await app.db
        .tx((tx) => expire(tx, one, app.clock.now()))
        .catch((error: unknown) => {
          // It has been ended since it was found.
          if (!(error instanceof Fault) || error.reason !== "FAILED_PRECONDITION") throw error;
        });
    if (due.length < batch) return;
  }
}
