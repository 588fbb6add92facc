/** A data folder that a migration fills. */
import { closeSync, existsSync, openSync, renameSync, rmSync, statSync } from "node:fs";
import { join, resolve } from "node:path";
import Database from "better-sqlite3";
import { type Migration, unfinishedVersion } from "../db/migrate.ts";
import { openSqlite } from "../db/sqlite.ts";
import { checkProgress, type MoveTarget, progressTable, progressTableText } from "./move-target.ts";
import { RestoreError } from "./restore.ts";
import {
  claim,
  fileName,
  make,
  makeSchema,
  renewCursorSecret,
  rowInserter,
  setCounters,
  sync,
  tablesOf,
  verify,
} from "./restore-sqlite.ts";

/**
 * Opens a folder without a database, or one in which a migration of the same source was filling one. It has another name until it is whole, so that no server
 * starts on it. Throws {@link RestoreError} for any other folder, and while a server has it.
 */
export function openSqliteTarget(folderName: string, source: string, steps: readonly Migration[]): MoveTarget {
  const folder = resolve(folderName);
  const file = join(folder, fileName);
  if ([file, `${file}-wal`].some((path) => existsSync(path) && statSync(path).size > 0))
    throw new RestoreError(`${folder} has a database already: choose another folder`);
  make(folder);
  const lock = claim(file);
  const building = join(folder, `${fileName}.migrating`);
  let db: Database.Database | undefined;
  try {
    const isNew = !existsSync(building);
    if (isNew) closeSync(openSync(building, "wx", 0o600));
    const target = (db = new Database(building));
    target.pragma("journal_mode = wal");
    target.pragma("synchronous = normal");
    target.pragma("foreign_keys = off");
    target.pragma("cache_size = -65536");
    const hasTables = target.prepare("select 1 from sqlite_schema limit 1").get() !== undefined;
    if (!hasTables) target.transaction(() => begin(target, source, steps))();
    const tables = tablesOf(target);
    if (!tables.delete(progressTable)) throw new RestoreError(`${building} is no migration's: remove it`);
    const rows = target
      .prepare<[], { table_name: string; source: string; done: number }>(
        `select table_name, source, done from ${progressTable}`,
      )
      .all();
    const insert = rowInserter(target);
    const note = target.prepare<[bigint, string]>(`update ${progressTable} set done = ? where table_name = ?`);
    return {
      tables,
      done: checkProgress(building, source, rows),
      place: { sqlite: building },
      open: () => openSqlite({ file: building }),
      put: target.transaction((table, some, done) => {
        insert(table, some);
        note.run(BigInt(done), table.name);
      }),
      async finish(counters) {
        // While it is still a migration's that goes on: they take long.
        verify(target);
        target.exec("analyze");
        target.transaction(() => {
          setCounters(target, counters);
          renewCursorSecret(target);
          target.prepare<[bigint]>("delete from schema_version where version = ?").run(BigInt(unfinishedVersion));
          target.exec(`drop table ${progressTable}`);
        })();
        // Into the file itself, which is then put on disk as a whole before it gets its name.
        target.pragma("journal_mode = delete");
        target.close();
        sync(building);
        renameSync(building, file);
        rmSync(`${building}-lock`, { force: true });
        sync(folder);
      },
      async close() {
        target.close();
        lock.release();
      },
    };
  } catch (error) {
    db?.close();
    lock.release();
    throw error;
  }
}

function begin(db: Database.Database, source: string, steps: readonly Migration[]): void {
  makeSchema(db, steps);
  const names = [...tablesOf(db).keys()];
  for (const name of names) db.exec(`delete from "${name}"`);
  db.prepare("insert into schema_version (version, file) values (?, ?)").run(BigInt(unfinishedVersion), "unfinished");
  db.exec(progressTableText);
  const add = db.prepare(`insert into ${progressTable} (table_name, source, done) values (?, ?, 0)`);
  for (const name of names) add.run(name, source);
}
