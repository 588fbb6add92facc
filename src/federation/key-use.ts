import type { Logger } from "pino";
import type { Db } from "../db/db.ts";
import { touchKey } from "./api-key-store.ts";

/** Remembers which keys were used, and writes it down now and then, so that no request waits for it. */
export type KeyUse = {
  seen(keyId: string, nowMs: number): void;
  flush(): Promise<void>;
};

const maxRemembered = 100_000;
/** Keys in one transaction: a long one would keep feeds waiting on PostgreSQL, and other writers on SQLite. */
const batch = 100;

/** The last use of a key is exact to the interval between two flushes. */
export function keyUse(db: Db, log: Logger): KeyUse {
  let seen = new Map<string, number>();
  return {
    seen(keyId, nowMs) {
      if (seen.size < maxRemembered) seen.set(keyId, nowMs);
    },
    async flush() {
      if (seen.size === 0) return;
      const used = [...seen].toSorted(([a], [b]) => (a < b ? -1 : 1)); // one order, so that replicas do not deadlock
      seen = new Map();
      try {
        for (let from = 0; from < used.length; from += batch) {
          await db.tx(async (tx) => {
            for (const [keyId, usedMs] of used.slice(from, from + batch)) await touchKey(tx, keyId, usedMs);
          });
        }
      } catch (error) {
        log.warn({ err: error }, "the last use of keys was not written");
      }
    },
  };
}
