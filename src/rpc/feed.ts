import type { HandlerContext } from "@connectrpc/connect";
import type { App } from "../app.ts";
import { callerOfSession, sessionTopic } from "../console/session.ts";
import { type Bell, UnavailableError } from "../db/db.ts";
import { Fault } from "../errors.ts";
import { authenticateAgain } from "./auth.ts";
import { type Caller, callerOf, traceOf } from "./caller.ts";
import type { Query } from "./query.ts";
import { orgNamed, orgOf } from "./scope.ts";

/** What a feed reads at once. */
export const feedPageSize = 256;

/** The longest silence. */
export const checkpointMs = 15_000;
/** PostgreSQL's bells can come before the row is readable, or be lost with a connection: behind them, a poll. */
const firstPollMs = 10;
const lastPollMs = 500;
const awayPollMs = 1_000;

/** What was found after a position: the messages, where to go on, whether more is there already, whether the feed is over. */
export type FeedPage<Message, Position> = {
  readonly messages: readonly Message[];
  readonly position: Position;
  readonly more: boolean;
  readonly over?: boolean;
};

/** An open feed. The table is the buffer: `read` gives what follows a position, and the bells only say when to read. */
export type Reader<Message, Position> = {
  readonly topics: readonly string[];
  /** Where to begin. */
  readonly position: Position;
  /** Sent before anything else. */
  readonly first?: readonly Message[];
  read(after: Position, limit: number): Promise<FeedPage<Message, Position>>;
  /** Where to go on, for a client. */
  cursor(position: Position): string;
  /** Says that nothing happened. */
  checkpoint(position: Position, nowMs: number): Message;
  /** Told when the messages of a page were handed to the connection. */
  told?(messages: readonly Message[]): void;
  /** Told when the stream is over. */
  close?(): void;
};

/**
 * A method that streams: "read a page after my cursor, then wait for the bell". A reader that resumes with its cursor misses, repeats and
 * reorders nothing; a slow one costs nothing but its stream. Silence is broken by a checkpoint every 15 s. The stream ends with
 * SHUTTING_DOWN and its cursor when the server stops, and with the key's reason when its key ends.
 */
export const feed = <Request extends object, Message, Position>(
  app: App,
  open: (
    request: Request,
    query: Query,
    context: Pick<HandlerContext, "requestHeader">,
  ) => Promise<Reader<Message, Position>>,
) =>
  async function* (request: Request, context: HandlerContext): AsyncGenerator<Message> {
    const caller = callerOf(context);
    const db = app.db.query;
    const orgId = await orgOf(db, caller, orgNamed(request));
    const over = new AbortController();
    const signal = AbortSignal.any([context.signal, app.stopping, over.signal]);
    const closeStream = app.metrics.streamOpened();
    let reader: Reader<Message, Position> | undefined;
    try {
      const given = { db, caller, orgId, now: app.clock.now(), trace: traceOf(context) };
      reader = await open(request, given, context);
      const bell = app.db.listen(reader.topics, signal);
      endWithKey(app, caller, over, signal);
      yield* follow(app, reader, bell, signal, over.signal);
    } finally {
      over.abort();
      closeStream();
      reader?.close?.();
    }
  };

/**
 * A method that streams and is no log: the signal aborts when the client is gone, with SHUTTING_DOWN when the server stops, and with the key's reason when its key
 * ends.
 */
export async function* watched<Message>(
  app: App,
  context: HandlerContext,
  open: (signal: AbortSignal) => AsyncGenerator<Message>,
): AsyncGenerator<Message> {
  const caller = callerOf(context);
  const over = new AbortController();
  const signal = AbortSignal.any([context.signal, app.stopping, over.signal]);
  const closeStream = app.metrics.streamOpened();
  try {
    endWithKey(app, caller, over, signal);
    yield* open(signal);
  } finally {
    over.abort();
    closeStream();
  }
}

/** Aborts `over` with KEY_REVOKED or KEY_EXPIRED once the caller's key or session is no longer good; watches until the signal aborts. */
export function endWithKey(app: App, caller: Caller, over: AbortController, signal: AbortSignal): void {
  const topics = [keyTopic(caller.keyId), organizationTopic(caller.orgId)];
  const bell = app.db.listen(caller.session ? [...topics, sessionTopic(caller.session)] : topics, signal);
  watchKey(app, caller, bell, signal).catch((fault) => over.abort(fault));
}

/** Rung when something about a key changed. */
export const keyTopic = (keyId: string): string => `key:${keyId}`;

/** Rung when an organisation was disabled or enabled, and so all of its keys. */
export const organizationTopic = (orgId: string): string => `organization:${orgId}`;

async function* follow<Message, Position>(
  app: App,
  reader: Reader<Message, Position>,
  bell: Bell,
  signal: AbortSignal,
  keyOver: AbortSignal,
): AsyncGenerator<Message> {
  let { position } = reader;
  yield* reader.first ?? [];
  let toldMs = app.clock.now();
  /** Since when there is something committed that is not delivered, by `performance.now()`. */
  let behindMs: number | undefined;
  /** When the last read began that found something: what was rung for before, it found. */
  let foundMs = 0;
  for (;;) {
    const readMs = performance.now();
    const page = await whenBack(bell, signal, () => reader.read(position, feedPageSize)).catch((error: unknown) => {
      throw app.stopping.aborted ? stopped(reader, position) : error;
    });
    for (const message of page.messages) {
      keyOver.throwIfAborted(); // a slow reader may take long for a page
      yield message;
    }
    if (page.messages.length > 0) {
      reader.told?.(page.messages);
      toldMs = app.clock.now();
      if (behindMs !== undefined) app.metrics.delivered((performance.now() - behindMs) / 1_000);
    }
    if (page.position !== position) foundMs = readMs;
    // Also when nothing was found: on PostgreSQL a ring can come after its rows were read, or before they are readable, and nobody can tell which.
    if (!page.more) behindMs = undefined;
    position = page.position;
    if (page.over) return;
    try {
      signal.throwIfAborted();
      // A reader whose filter lets nothing through hears nothing either, however much happens.
      const leftMs = toldMs + checkpointMs - app.clock.now();
      if (leftMs > 0 && page.more) continue;
      if (leftMs > 0 && (await heard(app, reader, position, bell, leftMs, signal))) {
        const { rungMs = 0 } = bell;
        if (rungMs > foundMs) behindMs ??= rungMs;
        continue;
      }
      yield reader.checkpoint(position, app.clock.now());
      toldMs = app.clock.now();
    } catch (error) {
      throw app.stopping.aborted ? stopped(reader, position) : error;
    }
  }
}

const stopped = <Message, Position>(reader: Reader<Message, Position>, position: Position): Fault =>
  new Fault("SHUTTING_DOWN", "the server is stopping: resume with the cursor", { cursor: reader.cursor(position) });

/** Reads; while storage is away waits for its return, when all bells ring. Rejects when the signal aborts meanwhile. */
async function whenBack<T>(bell: Bell, signal: AbortSignal, read: () => Promise<T>): Promise<T> {
  for (;;) {
    try {
      return await read();
    } catch (error) {
      if (!(error instanceof UnavailableError)) throw error;
      await bell.wait(awayPollMs, signal);
    }
  }
}

/** Waits until there is something to read (true) or the time is over (false). */
async function heard<Message, Position>(
  app: App,
  reader: Reader<Message, Position>,
  position: Position,
  bell: Bell,
  ms: number,
  signal: AbortSignal,
): Promise<boolean> {
  if (app.db.engine === "sqlite") return bell.wait(ms, signal);
  let pollMs = firstPollMs;
  for (let waitedMs = 0; waitedMs < ms; waitedMs += pollMs) {
    if (await bell.wait(pollMs, signal)) return true;
    const page = await whenBack(bell, signal, () => reader.read(position, 1));
    if (page.position !== position || page.over) return true; // a row the filter hides moves the position too
    pollMs = Math.min(lastPollMs, pollMs * 2);
  }
  return false;
}

/**
 * Rejects with KEY_REVOKED or KEY_EXPIRED once the key is no longer good. Looks before it waits: the key may have ended after the call was
 * let in and before the bell hung.
 */
async function watchKey(app: App, { keyId, session }: Caller, bell: Bell, signal: AbortSignal): Promise<void> {
  const longestMs = 60_000;
  for (;;) {
    const { expireMs } = await whenBack(bell, signal, () =>
      session ? callerOfSession(app, session) : authenticateAgain(app, keyId),
    );
    const untilMs = expireMs === undefined ? longestMs : Math.min(longestMs, Math.max(1, expireMs - app.clock.now()));
    await bell.wait(untilMs, signal);
  }
}
