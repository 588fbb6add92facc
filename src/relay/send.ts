/** Send: into an inbox or a channel, in one transaction. */
import { durationMs, timestampFromMs } from "@bufbuild/protobuf/wkt";
import type { SendRequest } from "../../gen/moltwire/relay/v1/relay_service_pb.ts";
import type { App } from "../app.ts";
import { type AgentRow, lockAgent } from "../bus/agent-store.ts";
import { actingAgent } from "../bus/submit.ts";
import type { Tx } from "../db/db.ts";
import { badField, Fault, notFound } from "../errors.ts";
import { emit } from "../ops/outbox.ts";
import type { Command } from "../rpc/command.ts";
import { channelToWrite, recipientOf } from "./access.ts";
import type { Sending } from "./across.ts";
import { countStrangers } from "./across-store.ts";
import { logOf } from "./channel-store.ts";
import { defaults } from "./limits.ts";
import {
  type Head,
  insertMessage,
  oldestMessages,
  removeThrough,
  takeSequence,
  takeSequenceOrMake,
} from "./log-store.ts";
import { encodeBody, inboxOf, type Log, logTopic, sealBody } from "./message.ts";
import { checkHeaders, checkPayload } from "./payload.ts";
import { type Bounds, cutOf } from "./retention.ts";
import { keptOut, shareOf } from "./share.ts";

/** How many messages one send lets go of at most, to make room. */
const maxCut = 256;

/** What a log may hold. */
export const boundsOf = ({ relayMaxMessages, relayMaxBytes }: App["config"]): Bounds => ({
  messages: relayMaxMessages,
  bytes: relayMaxBytes,
});

/** Sends a message. NOT_FOUND, POLICY_DENIED, PAYLOAD_TOO_LARGE, QUOTA_EXCEEDED, of which only a denial by policies, whosever, leaves something behind: its decision. */
export async function send(app: App, req: SendRequest, { tx, caller, orgId, now, trace }: Command) {
  check(req);
  const senderId = await actingAgent(tx, caller, orgId, req.agentId);
  const { label, threadId, replyTo, headers, payload, ttl } = req;
  const sending = { orgId, agentId: senderId, now, traceId: trace.traceId, replyTo };
  const { log, foreigner } = await logToWrite(tx, app, sending, req.to);
  const messageId = app.ids.next("msg");
  const body = encodeBody({ payload, headers, replyTo, traceId: trace.traceId, senderName: foreigner?.name ?? "" });
  // As it is stored: JSON can be short to write and long to keep, and whoever hands out so many bytes holds as many, and more, in memory.
  const bytes = body.length + Buffer.byteLength(label) + Buffer.byteLength(threadId);

  // Others who write into the log wait from here on.
  const { head: sequence, ...held } = await place(tx, log, bytes);
  if (foreigner) await checkShare(tx, app, log, orgId);
  await makeRoom(tx, app, log, held, now);
  await insertMessage(
    tx,
    log,
    {
      sequence,
      message_id: messageId,
      sender_agent_id: senderId,
      sender_org_id: foreigner ? orgId : "",
      label: label || defaults.label,
      thread_id: threadId,
      size_bytes: bytes,
      create_ms: now,
      expire_ms: ttl ? now + Math.max(1_000, Math.floor(durationMs(ttl))) : null,
      body: sealBody(app, log, sequence, body),
    },
    !log.channel,
  );
  if (!log.channel)
    await emit(tx, app, {
      orgId: log.orgId,
      type: "message.received",
      agentId: log.logId,
      timeMs: now,
      traceId: trace.traceId,
      payload: {
        message_id: messageId,
        sequence,
        sender_agent_id: senderId,
        ...(foreigner && { sender_org_id: orgId }),
        label: label || defaults.label,
        thread_id: threadId,
      },
    });
  tx.ring(logTopic(log.logId));
  tx.afterCommit(() => {
    app.relayCounts.accepted(log.channel ? "channel" : "inbox");
    if (senderId !== "") app.activity.sentMessage(orgId, senderId);
  });
  // How much comes into another organisation's inbox is none of the sender's business.
  return { messageId, sequence: foreigner ? 0n : BigInt(sequence), createTime: timestampFromMs(now) };
}

function check({ payload, headers, label, threadId }: SendRequest): void {
  for (const [field, text] of Object.entries({ label, thread_id: threadId }))
    if (!text.isWellFormed()) throw badField(field, "half a surrogate pair");
  checkPayload(payload, "payload");
  checkHeaders(headers);
}

/** The log, and the sender where that is of another organisation. */
async function logToWrite(
  tx: Tx,
  app: App,
  sending: Sending,
  to: SendRequest["to"],
): Promise<{ readonly log: Log; readonly foreigner?: AgentRow | undefined }> {
  if (to.case === "toChannel") return { log: logOf(await channelToWrite(tx, app, sending, to.value)) };
  const { recipient, sender } = await recipientOf(tx, app, sending, to.value ?? "");
  return { log: inboxOf(recipient.org_id, recipient.agent_id), foreigner: sender };
}

/** QUOTA_EXCEEDED where strangers have as much unread in the inbox as they may. The log is held, so that two that come at once are both counted. */
async function checkShare(tx: Tx, app: App, log: Log, fromOrgId: string): Promise<void> {
  const full = keptOut(await countStrangers(tx, log, fromOrgId), shareOf(boundsOf(app.config)));
  if (!full) return;
  const { resource, limit } = full;
  const whose = resource.endsWith("_others") ? "other organisations" : "one other organisation";
  const what = resource.startsWith("inbox_bytes") ? "bytes of messages" : "messages";
  const message = `the inbox holds at most ${limit} ${what} of ${whose} that are not read: its agent has to read some first`;
  const quota = { subject: resource, description: message };
  throw new Fault("QUOTA_EXCEEDED", message, { resource, limit: String(limit) }, { quota });
}

/**
 * A place in the log. NOT_FOUND when its channel, which has a log from the first to the last, or its agent was deleted meanwhile; the agent is looked at only where
 * the log is made.
 */
async function place(tx: Tx, log: Log, bytes: number): Promise<Head> {
  if (log.channel) {
    const taken = await takeSequence(tx, log, bytes);
    if (!taken) throw notFound("channel", log.channel);
    return taken;
  }
  const taken = await takeSequenceOrMake(tx, log, bytes);
  if (taken.head === 1 && !(await lockAgent(tx, log.orgId, log.logId))) throw notFound("agent", log.logId);
  return taken;
}

/** Lets go of the old end of a log that is full with the message that comes. QUOTA_EXCEEDED where that has to stay. */
async function makeRoom(tx: Tx, app: App, log: Log, held: Bounds, now: number): Promise<void> {
  const bounds = boundsOf(app.config);
  if (held.messages <= bounds.messages && held.bytes <= bounds.bytes) return;
  const keepUnread = !log.channel && app.config.relayFullInbox === "refuse";
  const cut = cutOf(held, bounds, await oldestMessages(tx, log, maxCut), keepUnread, now);
  if (cut.full) throw inboxFull(held, bounds);
  if (cut.messages === 0) return;
  await removeThrough(tx, log, cut.through, cut);
  tx.afterCommit(() => app.relayCounts.removed("retention", cut.messages));
}

function inboxFull(held: Bounds, bounds: Bounds): Fault {
  const resource = held.messages > bounds.messages ? "inbox_messages" : "inbox_bytes";
  const limit = held.messages > bounds.messages ? bounds.messages : bounds.bytes;
  const message = `the inbox is full: it holds at most ${limit} ${resource.slice(6)}, and its oldest message is not read`;
  return new Fault(
    "QUOTA_EXCEEDED",
    message,
    { resource, limit: String(limit) },
    { quota: { subject: resource, description: message } },
  );
}
