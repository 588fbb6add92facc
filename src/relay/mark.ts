import type { MarkReadRequest } from "../../gen/moltwire/relay/v1/relay_service_pb.ts";
import type { Tx } from "../db/db.ts";
import { inRuns } from "../memory/rows.ts";
import { limits } from "./limits.ts";
import { forgetUnreadGone, lockLog } from "./log-store.ts";
import type { Log } from "./message.ts";
import { firstUnread, markRead, markReadThrough, newestOf } from "./message-store.ts";

/** Marks messages of an inbox as read; see MarkRead. Holds the log first: others mark the same messages, note receipts of them and remove them, in orders of their own. */
export async function marked(tx: Tx, log: Log, read: MarkReadRequest["read"], now: number) {
  const gone = (await lockLog(tx, log))?.unread_gone ?? 0;
  const unreadGoneSequence = BigInt(gone);
  if (read.case === "throughSequence") {
    if (gone > 0 && gone <= read.value) await forgetUnreadGone(tx, log);
    const count = await markReadThrough(tx, log, read.value, limits.markedAtOnce, now);
    const next = await firstUnread(tx, log);
    return { marked: count, more: next !== undefined && next <= read.value, unreadGoneSequence };
  }
  const runs = [...inRuns([...new Set(read.value?.messageIds ?? [])])];
  let count = 0;
  for (const ids of runs) count += await markRead(tx, log, ids, now);
  if (gone > 0) {
    let newest = 0;
    for (const ids of runs) newest = Math.max(newest, await newestOf(tx, log, ids));
    // All that came up to that one is read now, as if it was marked through it.
    if (newest > gone && ((await firstUnread(tx, log)) ?? newest + 1) > newest) await forgetUnreadGone(tx, log);
  }
  return { marked: count, more: false, unreadGoneSequence };
}
