import type { ServiceImpl } from "@connectrpc/connect";
import type { Message } from "../../gen/moltwire/relay/v1/message_pb.ts";
import type { RelayService } from "../../gen/moltwire/relay/v1/relay_service_pb.ts";
import type { App } from "../app.ts";
import { keepingOf, readKeepingOf } from "../bus/policy/keeping.ts";
import { actingAgent } from "../bus/submit.ts";
import { notFound } from "../errors.ts";
import { command } from "../rpc/command.ts";
import { feed } from "../rpc/feed.ts";
import { readPage } from "../rpc/page.ts";
import { type Query, query } from "../rpc/query.ts";
import { channelToRead, checkInbox, inboxAgentOf, isRefusal, recipientAgentOf } from "./access.ts";
import { channelHandler } from "./channel-handler.ts";
import { channelOfLog, logOf } from "./channel-store.ts";
import { converse } from "./converse.ts";
import { groupHandler } from "./group-handler.ts";
import { pageOfMessages } from "./list.ts";
import { marked } from "./mark.ts";
import { asSent, hasExpired, inboxOf, type Log, toMessage } from "./message.ts";
import { findMessage, findSentAbroad, listSent, type PlacedRow } from "./message-store.ts";
import { presencesOf } from "./presence.ts";
import { receiptsOf } from "./receipts.ts";
import { send } from "./send.ts";
import { subscription } from "./subscribe.ts";
import { createTails } from "./tail.ts";

export function relayHandler(app: App): ServiceImpl<typeof RelayService> {
  const tails = createTails(app);
  return {
    ...channelHandler(app),
    ...groupHandler(app),

    send: command(app, (req, given) => send(app, req, given)),

    getMessage: query(app, async (req, given) => {
      const row = await findMessage(given.db, given.orgId, req.messageId);
      if (!row) return { message: await sentAbroad(app, req.messageId, given) };
      const log = hasExpired(row, given.now) ? undefined : await readableLog(app, row, given);
      if (!log) throw notFound("message", req.messageId);
      return { message: toMessage(app, log, row, row.body) };
    }),

    listSent: query(app, async (req, { db, caller, orgId, now }) => {
      const agentId = inboxAgentOf(caller, req.agentId);
      if ((await actingAgent(db, caller, orgId, req.agentId)) !== agentId) throw notFound("agent", agentId);
      const page = await readPage(
        app.cursors,
        ["ListSent", orgId, agentId],
        req,
        (after, limit) => listSent(db, orgId, agentId, after?.[0] as string | undefined, limit),
        (row) => [row.message_id],
      );
      const kept = page.rows.filter((row) => !hasExpired(row, now) && (row.channel !== null || !isOfChannel(row)));
      const messages = kept.map((row) =>
        asSent(toMessage(app, { orgId: row.org_id, logId: row.log_id, channel: row.channel ?? "" }, row), orgId),
      );
      return { messages, nextPageToken: page.nextPageToken };
    }),

    listInbox: query(app, async (req, given) => {
      const { db, caller, orgId, now } = given;
      const agentId = inboxAgentOf(caller, req.agentId);
      await checkInbox(readKeepingOf(app, given), app, { orgId, caller, now }, agentId);
      const log = inboxOf(orgId, agentId);
      const page = await pageOfMessages(app, db, log, ["ListInbox"], req, req.unreadOnly, now);
      app.relayCounts.delivered("list", page.messages.length);
      if (caller.agentId === agentId)
        receiptsOf(app, log).delivered(page.messages.map(({ sequence }) => Number(sequence)));
      return page;
    }),

    listMessages: query(app, async (req, given) => {
      const { db, caller, orgId, now } = given;
      const agentId = await actingAgent(db, caller, orgId, req.agentId);
      const log = logOf(await channelToRead(readKeepingOf(app, given), app, { orgId, agentId, now }, req.channel));
      const page = await pageOfMessages(app, db, log, ["ListMessages"], req, false, now);
      app.relayCounts.delivered("list", page.messages.length);
      return page;
    }),

    markRead: command(app, async (req, given) => {
      const { tx, caller, orgId, now } = given;
      const agentId = recipientAgentOf(caller, req.agentId);
      await checkInbox(keepingOf(app, given), app, { orgId, caller, now }, agentId);
      return marked(tx, inboxOf(orgId, agentId), req.read, now);
    }),

    subscribe: feed(app, (req, given, { requestHeader }) =>
      subscription(app, tails, req, given, !requestHeader.get("content-type")?.includes("json")),
    ),

    converse: converse(app, tails),

    listPresence: query(app, async (req, { db, orgId, now }) => ({
      presences: await presencesOf(db, orgId, req.agentIds, now),
    })),
  };
}

/** Whether a message is in a channel's log; the channel may be gone, and the message not yet removed. */
const isOfChannel = ({ log_id }: PlacedRow): boolean => log_id.startsWith("chn_");

/** The message that the caller's agent has sent into another organisation. NOT_FOUND for any other. */
async function sentAbroad(app: App, messageId: string, { db, caller, orgId, now }: Query): Promise<Message> {
  const row = caller.agentId ? await findSentAbroad(db, orgId, caller.agentId, messageId) : undefined;
  if (!row || hasExpired(row, now)) throw notFound("message", messageId);
  return asSent(toMessage(app, inboxOf(row.org_id, row.log_id), row, row.body), orgId);
}

/** The log a message is in, if the caller may read the message: its sender, and whoever reads the inbox or channel. */
async function readableLog(app: App, row: PlacedRow, given: Query): Promise<Log | undefined> {
  const { db, caller, orgId, now } = given;
  const keeping = readKeepingOf(app, given);
  const place = { orgId, logId: row.log_id };
  const channel = await channelOfLog(db, place);
  if (!channel && isOfChannel(row)) return undefined;
  const log = channel ? logOf(channel) : { ...place, channel: "" };
  if (row.sender_agent_id !== "" && row.sender_agent_id === caller.agentId) return log;
  try {
    if (channel) await channelToRead(keeping, app, { orgId, agentId: caller.agentId, now }, channel.name);
    else await checkInbox(keeping, app, { orgId, caller, now }, row.log_id);
    return log;
  } catch (error) {
    if (isRefusal(error)) return undefined;
    throw error;
  }
}
