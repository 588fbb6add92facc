/** Heads and entries. Whatever changes an entry moves the head of its memory: who moves it from where it was read has changed what was read. */
import { join, type Queryable, type Sql, sql, type Tx } from "../db/db.ts";
import type { Position } from "../rpc/cursor.ts";
import type { Vault } from "../vault/sealed.ts";
import { insertChanges, removeChanges } from "./log-store.ts";
import { type EntryRow, type MemoryRef, sealAbout, sealValue, toHeld } from "./message.ts";
import { type Change, type Head, type Plan, placeId, type State } from "./plan.ts";
import { endOfPrefix } from "./prefix.ts";
import { inRuns, toPower, valuesOf } from "./rows.ts";
import type { EntryPlace } from "./wish.ts";

/** A memory's row; all null where there is none. */
export type HeadRow = {
  readonly head: number | null;
  readonly compacted: number | null;
  readonly entries: number | null;
  readonly bytes: number | null;
  readonly public_entries: number | null;
};

/** An entry's row; all null where there is none. */
export type FoundRow = { readonly [Column in keyof EntryRow]: EntryRow[Column] | null };

/** The columns of `memory m`. */
export const headColumns = sql`m.head, m.compacted, m.entries, m.bytes, m.public_entries`;
/** The columns of `memory_entry e`. */
export const entryColumns = (withValue: boolean): Sql =>
  sql`e.namespace, e.key, e.revision, e.create_revision, e.size_bytes, e.create_ms, e.update_ms, e.expire_ms, e.public, e.about, ${withValue ? sql`e.value` : sql`null as value`}`;

export const toHead = (row: HeadRow | undefined): Head | undefined =>
  row && row.head !== null
    ? {
        head: row.head,
        compacted: row.compacted!,
        entries: row.entries!,
        bytes: row.bytes!,
        publicEntries: row.public_entries!,
      }
    : undefined;

/** The entry of a row that may have none; undefined too when it has expired. */
export const present = (row: FoundRow | undefined, now: number): EntryRow | undefined =>
  row && row.revision !== null && (row.expire_ms === null || row.expire_ms > now) ? (row as EntryRow) : undefined;

/** The state for the rule, from rows of one memory. Undefined: there is no such memory yet. */
export function stateOf(rows: readonly (HeadRow & FoundRow)[]): State | undefined {
  const head = toHead(rows[0]);
  if (!head) return undefined;
  const found = rows.filter((row): row is HeadRow & EntryRow => row.revision !== null);
  return { head, entries: new Map(found.map((row) => [placeId(row), toHeld(row)])) };
}

/** The head and the entries at these places, all at one revision: one statement, by the primary keys. A row for each place, at least. */
export const readPlaces = (
  db: Queryable,
  { orgId, memoryId }: MemoryRef,
  places: readonly EntryPlace[],
  withValue = false,
): Promise<(HeadRow & FoundRow)[]> =>
  db.all(sql`
    with wanted (namespace, key) as (values ${valuesOf(toPower(places).map(({ namespace, key }) => [namespace, key]))})
    select ${headColumns}, ${entryColumns(withValue)}
    from (select ${orgId} as org_id, ${memoryId} as memory_id) k cross join wanted w
      left join memory m on m.org_id = k.org_id and m.memory_id = k.memory_id
      left join memory_entry e on e.org_id = m.org_id and e.memory_id = m.memory_id and e.namespace = w.namespace and e.key = w.key`);

/** Holds the memory until the transaction ends. */
export const lockMemory = async (tx: Tx, { orgId, memoryId }: MemoryRef): Promise<boolean> =>
  (await tx.one(
    sql`select 1 as found from memory where org_id = ${orgId} and memory_id = ${memoryId} ${tx.dialect.forUpdate}`,
  )) !== undefined;

/** Whose memory is made: an agent's own, or with a namespace a shared one. */
export type NewMemory = MemoryRef & {
  readonly agentId: string;
  readonly namespace: string | null;
  readonly now: number;
};

/** Makes a memory; 0 when it is there already, or its namespace is. */
export const insertMemory = (tx: Tx, { orgId, memoryId, agentId, namespace, now }: NewMemory): Promise<number> =>
  tx.run(sql`
    insert into memory (org_id, memory_id, agent_id, namespace, head, compacted, entries, bytes, public_entries, contributors, create_ms, update_ms)
    values (${orgId}, ${memoryId}, ${agentId}, ${namespace}, 0, 0, 0, 0, 0, 1, ${now}, ${now}) on conflict do nothing`);

/** Moves the head, and with it what is counted there; false when somebody else moved it since it was read. */
const moveHead = async (tx: Tx, { orgId, memoryId }: MemoryRef, from: Head, to: Head, now: number): Promise<boolean> =>
  (await tx.run(sql`
    update memory set head = ${to.head}, compacted = ${to.compacted}, entries = ${to.entries}, bytes = ${to.bytes}, public_entries = ${to.publicEntries},
      update_ms = ${now}
    where org_id = ${orgId} and memory_id = ${memoryId} and head = ${from.head}`)) === 1;

/** Rung after a change of the memory is committed. */
export const memoryTopic = (memoryId: string): string => `memory:${memoryId}`;

/** Does what was planned: the head first, which holds up whoever else plans from the same state. False: plan again. */
export async function carryOut(
  tx: Tx,
  vault: Vault,
  memory: MemoryRef,
  from: Head,
  { head, changes }: Plan,
  now: number,
): Promise<boolean> {
  if (!(await moveHead(tx, memory, from, head, now))) return false;
  const last = [...new Map(changes.map((change) => [placeId(change.place), change])).values()];
  await upsertEntries(tx, vault, memory, last);
  await deleteEntries(
    tx,
    memory,
    last.filter(({ held }) => !held).map(({ place }) => place),
  );
  await insertChanges(tx, vault, memory, changes, now);
  if (head.compacted !== from.compacted) await removeChanges(tx, memory, head.compacted);
  tx.ring(memoryTopic(memory.memoryId));
  return true;
}

async function upsertEntries(tx: Tx, vault: Vault, memory: MemoryRef, changes: readonly Change[]): Promise<void> {
  const rows = changes.flatMap(({ place, held, content }) => {
    if (!held || !content) return [];
    const { revision, createRevision, sizeBytes, createMs, updateMs, expireMs, isPublic } = held;
    const times = [createMs, updateMs, expireMs] as const;
    const sealed = [sealAbout(vault, memory, place, content), sealValue(vault, memory, place, content.value)] as const;
    const where = [memory.orgId, memory.memoryId, place.namespace, place.key] as const;
    return [[...where, revision, createRevision, sizeBytes, ...times, isPublic ? 1 : 0, ...sealed]];
  });
  for (const run of inRuns(rows))
    await tx.run(sql`
      insert into memory_entry (org_id, memory_id, namespace, key, revision, create_revision, size_bytes, create_ms, update_ms, expire_ms, public, about, value)
      values ${valuesOf(run)}
      on conflict (org_id, memory_id, namespace, key) do update set revision = excluded.revision, create_revision = excluded.create_revision,
        size_bytes = excluded.size_bytes, create_ms = excluded.create_ms, update_ms = excluded.update_ms, expire_ms = excluded.expire_ms,
        public = excluded.public, about = excluded.about, value = excluded.value`);
}

/** By the primary key. */
async function deleteEntries(tx: Tx, { orgId, memoryId }: MemoryRef, places: readonly EntryPlace[]): Promise<void> {
  for (const run of inRuns(places))
    await tx.run(sql`
      delete from memory_entry where org_id = ${orgId} and memory_id = ${memoryId}
        and (namespace, key) in (values ${valuesOf(run.map(({ namespace, key }) => [namespace, key]))})`);
}

/**
 * Entries of a memory whose time is over; by the index on expiry, where only what nobody has announced yet is before now. The other conditions are expressions
 * so that no engine walks through all of a large memory instead.
 */
export const dueEntries = (db: Queryable, { orgId, memoryId }: MemoryRef, now: number, limit: number) =>
  db.all<EntryRow>(sql`
    select ${entryColumns(false)} from memory_entry e
    where e.expire_ms <= ${now} and e.org_id || '' = ${orgId} and e.memory_id || '' = ${memoryId} order by e.expire_ms limit ${limit}`);

/** What a list asks for. */
export type EntryFilter = {
  readonly namespace: string;
  readonly prefix: string;
  readonly byTime: boolean;
  readonly publicOnly: boolean;
  readonly withValues: boolean;
};

/**
 * The entries of a namespace that begin with a prefix and have not expired: by key as a range of the primary key, or last written first by the index on
 * revisions.
 */
export function listEntries(
  db: Queryable,
  { orgId, memoryId }: MemoryRef,
  { namespace, prefix, byTime, publicOnly, withValues }: EntryFilter,
  after: Position | undefined,
  now: number,
  limit: number,
): Promise<EntryRow[]> {
  const end = endOfPrefix(prefix);
  const fits = [
    sql`e.org_id = ${orgId} and e.memory_id = ${memoryId} and e.namespace = ${namespace}`,
    sql`(e.expire_ms is null or e.expire_ms > ${now})`,
    ...(publicOnly ? [sql`e.public = 1`] : []),
    ...(end === undefined ? [] : [sql`e.key < ${end}`]),
    ...(byTime || !after ? [sql`e.key >= ${prefix}`] : [sql`e.key > ${after[0]!}`]),
    ...(byTime && after ? [sql`e.revision < ${after[0]!}`] : []),
  ];
  const order = byTime ? sql`e.revision desc` : sql`e.key`;
  return db.all<EntryRow>(
    sql`select ${entryColumns(withValues)} from memory_entry e where ${join(fits, " and ")} order by ${order} limit ${limit}`,
  );
}

/** Where a memory's log ends; undefined when there is no such memory. */
export const findHead = async (db: Queryable, { orgId, memoryId }: MemoryRef): Promise<Head | undefined> =>
  toHead(
    await db.one<HeadRow>(
      sql`select ${headColumns} from memory m where m.org_id = ${orgId} and m.memory_id = ${memoryId}`,
    ),
  );
