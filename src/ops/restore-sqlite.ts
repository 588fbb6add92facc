import { randomBytes } from "node:crypto";
import {
  closeSync,
  existsSync,
  fsyncSync,
  mkdirSync,
  openSync,
  readdirSync,
  renameSync,
  rmdirSync,
  rmSync,
  statSync,
} from "node:fs";
import { dirname, join, resolve } from "node:path";
import Database from "better-sqlite3";
import { claimFile, type DataFile } from "../db/data-file.ts";
import type { Migration } from "../db/migrate.ts";
import type { BackupHead, BackupTable, Cell, CheckedBackup } from "./backup-format.ts";
import { cursorSecretBytes, cursorSecretName, fill, migrationsFor, RestoreError, type Target } from "./restore.ts";

export type SqliteRestore = {
  readonly backup: CheckedBackup;
  /** The folder of the data; made if it is missing. */
  readonly folder: string;
  readonly migrations: readonly Migration[];
  /** Whether a database that is there may be put aside. */
  readonly replace: boolean;
  readonly nowMs: number;
};

/** The data file in its folder. */
export const fileName = "moltwire.db";

/**
 * Makes the data file of a backup beside the place it is for, checks it, and moves it there at the end: whatever fails before leaves the folder
 * as it was. Gives the name of the file to which a database that was there was moved, if one was.
 */
export async function restoreSqlite(wanted: SqliteRestore): Promise<string | undefined> {
  const { replace, nowMs } = wanted;
  const folder = resolve(wanted.folder);
  const file = join(folder, fileName);
  const hasData = [file, `${file}-wal`].some((path) => existsSync(path) && statSync(path).size > 0);
  if (hasData && !replace)
    throw new RestoreError(
      `${folder} has a database already. Choose another folder with --data, or --replace: then the old one is kept beside it`,
    );
  const madeFolder = make(folder);
  const before = new Set(readdirSync(folder));
  const building = join(folder, `${fileName}.restoring`);
  let done = false;
  // A server that runs on it has the lock.
  const lock = claim(file);
  try {
    for (const each of [building, `${building}-journal`]) rmSync(each, { force: true });
    await build(building, wanted);
    const kept = hasData ? putAside(folder, nowMs) : undefined;
    renameSync(building, file);
    sync(folder);
    done = true;
    return kept;
  } finally {
    // Before the lock is gone: after that the names may be another's.
    if (!done) tidy(folder, madeFolder, before);
    lock.release();
  }
}

/** Removes what was not there before. */
function tidy(folder: string, madeFolder: string | undefined, before: ReadonlySet<string>): void {
  for (const name of [`${fileName}.restoring`, fileName, `${fileName}-lock`])
    if (!before.has(name)) rmSync(join(folder, name), { force: true });
  for (let each = folder; madeFolder !== undefined && each.length >= madeFolder.length; each = dirname(each))
    rmdirSync(each);
}

/** The first folder that had to be made; undefined if all were there. */
export function make(folder: string): string | undefined {
  try {
    return mkdirSync(folder, { recursive: true, mode: 0o700 });
  } catch (cause) {
    throw new RestoreError(`the folder ${folder} cannot be made: ${(cause as Error).message}`, { cause });
  }
}

/** The lock of the data file; RestoreError when a server has it. */
export function claim(file: string): DataFile {
  try {
    return claimFile(file);
  } catch (cause) {
    throw new RestoreError((cause as Error).message, { cause });
  }
}

async function build(path: string, { backup, migrations }: SqliteRestore): Promise<void> {
  const steps = migrationsFor(backup, migrations);
  closeSync(openSync(path, "wx", 0o600));
  const db = new Database(path);
  try {
    // A crash leaves a file that nobody looks at; it is put on disk as a whole before it gets its name.
    db.pragma("journal_mode = off");
    db.pragma("synchronous = off");
    db.pragma("foreign_keys = off");
    db.pragma("cache_size = -65536");
    db.exec("begin");
    makeSchema(db, steps);
    await fill(targetOf(db), backup);
    setCounters(db, backup.head.counters);
    renewCursorSecret(db);
    db.exec("commit");
    verify(db);
  } finally {
    db.close();
  }
  sync(path);
}

/** Makes the tables of a schema. */
export function makeSchema(db: Database.Database, steps: readonly Migration[]): void {
  db.exec("create table schema_version (version bigint primary key, file text not null)");
  const record = db.prepare("insert into schema_version (version, file) values (?, ?)");
  for (const { version, file, text } of steps) {
    db.exec(text);
    record.run(BigInt(version), file);
  }
}

/** See `cursorSecretName`. */
export const renewCursorSecret = (db: Database.Database) =>
  db.prepare("update setting set value = ? where name = ?").run(randomBytes(cursorSecretBytes), cursorSecretName);

/** The columns of each table but `schema_version`. */
export function tablesOf(db: Database.Database): Map<string, readonly string[]> {
  const names = db
    .prepare<[], string>(
      "select name from pragma_table_list where schema = 'main' and type = 'table' and name not like 'sqlite\\_%' escape '\\' and name <> 'schema_version'",
    )
    .pluck()
    .all();
  const columnsOf = db.prepare<[string], string>("select name from pragma_table_info(?)").pluck();
  return new Map(names.map((name) => [name, columnsOf.all(name)]));
}

/** An empty database: what the migrations have put into its tables is removed. */
function targetOf(db: Database.Database): Target {
  const tables = tablesOf(db);
  for (const name of tables.keys()) db.exec(`delete from "${name}"`);
  return { tables, insert: rowInserter(db) };
}

/** Puts rows into tables. */
export function rowInserter(db: Database.Database): (table: BackupTable, rows: readonly Cell[][]) => void {
  const statements = new Map<string, Database.Statement<[readonly Cell[]]>>();
  const statementOf = ({ name, columns }: BackupTable) => {
    const marks = columns.map(() => "?").join(", ");
    const found =
      statements.get(name) ??
      db.prepare<[readonly Cell[]]>(
        `insert into "${name}" (${columns.map((column) => `"${column}"`).join(", ")}) values (${marks})`,
      );
    statements.set(name, found);
    return found;
  };
  return (table, rows) => {
    const statement = statementOf(table);
    for (const cells of rows) statement.run(cells);
  };
}

/** Numbers that were given once are not given again, also where the rows that had them are gone. */
export function setCounters(db: Database.Database, counters: BackupHead["counters"]): void {
  const forget = db.prepare<[string]>("delete from sqlite_sequence where name = ?");
  const last = db.prepare<[string], bigint>("select seq from sqlite_sequence where name = ?").pluck().safeIntegers();
  const set = db.prepare<[string, bigint]>("insert into sqlite_sequence (name, seq) values (?, ?)");
  for (const [table, counter] of Object.entries(counters)) {
    const there = last.get(table) ?? 0n;
    forget.run(table);
    set.run(table, BigInt(counter) > there ? BigInt(counter) : there);
  }
}

/** Throws unless the file is sound. */
export function verify(db: Database.Database): void {
  const complaints = db.pragma("integrity_check") as { integrity_check: string }[];
  const strangers = db.pragma("foreign_key_check") as unknown[];
  if (complaints[0]?.integrity_check !== "ok" || strangers.length > 0)
    throw new RestoreError(
      `the restored database failed its check: ${JSON.stringify([...complaints, ...strangers]).slice(0, 500)}`,
    );
}

/** The log belongs to the file by its name, and may hold commits that the file does not have yet. What was put aside before is never written over. */
function putAside(folder: string, nowMs: number): string {
  const there = new Set(readdirSync(folder));
  const name = `${fileName}.before-${new Date(nowMs).toISOString().replaceAll(/[-:]|\.\d+/g, "")}`;
  let kept = name;
  for (let nth = 2; there.has(kept) || there.has(`${kept}-wal`); nth++) kept = `${name}-${nth}`;
  for (const suffix of ["-wal", "-shm", ""])
    if (existsSync(join(folder, fileName + suffix)))
      renameSync(join(folder, fileName + suffix), join(folder, kept + suffix));
  return kept;
}

/** Puts a file, or the names in a folder, on disk. */
export function sync(path: string): void {
  const descriptor = openSync(path, "r");
  fsyncSync(descriptor);
  closeSync(descriptor);
}
