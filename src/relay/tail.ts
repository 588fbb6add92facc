/**
 * Fan-out: the streams of one log in this process read it together. What is new is read from the table once, opened once, made a message once and written once, and
 * the same bytes go to every stream. A stream that is behind what is kept here reads for itself.
 */
import { create, fromBinary, toBinary } from "@bufbuild/protobuf";
import { EmptySchema } from "@bufbuild/protobuf/wkt";
import type { Message } from "../../gen/moltwire/relay/v1/message_pb.ts";
import { type SubscribeResponse, SubscribeResponseSchema } from "../../gen/moltwire/relay/v1/relay_service_pb.ts";
import type { App } from "../app.ts";
import { limits } from "./limits.ts";
import { readStretch } from "./log-store.ts";
import { type Log, type MessageRow, toMessage } from "./message.ts";

/** A message as every stream of the log tells it. */
export type Told = {
  readonly row: MessageRow;
  readonly message: Message;
  readonly subscribed: SubscribeResponse;
  /** The same for streams of the binary form, which copy its bytes; written when the first of them asks. It reads as empty: nothing but these bytes is in it. */
  readonly written: () => SubscribeResponse;
};

/** What follows a sequence: the messages, up to where that is all there is, and whether there is more. */
export type TailPage = {
  readonly told: readonly Told[];
  readonly position: number;
  readonly more: boolean;
  /** Up to where the log is no longer kept. */
  readonly floor: number;
  readonly head: number;
};

/** One stream's hold on the log. `read` gives undefined when there is no such log. */
export type Tail = { read(after: number): Promise<TailPage | undefined>; release(): void };

/** The logs that streams of this process read. */
export type Tails = { open(log: Log): Tail };

/** What is kept of one log, and of all: each message with its bytes, twice what it counts. */
const keptOfLog = 1_048_576;
const keptOfAll = 33_554_432;
const pageSize = { messages: limits.pageMessages, bytes: limits.pageBytes };

type Shared = {
  readonly log: Log;
  streams: number;
  /** What follows `from` up to `to`, without a gap. */
  told: Told[];
  from: number;
  to: number;
  bytes: number;
  floor: number;
  head: number;
  /** A read of the table under way, and the one that follows it. */
  running: Promise<Read> | undefined;
  next: Promise<Read> | undefined;
};

/** What a read of the table after a sequence has found. */
type Read = { readonly at: number; readonly page: TailPage | undefined };

export function createTails(app: Pick<App, "db" | "vault">): Tails {
  const logs = new Map<string, Shared>();
  let keptBytes = 0;

  const readTable = async (log: Log, after: number): Promise<TailPage | undefined> => {
    const stretch = await readStretch(app.db.query, log, after, pageSize);
    if (!stretch) return undefined;
    const { head, floor, rows } = stretch;
    const told = rows.map((row) => toTold(app, log, row));
    // Fewer than asked for can be all, or all that the bytes allow: the next read tells.
    const position = rows.at(-1)?.sequence ?? Math.max(after, head);
    return { told, position, more: position < head, floor, head };
  };

  const forget = (shared: Shared, to: number): void => {
    keptBytes -= shared.bytes;
    Object.assign(shared, { told: [], from: to, to, bytes: 0 });
  };

  const keep = (shared: Shared, page: TailPage): void => {
    for (const one of page.told) {
      shared.told.push(one);
      shared.bytes += costOf(one);
      keptBytes += costOf(one);
    }
    shared.to = page.position;
    let gone = 0;
    while (shared.bytes > keptOfLog && gone < shared.told.length - 1) {
      const one = shared.told[gone++]!;
      shared.from = one.row.sequence;
      shared.bytes -= costOf(one);
      keptBytes -= costOf(one);
    }
    if (gone > 0) shared.told.splice(0, gone);
    if (keptBytes > keptOfAll) forget(shared, shared.to);
  };

  /** Reads on from where what is kept ends. Who asks while a read is under way waits for another: what it asks for may have come after that one looked. */
  const readOn = (shared: Shared): Promise<Read> => {
    shared.next ??= (async () => {
      // All who were woken by one bell ask before the read begins.
      await new Promise(setImmediate);
      await shared.running?.catch(() => {});
      shared.running = shared.next;
      shared.next = undefined;
      const at = shared.to;
      const page = await readTable(shared.log, at);
      if (!page || at < page.floor || at > page.head) forget(shared, page?.head ?? 0);
      // What is kept for nobody would be counted for ever.
      else if (shared.to === at && shared.streams > 0) {
        Object.assign(shared, { floor: page.floor, head: page.head });
        keep(shared, page);
      }
      return { at, page };
    })();
    return shared.next;
  };

  const kept = (shared: Shared, after: number): TailPage | undefined => {
    if (after < shared.from || after >= shared.to) return undefined;
    const told: Told[] = [];
    let bytes = 0;
    for (let n = firstAfter(shared.told, after); n < shared.told.length; n++) {
      const one = shared.told[n]!;
      if (told.length === limits.pageMessages || (bytes > 0 && bytes + one.row.size_bytes > limits.pageBytes))
        return { told, position: told.at(-1)!.row.sequence, more: true, floor: shared.floor, head: shared.head };
      told.push(one);
      bytes += one.row.size_bytes;
    }
    // The end of what is kept is not the end of the log: whoever was woken by a newer message would sleep on.
    return { told, position: shared.to, more: true, floor: shared.floor, head: shared.head };
  };

  return {
    open(log) {
      const shared: Shared = logs.get(log.logId) ?? {
        ...{
          log,
          streams: 0,
          told: [],
          from: 0,
          to: 0,
          bytes: 0,
          floor: 0,
          head: 0,
          running: undefined,
          next: undefined,
        },
      };
      logs.set(log.logId, shared);
      shared.streams++;
      let released = false;
      return {
        async read(after) {
          if (after > shared.to) forget(shared, after);
          if (after === shared.to) {
            const { at, page } = await readOn(shared);
            if (at === after) return page;
          }
          return kept(shared, after) ?? readTable(log, after);
        },
        release() {
          if (released) return;
          released = true;
          if (--shared.streams > 0) return;
          forget(shared, 0);
          logs.delete(log.logId);
        },
      };
    },
  };
}

const costOf = ({ row }: Told): number => 2 * row.size_bytes;

const toTold = (
  app: Pick<App, "vault">,
  log: Log,
  row: Parameters<typeof toMessage>[2] & { body: Uint8Array },
): Told => {
  const { body, ...rest } = row;
  const message = toMessage(app, log, rest, body);
  const event = { case: "message", value: message } as const;
  const subscribed = create(SubscribeResponseSchema, { sequence: message.sequence, event });
  let written: SubscribeResponse | undefined;
  return { row: rest, message, subscribed, written: () => (written ??= asWritten(subscribed)) };
};

/** A message of nothing but fields that it does not know, which are written as they are: all of those of another one. */
function asWritten(message: SubscribeResponse): SubscribeResponse {
  const { $unknown } = fromBinary(EmptySchema, toBinary(SubscribeResponseSchema, message));
  return Object.assign(create(SubscribeResponseSchema), { $unknown });
}

/** The place of the first message after a sequence. */
function firstAfter(told: readonly Told[], sequence: number): number {
  let [low, high] = [0, told.length];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (told[middle]!.row.sequence <= sequence) low = middle + 1;
    else high = middle;
  }
  return low;
}
