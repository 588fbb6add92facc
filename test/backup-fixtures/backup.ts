/** What tests of backups do again and again. */
import { createHash } from "node:crypto";
import { createWriteStream } from "node:fs";
import { finished } from "node:stream/promises";
import { fileURLToPath } from "node:url";
import type { BackupManifest } from "../../gen/moltwire/ops/v1/backup_pb.ts";
import { readMigrations } from "../../src/db/migrate.ts";
import { checkBackup } from "../../src/ops/backup-format.ts";
import { restorePostgres } from "../../src/ops/restore-postgres.ts";
import { restoreSqlite } from "../../src/ops/restore-sqlite.ts";
import type { Clients } from "../harness.ts";

export const migrations = (dialect: "sqlite" | "postgres") =>
  readMigrations(fileURLToPath(new URL("../../src/db/migrations", import.meta.url)), dialect);

/** Writes a backup into a file; fails unless its bytes are those that the manifest tells of. */
export async function backUp(as: Clients, path: string): Promise<BackupManifest> {
  const out = createWriteStream(path, { flags: "wx" });
  const hash = createHash("sha256");
  let manifest: BackupManifest | undefined;
  for await (const { event } of as.maintenance.backup({})) {
    if (event.case === "manifest") manifest = event.value;
    if (event.case !== "chunk") continue;
    if (!manifest) throw new Error("a chunk came before the manifest");
    hash.update(event.value);
    out.write(event.value);
  }
  out.end();
  await finished(out);
  if (!manifest || hash.digest("hex") !== manifest.sha256 || BigInt(out.bytesWritten) !== manifest.sizeBytes)
    throw new Error("the bytes are not those of the manifest");
  return manifest;
}

/** Restores a file into a folder or an empty database. */
export const restore = (path: string, to: { data: string } | { databaseUrl: string }, replace = false) =>
  "data" in to
    ? restoreSqlite({ backup: checkBackup(path), folder: to.data, migrations: migrations("sqlite"), replace, nowMs: 0 })
    : restorePostgres({ backup: checkBackup(path), ...to, migrations: migrations("postgres") });
