import { durationFromMs } from "@bufbuild/protobuf/wkt";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import type { GroupMessage } from "../gen/moltwire/relay/v1/channel_pb.ts";
import { type Sql, sql } from "../src/db/db.ts";
import { sweepRelay } from "../src/relay/sweep.ts";
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
    const waiting = bob.as.relay.pullMessages({ channel, group, wait: ms(20_000) });
    await new Promise((resolve) => setTimeout(resolve, 100));
    await tell(ann.as, toChannel(channel), 1);
    const { messages } = await waiting;
    expect(said(messages)).toEqual([1]);
    const again = ann.as.relay.pullMessages({ channel, group, wait: ms(20_000) });
    await new Promise((resolve) => setTimeout(resolve, 100));
    await bob.as.relay.nackMessages({ channel, group, ackIds: [messages[0]!.ackId], delay: ms(300) });
    const began = Date.now();
    expect(said((await again).messages)).toEqual([1]);
    expect(Date.now() - began).toBeLessThan(2_000);
    expect((await ann.as.relay.pullMessages({ channel, group, wait: ms(200) })).messages).toEqual([]);
  });
});
