import { toBinary } from "@bufbuild/protobuf";
import { ConnectError } from "@connectrpc/connect";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { ErrorInfoSchema } from "../gen/google/rpc/error_details_pb.ts";
import { MessageState, PresenceStatus } from "../gen/moltwire/relay/v1/message_pb.ts";
import { Start, SubscribeResponseSchema } from "../gen/moltwire/relay/v1/relay_service_pb.ts";
import { sql } from "../src/db/db.ts";
import { inboxOf } from "../src/relay/message.ts";
import { createTails } from "../src/relay/tail.ts";
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
import {
  bytes,
  json,
  listen,
  messagesOf,
  says,
  sendFrame,
  Talk,
  tell,
  toAgent,
  toChannel,
} from "./relay-fixtures/relay.ts";

const reasonOf = async (over: Promise<unknown>) =>
  ConnectError.from(await over).findDetails(ErrorInfoSchema)[0]?.reason;

describe.each(dialects)("streams of messages on %s", (dialect) => {
  let world: World;
  let org: Org;
  let ann: OrgAgent;
  beforeAll(async () => {
    world = await start(dialect);
    org = await world.org();
    ann = await org.agent();
  });
  afterAll(() => world[Symbol.asyncDispose]());

  test("a subscriber gets its backlog from the first unread message, then what comes", async () => {
    const to = await org.agent();
    for (let n = 1; n <= 3; n++) await tell(ann.as, toAgent(to.agentId), n);
    await to.as.relay.markRead({ read: { case: "throughSequence", value: 1n } });
    await using stream = listen(to.as);
    await stream.until((seen) => messagesOf(seen).length === 2);
    await tell(ann.as, toAgent(to.agentId), 4);
    await stream.until((seen) => messagesOf(seen).length === 3);
    expect(messagesOf(stream.seen).map(says)).toEqual([2, 3, 4]);
    expect(stream.seen[0]).toMatchObject({ sequence: 1n, event: { case: "checkpoint" } });
    expect(stream.seen.map(({ sequence }) => sequence)).toEqual([1n, 2n, 3n, 4n]);
  });

  test("a message is the same on every protocol, and is written once for all that stream it in the binary form", async () => {
    const to = await org.agent();
    await tell(ann.as, toAgent(to.agentId), { a: [1, null, "ü"] }, { headers: { h: "1" }, threadId: "t" });
    await ann.as.relay.send({ ...toAgent(to.agentId), payload: bytes(new Uint8Array([0, 255])) });
    await to.as.relay.listInbox({});
    await eventually(async () =>
      (await to.as.relay.listInbox({})).messages.every(({ deliveredTime }) => deliveredTime),
    );
    const expected = (await to.as.relay.listInbox({})).messages;
    for (const protocol of ["connect", "connect-json", "grpc", "grpc-web"] as const) {
      await using stream = listen(world.as(to.key, protocol), { start: Start.OLDEST });
      await stream.until((seen) => messagesOf(seen).length === 2);
      expect(messagesOf(stream.seen)).toEqual(expected);
      expect(stream.seen.map(({ sequence }) => sequence)).toEqual([0n, 1n, 2n]);
    }
    const tails = createTails(world.server.app);
    const [one, two] = [tails.open(inboxOf(org.orgId, to.agentId)), tails.open(inboxOf(org.orgId, to.agentId))];
    const [first, second] = [(await one.read(0))!.told, (await two.read(0))!.told];
    expect(first).toHaveLength(2);
    for (const [n, { subscribed, written }] of first.entries()) {
      expect(toBinary(SubscribeResponseSchema, written())).toEqual(toBinary(SubscribeResponseSchema, subscribed));
      expect(second[n]!.written()).toBe(written());
    }
    one.release();
    two.release();
  });

  test("who reads up to the end of what others have read goes on reading, whatever came since", async () => {
    const to = await org.agent();
    const tails = createTails(world.server.app);
    const [fast, slow] = [tails.open(inboxOf(org.orgId, to.agentId)), tails.open(inboxOf(org.orgId, to.agentId))];
    await tell(ann.as, toAgent(to.agentId), 1);
    expect((await fast.read(0))!.told).toHaveLength(1);
    await tell(ann.as, toAgent(to.agentId), 2);
    const read: unknown[] = [];
    // As a stream does that was woken once: it reads while there is more.
    for (let page = await slow.read(0); ; page = await slow.read(page!.position)) {
      read.push(...page!.told.map(({ message }) => says(message)));
      if (!page!.more) break;
    }
    expect(read).toEqual([1, 2]);
    fast.release();
    slow.release();
  });

  test("it begins where it is told: from now, from the oldest, after a sequence; and resumes without a gap", async () => {
    const to = await org.agent();
    for (let n = 1; n <= 150; n++) await tell(ann.as, toAgent(to.agentId), n);
    await using now = listen(to.as, { start: Start.NOW });
    await using oldest = listen(to.as, { start: Start.OLDEST });
    await using after = listen(to.as, { afterSequence: 100n });
    await now.until((seen) => seen.length === 1);
    await tell(ann.as, toAgent(to.agentId), 151);
    await now.until((seen) => messagesOf(seen).length === 1);
    await oldest.until((seen) => messagesOf(seen).length === 151);
    await after.until((seen) => messagesOf(seen).length === 51);
    const upTo = (from: number) => Array.from({ length: 152 - from }, (_, n) => from + n);
    expect(messagesOf(now.seen).map(says)).toEqual([151]);
    expect(messagesOf(oldest.seen).map(says)).toEqual(upTo(1));
    expect(messagesOf(after.seen).map(says)).toEqual(upTo(101));
    const both = to.as.relay.subscribe({ afterSequence: 1n, start: Start.NOW })[Symbol.asyncIterator]().next();
    expect((await refusal(both)).reason).toBe("INVALID_REQUEST");
    const beyond = to.as.relay.subscribe({ afterSequence: 152n })[Symbol.asyncIterator]().next();
    expect(await refusal(beyond)).toMatchObject({ code: "OutOfRange", reason: "CURSOR_EXPIRED" });
  });

  test("it tells only what its filter lets through", async () => {
    const [to, bob] = [await org.agent(), await org.agent()];
    await using odd = listen(to.as, { filter: { labels: ["odd"] } });
    await using bobs = listen(to.as, { filter: { senderAgentId: bob.agentId } });
    for (let n = 1; n <= 8; n++)
      await tell((n > 4 ? bob : ann).as, toAgent(to.agentId), n, { label: n % 2 ? "odd" : "even" });
    await odd.until((seen) => messagesOf(seen).length === 4);
    await bobs.until((seen) => messagesOf(seen).length === 4);
    expect(messagesOf(odd.seen).map(says)).toEqual([1, 3, 5, 7]);
    expect(messagesOf(bobs.seen).map(says)).toEqual([5, 6, 7, 8]);
  });

  test("what is streamed to its recipient is delivered, also only what a filter lets through", async () => {
    const to = await org.agent();
    const [a, b] = [
      await tell(ann.as, toAgent(to.agentId), 1, { label: "a" }),
      await tell(ann.as, toAgent(to.agentId), 2, { label: "b" }),
    ];
    await using stream = listen(to.as, { filter: { labels: ["b"] } });
    await stream.until((seen) => messagesOf(seen).length === 1);
    const state = async (messageId: string) => (await ann.as.relay.getMessage({ messageId })).message!.state;
    await eventually(async () => (await state(b.messageId)) === MessageState.DELIVERED);
    expect(await state(a.messageId)).toBe(MessageState.ACCEPTED);
  });

  test("a stream that comes to what is no longer kept ends and says what the oldest is", async () => {
    await using small = await start(dialect, { relayMaxMessages: 3 });
    const smallOrg = await small.org();
    const one = await smallOrg.agent();
    await one.as.relay.createChannel({ name: "c" });
    for (let n = 1; n <= 9; n++) await tell(one.as, toChannel("c"), n);
    const first = one.as.relay.subscribe({ channel: "c", afterSequence: 4n })[Symbol.asyncIterator]().next();
    expect(await refusal(first)).toMatchObject({ code: "OutOfRange", metadata: { oldest_sequence: "7" } });
    await using kept = listen(one.as, { channel: "c", afterSequence: 6n });
    await kept.until((seen) => messagesOf(seen).length === 3);
  });

  test("a channel's members hear what is published; late joiners read its history; a member put out hears no more", async () => {
    const [owner, member, stranger] = [await org.agent(), await org.agent(), await org.agent()];
    const channel = unique("room");
    await owner.as.relay.createChannel({ name: channel, membersOnly: true });
    const notThere = { reason: "NOT_FOUND" };
    for (const call of [
      () => tell(stranger.as, toChannel(channel), 1),
      () => stranger.as.relay.getChannel({ channel }),
      () => stranger.as.relay.joinChannel({ channel }),
      () => stranger.as.relay.listMessages({ channel }),
      () => stranger.as.relay.listMembers({ channel }),
      () => stranger.as.relay.subscribe({ channel })[Symbol.asyncIterator]().next(),
      () => member.as.relay.addMember({ channel, memberAgentId: member.agentId }),
      () => member.as.relay.deleteChannel({ channel }),
    ])
      expect(await refusal(call())).toMatchObject(notThere);
    await tell(owner.as, toChannel(channel), 1);
    await owner.as.relay.addMember({ channel, memberAgentId: member.agentId });
    await using heard = listen(member.as, { channel, start: Start.OLDEST });
    await heard.until((seen) => messagesOf(seen).length === 1);
    await tell(member.as, toChannel(channel), 2);
    await heard.until((seen) => messagesOf(seen).length === 2);
    expect(messagesOf(heard.seen)).toMatchObject([
      { channel, sequence: 1n, recipientAgentId: "" },
      { sequence: 2n, senderAgentId: member.agentId },
    ]);
    await owner.as.relay.removeMember({ channel, memberAgentId: member.agentId });
    expect(await reasonOf(heard.over), "streams ask again after a second").toBe("NOT_FOUND");
    await tell(owner.as, toChannel(channel), 3);
    expect(messagesOf(heard.seen)).toHaveLength(2);
  });

  test("a channel that is deleted ends its streams, and its name is free for another", async () => {
    const owner = await org.agent();
    const channel = unique("gone");
    await owner.as.relay.createChannel({ name: channel });
    expect((await refusal(ann.as.relay.createChannel({ name: channel }))).reason).toBe("ALREADY_EXISTS");
    await tell(owner.as, toChannel(channel), 1);
    await using heard = listen(owner.as, { channel, start: Start.OLDEST });
    await heard.until((seen) => messagesOf(seen).length === 1);
    expect(await owner.as.relay.deleteChannel({ channel })).toMatchObject({ deletedMessages: 1n });
    expect(await reasonOf(heard.over)).toBe("NOT_FOUND");
    await ann.as.relay.createChannel({ name: channel });
    expect((await ann.as.relay.listMessages({ channel })).messages).toEqual([]);
  });

  test("channels are listed to who may know of them, joined, changed and left", async () => {
    const here = await world.org();
    const [a, b] = [await here.agent(), await here.agent()];
    for (const name of ["alpha", "beta", "gamma"])
      await a.as.relay.createChannel({ name, membersOnly: name === "beta" });
    const names = async (of: OrgAgent, more = {}) => {
      const found: string[] = [];
      for (let pageToken = ""; ; ) {
        const page = await of.as.relay.listChannels({ pageSize: 1, pageToken, ...more });
        found.push(...page.channels.map(({ name }) => name));
        if (!page.nextPageToken) return found;
        pageToken = page.nextPageToken;
      }
    };
    expect(await names(a)).toEqual(["alpha", "beta", "gamma"]);
    expect(await names(b)).toEqual(["alpha", "gamma"]);
    expect((await b.as.relay.joinChannel({ channel: "gamma" })).channel).toMatchObject({ members: 2, joined: true });
    expect((await b.as.relay.joinChannel({ channel: "gamma" })).channel).toMatchObject({ members: 2 });
    expect(await names(b, { joinedOnly: true })).toEqual(["gamma"]);
    const { members } = await b.as.relay.listMembers({ channel: "gamma" });
    expect(members.map(({ agentId }) => agentId)).toEqual([a.agentId, b.agentId].sort());
    expect(await b.as.relay.leaveChannel({ channel: "gamma" })).toMatchObject({ left: true });
    expect(await b.as.relay.leaveChannel({ channel: "gamma" })).toMatchObject({ left: false });
    const change = {
      channel: "alpha",
      change: { description: "d", membersOnly: true },
      updateMask: { paths: ["description"] },
    };
    expect((await a.as.relay.updateChannel({ ...change, ifRevision: 1n })).channel).toMatchObject({
      description: "d",
      membersOnly: false,
      revision: 2n,
    });
    expect((await refusal(a.as.relay.updateChannel({ ...change, ifRevision: 1n }))).reason).toBe("FAILED_PRECONDITION");
    expect((await refusal(b.as.relay.updateChannel(change))).reason).toBe("NOT_FOUND");
    expect((await refusal(a.as.relay.updateChannel({ ...change, updateMask: { paths: ["name"] } }))).reason).toBe(
      "INVALID_REQUEST",
    );
    expect((await refusal((await world.org()).admin.relay.getChannel({ channel: "alpha" }))).reason).toBe("NOT_FOUND");
  });

  test("a message whose time is over is passed over, also before it is removed", async () => {
    // Its clock stands still, so that nothing is swept.
    await using still = await start(dialect, { clock: fakeClock() });
    const here = await still.org();
    const to = await here.agent();
    for (const n of [1, 2, 3]) await tell(to.as, toAgent(to.agentId), n);
    const { db } = still.server.app;
    await db.tx((tx) =>
      tx.run(sql`update relay_message set expire_ms = 1 where log_id = ${to.agentId} and sequence = 2`),
    );
    await using stream = listen(to.as, { start: Start.OLDEST });
    await using talk = new Talk(to.as, { start: Start.OLDEST });
    await stream.until((seen) => messagesOf(seen).length === 2);
    await talk.until(() => talk.messages.length === 2);
    expect(messagesOf(stream.seen).map(says)).toEqual([1, 3]);
    expect(talk.messages.map(says)).toEqual([1, 3]);
  });

  test("many who stream one channel share each read of the table", async () => {
    const channel = unique("crowd");
    await ann.as.relay.createChannel({ name: channel });
    const streams = Array.from({ length: 40 }, () => listen(ann.as, { channel }));
    for (const stream of streams) await stream.until((seen) => seen.length === 1);
    const { app } = world.server;
    const { query } = app.db;
    let reads = 0;
    const all = query.all.bind(query);
    Object.assign(query, {
      all: (q: { sql: string }) => {
        if (q.sql.includes("summed")) reads++;
        return all(q as never);
      },
    });
    for (let n = 1; n <= 10; n++) {
      await tell(ann.as, toChannel(channel), n);
      for (const stream of streams) await stream.until((seen) => messagesOf(seen).length === n);
    }
    Object.assign(query, { all });
    for (const stream of streams) expect(messagesOf(stream.seen).map(says)).toEqual([1, 2, 3, 4, 5, 6, 7, 8, 9, 10]);
    // PostgreSQL's streams poll besides.
    expect(reads).toBeLessThanOrEqual(dialect === "sqlite" ? 20 : 300);
    for (const stream of streams) stream.leave();
    await Promise.all(streams.map(({ over }) => over));
  });
});

describe.each(dialects)("conversations on %s", (dialect) => {
  let world: World;
  let org: Org;
  let ann: OrgAgent;
  beforeAll(async () => {
    world = await start(dialect);
    org = await world.org();
    ann = await org.agent();
  });
  afterAll(() => world[Symbol.asyncDispose]());

  test("two agents converse, one by gRPC: each frame has its answer, each message comes once, in order", async () => {
    const bob = await org.agent();
    await using a = new Talk(world.as(ann.key, "grpc"), { start: Start.NOW });
    await using b = new Talk(bob.as);
    expect(await a.answer("open")).toMatchObject({ case: "opened", value: { agentId: ann.agentId } });
    await b.answer("open");
    const frames = Array.from({ length: 100 }, (_, n) =>
      sendFrame(`s${n}`, { ...toAgent(bob.agentId), payload: json(n) }),
    );
    a.say(...frames);
    await b.until(() => b.messages.length === 100);
    expect(b.messages.map(says)).toEqual(Array.from({ length: 100 }, (_, n) => n));
    await a.answer("s99");
    const answers = a.seen.filter(({ event }) => event.case === "sent");
    expect(answers.map(({ ref }) => ref)).toEqual(frames.map(({ ref }) => ref));
    const read = { case: "throughSequence", value: 60n } as const;
    b.say({ ref: "read", frame: { case: "markRead", value: { read } } } as never);
    expect(await b.answer("read")).toMatchObject({ case: "marked", value: { marked: 60 } });
    b.say(sendFrame("back", { ...toAgent(ann.agentId), payload: json("thanks") }));
    await a.until(() => a.messages.length === 1);
    expect(a.messages.map(says)).toEqual(["thanks"]);
    const last = await eventually(async () => {
      const { messages } = await ann.as.relay.listSent({ pageSize: 1 });
      return messages[0]!.state === MessageState.DELIVERED && messages[0];
    });
    expect(last).toMatchObject({ sequence: 100n });
  });

  test("a frame that is refused says why and ends nothing; one that is sent again with its key is not carried out again", async () => {
    const bob = await org.agent();
    await using a = new Talk(ann.as, { sendOnly: true });
    const message = { ...toAgent(bob.agentId), payload: json("once") };
    const key = unique("k");
    a.say(sendFrame("one", message, key), sendFrame("two", message, key));
    const [one, two] = [await a.answer("one"), await a.answer("two")];
    expect(one.case).toBe("sent");
    expect(two).toEqual(one);
    const unary = await ann.as.relay.send(message, { headers: { "idempotency-key": key } });
    expect(unary.messageId).toBe((one.value as { messageId: string }).messageId);
    a.say(
      sendFrame("nobody", { ...toAgent(`agt_${"0".repeat(32)}`), payload: json(1) }),
      sendFrame("large", { ...toAgent(bob.agentId), payload: json("x".repeat(70_000)) }),
      sendFrame("reused", { ...message, payload: json("another") }, key),
      { ref: "again", frame: { case: "open", value: {} } } as never,
      sendFrame("good", { ...toAgent(bob.agentId), payload: json(2) }),
    );
    expect((await a.answer("good")).case).toBe("sent");
    const reasons = a.seen.flatMap(({ ref, event }) => (event.case === "failed" ? [[ref, event.value.reason]] : []));
    expect(reasons).toEqual([
      ["nobody", "NOT_FOUND"],
      ["large", "PAYLOAD_TOO_LARGE"],
      ["reused", "IDEMPOTENCY_KEY_REUSED"],
      ["again", "INVALID_REQUEST"],
    ]);
    expect((await bob.as.relay.listInbox({})).messages.map(says)).toEqual(["once", 2]);
    a.end();
    expect(await a.over).toBeUndefined();
  });

  test("what is malformed ends the stream, and so does a first frame that is not open", async () => {
    const malformed = new Talk(ann.as, { sendOnly: true });
    await malformed.answer("open");
    malformed.say(sendFrame("x", { ...toAgent(ann.agentId), payload: json(1), label: "l".repeat(200) }));
    expect(await reasonOf(malformed.over)).toBe("INVALID_REQUEST");
    const first = ann.as.relay
      .converse(
        (async function* () {
          yield sendFrame("x", { ...toAgent(ann.agentId), payload: json(1) }) as never;
        })(),
      )
      [Symbol.asyncIterator]()
      .next();
    expect((await refusal(first)).reason).toBe("INVALID_REQUEST");
    const { secret } = await org.admin.keys.createApiKey({
      agentId: ann.agentId,
      scopes: ["messages:write", "messages:read"],
    });
    const unscoped = new Talk(world.as(secret), {});
    expect(await reasonOf(unscoped.over)).toBe("SCOPE_REQUIRED");
  });

  test("each frame counts for the rate limit, and what is refused has no effect", async () => {
    await using limited = await start(dialect, { rateLimit: 6 });
    const here = await limited.org();
    const [a, b] = [await here.agent(), await here.agent()];
    await using talk = new Talk(a.as, { sendOnly: true });
    for (let n = 0; n < 8; n++) talk.say(sendFrame(`${n}`, { ...toAgent(b.agentId), payload: json(n) }));
    await talk.answer("7");
    const refused = talk.seen.flatMap(({ event }) => (event.case === "failed" ? [event.value] : []));
    expect(refused.map(({ reason }) => reason)).toEqual(["RATE_LIMITED", "RATE_LIMITED", "RATE_LIMITED"]);
    expect(Number(refused[0]!.retryAfter!.seconds)).toBeGreaterThan(0);
    expect((await b.as.relay.listInbox({})).messages.map(says)).toEqual([0, 1, 2, 3, 4]);
  });

  test("an agent is present as long as a conversation is open, and says how", async () => {
    const bob = await org.agent();
    const nobody = `agt_${"0".repeat(32)}`;
    const foreign = await (await world.org()).agent();
    await using foreignTalk = new Talk(foreign.as);
    await foreignTalk.answer("open");
    const statuses = async () =>
      (await ann.as.relay.listPresence({ agentIds: [nobody, bob.agentId, foreign.agentId] })).presences.map(
        ({ status }) => status,
      );
    const { OFFLINE, ONLINE, BUSY } = PresenceStatus;
    expect(await statuses()).toEqual([OFFLINE, OFFLINE, OFFLINE]);
    await using a = new Talk(ann.as, { sendOnly: true });
    a.say({ ref: "watch", frame: { case: "watchPresence", value: { agentIds: [bob.agentId] } } } as never);
    await a.answer("watch");
    const seen = () => a.seen.flatMap(({ event }) => (event.case === "presence" ? [event.value.status] : []));
    await a.until(() => seen().length === 1);
    const b = new Talk(bob.as);
    await a.until(() => seen().length === 2);
    b.say({ ref: "busy", frame: { case: "setPresence", value: { status: BUSY } } } as never);
    await b.answer("busy");
    await a.until(() => seen().length === 3);
    expect(await statuses()).toEqual([OFFLINE, BUSY, OFFLINE]);
    b.leave();
    await b.over;
    await a.until(() => seen().length === 4);
    expect(seen()).toEqual([OFFLINE, ONLINE, BUSY, OFFLINE]);
    expect(
      await world.server.app.db.query.one(sql`select 1 as one from relay_presence where agent_id = ${bob.agentId}`),
    ).toBeUndefined();
  });

  test("a conversation ends with its key, and when the server stops, with its cursor", async () => {
    const stopped = await start(dialect);
    const here = await stopped.org();
    const agent = await here.agent();
    await tell(agent.as, toAgent(agent.agentId), 1);
    const talk = new Talk(agent.as);
    await talk.until(() => talk.messages.length === 1);
    const { apiKey, secret } = await here.admin.keys.createApiKey({ agentId: agent.agentId });
    const other = new Talk(stopped.as(secret));
    await other.answer("open");
    await here.admin.keys.revokeApiKey({ keyId: apiKey!.keyId });
    expect(await reasonOf(other.over)).toBe("KEY_REVOKED");
    await stopped[Symbol.asyncDispose]();
    const ended = ConnectError.from(await talk.over).findDetails(ErrorInfoSchema)[0];
    expect(ended).toMatchObject({ reason: "SHUTTING_DOWN", metadata: { cursor: "1" } });
  });

  test("a client that sends and reads nothing is not read on: its answers stay few", async () => {
    const bob = await org.agent();
    const leave = new AbortController();
    let sent = 0;
    const total = 5_000;
    const stream = ann.as.relay.converse(
      (async function* () {
        yield { frame: { case: "open", value: { sendOnly: true } } } as never;
        // The answer to each is small; the refs make it large enough for a window to fill.
        for (; sent < total; sent++)
          yield sendFrame("r".repeat(60), { ...toAgent(bob.agentId), payload: json("y".repeat(2_000)) }) as never;
      })(),
      { signal: leave.signal },
    );
    const answers = stream[Symbol.asyncIterator]();
    await answers.next();
    const done = async () => Number((await bob.as.relay.listInbox({ pageSize: 1 })).lastSequence);
    let before = -1;
    await eventually(async () => {
      const now = await done();
      const still = now === before && now > 0;
      before = now;
      await new Promise((resolve) => setTimeout(resolve, 300));
      return still;
    }, 150_000);
    expect(await done()).toBeLessThan(total);
    leave.abort();
    await answers.next().catch(() => {});
  }, 180_000);
});
