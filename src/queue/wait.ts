import type { App } from "../app.ts";
import type { Bell } from "../db/db.ts";
import { claimableFrom } from "./claim-store.ts";

/** PostgreSQL's bells can be lost with a connection: behind them, a poll. */
const pollMs = 500;
const shortestMs = 5;

/**
 * Waits until one of the queues seems to have a job (true) or the time is over (false): for the bell, and for the time of the next job that waits for its
 * own. Holds no connection and no transaction. Rejects with the signal's reason.
 */
export async function untilClaimable(
  app: App,
  orgId: string,
  queues: readonly string[],
  bell: Bell,
  untilMs: number,
  signal: AbortSignal,
): Promise<boolean> {
  for (;;) {
    const fromMs = await claimableFrom(app.db.query, orgId, queues);
    const now = app.clock.now();
    if (fromMs !== undefined && fromMs <= now) return true;
    if (now >= untilMs) return false;
    await bell.wait(bellMs(app, Math.min(untilMs, fromMs ?? untilMs) - now), signal);
  }
}

/** How long to wait for a bell at most; at least so long that jobs others are just taking are not asked for again and again. */
export const bellMs = ({ db }: Pick<App, "db">, ms: number): number =>
  Math.max(shortestMs, db.engine === "sqlite" ? ms : Math.min(ms, pollMs));
