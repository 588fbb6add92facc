import { describe, expect, test } from "vitest";
import { sql } from "../src/db/db.ts";
import { oldestInChain } from "../src/ops/audit-chain-store.ts";
import { proveAudit } from "../src/ops/audit-proof.ts";
import {
  oldestEvents,
  oldestSteps,
  oldTraces,
  organizationsWithOld,
  removeDeadLetters,
  removeDecisions,
  removeEvents,
  removeTraces,
} from "../src/ops/retention-store.ts";
import { contract, echoEndpoint, stateOf, submit } from "./bus-fixtures/bus.ts";
import { pullEndpoint } from "./bus-fixtures/instance.ts";
import { type Clients, dialects, eventually, fakeClock, refusal, start, type World } from "./harness.ts";
import { plansOf } from "./queue-fixtures/plans.ts";

const dayMs = 86_400_000;
const nowhere = { kind: { case: "http", value: { url: "http://127.0.0.1:9/" } } } as const;

/** Lets retention work until nothing is left for it to do, as far as the horizon of PostgreSQL lets it. */
const kept = (world: World, clock: { advance(ms: number): void }, look: () => Promise<boolean>) =>
  eventually(async () => {
    clock.advance(600_000);
    await world.server.app.retention.round();
    return look();
  });

const eventsOf = async (by: Clients, token = "") =>
  (await by.events.listEvents({ pageSize: 250, pageToken: token })).events;
const traceIsGone = (by: Clients, traceId: string) =>
  by.traces.getTrace({ traceId }).then(
    () => false,
    () => true,
  );

describe.each(dialects)("%s", (dialect) => {
  test("what is old goes: traces that are over with all of their steps, events, decisions; a cursor into what is gone says so, and none else", async () => {
    const clock = fakeClock();
    await using world = await start(dialect, { clock, deadLetterRetentionDays: 0 });
    const org = await world.org();
    const by = (await org.agent()).as;
    await org.agent({ capabilities: ["say"], endpoint: echoEndpoint });
    await org.agent({ capabilities: ["break"], endpoint: nowhere });
    await org.agent({ capabilities: ["wait"], endpoint: pullEndpoint });
    const [says, breaks, waits] = [
      await contract(org, { capability: "say" }),
      await contract(org, { capability: "break" }),
      await contract(org, { capability: "wait" }),
    ];
    const { admin } = org;
    const open = await submit(by, waits, { returnImmediately: true });
    const old = [await submit(by, says), await submit(by, says), await submit(by, breaks)];
    expect(old.map(stateOf)).toEqual(["COMPLETED", "COMPLETED", "FAILED"]);
    // As if it could wait for a year: what has not ended is kept, however old, also where all around it goes.
    await world.settled();
    await world.server.app.db.tx((tx) =>
      tx.run(sql`update task set deadline_ms = null where task_id = ${open.taskId}`),
    );
    await world.server.app.db.tx((tx) => tx.run(sql`delete from pulled_task where task_id = ${open.taskId}`));
    const oldEvents = await eventsOf(admin);
    expect(oldEvents.length).toBeGreaterThan(2);
    const firstCursor = oldEvents[0]!.cursor;
    const lastCursor = oldEvents.at(-1)!.cursor;
    const page = await admin.events.listEvents({ pageSize: 1 });
    const { events: steps } = await admin.traces.getTrace({ traceId: old[0]!.traceId });
    const { decisions } = await admin.policies.listDecisions({});
    expect(decisions.length).toBeGreaterThan(2);

    const isOld = ({ traceId }: { traceId: string }) => old.some((task) => task.traceId === traceId);

    clock.advance(89 * dayMs);
    await world.server.app.retention.round();
    expect((await eventsOf(admin)).filter(isOld)).toHaveLength(oldEvents.filter(isOld).length);

    clock.advance(2 * dayMs);
    const recent = await submit(by, says);
    await world.settled();
    await kept(world, clock, async () => {
      const events = await eventsOf(admin);
      const left = (await admin.policies.listDecisions({})).decisions;
      const gone = await Promise.all(old.map(({ traceId }) => traceIsGone(admin, traceId)));
      return !events.some(isOld) && gone.every(Boolean) && !left.some(({ taskId }) => taskId === old[0]!.taskId);
    });
    expect((await eventsOf(admin)).map(({ traceId }) => traceId)).toContain(recent.traceId);
    const left = await world.server.app.db.query.all<{ trace_id: string }>(
      sql`select distinct trace_id from trace_event where org_id = ${org.orgId}`,
    );
    expect(left.map(({ trace_id }) => trace_id).sort()).toEqual([recent.traceId, open.traceId].sort());
    // What says 0 is kept for ever, and the tasks themselves are.
    const letters = (await admin.deadLetters.listDeadLetters({})).deadLetters;
    expect(letters.map(({ taskId }) => taskId)).toContain(old[2]!.taskId);
    expect(stateOf((await admin.bus.getTask({ taskId: old[0]!.taskId })).task)).toBe("COMPLETED");

    // Cursors: one at the last event that is gone has missed nothing.
    for (const call of [
      () => eventsOf(admin, page.nextPageToken),
      () => first(admin.events.watchEvents({ afterCursor: firstCursor })),
      () => first(admin.traces.tailTraces({ afterCursor: steps[0]!.cursor })),
      () => first(admin.bus.watchTask({ taskId: old[0]!.taskId, afterCursor: steps[0]!.cursor })),
    ]) {
      const { reason, code } = await refusal(call());
      expect([reason, code]).toEqual(["CURSOR_EXPIRED", "OutOfRange"]);
    }
    const { metadata } = await refusal(first(admin.events.watchEvents({ afterCursor: firstCursor })));
    await first(admin.events.watchEvents({ afterCursor: metadata.oldest_cursor! }));
    for await (const { item } of admin.events.watchEvents({ afterCursor: lastCursor }))
      if (item.case === "event") {
        expect(isOld(item.value)).toBe(false);
        break;
      }
    // Whoever begins at the beginning may go on from there.
    const beginning = await first(admin.events.watchEvents({ fromStart: true }));
    await first(admin.events.watchEvents({ afterCursor: beginning!.cursor }));
    for await (const { event } of admin.traces.tailTraces({ fromStart: true })) {
      if (event.case !== "traceEvent") continue;
      expect(event.value.traceId).toBe(open.traceId);
      break;
    }

    // Another organisation's logs have lost nothing, and where nothing is left a cursor is still good.
    const idle = await world.org();
    const nothing = await first(idle.admin.traces.tailTraces({}));
    await first(idle.admin.traces.tailTraces({ afterCursor: nothing!.cursor }));

    const { details } = await world.operator.status.getStatus({});
    const told = Object.fromEntries(details!.retention.map(({ kind, days, removed }) => [kind, [days, removed > 0n]]));
    expect(told).toEqual({
      traces: [90, true],
      events: [90, true],
      decisions: [90, true],
      dead_letters: [0, false],
      audit: [0, false],
    });
    expect(await world.server.app.metrics.text()).toMatch(/moltwire_retention_removed_total\{kind="traces"\} [1-9]/);
  });

  test("the audit log is shortened only where its own setting says so, and what is left is proved from the hash of the last that went", async () => {
    const clock = fakeClock();
    await using world = await start(dialect, { clock, auditRetentionDays: 30 });
    const org = await world.org();
    const { db } = world.server.app;
    const audited = async (times: number) => {
      for (let nth = 0; nth < times; nth++) await contract(org);
    };
    const head = async () => (await org.admin.admin.getAuditHead({})).head!;
    const chained = () =>
      eventually(async () => {
        clock.advance(1_000);
        return (await org.admin.admin.getAuditHead({})).unsealed === 0;
      });
    await audited(5);
    await chained();
    const noted = await head();
    expect(noted).toMatchObject({ goneNumber: 0n, goneHash: "0".repeat(64) });
    clock.advance(31 * dayMs);
    await audited(3);
    await chained();
    await kept(world, clock, async () => (await head()).goneNumber > 0n);
    expect(await head()).toMatchObject({ goneNumber: noted.number, goneHash: noted.hash, number: noted.number + 3n });
    expect((await proveAudit(db.query)).faults).toEqual([]);
    const exported = await first(org.admin.admin.exportAuditEvents({}));
    expect(exported!.export).toMatchObject({ afterNumber: noted.number, afterHash: noted.hash });
    const { reason } = await refusal(first(org.admin.admin.exportAuditEvents({ afterNumber: noted.number - 1n })));
    expect(reason).toBe("CURSOR_EXPIRED");
    // Nothing else can be taken from it unseen.
    await db.tx((tx) =>
      tx.run(sql`delete from audit_event where org_id = ${org.orgId} and number = ${Number(noted.number) + 1}`),
    );
    expect((await proveAudit(db.query)).faults).toEqual([expect.stringContaining("is missing")]);
  });

  test("it goes along indexes and a bounded number at a time, however much there is", async () => {
    await using world = await start(dialect);
    const { db } = world.server.app;
    const { orgId } = await world.org();
    const rows = 20_000;
    const numbers =
      dialect === "sqlite"
        ? sql`(with recursive n(n) as (select 1 union all select n + 1 from n where n < ${rows}) select n from n) numbers`
        : sql`generate_series(1::bigint, ${rows}::bigint) as numbers(n)`;
    await db.tx(async (tx) => {
      await tx.run(sql`
        insert into outbox (org_id, xid, event_id, type, agent_id, time_ms, trace_id, payload)
        select ${orgId}, 0, 'evt_' || n, 'task.completed', '', n, '', ${new Uint8Array(10)} from ${numbers}`);
      await tx.run(sql`
        insert into trace (org_id, trace_id, contract_id, opener_agent_id, start_ms) select ${orgId}, 'trace' || n, '', '', n from ${numbers}`);
      await tx.run(sql`
        insert into trace_event (org_id, xid, trace_id, task_id, kind, caller_agent_id, target_agent_id, contract_id, event_id, body)
        select ${orgId}, 0, 'trace' || (1 + n / 2), '', 1, '', '', '', '', ${new Uint8Array(10)} from ${numbers}`);
      await tx.run(sql`
        insert into policy_decision (org_id, time_ms, decision_id, nth, policy_id, verdict, agent_id, action, resource, task_id, trace_id, body)
        select ${orgId}, n, 'dec_' || n, 0, '', 1, '', '', '', '', '', null from ${numbers}`);
      await tx.run(sql`
        insert into dead_letter (org_id, dead_letter_id, state, task_id, trace_id, caller_agent_id, target_agent_id, contract_id, contract_version, reason, create_ms, resolve_ms, resolved_by, resolve_note)
        select ${orgId}, 'dlq_' || n, 1, 'tsk_' || n, '', '', '', '', '', 1, n, null, '', '' from ${numbers}`);
    });
    if (dialect === "postgres")
      await db.tx((tx) =>
        tx.script(
          "analyze outbox; analyze trace; analyze trace_event; analyze policy_decision; analyze dead_letter; analyze task",
        ),
      );
    const early = 200;
    for (const [name, send] of [
      ["steps", (tx: never) => oldestSteps(tx, orgId, "trace7", 500)],
      [
        "removing steps",
        (tx: never) =>
          removeTraces(havingFound(tx, { trace_id: "trace7", start_ms: 7, over: 1, xid: 0, seq: 9 }), orgId, early, [
            0,
            "",
          ]),
      ],
      ["events", (tx: never) => removeEvents(havingFound(tx, { xid: 0, seq: 300, time_ms: 1 }), orgId, early)],
      ["oldest events", (tx: never) => oldestEvents(tx, orgId)],
      ["the audit log", (tx: never) => oldestInChain(tx, { org_id: orgId, gone_number: 0 }, 500)],
      ["a look at the audit log", (tx: never) => organizationsWithOld(tx, "audit", early, "", 500)],
      ["decisions", (tx: never) => removeDecisions(havingFound(tx, { time_ms: 100, id: "dec_100" }), orgId, early)],
      [
        "dead letters",
        (tx: never) => removeDeadLetters(havingFound(tx, { time_ms: 100, id: "dlq_100" }), orgId, early),
      ],
      ["traces", (tx: never) => oldTraces(tx, orgId, early, [0, ""])],
      ["a look at traces", (tx: never) => organizationsWithOld(tx, "traces", early, "", 500)],
      ["a look at events", (tx: never) => organizationsWithOld(tx, "events", early, "", 500)],
      ["a look at decisions", (tx: never) => organizationsWithOld(tx, "decisions", early, "", 500)],
      ["a look at dead letters", (tx: never) => organizationsWithOld(tx, "dead_letters", early, "", 500)],
    ] as const) {
      const plan = await plansOf(db.query, send as never);
      expect(plan, name).not.toMatch(
        /SCAN (outbox|audit_event|e|r|a|trace\w*|t|k|policy_decision|dead_letter)\b|Seq Scan on (outbox|audit_event|trace|policy_decision|dead_letter)/,
      );
    }
    const removed = await db.tx((tx) => removeTraces(tx, orgId, rows + 1, [0, ""]));
    expect(removed).toMatchObject({ more: true });
    expect(removed.rows).toBeLessThanOrEqual(500);
    expect((await db.tx((tx) => removeEvents(tx, orgId, rows + 1))).rows).toBe(500);
    const left = async () =>
      (await db.query.one<{ n: number }>(sql`
        select (select count(*) from outbox where org_id = ${orgId}) + (select count(*) from trace where org_id = ${orgId}) + (select count(*) from trace_event where org_id = ${orgId})
          + (select count(*) from policy_decision where org_id = ${orgId}) + (select count(*) from dead_letter where org_id = ${orgId}) as n`))!
        .n;
    await eventually(async () => {
      await world.server.app.retention.round();
      return (await left()) === 0;
    }, 240_000);
  }, 300_000);
});

/** As if each look had found this. */
const havingFound = (tx: never, row: object): never => {
  const recorder = tx as { all(q: unknown): Promise<unknown[]> };
  return { ...recorder, all: async (q: unknown) => [...(await recorder.all(q)), row] } as never;
};

const first = async <T>(messages: AsyncIterable<T>): Promise<T | undefined> => {
  for await (const message of messages) return message;
  return undefined;
};
