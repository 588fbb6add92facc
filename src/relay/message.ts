/** Messages: as they are stored, and as clients read them. */
import { create, fromBinary, toBinary } from "@bufbuild/protobuf";
import { timestampFromMs } from "@bufbuild/protobuf/wkt";
import { type Message, MessageSchema, MessageState } from "../../gen/moltwire/relay/v1/message_pb.ts";
import type { App } from "../app.ts";
import { type Sql, sql } from "../db/db.ts";

/** Which log: an agent's inbox has the agent's id, a channel one of its own. */
export type LogRef = { readonly orgId: string; readonly logId: string };

/** A log with what its messages say of it. */
export type Log = LogRef & {
  /** The name of the channel; empty for an inbox. */
  readonly channel: string;
};

/** A message as it is stored, without its body. */
export type MessageRow = {
  readonly sequence: number;
  readonly message_id: string;
  readonly sender_agent_id: string;
  /** Empty: that of the log. */
  readonly sender_org_id: string;
  readonly label: string;
  readonly thread_id: string;
  readonly size_bytes: number;
  readonly create_ms: number;
  readonly expire_ms: number | null;
  readonly delivered_ms: number | null;
  readonly read_ms: number | null;
};

/** A message as it is stored; the body is sealed. */
export type WholeRow = MessageRow & { readonly body: Uint8Array };

/** What a body holds. */
export type Body = Pick<Message, "payload" | "headers" | "replyTo" | "traceId" | "senderName">;

type Sealing = Pick<App, "vault">;

export const inboxOf = (orgId: string, agentId: string): Log => ({ orgId, logId: agentId, channel: "" });

/** Rung after a message of the log is committed, and when the log is gone. */
export const logTopic = (logId: string): string => `relay:${logId}`;

/** The columns of `relay_message m`. */
export const messageColumns: Sql = sql`m.sequence, m.message_id, m.sender_agent_id, m.sender_org_id, m.label, m.thread_id, m.size_bytes, m.create_ms, m.expire_ms, m.delivered_ms, m.read_ms`;

export const hasExpired = ({ expire_ms }: Pick<MessageRow, "expire_ms">, now: number): boolean =>
  expire_ms !== null && expire_ms <= now;

/** Where what a message says lies. */
export const bodyPlace = ({ orgId, logId }: LogRef, sequence: number) => ({
  orgId,
  table: "relay_body",
  id: `${logId} ${sequence}`,
});

export const encodeBody = (body: Body): Uint8Array => toBinary(MessageSchema, create(MessageSchema, body));

/** @param body as {@link encodeBody} gives it. */
export const sealBody = ({ vault }: Sealing, log: LogRef, sequence: number, body: Uint8Array): Uint8Array =>
  vault.seal(bodyPlace(log, sequence), body);

/** A message as clients read it; without a body where none is given. */
export function toMessage({ vault }: Sealing, log: Log, row: MessageRow, body?: Uint8Array | null): Message {
  const message = body
    ? fromBinary(MessageSchema, vault.open(bodyPlace(log, row.sequence), body))
    : create(MessageSchema);
  message.orgId = log.orgId;
  message.messageId = row.message_id;
  message.sequence = BigInt(row.sequence);
  message.channel = log.channel;
  message.recipientAgentId = log.channel ? "" : log.logId;
  message.senderAgentId = row.sender_agent_id;
  message.senderOrgId = row.sender_org_id || log.orgId;
  message.label = row.label;
  message.threadId = row.thread_id;
  message.state = stateOf(row);
  message.createTime = timestampFromMs(row.create_ms);
  if (row.expire_ms !== null) message.expireTime = timestampFromMs(row.expire_ms);
  if (row.delivered_ms !== null) message.deliveredTime = timestampFromMs(row.delivered_ms);
  if (row.read_ms !== null) message.readTime = timestampFromMs(row.read_ms);
  message.sizeBytes = BigInt(row.size_bytes);
  return message;
}

/** A message as the agent of another organisation reads it that sent it: its place among what others sent is not told. */
export const asSent = (message: Message, senderOrgId: string): Message =>
  message.orgId === senderOrgId ? message : Object.assign(message, { sequence: 0n });

function stateOf({ delivered_ms, read_ms }: MessageRow): MessageState {
  if (read_ms !== null) return MessageState.READ;
  return delivered_ms === null ? MessageState.ACCEPTED : MessageState.DELIVERED;
}
