/** What SQLite says of a data folder. */
import { copyFileSync, existsSync, mkdirSync, rmSync } from "node:fs";
import { join } from "node:path";
import Database from "better-sqlite3";

/** Opens a copy, so that what the killed server left is still there for the next one to mend. */
export function integrityOfCopy(data: string, copy: string): string[] {
  if (!existsSync(join(data, "moltwire.db"))) return [];
  mkdirSync(copy, { recursive: true });
  for (const name of ["moltwire.db", "moltwire.db-wal"]) {
    rmSync(join(copy, name), { force: true });
    if (existsSync(join(data, name))) copyFileSync(join(data, name), join(copy, name));
  }
  return integrity(join(copy, "moltwire.db"));
}

/** The verdicts: `ok`, or what is broken. */
export function integrity(file: string): string[] {
  const db = new Database(file);
  try {
    return (db.pragma("integrity_check") as { integrity_check: string }[]).map((row) => row.integrity_check);
  } finally {
    db.close();
  }
}
