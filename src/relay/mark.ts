import type { MarkReadRequest } from "../../gen/moltwire/relay/v1/relay_service_pb.ts";
import type { Tx } from "../db/db.ts";
import { inRuns } from "../memory/rows.ts";
import { limits } from "./limits.ts";
import { forgetUnreadGone, lockLog } from "./log-store.ts";
import type { Log } from "./message.ts";
import { firstUnread, markRead, markReadThrough } from "./message-store.ts";

/** Marks messages of an inbox as read; see MarkRead. Holds the log first: others mark the same messages, note receipts of them and remove them, in orders of their own. */
export async function marked(tx: Tx, log: Log, read: MarkReadRequest["read"], now: number) {
  const head = await lockLog(tx, log);
  if (read.case === "throughSequence") {
    if (head && head.unread_gone > 0 && head.unread_gone <= read.value) await forgetUnreadGone(tx, log);
    const count = await markReadThrough(tx, log, read.value, limits.markedAtOnce, now);
    const next = await firstUnread(tx, log);
    return { marked: count, more: next !== undefined && next <= read.value };
  }
  let count = 0;
  for (const ids of inRuns([...new Set(read.value?.messageIds ?? [])])) count += await markRead(tx, log, ids, now);
  return { marked: count, more: false };
}
