/** Where readers, writers and replicas get in each other's way. */
import { create, toBinary } from "@bufbuild/protobuf";
import { durationFromMs } from "@bufbuild/protobuf/wkt";
import { ConnectError } from "@connectrpc/connect";
import { describe, expect, test } from "vitest";
import { ErrorInfoSchema } from "../gen/google/rpc/error_details_pb.ts";
import { TrustTier } from "../gen/moltwire/bus/v1/agent_pb.ts";
import { MessageSchema } from "../gen/moltwire/relay/v1/message_pb.ts";
import { type ConverseRequest, MessageOrder, OpenSchema, Start } from "../gen/moltwire/relay/v1/relay_service_pb.ts";
import { type Queryable, type Sql, sql } from "../src/db/db.ts";
import { removeDroppedLogs } from "../src/relay/drop.ts";
import { pageOfMessages } from "../src/relay/list.ts";
import { inboxOf } from "../src/relay/message.ts";
import { createTails } from "../src/relay/tail.ts";
import { dialects, eventually, fakeClock, start, type World } from "./harness.ts";
import { bytes, listen, messagesOf, says, tell, toAgent, toChannel } from "./relay-fixtures/relay.ts";

const count = async ({ server: { app } }: World, table: Sql, where: Sql = sql`1 = 1`): Promise<number> =>
  (await app.db.query.one<{ n: number }>(sql`select count(*) as n from ${table} where ${where}`))!.n;

test.runIf(dialects.includes("postgres"))(
  "nobody waits in a circle: for receipts, marks and deletions",
  async () => {
    await using world = await start("postgres");
    const org = await world.org();
    const to = await org.agent();
    const { query, tx } = world.server.app.db;
    const { relay } = to.as;
    await Promise.all(Array.from({ length: 400 }, (_, n) => tell(org.admin, toAgent(to.agentId), n)));
    const messageIds = (await relay.listInbox({ pageSize: 250 })).messages.map((message) => message.messageId);
    for (let round = 0; round < 10; round++) {
      await tx((one) => one.run(sql`update relay_message set unread = 1, read_ms = null, delivered_ms = null`));
      await Promise.all([
        relay.markRead({ read: { case: "throughSequence", value: 400n } }),
        relay.markRead({ read: { case: "messages", value: { messageIds } } }),
        relay.markRead({ read: { case: "messages", value: { messageIds: messageIds.toReversed() } } }),
        relay.listInbox({ pageSize: 250 }),
      ]);
      const channel = `c${round}`;
      await relay.createChannel({ name: channel });
      const first = tell(org.admin, toChannel(channel), 1);
      await Promise.allSettled([first, relay.deleteChannel({ channel }), relay.leaveChannel({ channel })]);
    }
    await new Promise((resolve) => setTimeout(resolve, 1_200)); // the engine counts with a delay
    const [counted] = await query.all<{ deadlocks: number }>(
      sql`select deadlocks from pg_stat_database where datname = current_database()`,
    );
    expect(counted!.deadlocks).toBe(0);
  },
  180_000,
);

describe.each(dialects)("on %s", (dialect) => {
  test("as many channels, invites and agents as an organisation may have are made, and not one more by those who come at once", async () => {
    await using world = await start(dialect);
    const { orgId, admin } = await world.org();
    const numbers = (n: number): Sql =>
      dialect === "sqlite"
        ? sql`(with recursive many(n) as (select 1 union all select n + 1 from many where n < ${n}) select n from many) many`
        : sql`generate_series(1::bigint, ${n}::bigint) as many(n)`;
    const missing = 3;
    await world.server.app.db.tx(async (tx) => {
      await tx.run(sql`
        insert into relay_channel (org_id, name, log_id, description, owner_agent_id, members_only, members, revision, create_ms, update_ms)
        select ${orgId}, 'c' || n, 'chn_' || n, '', '', 0, 0, 1, 1, 1 from ${numbers(10_000 - missing)}`);
      await tx.run(sql`
        insert into invite (secret_sha256, org_id, invite_id, trust_tier, max_uses, uses, create_ms, expire_ms)
        select 's' || n, ${orgId}, 'inv_' || n, 4, 1, 0, 1, ${world.server.app.clock.now() + 86_400_000} from ${numbers(1_000 - missing)}`);
      await tx.run(sql`
        insert into agent (org_id, agent_id, name, description, trust_tier, capabilities, allowed_tools, metadata, disabled, create_ms, update_ms, revision, weight, breaker, namespace)
        select ${orgId}, 'agt_' || n, 'a' || n, '', 4, '[]', '[]', '{}', 0, 1, 1, 1, 1, '', '' from ${numbers(10_000 - missing)}`);
    });
    const makers: readonly ((n: number) => Promise<unknown>)[] = [
      (n) => admin.relay.createChannel({ name: `new${n}` }),
      () => admin.directory.createInvite({}),
      (n) => admin.agents.registerAgent({ name: `new${n}`, trustTier: TrustTier.PUBLIC_VENDOR }),
    ];
    for (const make of makers) {
      const tried = await Promise.allSettled(Array.from({ length: 10 }, (_, n) => make(n)));
      const refused = tried.filter((one) => one.status === "rejected").map(({ reason }) => ConnectError.from(reason));
      expect(refused.map((error) => error.findDetails(ErrorInfoSchema)[0]?.reason)).toEqual(
        Array(10 - missing).fill("QUOTA_EXCEEDED"),
      );
    }
  });

  test("two who mark all as read at once mark each message once, and neither leaves some unsaid", async () => {
    await using world = await start(dialect);
    const org = await world.org();
    const to = await org.agent();
    await Promise.all(Array.from({ length: 300 }, (_, n) => tell(org.admin, toAgent(to.agentId), n)));
    const read = { case: "throughSequence", value: 300n } as const;
    const done = await Promise.all(Array.from({ length: 4 }, () => to.as.relay.markRead({ read })));
    expect(done.reduce((sum, { marked }) => sum + marked, 0)).toBe(300);
  });

  test.each([MessageOrder.UNSPECIFIED, MessageOrder.NEWEST])(
    "a page that is read while a message comes has none behind the end that it tells (%i)",
    async (order) => {
      await using world = await start(dialect);
      const { app } = world.server;
      const org = await world.org();
      const to = await org.agent();
      await tell(org.admin, toAgent(to.agentId), 1);
      const { query } = app.db;
      let come = 1;
      // It comes as soon as the end of the log is known.
      const db: Queryable = Object.assign(Object.create(query) as Queryable, {
        async one(asked: Sql) {
          const row = await query.one(asked);
          await tell(org.admin, toAgent(to.agentId), ++come);
          return row;
        },
      });
      const log = inboxOf(org.orgId, to.agentId);
      const page = await pageOfMessages(
        app,
        db,
        log,
        [],
        { order, pageSize: 0, pageToken: "" },
        false,
        app.clock.now(),
      );
      expect(come).toBeGreaterThan(1);
      expect([page.lastSequence, page.messages.map(({ sequence }) => sequence)]).toEqual([1n, [1n]]);
      expect((await to.as.relay.listInbox({})).lastSequence).toBe(BigInt(come));
    },
  );

  test("a conversation that ends in the middle of a page says how far it came", async () => {
    await using world = await start(dialect);
    const org = await world.org();
    const to = await org.agent();
    for (let n = 1; n <= 60; n++) await tell(org.admin, toAgent(to.agentId), "x".repeat(60_000));
    const stream = to.as.relay.converse(
      (async function* () {
        yield { frame: { case: "open", value: create(OpenSchema, { start: Start.OLDEST }) } } as ConverseRequest;
        await new Promise(() => {});
      })(),
    );
    let last = 0n;
    const read = async () => {
      for await (const { event } of stream) {
        if (event.case !== "message") continue;
        expect(event.value.sequence).toBe(last + 1n);
        last = event.value.sequence;
        // Whoever reads slowly is in the middle of a page most of the time.
        if (last === 2n) void world.server.close();
        if (last >= 2n) await new Promise((resolve) => setTimeout(resolve, 20));
      }
    };
    const ended = await read().then(
      () => undefined,
      (error: unknown) => ConnectError.from(error).findDetails(ErrorInfoSchema)[0],
    );
    expect(ended).toMatchObject({ reason: "SHUTTING_DOWN", metadata: { cursor: String(last) } });
    expect(last).toBeLessThan(60n);
  });

  test("a pull that waits is done with what is gone, and does not come to it again and again", async () => {
    const clock = fakeClock();
    await using world = await start(dialect, { clock });
    const org = await world.org();
    const { as } = await org.agent();
    const [channel, group] = ["c", "g"];
    await as.relay.createChannel({ name: channel });
    await as.relay.createConsumerGroup({ channel, name: group, ackTimeout: durationFromMs(1_000) });
    await tell(as, toChannel(channel), 1, { ttl: durationFromMs(2_000) });
    expect((await as.relay.pullMessages({ channel, group })).messages).toHaveLength(1);
    clock.advance(3_000);
    const waiting = as.relay.pullMessages(
      { channel, group, wait: durationFromMs(30_000) },
      { headers: { "idempotency-key": "waits" } },
    );
    await eventually(async () => (await count(world, sql`relay_flight`)) === 0);
    await tell(as, toChannel(channel), 2);
    expect((await waiting).messages.map(({ message }) => says(message))).toEqual([2]);
  });

  test("a channel has its hundred groups, however many are made at once", async () => {
    await using world = await start(dialect);
    const { as } = await (await world.org()).agent();
    await as.relay.createChannel({ name: "c" });
    for (let n = 0; n < 95; n++) await as.relay.createConsumerGroup({ channel: "c", name: `g${n}` });
    const more = Array.from({ length: 20 }, (_, n) => as.relay.createConsumerGroup({ channel: "c", name: `more${n}` }));
    const made = (await Promise.allSettled(more)).filter(({ status }) => status === "fulfilled");
    expect(made).toHaveLength(5);
  });

  test("a sequence that no channel can have is nobody's dead letter", async () => {
    await using world = await start(dialect);
    const { as } = await (await world.org()).agent();
    await as.relay.createChannel({ name: "c" });
    await as.relay.createConsumerGroup({ channel: "c", name: "g" });
    const redriven = as.relay.redriveMessages({ channel: "c", group: "g", sequences: [2n ** 63n - 1n] });
    expect(await redriven).toMatchObject({ redriven: 0, more: false });
  });

  test("of a deleted channel nothing is left, also when several servers clear it away at once", async () => {
    await using world = await start(dialect);
    const org = await world.org();
    const { as } = await org.agent();
    await as.relay.createChannel({ name: "c" });
    for (let n = 0; n < 24; n++) await Promise.all(Array.from({ length: 50 }, () => tell(as, toChannel("c"), n)));
    await as.relay.deleteChannel({ channel: "c" });
    const { app } = world.server;
    await Promise.all(Array.from({ length: 4 }, () => removeDroppedLogs(app)));
    await eventually(async () => (await count(world, sql`relay_drop`)) === 0);
    expect(await count(world, sql`relay_message`)).toBe(0);
    expect(await count(world, sql`relay_body`)).toBe(0);
  }, 240_000);

  test("what was kept for streams that have left is not counted against those that are there", async () => {
    await using world = await start(dialect);
    const org = await world.org();
    const [left, here] = [await org.agent(), await org.agent()];
    for (let n = 0; n < 5; n++)
      await org.admin.relay.send({ ...toAgent(left.agentId), payload: bytes(new Uint8Array(65_000)) });
    for (let n = 0; n < 5; n++)
      await org.admin.relay.send({ ...toAgent(here.agentId), payload: bytes(new Uint8Array(65_000)) });
    const tails = createTails(world.server.app);
    for (let n = 0; n < 150; n++) {
      const tail = tails.open(inboxOf(org.orgId, left.agentId));
      const reading = tail.read(0);
      tail.release();
      await reading;
    }
    const [one, two] = [1, 2].map(() => tails.open(inboxOf(org.orgId, here.agentId)));
    const [first, second] = [await one!.read(0), await two!.read(0)];
    expect(second!.told[0]).toBe(first!.told[0]);
  });

  test("a member that is put out hears so at once, whether or not anything is published", async () => {
    await using world = await start(dialect);
    const org = await world.org();
    const [owner, member] = [await org.agent(), await org.agent()];
    for (const put of ["removed", "closed"] as const) {
      const channel = `room-${put}`;
      await owner.as.relay.createChannel({ name: channel, membersOnly: put === "removed" });
      if (put === "removed") await owner.as.relay.addMember({ channel, memberAgentId: member.agentId });
      await using heard = listen(member.as, { channel, start: Start.OLDEST });
      await heard.until((seen) => seen.length === 1);
      if (put === "removed") await owner.as.relay.removeMember({ channel, memberAgentId: member.agentId });
      else
        await owner.as.relay.updateChannel({
          channel,
          change: { membersOnly: true },
          updateMask: { paths: ["members_only"] },
        });
      const ended = await heard.over;
      expect(ConnectError.from(ended).findDetails(ErrorInfoSchema)[0]).toMatchObject({ reason: "NOT_FOUND" });
      expect(messagesOf(heard.seen)).toEqual([]);
    }
  });

  test("what is short as JSON and long as a message counts as what it is, and pages of it are bounded", async () => {
    await using world = await start(dialect);
    const org = await world.org();
    const to = await org.agent();
    const ones = Array.from({ length: 32_000 }, () => 1);
    for (let n = 0; n < 14; n++) await tell(org.admin, toAgent(to.agentId), ones);
    const { messages, nextPageToken } = await to.as.relay.listInbox({ pageSize: 250 });
    const sizes = messages.map((message) => toBinary(MessageSchema, message).length);
    for (const [n, { sizeBytes }] of messages.entries()) expect(Number(sizeBytes)).toBeGreaterThan(sizes[n]! - 500);
    expect(sizes.reduce((sum, size) => sum + size, 0)).toBeLessThan(4_300_000);
    const rest = await to.as.relay.listInbox({ pageSize: 250, pageToken: nextPageToken });
    expect(messages.length + rest.messages.length).toBe(14);
  });
});
