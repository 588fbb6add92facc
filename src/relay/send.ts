/** Send: into an inbox or a channel, in one transaction. */
import { durationMs, timestampFromMs } from "@bufbuild/protobuf/wkt";
import type { SendRequest } from "../../gen/moltwire/relay/v1/relay_service_pb.ts";
import type { App } from "../app.ts";
import { lockAgent } from "../bus/agent-store.ts";
import { actingAgent } from "../bus/submit.ts";
import type { Tx } from "../db/db.ts";
import { badField, Fault, notFound } from "../errors.ts";
import { emit } from "../ops/outbox.ts";
import type { Command } from "../rpc/command.ts";
import { channelToWrite, recipientOf } from "./access.ts";
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

/** How many messages one send lets go of at most, to make room. */
const maxCut = 256;

/** What a log may hold. */
export const boundsOf = ({ relayMaxMessages, relayMaxBytes }: App["config"]): Bounds => ({
  messages: relayMaxMessages,
  bytes: relayMaxBytes,
});

/** Sends a message. NOT_FOUND, POLICY_DENIED, PAYLOAD_TOO_LARGE, QUOTA_EXCEEDED, of which only a denial by policies leaves something behind: its decision. */
export async function send(app: App, req: SendRequest, { tx, caller, orgId, now, trace }: Command) {
  check(req);
  const senderId = await actingAgent(tx, caller, orgId, req.agentId);
  const asking = { orgId, agentId: senderId, now, traceId: trace.traceId };
  const log = await logToWrite(tx, app, asking, req.to);
  const { label, threadId, replyTo, headers, payload, ttl } = req;
  const messageId = app.ids.next("msg");
  const body = encodeBody({ payload, headers, replyTo, traceId: trace.traceId });
  // As it is stored: JSON can be short to write and long to keep, and whoever hands out so many bytes holds as many, and more, in memory.
  const bytes = body.length + Buffer.byteLength(label) + Buffer.byteLength(threadId);

  // Others who write into the log wait from here on.
  const { head: sequence, ...held } = await place(tx, log, bytes);
  await makeRoom(tx, app, log, held, now);
  await insertMessage(
    tx,
    log,
    {
      sequence,
      message_id: messageId,
      sender_agent_id: senderId,
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
      orgId,
      type: "message.received",
      agentId: log.logId,
      timeMs: now,
      traceId: trace.traceId,
      payload: {
        message_id: messageId,
        sequence,
        sender_agent_id: senderId,
        label: label || defaults.label,
        thread_id: threadId,
      },
    });
  tx.ring(logTopic(log.logId));
  tx.afterCommit(() => app.relayCounts.accepted(log.channel ? "channel" : "inbox"));
  return { messageId, sequence: BigInt(sequence), createTime: timestampFromMs(now) };
}

function check({ payload, headers, label, threadId }: SendRequest): void {
  for (const [field, text] of Object.entries({ label, thread_id: threadId }))
    if (!text.isWellFormed()) throw badField(field, "half a surrogate pair");
  checkPayload(payload, "payload");
  checkHeaders(headers);
}

async function logToWrite(
  tx: Tx,
  app: App,
  asking: Parameters<typeof recipientOf>[2],
  to: SendRequest["to"],
): Promise<Log> {
  if (to.case === "toChannel") return logOf(await channelToWrite(tx, app, asking, to.value));
  return inboxOf(asking.orgId, (await recipientOf(tx, app, asking, to.value ?? "")).agent_id);
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
