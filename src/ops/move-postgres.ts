/** A PostgreSQL database that a migration fills. */
import pg from "pg";
import type { Migration } from "../db/migrate.ts";
import { unfinishedVersion } from "../db/migrate.ts";
import { openPostgres } from "../db/postgres.ts";
import { readTarget, reasonOf } from "../db/postgres-wire.ts";
import { checkProgress, type MoveTarget, progressTable, progressTableText } from "./move-target.ts";
import { RestoreError } from "./restore.ts";
import {
  emptyTables,
  insertRows,
  isEmpty,
  makeSchema,
  notEmpty,
  renewCursorSecret,
  setCounters,
  tablesOf,
} from "./restore-postgres.ts";

/** "migrated" in ASCII: of two that fill one database, the second is refused. */
const fillLock = 0x6d_69_67_72_61_74_65_64n;

/** Opens an empty database, or one that a migration of the same source was filling. Throws {@link RestoreError} for any other. */
export async function openPostgresTarget(
  url: string,
  source: string,
  steps: readonly Migration[],
): Promise<MoveTarget> {
  const { connect, shown } = readTarget(url, { statement_timeout: 0, idle_in_transaction_session_timeout: 0 });
  const client = new pg.Client(connect);
  client.on("error", () => {}); // its query rejects
  try {
    await client.connect();
  } catch (cause) {
    throw new RestoreError(`PostgreSQL at ${shown}: ${reasonOf(cause)}`, { cause });
  }
  try {
    const { rows: held } = await client.query<{ mine: number }>(
      `select pg_try_advisory_lock(${fillLock})::int as mine`,
    );
    if (!held[0]!.mine) throw new RestoreError(`another migration is filling the database at ${shown}: let it end`);
    if (await isEmpty(client)) await begin(client, source, steps);
    const tables = await tablesOf(client);
    if (!tables.delete(progressTable)) throw notEmpty(shown);
    const { rows } = await client.query<{ table_name: string; source: string; done: number }>(
      `select table_name, source, done from ${progressTable}`,
    );
    return {
      tables,
      done: checkProgress(shown, source, rows),
      place: { postgres: url },
      open: () => openPostgres(url),
      async put(table, some, done) {
        await client.query("begin");
        await insertRows(client, table, some);
        await client.query(`update ${progressTable} set done = $2 where table_name = $1`, [table.name, done]);
        await client.query("commit");
      },
      async finish(counters) {
        await client.query("begin");
        await setCounters(client, counters);
        await renewCursorSecret(client);
        await client.query("delete from schema_version where version = $1", [unfinishedVersion]);
        await client.query(`drop table ${progressTable}`);
        await client.query("commit");
        await client.query("analyze");
      },
      close: () => client.end(), // what is not committed is undone
    };
  } catch (error) {
    await client.end();
    throw error;
  }
}

/** Makes the tables, in one transaction. */
async function begin(client: pg.Client, source: string, steps: readonly Migration[]): Promise<void> {
  await client.query("begin");
  await makeSchema(client, steps);
  const names = [...(await tablesOf(client)).keys()];
  await emptyTables(client, names);
  await client.query("insert into schema_version (version, file) values ($1, $2)", [unfinishedVersion, "unfinished"]);
  await client.query(progressTableText);
  for (const name of names)
    await client.query(`insert into ${progressTable} (table_name, source, done) values ($1, $2, 0)`, [name, source]);
  await client.query("commit");
}
