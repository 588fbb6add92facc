import { randomBytes } from "node:crypto";
import pg from "pg";
import type { Migration } from "../db/migrate.ts";
import { readTarget, reasonOf } from "../db/postgres-wire.ts";
import type { BackupHead, BackupTable, Cell, CheckedBackup } from "./backup-format.ts";
import { sizeOf } from "./backup-source.ts";
import { cursorSecretBytes, cursorSecretName, fill, migrationsFor, RestoreError, type Target } from "./restore.ts";

export type PostgresRestore = {
  readonly backup: CheckedBackup;
  readonly databaseUrl: string;
  readonly migrations: readonly Migration[];
};

/** What one statement may carry; the protocol counts parameters in 16 bits. */
const maxParameters = 30_000;
const maxStatementBytes = 4 << 20;

/** Fills an empty database in one transaction: whatever fails leaves it empty. */
export async function restorePostgres({ backup, databaseUrl, migrations }: PostgresRestore): Promise<void> {
  const { connect, shown } = readTarget(databaseUrl, { statement_timeout: 0, idle_in_transaction_session_timeout: 0 });
  const steps = migrationsFor(backup, migrations);
  const client = new pg.Client(connect);
  client.on("error", () => {}); // its query rejects
  try {
    await client.connect();
  } catch (cause) {
    throw new RestoreError(`PostgreSQL at ${shown}: ${reasonOf(cause)}`, { cause });
  }
  try {
    await client.query("begin");
    if (!(await isEmpty(client))) throw notEmpty(shown);
    await makeSchema(client, steps);
    await fill(await targetOf(client), backup);
    await setCounters(client, backup.head.counters);
    await renewCursorSecret(client);
    await client.query("commit");
    await client.query("analyze");
  } finally {
    await client.end(); // what is not committed is undone
  }
}

/** The refusal of a database that has something in it. */
export const notEmpty = (shown: string) =>
  new RestoreError(`the database at ${shown} is not empty: make a new one for it`);

/** Whether the database has no tables. */
export async function isEmpty(client: pg.Client): Promise<boolean> {
  const { rows } = await client.query<{ n: number }>(
    "select count(*) as n from pg_class where relnamespace = current_schema()::regnamespace",
  );
  return rows[0]!.n === 0;
}

/** Makes the tables of a schema. */
export async function makeSchema(client: pg.Client, steps: readonly Migration[]): Promise<void> {
  await client.query("create table schema_version (version bigint primary key, file text not null)");
  for (const { version, file, text } of steps) {
    await client.query(text);
    await client.query("insert into schema_version (version, file) values ($1, $2)", [version, file]);
  }
}

/** See `cursorSecretName`. */
export const renewCursorSecret = (client: pg.Client) =>
  client.query("update setting set value = $1 where name = $2", [randomBytes(cursorSecretBytes), cursorSecretName]);

/** The columns of each table but `schema_version`. */
export async function tablesOf(client: pg.Client): Promise<Map<string, readonly string[]>> {
  const { rows } = await client.query<{ name: string; columns: string[] }>(`
    select c.relname as name, array_agg(a.attname::text) as columns
    from pg_class c join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
    where c.relnamespace = current_schema()::regnamespace and c.relkind = 'r' and c.relname <> 'schema_version'
    group by c.relname`);
  return new Map(rows.map(({ name, columns }) => [name, columns]));
}

/** Removes what the migrations have put into the tables. */
export async function emptyTables(client: pg.Client, names: Iterable<string>): Promise<void> {
  for (const name of names) await client.query(`delete from "${name}"`);
}

async function targetOf(client: pg.Client): Promise<Target> {
  const tables = await tablesOf(client);
  await emptyTables(client, tables.keys());
  return { tables, insert: (table, rows) => insertRows(client, table, rows) };
}

/** Puts rows into a table, as many in a statement as it takes. */
export async function insertRows(client: pg.Client, table: BackupTable, rows: readonly Cell[][]): Promise<void> {
  for (const batch of batches(table, rows)) await insertBatch(client, table, batch);
}

function* batches({ columns }: BackupTable, rows: readonly Cell[][]): Generator<readonly Cell[][]> {
  const most = Math.trunc(maxParameters / columns.length);
  let bytes = 0;
  let from = 0;
  for (const [at, cells] of rows.entries()) {
    bytes += sizeOf(cells);
    if (at + 1 - from < most && bytes < maxStatementBytes) continue;
    yield rows.slice(from, at + 1);
    from = at + 1;
    bytes = 0;
  }
  if (from < rows.length) yield rows.slice(from);
}

async function insertBatch(client: pg.Client, { name, columns }: BackupTable, rows: readonly Cell[][]): Promise<void> {
  const width = columns.length;
  const row = (_: unknown, nth: number) => `(${columns.map((_, at) => `$${nth * width + at + 1}`).join(", ")})`;
  const names = columns.map((column) => `"${column}"`).join(", ");
  await client.query(
    `insert into "${name}" (${names}) overriding system value values ${Array.from(rows, row).join(", ")}`,
    rows.flat(),
  );
}

/** Numbers that were given once are not given again, also where the rows that had them are gone. */
export async function setCounters(client: pg.Client, counters: BackupHead["counters"]): Promise<void> {
  const { rows } = await client.query<{ name: string; column: string }>(`
    select c.relname as name, a.attname as column from pg_class c join pg_attribute a on a.attrelid = c.oid and a.attidentity <> ''
    where c.relnamespace = current_schema()::regnamespace and c.relkind = 'r'`);
  for (const { name, column } of rows) {
    await client.query(
      `select setval(pg_get_serial_sequence('"${name}"', '${column}'), greatest(last, 1), last > 0)
       from (select greatest($1::bigint, coalesce(max("${column}"), 0)) as last from "${name}") as counted`,
      [counters[name] ?? "0"],
    );
  }
}
