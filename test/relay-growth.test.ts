import { describe, expect, test } from "vitest";
import { type Queryable, type Sql, sql } from "../src/db/db.ts";
import { countStrangers, findAnywhere, grantsThatCover, wroteTo } from "../src/relay/across-store.ts";
import { isMember, joinedChannels, leaveAll, listChannels, listMembers } from "../src/relay/channel-store.ts";
import { removeRows } from "../src/relay/drop.ts";
import {
  anyDroppedGroup,
  dueFlights,
  endFlights,
  groupsWithOldDead,
  listDead,
  listGroups,
  lockDroppedGroup,
  messagesAt,
  nextDue,
  readDead,
  removeOldDead,
  removeSurplusDead,
  takeDead,
} from "../src/relay/group-store.ts";
import {
  findBegin,
  logAges,
  oldestMessages,
  readStretch,
  removeThrough,
  takeSequence,
} from "../src/relay/log-store.ts";
import {
  findMessage,
  findSentAbroad,
  firstUnread,
  listMessages,
  listSent,
  markDelivered,
  markRead,
  markReadThrough,
  newestOf,
} from "../src/relay/message-store.ts";
import { presencesOf } from "../src/relay/presence.ts";
import { dueDeliveries, dueMessages } from "../src/relay/sweep.ts";
import { dialects, start, type World } from "./harness.ts";

const messages = 20_000;

/** Puts messages into twenty inboxes, by one statement for each table; a tenth of them is not read. */
async function fill({ server: { app } }: World, orgId: string): Promise<void> {
  const { db } = app;
  const numbers =
    db.engine === "sqlite"
      ? sql`(with recursive n(n) as (select 0 union all select n + 1 from n where n < ${messages - 1}) select n from n) numbers`
      : sql`generate_series(0::bigint, ${messages - 1}::bigint) as numbers(n)`;
  await db.tx(async (tx) => {
    await tx.run(sql`
      insert into relay_message (org_id, log_id, sequence, message_id, sender_agent_id, sender_org_id, label, thread_id, size_bytes, create_ms, expire_ms, delivered_ms, read_ms, unread)
      select ${orgId}, 'agt_' || (n % 20), n / 20 + 1, 'msg_' || n, 'agt_' || (n % 7), case n % 9 when 0 then 'org_b' else '' end, 'direct', '', 10, n, case n % 50 when 0 then 4000000000000 + n end, null, null,
        case n % 10 when 0 then 1 else 0 end from ${numbers}`);
    await tx.run(sql`
      insert into relay_body (org_id, log_id, sequence, body) select org_id, log_id, sequence, ${new Uint8Array(10)} from relay_message`);
    await tx.run(sql`
      insert into relay_log (org_id, log_id, head, floor, messages, bytes) select org_id, log_id, max(sequence), 0, count(*), sum(size_bytes)
      from relay_message group by org_id, log_id`);
    await tx.run(sql`
      insert into relay_flight (org_id, log_id, group_name, sequence, deliveries, token, agent_id, due_ms, last)
      select org_id, log_id, 'g', sequence, 1, '', '', sequence, case sequence % 10 when 0 then 1 else 0 end from relay_message`);
    await tx.run(sql`
      insert into relay_dead (org_id, log_id, group_name, sequence, deliveries, agent_id, dead_ms, redriven, body)
      select org_id, log_id, 'g', sequence, 1, '', sequence, sequence % 2, body from relay_body`);
    await tx.run(sql`
      insert into relay_member (org_id, log_id, agent_id, join_ms) select org_id, log_id, message_id, 0 from relay_message`);
    await tx.run(sql`
      insert into relay_channel (org_id, name, log_id, description, owner_agent_id, members_only, members, revision, create_ms, update_ms)
      select org_id, message_id, message_id, '', '', 0, 0, 1, 0, 0 from relay_message`);
  });
  if (db.engine === "postgres") {
    const tables = ["message", "body", "log", "flight", "dead", "member", "channel"];
    await db.tx((tx) => tx.script(tables.map((table) => `analyze relay_${table};`).join("\n")));
  }
}

/** The plans of the statements that a function sends; what would change is not changed. */
async function plansOf(db: Queryable, send: (db: never) => Promise<unknown>): Promise<string> {
  const sent: Sql[] = [];
  const recorder = {
    dialect: db.dialect,
    all: async (q: Sql) => [void sent.push(q)].slice(1),
    one: async (q: Sql) => void sent.push(q),
    run: async (q: Sql) => [sent.push(q)].length,
    ring: () => {},
  };
  await send(recorder as never);
  const lines: string[] = [];
  for (const q of sent) {
    const plan = db.dialect.name === "sqlite" ? sql`explain query plan ${q}` : sql`explain ${q}`;
    for (const row of await db.all<Record<string, string>>(plan)) lines.push(row.detail ?? row["QUERY PLAN"] ?? "");
  }
  return lines.join("\n");
}

describe.each(dialects)("with many messages on %s", (dialect) => {
  test("no statement walks through a table, and none sorts one", async () => {
    await using world = await start(dialect);
    const { orgId } = await world.org();
    await fill(world, orgId);
    const db = world.server.app.db.query;
    const { app } = world.server;
    const log = { orgId, logId: "agt_3" };
    const ref = { ...log, group: "g" };
    const agent = { org_id: orgId, agent_id: "agt_3" };
    const walk = { newest: false, unreadOnly: false, from: 5, after: 500, until: 1_000_000 };
    const page = { messages: 64, bytes: 262_144 };
    const statements: [string, (tx: never) => Promise<unknown>][] = [
      ["following", (tx) => readStretch(tx, log, 500, page)],
      ["a place", (tx) => takeSequence(tx, log, 1)],
      ["the oldest", (tx) => oldestMessages(tx, log, 256)],
      ["removing the oldest", (tx) => removeThrough(tx, log, 10, { messages: 1, bytes: 1, unread: 10 })],
      ["groups with old dead letters", (tx) => groupsWithOldDead(tx, 1, 500)],
      ["removing the old dead letters of a group", (tx) => removeOldDead(tx, ref, 1)],
      ["a page", (tx) => listMessages(tx, log, walk, page)],
      ["a page, newest first", (tx) => listMessages(tx, log, { ...walk, newest: true }, page)],
      ["a page of what is not read", (tx) => listMessages(tx, log, { ...walk, unreadOnly: true }, page)],
      ["the first unread", (tx) => firstUnread(tx, log)],
      ["where a stream begins", (tx) => findBegin(tx, log)],
      ["the newest of some", (tx) => newestOf(tx, log, ["msg_1", "msg_2"])],
      ["a message sent abroad", (tx) => findSentAbroad(tx, orgId, "agt_3", "msg_77")],
      ["whether an agent wrote to another", (tx) => wroteTo(tx, agent, { ...agent, org_id: "org_b" }, "msg_77")],
      ["what strangers have unread", (tx) => countStrangers(tx, log, "org_b")],
      ["an agent of any organisation", (tx) => findAnywhere(tx, "agt_3")],
      ["the grants that cover an agent", (tx) => grantsThatCover(tx, { ...agent, namespace: "n" }, "org_b", 1)],
      ["one message", (tx) => findMessage(tx, orgId, "msg_77")],
      ["what was sent", (tx) => listSent(tx, orgId, "agt_3", "msg_9", 51)],
      ["a receipt", (tx) => markDelivered(tx, log, [1, 2, 3, 4], 1)],
      ["reading some", (tx) => markRead(tx, log, ["msg_1", "msg_2"], 1)],
      ["reading up to one", (tx) => markReadThrough(tx, log, 900n, 100, 1)],
      ["the ages of logs", (tx) => logAges(tx, log, 5)],
      ["what expires", (tx) => dueMessages(tx, 5, 500)],
      ["what was delivered last", (tx) => dueDeliveries(tx, 5, 500)],
      ["what is handed out again", (tx) => dueFlights(tx, ref, 500, 10)],
      ["when something is handed out again", (tx) => nextDue(tx, ref)],
      ["acknowledging", (tx) => endFlights(tx, ref, [1, 2])],
      ["messages by sequence", (tx) => messagesAt(tx, log, [1, 2, 3])],
      ["dead letters", (tx) => listDead(tx, log, "", ["g", 5], 51)],
      ["dead letters of a group", (tx) => listDead(tx, log, "g", ["g", 5], 51)],
      ["dead letters, whole", (tx) => readDead(tx, app, log, "", ["g", 5], ["g", 50])],
      ["dead letters that are too many", (tx) => removeSurplusDead(tx, ref, 100)],
      ["a group that is being deleted", (tx) => lockDroppedGroup(tx, ref)],
      ["any group that is being deleted", (tx) => anyDroppedGroup(tx)],
      ["redriving", (tx) => takeDead(tx, ref, [], 100)],
      ["groups", (tx) => listGroups(tx, log, "a", 51)],
      ["a membership", (tx) => isMember(tx, log, "msg_3")],
      ["members", (tx) => listMembers(tx, log, "msg_3", 51)],
      ["leaving", (tx) => leaveAll(tx, orgId, "msg_3")],
      ["channels", (tx) => listChannels(tx, orgId, "msg_3", "msg_5", 51)],
      ["joined channels", (tx) => joinedChannels(tx, orgId, "msg_3")],
      ["removing what is left", (tx) => removeRows(tx, sql`relay_body`, sql`sequence`, log)],
      ["presences", (tx) => presencesOf(tx, orgId, ["agt_1", "agt_2"], 1)],
    ];
    const walked: string[] = [];
    for (const [what, send] of statements) {
      const plan = await plansOf(db, send);
      expect(plan, what).not.toBe("");
      const wrong =
        dialect === "sqlite"
          ? // A search by the organisation alone walks through all of it, but for `o`, which is organisations.
            /^(SCAN (?!k$|near|either|summed|\(subquery|CONSTANT|relay_group USING COVERING INDEX relay_group_dropped)|SEARCH (?!o )\w+ USING .*\(org_id=\?\)).*$/m
          : /Seq Scan on relay_(?!log|group|presence).*/;
      const found = wrong.exec(plan);
      if (found) walked.push(`${what}: ${found[0]}\n${plan}`);
    }
    expect(walked.join("\n\n")).toBe("");
  });
});
