/** What is counted of webhooks; src/ops/METRICS.md lists it. */
import type { App } from "../app.ts";
import { type Queryable, sql } from "../db/db.ts";
import type { DeliveryRow } from "./delivery-store.ts";
import type { Sent } from "./send.ts";
import type { Settled } from "./settle.ts";

/** Pending deliveries are counted up to this. */
const countedPending = 10_000;

export function webhookMetrics({ metrics, clock, db }: Pick<App, "metrics" | "clock" | "db">) {
  const attempts = metrics.counter("moltwire_webhook_attempts_total", "Requests to webhooks by result", ["result"]);
  const ended = metrics.counter("moltwire_webhook_deliveries_total", "Deliveries that ended, by state", ["state"]);
  attempts.inc({ result: "2xx" }, 0);
  for (const state of ["delivered", "failed", "expired"]) ended.inc({ state }, 0);
  const lag = metrics.histogram(
    "moltwire_webhook_lag_seconds",
    "Time from an event to the end of its first attempt",
    [0.01, 0.05, 0.25, 1, 5, 30, 300, 3_600],
  );
  metrics.gauge({
    name: "moltwire_webhook_pending",
    help: `Deliveries that have not ended, counted up to ${countedPending}`,
    read: () => countPending(db.query),
  });
  return {
    gauge(read: () => number, limit: number) {
      metrics.gauge({ name: "moltwire_webhook_sending", help: "Requests to webhooks under way", read });
      metrics.gauge({ name: "moltwire_webhook_sending_limit", help: "The most of them", read: () => limit });
    },
    expired: (count: number) => ended.inc({ state: "expired" }, count),
    attempt(row: DeliveryRow, { label }: Sent, settled: Settled) {
      attempts.inc({ result: label });
      if (settled === "delivered" || settled === "failed") ended.inc({ state: settled });
      if (row.attempts === 1) lag.observe(Math.max(0, clock.now() - row.event_ms) / 1_000);
    },
  };
}

/** By the index of what is pending, and never further than the bound. */
export const countPending = async (db: Queryable): Promise<number> =>
  (await db.one<{ n: number }>(
    sql`select count(*) as n from (select 1 as one from webhook_delivery where state = 1 limit ${countedPending}) counted`,
  ))!.n;
