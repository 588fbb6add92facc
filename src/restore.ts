/** The process that restores a backup while no server runs on the data: arguments → check → restore. */
import { join } from "node:path";
import { parseArgs } from "node:util";
import { ConfigError, readConfig } from "./config.ts";
import { readMigrations } from "./db/migrate.ts";
import { BadBackupError, type CheckedBackup, checkBackup } from "./ops/backup-format.ts";
import { RestoreError } from "./ops/restore.ts";
import { restorePostgres } from "./ops/restore-postgres.ts";
import { restoreSqlite } from "./ops/restore-sqlite.ts";

const usage = `Usage: moltwire restore FILE [flags]

Makes a database of a backup, for a server to start on. Checks the whole file before it touches anything.

  --data FOLDER         MOLTWIRE_DATA          folder of the data, without a database yet (./.moltwire)
  --database-url URL    MOLTWIRE_DATABASE_URL  an empty PostgreSQL database instead of SQLite
  --replace             put a database that is in the folder aside, as moltwire.db.before-TIME
  --json                print JSON, for programs`;

/** A wrong argument, file or target; what is wrong with the file or the disk while restoring is not among them. */
const exitWrong = 2;
const exitFault = 5;

async function main(args: readonly string[]): Promise<void> {
  const { file, replace, json, flags } = readArguments(args);
  if (file === undefined) return console.log(usage);
  const config = readConfig(flags, process.env);
  const backup = check(file);
  const { databaseUrl, data } = config;
  const folder = join(import.meta.dirname, "db/migrations");
  const nowMs = Date.now();
  let kept: string | undefined;
  try {
    if (databaseUrl) {
      if (replace) throw new RestoreError("--replace is for a folder: give an empty PostgreSQL database");
      await restorePostgres({ backup, databaseUrl, migrations: readMigrations(folder, "postgres") });
    } else {
      if (data === ":memory:")
        throw new RestoreError("data that is kept in memory is gone at once: give --data a folder");
      kept = await restoreSqlite({
        backup,
        folder: data,
        migrations: readMigrations(folder, "sqlite"),
        replace,
        nowMs,
      });
    }
  } catch (error) {
    throw error instanceof BadBackupError ? named(file, error) : error;
  }
  const into = databaseUrl ? "the PostgreSQL database" : data;
  const restored: Restored = { backup, into, kept: kept && join(data, kept) };
  console.log(json ? toJson(restored) : toText(restored));
}

type Restored = { readonly backup: CheckedBackup; readonly into: string; readonly kept: string | undefined };

function toText({ backup: { head, rows }, into, kept }: Restored): string {
  const time = new Date(head.timeMs).toISOString();
  return [
    `restored  ${rows} rows of ${time}, from ${head.engine}, Moltwire ${head.server}, schema ${head.schema}`,
    `into      ${into}`,
    ...(kept ? [`kept      the database that was there, as ${kept}`] : []),
    "Page tokens, cursors and lease tokens of tasks of before are refused from now on; leases of jobs and messages run",
    "on until they end. Nobody is signed in to the console. Start the server on it.",
  ].join("\n");
}

/** With the words of BackupManifest. */
function toJson({ backup: { head, rows }, into, kept }: Restored): string {
  const { engine, server: serverVersion, schema: schemaVersion } = head;
  const time = new Date(head.timeMs).toISOString();
  return JSON.stringify({ rows, time, engine, serverVersion, schemaVersion, into, kept }, undefined, 2);
}

function readArguments(args: readonly string[]) {
  if (args.includes("--help")) return { file: undefined, replace: false, json: false, flags: [] };
  try {
    const string = { type: "string" as const };
    const boolean = { type: "boolean" as const, default: false };
    const options = { data: string, "database-url": string, replace: boolean, json: boolean };
    const { values, positionals } = parseArgs({ args: [...args], options, allowPositionals: true });
    const [file] = positionals;
    if (file === undefined || positionals.length > 1) throw new Error("Name one file: moltwire restore FILE");
    const flags = (["data", "database-url"] as const).flatMap((name) =>
      values[name] === undefined ? [] : [`--${name}=${values[name]}`],
    );
    return { file, replace: values.replace, json: values.json, flags };
  } catch (error) {
    throw new RestoreError(`${(error as Error).message}; see --help`, { cause: error });
  }
}

function check(file: string): CheckedBackup {
  try {
    return checkBackup(file);
  } catch (error) {
    if (error instanceof BadBackupError) throw named(file, error);
    throw new RestoreError(`${file} cannot be read: ${(error as Error).message}`, { cause: error });
  }
}

const named = (file: string, error: BadBackupError) =>
  new RestoreError(`${file} ${error.message}. Nothing was changed`, { cause: error });

main(process.argv.slice(2)).catch((error: unknown) => {
  const isWrong = error instanceof RestoreError || error instanceof ConfigError;
  const message = error instanceof Error ? error.message : String(error);
  const problem = { error: { reason: isWrong ? "USAGE" : "FAULT", message } };
  console.error(process.argv.includes("--json") ? JSON.stringify(problem, undefined, 2) : `moltwire: ${message}`);
  process.exitCode = isWrong ? exitWrong : exitFault;
});
