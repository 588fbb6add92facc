/** The rule of retention: what a log lets go of when it is full. */
import type { MessageRow } from "./message.ts";

/** What a log may hold. */
export type Bounds = { readonly messages: number; readonly bytes: number };

export type Oldest = Pick<MessageRow, "sequence" | "size_bytes" | "expire_ms"> & { readonly unread: number };

/** The old end that is let go of: up to which sequence, how much that is, and the newest of it that is not read (0: none). `full`: it is not enough, and what is oldest then has to stay. */
export type Cut = {
  readonly through: number;
  readonly messages: number;
  readonly bytes: number;
  readonly unread: number;
  readonly full: boolean;
};

/** The newest of the oldest messages that is not read, though its time is not over; 0: there is none. */
export const newestUnread = (oldest: readonly Omit<Oldest, "size_bytes">[], now: number): number =>
  oldest.findLast((one) => one.unread !== 0 && !isOver(one, now))?.sequence ?? 0;

const isOver = ({ expire_ms }: Pick<Oldest, "expire_ms">, now: number): boolean =>
  expire_ms !== null && expire_ms <= now;

/**
 * What has to go from the old end, oldest first, so that what is held fits. With `keepUnread` nothing goes that is not read, unless it has expired: behind it
 * nothing goes either, since a log has one old end.
 */
export function cutOf(held: Bounds, bounds: Bounds, oldest: readonly Oldest[], keepUnread: boolean, now: number): Cut {
  let cut = { through: 0, messages: 0, bytes: 0, unread: 0 };
  const isTooMuch = () => held.messages - cut.messages > bounds.messages || held.bytes - cut.bytes > bounds.bytes;
  for (const one of oldest) {
    if (!isTooMuch()) break;
    const isLoss = one.unread !== 0 && !isOver(one, now);
    if (keepUnread && isLoss) return { ...cut, full: true };
    const unread = isLoss ? one.sequence : cut.unread;
    cut = { through: one.sequence, messages: cut.messages + 1, bytes: cut.bytes + one.size_bytes, unread };
  }
  return { ...cut, full: false };
}
