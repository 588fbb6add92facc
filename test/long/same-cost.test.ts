/**
 * What a claim and the feeds read on PostgreSQL, in buffers, with few rows and with many. With SAME_COST_ROWS=1000000 among so many; 50,000 unless told.
 */
import { expect, test } from "vitest";
import { readSteps, readTaskSteps } from "../../src/bus/trace-store.ts";
import { type Db, type Sql, sql, type Tx } from "../../src/db/db.ts";
import { readEvents } from "../../src/ops/outbox.ts";
import { claimableFrom, dueQueues, lockBest, takeBest } from "../../src/queue/claim-store.ts";
import { readStretch } from "../../src/relay/log-store.ts";
import { dialects, start } from "../harness.ts";

const few = 1_000;
const many = Number(process.env.SAME_COST_ROWS ?? 50_000);
const orgId = "org_a";
/** An index with a thousand times the rows is one or two levels higher, and a query descends it a few times. */
const higher = 2;
const page = 64;
/** Rows of one statement, which has a time. */
const step = 50_000;

test.runIf(dialects.includes("postgres"))(
  `claims and feeds read as much among ${many} rows as among ${few}`,
  async () => {
    await using world = await start("postgres");
    const { db } = world.server.app;
    await fill(db, 1, few);
    await analyze(db);
    const before = await measure(db, few);
    for (let from = few + 1; from <= many; from += step) await fill(db, from, Math.min(many, from + step - 1));
    await analyze(db);
    const after = await measure(db, many);
    for (const [what, { buffers, descents }] of Object.entries(after)) {
      const first = before[what]!;
      console.log(`${what}: ${first.buffers} buffers at ${few} rows, ${buffers} at ${many}`);
      expect(buffers, what).toBeLessThanOrEqual(first.buffers + higher * Math.max(descents, first.descents));
    }
  },
  1_800_000,
);

/** Rows from one number to another in each of the logs, and jobs in one queue. */
async function fill(db: Db, from: number, to: number): Promise<void> {
  const numbers = sql`generate_series(${from}::bigint, ${to}::bigint) as numbers(n)`;
  const body = new Uint8Array(100);
  const fills: Sql[] = [
    sql`insert into queue_job (org_id, job_id, queue, state, priority, max_attempts, attempts, attempt_limit, redrives, backoff_ms, max_backoff_ms,
        unique_key, tags, submitter_agent_id, worker_agent_id, lease_token, lease_stream, lease_ms, cancel_requested, trace_id, span_id, schedule_id,
        create_ms, run_ms, ready_ms, end_ms)
      select ${orgId}, 'job_' || n, 'q', 2, 1 + n % 10, 5, 0, 5, 0, 1000, 1000, '', '{}', '', '', '', '', 0, 0, '', '', '', 0, 0, 0, null from ${numbers}`,
    sql`insert into queue_job_data (org_id, job_id, payload) select ${orgId}, 'job_' || n, ${body} from ${numbers}`,
    sql`insert into relay_message (org_id, log_id, sequence, message_id, sender_agent_id, sender_org_id, label, thread_id, size_bytes, create_ms, expire_ms, delivered_ms, read_ms, unread)
      select ${orgId}, 'agt_a', n, 'msg_' || n, 'agt_b', '', 'direct', '', 100, n, null, null, null, 1 from ${numbers}`,
    sql`insert into relay_log (org_id, log_id, head, floor, messages, bytes) values (${orgId}, 'agt_a', ${to}, 0, ${to}, ${100 * to})
      on conflict (org_id, log_id) do update set head = excluded.head, messages = excluded.messages, bytes = excluded.bytes`,
    sql`insert into relay_body (org_id, log_id, sequence, body) select ${orgId}, 'agt_a', n, ${body} from ${numbers}`,
    sql`insert into outbox (org_id, xid, event_id, type, agent_id, time_ms, trace_id, payload)
      select ${orgId}, 0, 'evt_' || n, 'task.completed', '', n, '', ${body} from ${numbers}`,
    sql`insert into trace (org_id, trace_id, contract_id, opener_agent_id, start_ms) select ${orgId}, 'trace' || (n / 10), '', '', min(n) from ${numbers} group by n / 10 on conflict do nothing`,
    sql`insert into trace_event (org_id, xid, trace_id, task_id, kind, caller_agent_id, target_agent_id, contract_id, event_id, body)
      select ${orgId}, 0, 'trace' || (n / 10), 'tsk_' || (n / 10), 1, '', '', '', 'e' || n, ${body} from ${numbers}`,
  ];
  for (const q of fills) await db.tx((tx) => tx.run(q));
}

async function analyze(db: Db): Promise<void> {
  for (const table of [
    "queue_job",
    "queue_job_data",
    "relay_message",
    "relay_log",
    "relay_body",
    "outbox",
    "trace",
    "trace_event",
  ])
    await db.tx((tx) => tx.script(`analyze ${table}`));
}

type Plan = {
  readonly "Shared Hit Blocks"?: number;
  readonly "Shared Read Blocks"?: number;
  readonly "Node Type": string;
  readonly "Actual Loops"?: number;
  readonly Plans?: readonly Plan[];
};
type Cost = { readonly buffers: number; readonly descents: number };

/** Near the end of each log, where feeds are; nothing is changed. */
async function measure(db: Db, last: number): Promise<Record<string, Cost>> {
  const taking = { orgId, workerAgentId: "a", token: "t", stream: "", leaseMs: 1_000, now: 5_000 };
  const end = (await db.query.one<{ events: number; steps: number }>(
    sql`select (select max(seq) from outbox) as events, (select max(seq) from trace_event) as steps`,
  ))!;
  const traceId = `trace${(last - 20) / 10}`;
  const statements: Record<string, (tx: Tx) => Promise<unknown>> = {
    "ClaimJobs, the best job": (tx) => takeBest(tx, taking, "q"),
    "ClaimJobs, 64 of them": (tx) => lockBest(tx, orgId, "q", page),
    "ClaimJobs, what is due": (tx) => dueQueues(tx, orgId, ["q", "r"], 5_000),
    "ClaimJobs, whether there is one": (tx) => claimableFrom(tx, orgId, ["q", "r"]),
    "the feed of messages": (tx) =>
      readStretch(tx, { orgId, logId: "agt_a" }, last - page, { messages: page, bytes: 262_144 }),
    "the feed of events": (tx) => readEvents(tx, orgId, { xid: 0, seq: end.events - page }, page),
    "the feed of steps": (tx) => readSteps(tx, orgId, { xid: 0, seq: end.steps - page }, page),
    "the feed of a task": (tx) =>
      readTaskSteps(tx, orgId, traceId, traceId.replace("trace", "tsk_"), { xid: 0, seq: 0 }, page),
  };
  const costs: Record<string, Cost> = {};
  for (const [what, send] of Object.entries(statements)) costs[what] = await costOf(db, send);
  return costs;
}

const undone = new Error("undone");

async function costOf(db: Db, send: (tx: Tx) => Promise<unknown>): Promise<Cost> {
  let cost: Cost = { buffers: 0, descents: 0 };
  const measured = db.tx(async (tx) => {
    const recorder = (run: (q: Sql) => Promise<void>) =>
      ({
        dialect: tx.dialect,
        all: async (q: Sql) => {
          await run(q);
          return [];
        },
        one: async (q: Sql) => run(q),
        run: async (q: Sql) => {
          await run(q);
          return 0;
        },
      }) as unknown as Tx;
    // Twice: the first reads what the second has in memory, and marks rows as visible.
    for (let nth = 0; nth < 2; nth++) {
      cost = { buffers: 0, descents: 0 };
      await tx.script("savepoint nth");
      // As it is with many rows; a few are sooner read as a whole.
      await tx.script(
        "set local enable_seqscan = off; set local enable_hashjoin = off; set local enable_mergejoin = off",
      );
      await send(
        recorder(async (q) => {
          const row = await tx.one<{ "QUERY PLAN": string | [{ Plan: Plan }] }>(
            sql`explain (analyze, buffers, format json) ${q}`,
          );
          const found = row!["QUERY PLAN"];
          const [{ Plan: plan }] = typeof found === "string" ? (JSON.parse(found) as [{ Plan: Plan }]) : found;
          const nodes = nodesOf(plan);
          cost = {
            buffers: cost.buffers + (plan["Shared Hit Blocks"] ?? 0) + (plan["Shared Read Blocks"] ?? 0),
            descents:
              cost.descents +
              nodes.reduce(
                (sum, node) => sum + (/Scan|Insert|Modify/.test(node["Node Type"]) ? (node["Actual Loops"] ?? 1) : 0),
                0,
              ),
          };
        }),
      );
      await tx.script("rollback to savepoint nth");
    }
    throw undone;
  });
  await measured.catch((error: unknown) => {
    if (error !== undone) throw error;
  });
  return cost;
}

const nodesOf = (plan: Plan): Plan[] => [plan, ...(plan.Plans ?? []).flatMap(nodesOf)];
