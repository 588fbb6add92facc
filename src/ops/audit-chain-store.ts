/** The chain of each organisation's audit log, in rows: see AUDIT.md. */
import { join, type Queryable, sql, type Tx } from "../db/db.ts";
import { committedAfter, type LogColumns, settledAfter } from "../db/log.ts";
import { type AuditRow, auditColumns } from "./audit-store.ts";
import { noHash } from "./audit-text.ts";

/** Where a chain ends: the last row in it, and the last row of the log that the sealer has seen. */
export type AuditHead = {
  readonly org_id: string;
  readonly number: number;
  readonly hash: string;
  readonly seal_ms: number;
  readonly xid: number;
  readonly seq: number;
  /** The last row that is no longer kept; 0, and its hash: all are. */
  readonly gone_number: number;
  readonly gone_hash: string;
};

const firstHead = (orgId: string): AuditHead => ({
  org_id: orgId,
  number: 0,
  hash: noHash,
  seal_ms: 0,
  xid: 0,
  seq: 0,
  gone_number: 0,
  gone_hash: noHash,
});

/** Where the chain ends. */
export const findHead = async (db: Queryable, orgId: string): Promise<AuditHead> =>
  (await db.one<AuditHead>(
    sql`select org_id, number, hash, seal_ms, xid, seq, gone_number, gone_hash from audit_head where org_id = ${orgId}`,
  )) ?? firstHead(orgId);

/** The same, held against every other sealer. The first one makes the row: what is not there cannot be held. */
export async function lockHead(tx: Tx, orgId: string): Promise<AuditHead> {
  const lock = () =>
    tx.one<AuditHead>(sql`
      select org_id, number, hash, seal_ms, xid, seq, gone_number, gone_hash from audit_head where org_id = ${orgId} ${tx.dialect.forUpdate}`);
  const found = await lock();
  if (found) return found;
  await tx.run(sql`
    insert into audit_head (org_id, number, hash, seal_ms, xid, seq) values (${orgId}, ${0}, ${noHash}, ${0}, ${0}, ${0})
    on conflict do nothing`);
  return (await lock())!;
}

export const moveHead = (
  tx: Tx,
  { org_id, number, hash, seal_ms, xid, seq }: Omit<AuditHead, "gone_number" | "gone_hash">,
): Promise<number> =>
  tx.run(sql`
    update audit_head set number = ${number}, hash = ${hash}, seal_ms = ${seal_ms}, xid = ${xid}, seq = ${seq} where org_id = ${org_id}`);

/** The next rows of the log that the sealer has not seen and that none will come before. After a restore some of them are chained already. */
export const rowsToSeal = (
  tx: Tx,
  head: Pick<AuditHead, "org_id" | "xid" | "seq">,
  limit: number,
): Promise<AuditRow[]> =>
  tx.all<AuditRow>(sql`
    select ${auditColumns} from audit_event where org_id = ${head.org_id} and ${settledAfter(tx.dialect, head)} order by xid, seq limit ${limit}`);

/** A row's place in the chain. */
export type Seal = {
  readonly xid: number;
  readonly seq: number;
  readonly number: number;
  readonly hash: string;
};

/** Puts consecutive rows of the log into the chain; gives how many were not in it yet. */
export async function putSeals(tx: Tx, orgId: string, seals: readonly Seal[]): Promise<number> {
  let done = 0;
  if (tx.dialect.name === "sqlite") {
    // One by one: joined with many rows at once it would read the whole log of the organisation.
    for (const { xid, seq, number, hash } of seals)
      done += await tx.run(sql`
        update audit_event set number = ${number}, hash = ${hash} where org_id = ${orgId} and xid = ${xid} and seq = ${seq} and number is null`);
    return done;
  }
  // In statements of 1, 2, 4, 8… rows: one each would be a round trip each, and each other number of rows another text to prepare.
  for (let from = 0; from < seals.length; ) {
    const some = seals.slice(from, from + 2 ** Math.floor(Math.log2(seals.length - from)));
    const rows = some.map(
      ({ xid, seq, number, hash }) =>
        sql`(cast(${xid} as bigint), cast(${seq} as bigint), cast(${number} as bigint), cast(${hash} as text))`,
    );
    done += await tx.run(sql`
      with seal (xid, seq, number, hash) as (values ${join(rows)})
      update audit_event set number = seal.number, hash = seal.hash from seal
      where audit_event.org_id = ${orgId} and audit_event.xid = seal.xid and audit_event.seq = seal.seq and audit_event.number is null
        and audit_event.xid between ${some[0]!.xid} and ${some.at(-1)!.xid}`);
    from += some.length;
  }
  return done;
}

/** Rows of the chain in their order, from one number (not included) to another. */
export const readChain = (
  db: Queryable,
  orgId: string,
  after: number,
  last: number,
  limit: number,
): Promise<AuditRow[]> =>
  db.all<AuditRow>(sql`
    select ${auditColumns} from audit_event where org_id = ${orgId} and number > ${after} and number <= ${last} order by number limit ${limit}`);

/** The hash of a row of the chain, or of the last one that is no longer kept. */
export const findHash = async (db: Queryable, orgId: string, number: number): Promise<string | undefined> =>
  number === 0
    ? noHash
    : (
        await db.one<{ hash: string }>(sql`
          select hash from audit_event where org_id = ${orgId} and number = ${number}
          union all select gone_hash from audit_head where org_id = ${orgId} and gone_number = ${number} limit 1`)
      )?.hash;

/** The first rows of the chain that are kept, with when they were written. */
export const oldestInChain = (
  db: Queryable,
  { org_id, gone_number }: Pick<AuditHead, "org_id" | "gone_number">,
  limit: number,
): Promise<{ number: number; hash: string; time_ms: number }[]> =>
  db.all(sql`
    select number, hash, time_ms from audit_event where org_id = ${org_id} and number > ${gone_number} order by number limit ${limit}`);

/** Removes the beginning of the chain, to a row whose hash is kept in its place. The head is held. */
export async function removeThroughNumber(tx: Tx, orgId: string, number: number, hash: string): Promise<number> {
  await tx.run(
    sql`update audit_head set gone_number = ${number}, gone_hash = ${hash} where org_id = ${orgId} and gone_number < ${number}`,
  );
  return tx.run(sql`delete from audit_event where org_id = ${orgId} and number <= ${number}`);
}

const inLog: LogColumns = { xid: sql`a.xid`, seq: sql`a.seq` };
const seen = { xid: sql`coalesce(h.xid, 0)`, seq: sql`coalesce(h.seq, 0)` };

/**
 * Where the chain ends and how many rows are not in it, of the first so many after the last that the sealer has seen. One statement: read one after the
 * other, a sealer between them would leave an old end with no row after it.
 */
export async function findHeadAndUnsealed(
  db: Queryable,
  orgId: string,
  most: number,
): Promise<{ head: AuditHead; unsealed: number }> {
  type Found = { unsealed: number } & (AuditHead | { org_id: null });
  const { unsealed, ...found } = (await db.one<Found>(sql`
    select h.org_id, h.number, h.hash, h.seal_ms, h.xid, h.seq, h.gone_number, h.gone_hash, (
      select count(*) - count(counted.number) from (
        select a.number from audit_event a where a.org_id = ${orgId} and ${committedAfter(db.dialect, seen, inLog)}
        order by a.xid, a.seq limit ${most}) counted) as unsealed
    from (select 1 as one) asked left join audit_head h on h.org_id = ${orgId}`))!;
  return { head: found.org_id === null ? firstHead(orgId) : found, unsealed };
}

/** The next organisations by their ids, each with whether its log has rows for the sealer: one look into the index for each. */
export const nextOrganizations = (
  db: Queryable,
  after: string,
  limit: number,
): Promise<{ org_id: string; due: number }[]> =>
  db.all(sql`
    select one.org_id, exists (
      select 1 from audit_event a where a.org_id = one.org_id and ${settledAfter(db.dialect, seen, inLog)}) as due
    from (select org_id from organization where org_id > ${after} order by org_id limit ${limit}) one
      left join audit_head h on h.org_id = one.org_id
    order by one.org_id`);

/** When the oldest row was written that no sealer has seen: of each organisation one look into the index. */
export const oldestUnsealed = async (db: Queryable): Promise<number | undefined> =>
  (
    await db.one<{ oldest_ms: number | null }>(sql`
    select min(time_ms) as oldest_ms from (
      select (select a.time_ms from audit_event a where a.org_id = o.org_id and ${committedAfter(db.dialect, seen, inLog)}
        order by a.xid, a.seq limit 1) as time_ms
      from organization o left join audit_head h on h.org_id = o.org_id) firsts`)
  )?.oldest_ms ?? undefined;
