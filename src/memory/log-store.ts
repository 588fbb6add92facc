/** The log of each memory: contiguous revisions, of which the oldest go first. */
import { type Queryable, sql, type Tx } from "../db/db.ts";
import type { Vault } from "../vault/sealed.ts";
import { type MemoryRef, sealBody, writtenEntry } from "./message.ts";
import type { Change } from "./plan.ts";
import { inRuns, valuesOf } from "./rows.ts";

/** A change as it is stored; `body` is a sealed Entry, null where the entry is gone. */
export type ChangeRow = {
  readonly revision: number;
  readonly namespace: string;
  readonly key: string;
  readonly kind: number;
  readonly time_ms: number;
  readonly public: number;
  readonly was_public: number;
  readonly body: Uint8Array | null;
};

export async function insertChanges(
  tx: Tx,
  vault: Vault,
  memory: MemoryRef,
  changes: readonly Change[],
  now: number,
): Promise<void> {
  const rows = changes.map(({ revision, kind, place, wasPublic, held, content }) => {
    const body = held && content ? sealBody(vault, memory, writtenEntry(place, held, content), revision) : null;
    const shown = [held?.isPublic ? 1 : 0, wasPublic ? 1 : 0] as const;
    return [memory.orgId, memory.memoryId, revision, place.namespace, place.key, kind, now, ...shown, body];
  });
  for (const run of inRuns(rows))
    await tx.run(sql`
      insert into memory_change (org_id, memory_id, revision, namespace, key, kind, time_ms, public, was_public, body) values ${valuesOf(run)}`);
}

/** Removes the changes up to and with a revision; by the primary key. The head that says so is written in the same transaction. */
export const removeChanges = (tx: Tx, { orgId, memoryId }: MemoryRef, through: number): Promise<number> =>
  tx.run(sql`delete from memory_change where org_id = ${orgId} and memory_id = ${memoryId} and revision <= ${through}`);

/** What follows a revision in a log: undefined when there is no such memory. */
export type Stretch = { readonly head: number; readonly compacted: number; readonly changes: readonly ChangeRow[] };

/**
 * The changes after a revision with the state of the log, in one statement: what was removed between two would be missed. By the primary keys; the changes
 * in a query of their own, since PostgreSQL would sort all that follow before it takes the first.
 */
export async function readChanges(
  db: Queryable,
  { orgId, memoryId }: MemoryRef,
  after: number,
  limit: number,
): Promise<Stretch | undefined> {
  type Row = { head: number; compacted: number } & { [Column in keyof ChangeRow]: ChangeRow[Column] | null };
  const rows = await db.all<Row>(sql`
    select m.head, m.compacted, c.revision, c.namespace, c.key, c.kind, c.time_ms, c.public, c.was_public, c.body
    from (select ${orgId} as org_id, ${memoryId} as memory_id) k join memory m on m.org_id = k.org_id and m.memory_id = k.memory_id left join (
        select revision, namespace, key, kind, time_ms, public, was_public, body from memory_change
        where org_id = ${orgId} and memory_id = ${memoryId} and revision > ${after} order by revision limit ${limit}) c on true
    order by c.revision`);
  const [first] = rows;
  const changes = rows.filter(({ revision }) => revision !== null) as ChangeRow[];
  return first && { head: first.head, compacted: first.compacted, changes };
}

/** A log with the time of its oldest change, null if it has none. */
export type LogAge = MemoryRef & { readonly compacted: number; readonly oldestMs: number | null };

/** The logs after one of them in the order of their keys, of all organisations: for walking through them in bounded steps. */
export async function logAges(db: Queryable, after: MemoryRef, limit: number): Promise<LogAge[]> {
  type Row = { org_id: string; memory_id: string; compacted: number; time_ms: number | null };
  const rows = await db.all<Row>(sql`
    select m.org_id, m.memory_id, m.compacted, c.time_ms
    from (select org_id, memory_id, compacted from memory where (org_id, memory_id) > (${after.orgId}, ${after.memoryId})
        order by org_id, memory_id limit ${limit}) m
      left join memory_change c on c.org_id = m.org_id and c.memory_id = m.memory_id and c.revision = m.compacted + 1
    order by m.org_id, m.memory_id`);
  return rows.map((row) => ({
    orgId: row.org_id,
    memoryId: row.memory_id,
    compacted: row.compacted,
    oldestMs: row.time_ms,
  }));
}

/** The oldest changes of a log, oldest first. */
export const oldestChanges = (db: Queryable, { orgId, memoryId }: MemoryRef, limit: number) =>
  db.all<{ revision: number; time_ms: number }>(sql`
    select revision, time_ms from memory_change where org_id = ${orgId} and memory_id = ${memoryId} order by revision limit ${limit}`);

/** Says up to where a log is compacted; 0 when it is already, or the memory is gone. */
export const setCompacted = (tx: Tx, { orgId, memoryId }: MemoryRef, through: number): Promise<number> =>
  tx.run(sql`
    update memory set compacted = ${through} where org_id = ${orgId} and memory_id = ${memoryId} and compacted < ${through}`);
