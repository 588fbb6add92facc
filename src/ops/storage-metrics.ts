import { stat, statfs } from "node:fs/promises";
import { dirname } from "node:path";
import type { Db } from "../db/db.ts";
import type { Metrics } from "./metrics.ts";

/** How busy storage is, and how much room it has left. */
export function storageMetrics(metrics: Metrics, db: Pick<Db, "load">): void {
  metrics.gauge({
    name: "moltwire_waiting_transactions",
    help: "Transactions that wait for their turn",
    read: () => db.load().waiting,
  });
  const { file, pools } = db.load();
  if (file) {
    metrics.gauge({
      name: "moltwire_database_bytes",
      help: "Size of the data file, and of the log that is not yet in it",
      label: "file",
      read: async () => ({ data: await sizeOf(file), wal: await sizeOf(`${file}-wal`) }),
    });
    metrics.gauge({
      name: "moltwire_disk_free_bytes",
      help: "What the disk of the data file has left for this process",
      read: async () => {
        const { bavail, bsize } = await statfs(dirname(file));
        return bavail * bsize;
      },
    });
  }
  if (pools) {
    const read = (of: "used" | "idle" | "waiting" | "limit") => () => {
      const { writers, readers } = db.load().pools!;
      return { write: writers[of], read: readers[of] };
    };
    metrics.gauge({ name: "moltwire_pool_used", help: "Connections in use", label: "pool", read: read("used") });
    metrics.gauge({ name: "moltwire_pool_idle", help: "Connections open and free", label: "pool", read: read("idle") });
    metrics.gauge({
      name: "moltwire_pool_waiting",
      help: "Callers that wait for a connection",
      label: "pool",
      read: read("waiting"),
    });
    metrics.gauge({ name: "moltwire_pool_limit", help: "The most connections", label: "pool", read: read("limit") });
  }
}

/** A log that was just moved into the data file may be gone for a moment. */
async function sizeOf(file: string): Promise<number> {
  try {
    return (await stat(file)).size;
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOENT") return 0;
    throw error;
  }
}
