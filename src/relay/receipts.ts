/** Receipts: what was handed to its recipient is noted beside what the recipient does, so that no reader waits for it. */
import type { App } from "../app.ts";
import { inRuns } from "../memory/rows.ts";
import { lockLog } from "./log-store.ts";
import type { LogRef } from "./message.ts";
import { markDelivered } from "./message-store.ts";

/** The most that one transaction notes. */
const maxNoted = 512;
/** The most that wait to be noted by one reader; what is more is not noted, and is read before it is delivered. */
const maxWaiting = 16_384;

/** Notes the messages of an inbox that its recipient was given. A note that fails is logged: it is a receipt, not the message. */
export type Receipts = { delivered(sequences: readonly number[]): void };

export function receiptsOf(app: App, log: LogRef): Receipts {
  let waiting: number[] = [];
  let noting = false;
  const note = async () => {
    noting = true;
    try {
      while (waiting.length > 0 && !app.stopping.aborted) {
        const some = waiting.slice(0, maxNoted);
        waiting = waiting.slice(maxNoted);
        await app.db.tx(async (tx) => {
          await lockLog(tx, log);
          const now = app.clock.now();
          for (const run of inRuns(some)) await markDelivered(tx, log, run, now);
        });
      }
    } catch (error) {
      app.log.warn({ err: error, log_id: log.logId }, "receipts were not noted");
    } finally {
      noting = false;
    }
  };
  return {
    delivered(sequences) {
      waiting = [...waiting, ...sequences].slice(0, maxWaiting);
      if (!noting) void note();
    },
  };
}
