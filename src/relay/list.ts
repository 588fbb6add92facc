/** One page of a log's messages. */
import type { Message, MessageFilter } from "../../gen/moltwire/relay/v1/message_pb.ts";
import { MessageOrder } from "../../gen/moltwire/relay/v1/relay_service_pb.ts";
import type { App } from "../app.ts";
import type { Queryable } from "../db/db.ts";
import { answerBytes, defaultPageSize } from "../rpc/page.ts";
import { limits } from "./limits.ts";
import { emptyHead, findHead } from "./log-store.ts";
import { hasExpired, type Log, toMessage, type WholeRow } from "./message.ts";
import { listMessages } from "./message-store.ts";
import { checkAfter, fitting } from "./subscribe.ts";

/** How often a page reads on for messages that fit. */
const maxReads = 32;

export type ListRequest = {
  readonly filter?: MessageFilter | undefined;
  readonly order: MessageOrder;
  readonly afterSequence?: bigint | undefined;
  readonly pageSize: number;
  readonly pageToken: string;
};

export type ListReply = {
  readonly messages: Message[];
  readonly nextPageToken: string;
  readonly lastSequence: bigint;
  readonly oldestSequence: bigint;
  readonly unreadGoneSequence: bigint;
};

/**
 * Reads a bounded stretch of the log and keeps what fits, so that a filter, which has no index, costs a page no more than any other. `scope` says where tokens are
 * good. CURSOR_EXPIRED when `after_sequence` lies before what is kept, or after the end.
 */
export async function pageOfMessages(
  app: App,
  db: Queryable,
  log: Log,
  scope: readonly string[],
  req: ListRequest,
  unreadOnly: boolean,
  now: number,
): Promise<ListReply> {
  const newest = req.order === MessageOrder.NEWEST;
  const { labels = [], senderAgentId = "", threadId = "" } = req.filter ?? {};
  const asked = [
    String(newest),
    String(unreadOnly),
    String(req.afterSequence ?? ""),
    senderAgentId,
    threadId,
    ...labels,
  ];
  const cursorScope = [...scope, log.orgId, log.logId, ...asked];
  const head = (await findHead(db, log)) ?? emptyHead;
  // Not for a page that goes on: what went meanwhile is told by `oldest_sequence`.
  const given =
    req.afterSequence !== undefined && req.pageToken === "" ? checkAfter(req.afterSequence, head) : undefined;
  const from = given ?? Math.max(head.floor, Number(req.afterSequence ?? 0n));
  const fits = fitting(req.filter);
  const size = req.pageSize || defaultPageSize;
  let after = req.pageToken ? (app.cursors.decode(cursorScope, req.pageToken, "page_token")[0] as number) : undefined;
  const rows: WholeRow[] = [];
  let bytes = 0;
  const page = async (more: boolean): Promise<ListReply> => {
    // Looked at after the messages were read: what went in between is missing among them. The end as it was before: what has come since is not among them either.
    const { floor, unread_gone } = (await findHead(db, log)) ?? head;
    if (given !== undefined) checkAfter(req.afterSequence!, { head: head.head, floor });
    return {
      messages: rows.map((row) => toMessage(app, log, row, row.body)),
      nextPageToken: more && after !== undefined ? app.cursors.encode(cursorScope, [after]) : "",
      lastSequence: BigInt(head.head),
      oldestSequence: BigInt(floor + 1),
      unreadGoneSequence: BigInt(unread_gone),
    };
  };
  for (let reads = 0; reads < maxReads; reads++) {
    // What comes after the end was read is none of the page's, or a reader would find messages behind `last_sequence`.
    const walk = { newest, unreadOnly, from, after, until: head.head };
    const found = await listMessages(db, log, walk, { messages: limits.pageMessages, bytes: limits.pageBytes });
    if (found.length === 0) return page(false);
    for (const row of found) {
      const wanted = fits(row) && !hasExpired(row, now);
      if (wanted && (rows.length === size || (rows.length > 0 && bytes + row.size_bytes > answerBytes)))
        return page(true);
      after = row.sequence;
      if (!wanted) continue;
      rows.push(row);
      bytes += row.size_bytes;
    }
  }
  return page(true);
}
