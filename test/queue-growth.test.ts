import { describe, expect, test } from "vitest";
import { type Queryable, sql } from "../src/db/db.ts";
import {
  bestQueues,
  claimableFrom,
  dueQueues,
  lockBest,
  promoteDue,
  takeBest,
  takeLocked,
} from "../src/queue/claim-store.ts";
import { listDeadJobs, listJobs, oldestPending } from "../src/queue/list-store.ts";
import { deadToRedrive } from "../src/queue/redrive.ts";
import { hasDue, hasEndedLease } from "../src/queue/sweep.ts";
import { dialects, start, unique, type World } from "./harness.ts";
import { leaseOf } from "./queue-fixtures/jobs.ts";
import { plansOf } from "./queue-fixtures/plans.ts";

/** Rows for the plans; with FULL also what a claim takes at 1,000 and at 1,000,000. */
const planRows = 20_000;
const full = Boolean(process.env.FULL);
const oneTo100 = Array.from({ length: 100 }, (_, n) => n + 1);
/** The primary keys, as plans call them. */
const jobByKey = /queue_job_pkey|INTEGER PRIMARY KEY/;
const dataByKey = /queue_job_data_pkey|autoindex_queue_job_data_1/;

/** Puts pending, scheduled (every tenth) and dead (every tenth) jobs into a queue, by one statement. */
async function fill(world: World, orgId: string, queue: string, from: number, to: number): Promise<void> {
  const { db } = world.server.app;
  const numbers =
    db.engine === "sqlite"
      ? sql`(with recursive n(n) as (select ${from} union all select n + 1 from n where n < ${to - 1}) select n from n) numbers`
      : sql`generate_series(${from}::bigint, ${to - 1}::bigint) as numbers(n)`;
  await db.tx((tx) =>
    tx.run(sql`
      insert into queue_job (org_id, job_id, queue, state, priority, max_attempts, attempts, attempt_limit, redrives, backoff_ms, max_backoff_ms,
        unique_key, tags, submitter_agent_id, worker_agent_id, lease_token, lease_stream, lease_ms, cancel_requested, trace_id, span_id, schedule_id,
        create_ms, run_ms, ready_ms, end_ms)
      select ${orgId}, ${`${queue}-`} || n, ${queue}, case n % 10 when 8 then 1 when 9 then 5 else 2 end, 1 + n % 10, 5, 0, 5, 0, 1000, 1000,
        '', '{}', '', '', '', '', 0, 0, '', '', '', 0, 4000000000000 + n, 0, case n % 10 when 9 then n end
      from ${numbers}`),
  );
  if (db.engine === "postgres") await db.tx((tx) => tx.run(sql`analyze queue_job`));
}

const sweepLooks = async (db: Queryable, now: number): Promise<void> => {
  await hasDue(db, now);
  await hasEndedLease(db, now);
};

describe.each(dialects)("with many jobs on %s", (dialect) => {
  test("every statement of a claim and of a list goes along its index", async () => {
    await using world = await start(dialect);
    const org = await world.org();
    const queue = unique("many");
    await fill(world, org.orgId, queue, 0, planRows);
    const db = world.server.app.db.query;
    const { orgId } = org;
    const queues = [queue, "b", "c"];
    const taking = { orgId, workerAgentId: "a", token: "t", stream: "", leaseMs: 1_000, now: 5_000 };
    const statements: [string, (tx: never) => Promise<unknown>, RegExp[]][] = [
      ["take", (tx) => takeBest(tx, taking, queue), [/queue_job_pending/]],
      ["take the best", (tx) => lockBest(tx, orgId, queue, 100), [/queue_job_pending/, dataByKey]],
      ["take what is locked", (tx) => takeLocked(tx, taking, oneTo100), [jobByKey]],
      ["best of 20", (tx) => bestQueues(tx, orgId, queues, 100), [/queue_job_pending/]],
      ["due", (tx) => dueQueues(tx, orgId, queues, 5_000), [/queue_job_waiting/]],
      ["promote", (tx) => promoteDue(tx, orgId, queue, 5_000, 100), [/queue_job_waiting/]],
      ["wait", (tx) => claimableFrom(tx, orgId, queues), [/queue_job_pending/, /queue_job_waiting/]],
      ["oldest", (tx) => oldestPending(tx, orgId, queue), [/queue_job_pending/]],
      ["list", (tx) => listJobs(tx, orgId, { queue, states: [2, 3] }, [9_000], 51), [/queue_job_listed/]],
      ["list all", (tx) => listJobs(tx, orgId, { queue: "", states: [2, 3] }, [9_000], 51), [/queue_job_state/]],
      ["dead", (tx) => listDeadJobs(tx, orgId, queue, [9_000, 1], 51), [/queue_job_dead_queue/]],
      ["all dead", (tx) => listDeadJobs(tx, orgId, "", [9_000, 1], 51), [/queue_job_dead /]],
      ["redrive", (tx) => deadToRedrive(tx, orgId, queue, 100), [/queue_job_dead_queue/]],
      ["sweep", (tx) => sweepLooks(tx, 5_000), [/queue_job_due/, /queue_job_lease/]],
    ];
    for (const [name, send, indexes] of statements) {
      const plan = await plansOf(db, send);
      for (const index of indexes) expect(plan, name).toMatch(index);
      expect(plan, name).not.toMatch(/SCAN queue_job|Seq Scan on queue_job/);
      // Sorting is of a few rows that walks gave, never of what waits.
      if (name.startsWith("take")) expect(plan, name).not.toMatch(/Sort|TEMP B-TREE/);
    }
  });

  test.skipIf(!full)(
    "a claim takes as long among 1,000,000 jobs as among 1,000",
    async () => {
      await using small = await start(dialect);
      await using large = await start(dialect);
      const sides = [await side(small, 1_000), await side(large, 1_000_000)];
      // In turn, so that what else the machine does falls on both alike.
      const medians = async (queues: number) => {
        const times: number[][] = [[], []];
        for (let n = 0; n < claims; n++)
          for (const [which, { claimOne }] of sides.entries()) times[which]!.push(await claimOne(queues));
        return times.map((each) => Math.round(each.toSorted((a, b) => a - b)[claims / 2]! * 1_000));
      };
      await medians(1); // warm
      for (const queues of [1, 20]) {
        const [few, many] = await medians(queues);
        console.log(
          `${dialect}, ${queues} queues: median ${few} µs at 1,000, ${many} µs at 1,000,000: ${(few! / many!).toFixed(2)}`,
        );
        expect(few! / many!).toBeGreaterThan(0.7);
      }
    },
    600_000,
  );
});

const claims = 300;

/** A server with so many pending jobs in one queue, and a claim on it beside empty queues that tells how long it took, in milliseconds. */
async function side(world: World, pending: number) {
  const org = await world.org();
  const { as } = await org.agent();
  const queue = unique("big");
  const rows = (pending * 10) / 8; // of ten two are not pending
  const step = Math.min(rows, 125_000);
  for (let from = 0; from < rows; from += step) await fill(world, org.orgId, queue, from, from + step);
  const names = [queue, ...Array.from({ length: 19 }, (_, n) => `${queue}-${n}`)];
  const claimOne = async (queues: number): Promise<number> => {
    const began = performance.now();
    const { jobs } = await as.queues.claimJobs({ queues: names.slice(0, queues) });
    const tookMs = performance.now() - began;
    expect(jobs).toHaveLength(1);
    await as.queues.completeJob(leaseOf(jobs[0]!));
    return tookMs;
  };
  return { claimOne };
}
