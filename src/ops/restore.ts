/** What restoring has in common, whichever the engine. */
import type { Migration } from "../db/migrate.ts";
import { type BackupTable, BadBackupError, type Cell, type CheckedBackup } from "./backup-format.ts";

/** Restoring cannot begin or go on. The message is for the terminal; nothing has been replaced. */
export class RestoreError extends Error {
  override readonly name = "RestoreError";
}

/** An empty database of the backup's schema, being filled. */
export type Target = {
  /** The columns of each of its tables but `schema_version`. */
  readonly tables: ReadonlyMap<string, readonly string[]>;
  insert(table: BackupTable, rows: readonly Cell[][]): Promise<void> | void;
};

/** The migrations that lead to the schema of the backup. Throws if this program does not know it. */
export function migrationsFor({ head }: CheckedBackup, migrations: readonly Migration[]): readonly Migration[] {
  if (!Number.isInteger(head.schema) || head.schema < 1 || head.schema > migrations.length) {
    throw new BadBackupError(
      `has schema ${head.schema} of Moltwire ${head.server}, and this program knows only ${migrations.length}: restore it with that version`,
    );
  }
  return migrations.slice(0, head.schema);
}

/** The position of a walk (src/vault/walk.ts) is a key of the engine it is on, and in a log a number that may be another here: a walk begins its pass again. */
const startWalk = ({ name, columns }: BackupTable, rows: readonly Cell[][]): readonly Cell[][] =>
  name === "vault_walk" ? rows.map((cells) => cells.with(columns.indexOf("after_key"), "")) : rows;

/** Whose rows a restored database begins without: who was signed in when the backup was made need not be one who may be now. */
const leftOut: ReadonlySet<string> = new Set(["console_session"]);

/** The rows of a table as another database gets them. */
export const asRestored = (table: BackupTable, rows: readonly Cell[][]): readonly Cell[][] =>
  leftOut.has(table.name) ? [] : startWalk(table, rows);

/** Puts every row of the backup into the target, but those that are left out. Throws unless both have the same tables and columns, and the rows are as many as the backup says. */
export async function fill(target: Target, backup: CheckedBackup): Promise<void> {
  const counts: Record<string, number> = {};
  let table: BackupTable = { name: "", columns: [] };
  for (const frame of backup.frames()) {
    if ("table" in frame) {
      table = frame.table;
      const columns = target.tables.get(table.name);
      if (!columns || columns.toSorted().join() !== [...table.columns].sort().join())
        throw new BadBackupError(`does not fit its schema: the table ${table.name} has other columns there`);
      counts[table.name] = 0;
    } else if ("rows" in frame) {
      await target.insert(table, asRestored(table, frame.rows));
      counts[table.name]! += frame.rows.length;
    } else {
      const { rows } = frame.end;
      const wrong = [...target.tables.keys()].find((name) => counts[name] === undefined || counts[name] !== rows[name]);
      if (wrong !== undefined)
        throw new BadBackupError(`does not fit its schema: it lacks the table ${wrong}, or rows of it`);
    }
  }
}

/**
 * The name of the setting that makes page tokens, cursors and the lease tokens of tasks. A restored database has a new value: one of before could name a place
 * in a log that is now somewhere else, and its reader would miss events without knowing. Leases of jobs and messages are rows, and hold in the copy as they held in
 * the original: whoever has the token has the latest lease there is, and nobody else gets the job before it ends.
 */
export const cursorSecretName = "cursor_secret";
export const cursorSecretBytes = 32;
