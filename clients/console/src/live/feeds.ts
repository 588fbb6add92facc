/** Reads the two logs of an organisation as they grow, for as long as it is wanted: nothing is lost or told twice over a lost connection. */
import { Code, ConnectError, createClient } from "@connectrpc/connect";
import { TraceService } from "../../../../gen/moltwire/bus/v1/trace_service_pb.ts";
import { EventService } from "../../../../gen/moltwire/ops/v1/event_service_pb.ts";
import { tellSignedOut, transport } from "../transport.ts";
import { type LiveItem, ofEvent, ofStep } from "./item.ts";

/** Twice the longest silence of a feed, and some. */
const silenceMs = 35_000;
const firstWaitMs = 300;
const longestWaitMs = 10_000;

type Source = "events" | "steps";
/** Where each log was read to. */
export type Cursors = Readonly<Record<Source, string>>;

export type Told = {
  onItem(item: LiveItem): void;
  onCursor(source: Source, cursor: string): void;
  /** Whether the feed is read now. */
  onState(source: Source, live: boolean): void;
};

/** Follows one log until the signal is aborted. Each round goes on where the one before ended. */
export async function follow(
  source: Source,
  orgId: string,
  from: string,
  told: Told,
  signal: AbortSignal,
): Promise<void> {
  let cursor = from;
  await followFeed((either) => open(source, orgId, cursor, either), {
    onMessage: (message) => {
      cursor = message.cursor;
      told.onCursor(source, cursor);
      told.onState(source, true);
      if (message.item) told.onItem(message.item);
    },
    onLost: (error) => {
      // Retention may have removed what lay after the cursor: then it goes on with what comes next.
      if (error?.code === Code.OutOfRange) cursor = "";
      told.onState(source, false);
      return true;
    },
    signal,
  });
}

type Following<Message> = {
  onMessage(message: Message): void;
  /** A round has ended, by itself or by an error. Answers whether to begin another. */
  onLost(error: ConnectError | undefined): boolean;
  readonly signal: AbortSignal;
};

/** Reads a feed in rounds until the signal is aborted or `onLost` says so: a lost connection is made again, ever later. */
export async function followFeed<Message>(
  begin: (signal: AbortSignal) => AsyncIterable<Message>,
  { onMessage, onLost, signal }: Following<Message>,
): Promise<void> {
  for (let waitMs = firstWaitMs; !signal.aborted; waitMs = Math.min(longestWaitMs, waitMs * 2)) {
    const round = new AbortController();
    const either = AbortSignal.any([signal, round.signal]);
    let silence = setTimeout(() => round.abort(), silenceMs);
    let fault: ConnectError | undefined;
    try {
      for await (const message of begin(either)) {
        clearTimeout(silence);
        silence = setTimeout(() => round.abort(), silenceMs);
        waitMs = firstWaitMs;
        onMessage(message);
      }
    } catch (error) {
      fault = ConnectError.from(error);
      if (fault.code === Code.Unauthenticated) tellSignedOut();
    } finally {
      clearTimeout(silence);
      round.abort();
    }
    if (signal.aborted || !onLost(fault)) return;
    await pause(waitMs * (0.5 + Math.random() / 2), signal);
  }
}

type Message = { readonly cursor: string; readonly item: LiveItem | undefined };

async function* open(source: Source, orgId: string, afterCursor: string, signal: AbortSignal): AsyncGenerator<Message> {
  if (source === "events") {
    const stream = createClient(EventService, transport).watchEvents({ orgId, afterCursor }, { signal });
    for await (const { cursor, item } of stream)
      yield { cursor, item: item.case === "event" ? ofEvent(item.value) : undefined };
    return;
  }
  const stream = createClient(TraceService, transport).tailTraces({ orgId, afterCursor }, { signal });
  for await (const { cursor, event } of stream)
    yield { cursor, item: event.case === "traceEvent" ? ofStep(event.value) : undefined };
}

const pause = (ms: number, signal: AbortSignal): Promise<void> =>
  new Promise((resolve) => {
    const timer = setTimeout(resolve, ms);
    signal.addEventListener("abort", () => {
      clearTimeout(timer);
      resolve();
    });
  });
