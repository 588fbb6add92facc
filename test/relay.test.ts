import { durationFromMs } from "@bufbuild/protobuf/wkt";
import { Code, ConnectError } from "@connectrpc/connect";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { TrustTier } from "../gen/moltwire/bus/v1/agent_pb.ts";
import { MessageState, PresenceStatus } from "../gen/moltwire/relay/v1/message_pb.ts";
import { MessageOrder, Start } from "../gen/moltwire/relay/v1/relay_service_pb.ts";
import { type Queryable, type Sql, sql } from "../src/db/db.ts";
import { removeDroppedLogs } from "../src/relay/drop.ts";
import { type ListRequest, pageOfMessages } from "../src/relay/list.ts";
import { inboxOf } from "../src/relay/message.ts";
import { retentionWalk } from "../src/relay/sweep.ts";
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
import { bytes, json, type SubscribeInit, says, Talk, tell, toAgent, toChannel } from "./relay-fixtures/relay.ts";

const said = (messages: readonly { payload?: unknown }[]) => messages.map((message) => says(message as never));

describe.each(dialects)("messages on %s", (dialect) => {
  let world: World;
  let org: Org;
  let ann: OrgAgent;
  let bob: OrgAgent;
  beforeAll(async () => {
    world = await start(dialect);
    org = await world.org();
    [ann, bob] = [await org.agent(), await org.agent()];
  });
  afterAll(() => world[Symbol.asyncDispose]());

  const inbox = async (of: OrgAgent, more = {}) => (await of.as.relay.listInbox(more)).messages;

  test("a message is stored with all that was said, in the recipient's sequence, and says who sent it", async () => {
    const to = await org.agent();
    const first = await tell(
      ann.as,
      toAgent(to.agentId),
      { hello: [1, null] },
      {
        label: "greetings",
        threadId: "t1",
        replyTo: `msg_${"0".repeat(32)}`,
        headers: { a: "1", b: "ü" },
      },
    );
    const second = await bob.as.relay.send({
      ...toAgent(to.agentId),
      payload: bytes(new Uint8Array([0, 255]), "application/x"),
    });
    expect([first.sequence, second.sequence]).toEqual([1n, 2n]);
    const messages = await inbox(to);
    expect(messages).toMatchObject([
      {
        orgId: org.orgId,
        messageId: first.messageId,
        sequence: 1n,
        senderAgentId: ann.agentId,
        recipientAgentId: to.agentId,
        channel: "",
        label: "greetings",
        threadId: "t1",
        replyTo: `msg_${"0".repeat(32)}`,
        headers: { a: "1", b: "ü" },
        state: MessageState.ACCEPTED,
      },
      {
        senderAgentId: bob.agentId,
        label: "direct",
        payload: { kind: { case: "data" }, contentType: "application/x" },
      },
    ]);
    expect(says(messages[0])).toEqual({ hello: [1, null] });
    expect(messages[0]!.traceId).toMatch(/^[0-9a-f]{32}$/);
    expect([...(messages[1]!.payload!.kind.value as Uint8Array)]).toEqual([0, 255]);
  });

  test("what is malformed is refused with its field, and nothing is stored", async () => {
    const to = await org.agent();
    const good = { ...toAgent(to.agentId), payload: json(1) };
    const wrong: [object, string, string][] = [
      [{ ...good, to: { case: undefined } }, "INVALID_REQUEST", "to"],
      [{ ...toAgent(to.agentId) }, "INVALID_REQUEST", "payload"],
      [{ ...good, payload: {} }, "INVALID_REQUEST", "payload"],
      [{ ...good, payload: bytes(new Uint8Array(65_537)) }, "PAYLOAD_TOO_LARGE", "payload"],
      [{ ...good, payload: json("x".repeat(65_535)) }, "PAYLOAD_TOO_LARGE", "payload"],
      [{ ...good, label: "x".repeat(129) }, "INVALID_REQUEST", "label"],
      [{ ...good, threadId: "a\0b" }, "INVALID_REQUEST", "thread_id"],
      [{ ...good, replyTo: "msg_1" }, "INVALID_REQUEST", "reply_to"],
      [{ ...good, ttl: durationFromMs(999) }, "INVALID_REQUEST", "ttl"],
      [{ ...good, ttl: durationFromMs(366 * 86_400_000) }, "INVALID_REQUEST", "ttl"],
      [
        { ...good, headers: Object.fromEntries(Array.from({ length: 33 }, (_, n) => [`h${n}`, ""])) },
        "INVALID_REQUEST",
        "headers",
      ],
      [
        { ...good, headers: Object.fromEntries(Array.from({ length: 9 }, (_, n) => [`h${n}`, "x".repeat(1_000)])) },
        "PAYLOAD_TOO_LARGE",
        "headers",
      ],
      [{ ...good, headers: { "": "x" } }, "INVALID_REQUEST", 'headers[""]'],
    ];
    for (const [request, reason, field] of wrong) {
      const refused = await refusal(ann.as.relay.send(request as never));
      expect([reason, field]).toEqual([refused.reason, refused.metadata.field]);
    }
    let deep: unknown = 1;
    for (let n = 0; n < 33; n++) deep = [deep];
    expect((await refusal(tell(ann.as, toAgent(to.agentId), deep as never))).reason).toBe("PAYLOAD_TOO_LARGE");
    await ann.as.relay.send({ ...good, payload: json("x".repeat(65_534)) });
    expect(await inbox(to)).toHaveLength(1);
  });

  test("a foreign agent is answered as one that does not exist, byte for byte, and nothing is stored", async () => {
    const foreign = await (await world.org()).agent();
    const nobody = `agt_${"0".repeat(32)}`;
    const answer = async (agentId: string) => {
      const { code, reason, metadata, error } = await refusal(tell(ann.as, toAgent(agentId), 1));
      const { trace_id, ...rest } = metadata;
      return JSON.stringify({ code, reason, rest, message: error.rawMessage }).replaceAll(agentId, "ID");
    };
    expect(await answer(foreign.agentId)).toBe(await answer(nobody));
    expect(await inbox(foreign)).toEqual([]);
    for (const call of [
      () => ann.as.relay.listInbox({ agentId: foreign.agentId }),
      () => ann.as.relay.markRead({ agentId: foreign.agentId, read: { case: "throughSequence", value: 1n } }),
      () => ann.as.relay.listInbox({ agentId: bob.agentId }),
      () => org.admin.relay.listInbox({ agentId: foreign.agentId }),
    ])
      expect((await refusal(call())).reason).toBe("NOT_FOUND");
    const { messageId } = await tell(foreign.as, toAgent(foreign.agentId), "mine");
    expect((await refusal(org.admin.relay.getMessage({ messageId }))).reason).toBe("NOT_FOUND");
    expect((await refusal(ann.as.relay.getMessage({ messageId }))).reason).toBe("NOT_FOUND");
  });

  test("who may write to whom the policies decide, and keep what they refused", async () => {
    const vendor = await org.agent({ trustTier: TrustTier.PUBLIC_VENDOR });
    const refused = await refusal(tell(vendor.as, toAgent(ann.agentId), 1));
    expect(refused).toMatchObject({ reason: "POLICY_DENIED", metadata: { action: "send_message" } });
    const { decisions } = await org.admin.policies.listDecisions({ agentId: vendor.agentId });
    expect(decisions).toHaveLength(1);
    await tell(vendor.as, toAgent(vendor.agentId), "to myself");
    await tell(ann.as, toAgent(vendor.agentId), "to you");
    expect(said(await inbox(vendor))).toEqual(["to myself", "to you"]);
    // As docs/how-to/policy.md says.
    const cedarText = `permit (principal is Agent, action == Action::"send_message", resource is Agent) when { principal.org == resource.org };`;
    await org.admin.policies.putPolicy({ policyId: "all-may-write", cedarText });
    await tell(vendor.as, toAgent(ann.agentId), "permitted");
    await org.admin.policies.deletePolicy({ policyId: "all-may-write" });
    expect((await refusal(tell(vendor.as, toAgent(ann.agentId), 1))).reason).toBe("POLICY_DENIED");
  });

  test("an administrator sends for an agent it names, or for none", async () => {
    const to = await org.agent();
    await tell(org.admin, toAgent(to.agentId), 1, { agentId: ann.agentId });
    await tell(org.admin, toAgent(to.agentId), 2);
    expect((await inbox(to)).map(({ senderAgentId }) => senderAgentId)).toEqual([ann.agentId, ""]);
    expect((await refusal(tell(bob.as, toAgent(to.agentId), 3, { agentId: ann.agentId }))).reason).toBe("NOT_FOUND");
    expect((await org.admin.relay.listInbox({ agentId: to.agentId })).messages).toHaveLength(2);
    expect((await refusal(org.admin.relay.listInbox({}))).reason).toBe("INVALID_REQUEST");
  });

  test("a repeated send with its key is the same message", async () => {
    const to = await org.agent();
    const key = { headers: { "idempotency-key": unique("k") } };
    const request = { ...toAgent(to.agentId), payload: json("once") };
    const [one, two] = [await ann.as.relay.send(request, key), await ann.as.relay.send(request, key)];
    expect(two).toEqual(one);
    expect((await refusal(ann.as.relay.send({ ...request, payload: json("twice") }, key))).reason).toBe(
      "IDEMPOTENCY_KEY_REUSED",
    );
    expect(await inbox(to)).toHaveLength(1);
  });

  test("a list goes through an inbox page by page, either way, filtered, from a sequence, what is not read", async () => {
    const to = await org.agent();
    for (let n = 1; n <= 12; n++)
      await tell((n % 3 === 0 ? bob : ann).as, toAgent(to.agentId), n, {
        label: n % 2 ? "odd" : "even",
        threadId: n > 6 ? "late" : "",
      });
    const all = async (request: object) => {
      const found: unknown[] = [];
      for (let pageToken = ""; ; ) {
        const page = await to.as.relay.listInbox({ pageSize: 3, ...request, pageToken });
        found.push(...said(page.messages));
        if (!page.nextPageToken) return found;
        pageToken = page.nextPageToken;
      }
    };
    const upTo12 = Array.from({ length: 12 }, (_, n) => n + 1);
    expect(await all({})).toEqual(upTo12);
    expect(await all({ order: MessageOrder.NEWEST })).toEqual(upTo12.toReversed());
    expect(await all({ afterSequence: 9n })).toEqual([10, 11, 12]);
    expect(await all({ afterSequence: 9n, order: MessageOrder.NEWEST })).toEqual([12, 11, 10]);
    expect(await all({ filter: { labels: ["odd"] } })).toEqual([1, 3, 5, 7, 9, 11]);
    expect(await all({ filter: { labels: ["odd", "even"], senderAgentId: bob.agentId } })).toEqual([3, 6, 9, 12]);
    expect(await all({ filter: { threadId: "late", labels: ["even"] } })).toEqual([8, 10, 12]);
    const ids = (await to.as.relay.listInbox({})).messages.map(({ messageId }) => messageId);
    const messageIds = [ids[1]!, ids[4]!, ids[4]!, `msg_${"0".repeat(32)}`];
    const some = { case: "messages" as const, value: { messageIds } };
    expect(await to.as.relay.markRead({ read: some })).toMatchObject({ marked: 2, more: false });
    expect(await to.as.relay.markRead({ read: some })).toMatchObject({ marked: 0 });
    expect(await all({ unreadOnly: true })).toEqual([1, 3, 4, 6, 7, 8, 9, 10, 11, 12]);
    expect(await to.as.relay.markRead({ read: { case: "throughSequence", value: 9n } })).toMatchObject({ marked: 7 });
    expect(await all({ unreadOnly: true })).toEqual([10, 11, 12]);
    expect(await all({ unreadOnly: true, order: MessageOrder.NEWEST })).toEqual([12, 11, 10]);
    const page = await to.as.relay.listInbox({ pageSize: 3 });
    expect(page).toMatchObject({ lastSequence: 12n, oldestSequence: 1n });
    const wrongPlace = to.as.relay.listInbox({ pageToken: page.nextPageToken, filter: { labels: ["odd"] } });
    expect((await refusal(wrongPlace)).reason).toBe("INVALID_PAGE_TOKEN");
    expect((await refusal(to.as.relay.listInbox({ afterSequence: 13n }))).reason).toBe("CURSOR_EXPIRED");
  });

  test("what one marks as read in an inbox marks nothing in another's", async () => {
    const [to, other] = [await org.agent(), await org.agent()];
    const { messageId } = await tell(ann.as, toAgent(to.agentId), 1);
    const read = { case: "messages" as const, value: { messageIds: [messageId] } };
    expect(await other.as.relay.markRead({ read })).toMatchObject({ marked: 0 });
    expect(await inbox(to, { unreadOnly: true })).toHaveLength(1);
  });

  test("who may read another's inbox reads it, and is not its agent: marks nothing as read, and is not present for it", async () => {
    const [to, reader] = [await org.agent(), await org.agent()];
    const { messageId } = await tell(ann.as, toAgent(to.agentId), 1);
    await org.admin.policies.putPolicy({
      policyId: unique("reads"),
      cedarText: `permit(principal == Agent::"${reader.agentId}", action == Action::"read_messages", resource == Agent::"${to.agentId}");`,
    });
    const agentId = to.agentId;
    expect(said((await reader.as.relay.listInbox({ agentId })).messages)).toEqual([1]);
    const throughSequence = { case: "throughSequence", value: 1n } as const;
    expect((await refusal(reader.as.relay.markRead({ agentId, read: throughSequence }))).reason).toBe("NOT_FOUND");
    const talk = new Talk(reader.as, { agentId });
    expect(ConnectError.from(await talk.over).code).toBe(Code.NotFound);
    expect(talk.seen).toEqual([]);
    const { presences } = await ann.as.relay.listPresence({ agentIds: [agentId] });
    expect(presences[0]).toMatchObject({ status: PresenceStatus.OFFLINE });
    expect((await ann.as.relay.getMessage({ messageId })).message).toMatchObject({ state: MessageState.ACCEPTED });
  });

  test("a sender sees how far its message has come, and nobody else does", async () => {
    const to = await org.agent();
    const { messageId } = await tell(ann.as, toAgent(to.agentId), "news");
    const state = async () => (await ann.as.relay.getMessage({ messageId })).message!;
    expect(await state()).toMatchObject({ state: MessageState.ACCEPTED });
    await org.admin.relay.listInbox({ agentId: to.agentId });
    expect(await state()).toMatchObject({ state: MessageState.ACCEPTED });
    await inbox(to);
    const delivered = await eventually(async () => {
      const message = await state();
      return message.state === MessageState.DELIVERED && message;
    });
    expect(delivered.deliveredTime).toBeDefined();
    await to.as.relay.markRead({ read: { case: "messages", value: { messageIds: [messageId] } } });
    const read = await state();
    expect(read).toMatchObject({ state: MessageState.READ, deliveredTime: delivered.deliveredTime });
    expect(says(read)).toBe("news");
    expect((await refusal(bob.as.relay.getMessage({ messageId }))).reason).toBe("NOT_FOUND");
    expect(says((await to.as.relay.getMessage({ messageId })).message)).toBe("news");
  });

  test("an agent lists what it has sent, the newest first", async () => {
    const [from, to] = [await org.agent(), await org.agent()];
    await from.as.relay.createChannel({ name: unique("c") });
    for (let n = 0; n < 5; n++) await tell(from.as, toAgent(to.agentId), n);
    await inbox(to);
    const found: bigint[] = [];
    for (let pageToken = ""; ; ) {
      const page = await from.as.relay.listSent({ pageSize: 2, pageToken });
      found.push(...page.messages.map(({ sequence }) => sequence));
      for (const message of page.messages)
        expect([message.recipientAgentId, message.payload]).toEqual([to.agentId, undefined]);
      if (!page.nextPageToken) break;
      pageToken = page.nextPageToken;
    }
    expect(found).toEqual([5n, 4n, 3n, 2n, 1n]);
    expect((await to.as.relay.listSent({})).messages).toEqual([]);
    expect((await refusal(to.as.relay.listSent({ agentId: from.agentId }))).reason).toBe("NOT_FOUND");
  });

  test("an event tells of each message to an agent, without what it says", async () => {
    const to = await org.agent();
    const { messageId } = await tell(ann.as, toAgent(to.agentId), "secret", { label: "l" });
    const leave = new AbortController();
    const watch = { types: ["message.received"], fromStart: true };
    for await (const { item } of org.admin.events.watchEvents(watch, { signal: leave.signal })) {
      if (item.case !== "event" || item.value.agentId !== to.agentId) continue;
      const ids = { message_id: messageId, sequence: 1, sender_agent_id: ann.agentId };
      expect(item.value.payload).toEqual({ ...ids, label: "l", thread_id: "" });
      break;
    }
    leave.abort();
  });

  test("an inbox goes with its agent, and its messages", async () => {
    const to = await org.agent();
    const channel = unique("c");
    await ann.as.relay.createChannel({ name: channel });
    await to.as.relay.joinChannel({ channel });
    for (let n = 0; n < 3; n++) await tell(ann.as, toAgent(to.agentId), n);
    expect(await org.admin.agents.deleteAgent({ agentId: to.agentId })).toMatchObject({ deletedMessages: 3n });
    expect((await refusal(tell(ann.as, toAgent(to.agentId), 1))).reason).toBe("NOT_FOUND");
    expect((await ann.as.relay.getChannel({ channel })).channel).toMatchObject({ members: 1 });
    await removeDroppedLogs(world.server.app);
    for (const table of [sql`relay_log`, sql`relay_message`, sql`relay_body`, sql`relay_drop`])
      expect(
        await world.server.app.db.query.one(sql`select 1 as one from ${table} where log_id = ${to.agentId}`),
      ).toBeUndefined();
  });

  test("twenty who send at once get twenty places, and each keeps its own order", async () => {
    const to = await org.agent();
    const senders = await Promise.all(Array.from({ length: 20 }, () => org.agent()));
    await Promise.all(
      senders.map(async ({ as }) => {
        for (let n = 1; n <= 15; n++) await tell(as, toAgent(to.agentId), n);
      }),
    );
    const messages = [];
    for (let pageToken = ""; ; ) {
      const page = await to.as.relay.listInbox({ pageSize: 250, pageToken });
      messages.push(...page.messages);
      if (!page.nextPageToken) break;
      pageToken = page.nextPageToken;
    }
    expect(messages.map(({ sequence }) => Number(sequence))).toEqual(Array.from({ length: 300 }, (_, n) => n + 1));
    for (const [, own] of Map.groupBy(messages, ({ senderAgentId }) => senderAgentId))
      expect(said(own)).toEqual(Array.from({ length: 15 }, (_, n) => n + 1));
  });
});

describe.each(dialects)("what a log keeps on %s", (dialect) => {
  test("a full channel lets go of its oldest messages, and says so to who comes to the hole", async () => {
    await using world = await start(dialect, { relayMaxMessages: 5 });
    const org = await world.org();
    const ann = await org.agent();
    await ann.as.relay.createChannel({ name: "c" });
    for (let n = 1; n <= 8; n++) await tell(ann.as, toChannel("c"), n);
    const listed = await ann.as.relay.listMessages({ channel: "c" });
    expect(said(listed.messages)).toEqual([4, 5, 6, 7, 8]);
    expect(listed).toMatchObject({ oldestSequence: 4n, lastSequence: 8n });
    const hole = await refusal(ann.as.relay.listMessages({ channel: "c", afterSequence: 2n }));
    expect(hole).toMatchObject({ code: "OutOfRange", reason: "CURSOR_EXPIRED", metadata: { oldest_sequence: "4" } });
    expect((await ann.as.relay.listMessages({ channel: "c", afterSequence: 3n })).messages).toHaveLength(5);
  });

  test("a full inbox lets go of what is read, and refuses while its oldest message is not", async () => {
    await using world = await start(dialect, { relayMaxMessages: 3 });
    const org = await world.org();
    const [ann, bob] = [await org.agent(), await org.agent()];
    for (let n = 1; n <= 3; n++) await tell(ann.as, toAgent(bob.agentId), n);
    const refused = await refusal(tell(ann.as, toAgent(bob.agentId), 4));
    expect(refused).toMatchObject({ reason: "QUOTA_EXCEEDED", metadata: { resource: "inbox_messages", limit: "3" } });
    await bob.as.relay.markRead({ read: { case: "throughSequence", value: 2n } });
    expect([
      (await tell(ann.as, toAgent(bob.agentId), 4)).sequence,
      (await tell(ann.as, toAgent(bob.agentId), 5)).sequence,
    ]).toEqual([4n, 5n]);
    expect((await refusal(tell(ann.as, toAgent(bob.agentId), 6))).reason).toBe("QUOTA_EXCEEDED");
    expect(said((await bob.as.relay.listInbox({})).messages)).toEqual([3, 4, 5]);
  });

  test("by bytes too; and an operator can have unread messages go", async () => {
    await using world = await start(dialect, { relayMaxBytes: 10_000, relayFullInbox: "drop-oldest" });
    const org = await world.org();
    const [ann, bob] = [await org.agent(), await org.agent()];
    for (let n = 1; n <= 8; n++) await tell(ann.as, toAgent(bob.agentId), `${n}`.repeat(3_000));
    const { messages, oldestSequence } = await bob.as.relay.listInbox({});
    expect(messages.map(({ sequence }) => sequence)).toEqual([6n, 7n, 8n]);
    expect(oldestSequence).toBe(6n);
  });

  test("who begins at the first unread message gets what there is and is told what is gone unread, until it says that it knows", async () => {
    const clock = fakeClock();
    await using world = await start(dialect, {
      ...{ clock, relayMaxMessages: 3, relayFullInbox: "drop-oldest", relayRetentionDays: 2 },
    });
    const org = await world.org();
    const [ann, bob] = [await org.agent(), await org.agent()];
    const push = async (...all: number[]) => {
      for (const n of all) await tell(ann.as, toAgent(bob.agentId), n);
    };
    /** The first message of a stream: where it begins, and what it says is gone. */
    const first = (from: SubscribeInit = {}) => {
      const leave = new AbortController();
      const stream = bob.as.relay.subscribe(from, { signal: leave.signal });
      return stream[Symbol.asyncIterator]()
        .next()
        .finally(() => leave.abort())
        .then(({ value }) => [value!.sequence, value!.unreadGoneSequence]);
    };
    const opened = async (open: { sendOnly?: boolean }) => {
      await using talk = new Talk(bob.as, open);
      const answer = await talk.answer("open");
      return answer.case === "opened" && [answer.value.sequence, answer.value.unreadGoneSequence];
    };
    const gone = async () => (await bob.as.relay.listInbox({ unreadOnly: true })).unreadGoneSequence;
    const markRead = async (throughSequence: bigint) =>
      (await bob.as.relay.markRead({ read: { case: "throughSequence", value: throughSequence } })).unreadGoneSequence;
    const kept = async () => (await bob.as.relay.listInbox({})).messages;
    const markIds = async (...sequences: number[]) => {
      const messageIds = (await kept())
        .filter(({ sequence }) => sequences.includes(Number(sequence)))
        .map(({ messageId }) => messageId);
      return (await bob.as.relay.markRead({ read: { case: "messages", value: { messageIds } } })).unreadGoneSequence;
    };
    await push(1, 2, 3);
    expect(await markRead(2n)).toBe(0n);
    // What goes was read.
    await push(4, 5);
    expect([await gone(), await first()]).toEqual([0n, [2n, 0n]]);
    await push(6, 7);
    expect(await gone()).toBe(4n);
    for (const from of [{}, { start: Start.FIRST_UNREAD }, {}]) expect(await first(from)).toEqual([4n, 4n]);
    expect([await opened({}), await opened({ sendOnly: true })]).toEqual([
      [4n, 4n],
      [0n, 0n],
    ]);
    // Only who begins at the first unread one has to be told; a hole that is named stays one.
    for (const [from, at] of [
      [{ start: Start.OLDEST }, 4n],
      [{ start: Start.NOW }, 7n],
      [{ afterSequence: 4n }, 4n],
    ] as const)
      expect(await first(from)).toEqual([at, 0n]);
    expect(await refusal(first({ afterSequence: 3n }))).toMatchObject({
      ...{ code: "OutOfRange", reason: "CURSOR_EXPIRED" },
      metadata: { oldest_sequence: "5", last_sequence: "7" },
    });
    expect([await markRead(3n), await first()]).toEqual([4n, [4n, 4n]]);
    // Through what is gone, and nothing that is kept is marked.
    expect([await markRead(4n), await gone(), await first()]).toEqual([4n, 0n, [4n, 0n]]);
    expect((await kept()).map(({ state }) => state)).not.toContain(MessageState.READ);
    // By ids it is known with a newer one before which nothing is unread.
    await push(8);
    expect([await gone(), await markIds(7), await gone(), await first()]).toEqual([5n, 5n, 5n, [5n, 5n]]);
    expect([await markIds(6), await gone(), await first()]).toEqual([5n, 0n, [7n, 0n]]);
    // By their age too; what has expired by its own time is not missed.
    await tell(ann.as, toAgent(bob.agentId), "short", { ttl: durationFromMs(1_000) });
    await markRead(8n);
    // The server's own walk may be at it, which another passes over.
    const walked = (through: bigint) =>
      eventually(async () => {
        await retentionWalk(world.server.app)();
        return (await bob.as.relay.listInbox({})).oldestSequence > through;
      });
    clock.advance(2 * 86_400_000 + 1);
    await walked(9n);
    expect([await gone(), (await bob.as.relay.listInbox({})).oldestSequence]).toEqual([0n, 10n]);
    await push(10);
    clock.advance(2 * 86_400_000 + 1);
    await walked(10n);
    // Nothing is kept: it begins at the end, and says so all the same.
    expect([await gone(), await first()]).toEqual([10n, [10n, 10n]]);
  });

  test("a list is told of what goes while it is read", async () => {
    await using world = await start(dialect, { relayMaxMessages: 3, relayFullInbox: "drop-oldest" });
    const org = await world.org();
    const [ann, bob] = [await org.agent(), await org.agent()];
    for (let n = 1; n <= 3; n++) await tell(ann.as, toAgent(bob.agentId), n);
    const { app } = world.server;
    /** Reads when two more messages have come, after it has looked at how the log stands. */
    const overtaken = (req: Partial<ListRequest>) => {
      let looks = 0;
      const db: Queryable = {
        ...app.db.query,
        all: async <Row>(query: Sql) => {
          if (looks++ === 0) for (const n of [4, 5]) await tell(ann.as, toAgent(bob.agentId), n);
          return app.db.query.all<Row>(query);
        },
      };
      const whole = { order: MessageOrder.UNSPECIFIED, pageSize: 50, pageToken: "", ...req };
      return pageOfMessages(app, db, inboxOf(org.orgId, bob.agentId), [], whole, true, app.clock.now());
    };
    const page = await overtaken({});
    expect(page.messages.map(({ sequence }) => sequence)).toEqual([3n]);
    expect(page).toMatchObject({ oldestSequence: 3n, lastSequence: 3n, unreadGoneSequence: 2n });
    await expect(overtaken({ afterSequence: 2n })).rejects.toMatchObject({ reason: "CURSOR_EXPIRED" });
  });

  test("messages go with their age; those with a time of their own are not told once it is over, and are removed", async () => {
    const clock = fakeClock();
    await using world = await start(dialect, { clock, relayRetentionDays: 2 });
    const org = await world.org();
    const [ann, bob] = [await org.agent(), await org.agent()];
    await tell(ann.as, toAgent(bob.agentId), 1);
    await tell(ann.as, toAgent(bob.agentId), "short", { ttl: durationFromMs(5_000) });
    await tell(ann.as, toAgent(bob.agentId), 3);
    const { messageId } = (await bob.as.relay.listInbox({})).messages[1]!;
    const rows = () =>
      world.server.app.db.query.one<{ n: number }>(
        sql`select count(*) as n from relay_body where log_id = ${bob.agentId}`,
      );
    clock.advance(5_000);
    expect(said((await bob.as.relay.listInbox({})).messages)).toEqual([1, 3]);
    expect((await refusal(ann.as.relay.getMessage({ messageId }))).reason).toBe("NOT_FOUND");
    await eventually(async () => {
      clock.advance(1_000);
      return (await rows())!.n === 2;
    });
    const head = await world.server.app.db.query.one(
      sql`select head, messages from relay_log where log_id = ${bob.agentId}`,
    );
    expect(head).toEqual({ head: 3, messages: 2 });
    clock.advance(86_400_000);
    await tell(ann.as, toAgent(bob.agentId), 4);
    clock.advance(86_400_000);
    await eventually(async () => {
      clock.advance(10_000);
      return (await rows())!.n === 1;
    });
    expect(said((await bob.as.relay.listInbox({})).messages)).toEqual([4]);
    const hole = await refusal(bob.as.relay.listInbox({ afterSequence: 1n }));
    expect(hole).toMatchObject({ reason: "CURSOR_EXPIRED", metadata: { oldest_sequence: "4" } });
  });
});
