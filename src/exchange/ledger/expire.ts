import type { App } from "../../app.ts";
import { Fault } from "../../errors.ts";
import { takeLease } from "../../lease.ts";
import { expire } from "./post.ts";
import { type DueHold, dueHolds } from "./store.ts";

/** How often what is due is looked for. Nobody waits for it: what has expired counts as released from its time on. */
export const expireReservesMs = 5_000;

const batch = 100;
const leaseMs = 30_000;
const beforeAll: DueHold = { expireMs: -1, orgId: "", transferId: "" };

/**
 * Writes down that reserves have expired, as they are read since. One server at a time, so that replicas do not do it all at once. One that fails is logged and tried again
 * the next time, and keeps no other waiting.
 */
export async function expireReserves(app: Pick<App, "db" | "clock" | "serverId" | "stopping" | "log">): Promise<void> {
  // Not the server's own name, by whose leases others tell whether it lives.
  const owner = `ledger:${app.serverId}`;
  for (let after = beforeAll; !app.stopping.aborted; ) {
    const due = await dueHolds(app.db.query, app.clock.now(), after, batch);
    const last = due.at(-1);
    if (!last) return;
    const now = app.clock.now();
    if (!(await app.db.tx((tx) => takeLease(tx, "ledger expiry", owner, now, leaseMs)))) return;
    for (const { orgId, transferId } of due)
      await app.db
        .tx((tx) => expire(tx, { orgId, transferId }, app.clock.now()))
        .catch((error: unknown) => {
          // It has been ended since it was found.
          if (error instanceof Fault && error.reason === "FAILED_PRECONDITION") return;
          app.log.error({ err: error, org_id: orgId, transfer_id: transferId }, "a reserve was not released");
        });
    if (due.length < batch) return;
    after = last;
  }
}
