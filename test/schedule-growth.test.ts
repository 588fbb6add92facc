import { describe, expect, test } from "vitest";
import { sql } from "../src/db/db.ts";
import { oldestReady, overdue } from "../src/ops/queue-metrics.ts";
import { standingOf } from "../src/queue/schedule/standing.ts";
import * as store from "../src/queue/schedule/store.ts";
import { dialects, fakeClock, start, type World } from "./harness.ts";
import { plansOf } from "./queue-fixtures/plans.ts";
import { create, ticked } from "./queue-fixtures/schedules.ts";

/** Rows for the plans; with FULL a million, among which a look is timed. */
const full = Boolean(process.env.FULL);
const rows = full ? 1_000_000 : 20_000;
const dueAtOnce = full ? 10_000 : 300;
const minuteMs = 60_000;

/** Copies a schedule many times, each due a little later, far ahead; with a time that each has made a job for. */
async function fill({ server: { app } }: World, scheduleId: string): Promise<void> {
  const { db } = app;
  const numbers =
    db.engine === "sqlite"
      ? sql`(with recursive n(n) as (select 1 union all select n + 1 from n where n < ${rows}) select n from n) numbers`
      : sql`generate_series(1::bigint, ${rows}::bigint) as numbers(n)`;
  const copied = sql`cron, time_zone, job, disabled, misfire, catch_up_ms, overlap, jitter_ms, revision, create_ms, update_ms, seen_ms, last_job_id,
    run_count, missed_count, skipped_count`;
  await db.tx(async (tx) => {
    await tx.run(sql`
      insert into queue_schedule (org_id, schedule_id, agent_id, name, next_ms, due_ms, ${copied})
      select org_id, ${"sch_"} || (1000000000 + n), agent_id, '', 8000000000000 + n, 8000000000000 + n, ${copied}
      from queue_schedule, ${numbers} where schedule_id = ${scheduleId}`);
    await tx.run(sql`
      insert into queue_schedule_run (org_id, schedule_id, nominal_ms)
      select org_id, schedule_id, next_ms from queue_schedule where next_ms > 8000000000000`);
    // Every other of the jobs is a schedule's, and every third of all is unfinished.
    await tx.run(sql`
      insert into queue_job (org_id, job_id, queue, state, priority, max_attempts, attempts, attempt_limit, redrives, backoff_ms, max_backoff_ms,
        unique_key, tags, submitter_agent_id, worker_agent_id, lease_token, lease_stream, lease_ms, cancel_requested, trace_id, span_id, schedule_id,
        create_ms, run_ms, ready_ms)
      select org_id, ${"job_"} || n, 'q', case n % 3 when 0 then 2 else 4 end, 5, 5, 0, 5, 0, 1000, 1000, '', '{}', '', '', '', '', 0, 0, '', '',
        case n % 2 when 0 then ${"sch_"} || (1000000000 + n) else '' end, 0, 0, n
      from queue_schedule, ${numbers} where schedule_id = ${scheduleId}`);
  });
  if (db.engine === "postgres")
    await db.tx((tx) => tx.script("analyze queue_schedule; analyze queue_schedule_run; analyze queue_job"));
}

describe.each(dialects)("with many schedules on %s", (dialect) => {
  test("every statement goes along its index, and what is due is done at once", async () => {
    const clock = fakeClock(Date.parse("2026-06-01T00:00:30Z"));
    await using world = await start(dialect, { clock });
    const org = await world.org();
    const { agentId, as } = await org.agent();
    const { scheduleId } = await create(as, "* * * * *");
    await fill(world, scheduleId);
    const { orgId } = org;
    const ref = { org_id: orgId, schedule_id: "sch_1000000007" };
    const { db } = world.server.app;
    const statements: [string, (tx: never) => Promise<unknown>, RegExp][] = [
      ["next", (tx) => store.nextDue(tx), /queue_schedule_due/],
      ["due", (tx) => store.dueSchedules(tx, clock.now(), 128), /queue_schedule_due/],
      ["lock", (tx) => store.lockDue(tx, ref, clock.now()), /queue_schedule_pkey|autoindex_queue_schedule_1/],
      ["own", (tx) => store.listSchedules(tx, orgId, agentId, "sch_1000009999", 51), /queue_schedule_agent|pkey/],
      ["all", (tx) => store.listSchedules(tx, orgId, "", "sch_1000009999", 51), /queue_schedule_pkey|autoindex_queue/],
      ["taken", (tx) => store.takenTimes(tx, ref, 8_000_000_000_000, 9_000_000_000_000), /run_pkey|PRIMARY KEY/],
      ["forget", (tx) => store.deleteOldRuns(tx, 5_000, 500), /queue_schedule_run_age/],
      ["unfinished", (tx) => store.hasUnfinished(tx, ref), /queue_job_schedule/],
      ["standing", (tx) => standingOf(tx, orgId, agentId, 1), /api_key/],
      ["overdue", (tx) => (tx as typeof db.query).one(overdue(clock.now())), /queue_schedule_due/],
      ["oldest", (tx) => (tx as typeof db.query).one(oldestReady), /queue_job_state/],
    ];
    for (const [name, send, index] of statements) {
      const plan = await plansOf(db.query, send);
      expect(plan, name).toMatch(index);
      expect(plan, name).not.toMatch(/SCAN queue_schedule(_run)?( |$)(?!.*INDEX)|Seq Scan on queue_schedule/);
      expect(plan, name).not.toMatch(/Sort|TEMP B-TREE/);
    }

    clock.advance(minuteMs);
    await ticked(world);
    const looks: number[] = [];
    for (let n = 0; n < 200; n++) {
      const began = performance.now();
      await store.nextDue(db.query);
      looks.push((performance.now() - began) * 1_000);
    }
    await db.tx((tx) =>
      tx.run(sql`
        update queue_schedule set next_ms = ${clock.now() + minuteMs / 2}, due_ms = ${clock.now() + minuteMs / 2}
        where due_ms > 8000000000000 and due_ms <= ${8_000_000_000_000 + dueAtOnce}`),
    );
    const began = performance.now();
    clock.advance(minuteMs);
    await ticked(world);
    const tookMs = performance.now() - began;
    const made = await db.query.one<{ n: number }>(
      sql`select count(*) as n from queue_job where nominal_ms is not null`,
    );
    expect(made!.n).toBe(dueAtOnce + 2);
    const [median] = looks.toSorted((a, b) => a - b).slice(100);
    console.log(
      `${dialect}, ${rows} schedules: a look ${Math.round(median!)} µs; ${dueAtOnce} due at once in ${Math.round(tookMs)} ms`,
    );
  }, 600_000);
});
