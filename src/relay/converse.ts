/** Converse: one stream on which an agent sends, receives, marks as read and is present. */
import { create, type MessageInitShape } from "@bufbuild/protobuf";
import { timestampFromMs } from "@bufbuild/protobuf/wkt";
import type { HandlerContext } from "@connectrpc/connect";
import { type Presence, PresenceStatus } from "../../gen/moltwire/relay/v1/message_pb.ts";
import {
  type ConverseRequest,
  type ConverseResponseSchema,
  type Open,
  OpenSchema,
} from "../../gen/moltwire/relay/v1/relay_service_pb.ts";
import type { App } from "../app.ts";
import { asked, type Keeping, keepApart } from "../bus/policy/keeping.ts";
import { Bell } from "../db/db.ts";
import { badField, Fault } from "../errors.ts";
import { callerOf, traceOf } from "../rpc/caller.ts";
import { checkpointMs, endWithKey } from "../rpc/feed.ts";
import { orgOf } from "../rpc/scope.ts";
import { checkInbox, recipientAgentOf } from "./access.ts";
import { carryOut, type Speaker } from "./frame.ts";
import { inboxOf } from "./message.ts";
import { endPresence, type Present, presencesOf, presenceTopic, putPresence } from "./presence.ts";
import { receiptsOf } from "./receipts.ts";
import { type Follower, follow } from "./subscribe.ts";
import type { Tails } from "./tail.ts";

type Answer = MessageInitShape<typeof ConverseResponseSchema>;

/** How many answers wait for their reader; beyond, no further frame is read. */
const maxAnswers = 64;
/** PostgreSQL's bells can be lost with a connection: behind them, a poll. */
const pollMs = 500;

export const converse = (app: App, tails: Tails) =>
  async function* (frames: AsyncIterable<ConverseRequest>, context: HandlerContext): AsyncGenerator<Answer> {
    const caller = callerOf(context);
    const over = new AbortController();
    const signal = AbortSignal.any([context.signal, app.stopping, over.signal]);
    const closeStream = app.metrics.streamOpened();
    let talk: Conversation | undefined;
    try {
      endWithKey(app, caller, over, signal);
      const incoming = frames[Symbol.asyncIterator]();
      const { ref, open } = await firstFrame(incoming, signal);
      talk = await begin(app, tails, open, context, signal);
      const { agentId, position, follower } = talk;
      const unreadGoneSequence = BigInt(follower?.unreadGone ?? 0);
      yield { ref, event: { case: "opened", value: { agentId, sequence: BigInt(position), unreadGoneSequence } } };
      hear(app, talk, incoming, context, signal);
      yield* speak(app, talk, signal);
    } catch (error) {
      if (app.stopping.aborted)
        throw new Fault("SHUTTING_DOWN", "the server is stopping: open the conversation again", {
          cursor: String(talk?.position ?? 0),
        });
      throw over.signal.aborted ? over.signal.reason : error;
    } finally {
      over.abort();
      closeStream();
      talk?.follower?.close();
      if (talk) await leave(app, talk.present);
    }
  };

/** The state of one conversation: what it has to say, and where it is. */
type Conversation = Speaker & {
  readonly present: Present;
  readonly follower: Follower | undefined;
  readonly receipts: ReturnType<typeof receiptsOf> | undefined;
  /** Rung when there is something to say. */
  readonly bell: Bell;
  readonly answers: Answer[];
  /** Lets the next frame be read; undefined while nobody waits. */
  makeRoom: (() => void) | undefined;
  position: number;
  /** The client has nothing more to say, or said something malformed. */
  heardAll: { readonly error?: unknown } | undefined;
  status: PresenceStatus;
  readonly watched: Map<string, PresenceStatus | undefined>;
  stopWatching: AbortController;
};

async function firstFrame(
  incoming: AsyncIterator<ConverseRequest>,
  signal: AbortSignal,
): Promise<{ readonly ref: string; readonly open: Open }> {
  const first = await aborting(incoming.next(), signal);
  if (first.done) return { ref: "", open: create(OpenSchema) };
  if (first.value.frame.case !== "open") throw badField("frame", "the first frame is `open`");
  return { ref: first.value.ref, open: first.value.frame.value };
}

async function begin(
  app: App,
  tails: Tails,
  open: Open,
  context: HandlerContext,
  signal: AbortSignal,
): Promise<Conversation> {
  const caller = callerOf(context);
  const { query } = app.db;
  const orgId = await orgOf(query, caller, open.orgId);
  const agentId = recipientAgentOf(caller, open.agentId);
  const keeping = keepApart(app, query, { orgId, traceId: traceOf(context).traceId });
  const check = (by: Keeping) => checkInbox(by, app, { orgId, caller, now: app.clock.now() }, agentId);
  await check(keeping);
  const permit = () => check(asked(keeping));
  const log = inboxOf(orgId, agentId);
  const follower = open.sendOnly ? undefined : await follow(app, tails, { log, permit, ...open });
  const present = { orgId, agentId, stream: app.ids.span() };
  const bell = new Bell();
  const talk: Conversation = {
    ...{ orgId, agentId, present, follower, bell, answers: [], makeRoom: undefined, heardAll: undefined },
    receipts: follower && caller.agentId === agentId ? receiptsOf(app, log) : undefined,
    position: follower?.position ?? 0,
    status: PresenceStatus.ONLINE,
    watched: new Map(),
    stopWatching: new AbortController(),
    async setPresence(status) {
      await renew(app, talk, status, true);
    },
    watchPresence(agentIds) {
      talk.stopWatching.abort();
      talk.stopWatching = new AbortController();
      talk.watched.clear();
      for (const id of agentIds) talk.watched.set(id, undefined);
      if (agentIds.length === 0) return;
      const until = AbortSignal.any([signal, talk.stopWatching.signal]);
      forward(app.db.listen(agentIds.map(presenceTopic), until), bell, until);
    },
  };
  try {
    if (follower) forward(app.db.listen(follower.topic, signal), bell, signal);
    await renew(app, talk, talk.status, true);
  } catch (error) {
    follower?.close();
    throw error;
  }
  return talk;
}

/** Rings one bell when another rings, until the signal aborts. */
function forward(from: Bell, to: Bell, signal: AbortSignal): void {
  const listen = async () => {
    for (;;) if (await from.wait(checkpointMs, signal)) to.ring();
  };
  listen().catch(() => {}); // it ends with the signal
}

/** Says that the agent is there, so that it is believed for a while; rings for those who watch it only if it is news. */
async function renew(app: App, talk: Conversation, status: PresenceStatus, isNews: boolean): Promise<void> {
  await app.db.tx(async (tx) => {
    await putPresence(tx, talk.present, status, app.clock.now());
    if (isNews) tx.ring(presenceTopic(talk.agentId));
  });
  talk.status = status;
}

async function leave(app: App, present: Present): Promise<void> {
  try {
    await app.db.tx((tx) => endPresence(tx, present));
  } catch (error) {
    app.log.warn({ err: error, agent_id: present.agentId }, "an end of presence was not noted: it ends by itself");
  }
}

/** Carries out what the client says, frame after frame, as long as its answers are taken. */
function hear(
  app: App,
  talk: Conversation,
  incoming: AsyncIterator<ConverseRequest>,
  context: HandlerContext,
  signal: AbortSignal,
): void {
  const listen = async () => {
    for (;;) {
      const { value: frame, done } = await aborting(incoming.next(), signal);
      if (done) return;
      talk.answers.push({ ref: frame.ref, event: await carryOut(app, talk, frame, context) });
      talk.bell.ring();
      while (talk.answers.length >= maxAnswers && !signal.aborted)
        await new Promise<void>((resolve) => {
          talk.makeRoom = resolve;
        });
    }
  };
  listen()
    .then(
      () => {
        talk.heardAll = {};
      },
      (error: unknown) => {
        talk.heardAll = { error };
      },
    )
    .finally(() => talk.bell.ring());
  signal.addEventListener("abort", () => talk.makeRoom?.(), { once: true });
}

/** Tells what there is to tell: answers, messages, presences, checkpoints. */
async function* speak(app: App, talk: Conversation, signal: AbortSignal): AsyncGenerator<Answer> {
  let toldMs = app.clock.now();
  let renewedMs = toldMs;
  for (;;) {
    signal.throwIfAborted();
    for (let answer = talk.answers.shift(); answer; answer = talk.answers.shift()) {
      talk.makeRoom?.();
      talk.makeRoom = undefined;
      yield answer;
      signal.throwIfAborted();
      toldMs = app.clock.now();
    }
    if (talk.heardAll && talk.answers.length === 0) {
      if ("error" in talk.heardAll) throw talk.heardAll.error;
      return;
    }
    const page = await talk.follower?.read(talk.position);
    const given: number[] = [];
    try {
      for (const { message, row } of page?.told ?? []) {
        yield { event: { case: "message", value: message } };
        // At once: whoever resumes after a stream that ended in the middle of a page gets nothing again.
        talk.position = row.sequence;
        given.push(row.sequence);
        signal.throwIfAborted(); // a slow reader may take long for a page
      }
    } finally {
      if (given.length > 0) {
        app.relayCounts.delivered("stream", given.length);
        talk.receipts?.delivered(given);
      }
    }
    if (given.length > 0) toldMs = app.clock.now();
    if (page) talk.position = page.position;
    for (const presence of await changedPresences(app, talk)) {
      yield { event: { case: "presence", value: presence } };
      toldMs = app.clock.now();
    }
    const now = app.clock.now();
    if (now >= renewedMs + checkpointMs) {
      await renew(app, talk, talk.status, false);
      renewedMs = now;
    }
    if (page?.more || talk.answers.length > 0) continue;
    const leftMs = Math.min(toldMs, renewedMs) + checkpointMs - now;
    const waitMs = app.db.engine === "sqlite" ? leftMs : Math.min(leftMs, pollMs);
    if (leftMs > 0 && (await talk.bell.wait(Math.max(1, waitMs), signal))) continue;
    if (app.clock.now() < toldMs + checkpointMs) continue;
    const checkpoint = { sequence: BigInt(talk.position), time: timestampFromMs(app.clock.now()) };
    yield { event: { case: "checkpoint", value: checkpoint } };
    toldMs = app.clock.now();
  }
}

/** What has changed of the agents that are watched since it was last told. */
async function changedPresences(app: App, { watched, orgId }: Conversation): Promise<Presence[]> {
  if (watched.size === 0) return [];
  const presences = await presencesOf(app.db.query, orgId, [...watched.keys()], app.clock.now());
  const changed = presences.filter(({ agentId, status }) => watched.has(agentId) && watched.get(agentId) !== status);
  for (const { agentId, status } of changed) watched.set(agentId, status);
  return changed;
}

/** The promise's outcome, or the signal's reason if that aborts before. */
async function aborting<T>(promise: Promise<T>, signal: AbortSignal): Promise<T> {
  signal.throwIfAborted();
  const { promise: aborted, reject } = Promise.withResolvers<never>();
  const abort = () => reject(signal.reason);
  signal.addEventListener("abort", abort, { once: true });
  try {
    return await Promise.race([promise, aborted]);
  } finally {
    signal.removeEventListener("abort", abort);
    promise.catch(() => {}); // nobody waits for it any more
  }
}
