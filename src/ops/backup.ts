/** A backup: made in a thread of its own, into a file without a name, and streamed from there. */
import { on } from "node:events";
import { type FileHandle, open, unlink } from "node:fs/promises";
import { tmpdir } from "node:os";
import { dirname, extname, join } from "node:path";
import { Worker } from "node:worker_threads";
import type { MessageInitShape } from "@bufbuild/protobuf";
import { timestampFromMs } from "@bufbuild/protobuf/wkt";
import type { BackupResponseSchema } from "../../gen/moltwire/ops/v1/maintenance_service_pb.ts";
import type { App } from "../app.ts";
import { Fault } from "../errors.ts";
import { version } from "../version.ts";
import { formatVersion } from "./backup-format.ts";
import type { BackupJob, BackupNews } from "./backup-worker.ts";

type Message = MessageInitShape<typeof BackupResponseSchema>;
type Needs = Pick<App, "config" | "db" | "clock" | "ids">;

export type BackupOptions = {
  /** What the disk has to keep free. Default 256 MiB. */
  readonly reserveBytes?: number;
};

const chunkBytes = 262_144;
const defaultReserveBytes = 256 << 20;

/**
 * The messages of one backup. The file has no name from the beginning, so that it is gone however this ends; the thread is ended when the signal aborts
 * or the reader leaves.
 */
export async function* makeBackup(
  app: Needs,
  signal: AbortSignal,
  options: BackupOptions = {},
): AsyncGenerator<Message> {
  const { reserveBytes = defaultReserveBytes } = options;
  const { file: sqlite } = app.db.load();
  const folder = sqlite ? dirname(sqlite) : tmpdir();
  const timeMs = app.clock.now();
  const file = await openNameless(join(folder, `backup-${app.ids.span()}`));
  try {
    const place = sqlite ? { sqlite } : { postgres: app.config.databaseUrl! };
    const job = { place, file: file.fd, folder, reserveBytes, server: version, timeMs };
    const { schema, rows, bytes, sha256 } = yield* write(job, signal);
    const manifest = {
      formatVersion,
      schemaVersion: schema,
      serverVersion: version,
      engine: app.db.engine,
      time: timestampFromMs(timeMs),
      rows: BigInt(rows),
      sizeBytes: BigInt(bytes),
      sha256,
    };
    yield { event: { case: "manifest", value: manifest } };
    for (let at = 0; at < bytes; ) {
      signal.throwIfAborted();
      const { bytesRead, buffer } = await file.read(Buffer.allocUnsafeSlow(chunkBytes), 0, chunkBytes, at);
      if (bytesRead === 0) throw new Error("the file of the backup is shorter than what was written");
      yield { event: { case: "chunk", value: buffer.subarray(0, bytesRead) } };
      at += bytesRead;
    }
  } finally {
    await file.close();
  }
}

async function* write(
  job: BackupJob,
  signal: AbortSignal,
): AsyncGenerator<Message, Extract<BackupNews, { kind: "done" }>> {
  signal.throwIfAborted();
  const worker = new Worker(new URL(`./backup-worker${extname(import.meta.filename)}`, import.meta.url), {
    workerData: job,
  });
  worker.on("error", () => {}); // it is heard below, and after that there is nothing left to hear
  try {
    for await (const [news] of on(worker, "message", { signal, close: ["exit"] }) as AsyncIterable<[BackupNews]>) {
      if (news.kind === "done") return news;
      if (news.kind === "full") throw diskFull(job, news.freeBytes);
      const { rows, bytes } = news;
      yield { event: { case: "progress", value: { rows: BigInt(rows), sizeBytes: BigInt(bytes) } } };
    }
    throw new Error("the thread of the backup ended without a word");
  } catch (error) {
    signal.throwIfAborted();
    throw error;
  } finally {
    // Its file must not be closed before: the number would be another file's, and the thread would write there.
    await worker.terminate();
  }
}

function diskFull({ folder, reserveBytes }: BackupJob, freeBytes: number): Fault {
  const message = `${folder} has ${freeBytes} bytes free, and a backup leaves ${reserveBytes}: make room there`;
  return new Fault("FAILED_PRECONDITION", message, {
    resource: "disk",
    free_bytes: String(freeBytes),
    reserve_bytes: String(reserveBytes),
  });
}

/** A new file that only this process can reach, and that is gone with its last descriptor. */
async function openNameless(path: string): Promise<FileHandle> {
  const file = await open(path, "wx+", 0o600);
  await unlink(path);
  return file;
}
