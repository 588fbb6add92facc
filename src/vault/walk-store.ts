/** The table `vault_walk`: how far the old rows of each table are sealed; and those rows, whatever table they are in. */
import { join, type Queryable, raw, type Sql, sql, type Tx, type Value } from "../db/db.ts";
import type { Place } from "./sealed.ts";

/** A row as the walk reads it: its key, and what its places are made of. */
export type KeyValues = Readonly<Record<string, string | number>>;

/** A table with sealed columns. */
export type SealedTable = {
  /** Its name, which all of its places give as their table. */
  readonly table: string;
  /** The columns that tell its rows apart, in the order of an index. */
  readonly key: readonly string[];
  /** The same on SQLite, if it is another: an order-only log has one `xid` there, so that only `seq` leads to a row. */
  readonly sqliteKey?: readonly string[];
  /** Further columns that places are made of. */
  readonly also?: readonly string[];
  /** Its sealed columns, each with the place of what is in it, just as whoever seals and opens it gives it. */
  readonly columns: Readonly<Record<string, (row: KeyValues) => Place>>;
};

export type WalkRow = {
  readonly table_name: string;
  readonly generation: number;
  readonly after_key: string;
  readonly passes: number;
  readonly found: number;
  readonly sealed: number;
  readonly done_ms: number | null;
  readonly strict_ms: number | null;
};

const walkColumns = sql`table_name, generation, after_key, passes, found, sealed, done_ms, strict_ms`;

export const listWalks = (db: Queryable): Promise<WalkRow[]> =>
  db.all<WalkRow>(sql`select ${walkColumns} from vault_walk order by table_name`);

export const strictTables = async (db: Queryable): Promise<ReadonlySet<string>> =>
  new Set((await listWalks(db)).filter(({ strict_ms }) => strict_ms !== null).map(({ table_name }) => table_name));

export const putWalk = (tx: Tx, walk: WalkRow): Promise<number> =>
  tx.run(sql`
    insert into vault_walk (${walkColumns}) values (${walk.table_name}, ${walk.generation}, ${walk.after_key}, ${walk.passes}, ${walk.found},
      ${walk.sealed}, ${walk.done_ms}, ${walk.strict_ms})
    on conflict (table_name) do update set generation = ${walk.generation}, after_key = ${walk.after_key}, passes = ${walk.passes},
      found = ${walk.found}, sealed = ${walk.sealed}, done_ms = ${walk.done_ms}, strict_ms = ${walk.strict_ms}`);

/** What tells whether a column of a row is to be sealed, without its payload: its size and its header. */
export type Head = { readonly size: number; readonly header: Uint8Array };
export type HeadRow = { readonly row: KeyValues; readonly heads: Readonly<Record<string, Head>> };

/** The columns that tell a table's rows apart on an engine. */
export const keyOn = ({ dialect }: Queryable, { key, sqliteKey }: SealedTable): readonly string[] =>
  dialect.name === "sqlite" ? (sqliteKey ?? key) : key;

const names = (columns: readonly string[]): Sql => join(columns.map((column) => raw(column)));

/** What its key and its places are made of. */
const named = ({ key, also = [] }: SealedTable, by: readonly string[]): Sql =>
  names([...new Set([...by, ...key, ...also])]);

/**
 * Rows after a key, in the order of the keys: what tells whether they are to be sealed. Neither engine reads a payload to give its length, and its beginning lies in the row or
 * on its first page.
 */
export async function readHeads(
  db: Queryable,
  sealed: SealedTable,
  after: readonly Value[] | undefined,
  headerBytes: number,
  limit: number,
): Promise<HeadRow[]> {
  const { table, columns } = sealed;
  const key = keyOn(db, sealed);
  const from = after ? sql`where (${names(key)}) > (${join([...after])})` : sql``;
  const heads = Object.keys(columns).map(
    (column) =>
      sql`length(${raw(column)}) as ${raw(`${column}_size`)}, substr(${raw(column)}, 1, ${headerBytes}) as ${raw(`${column}_head`)}`,
  );
  const rows = await db.all<Record<string, string | number | Uint8Array | null>>(
    sql`select ${named(sealed, key)}, ${join(heads)} from ${raw(table)} ${from} order by ${names(key)} limit ${limit}`,
  );
  return rows.map((found) => ({
    row: found as KeyValues,
    heads: Object.fromEntries(
      Object.keys(columns).flatMap((column) => {
        const header = found[`${column}_head`];
        return header instanceof Uint8Array ? [[column, { size: found[`${column}_size`] as number, header }]] : [];
      }),
    ),
  }));
}

/** The sealed columns of some rows, at least one, to be changed; in the order of the keys. One that is gone meanwhile is left out. */
export const lockRows = (
  tx: Tx,
  sealed: SealedTable,
  rows: readonly KeyValues[],
): Promise<Record<string, string | number | Uint8Array | null>[]> => {
  const { table, columns } = sealed;
  const key = keyOn(tx, sealed);
  const keys = rows.map((row) => sql`(${join(key.map((column) => row[column]!))})`);
  return tx.all(sql`
    select ${named(sealed, key)}, ${names(Object.keys(columns))} from ${raw(table)} where (${names(key)}) in (${inRows(tx, keys)})
    order by ${names(key)} ${tx.dialect.forUpdate}`);
};

/** SQLite compares rows with rows of values only. */
const inRows = ({ dialect }: Tx, keys: readonly Sql[]): Sql =>
  dialect.name === "sqlite" ? sql`values ${join([...keys])}` : join([...keys]);

/** Puts sealed columns of a row, at least one. */
export const putColumns = (
  tx: Tx,
  of: SealedTable,
  row: KeyValues,
  sealed: Readonly<Record<string, Uint8Array>>,
): Promise<number> => {
  const changes = Object.entries(sealed).map(([column, bytes]) => sql`${raw(column)} = ${bytes}`);
  return tx.run(sql`update ${raw(of.table)} set ${join(changes)} where ${isRow(keyOn(tx, of), row)}`);
};

const isRow = (key: readonly string[], row: KeyValues): Sql =>
  join(
    key.map((column) => sql`${raw(column)} = ${row[column]!}`),
    " and ",
  );

/** How many rows come after a key, counted up to a limit; in the order of the keys, since along any other index it would begin further in front. */
export async function countRows(
  db: Queryable,
  sealed: SealedTable,
  after: readonly Value[] | undefined,
  limit: number,
): Promise<number> {
  const key = keyOn(db, sealed);
  const from = after ? sql`where (${names(key)}) > (${join([...after])})` : sql``;
  const row = await db.one<{ n: number }>(
    sql`select count(*) as n from (select 1 as found from ${raw(sealed.table)} ${from} order by ${names(key)} limit ${limit}) counted`,
  );
  return row!.n;
}
