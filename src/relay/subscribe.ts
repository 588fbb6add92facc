/** Subscribe: following a log from a place in it. */
import type { MessageInitShape } from "@bufbuild/protobuf";
import { timestampFromMs } from "@bufbuild/protobuf/wkt";
import type { MessageFilter } from "../../gen/moltwire/relay/v1/message_pb.ts";
import {
  Start,
  type SubscribeRequest,
  type SubscribeResponseSchema,
} from "../../gen/moltwire/relay/v1/relay_service_pb.ts";
import type { App } from "../app.ts";
import { asked, type Keeping, readKeepingOf } from "../bus/policy/keeping.ts";
import { actingAgent } from "../bus/submit.ts";
import type { Queryable } from "../db/db.ts";
import { badField, Fault, notFound } from "../errors.ts";
import type { Caller } from "../rpc/caller.ts";
import type { Reader } from "../rpc/feed.ts";
import type { Query } from "../rpc/query.ts";
import { channelToRead, checkInbox, inboxAgentOf } from "./access.ts";
import { logOf } from "./channel-store.ts";
import { emptyBegin, findBegin, type Head } from "./log-store.ts";
import { hasExpired, inboxOf, type Log, logTopic, type MessageRow } from "./message.ts";
import { receiptsOf } from "./receipts.ts";
import type { Tails, Told } from "./tail.ts";

type Message = MessageInitShape<typeof SubscribeResponseSchema>;

/** How long a stream goes on without asking again whether it may: policies and members change. */
const permittedMs = 1_000;

/** What a stream of messages is asked to tell. */
export type Following = {
  readonly log: Log;
  readonly start: Start;
  readonly afterSequence?: bigint | undefined;
  readonly filter?: MessageFilter | undefined;
  /** Throws when the log may no longer be read. */
  readonly permit: () => Promise<void>;
};

/** An open stream of a log. */
export type Follower = {
  readonly topic: string;
  readonly position: number;
  /** The newest message that was not read and is gone, where it begins at the first unread one; 0: there is none. */
  readonly unreadGone: number;
  /** What follows a sequence, that may be told. With `asks` it is asked whether the log may be read also where nothing follows. */
  read(
    after: number,
    asks?: boolean,
  ): Promise<{ readonly told: readonly Told[]; readonly position: number; readonly more: boolean }>;
  close(): void;
};

/** @param isBinary whether the stream's messages are written in the binary form, and not as JSON. */
export async function subscription(
  app: App,
  tails: Tails,
  req: SubscribeRequest,
  given: Query,
  isBinary: boolean,
): Promise<Reader<Message, number>> {
  const { log, permit, own } = await logToRead(app, readKeepingOf(app, given), given, req);
  const follower = await follow(app, tails, { log, permit, ...req });
  const receipts = own ? receiptsOf(app, log) : undefined;
  let page: readonly Told[] = [];
  const checkpoint = (at: number, nowMs: number): Message => ({
    sequence: BigInt(at),
    event: { case: "checkpoint", value: timestampFromMs(nowMs) },
  });
  return {
    topics: [follower.topic],
    position: follower.position,
    first: [{ ...checkpoint(follower.position, app.clock.now()), unreadGoneSequence: BigInt(follower.unreadGone) }],
    cursor: String,
    checkpoint,
    close: follower.close,
    async read(after, limit) {
      // Whoever rang without a message may have put the reader out; who only polls asks for one.
      const { told, position, more } = await follower.read(after, limit > 1);
      page = told;
      const messages = told.map(({ subscribed, written }) => (isBinary ? written() : subscribed));
      return { messages, position, more };
    },
    // Of the page that was read last.
    told() {
      app.relayCounts.delivered("stream", page.length);
      receipts?.delivered(page.map(({ row }) => row.sequence));
    },
  };
}

/** The log that a request names, how to ask again whether it may be read, and whether it is the caller's own inbox. */
async function logToRead(
  app: App,
  keeping: Keeping,
  { caller, orgId }: { readonly caller: Caller; readonly orgId: string },
  { channel, agentId: named }: Pick<SubscribeRequest, "channel" | "agentId">,
): Promise<{ readonly log: Log; readonly permit: () => Promise<void>; readonly own: boolean }> {
  if (channel === "") {
    const agentId = inboxAgentOf(caller, named);
    const check = (by: Keeping) => checkInbox(by, app, { orgId, caller, now: app.clock.now() }, agentId);
    await check(keeping);
    const permit = () => check(asked(keeping));
    return { log: inboxOf(orgId, agentId), permit, own: caller.agentId === agentId };
  }
  const agentId = await actingAgent(keeping.db, caller, orgId, named);
  const look = (by: Keeping) => channelToRead(by, app, { orgId, agentId, now: app.clock.now() }, channel);
  const log = logOf(await look(keeping));
  const permit = async () => {
    if ((await look(asked(keeping))).log_id !== log.logId) throw notFound("channel", channel);
  };
  return { log, permit, own: false };
}

/** Follows a log. CURSOR_EXPIRED when `afterSequence` lies before what is kept or after its end. */
export async function follow(
  app: App,
  tails: Tails,
  { log, start, afterSequence, filter, permit }: Following,
): Promise<Follower> {
  const { position, unreadGone } = await beginOf(app.db.query, log, start, afterSequence);
  const fits = fitting(filter);
  const tail = tails.open(log);
  const closeSubscription = app.relayCounts.subscribed();
  let permittedUntilMs = app.clock.now() + permittedMs;
  return {
    topic: logTopic(log.logId),
    position,
    unreadGone,
    async read(after, asks = false) {
      const page = await tail.read(after);
      if (!page) {
        if (log.channel) throw notFound("channel", log.channel);
        return { told: [], position: after, more: false };
      }
      if (after < page.floor && (page.told[0]?.row.sequence ?? page.head + 1) > after + 1)
        throw cursorExpired(after, page);
      const now = app.clock.now();
      if (page.told.length > 0 ? now >= permittedUntilMs : asks) {
        await permit();
        permittedUntilMs = now + permittedMs;
      }
      const told = page.told.filter(({ row }) => fits(row) && !hasExpired(row, now));
      return { told, position: page.position, more: page.more };
    },
    close() {
      tail.release();
      closeSubscription();
    },
  };
}

/** Where a stream begins. What the log had lost of what was not read is found with it: what goes between two looks would be passed over in silence. */
async function beginOf(
  db: Queryable,
  log: Log,
  start: Start,
  afterSequence: bigint | undefined,
): Promise<Pick<Follower, "position" | "unreadGone">> {
  const begin = (await findBegin(db, log)) ?? emptyBegin;
  const at = (position: number) => ({ position, unreadGone: 0 });
  if (afterSequence !== undefined) {
    if (start !== Start.UNSPECIFIED) throw badField("start", "give either start or after_sequence");
    return at(checkAfter(afterSequence, begin));
  }
  if (start === Start.OLDEST) return at(begin.floor);
  if (start === Start.FIRST_UNREAD && log.channel) throw badField("start", "a channel does not know what is read");
  if (start === Start.NOW || log.channel) return at(begin.head);
  return {
    position: begin.first_unread === null ? begin.head : begin.first_unread - 1,
    unreadGone: begin.unread_gone,
  };
}

/** The sequence to go on after, if the log reaches to it and is kept from there on; CURSOR_EXPIRED otherwise. */
export function checkAfter(after: bigint, head: Pick<Head, "head" | "floor">): number {
  if (after < BigInt(head.floor) || after > BigInt(head.head)) throw cursorExpired(after, head);
  return Number(after);
}

function cursorExpired(after: number | bigint, { floor, head }: Pick<Head, "head" | "floor">): Fault {
  const what =
    after < floor ? `messages after ${after} are no longer kept` : `the log ends at ${head}, before sequence ${after}`;
  const message = `${what}: the oldest sequence is ${floor + 1}; go on after ${floor} to ${head}`;
  return new Fault("CURSOR_EXPIRED", message, { oldest_sequence: String(floor + 1), last_sequence: String(head) });
}

/** Whether a message is one of those asked for. */
export function fitting(filter: MessageFilter | undefined): (row: MessageRow) => boolean {
  if (!filter) return () => true;
  const { labels, senderAgentId, threadId } = filter;
  return (row) =>
    (labels.length === 0 || labels.includes(row.label)) &&
    (senderAgentId === "" || row.sender_agent_id === senderAgentId) &&
    (threadId === "" || row.thread_id === threadId);
}
