/** The rule of retention: what a log lets go of when it is full. */
import type { MessageRow } from "./message.ts";

/** What a log may hold. */
export type Bounds = { readonly messages: number; readonly bytes: number };

export type Oldest = Pick<MessageRow, "sequence" | "size_bytes" | "expire_ms"> & { readonly unread: number };

/** The old end that is let go of: up to which sequence, and how much that is. `full`: it is not enough, and what is oldest then has to stay. */
export type Cut = {
  readonly through: number;
  readonly messages: number;
  readonly bytes: number;
  readonly full: boolean;
};

/**
 * What has to go from the old end, oldest first, so that what is held fits. With `keepUnread` nothing goes that is not read, unless it has expired: behind it
 * nothing goes either, since a log has one old end.
 */
export function cutOf(held: Bounds, bounds: Bounds, oldest: readonly Oldest[], keepUnread: boolean, now: number): Cut {
  let cut = { through: 0, messages: 0, bytes: 0 };
  const isOver = () => held.messages - cut.messages > bounds.messages || held.bytes - cut.bytes > bounds.bytes;
  for (const { sequence, size_bytes, expire_ms, unread } of oldest) {
    if (!isOver()) break;
    const expired = expire_ms !== null && expire_ms <= now;
    if (keepUnread && unread !== 0 && !expired) return { ...cut, full: true };
    cut = { through: sequence, messages: cut.messages + 1, bytes: cut.bytes + size_bytes };
  }
  return { ...cut, full: false };
}
