/** What has crossed is forgotten when it can do no harm any more. */
import type { App } from "../../app.ts";
import { deleteCalls, deleteNonces } from "./call-store.ts";

const batch = 1_000;

export async function sweepPeers({ db, clock, stopping }: Pick<App, "db" | "clock" | "stopping">): Promise<void> {
  for (const forget of [deleteNonces, deleteCalls])
    while (!stopping.aborted && (await db.tx((tx) => forget(tx, clock.now(), batch))) === batch);
}
