import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { type Db, type Dialect, sql, type Tx } from "./db.ts";

/** One step of the schema, which brings it from `version - 1` to `version`. */
export type Migration = { readonly version: number; readonly file: string; readonly text: string };

const fileName = /^(\d{4})-[a-z0-9-]+(?:\.(sqlite|postgres))?\.sql$/;

/**
 * The migrations of one dialect, in order: `0001-first.sqlite.sql` and `0001-first.postgres.sql`, or `0001-first.sql`
 * where one text serves both. Throws on a gap in the numbers, on two files for one number, and on a name it cannot read.
 */
export function readMigrations(folder: string, dialect: Dialect["name"]): Migration[] {
  const own = new Map<number, string>();
  const common = new Map<number, string>();
  for (const file of readdirSync(folder).filter((name) => name.endsWith(".sql"))) {
    const parts = fileName.exec(file);
    if (!parts) throw new Error(`${file}: a migration is named like 0001-first.sql or 0001-first.sqlite.sql`);
    if (parts[2] && parts[2] !== dialect) continue;
    const files = parts[2] ? own : common;
    const version = Number(parts[1]);
    if (files.has(version)) throw new Error(`${file} and ${files.get(version)} have the same number`);
    files.set(version, file);
  }
  const count = new Set([...own.keys(), ...common.keys()]).size;
  return Array.from({ length: count }, (_, index) => {
    const version = index + 1;
    const file = own.get(version) ?? common.get(version);
    if (!file) throw new Error(`migration ${String(version).padStart(4, "0")} for ${dialect} is missing in ${folder}`);
    return { version, file, text: readFileSync(join(folder, file), "utf8") };
  });
}

/**
 * Brings the schema forward, one transaction per migration, recorded in the table `schema_version`. Any number of
 * starters may do so at once: each step is taken by one of them while the others wait for it.
 *
 * Throws if the schema is newer than the last migration given, or if a migration fails, naming its file; those before
 * it stay.
 */
export async function migrate(db: Db, migrations: readonly Migration[]): Promise<void> {
  const found = await db.tx(async (tx) => {
    await takeTurns(tx);
    await tx.script("create table if not exists schema_version (version bigint primary key, file text not null)");
    return tx.one<{ version: number }>(sql`select coalesce(max(version), 0) as version from schema_version`);
  });
  const from = found?.version ?? 0;
  if (from === unfinishedVersion)
    throw new Error(
      "The database is being filled by `moltwire migrate`, which has not ended: run that again, and it goes on where it was.",
    );
  if (from > migrations.length) {
    throw new Error(
      `The database has schema ${from}, and this program knows only ${migrations.length}: the database was made by a ` +
        "newer Moltwire. Start that version, or restore a backup made by this one.",
    );
  }
  for (const migration of migrations.slice(from)) await db.tx((tx) => apply(tx, migration));
}

/** In the place of a schema's number while a database is being filled; a server of any version refuses to start on it. */
export const unfinishedVersion = 1_000_000;

async function apply(tx: Tx, { version, file, text }: Migration): Promise<void> {
  await takeTurns(tx);
  const mine = await tx.run(
    sql`insert into schema_version (version, file) values (${version}, ${file}) on conflict do nothing`,
  );
  if (mine === 0) return; // another starter was here first
  try {
    await tx.script(text);
  } catch (cause) {
    const reason = cause instanceof Error ? cause.message : String(cause);
    throw new Error(`The migration ${file} failed: ${reason}`, { cause });
  }
}

/**
 * Holds other starters off until this transaction ends, however long its migration takes. Where one writer is the
 * rule there is nothing to do; in PostgreSQL, racing creators of a table can fail, "if not exists" or not.
 */
async function takeTurns(tx: Tx): Promise<void> {
  if (tx.dialect.name !== "postgres") return;
  await tx.script("set local statement_timeout = 0; set local lock_timeout = 0");
  await tx.script(`select pg_advisory_xact_lock(${migrationLock})`);
}

/** "moltwire" in ASCII, cut to a positive bigint: a key no other program is likely to lock. */
const migrationLock = 0x6d_6f_6c_74_77_69_72_65n;
