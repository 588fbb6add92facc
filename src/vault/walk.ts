/** Sealing what is there already: each table is walked along its key, a few rows a transaction, as often as it takes until a pass finds nothing. */
import type { Db, Tx, Value } from "../db/db.ts";
import { Fault } from "../errors.ts";
import type { Keyring } from "./keyring.ts";
import { type Header, headerBytes, headerOf } from "./sealed.ts";
import {
  type HeadRow,
  type KeyValues,
  keyOn,
  lockRows,
  putColumns,
  putWalk,
  readHeads,
  type SealedTable,
  type WalkRow,
} from "./walk-store.ts";

/** Where a walk is; the position is the key of the last row that was looked at. */
export const positionOf = ({ after_key }: Pick<WalkRow, "after_key">): readonly Value[] | undefined =>
  after_key === "" ? undefined : (JSON.parse(after_key) as Value[]);

/** At the beginning of a table, for a generation of keys. What was refused because it is not encrypted stays refused. */
export const beginWalk = (table: string, generation: number, before: WalkRow | undefined): WalkRow => ({
  table_name: table,
  generation,
  after_key: "",
  passes: 0,
  found: 0,
  sealed: 0,
  done_ms: null,
  strict_ms: before?.strict_ms ?? null,
});

/** What is looked at in one reading, and sealed in one transaction. */
const rowsRead = 200;
const rowsSealed = 32;
const bytesSealed = 1_048_576;

/** A row with columns that are to be sealed, and the size of those. */
type Due = { readonly head: HeadRow; readonly size: number };

type Walking = { readonly db: Db; readonly keyring: Keyring; readonly table: SealedTable };

/**
 * Goes on by some rows; gives where the walk is then, in the same pass or, with the position at the beginning, at the end of it. Every transaction writes down how far it came, so that
 * who is killed repeats one at most; who walks beside another does no harm.
 */
export async function walkOn(walking: Walking, walk: WalkRow): Promise<WalkRow> {
  const { db, table } = walking;
  const heads = await readHeads(db.query, table, positionOf(walk), headerBytes, rowsRead);
  const due = await dueOf(walking, heads);
  let at = walk;
  for (let from = 0; from < due.length; ) {
    const batch = takeBatch(due, from);
    from += batch.length;
    const before = at;
    at = await db.tx(async (tx) => {
      let sealed = 0;
      // Read again now that they are locked: somebody may have written, sealed or deleted them since their headers were read.
      const rows = batch.map(({ head }) => head.row);
      for (const row of await lockRows(tx, table, rows)) if (await sealRow(tx, walking, row)) sealed++;
      const next: WalkRow = {
        ...before,
        after_key: keyText(walking, batch.at(-1)!.head),
        found: before.found + sealed,
        sealed: before.sealed + sealed,
      };
      await putWalk(tx, next);
      return next;
    });
  }
  const isLast = heads.length < rowsRead;
  const next: WalkRow = isLast
    ? { ...at, after_key: "", passes: at.passes + 1 }
    : { ...at, after_key: keyText(walking, heads.at(-1)!) };
  await db.tx((tx) => putWalk(tx, next));
  return next;
}

const keyText = ({ db, table }: Walking, { row }: HeadRow): string =>
  JSON.stringify(keyOn(db.query, table).map((column) => row[column]));

function takeBatch(due: readonly Due[], from: number): readonly Due[] {
  let bytes = 0;
  let to = from;
  while (to < due.length && to - from < rowsSealed && (to === from || bytes + due[to]!.size <= bytesSealed))
    bytes += due[to++]!.size;
  return due.slice(from, to);
}

/** Seals the columns of a row for which that is due; true when there were any. */
async function sealRow(
  tx: Tx,
  { keyring, table }: Walking,
  row: Awaited<ReturnType<typeof lockRows>>[number],
): Promise<boolean> {
  const key = row as KeyValues;
  const sealed: Record<string, Uint8Array> = {};
  for (const [column, placeOf] of Object.entries(table.columns)) {
    const now = row[column];
    if (!(now instanceof Uint8Array) || !isDue(keyring, headerOf(now))) continue;
    const place = placeOf(key);
    const bytes = readable(() => keyring.open(place, now));
    if (bytes) sealed[column] = keyring.seal(place, bytes);
  }
  if (Object.keys(sealed).length === 0) return false;
  await putColumns(tx, table, key, sealed);
  return true;
}

/** What of the rows is to be sealed. The keys that they name are read before, since only their headers were. */
async function dueOf({ db, keyring, table }: Walking, heads: readonly HeadRow[]): Promise<Due[]> {
  const headers = heads.flatMap((head) => Object.values(head.heads).map(({ header }) => headerOf(header)));
  const named = new Set(headers.flatMap((header) => (header?.encrypted ? [header.keyId] : [])));
  await keyring.bring(
    db.query,
    [...named].filter((keyId) => !keyring.known(keyId)),
  );
  return heads.flatMap((head) => {
    const due = Object.keys(table.columns).filter((column) => {
      const found = head.heads[column];
      return found && isDue(keyring, headerOf(found.header));
    });
    const size = due.reduce((sum, column) => sum + head.heads[column]!.size, 0);
    return due.length > 0 ? [{ head, size }] : [];
  });
}

/** Undefined for what is refused. It stays as it is: whoever reads it is told, and the rows after it are sealed all the same. */
function readable(open: () => Uint8Array): Uint8Array | undefined {
  try {
    return open();
  } catch (error) {
    if (error instanceof Fault) return undefined;
    throw error;
  }
}

/** In the clear, or sealed with a key of before the generation that is sealed anew. */
function isDue(keyring: Keyring, header: Header | undefined): boolean {
  if (!header) return false;
  if (!header.encrypted) return true;
  const known = keyring.known(header.keyId);
  return known?.key !== undefined && known.generation < keyring.state().reseal_generation;
}
