/** The process that migrates all data into another database while no server runs on either: arguments → move → what was moved. */
import { join } from "node:path";
import { parseArgs } from "node:util";
import { readMigrations } from "./db/migrate.ts";
import { type Moved, type MoveNews, type MovePlace, move } from "./ops/move.ts";
import { RestoreError } from "./ops/restore.ts";

const usage = `Usage: moltwire migrate --from PLACE --to PLACE [--json]

Copies all data into an empty database of either engine, compares every table, and proves the ledger and the audit
logs there. A PLACE is a folder of data (SQLite) or postgres://user:password@host/database. No server may run on
either. Interrupted, it goes on when it is run again; until it is done no server starts on the new database.

  --from PLACE   where the data is; it is only read
  --to PLACE     a folder without a database, or an empty PostgreSQL database
  --json         print JSON, for programs

Better as variables, since flags show in \`ps\`: MOLTWIRE_MIGRATE_FROM and MOLTWIRE_MIGRATE_TO.`;

const exitWrong = 2;
const exitFault = 5;

async function main(args: readonly string[]): Promise<void> {
  if (args.includes("--help")) return console.log(usage);
  const { from, to, json } = readArguments(args);
  const folder = join(import.meta.dirname, "db/migrations");
  const bar = !json && process.stderr.isTTY ? progressBar() : undefined;
  const beganMs = performance.now();
  try {
    const moved = await move({
      ...{ from, to, nowMs: Date.now, tell: bar?.show ?? (() => {}) },
      migrations: (engine) => readMigrations(folder, engine),
    });
    bar?.clear();
    console.log(json ? toJson(moved) : toText(moved, (performance.now() - beganMs) / 1_000));
  } finally {
    bar?.clear();
  }
}

const barChars = 30;
const barMs = 100;

/** One line on the terminal, written anew. */
function progressBar() {
  let shownMs = Number.NEGATIVE_INFINITY;
  return {
    show({ phase, table, rows, total, bytes }: MoveNews): void {
      if (performance.now() < shownMs + barMs && rows < total) return;
      shownMs = performance.now();
      const full = total === 0 ? barChars : Math.round((barChars * rows) / total);
      const bar = "█".repeat(full) + "░".repeat(barChars - full);
      process.stderr.write(`\r\u001b[K${phase}  ${bar}  ${rows}/${total} rows, ${size(bytes)}  ${table}`);
    },
    clear: () => void process.stderr.write("\r\u001b[K"),
  };
}

function toText({ tables, resumed, ledger, audit }: Moved, seconds: number): string {
  const shown = [...tables].filter(([, { rows }]) => rows > 0);
  const width = Math.max(0, ...shown.map(([name]) => name.length));
  const rows = shown.reduce((sum, [, one]) => sum + one.rows, 0);
  const bytes = shown.reduce((sum, [, one]) => sum + one.bytes, 0);
  return [
    ...shown.map(
      ([name, one]) =>
        `${name.padEnd(width)}  ${String(one.rows).padStart(10)} rows  ${size(one.bytes).padStart(10)}  ${one.checksum.slice(0, 16)}`,
    ),
    `migrated  ${rows} rows, ${size(bytes)}, in ${seconds.toFixed(1)} s${resumed > 0 ? `; ${resumed} rows of them before it was interrupted` : ""}`,
    `compared  ${tables.size} tables: the same rows on both sides`,
    `proved    the ledger: ${ledger.accounts} accounts, ${ledger.transfers} transfers; the audit logs: ${audit.chains} chains, ${audit.rows} rows`,
    "Page tokens and cursors of before are refused from now on, and nobody is signed in to the console. Start the server on it.",
  ].join("\n");
}

const toJson = ({ tables, resumed, ledger, audit }: Moved): string =>
  JSON.stringify({ tables: Object.fromEntries(tables), resumedRows: resumed, ledger, audit }, undefined, 2);

function size(bytes: number): string {
  if (bytes < 1_048_576) return `${(bytes / 1_024).toFixed(1)} KiB`;
  if (bytes < 1_073_741_824) return `${(bytes / 1_048_576).toFixed(1)} MiB`;
  return `${(bytes / 1_073_741_824).toFixed(2)} GiB`;
}

function readArguments(args: readonly string[]): { from: MovePlace; to: MovePlace; json: boolean } {
  try {
    const string = { type: "string" as const };
    const { values } = parseArgs({
      args: [...args],
      options: { from: string, to: string, json: { type: "boolean", default: false } },
    });
    const { MOLTWIRE_MIGRATE_FROM, MOLTWIRE_MIGRATE_TO } = process.env;
    const from = values.from ?? MOLTWIRE_MIGRATE_FROM;
    const to = values.to ?? MOLTWIRE_MIGRATE_TO;
    if (!from || !to) throw new Error("Say --from and --to");
    return { from: place(from), to: place(to), json: values.json };
  } catch (error) {
    throw new RestoreError(`${(error as Error).message}; see --help`, { cause: error });
  }
}

function place(text: string): MovePlace {
  if (/^postgres(ql)?:\/\//.test(text)) return { postgres: text };
  if (text === ":memory:") throw new Error("data that is kept in memory is gone at once: give a folder");
  return { folder: text.replace(/^sqlite:(\/\/)?/, "") };
}

main(process.argv.slice(2)).catch((error: unknown) => {
  const isWrong = error instanceof RestoreError;
  const message = error instanceof Error ? error.message : String(error);
  const problem = { error: { reason: isWrong ? "USAGE" : "FAULT", message } };
  console.error(process.argv.includes("--json") ? JSON.stringify(problem, undefined, 2) : `moltwire: ${message}`);
  process.exitCode = isWrong ? exitWrong : exitFault;
});
