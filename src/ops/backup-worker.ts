/** The thread that reads the data and writes the file of a backup, so that the server's own goes on serving. */
import { fdatasyncSync, statfsSync, writeSync } from "node:fs";
import { parentPort, workerData } from "node:worker_threads";
import { backupWriter, formatVersion, type Written } from "./backup-format.ts";
import { openSource, type SourcePlace } from "./backup-source.ts";

/** What the thread is given. */
export type BackupJob = {
  readonly place: SourcePlace;
  /** An open file without a name, in the folder. */
  readonly file: number;
  readonly folder: string;
  /** What the disk has to keep free: where it holds the database as well, that stops without it. */
  readonly reserveBytes: number;
  readonly server: string;
  readonly timeMs: number;
};

/** What it tells: how far it is, then one of the others. */
export type BackupNews =
  | { readonly kind: "progress"; readonly rows: number; readonly bytes: number }
  | ({ readonly kind: "done"; readonly schema: number } & Written)
  | { readonly kind: "full"; readonly freeBytes: number };

class FullError extends Error {
  readonly freeBytes: number;
  constructor(freeBytes: number) {
    super("the disk is full");
    this.freeBytes = freeBytes;
  }
}

/** How much is written between two looks at what is free. */
const lookBytes = 8 << 20;
const tellMs = 250;

const port = parentPort!;
const tell = (news: BackupNews) => port.postMessage(news);

async function work({ place, file, folder, reserveBytes, server, timeMs }: BackupJob): Promise<void> {
  let sinceLook = lookBytes;
  const write = (bytes: Uint8Array) => {
    sinceLook += bytes.length;
    if (sinceLook >= lookBytes) {
      sinceLook = 0;
      // Else the disk would have it all at once, and whoever commits meanwhile would wait for it.
      fdatasyncSync(file);
      const { bavail, bsize } = statfsSync(folder);
      if (bavail * bsize < reserveBytes) throw new FullError(bavail * bsize);
    }
    for (let at = 0; at < bytes.length; ) at += writeSync(file, bytes, at);
    written += bytes.length;
  };
  let written = 0;
  let rows = 0;
  let toldMs = performance.now();
  const source = await openSource(place);
  try {
    const { schema, counters, tables } = source;
    const out = backupWriter(write);
    out.head({
      format: formatVersion,
      schema,
      server,
      engine: "sqlite" in place ? "sqlite" : "postgres",
      timeMs,
      counters,
    });
    for (const table of tables) {
      out.table(table);
      for await (const some of source.rows(table)) {
        for (const cells of some) {
          out.row(cells);
          if (++rows % 256 > 0 || performance.now() < toldMs + tellMs) continue;
          toldMs = performance.now();
          tell({ kind: "progress", rows, bytes: written });
        }
      }
    }
    tell({ kind: "done", schema, ...out.end() });
  } finally {
    await source.close();
  }
}

try {
  await work(workerData as BackupJob);
} catch (error) {
  const isFull = (error as NodeJS.ErrnoException).code === "ENOSPC";
  if (!isFull && !(error instanceof FullError)) throw error;
  tell({ kind: "full", freeBytes: error instanceof FullError ? error.freeBytes : 0 });
}
