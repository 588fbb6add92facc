/** The rule of strangers: how much of an inbox messages of other organisations may take until they are read, so that nobody is kept from its own by them. Pure. */
import type { Strangers } from "./across-store.ts";
import type { Bounds } from "./retention.ts";

const most: Bounds = { messages: 1_000, bytes: 67_108_864 };
const partOfInbox = 10;
const partOfOne = 5;

/** What may lie unread: of all other organisations together, and of one of them. At least one message. */
export type Share = { readonly all: Bounds; readonly one: Bounds };

/** A tenth of the inbox, at most 1,000 messages and 64 MiB; of this a fifth for one organisation. */
export function shareOf(inbox: Bounds): Share {
  const part = (of: Bounds, by: number): Bounds => ({
    messages: Math.max(1, Math.floor(of.messages / by)),
    bytes: Math.max(1, Math.floor(of.bytes / by)),
  });
  const tenth = part(inbox, partOfInbox);
  const all = { messages: Math.min(most.messages, tenth.messages), bytes: Math.min(most.bytes, tenth.bytes) };
  return { all, one: part(all, partOfOne) };
}

/** What keeps another message out, with its limit; undefined: nothing does. The last one let in may go over the bytes. */
export function keptOut(
  held: Strangers,
  { all, one }: Share,
): { readonly resource: string; readonly limit: number } | undefined {
  const limits: readonly [string, number, number][] = [
    ["inbox_messages_of_organization", held.own_messages, one.messages],
    ["inbox_bytes_of_organization", held.own_bytes, one.bytes],
    ["inbox_messages_of_others", held.messages, all.messages],
    ["inbox_bytes_of_others", held.bytes, all.bytes],
  ];
  const reached = limits.find(([, has, limit]) => has >= limit);
  return reached && { resource: reached[0], limit: reached[2] };
}
