import type { Clock } from "../clock.ts";
import { type Db, sql } from "../db/db.ts";
import type { Metrics } from "./metrics.ts";

/** How the queues of all organisations stand together, from storage. */
export function queueMetrics(metrics: Metrics, db: Pick<Db, "query">, clock: Clock): void {
  metrics.gauge({
    name: "moltwire_queue_jobs",
    help: "Jobs in queues that are not done, and dead ones, by state, in all the database",
    label: "state",
    read: async () => {
      const { scheduled, pending, leased, failed } = (await db.query.one<Levels>(jobLevels))!;
      return { SCHEDULED: scheduled ?? 0, PENDING: pending ?? 0, LEASED: leased ?? 0, FAILED: failed ?? 0 };
    },
  });
  metrics.gauge({
    name: "moltwire_queue_oldest_seconds",
    help: "Since when the oldest job that can be claimed could be, in all the database",
    read: async () => {
      const row = await db.query.one<{ oldest_ms: number | null }>(oldestReady);
      return row?.oldest_ms ? Math.max(0, clock.now() - row.oldest_ms) / 1_000 : 0;
    },
  });
  metrics.gauge({
    name: "moltwire_schedules_due",
    help: "Schedules that are due and not dealt with yet, up to 1,000, in all the database",
    read: async () => (await db.query.one<{ n: number }>(overdue(clock.now())))!.n,
  });
}

type Levels = Record<"scheduled" | "pending" | "leased" | "failed", number | null>;

/** The counts that are kept anyway: a few rows for each queue, whatever the number of jobs. The queue '' counts the organisation. */
const jobLevels = sql`
  select cast(sum(scheduled) as bigint) as scheduled, cast(sum(pending) as bigint) as pending, cast(sum(leased) as bigint) as leased,
    cast(sum(failed) as bigint) as failed
  from queue_level where queue <> ''`;

/**
 * The first pending job of each organisation, by the index of lists: it is the one that was submitted first. `between` and not `=`:
 * PostgreSQL would see that only `seq` is left of the order, and walk the primary key.
 */
export const oldestReady = sql`
  select min(ready_ms) as oldest_ms from (
    select (select j.ready_ms from queue_job j where j.org_id = o.org_id and j.state + 0 between 2 and 2
      order by j.state + 0, j.seq limit 1) as ready_ms from organization o) firsts`;

export const overdue = (now: number) => sql`
  select count(*) as n from (select 1 as one from queue_schedule where due_ms is not null and due_ms <= ${now} limit 1000) counted`;
