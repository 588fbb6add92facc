import { durationFromMs } from "@bufbuild/protobuf/wkt";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import type { GroupMessage } from "../gen/moltwire/relay/v1/channel_pb.ts";
import { type Sql, sql } from "../src/db/db.ts";
import { removeDroppedGroups } from "../src/relay/drop.ts";
import { dropGroup } from "../src/relay/group-store.ts";
import { retentionWalk, sweepRelay } from "../src/relay/sweep.ts";
import {
  dialects,
  eventually,
  fakeClock,
  type Org,
  type OrgAgent,
  refusal,
  start,
  unique,
  type World,
} from "./harness.ts";
import { says, tell, toChannel } from "./relay-fixtures/relay.ts";

const ms = durationFromMs;
const group = "workers";
const said = (messages: readonly GroupMessage[]) => messages.map(({ message }) => says(message));

describe.each(dialects)("consumer groups on %s", (dialect) => {
  const clock = fakeClock();
  let world: World;
  let org: Org;
  let ann: OrgAgent;
  let bob: OrgAgent;
  beforeAll(async () => {
    world = await start(dialect, { clock });
    org = await world.org();
    [ann, bob] = [await org.agent(), await org.agent()];
  });
  afterAll(() => world[Symbol.asyncDispose]());

  /** A channel with a group and so many messages. */
  const channelOf = async (messages: number, more = {}): Promise<string> => {
    const channel = unique("jobs");
    await ann.as.relay.createChannel({ name: channel });
    await ann.as.relay.createConsumerGroup({ channel, name: group, ackTimeout: ms(10_000), maxDeliveries: 3, ...more });
    for (let n = 1; n <= messages; n++) await tell(ann.as, toChannel(channel), n);
    return channel;
  };
  const pull = async (by: OrgAgent, channel: string, maxMessages = 10, more = {}) =>
    (await by.as.relay.pullMessages({ channel, group, maxMessages, ...more })).messages;
  const ack = (by: OrgAgent, channel: string, messages: readonly GroupMessage[]) =>
    by.as.relay.ackMessages({ channel, group, ackIds: messages.map(({ ackId }) => ackId) });
  const nack = (by: OrgAgent, channel: string, messages: readonly GroupMessage[], more = {}) =>
    by.as.relay.nackMessages({ channel, group, ackIds: messages.map(({ ackId }) => ackId), ...more });
  const rows = async (table: Sql, channel: string) => {
    const { log_id } = (await world.server.app.db.query.one<{ log_id: string }>(
      sql`select log_id from relay_channel where name = ${channel}`,
    ))!;
    return (await world.server.app.db.query.one<{ n: number }>(
      sql`select count(*) as n from ${table} where log_id = ${log_id}`,
    ))!.n;
  };

  test("members share the messages: each goes to one, and what is acknowledged leaves no row", async () => {
    const channel = await channelOf(6);
    const [a, b] = [await pull(ann, channel, 2), await pull(bob, channel, 10)];
    expect([said(a), said(b)]).toEqual([
      [1, 2],
      [3, 4, 5, 6],
    ]);
    expect(a[0]).toMatchObject({ delivery: 1 });
    expect(await pull(ann, channel)).toEqual([]);
    expect(await rows(sql`relay_flight`, channel)).toBe(6);
    expect(await ack(ann, channel, a)).toMatchObject({ acknowledged: 2, lostAckIds: [] });
    expect(await ack(ann, channel, a)).toMatchObject({ acknowledged: 0, lostAckIds: a.map(({ ackId }) => ackId) });
    expect(await ack(bob, channel, b)).toMatchObject({ acknowledged: 4 });
    expect(await rows(sql`relay_flight`, channel)).toBe(0);
    const [listed] = (await bob.as.relay.listConsumerGroups({ channel })).groups;
    expect(listed).toMatchObject({
      name: group,
      position: 6n,
      outstanding: 0,
      maxDeliveries: 3,
      ownerAgentId: ann.agentId,
    });
  });

  test("what is not acknowledged in time is handed out again, and the first reader's id is good for nothing then", async () => {
    const channel = await channelOf(2);
    const first = await pull(ann, channel);
    clock.advance(9_999);
    expect(await pull(bob, channel)).toEqual([]);
    clock.advance(1);
    const again = await pull(bob, channel);
    expect(said(again)).toEqual([1, 2]);
    expect(again.map(({ delivery }) => delivery)).toEqual([2, 2]);
    expect(await ack(ann, channel, first)).toMatchObject({
      acknowledged: 0,
      lostAckIds: first.map(({ ackId }) => ackId),
    });
    expect(await nack(ann, channel, first)).toMatchObject({ returned: 0, dead: 0 });
    expect(await ack(bob, channel, again)).toMatchObject({ acknowledged: 2 });
    const made = await ann.as.relay.ackMessages({
      channel,
      group,
      ackIds: ["1.x", "nonsense", "9999999999999999.abc"],
    });
    expect(made.lostAckIds).toHaveLength(3);
  });

  test("what is given back is handed out again after its delay, before what is new", async () => {
    const channel = await channelOf(3);
    const [one] = await pull(ann, channel, 1);
    expect(await nack(ann, channel, [one!], { delay: ms(5_000) })).toMatchObject({ returned: 1, dead: 0 });
    expect(said(await pull(bob, channel, 1))).toEqual([2]);
    clock.advance(5_000);
    expect(said(await pull(bob, channel, 1))).toEqual([1]);
    expect(said(await pull(bob, channel, 1))).toEqual([3]);
  });

  test("after its last delivery a message is a dead letter, with why, whoever says so; and is redriven", async () => {
    const channel = await channelOf(2, { maxDeliveries: 2 });
    await nack(ann, channel, await pull(ann, channel));
    const last = await pull(bob, channel);
    expect(last.map(({ delivery }) => delivery)).toEqual([2, 2]);
    expect(await nack(bob, channel, [last[0]!], { cause: "broken" })).toMatchObject({ returned: 0, dead: 1 });
    clock.advance(10_000);
    expect(await pull(ann, channel)).toEqual([]);
    const { deadMessages } = await eventually(async () => {
      await sweepRelay(world.server.app);
      const page = await ann.as.relay.listDeadMessages({ channel, group });
      return page.deadMessages.length === 2 && page;
    });
    expect(deadMessages).toMatchObject([
      { group, deliveries: 2, cause: "broken", agentId: bob.agentId, message: { sequence: 1n } },
      { group, deliveries: 2, cause: "ack_timeout", message: { sequence: 2n } },
    ]);
    expect(deadMessages.map(({ message }) => says(message))).toEqual([1, 2]);
    expect(await rows(sql`relay_flight`, channel)).toBe(0);
    expect(await ann.as.relay.redriveMessages({ channel, group, sequences: [2n, 77n] })).toMatchObject({
      redriven: 1,
      more: false,
    });
    expect((await ann.as.relay.listDeadMessages({ channel })).deadMessages).toHaveLength(1);
    const back = await pull(ann, channel);
    expect([said(back), back[0]!.delivery]).toEqual([[2], 1]);
    await ack(ann, channel, back);
    expect(await ann.as.relay.redriveMessages({ channel, group })).toMatchObject({ redriven: 1 });
    await nack(ann, channel, await pull(ann, channel));
    await nack(ann, channel, await pull(ann, channel), { cause: "again" });
    expect((await ann.as.relay.listDeadMessages({ channel })).deadMessages).toMatchObject([{ cause: "again" }]);
  });

  test("a dead letter outlives its channel's messages, and a group is told what it missed", async () => {
    const small = await start(dialect, { clock, relayMaxMessages: 3 });
    const here = await small.org();
    const one = await here.agent();
    const channel = "c";
    await one.as.relay.createChannel({ name: channel });
    for (const name of [group, "late"]) await one.as.relay.createConsumerGroup({ channel, name, maxDeliveries: 1 });
    await tell(one.as, toChannel(channel), "keep me");
    await nack(one, channel, await pull(one, channel));
    for (let n = 2; n <= 6; n++) await tell(one.as, toChannel(channel), n);
    const late = await one.as.relay.pullMessages({ channel, group: "late", maxMessages: 10 });
    expect([late.missed, said(late.messages)]).toEqual([3n, [4, 5, 6]]);
    expect((await one.as.relay.pullMessages({ channel, group: "late" })).missed).toBe(0n);
    await one.as.relay.redriveMessages({ channel, group });
    expect(said(await pull(one, channel))).toEqual(["keep me", 4, 5, 6]);
    await small[Symbol.asyncDispose]();
  });

  test("what the channel lets go of while readers have it is counted as lost, told to who pulls next, and nothing is counted twice", async () => {
    await using small = await start(dialect, { clock, relayMaxMessages: 3 });
    const one = await (await small.org()).agent();
    const channel = "c";
    const push = async (...all: number[]) => {
      for (const n of all) await tell(one.as, toChannel(channel), n);
    };
    const lost = async () => (await one.as.relay.listConsumerGroups({ channel })).groups[0]!;
    const next = async () => {
      const { missed, messages } = await one.as.relay.pullMessages({ channel, group, maxMessages: 10 });
      return { missed, messages, said: said(messages) };
    };
    await one.as.relay.createChannel({ name: channel });
    await one.as.relay.createConsumerGroup({ channel, name: group, ackTimeout: ms(10_000), maxDeliveries: 2 });
    // With a reader when they go, and never handed out: both are missed.
    await push(1, 2, 3);
    const first = await next();
    expect([first.missed, first.said]).toEqual([0n, [1, 2, 3]]);
    await ack(one, channel, [first.messages[0]!]);
    await push(4, 5, 6, 7);
    clock.advance(10_000);
    const second = await next();
    expect([second.missed, second.said]).toEqual([3n, [5, 6, 7]]);
    expect(await lost()).toMatchObject({ lost: 3n, outstanding: 3 });
    // After their last delivery: given back, or by their time.
    await nack(one, channel, second.messages);
    const third = await next();
    expect([third.missed, third.said]).toEqual([0n, [5, 6, 7]]);
    await push(8, 9);
    const [five, ...others] = third.messages;
    expect(await nack(one, channel, [five!], { cause: "broken" })).toMatchObject({ returned: 0, dead: 0, lost: 1 });
    expect(await lost()).toMatchObject({ lost: 4n, outstanding: 2 });
    clock.advance(10_000);
    await eventually(async () => {
      await sweepRelay(small.server.app);
      return (await lost()).outstanding === 0;
    });
    expect(await lost()).toMatchObject({ lost: 5n, deadLost: 0n });
    const { deadMessages } = await one.as.relay.listDeadMessages({ channel });
    expect(deadMessages).toMatchObject([{ cause: "ack_timeout", message: { sequence: 7n } }]);
    expect(others).toHaveLength(2);
    // A message whose own time was over is not lost.
    await ack(one, channel, (await next()).messages);
    await tell(one.as, toChannel(channel), "short", { ttl: ms(1_000) });
    const short = await next();
    expect(short.said).toEqual(["short"]);
    clock.advance(10_000);
    expect(await next()).toMatchObject({ missed: 0n, messages: [] });
    expect(await lost()).toMatchObject({ lost: 5n, outstanding: 0 });
  });

  test("dead letters that are too old go, and the group tells how many", async () => {
    await using brief = await start(dialect, { clock, relayRetentionDays: 1 });
    const one = await (await brief.org()).agent();
    const channel = "c";
    await one.as.relay.createChannel({ name: channel });
    await one.as.relay.createConsumerGroup({ channel, name: group, maxDeliveries: 1 });
    for (let n = 1; n <= 3; n++) await tell(one.as, toChannel(channel), n);
    await nack(one, channel, await pull(one, channel));
    await one.as.relay.redriveMessages({ channel, group, sequences: [1n] });
    clock.advance(86_400_001);
    // The server's own walk may be at it, which another passes over.
    await eventually(async () => {
      await retentionWalk(brief.server.app)();
      return (await one.as.relay.listDeadMessages({ channel })).deadMessages.length === 0;
    });
    // The one that was redriven is lost when it is to be handed out.
    const group1 = async () => (await one.as.relay.listConsumerGroups({ channel })).groups[0];
    expect(await group1()).toMatchObject({ deadLost: 2n, lost: 0n, outstanding: 1 });
    expect(await one.as.relay.pullMessages({ channel, group })).toMatchObject({ missed: 1n, messages: [] });
    expect(await group1()).toMatchObject({ deadLost: 2n, lost: 1n, outstanding: 0 });
  });

  test("a message whose time is over is handed out to nobody", async () => {
    const channel = await channelOf(0);
    await tell(ann.as, toChannel(channel), "short", { ttl: ms(3_000) });
    await tell(ann.as, toChannel(channel), "kept");
    await nack(ann, channel, await pull(ann, channel, 1));
    clock.advance(3_000);
    expect(said(await pull(ann, channel))).toEqual(["kept"]);
    expect(await rows(sql`relay_flight`, channel)).toBe(1);
  });

  test("a group begins where it is told", async () => {
    const channel = await channelOf(4);
    for (const [name, afterSequence] of [
      ["all", 0n],
      ["late", 3n],
      ["new", undefined],
    ] as const)
      await ann.as.relay.createConsumerGroup({ channel, name, ...(afterSequence !== undefined && { afterSequence }) });
    const of = async (name: string) =>
      said((await ann.as.relay.pullMessages({ channel, group: name, maxMessages: 10 })).messages);
    expect([await of("all"), await of("late"), await of("new")]).toEqual([[1, 2, 3, 4], [4], []]);
    expect((await refusal(ann.as.relay.createConsumerGroup({ channel, name: "all" }))).reason).toBe("ALREADY_EXISTS");
    expect((await refusal(ann.as.relay.createConsumerGroup({ channel, name: "x", afterSequence: 9n }))).reason).toBe(
      "CURSOR_EXPIRED",
    );
    expect((await refusal(ann.as.relay.pullMessages({ channel, group: "none" }))).reason).toBe("NOT_FOUND");
    expect((await refusal(bob.as.relay.deleteConsumerGroup({ channel, group: "all" }))).reason).toBe("NOT_FOUND");
    await ann.as.relay.deleteConsumerGroup({ channel, group: "all" });
    expect(await rows(sql`relay_flight`, channel)).toBe(1);
    expect((await ann.as.relay.listConsumerGroups({ channel })).groups.map(({ name }) => name)).toEqual([
      "late",
      "new",
      group,
    ]);
  });

  test("who may not read the channel may use no group of it", async () => {
    const channel = unique("closed");
    await ann.as.relay.createChannel({ name: channel, membersOnly: true });
    await ann.as.relay.createConsumerGroup({ channel, name: group });
    const foreign = await (await world.org()).agent();
    for (const by of [bob, foreign])
      for (const call of [
        () => pull(by, channel),
        () => by.as.relay.ackMessages({ channel, group, ackIds: ["1.a"] }),
        () => by.as.relay.nackMessages({ channel, group, ackIds: ["1.a"] }),
        () => by.as.relay.listDeadMessages({ channel }),
        () => by.as.relay.redriveMessages({ channel, group }),
        () => by.as.relay.listConsumerGroups({ channel }),
        () => by.as.relay.createConsumerGroup({ channel, name: "mine" }),
      ])
        expect((await refusal(call())).reason).toBe("NOT_FOUND");
  });

  test("many who race share all messages: none twice, none left", async () => {
    const channel = await channelOf(0);
    const total = 120;
    const got: unknown[] = [];
    const work = async (by: OrgAgent) => {
      while (got.length < total) {
        const messages = await pull(by, channel, 3);
        got.push(...said(messages));
        if (messages.length > 0) await ack(by, channel, messages);
      }
    };
    const working = Promise.all([ann, bob, ann, bob, ann, bob].map(work));
    for (let n = 1; n <= total; n++) await tell(ann.as, toChannel(channel), n);
    await working;
    expect((got as number[]).toSorted((a, b) => a - b)).toEqual(Array.from({ length: total }, (_, n) => n + 1));
  });

  /** The channel's log, and numbers from 1 to n as rows. */
  const placeOf = async (channel: string) =>
    (await world.server.app.db.query.one<{ org_id: string; log_id: string }>(
      sql`select org_id, log_id from relay_channel where name = ${channel}`,
    ))!;
  const numbers = (n: number): Sql =>
    dialect === "sqlite"
      ? sql`(with recursive many(n) as (select 1 union all select n + 1 from many where n < ${n}) select n from many) many`
      : sql`generate_series(1::bigint, ${n}::bigint) as many(n)`;
  const addDead = async (channel: string, count: number) => {
    const { org_id, log_id } = await placeOf(channel);
    await world.server.app.db.tx((tx) =>
      tx.run(sql`
        insert into relay_dead (org_id, log_id, group_name, sequence, deliveries, agent_id, dead_ms, redriven, body)
        select ${org_id}, ${log_id}, ${group}, -n, 1, '', ${clock.now()}, 0, ${new Uint8Array([1, 0, 0])} from ${numbers(count)}`),
    );
  };
  const addFlights = async (channel: string, count: number) => {
    const { org_id, log_id } = await placeOf(channel);
    await world.server.app.db.tx(async (tx) => {
      await tx.run(sql`
        insert into relay_flight (org_id, log_id, group_name, sequence, deliveries, token, agent_id, due_ms, last)
        select ${org_id}, ${log_id}, ${group}, -n, 1, 't', '', ${clock.now() + 1_000_000}, 0 from ${numbers(count)}`);
      await tx.run(sql`
        update relay_group set outstanding = outstanding + ${count} where org_id = ${org_id} and log_id = ${log_id} and name = ${group}`);
    });
  };
  const shown = async (channel: string) => (await ann.as.relay.listConsumerGroups({ channel })).groups[0]!;

  test("as many messages as may be are outstanding: no next one is handed out then, and who pulls or redrives is told why", async () => {
    const channel = await channelOf(5, { maxDeliveries: 1 });
    await nack(ann, channel, await pull(ann, channel, 1));
    await addFlights(channel, 9_998);
    const last = await pull(ann, channel);
    expect(said(last)).toEqual([2, 3]);
    expect((await shown(channel)).outstanding).toBe(10_000);
    const full = { reason: "QUOTA_EXCEEDED", metadata: { resource: "group_outstanding", limit: "10000" } };
    for (const call of [
      () => pull(bob, channel),
      () => pull(bob, channel, 1, { wait: ms(20_000) }),
      () => ann.as.relay.redriveMessages({ channel, group }),
    ])
      expect(await refusal(call())).toMatchObject(full);
    await ack(ann, channel, [last[0]!]);
    expect(said(await pull(bob, channel))).toEqual([4]);
    await ack(ann, channel, [last[1]!]);
    expect(await ann.as.relay.redriveMessages({ channel, group })).toMatchObject({ redriven: 1, more: true });
    expect(said(await pull(bob, channel))).toEqual([1]);
    expect((await shown(channel)).outstanding).toBe(10_000);
  });

  test("who pulls from a group that is full and has had all is told nothing but that there is nothing", async () => {
    const channel = await channelOf(0);
    await addFlights(channel, 10_000);
    expect(await pull(ann, channel)).toEqual([]);
  });

  test("what is outstanding is counted as it is, whatever was done", async () => {
    const channel = await channelOf(60, { maxDeliveries: 2 });
    for (let round = 0; round < 12; round++) {
      const got = await pull(round % 2 ? ann : bob, channel, 7);
      const [some, others] = [got.slice(0, round % 4), got.slice(round % 4, (round % 4) + 2)];
      if (some.length > 0) await ack(ann, channel, some);
      if (others.length > 0) await nack(ann, channel, others, { delay: ms(round * 500) });
      if (round % 3 === 2) {
        clock.advance(10_000);
        await sweepRelay(world.server.app);
      }
      if (round % 5 === 4) await ann.as.relay.redriveMessages({ channel, group });
      expect((await shown(channel)).outstanding).toBe(await rows(sql`relay_flight`, channel));
    }
    expect((await ann.as.relay.listDeadMessages({ channel })).deadMessages.length).toBeGreaterThan(0);
  });

  test("dead letters beyond 10,000 go, those of the oldest messages first, and the group tells how many", async () => {
    const channel = await channelOf(3, { maxDeliveries: 1 });
    await addDead(channel, 9_999);
    await nack(ann, channel, await pull(ann, channel, 1));
    expect([await rows(sql`relay_dead`, channel), (await shown(channel)).deadLost]).toEqual([10_000, 0n]);
    await nack(ann, channel, await pull(ann, channel, 2));
    expect([await rows(sql`relay_dead`, channel), (await shown(channel)).deadLost]).toEqual([10_000, 2n]);
    const { org_id, log_id } = await placeOf(channel);
    const lowest = await world.server.app.db.query.one<{ n: number }>(
      sql`select min(sequence) as n from relay_dead where org_id = ${org_id} and log_id = ${log_id}`,
    );
    expect(lowest!.n).toBe(-9_997);
  });

  test("a page of dead letters is bounded in bytes, and all of them are met", async () => {
    const channel = await channelOf(0, { maxDeliveries: 1 });
    // Short to write, and long to keep.
    const long = Array.from({ length: 32_000 }, () => 1);
    for (let n = 0; n < 16; n++) await tell(ann.as, toChannel(channel), [n, ...long]);
    for (let left = 16; left > 0; ) {
      const got = await pull(ann, channel, 16);
      await nack(ann, channel, got);
      left -= got.length;
    }
    const pages: bigint[][] = [];
    for (let pageToken = ""; ; ) {
      const page = await ann.as.relay.listDeadMessages({ channel, pageSize: 250, pageToken });
      pages.push(page.deadMessages.map(({ message }) => message!.sequence));
      const bytes = page.deadMessages.reduce((sum, { message }) => sum + Number(message!.sizeBytes), 0);
      expect(bytes).toBeLessThan(4_194_304);
      pageToken = page.nextPageToken;
      if (!pageToken) break;
    }
    expect(pages.length).toBeGreaterThan(1);
    expect(pages.flat()).toEqual(Array.from({ length: 16 }, (_, n) => BigInt(n + 1)));
  });

  test("a group is deleted with all it has, some rows at a time, and its name is free", async () => {
    const channel = await channelOf(2);
    await pull(ann, channel, 1);
    await addFlights(channel, 1_200);
    await addDead(channel, 700);
    await ann.as.relay.deleteConsumerGroup({ channel, group });
    expect([await rows(sql`relay_flight`, channel), await rows(sql`relay_dead`, channel)]).toEqual([0, 0]);
    expect((await ann.as.relay.listConsumerGroups({ channel })).groups).toEqual([]);
    await ann.as.relay.createConsumerGroup({ channel, name: group, afterSequence: 0n });
    expect(said(await pull(ann, channel))).toEqual([1, 2]);
  });

  test("a deletion that the server did not end is as good as done for everybody, and is ended by the sweep", async () => {
    const channel = await channelOf(1);
    await addDead(channel, 700);
    const { org_id, log_id } = await placeOf(channel);
    await world.server.app.db.tx((tx) => dropGroup(tx, { orgId: org_id, logId: log_id, group }));
    expect((await ann.as.relay.listConsumerGroups({ channel })).groups).toEqual([]);
    expect((await refusal(pull(ann, channel))).reason).toBe("NOT_FOUND");
    expect((await refusal(ann.as.relay.deleteConsumerGroup({ channel, group }))).reason).toBe("NOT_FOUND");
    const again = () => ann.as.relay.createConsumerGroup({ channel, name: group });
    expect(await refusal(again())).toMatchObject({ reason: "FAILED_PRECONDITION", metadata: { state: "DELETING" } });
    await removeDroppedGroups(world.server.app);
    expect(await rows(sql`relay_dead`, channel)).toBe(0);
    await again();
  });

  test("a pull of large messages is bounded in bytes", async () => {
    const channel = await channelOf(0);
    for (let n = 0; n < 24; n++) await tell(ann.as, toChannel(channel), `${n}`.padEnd(60_000, "x"));
    const first = await pull(ann, channel, 256);
    expect(first.length).toBeGreaterThan(10);
    expect(first.length).toBeLessThan(20);
    expect(first.length + (await pull(ann, channel, 256)).length).toBe(24);
  });
});

describe.each(dialects)("waiting for a group's messages on %s", (dialect) => {
  test("a pull waits for a message, for one given back, and in vain", async () => {
    await using world = await start(dialect);
    const org = await world.org();
    const [ann, bob] = [await org.agent(), await org.agent()];
    const channel = "c";
    await ann.as.relay.createChannel({ name: channel });
    await ann.as.relay.createConsumerGroup({ channel, name: group });
    const waiting = bob.as.relay.pullMessages({ channel, group, wait: ms(60_000) });
    await new Promise((resolve) => setTimeout(resolve, 100));
    await tell(ann.as, toChannel(channel), 1);
    const { messages } = await waiting;
    expect(said(messages)).toEqual([1]);
    const again = ann.as.relay.pullMessages({ channel, group, wait: ms(60_000) });
    await new Promise((resolve) => setTimeout(resolve, 100));
    await bob.as.relay.nackMessages({ channel, group, ackIds: [messages[0]!.ackId], delay: ms(300) });
    const began = Date.now();
    expect(said((await again).messages)).toEqual([1]);
    expect(Date.now() - began).toBeLessThan(59_000);
    expect((await ann.as.relay.pullMessages({ channel, group, wait: ms(200) })).messages).toEqual([]);
  });
});
