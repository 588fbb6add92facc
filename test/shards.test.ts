import { expect, test } from "vitest";
import { agentsWithCapability } from "../src/bus/agent-store.ts";
import { findApproval } from "../src/bus/approval/store.ts";
import { budgetsOfTask } from "../src/bus/budget/budget-store.ts";
import { findUse, standingOfTask } from "../src/bus/budget/use-store.ts";
import { rateFor } from "../src/bus/cost/rate-store.ts";
import { listDeadLetters } from "../src/bus/dead-letter/dead-letter-store.ts";
import { listDecisions } from "../src/bus/policy/decision-store.ts";
import { loadPolicies, policySetRevision } from "../src/bus/policy/policy-store.ts";
import { findTask, listTasks, lockTask, taskState } from "../src/bus/task-store.ts";
import {
  committedTraceSteps,
  findTrace,
  lastStep,
  listTraces,
  readSteps,
  readTaskSteps,
} from "../src/bus/trace-store.ts";
import { type Sql, sql } from "../src/db/db.ts";
import { readStanding } from "../src/exchange/ledger/store.ts";
import { readChanges as readMemoryChanges } from "../src/memory/log-store.ts";
import { listEntries, readPlaces } from "../src/memory/store.ts";
import { rowsToSeal } from "../src/ops/audit-chain-store.ts";
import { listAudit } from "../src/ops/audit-store.ts";
import { logFloor } from "../src/ops/log-floor.ts";
import { lastEvent, readEvents } from "../src/ops/outbox.ts";
import { oldTraces, removeDecisions, removeEvents } from "../src/ops/retention-store.ts";
import {
  bestQueues,
  claimableFrom,
  dueQueues,
  lockBest,
  promoteDue,
  takeBest,
  takeLocked,
} from "../src/queue/claim-store.ts";
import { listJobs } from "../src/queue/list-store.ts";
import { levelsNamed } from "../src/queue/tally.ts";
import { readStretch, takeSequence } from "../src/relay/log-store.ts";
import { findMessage, listMessages, markDelivered, markRead } from "../src/relay/message-store.ts";
import { subscribers } from "../src/webhook/fan-out.ts";
import { dialects, start } from "./harness.ts";

const org = "org_a";
const at = { xid: 0, seq: 400_000 };
const trace = "0".repeat(32);
const log = { orgId: org, logId: "agt_a" };
const memory = { orgId: org, memoryId: "agt_a" };
const entry = { namespace: "n", key: "k" };
const page = { messages: 64, bytes: 262_144 };
const taking = { orgId: org, workerAgentId: "a", token: "t", stream: "", leaseMs: 1_000, now: 5_000 };
const nobody = { state: 0, agentId: "", contractId: "", traceId: "" };
const anything = { verdict: 0, agentId: "", action: "", resource: "", policyId: "", taskId: "", traceId: "" };
const anyLetter = {
  ...{ taskId: "", traceId: "", callerAgentId: "", targetAgentId: "", contractId: "", contractVersion: "" },
  ...{ reason: 0, state: 0, startMs: null, endMs: null },
};

/** What a server does with every request, with every piece of work, and in every feed. */
const hot: readonly (readonly [string, (tx: never) => Promise<unknown>])[] = [
  ["a task", (tx) => findTask(tx, org, "tsk_a")],
  ["holding a task", (tx) => lockTask(tx, org, "tsk_a")],
  ["how a task stands", (tx) => taskState(tx, org, "tsk_a")],
  ["a page of tasks", (tx) => listTasks(tx, org, nobody, ["tsk_z"], 51)],
  ["a page of an agent's tasks", (tx) => listTasks(tx, org, { ...nobody, agentId: "agt_a", state: 4 }, ["tsk_z"], 51)],
  [
    "the agents of a capability",
    (tx) => agentsWithCapability(tx, org, { capability: "c", onlyAgentId: "", tier: 4, fit: true }, 250),
  ],
  ["the revision of policies", (tx) => policySetRevision(tx, org)],
  ["policies", (tx) => loadPolicies(tx, org)],
  ["the budgets of a task", (tx) => budgetsOfTask(tx, org, [{ scope: 1, subjectIds: ["agt_a", "*"] }])],
  ["what is used of a budget", (tx) => findUse(tx, { orgId: org, budgetId: "bdg_a", subjectId: "agt_a" })],
  ["how the budgets of a task stand", (tx) => standingOfTask(tx, org, "tsk_a")],
  ["the rate of an attempt", (tx) => rateFor(tx, org, "agt_a", "m", 1)],
  ["an approval", (tx) => findApproval(tx, org, "apr_a")],
  ["an account", (tx) => readStanding(tx, { orgId: org, accountId: "wallet" }, 5)],
  ["following steps", (tx) => readSteps(tx, org, at, 256)],
  ["following a task", (tx) => readTaskSteps(tx, org, trace, "tsk_a", at, 256)],
  ["the steps of a trace", (tx) => committedTraceSteps(tx, org, trace, at, 256)],
  ["a trace", (tx) => findTrace(tx, org, trace)],
  ["a page of traces", (tx) => listTraces(tx, org, { openerAgentId: "", contractId: "" }, [5, trace], 51)],
  ["where the steps end", (tx) => lastStep(tx, org)],
  ["following events", (tx) => readEvents(tx, org, at, 256)],
  ["where the events end", (tx) => lastEvent(tx, org)],
  ["where a log begins", (tx) => logFloor(tx, org, "events")],
  ["the webhooks of an event", (tx) => subscribers(tx, { orgId: org, type: "task.completed", agentId: "agt_a" })],
  ["a page of the audit log", (tx) => listAudit(tx, org, [0, 400_000], 51)],
  ["audit rows to chain", (tx) => rowsToSeal(tx, { ...at, org_id: org }, 256)],
  ["a page of decisions", (tx) => listDecisions(tx, org, anything, [1, "dec_z"], 51)],
  ["a page of dead letters", (tx) => listDeadLetters(tx, org, anyLetter, undefined, 51)],
  ["claiming: the best of a queue", (tx) => takeBest(tx, taking, "q")],
  ["claiming: the best of many", (tx) => bestQueues(tx, org, ["a", "b"], 100)],
  ["claiming: holding", (tx) => lockBest(tx, org, "q", 100)],
  ["claiming: taking", (tx) => takeLocked(tx, taking, [1, 2, 3])],
  ["claiming: what is due", (tx) => dueQueues(tx, org, ["a", "b"], 5_000)],
  ["claiming: promoting", (tx) => promoteDue(tx, org, "q", 5_000, 100)],
  ["waiting for a job", (tx) => claimableFrom(tx, org, ["a", "b"])],
  ["a page of jobs", (tx) => listJobs(tx, org, { queue: "q", states: [2, 3] }, [9_000], 51)],
  ["how queues stand", (tx) => levelsNamed(tx, org, new Set(["a", "b"]))],
  ["following messages", (tx) => readStretch(tx, log, 500, page)],
  ["a place in a log", (tx) => takeSequence(tx, log, 1)],
  [
    "a page of messages",
    (tx) => listMessages(tx, log, { newest: false, unreadOnly: false, from: 5, after: 500, until: 900 }, page),
  ],
  ["a message", (tx) => findMessage(tx, org, "msg_a")],
  ["receipts", (tx) => markDelivered(tx, log, [1, 2, 3], 1)],
  ["reading", (tx) => markRead(tx, log, ["msg_1"], 1)],
  ["entries of a memory", (tx) => readPlaces(tx, memory, [entry, entry], true)],
  [
    "a page of entries",
    (tx) =>
      listEntries(
        tx,
        memory,
        { namespace: "n", prefix: "k", byTime: false, publicOnly: false, withValues: true },
        ["ka"],
        1,
        51,
      ),
  ],
  ["following a memory", (tx) => readMemoryChanges(tx, memory, 9, 64)],
  ["removing old events", (tx) => removeEvents(tx, org, 5)],
  ["removing old decisions", (tx) => removeDecisions(tx, org, 5)],
  ["removing old traces", (tx) => oldTraces(tx, org, 5, [0, ""])],
];

/** Tables that every shard has a copy of: few rows that change seldom. See docs/scaling.md. */
const reference: ReadonlySet<string> = new Set(["lease"]);

type Plan = { readonly Plans?: readonly Plan[]; readonly [name: string]: unknown };

const nodesOf = (plan: Plan): Plan[] => [plan, ...(plan.Plans ?? []).flatMap(nodesOf)];
const reads = ["Seq Scan", "Index Scan", "Index Only Scan", "Bitmap Heap Scan", "Tid Scan"];

/** The tables that a plan reads neither where the organisation is a constant, nor where it is that of a row that the plan has found so. */
const strangersIn = (plan: Plan): string[] =>
  nodesOf(plan)
    .filter((node) => reads.includes(node["Node Type"] as string) && !reference.has(node["Relation Name"] as string))
    .filter((node) => {
      const conditions = [node["Index Cond"], node["Recheck Cond"], node.Filter].filter(Boolean).join(" and ");
      return !/\borg_id = ('org_a'::text|\w+\.org_id)/.test(conditions);
    })
    .map(
      (node) =>
        `${node["Node Type"]} on ${node["Relation Name"]}: ${JSON.stringify(node["Index Cond"] ?? node.Filter ?? "")}`,
    );

test.runIf(dialects.includes("postgres"))(
  "every hot query is of one shard: each table that it reads is read where org_id is the caller's",
  async () => {
    await using world = await start("postgres");
    const db = world.server.app.db;
    const wrong: string[] = [];
    await db.tx(async (tx) => {
      // By index as it is with many rows; there are none here.
      await tx.script("set local enable_seqscan = off");
      const plansOf = async (send: (tx: never) => Promise<unknown>) => {
        const sent: Sql[] = [];
        const recorder = {
          dialect: tx.dialect,
          all: async (q: Sql) => [void sent.push(q)].slice(1),
          one: async (q: Sql) => void sent.push(q),
          run: async (q: Sql) => sent.push(q) * 0,
        };
        await send(recorder as never);
        const plans: Plan[] = [];
        for (const q of sent) {
          const row = await tx.one<{ "QUERY PLAN": string | [{ Plan: Plan }] }>(
            sql`explain (format json, costs off) ${q}`,
          );
          const found = row!["QUERY PLAN"];
          plans.push((typeof found === "string" ? (JSON.parse(found) as [{ Plan: Plan }]) : found)[0].Plan);
        }
        return plans;
      };
      for (const [what, send] of hot) {
        const plans = await plansOf(send);
        expect(plans.length, what).toBeGreaterThan(0);
        wrong.push(...plans.flatMap(strangersIn).map((line) => `${what}: ${line}`));
      }
      // What reads across organisations is seen.
      const across = await plansOf((other: never) =>
        (other as typeof tx).all(sql`select 1 from task where task_id = ${"tsk_a"}`),
      );
      expect(across.flatMap(strangersIn)).toHaveLength(1);
    });
    expect(wrong).toEqual([]);
  },
);
