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
  /** Calls back with each row of a table, its cells in the order of the columns. */
  each(table: BackupTable, row: (cells: readonly Cell[]) => void): Promise<void>;
  close(): Promise<void>;
};

/** Opens a snapshot: what was committed before is in it. */
export const openSource = (place: SourcePlace): Promise<Source> | Source =>
  "sqlite" in place ? openSqliteSource(place.sqlite) : openPostgresSource(place.postgres);

/** Says which schema a database has; every backup carries it in its head, so the table itself stays out. */
const schemaTable = "schema_version";
const quote = (name: string): string => `"${name.replaceAll('"', '""')}"`;

/**
 * A read transaction of a connection of its own. Writers do not wait for it; only the log cannot be used again from its beginning until it ends,
 * and grows by what is written meanwhile.
 */
function openSqliteSource(file: string): Source {
  const db = new Database(file, { readonly: true });
  db.exec("begin");
  const names = db
    .prepare<[string], string>(
      "select name from pragma_table_list where schema = 'main' and type = 'table' and name not like 'sqlite\\_%' escape '\\' and name <> ? order by name",
    )
    .pluck();
  const columnsOf = db.prepare<[string], string>("select name from pragma_table_info(?) order by cid").pluck();
  const tables = names.all(schemaTable).map((name) => ({ name, columns: columnsOf.all(name) }));
  const counters = db.prepare<[], [string, bigint]>("select name, seq from sqlite_sequence").raw().safeIntegers().all();
  return {
    schema: db.prepare<[], number>(`select max(version) from ${schemaTable}`).pluck().get()!,
    tables,
    counters: Object.fromEntries(counters.map(([name, last]) => [name, String(last)])),
    async each({ name, columns }, row) {
      const all = db.prepare<[], Cell[]>(`select ${columns.map(quote).join(", ")} from ${quote(name)}`);
      for (const cells of all.raw().safeIntegers().iterate()) row(cells);
    },
    close: async () => void db.close(),
  };
}

/** Aimed at for what one fetch brings, so that memory stays small whatever the rows hold. */
const fetchBytes = 1_048_576;
const maxFetchRows = 2_000;

/**
 * A REPEATABLE READ transaction. The numbers of transactions mean nothing in another server, where `xid < horizon` would hide the rows until it had
 * counted as far: logs are numbered anew in their order under the xid 0, as on SQLite. What only names a position in a log begins at its start;
 * cursors of before a restore are refused anyway.
 */
async function openPostgresSource(url: string): Promise<Source> {
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
    async each({ name, columns }, row) {
      const table = tables.find((one) => one.name === name)!;
      const [xid, seq] = [columns.indexOf("xid"), columns.indexOf("seq")];
      const order = isLog(table) ? "order by xid, seq" : "";
      await client.query(
        `declare backup no scroll cursor for select ${columns.map(quote).join(", ")} from ${quote(name)} ${order}`,
      );
      let count = 64;
      for (let nth = 0n; ; ) {
        const { rows } = await client.query<Cell[]>({ text: `fetch ${count} from backup`, rowMode: "array" });
        let bytes = 0;
        for (const cells of rows) {
          if (xid >= 0 && seq >= 0) {
            cells[xid] = 0n;
            cells[seq] = isLog(table) ? ++nth : 0n;
          }
          for (const cell of cells) bytes += typeof cell === "string" || cell instanceof Uint8Array ? cell.length : 8;
          row(cells);
        }
        if (rows.length < count) break;
        count = Math.max(1, Math.min(maxFetchRows, Math.trunc((fetchBytes * rows.length) / Math.max(1, bytes))));
      }
      await client.query("close backup");
    },
    close: () => client.end(),
  };
}

type Found = {
  readonly name: string;
  readonly columns: string[];
  readonly counter: string | null;
  readonly last: bigint | null;
};

/** Whether it is an order-only log; see `Dialect` in src/db/db.ts. */
const isLog = ({ columns, counter }: Found): boolean => counter === "seq" && columns.includes("xid");

const tablesText = `
  select c.relname as name, array_agg(a.attname::text order by a.attnum) as columns,
    max(case when a.attidentity <> '' then a.attname::text end) as counter,
    max(case when a.attidentity <> '' then pg_sequence_last_value(pg_get_serial_sequence(quote_ident(c.relname), a.attname)::regclass) end) as last
  from pg_class c join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
  where c.relnamespace = current_schema()::regnamespace and c.relkind = 'r'
  group by c.relname order by c.relname collate "C"`;

const { INT8, BYTEA } = pg.types.builtins;
const types: pg.CustomTypesConfig = {
  getTypeParser: ((oid: number, format?: "text") => {
    if (oid === INT8) return BigInt;
    if (oid === BYTEA) return (text: string) => Buffer.from(text.slice(2), "hex");
    return pg.types.getTypeParser(oid, format);
  }) as typeof pg.types.getTypeParser,
};
