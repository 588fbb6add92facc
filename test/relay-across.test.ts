import { randomBytes } from "node:crypto";
import { timestampFromMs } from "@bufbuild/protobuf/wkt";
import fc from "fast-check";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { TrustTier } from "../gen/moltwire/bus/v1/agent_pb.ts";
import { PolicyVerdict } from "../gen/moltwire/bus/v1/policy_pb.ts";
import { Visibility } from "../gen/moltwire/directory/v1/profile_pb.ts";
import type { CreateGrantRequest } from "../gen/moltwire/federation/v1/grant_service_pb.ts";
import { MessageState, PresenceStatus } from "../gen/moltwire/relay/v1/message_pb.ts";
import { sql } from "../src/db/db.ts";
import { keptOut, shareOf } from "../src/relay/share.ts";
import { parseMasterKey } from "../src/vault/master-key.ts";
import { headerOf } from "../src/vault/sealed.ts";
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
import { says, sendFrame, Talk, tell, toAgent } from "./relay-fixtures/relay.ts";
import { addContract } from "./rpc-fixtures/contract.ts";

const accepts = (agent: OrgAgent, acceptPublicMessages = true) =>
  agent.as.directory.updateProfile({
    change: { acceptPublicMessages },
    updateMask: { paths: ["accept_public_messages"] },
  });

const inbox = async (of: OrgAgent, more = {}) => (await of.as.relay.listInbox(more)).messages;
const readsAll = async (of: OrgAgent) => {
  const { lastSequence } = await of.as.relay.listInbox({ pageSize: 1 });
  await of.as.relay.markRead({ read: { case: "throughSequence", value: lastSequence } });
};
const forbids = (org: Org, cedarText: string, policyId = unique("forbids")) =>
  org.admin.policies.putPolicy({ policyId, cedarText });
const decisionsOf = async (org: Org) =>
  (await org.admin.policies.listDecisions({ action: "send_message" })).decisions.map(({ question, answer }) => ({
    who: [question!.principal!.orgId, question!.principal!.id],
    to: [question!.resource!.orgId, question!.resource!.id],
    verdict: answer!.verdict,
  }));

describe.each(dialects)("messages across organisations on %s", (dialect) => {
  const clock = fakeClock(Date.now());
  let world: World;
  let here: Org;
  let there: Org;
  let ann: OrgAgent;
  beforeAll(async () => {
    world = await start(dialect, { clock });
    [here, there] = [await world.org(), await world.org()];
    ann = await here.agent();
  });
  afterAll(() => world[Symbol.asyncDispose]());

  const nobody = `agt_${randomBytes(16).toString("hex")}`;
  /** How a message to an agent is refused, with its id and the trace made alike. */
  const answerTo = async (agentId: string, by = ann, more = {}) => {
    const { code, reason, metadata, error } = await refusal(tell(by.as, toAgent(agentId), 1, more));
    const { trace_id, ...rest } = metadata;
    return JSON.stringify([code, reason, rest, error.rawMessage, error.details.length]).replaceAll(agentId, "ID");
  };
  /** That nobody writes to the agent, and is told what a random id is told. */
  const isNotThere = async (of: OrgAgent, by = ann, more = {}) => {
    const before = (await inbox(of)).length;
    expect(await answerTo(of.agentId, by, more)).toBe(await answerTo(nobody, by, more));
    expect(await inbox(of)).toHaveLength(before);
  };
  const granted = async (
    subject: CreateGrantRequest["subject"],
    terms: { allowedTiers?: TrustTier[]; expireTime?: ReturnType<typeof timestampFromMs> } = {},
  ): Promise<string> => {
    const { grant } = await there.admin.grants.createGrant({ granteeOrgId: here.orgId, subject, terms });
    await here.admin.grants.acceptGrant({ grantId: grant!.grantId });
    return grant!.grantId;
  };

  test("an agent of another organisation is not there until its profile accepts messages, and not any more when it does not", async () => {
    const bob = await there.agent();
    await isNotThere(bob);
    expect((await bob.as.directory.getProfile({})).profile!.acceptPublicMessages).toBe(false);
    const { profile } = await accepts(bob);
    expect(profile!.acceptPublicMessages).toBe(true);
    const sent = await tell(ann.as, toAgent(bob.agentId), { hello: 1 }, { label: "greeting", threadId: "t" });
    await accepts(bob, false);
    await isNotThere(bob);
    const [message, ...others] = await inbox(bob);
    expect(others).toEqual([]);
    const { agent } = await ann.as.agents.getAgent({ agentId: ann.agentId });
    expect(message).toMatchObject({
      ...{ orgId: there.orgId, messageId: sent.messageId, sequence: 1n, recipientAgentId: bob.agentId },
      ...{ senderAgentId: ann.agentId, senderOrgId: here.orgId, senderName: agent!.name },
      ...{ label: "greeting", threadId: "t" },
    });
    expect(says(message)).toEqual({ hello: 1 });
    const own = await there.agent();
    await tell(own.as, toAgent(bob.agentId), 2);
    expect((await inbox(bob))[1]).toMatchObject({ senderOrgId: there.orgId, senderName: "", sequence: 2n });
  });

  test("a public profile shows that it accepts messages, and a private one is written to all the same", async () => {
    const bob = await there.agent();
    const change = { acceptPublicMessages: true, visibility: Visibility.PUBLIC };
    await bob.as.directory.updateProfile({ change, updateMask: { paths: ["accept_public_messages", "visibility"] } });
    const { profile } = await ann.as.directory.getProfile({ agentId: bob.agentId });
    expect(profile).toMatchObject({ acceptPublicMessages: true, orgId: there.orgId });
    await bob.as.directory.updateProfile({
      change: { visibility: Visibility.PRIVATE },
      updateMask: { paths: ["visibility"] },
    });
    await tell(ann.as, toAgent(bob.agentId), 1);
    expect(await inbox(bob)).toHaveLength(1);
  });

  test("its sender sees how far it has come and never its place, by whatever it asks; nobody else of its organisation does", async () => {
    const [bob, carl] = [await there.agent(), await here.agent()];
    await accepts(bob);
    for (let n = 0; n < 3; n++) await tell((await there.agent()).as, toAgent(bob.agentId), n);
    const from = await here.agent();
    const talk = new Talk(from.as);
    talk.say(
      sendFrame("a", {
        ...toAgent(bob.agentId),
        payload: { kind: { case: "data", value: Buffer.from("1") } },
      } as never),
    );
    const framed = await talk.answer("a");
    await talk[Symbol.asyncDispose]();
    const { messageId, sequence } = await tell(from.as, toAgent(bob.agentId), "second");
    expect([framed.case, framed.case === "sent" && framed.value.sequence, sequence]).toEqual(["sent", 0n, 0n]);
    const state = async () => (await from.as.relay.getMessage({ messageId })).message!;
    expect(await state()).toMatchObject({ state: MessageState.ACCEPTED, sequence: 0n, orgId: there.orgId });
    await inbox(bob);
    await eventually(async () => (await state()).state === MessageState.DELIVERED);
    await readsAll(bob);
    const read = await state();
    expect([read.state, says(read), read.recipientAgentId]).toEqual([MessageState.READ, "second", bob.agentId]);
    expect(read.readTime).toBeDefined();
    for (const by of [carl.as, here.admin, ann.as])
      expect((await refusal(by.relay.getMessage({ messageId }))).reason).toBe("NOT_FOUND");
    await tell(from.as, toAgent(carl.agentId), "at home");
    const listed: [string, bigint, string][] = [];
    for (let pageToken = ""; ; ) {
      const page = await from.as.relay.listSent({ pageSize: 2, pageToken });
      listed.push(
        ...page.messages.map((one) => [one.orgId, one.sequence, one.recipientAgentId] as [string, bigint, string]),
      );
      pageToken = page.nextPageToken;
      if (!pageToken) break;
    }
    const abroad = [there.orgId, 0n, bob.agentId];
    expect(listed).toEqual([[here.orgId, 1n, carl.agentId], abroad, abroad]);
    expect((await here.admin.relay.listSent({ agentId: from.agentId })).messages).toHaveLength(3);
    expect((await from.as.status.getStats({})).messagesSent).toBe(3n);
    expect((await bob.as.status.getStats({})).messagesReceived).toBe(5n);
  });

  test("the recipient's organisation has the event and the message, and the sender's neither", async () => {
    const bob = await there.agent();
    await accepts(bob);
    const from = await here.agent();
    const { messageId } = await tell(from.as, toAgent(bob.agentId), "secret");
    await world.settled();
    const { events } = await bob.as.events.listEvents({ types: ["message.received"] });
    const ids = { message_id: messageId, sequence: 1, sender_agent_id: from.agentId, sender_org_id: here.orgId };
    expect(events.map(({ payload }) => payload)).toEqual([{ ...ids, label: "direct", thread_id: "" }]);
    for (const by of [here.admin, from.as])
      expect(JSON.stringify((await by.events.listEvents({})).events.map(({ payload }) => payload))).not.toContain(
        messageId,
      );
    const row = await world.server.app.db.query.one<{ org_id: string }>(
      sql`select org_id from relay_message where message_id = ${messageId}`,
    );
    expect(row).toEqual({ org_id: there.orgId });
  });

  describe("a grant", () => {
    test("lets in to who serves its capability, only from the organisation that it is given to, and never the other way", async () => {
      const capability = unique("can");
      const [serves, other] = [await there.agent({ capabilities: [capability] }), await there.agent()];
      const stranger = await (await world.org()).agent();
      const { grant } = await there.admin.grants.createGrant({
        granteeOrgId: here.orgId,
        subject: { case: "capability", value: capability },
      });
      const { grantId } = grant!;
      await isNotThere(serves);
      await here.admin.grants.acceptGrant({ grantId });
      await tell(ann.as, toAgent(serves.agentId), 1);
      expect(await inbox(serves)).toHaveLength(1);
      await isNotThere(other);
      await isNotThere(serves, stranger);
      await isNotThere(ann, serves);
      await there.admin.grants.suspendGrant({ grantId });
      await isNotThere(serves);
      await there.admin.grants.resumeGrant({ grantId });
      await tell(ann.as, toAgent(serves.agentId), 2);
      await here.admin.grants.revokeGrant({ grantId });
      await isNotThere(serves);
    });

    test("ends at its time to the millisecond", async () => {
      const capability = unique("can");
      const serves = await there.agent({ capabilities: [capability] });
      const expireTime = timestampFromMs(clock.now() + 60_000);
      await granted({ case: "capability", value: capability }, { expireTime });
      clock.advance(59_999);
      await tell(ann.as, toAgent(serves.agentId), 1);
      clock.advance(1);
      await isNotThere(serves);
    });

    test("on a namespace is for its agents, and on a contract for who has its capability", async () => {
      const [namespace, capability] = [unique("space"), unique("can")];
      await there.admin.namespaces.createNamespace({ name: namespace });
      const [inside, outside] = [await there.agent({ namespace }), await there.agent()];
      await granted({ case: "namespace", value: namespace });
      await tell(ann.as, toAgent(inside.agentId), 1);
      await isNotThere(outside);
      const able = await there.agent({ capabilities: [capability] });
      const contractId = unique("contract");
      await addContract(world, there.orgId, { contractId, capability });
      await isNotThere(able);
      await granted({ case: "contractId", value: contractId });
      await tell(ann.as, toAgent(able.agentId), 1);
      await isNotThere(outside);
    });

    test("is for the tiers that it names, as the sender's organisation has given them", async () => {
      const capability = unique("can");
      const serves = await there.agent({ capabilities: [capability] });
      await granted({ case: "capability", value: capability }, { allowedTiers: [TrustTier.INTERNAL_TRUSTED] });
      const [trusted, restricted] = [
        await here.agent({ trustTier: TrustTier.INTERNAL_TRUSTED }),
        await here.agent({ trustTier: TrustTier.INTERNAL_RESTRICTED }),
      ];
      await tell(trusted.as, toAgent(serves.agentId), 1);
      await isNotThere(serves, restricted);
    });
  });

  test("an answer comes to who wrote, by the id of what it answers, and by no other", async () => {
    const [bob, dora, carl] = [await there.agent(), await there.agent(), await here.agent()];
    await accepts(bob);
    const { messageId } = await tell(carl.as, toAgent(bob.agentId), "question");
    await isNotThere(carl, bob);
    await isNotThere(carl, bob, { replyTo: `msg_${"0".repeat(32)}` });
    await isNotThere(carl, dora, { replyTo: messageId });
    await isNotThere(ann, bob, { replyTo: messageId });
    await tell(bob.as, toAgent(carl.agentId), "answer", { replyTo: messageId });
    const [answer] = await inbox(carl);
    expect(answer).toMatchObject({ senderOrgId: there.orgId, senderAgentId: bob.agentId, replyTo: messageId });
    const back = await inbox(carl);
    await accepts(bob, false);
    await tell(carl.as, toAgent(bob.agentId), "and so on", { replyTo: back[0]!.messageId });
    expect((await inbox(bob)).map(says)).toEqual(["question", "and so on"]);
  });

  test("both organisations' policies decide, each keeps its own decision, and the recipient's forbids are told to nobody else", async () => {
    const [from, to] = [await world.org(), await world.org()];
    const [sender, bob] = [await from.agent(), await to.agent()];
    await isNotThere(bob, sender);
    await accepts(bob);
    expect([await decisionsOf(from), await decisionsOf(to)]).toEqual([[], []]);
    await tell(sender.as, toAgent(bob.agentId), 1);
    const decided = (verdict: PolicyVerdict) => ({
      ...{ who: [from.orgId, sender.agentId], to: [to.orgId, bob.agentId], verdict },
    });
    const allowed = decided(PolicyVerdict.ALLOW);
    expect([await decisionsOf(from), await decisionsOf(to)]).toEqual([[allowed], [allowed]]);

    const policyId = unique("closed");
    await forbids(
      to,
      `forbid (principal, action == Action::"send_message", resource) when { context has let_in_by && context.let_in_by == "profile" };`,
      policyId,
    );
    await isNotThere(bob, sender);
    const denied = decided(PolicyVerdict.DENY);
    expect([await decisionsOf(from), await decisionsOf(to)]).toEqual([[allowed], [denied, allowed]]);
    await to.admin.policies.deletePolicy({ policyId });

    await forbids(from, `forbid (principal, action, resource) when { principal.org != resource.org };`);
    const refused = await refusal(tell(sender.as, toAgent(bob.agentId), 2));
    expect([refused.reason, refused.metadata.action]).toEqual(["POLICY_DENIED", "send_message"]);
    expect([await decisionsOf(from), await decisionsOf(to)]).toEqual([
      [denied, allowed],
      [denied, allowed],
    ]);
    expect(await inbox(bob)).toHaveLength(1);
  });

  test("agents of the two lower tiers write out only if their organisation permits it", async () => {
    const bob = await there.agent();
    await accepts(bob);
    const vendor = await here.agent({ trustTier: TrustTier.PUBLIC_VENDOR });
    expect((await refusal(tell(vendor.as, toAgent(bob.agentId), 1))).reason).toBe("POLICY_DENIED");
    await forbids(
      here,
      `permit (principal == Agent::"${vendor.agentId}", action == Action::"send_message", resource);`,
    );
    await tell(vendor.as, toAgent(bob.agentId), 1);
    await isNotThere(await there.agent(), vendor);
  });

  test("policies see a stranger as a stranger: not its name, not its tier, not its tools", async () => {
    const bob = await there.agent();
    await accepts(bob);
    const name = unique("boss");
    const sender = await here.agent({ name, trustTier: TrustTier.INTERNAL_TRUSTED, allowedTools: ["web"] });
    const policyId = unique("looks");
    const cedarText = `forbid (principal is Agent, action == Action::"send_message", resource)
      when { principal.org != resource.org && (principal.rank <= 2 || principal.name == "${name}" || principal.tools.contains(Tool::"web")) };`;
    await forbids(there, cedarText, policyId);
    await tell(sender.as, toAgent(bob.agentId), 1);
    await there.admin.policies.deletePolicy({ policyId });
  });

  test("an administrator for no agent, a disabled agent, one of a disabled organisation and a deleted one", async () => {
    const org = await world.org();
    const [bob, carl] = [await org.agent(), await org.agent()];
    for (const each of [bob, carl]) await accepts(each);
    const asAdmin = await refusal(tell(here.admin, toAgent(bob.agentId), 1));
    expect(asAdmin.reason).toBe("NOT_FOUND");
    await tell(here.admin, toAgent(bob.agentId), 1, { agentId: ann.agentId });
    const set = async (disabled: boolean) => {
      const updateMask = { paths: ["disabled"] };
      await org.admin.agents.updateAgent({ agentId: bob.agentId, change: { disabled }, updateMask });
    };
    await set(true);
    expect(await answerTo(bob.agentId)).toBe(await answerTo(nobody));
    await set(false);
    await tell(ann.as, toAgent(bob.agentId), 2);
    await org.admin.agents.deleteAgent({ agentId: bob.agentId });
    expect(await answerTo(bob.agentId)).toBe(await answerTo(nobody));
    const change = { orgId: org.orgId, change: { disabled: true }, updateMask: { paths: ["disabled"] } };
    await world.operator.organizations.updateOrganization(change);
    expect(await answerTo(carl.agentId)).toBe(await answerTo(nobody));
  });

  test("who may write to an agent sees neither its presence nor its organisation's channels", async () => {
    const bob = await there.agent();
    await accepts(bob);
    const channel = unique("c");
    await bob.as.relay.createChannel({ name: channel });
    const talk = new Talk(bob.as);
    await talk.answer("open");
    await tell(ann.as, toAgent(bob.agentId), 1);
    const of = async (by: OrgAgent) =>
      (await by.as.relay.listPresence({ agentIds: [bob.agentId] })).presences[0]!.status;
    expect([await of(await there.agent()), await of(ann)]).toEqual([PresenceStatus.ONLINE, PresenceStatus.OFFLINE]);
    expect((await refusal(tell(ann.as, { to: { case: "toChannel", value: channel } }, 1))).reason).toBe("NOT_FOUND");
    await talk.until(() => talk.messages.length === 1);
    await talk[Symbol.asyncDispose]();
  });

  test("a message that is sent again with its key is one message", async () => {
    const bob = await there.agent();
    await accepts(bob);
    const request = { ...toAgent(bob.agentId), payload: { kind: { case: "data", value: Buffer.from("1") } } } as const;
    const headers = { "idempotency-key": unique("key") };
    const [one, two] = [await ann.as.relay.send(request, { headers }), await ann.as.relay.send(request, { headers })];
    expect(one.messageId).toBe(two.messageId);
    expect(await inbox(bob)).toHaveLength(1);
  });

  test("strangers fill their share of an inbox and no more, one organisation a part of it; what is read makes room", async () => {
    await using small = await start(dialect, { relayMaxMessages: 100 });
    const [home, one, two, three] = [await small.org(), await small.org(), await small.org(), await small.org()];
    const bob = await home.agent();
    const peer = await home.agent();
    await accepts(bob);
    const [a, b, c] = [await one.agent(), await two.agent(), await three.agent()];
    const full = async (by: OrgAgent) => {
      const { reason, metadata } = await refusal(tell(by.as, toAgent(bob.agentId), "too much"));
      return [reason, metadata.resource, metadata.limit];
    };
    // Ten of a hundred for all, two of these for one; ten at once are counted one after another.
    const sent = await Promise.allSettled(Array.from({ length: 10 }, (_, n) => tell(a.as, toAgent(bob.agentId), n)));
    expect(sent.filter(({ status }) => status === "fulfilled")).toHaveLength(2);
    expect(await full(a)).toEqual(["QUOTA_EXCEEDED", "inbox_messages_of_organization", "2"]);
    for (const by of [b, b]) await tell(by.as, toAgent(bob.agentId), 1);
    for (let n = 0; n < 3; n++) {
      const other = await (await small.org()).agent();
      for (let m = 0; m < 2; m++) await tell(other.as, toAgent(bob.agentId), m);
    }
    expect(await full(c)).toEqual(["QUOTA_EXCEEDED", "inbox_messages_of_others", "10"]);
    for (let n = 0; n < 20; n++) await tell(peer.as, toAgent(bob.agentId), n);
    expect(await inbox(bob, { pageSize: 100 })).toHaveLength(30);
    await readsAll(bob);
    await tell(c.as, toAgent(bob.agentId), 1);
  });

  test("it is sealed with the key of the recipient's organisation, and both read it", async () => {
    const masterKeys = [parseMasterKey(randomBytes(32).toString("base64"))];
    await using sealed = await start(dialect, { masterKeys });
    const [from, to] = [await sealed.org(), await sealed.org()];
    const [sender, bob] = [await from.agent(), await to.agent()];
    await accepts(bob);
    const { messageId } = await tell(sender.as, toAgent(bob.agentId), "sealed");
    const row = await sealed.server.app.db.query.one<{ body: Uint8Array }>(sql`
      select b.body from relay_message m join relay_body b on b.org_id = m.org_id and b.log_id = m.log_id and b.sequence = m.sequence
      where m.message_id = ${messageId}`);
    const header = headerOf(row!.body);
    const key = await sealed.server.app.db.query.one<{ org_id: string }>(
      sql`select org_id from vault_key where key_id = ${header?.encrypted ? header.keyId : ""}`,
    );
    expect(key).toEqual({ org_id: to.orgId });
    expect(says((await sender.as.relay.getMessage({ messageId })).message)).toBe("sealed");
    expect((await inbox(bob)).map(says)).toEqual(["sealed"]);
  });
});

describe("the share of strangers in an inbox", () => {
  const count = fc.integer({ min: 0, max: 3_000 });

  test("always has room for a first message, and never lets more messages wait than are its part", () => {
    const bounds = fc.record({ messages: fc.integer({ min: 1, max: 10_000_000 }), bytes: fc.integer({ min: 1 }) });
    const nothing = { messages: 0, bytes: 0, own_messages: 0, own_bytes: 0 };
    fc.assert(
      fc.property(bounds, count, count, (inboxBounds, own, others) => {
        const share = shareOf(inboxBounds);
        expect(keptOut(nothing, share)).toBeUndefined();
        expect(share.all.messages).toBeLessThanOrEqual(Math.max(1, inboxBounds.messages / 10));
        expect(share.all.messages).toBeLessThanOrEqual(1_000);
        expect(share.one.messages).toBeLessThanOrEqual(share.all.messages);
        const held = { messages: own + others, bytes: 0, own_messages: own, own_bytes: 0 };
        const isFull = own >= share.one.messages || own + others >= share.all.messages;
        expect(keptOut(held, share) !== undefined).toBe(isFull);
        const heavy = { ...nothing, messages: 1, bytes: share.all.bytes };
        expect(keptOut(heavy, share)?.resource).toBe(
          share.all.messages === 1 ? "inbox_messages_of_others" : "inbox_bytes_of_others",
        );
      }),
    );
  });
});
