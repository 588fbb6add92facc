/** This process among the replicas: a lease that says it is alive. Its tasks are others' to take once the lease has run out. */
import type { App } from "./app.ts";
import { sql } from "./db/db.ts";
import { deleteOldLeases, dropLease, extendLease, type Lease, takeLease } from "./lease.ts";

/** How long a server that is gone keeps its tasks from the others. */
export const defaultLeaseMs = 15_000;
const keptMs = 24 * 3_600_000;

export type Life = {
  /**
   * Extends the lease; takes it anew if it was lost. False for as long as a lease lasts from then on: what kept this server from its lease (storage that was away) may have kept
   * the others from theirs, and they are to say that they are alive before their tasks are taken.
   */
  beat(): Promise<boolean>;
  /** Gives the lease back, so that others need not wait for it to run out. */
  end(): Promise<void>;
};

type Needs = Pick<App, "db" | "clock" | "serverId">;

/** Takes the lease; a `beat` is due in every third of it. A SQLite file has one process, so whoever held one in it before is gone. */
export async function beginLife({ db, clock, serverId }: Needs, leaseMs = defaultLeaseMs): Promise<Life> {
  const name = `server:${serverId}`;
  const take = () =>
    db.tx(async (tx): Promise<Lease> => {
      const now = clock.now();
      if (tx.dialect.name === "sqlite") await tx.run(sql`delete from lease where name <> ${name}`);
      await deleteOldLeases(tx, now - keptMs);
      const lease = await takeLease(tx, name, serverId, now, leaseMs);
      if (!lease) throw new Error(`the lease ${name} is held by another server`);
      return lease;
    });
  let lease = await take();
  let patientUntilMs = 0;
  return {
    async beat() {
      const kept = await db
        .tx((tx) => extendLease(tx, lease, clock.now(), leaseMs))
        .catch((error: unknown) => {
          patientUntilMs = clock.now() + leaseMs; // the others may not have got through either
          throw error;
        });
      if (!kept) {
        lease = await take();
        patientUntilMs = clock.now() + leaseMs;
      }
      return clock.now() >= patientUntilMs;
    },
    end: async () => void (await db.tx((tx) => dropLease(tx, lease))),
  };
}
