/** Handing a channel's messages to the readers of a group. */
import { create } from "@bufbuild/protobuf";
import { timestampFromMs } from "@bufbuild/protobuf/wkt";
import { type GroupMessage, GroupMessageSchema } from "../../gen/moltwire/relay/v1/channel_pb.ts";
import type { Message } from "../../gen/moltwire/relay/v1/message_pb.ts";
import type { App } from "../app.ts";
import type { Tx } from "../db/db.ts";
import { Refused } from "../errors.ts";
import {
  countLost,
  deadMessage,
  dueFlights,
  endFlights,
  type FlightRow,
  flightsOf,
  type GroupRef,
  type GroupRow,
  groupTopic,
  messagesAt,
  moveOn,
  putDead,
  putFlight,
  redrivenAt,
  removeSurplusDead,
} from "./group-store.ts";
import { limits } from "./limits.ts";
import { emptyHead, findHead, readStretch } from "./log-store.ts";
import { hasExpired, type Log, toMessage } from "./message.ts";

const tokenBytes = 12;
/** How many messages that cannot be handed out any more one pull passes over. */
const maxPassed = 1_024;

/** A group with the log it reads. */
export type Pulling = { readonly log: Log; readonly ref: GroupRef; readonly group: GroupRow };

/** What a pull has found, and how many messages the log has let go of before the group was done with them, as it found just now. */
export type Pulled = { readonly messages: GroupMessage[]; readonly missed: bigint };

/**
 * Hands out messages of a group that is held: first what waits to be handed out again, then what is new. Throws QUOTA_EXCEEDED where there is something new and
 * the group has as much outstanding as it may, and nothing of that is due.
 */
export async function pull(
  tx: Tx,
  app: App,
  { log, ref, group }: Pulling,
  agentId: string,
  maxMessages: number,
  now: number,
): Promise<Pulled> {
  const found: { message: Message; deliveries: number }[] = [];
  let bytes = 0;
  let { outstanding } = group;
  const hasRoom = () => found.length < maxMessages && bytes < limits.pullBytes;
  const take = (message: Message, deliveries: number) => {
    found.push({ message, deliveries });
    bytes += Number(message.sizeBytes);
  };

  let missed = 0;
  for (let passed = 0; hasRoom() && passed < maxPassed; ) {
    const handed = new Set(found.map(({ message }) => Number(message.sequence)));
    const due = (await dueFlights(tx, ref, now, maxMessages)).filter(({ sequence }) => !handed.has(sequence));
    if (due.length === 0) break;
    const messages = await keptMessages(tx, app, log, ref, due, now);
    const gone = due.filter(({ sequence }) => !messages.has(sequence)).map(({ sequence }) => sequence);
    if (gone.length > 0) {
      missed += await letGo(tx, log, gone);
      await endFlights(tx, ref, gone);
    }
    outstanding -= gone.length;
    for (const { sequence, deliveries } of due) {
      const message = messages.get(sequence);
      if (message && hasRoom()) take(message, deliveries);
    }
    if (gone.length === 0) break;
    passed += gone.length;
  }

  let { position } = group;
  const again = found.length;
  const mayTake = () => limits.outstanding - outstanding - (found.length - again);
  for (let passed = 0; hasRoom() && mayTake() > 0 && passed < maxPassed; ) {
    const wanted = {
      messages: Math.min(maxMessages - found.length, mayTake()),
      bytes: Math.max(1, limits.pullBytes - bytes),
    };
    const stretch = await readStretch(tx, log, position, wanted);
    if (!stretch) break;
    if (position < stretch.floor) {
      missed += stretch.floor - position;
      position = stretch.floor;
    }
    for (const row of stretch.rows) {
      position = row.sequence;
      if (hasExpired(row, now)) passed++;
      else take(toMessage(app, log, row, row.body), 0);
    }
    if (stretch.rows.length === 0) {
      position = Math.max(position, stretch.head);
      break;
    }
  }
  const fresh = found.length - again;
  if (position !== group.position || fresh > 0) await moveOn(tx, ref, position, fresh);
  await lose(tx, app, ref, missed);
  if (found.length === 0 && mayTake() <= 0 && ((await findHead(tx, log))?.head ?? 0) > position) throw groupFull();

  const token = Buffer.from(app.ids.bytes(tokenBytes)).toString("base64url");
  const dueMs = now + group.ack_timeout_ms;
  for (const { message, deliveries } of found) {
    const sequence = Number(message.sequence);
    const flight = { sequence, deliveries: deliveries + 1, token, agent_id: agentId, due_ms: dueMs };
    await putFlight(tx, ref, flight, flight.deliveries >= group.max_deliveries);
  }
  // Others who wait have another time to wake up at.
  if (found.length > 0) tx.ring(groupTopic(ref));
  const messages = found.map(({ message, deliveries }) =>
    create(GroupMessageSchema, {
      message,
      ackId: `${message.sequence}.${token}`,
      delivery: deliveries + 1,
      ackDeadlineTime: timestampFromMs(dueMs),
    }),
  );
  return { messages, missed: BigInt(missed) };
}

/** The messages of these rows that can still be handed out, by sequence: from the log, or as the copy of what was dead once. */
async function keptMessages(
  tx: Tx,
  app: App,
  log: Log,
  ref: GroupRef,
  rows: readonly FlightRow[],
  now: number,
): Promise<Map<number, Message>> {
  const sequences = rows.map(({ sequence }) => sequence);
  const copies = await redrivenAt(tx, app, ref, sequences);
  const kept = new Map(copies.map(({ message }) => [Number(message!.sequence), message!]));
  for (const row of await messagesAt(tx, log, sequences))
    if (!kept.has(row.sequence) && !hasExpired(row, now)) kept.set(row.sequence, toMessage(app, log, row, row.body));
  return kept;
}

/** How many of these messages, which cannot be handed out any more, the log has let go of; of the others their own time was over. */
async function letGo(tx: Tx, log: Log, gone: readonly number[]): Promise<number> {
  const { floor } = (await findHead(tx, log)) ?? emptyHead;
  return gone.filter((sequence) => sequence <= floor).length;
}

/** Counts messages that a group has lost, where everybody sees it. */
async function lose(tx: Tx, app: App, ref: GroupRef, messages: number): Promise<void> {
  if (messages === 0) return;
  await countLost(tx, ref, messages);
  tx.afterCommit(() => app.relayCounts.lost(messages));
}

/** A delivery that its reader names. */
type Named = { readonly ackId: string; readonly sequence: number; readonly token: string };

const namedBy = (ackId: string): Named | undefined => {
  const [, sequence, token] = /^(\d{1,15})\.([\w-]+)$/.exec(ackId) ?? [];
  return sequence && token ? { ackId, sequence: Number(sequence), token } : undefined;
};

/** The deliveries that these ids name and that are not over, and the ids of the others. The group is held. */
export async function deliveriesOf(
  tx: Tx,
  ref: GroupRef,
  ackIds: readonly string[],
): Promise<{ readonly held: readonly FlightRow[]; readonly lost: readonly string[] }> {
  const named = new Map([...new Set(ackIds)].map((ackId) => [ackId, namedBy(ackId)]));
  const sequences = [...new Set([...named.values()].flatMap((one) => (one ? [one.sequence] : [])))];
  const rows = new Map(
    (sequences.length > 0 ? await flightsOf(tx, ref, sequences) : []).map((row) => [row.sequence, row]),
  );
  const held: FlightRow[] = [];
  const lost: string[] = [];
  for (const [ackId, one] of named) {
    const row = one && rows.get(one.sequence);
    if (row && row.token === one.token) held.push(row);
    else lost.push(ackId);
  }
  return { held, lost };
}

/** What has become of deliveries that nobody acknowledged. */
type GivenBack = { readonly returned: number; readonly dead: number; readonly gone: number };

/**
 * Ends deliveries that nobody acknowledged: the last one of a message makes it a dead letter, others let it wait. Nothing can be left of a message that the log
 * has let go of: it is counted as lost.
 */
export async function giveBack(
  tx: Tx,
  app: App,
  { log, ref, group }: Pulling,
  rows: readonly FlightRow[],
  { dueMs, cause, now }: { readonly dueMs: number; readonly cause: string; readonly now: number },
): Promise<GivenBack> {
  const last = rows.filter(({ deliveries }) => deliveries >= group.max_deliveries);
  for (const row of rows)
    if (!last.includes(row)) await putFlight(tx, ref, { ...row, token: "", due_ms: dueMs }, false);
  tx.ring(groupTopic(ref));
  const returned = rows.length - last.length;
  if (last.length === 0) return { returned, dead: 0, gone: 0 };
  const messages = await keptMessages(tx, app, log, ref, last, now);
  const sequences = last.map(({ sequence }) => sequence);
  await endFlights(tx, ref, sequences);
  const lacking = sequences.filter((sequence) => !messages.has(sequence));
  const gone = lacking.length > 0 ? await letGo(tx, log, lacking) : 0;
  await lose(tx, app, ref, gone);
  for (const { sequence, deliveries, agent_id: agentId } of last) {
    const message = messages.get(sequence);
    if (!message) continue;
    const dead = { group: ref.group, message, deliveries, cause, agentId, deadTime: timestampFromMs(now) };
    await putDead(tx, app, ref, deadMessage(dead), now);
  }
  const surplus = await removeSurplusDead(tx, ref, limits.deadLetters);
  tx.afterCommit(() => {
    app.relayCounts.dead(messages.size);
    app.relayCounts.removed("dead_letters", surplus);
  });
  return { returned, dead: messages.size, gone };
}

/** QUOTA_EXCEEDED: the group has as much outstanding as it may. What a pull passed over stays so. */
export function groupFull(): Refused {
  const { outstanding } = limits;
  const message = `${outstanding} messages of the group are with readers or wait to be handed out again: acknowledge some`;
  return new Refused("QUOTA_EXCEEDED", message, { resource: "group_outstanding", limit: String(outstanding) });
}
