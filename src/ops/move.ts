/** A migration: all data of a database that no server runs on, into an empty one of either engine, a transaction at a time, and compared in the end. */
import { existsSync, statSync } from "node:fs";
import { join, resolve } from "node:path";
import Database from "better-sqlite3";
import pg from "pg";
import type { Migration } from "../db/migrate.ts";
import { readTarget, reasonOf } from "../db/postgres-wire.ts";
import { proveSource } from "../exchange/ledger/prove-source.ts";
import { type AuditProof, proveAudit } from "./audit-proof.ts";
import type { BackupTable } from "./backup-format.ts";
import { openSource, type Source, type SourcePlace } from "./backup-source.ts";
import { type TableSum, tableSummer } from "./move-checksum.ts";
import { openPostgresTarget } from "./move-postgres.ts";
import { openSqliteTarget } from "./move-sqlite.ts";
import { type MoveTarget, sourceName } from "./move-target.ts";
import { asRestored, RestoreError } from "./restore.ts";
import { claim, fileName } from "./restore-sqlite.ts";

/** A data folder, or the address of a PostgreSQL database. */
export type MovePlace = { readonly folder: string } | { readonly postgres: string };

/** Where it is: rows gone through of how many, and bytes; `checking` when they are compared. */
export type MoveNews = {
  readonly phase: "copying" | "checking";
  readonly table: string;
  readonly rows: number;
  readonly total: number;
  readonly bytes: number;
};

export type Move = {
  readonly from: MovePlace;
  readonly to: MovePlace;
  readonly migrations: (engine: "sqlite" | "postgres") => readonly Migration[];
  /** Called after each transaction, and now and then while tables are compared. */
  readonly tell: (news: MoveNews) => void;
  readonly nowMs: () => number;
  /** Rows of a transaction at most; for tests. */
  readonly batchRows?: number;
};

/** What was moved and found to be the same on both sides. */
export type Moved = {
  /** By the table's name. */
  readonly tables: ReadonlyMap<string, TableSum>;
  /** Rows that an interrupted migration had brought before. */
  readonly resumed: number;
  readonly ledger: { readonly accounts: number; readonly transfers: number };
  readonly audit: Pick<AuditProof, "chains" | "rows">;
};

/** The copy is not what it is a copy of, or the books or a chain do not hold. The target stays unfinished. */
export class MoveFault extends Error {
  override readonly name = "MoveFault";
}

/**
 * Moves everything. Throws {@link RestoreError} when it cannot begin (a server runs on the source; the target is not empty), and {@link MoveFault} when what
 * was moved is not the same. Interrupted, the same call goes on after the last transaction; the source is read from its beginning for the checksums.
 */
export async function move(wanted: Move): Promise<Moved> {
  const held = await holdSource(wanted);
  try {
    const source = await openSource(held.place, { ordered: true });
    try {
      return await moveFrom(source, held, wanted);
    } finally {
      await source.close();
    }
  } finally {
    held.release();
  }
}

async function moveFrom(source: Source, held: Held, wanted: Move): Promise<Moved> {
  const { to, migrations, tell } = wanted;
  const steps = migrations("folder" in to ? "sqlite" : "postgres");
  if (source.schema !== steps.length)
    throw new RestoreError(
      `the source has schema ${source.schema}, and this version has ${steps.length}: start ${source.schema < steps.length ? "this version once on it" : "the version that made it"} first`,
    );
  const name = sourceName(await cursorSecretOf(source));
  const target =
    "folder" in to ? openSqliteTarget(to.folder, name, steps) : await openPostgresTarget(to.postgres, name, steps);
  try {
    const resumed = [...target.done.values()].reduce((sum, done) => sum + done, 0);
    const sums = await copy(source, target, wanted);
    const moved = await check(target, sums, tell);
    await held.stillFree();
    await target.finish(source.counters);
    return { ...moved, resumed };
  } finally {
    await target.close();
  }
}

async function copy(
  source: Source,
  target: MoveTarget,
  { tell, batchRows = Number.POSITIVE_INFINITY }: Move,
): Promise<ReadonlyMap<string, TableSum>> {
  const fits = ({ name, columns }: BackupTable) =>
    target.tables.get(name)?.toSorted().join() === [...columns].sort().join();
  const stranger = source.tables.find((table) => !fits(table)) ?? source.tables.length !== target.tables.size;
  if (stranger)
    throw new RestoreError(
      `the tables of the source are not those of its schema${typeof stranger === "object" ? `: ${stranger.name}` : ""}`,
    );
  let total = 0;
  for (const table of source.tables) total += await source.count(table);
  const sums = new Map<string, TableSum>();
  let rows = 0;
  let bytes = 0;
  for (const table of source.tables) {
    const summer = tableSummer(table);
    const before = target.done.get(table.name) ?? 0;
    let seen = 0;
    for await (const found of source.rows(table)) {
      for (let from = 0; from < found.length; from += batchRows) {
        const some = found.slice(from, Math.min(found.length, from + batchRows));
        for (const cells of asRestored(table, some)) summer.add(cells);
        const isNew = some.slice(Math.max(0, before - seen));
        seen += some.length;
        if (isNew.length > 0) await target.put(table, asRestored(table, isNew), seen);
        rows += some.length;
        tell({ phase: "copying", table: table.name, rows, total, bytes: bytes + summer.sum().bytes });
      }
    }
    const sum = summer.sum();
    bytes += sum.bytes;
    sums.set(table.name, sum);
  }
  return sums;
}

/** Reads the target as another would, and compares. */
async function check(
  target: MoveTarget,
  sums: ReadonlyMap<string, TableSum>,
  tell: Move["tell"],
): Promise<Omit<Moved, "resumed">> {
  const copied = await openSource(target.place, { asStored: true });
  const faults: string[] = [];
  try {
    const total = [...sums.values()].reduce((sum, { rows }) => sum + rows, 0);
    let rows = 0;
    let bytes = 0;
    for (const table of copied.tables) {
      const wanted = sums.get(table.name);
      if (!wanted) continue;
      const summer = tableSummer(table);
      for await (const some of copied.rows(table)) {
        for (const cells of some) summer.add(cells);
        rows += some.length;
        tell({ phase: "checking", table: table.name, rows, total, bytes: bytes + summer.sum().bytes });
      }
      const found = summer.sum();
      bytes += found.bytes;
      if (found.rows !== wanted.rows)
        faults.push(`the table ${table.name} has ${found.rows} rows, and the source has ${wanted.rows}`);
      else if (found.checksum !== wanted.checksum)
        faults.push(`the table ${table.name} has other rows than the source: its checksum differs`);
    }
    const { accounts, transfers, faults: wrong } = await proveSource(copied);
    faults.push(...wrong.map(({ subjectId, description }) => `ledger, ${subjectId}: ${description}`));
    const audit = await auditOf(target);
    faults.push(...audit.faults);
    if (faults.length > 0) throw new MoveFault(faultText(faults));
    return { tables: sums, ledger: { accounts, transfers }, audit };
  } finally {
    await copied.close();
  }
}

const mostShown = 20;
const faultText = (faults: readonly string[]): string =>
  `what was migrated does not hold, and no server will start on it:\n  ${faults.slice(0, mostShown).join("\n  ")}\nIf the source was changed meanwhile, begin again with an empty target`;

async function auditOf(target: MoveTarget): Promise<AuditProof> {
  const db = await target.open();
  try {
    return await proveAudit(db.query);
  } finally {
    await db.close();
  }
}

async function cursorSecretOf(source: Source): Promise<Uint8Array> {
  const setting = source.tables.find(({ name }) => name === "setting");
  for await (const some of setting ? source.rows(setting) : [])
    for (const cells of some)
      if (cells[setting!.columns.indexOf("name")] === "cursor_secret")
        return cells[setting!.columns.indexOf("value")] as Uint8Array;
  throw new RestoreError("the source has never been started: there is nothing to migrate");
}

/** The source, for as long as no server may have it. */
type Held = {
  readonly place: SourcePlace;
  /** Throws when a server has started on it meanwhile. */
  stillFree(): Promise<void>;
  release(): void;
};

/** A file is locked; on PostgreSQL a server shows by the lease that says that it is alive. */
async function holdSource({ from, nowMs }: Move): Promise<Held> {
  if ("folder" in from) {
    const file = join(resolve(from.folder), fileName);
    if (!existsSync(file) || statSync(file).size === 0) throw new RestoreError(`${from.folder} has no ${fileName}`);
    const lock = claim(file);
    if (hasSchema(file)) return { place: { sqlite: file }, stillFree: async () => {}, release: lock.release };
    lock.release();
    throw new RestoreError(`${file} is no database of Moltwire`);
  }
  const { postgres } = from;
  const stillFree = () => refuseAlive(postgres, nowMs());
  await stillFree();
  return { place: { postgres }, stillFree, release: () => {} };
}

function hasSchema(file: string): boolean {
  const db = new Database(file, { readonly: true });
  try {
    return db.prepare("select 1 from sqlite_schema where name = 'schema_version'").get() !== undefined;
  } catch {
    return false;
  } finally {
    db.close();
  }
}

async function refuseAlive(url: string, nowMs: number): Promise<void> {
  const { connect, shown } = readTarget(url);
  const client = new pg.Client(connect);
  client.on("error", () => {}); // its query rejects
  try {
    await client.connect();
    const { rows } = await client.query<{ name: string }>(
      "select name from lease where name like 'server:%' and until_ms > $1 limit 1",
      [nowMs],
    );
    if (rows[0])
      throw new RestoreError(
        `a server runs on the database at ${shown}: stop all of them, and wait 15 s if one was killed`,
      );
  } catch (cause) {
    if (cause instanceof RestoreError) throw cause;
    throw new RestoreError(`PostgreSQL at ${shown}: ${reasonOf(cause)}`, { cause });
  } finally {
    await client.end().catch(() => {});
  }
}
