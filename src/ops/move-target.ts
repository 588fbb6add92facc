/** The database that a migration fills: what both engines promise of it. */
import { createHash } from "node:crypto";
import type { Db } from "../db/db.ts";
import type { BackupHead, BackupTable, Cell } from "./backup-format.ts";
import type { SourcePlace } from "./backup-source.ts";
import { RestoreError } from "./restore.ts";

/** A database that is being filled, a transaction at a time: whatever ends the process, the next one goes on. */
export type MoveTarget = {
  /** The columns of each of its tables. */
  readonly tables: ReadonlyMap<string, readonly string[]>;
  /** How many rows of the source's each table has been gone through; more than nothing only after an interruption. */
  readonly done: ReadonlyMap<string, number>;
  /** Puts rows into a table and notes how many of the source's that makes, in one transaction. */
  put(table: BackupTable, rows: readonly Cell[][], done: number): Promise<void> | void;
  /** Where it can be read, to be checked. */
  readonly place: SourcePlace;
  /** The same, for queries; to be closed. */
  open(): Promise<Db> | Db;
  /** Sets the counters, and lets servers start on it. */
  finish(counters: BackupHead["counters"]): Promise<void>;
  close(): Promise<void>;
};

/** The table that a database has while it is being filled; a row for each table, with the source's name for itself and the rows gone through. */
export const progressTable = "unfinished_migration";
export const progressTableText = `create table ${progressTable} (table_name text primary key, source text not null, done bigint not null)`;

/** What a source is known by: it is the secret of its cursors, of which no two databases have the same. */
export const sourceName = (cursorSecret: Uint8Array): string =>
  createHash("sha256").update("moltwire migrate\n").update(cursorSecret).digest("hex");

type Progress = { readonly table_name: string; readonly source: string; readonly done: number };

/** How far a database is filled. Throws {@link RestoreError} when it was from another source. */
export function checkProgress(shown: string, source: string, rows: readonly Progress[]): ReadonlyMap<string, number> {
  if (rows.some((row) => row.source !== source))
    throw new RestoreError(
      `${shown} is half filled from another database: go on with that one, or give an empty database`,
    );
  return new Map(rows.map(({ table_name, done }) => [table_name, done]));
}
