/** All rows of a database in one snapshot, for whoever writes them down. */
import Database from "better-sqlite3";
import pg from "pg";
import { readTarget } from "../db/postgres-wire.ts";
import type { BackupTable, Cell } from "./backup-format.ts";

/** Where the data is. */
export type SourcePlace = { readonly sqlite: string } | { readonly postgres: string };

/** One snapshot of a database, until it is closed. */
export type Source = {
  readonly schema: number;
  readonly tables: readonly BackupTable[];
  readonly counters: Readonly<Record<string, string>>;
  /** The rows of a table, some at a time: their cells in the order of the columns. */
  rows(table: BackupTable): AsyncIterable<Cell[][]> | Iterable<Cell[][]>;
  /** How many rows a table has. */
  count(table: BackupTable): Promise<number> | number;
  close(): Promise<void>;
};

export type SourceOptions = {
  /** Whether each table's rows come in one order that is the same whenever it is read, which may take longer. */
  readonly ordered?: boolean;
  /** Whether logs keep the numbers that they have on PostgreSQL; see `openPostgresSource`. */
  readonly asStored?: boolean;
};

/** Opens a snapshot: what was committed before is in it. */
export const openSource = (place: SourcePlace, options: SourceOptions = {}): Promise<Source> | Source =>
  "sqlite" in place ? openSqliteSource(place.sqlite, options) : openPostgresSource(place.postgres, options);

/** Says which schema a database has; every backup carries it in its head, so the table itself stays out. */
const schemaTable = "schema_version";
const quote = (name: string): string => `"${name.replaceAll('"', '""')}"`;

/** What is read at once at most, unless one row is larger, so that memory stays small whatever the rows hold. */
const fetchBytes = 8 << 20;
const maxFetchRows = 2_000;

/** About how many bytes a row has. */
export const sizeOf = (cells: readonly Cell[]): number =>
  cells.reduce<number>(
    (sum, cell) => sum + (typeof cell === "string" || cell instanceof Uint8Array ? cell.length : 8),
    0,
  );

/**
 * A read transaction of a connection of its own. Writers do not wait for it; only the log cannot be used again from its beginning until it ends,
 * and grows by what is written meanwhile.
 */
function openSqliteSource(file: string, { ordered = false }: SourceOptions): Source {
  const db = new Database(file, { readonly: true });
  db.exec("begin");
  const names = db
    .prepare<[string], string>(
      "select name from pragma_table_list where schema = 'main' and type = 'table' and name not like 'sqlite\\_%' escape '\\' and name <> ? order by name",
    )
    .pluck();
  const columnsOf = db.prepare<[string], string>("select name from pragma_table_info(?) order by cid").pluck();
  const tables = names.all(schemaTable).map((name) => ({ name, columns: columnsOf.all(name) }));
  const keyOf = db.prepare<[string], string>("select name from pragma_table_info(?) where pk > 0 order by pk").pluck();
  const hasRowid = db
    .prepare<[string], number>("select 1 - wr from pragma_table_list where schema = 'main' and name = ?")
    .pluck();
  const orderOf = (name: string) => (hasRowid.get(name) ? "rowid" : keyOf.all(name).map(quote).join(", "));
  const counters = db.prepare<[], [string, bigint]>("select name, seq from sqlite_sequence").raw().safeIntegers().all();
  return {
    schema: db.prepare<[], number>(`select max(version) from ${schemaTable}`).pluck().get()!,
    tables,
    counters: Object.fromEntries(counters.map(([name, last]) => [name, String(last)])),
    *rows({ name, columns }) {
      const order = ordered ? `order by ${orderOf(name)}` : "";
      const all = db.prepare<[], Cell[]>(`select ${columns.map(quote).join(", ")} from ${quote(name)} ${order}`);
      let some: Cell[][] = [];
      let bytes = 0;
      for (const cells of all.raw().safeIntegers().iterate()) {
        some.push(cells);
        bytes += sizeOf(cells);
        if (some.length < maxFetchRows && bytes < fetchBytes) continue;
        yield some;
        some = [];
        bytes = 0;
      }
      yield some;
    },
    count: ({ name }) =>
      db
        .prepare<[], number>(`select count(*) from ${quote(name)}`)
        .pluck()
        .get()!,
    close: async () => void db.close(),
  };
}

/**
 * A REPEATABLE READ transaction. The numbers of transactions mean nothing in another server, where `xid < horizon` would hide the rows until it had
 * counted as far: logs are numbered anew in their order under the xid 0, as on SQLite. What only names a position in a log begins at its start;
 * cursors of before a restore are refused anyway. Where a row was sealed for its number, it keeps that as its id: see `eventIdOf` in src/bus/trace-store.ts.
 */
async function openPostgresSource(url: string, { ordered = false, asStored = false }: SourceOptions): Promise<Source> {
  const { connect } = readTarget(url, { statement_timeout: 0, idle_in_transaction_session_timeout: 0 });
  const client = new pg.Client({ ...connect, types });
  client.on("error", () => {}); // its query rejects
  await client.connect();
  await client.query("begin isolation level repeatable read read only");
  const found = await client.query<Found>(tablesText);
  const { rows: versions } = await client.query<{ version: bigint }>(
    `select max(version) as version from ${schemaTable}`,
  );
  const tables = found.rows.filter(({ name }) => name !== schemaTable);
  const counted = tables.filter(({ last }) => last !== null);
  return {
    schema: Number(versions[0]!.version),
    tables: tables.map(({ name, columns }) => ({ name, columns })),
    counters: Object.fromEntries(
      counted.filter((table) => !isLog(table)).map(({ name, last }) => [name, String(last)]),
    ),
    async *rows({ name, columns }) {
      const table = tables.find((one) => one.name === name)!;
      const [xid, seq, eventId] = [columns.indexOf("xid"), columns.indexOf("seq"), columns.indexOf("event_id")];
      const order = isLog(table) ? "order by xid, seq" : ordered ? `order by ${table.key.map(quote).join(", ")}` : "";
      // The lengths stand in the rows: nothing long is read for it.
      const { rows: sizes } = await client.query<{ most: number | null }>(
        `select max(${table.size ?? 0}) as most from ${quote(name)}`,
      );
      const count = Math.max(1, Math.min(maxFetchRows, Math.trunc(fetchBytes / Math.max(1, sizes[0]!.most ?? 0))));
      await client.query(
        `declare backup no scroll cursor for select ${columns.map(quote).join(", ")} from ${quote(name)} ${order}`,
      );
      try {
        for (let nth = 0n; ; ) {
          const { rows } = await client.query<Cell[]>({ text: `fetch ${count} from backup`, rowMode: "array" });
          if (xid >= 0 && seq >= 0 && !asStored)
            for (const cells of rows) {
              if (eventId >= 0 && cells[eventId] === "") cells[eventId] = `#${cells[seq]}`;
              cells[xid] = 0n;
              cells[seq] = isLog(table) ? ++nth : 0n;
            }
          yield rows;
          if (rows.length < count) break;
        }
      } finally {
        await client.query("close backup").catch(() => {}); // an error has ended the transaction, and this with it
      }
    },
    async count({ name }) {
      const { rows } = await client.query<{ n: bigint }>(`select count(*) as n from ${quote(name)}`);
      return Number(rows[0]!.n);
    },
    close: () => client.end(),
  };
}

type Found = {
  readonly name: string;
  readonly columns: string[];
  /** Those of its primary key. */
  readonly key: string[];
  /** An expression for the bytes of a row's texts and bytes; null where it has none. */
  readonly size: string | null;
  readonly counter: string | null;
  readonly last: bigint | null;
};

/** Whether it is an order-only log; see `Dialect` in src/db/db.ts. */
const isLog = ({ columns, counter }: Found): boolean => counter === "seq" && columns.includes("xid");

const tablesText = `
  select c.relname as name, array_agg(a.attname::text order by a.attnum) as columns,
    array(select k.attname::text from pg_index i, unnest(i.indkey) with ordinality as part (attnum, nth), pg_attribute k
      where i.indrelid = c.oid and i.indisprimary and k.attrelid = c.oid and k.attnum = part.attnum order by part.nth) as key,
    string_agg(case when a.atttypid in ('text'::regtype, 'bytea'::regtype) then format('coalesce(octet_length(%I), 0)', a.attname) end, ' + ') as size,
    max(case when a.attidentity <> '' then a.attname::text end) as counter,
    max(case when a.attidentity <> '' then pg_sequence_last_value(pg_get_serial_sequence(quote_ident(c.relname), a.attname)::regclass) end) as last
  from pg_class c join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
  where c.relnamespace = current_schema()::regnamespace and c.relkind = 'r'
  group by c.oid, c.relname order by c.relname collate "C"`;

const { INT8, BYTEA } = pg.types.builtins;
const types: pg.CustomTypesConfig = {
  getTypeParser: ((oid: number, format?: "text") => {
    if (oid === INT8) return BigInt;
    if (oid === BYTEA) return (text: string) => Buffer.from(text.slice(2), "hex");
    return pg.types.getTypeParser(oid, format);
  }) as typeof pg.types.getTypeParser,
};
