/**
 * Leases: who may do a thing now, and until when. A lease that is taken again gets a higher token, so that whatever its former holder
 * still does can be told and refused ("fencing", Kleppmann, https://martin.kleppmann.com/2016/02/08/how-to-do-distributed-locking.html).
 *
 * A row of `lease` is a named lease: a server's own life, a scheduler, a sealer. Rows of work (tasks, jobs) carry owner and token themselves.
 */
import { sql, type Tx } from "./db/db.ts";

export type Lease = { readonly name: string; readonly owner: string; readonly token: number; readonly untilMs: number };

/** Takes the lease when it is free, has run out, or is the owner's already; undefined while another holds it. */
export async function takeLease(
  tx: Tx,
  name: string,
  owner: string,
  now: number,
  leaseMs: number,
): Promise<Lease | undefined> {
  const untilMs = now + leaseMs;
  const row = await tx.one<{ token: number }>(sql`
    insert into lease (name, owner, token, until_ms) values (${name}, ${owner}, ${1}, ${untilMs})
    on conflict (name) do update set owner = ${owner}, token = lease.token + 1, until_ms = ${untilMs}
      where lease.until_ms <= ${now} or lease.owner = ${owner}
    returning token`);
  return row && { name, owner, token: row.token, untilMs };
}

/** Extends the lease, never shortens it; false when it was lost. */
export const extendLease = async (tx: Tx, lease: Lease, now: number, leaseMs: number): Promise<boolean> =>
  (await tx.run(sql`
    update lease set until_ms = ${now + leaseMs} where name = ${lease.name} and token = ${lease.token} and until_ms > ${now} and until_ms <= ${now + leaseMs}`)) ===
  1;

/** Gives the lease back. */
export const dropLease = (tx: Tx, { name, token }: Lease): Promise<number> =>
  tx.run(sql`delete from lease where name = ${name} and token = ${token}`);

/** Removes leases that ran out long ago. */
export const deleteOldLeases = (tx: Tx, before: number): Promise<number> =>
  tx.run(sql`delete from lease where until_ms < ${before}`);
