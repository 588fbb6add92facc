/** The sealer: chains what is written into the audit logs, on one server at a time, after it was committed. See AUDIT.md. */
import type { App } from "../app.ts";
import type { Tx } from "../db/db.ts";
import { takeLease } from "../lease.ts";
import {
  lockHead,
  moveHead,
  nextOrganizations,
  oldestUnsealed,
  putSeals,
  rowsToSeal,
  type Seal,
} from "./audit-chain-store.ts";
import { auditHash, auditText } from "./audit-text.ts";
import type { Metrics } from "./metrics.ts";

/** How often the sealer looks for new rows. */
export const sealMs = 1_000;
/** For so long it leaves the database to others when it has more to do. */
const pauseMs = 50;
/** A power of two, which is one statement. So many rows hold the event loop for some milliseconds. */
const batch = 256;
/** Organisations that are looked at, and sealed, in one round. */
const lookedAt = 500;
const sealedAtOnce = 50;
/** Longer than a round. Who loses it in the middle does no harm: each batch holds the head of its chain. */
const leaseMs = 10_000;

type Needs = Pick<App, "db" | "clock" | "log" | "serverId" | "stopping">;

/** What became of a batch: rows looked at, and those of them that are in the chain since. */
type Batch = { readonly rows: number; readonly sealed: number };

/**
 * One round: a batch of each organisation that has new rows, in the order of their ids from where the last round ended, so that no log however long delays the others.
 * Gives in how many milliseconds the next round is due. It only reads while there is nothing to do, and does nothing while another server does it.
 */
export function auditSealer(app: Needs, metrics: AuditMetrics): () => Promise<number> {
  const { db, clock, serverId, stopping, log } = app;
  /** Not the server's id: a server that holds a lease by that name counts as alive, and its tasks as cared for. */
  const owner = `audit:${serverId}`;
  let after = "";
  return async () => {
    const page = await nextOrganizations(db.query, after, lookedAt);
    const due = page.filter((one) => one.due === 1);
    if (due.length > 0 && !(await db.tx((tx) => takeLease(tx, "audit", owner, clock.now(), leaseMs)))) return sealMs;
    let rows = 0;
    for (const { org_id } of due.slice(0, sealedAtOnce)) {
      if (rows >= batch || stopping.aborted) return pauseMs;
      after = org_id;
      try {
        const done = await db.tx((tx) => sealBatch(tx, org_id, clock.now()));
        rows += done.rows;
        metrics.sealed(done.sealed);
      } catch (error) {
        log.error({ err: error, orgId: org_id }, "an audit log could not be chained, and is tried again");
      }
    }
    if (due.length <= sealedAtOnce) after = page.length === lookedAt ? page.at(-1)!.org_id : "";
    return rows > 0 || after !== "" ? pauseMs : sealMs;
  };
}

/** Chains the next rows of one log. Either all of it is done or nothing: a sealer that dies leaves the rest to the next one. */
export async function sealBatch(tx: Tx, orgId: string, now: number): Promise<Batch> {
  const head = await lockHead(tx, orgId);
  const rows = await rowsToSeal(tx, head, batch);
  const last = rows.at(-1);
  if (!last) return { rows: 0, sealed: 0 };
  const seals: Seal[] = [];
  let { number, hash } = head;
  for (const row of rows) {
    if (row.number !== null) continue;
    number++;
    hash = auditHash(auditText(row, number, hash));
    seals.push({ xid: row.xid, seq: row.seq, number, hash });
  }
  if ((await putSeals(tx, orgId, seals)) !== seals.length)
    throw new Error(`${orgId}: its audit log changed while it was chained`);
  const seal_ms = seals.length > 0 ? now : head.seal_ms;
  await moveHead(tx, { org_id: orgId, number, hash, seal_ms, xid: last.xid, seq: last.seq });
  return { rows: rows.length, sealed: seals.length };
}

/** What is counted. */
export type AuditMetrics = { sealed(rows: number): void };

export function auditMetrics(metrics: Metrics, { db, clock }: Pick<App, "db" | "clock">): AuditMetrics {
  const sealed = metrics.counter("moltwire_audit_sealed_total", "Audit rows that were chained");
  metrics.gauge({
    name: "moltwire_audit_unsealed_seconds",
    help: "Since when the oldest audit row is there that is not chained, in all the database",
    read: async () => {
      const oldestMs = await oldestUnsealed(db.query);
      return oldestMs === undefined ? 0 : Math.max(0, clock.now() - oldestMs) / 1_000;
    },
  });
  return { sealed: (rows) => sealed.inc(rows) };
}
