/** Consumer groups: a position, and rows for what is with readers or waits to be handed out again. */
import { create, fromBinary, type MessageInitShape, toBinary } from "@bufbuild/protobuf";
import { durationFromMs, timestampFromMs } from "@bufbuild/protobuf/wkt";
import type { ConsumerGroupSchema } from "../../gen/moltwire/relay/v1/channel_pb.ts";
import { type DeadMessage, DeadMessageSchema } from "../../gen/moltwire/relay/v1/channel_pb.ts";
import type { App } from "../app.ts";
import { join, type Queryable, type Sql, sql, type Tx } from "../db/db.ts";
import { type LogRef, messageColumns, type WholeRow } from "./message.ts";

export type GroupRow = {
  readonly name: string;
  readonly position: number;
  readonly ack_timeout_ms: number;
  readonly max_deliveries: number;
  readonly owner_agent_id: string;
  readonly create_ms: number;
  /** How many messages are with readers or wait to be handed out again: as many rows as it has in `relay_flight`. */
  readonly outstanding: number;
  /** How many dead letters went because there were too many, or they were too old. */
  readonly dead_lost: number;
  /** How many messages the log let go of before the group was done with them. */
  readonly lost: number;
};

/** A group: its log and its name. */
export type GroupRef = LogRef & { readonly group: string };

/** A message that is with a reader, or waits to be handed out again. */
export type FlightRow = {
  readonly sequence: number;
  readonly deliveries: number;
  readonly token: string;
  readonly agent_id: string;
  readonly due_ms: number;
};

const columns = sql`g.name, g.position, g.ack_timeout_ms, g.max_deliveries, g.owner_agent_id, g.create_ms, g.outstanding, g.dead_lost, g.lost`;
const flightColumns = sql`f.sequence, f.deliveries, f.token, f.agent_id, f.due_ms`;
const ofGroup = ({ orgId, logId, group }: GroupRef) =>
  sql`org_id = ${orgId} and log_id = ${logId} and group_name = ${group}`;

/** Rung when messages of a group wait to be handed out again, or will at another time than before. */
export const groupTopic = ({ logId, group }: GroupRef): string => `relay:${logId}/${group}`;

/** Makes a group; 0 when the name is taken. */
export const insertGroup = (tx: Tx, { orgId, logId }: LogRef, row: GroupRow): Promise<number> =>
  tx.run(sql`
    insert into relay_group (org_id, log_id, name, position, ack_timeout_ms, max_deliveries, owner_agent_id, create_ms, outstanding, dead_lost, lost, dropped)
    values (${orgId}, ${logId}, ${row.name}, ${row.position}, ${row.ack_timeout_ms}, ${row.max_deliveries}, ${row.owner_agent_id}, ${row.create_ms},
      ${row.outstanding}, ${row.dead_lost}, ${row.lost}, 0)
    on conflict do nothing`);

/** A group, unless it is being deleted. */
export const findGroup = (db: Queryable, { orgId, logId, group }: GroupRef): Promise<GroupRow | undefined> =>
  db.one<GroupRow>(
    sql`select ${columns} from relay_group g where g.org_id = ${orgId} and g.log_id = ${logId} and g.name = ${group} and g.dropped = 0`,
  );

/** Holds the group until the transaction ends: whatever changes its messages does so. */
export const lockGroup = (tx: Tx, { orgId, logId, group }: GroupRef): Promise<GroupRow | undefined> =>
  tx.one<GroupRow>(
    sql`select ${columns} from relay_group g where g.org_id = ${orgId} and g.log_id = ${logId} and g.name = ${group} and g.dropped = 0 ${tx.dialect.forUpdate}`,
  );

/** Moves a group that is held on, with so many messages that it handed out for the first time. */
export const moveOn = (
  tx: Tx,
  { orgId, logId, group }: GroupRef,
  position: number,
  handedOut: number,
): Promise<number> =>
  tx.run(sql`
    update relay_group set position = ${position}, outstanding = outstanding + ${handedOut} where org_id = ${orgId} and log_id = ${logId} and name = ${group}`);

const countOutstanding = (tx: Tx, { orgId, logId, group }: GroupRef, by: number): Promise<number> =>
  tx.run(sql`
    update relay_group set outstanding = outstanding + ${by} where org_id = ${orgId} and log_id = ${logId} and name = ${group}`);

/** Counts messages that the log let go of before the group, which is held, was done with them. */
export const countLost = (tx: Tx, { orgId, logId, group }: GroupRef, by: number): Promise<number> =>
  tx.run(sql`
    update relay_group set lost = lost + ${by} where org_id = ${orgId} and log_id = ${logId} and name = ${group}`);

const countDeadLost = (tx: Tx, { orgId, logId, group }: GroupRef, by: number): Promise<number> =>
  tx.run(sql`
    update relay_group set dead_lost = dead_lost + ${by} where org_id = ${orgId} and log_id = ${logId} and name = ${group}`);

/** Lets go of a group: nobody sees it from the commit on. See removeDroppedGroup. */
export const dropGroup = (tx: Tx, { orgId, logId, group }: GroupRef): Promise<number> =>
  tx.run(sql`update relay_group set dropped = 1 where org_id = ${orgId} and log_id = ${logId} and name = ${group}`);

/** Holds a group that is being deleted; false when it is gone. */
export const lockDroppedGroup = async (tx: Tx, { orgId, logId, group }: GroupRef): Promise<boolean> =>
  (await tx.one(sql`
    select 1 as found from relay_group where org_id = ${orgId} and log_id = ${logId} and name = ${group} and dropped = 1 ${tx.dialect.forUpdate}`)) !==
  undefined;

/** One that is being deleted, of all organisations; by the partial index on them. */
export const anyDroppedGroup = async (db: Queryable): Promise<GroupRef | undefined> => {
  const row = await db.one<{ org_id: string; log_id: string; name: string }>(
    sql`select org_id, log_id, name from relay_group where dropped = 1 order by org_id, log_id, name limit 1`,
  );
  return row && { orgId: row.org_id, logId: row.log_id, group: row.name };
};

export const deleteGroup = (tx: Tx, { orgId, logId, group }: GroupRef): Promise<number> =>
  tx.run(sql`delete from relay_group where org_id = ${orgId} and log_id = ${logId} and name = ${group}`);

/** The groups of a channel after a name, by name. */
export const listGroups = (db: Queryable, { orgId, logId }: LogRef, after: string, limit: number) =>
  db.all<GroupRow>(sql`
    select ${columns} from relay_group g
    where g.org_id = ${orgId} and g.log_id = ${logId} and g.name > ${after} and g.dropped = 0 order by g.name limit ${limit}`);

export const countGroups = async (db: Queryable, { orgId, logId }: LogRef): Promise<number> =>
  (await db.one<{ n: number }>(
    sql`select count(*) as n from relay_group where org_id = ${orgId} and log_id = ${logId}`,
  ))!.n;

/** Messages whose time has come to be handed out again, the longest due first; by their index. */
export const dueFlights = (db: Queryable, group: GroupRef, now: number, limit: number): Promise<FlightRow[]> =>
  db.all<FlightRow>(sql`
    select ${flightColumns} from relay_flight f where ${ofGroup(group)} and last = 0 and due_ms <= ${now} order by due_ms, sequence limit ${limit}`);

/** When the next message will be handed out again; undefined: none will. */
export const nextDue = async (db: Queryable, group: GroupRef): Promise<number | undefined> =>
  (
    await db.one<{ due_ms: number }>(
      sql`select due_ms from relay_flight where ${ofGroup(group)} and last = 0 order by due_ms, sequence limit 1`,
    )
  )?.due_ms;

/** These messages of a group that are with readers or wait. */
export const flightsOf = (db: Queryable, group: GroupRef, sequences: readonly number[]): Promise<FlightRow[]> =>
  db.all<FlightRow>(
    sql`select ${flightColumns} from relay_flight f where ${ofGroup(group)} and sequence in (${join([...sequences])})`,
  );

/** Writes what has become of a message of a group; who makes a new row of it counts it in the group's. */
export const putFlight = (tx: Tx, { orgId, logId, group }: GroupRef, row: FlightRow, last: boolean): Promise<number> =>
  tx.run(sql`
    insert into relay_flight (org_id, log_id, group_name, sequence, deliveries, token, agent_id, due_ms, last)
    values (${orgId}, ${logId}, ${group}, ${row.sequence}, ${row.deliveries}, ${row.token}, ${row.agent_id}, ${row.due_ms}, ${last ? 1 : 0})
    on conflict (org_id, log_id, group_name, sequence) do update set deliveries = excluded.deliveries, token = excluded.token, agent_id = excluded.agent_id,
      due_ms = excluded.due_ms, last = excluded.last`);

/** Ends what a group has with messages, and the copies of those that were dead once. */
export async function endFlights(tx: Tx, group: GroupRef, sequences: readonly number[]): Promise<void> {
  const ended = await tx.run(
    sql`delete from relay_flight where ${ofGroup(group)} and sequence in (${join([...sequences])})`,
  );
  if (ended > 0) await countOutstanding(tx, group, -ended);
  await tx.run(
    sql`delete from relay_dead where ${ofGroup(group)} and sequence in (${join([...sequences])}) and redriven = 1`,
  );
}

/** Messages of a channel by their sequences. */
export const messagesAt = (
  db: Queryable,
  { orgId, logId }: LogRef,
  sequences: readonly number[],
): Promise<WholeRow[]> =>
  db.all<WholeRow>(sql`
    select ${messageColumns}, b.body from relay_message m
      join relay_body b on b.org_id = m.org_id and b.log_id = m.log_id and b.sequence = m.sequence
    where m.org_id = ${orgId} and m.log_id = ${logId} and m.sequence in (${join([...sequences])})`);

type DeadRow = { readonly group_name: string; readonly sequence: number; readonly body: Uint8Array };

/** Where the copy of a dead message lies. */
export const deadPlace = ({ orgId, logId }: LogRef, group: string, sequence: number) => ({
  orgId,
  table: "relay_dead",
  id: JSON.stringify([logId, group, sequence]),
});

/** Keeps a copy of a message that died. */
export const putDead = (
  tx: Tx,
  app: Pick<App, "vault">,
  group: GroupRef,
  dead: DeadMessage,
  now: number,
): Promise<number> => {
  const sequence = Number(dead.message!.sequence);
  const body = app.vault.seal(deadPlace(group, group.group, sequence), toBinary(DeadMessageSchema, dead));
  return tx.run(sql`
    insert into relay_dead (org_id, log_id, group_name, sequence, deliveries, agent_id, dead_ms, redriven, body)
    values (${group.orgId}, ${group.logId}, ${group.group}, ${sequence}, ${dead.deliveries}, ${dead.agentId}, ${now}, 0, ${body})
    on conflict (org_id, log_id, group_name, sequence) do update set deliveries = excluded.deliveries, agent_id = excluded.agent_id,
      dead_ms = excluded.dead_ms, redriven = 0, body = excluded.body`);
};

const openDead = (app: Pick<App, "vault">, log: LogRef, row: DeadRow): DeadMessage =>
  fromBinary(DeadMessageSchema, app.vault.open(deadPlace(log, row.group_name, row.sequence), row.body));

/** The copies of messages that were dead and are handed out again. */
export async function redrivenAt(
  db: Queryable,
  app: Pick<App, "vault">,
  group: GroupRef,
  sequences: readonly number[],
): Promise<DeadMessage[]> {
  const rows = await db.all<DeadRow>(sql`
    select group_name, sequence, body from relay_dead where ${ofGroup(group)} and sequence in (${join([...sequences])}) and redriven = 1`);
  return rows.map((row) => openDead(app, group, row));
}

/** Where a list of dead letters is: a group and a sequence. */
export type DeadPosition = readonly [string, number];
/** A dead letter without its body, of which it tells the bytes. */
export type DeadHead = Omit<DeadRow, "body"> & { readonly bytes: number };

const deadOf = ({ orgId, logId }: LogRef, only: string, after: DeadPosition | undefined): Sql => sql`
  org_id = ${orgId} and log_id = ${logId} ${only ? sql`and group_name = ${only}` : sql``} and redriven = 0
  ${after ? sql`and (group_name, sequence) > (${after[0]}, ${after[1]})` : sql``}`;

/** The dead letters of a channel, or of one of its groups, after one of them; by their index. */
export const listDead = (
  db: Queryable,
  log: LogRef,
  only: string,
  after: DeadPosition | undefined,
  limit: number,
): Promise<DeadHead[]> =>
  db.all<DeadHead>(sql`
    select group_name, sequence, length(body) as bytes from relay_dead where ${deadOf(log, only, after)} order by group_name, sequence limit ${limit}`);

/** The same up to one of them, whole. */
export async function readDead(
  db: Queryable,
  app: Pick<App, "vault">,
  log: LogRef,
  only: string,
  after: DeadPosition | undefined,
  through: DeadPosition,
): Promise<DeadMessage[]> {
  const rows = await db.all<DeadRow>(sql`
    select group_name, sequence, body from relay_dead
    where ${deadOf(log, only, after)} and (group_name, sequence) <= (${through[0]}, ${through[1]}) order by group_name, sequence`);
  return rows.map((row) => openDead(app, log, row));
}

/** Removes the dead letters of the oldest messages beyond a number of them, and counts them in the group's row, which is held; gives how many. By their index. */
export async function removeSurplusDead(tx: Tx, group: GroupRef, kept: number): Promise<number> {
  const last = await tx.one<{ sequence: number }>(sql`
    select sequence from relay_dead where ${ofGroup(group)} and redriven = 0 order by sequence desc limit 1 offset ${kept}`);
  if (!last) return 0;
  const gone = await tx.run(
    sql`delete from relay_dead where ${ofGroup(group)} and redriven = 0 and sequence <= ${last.sequence}`,
  );
  await countDeadLost(tx, group, gone);
  return gone;
}

/** The groups of the oldest dead letters that are from before a time, of all organisations; by the index on age. */
export const groupsWithOldDead = async (db: Queryable, before: number, limit: number): Promise<GroupRef[]> => {
  const rows = await db.all<{ org_id: string; log_id: string; group_name: string }>(
    sql`select org_id, log_id, group_name from relay_dead where dead_ms < ${before} order by dead_ms limit ${limit}`,
  );
  const refs = rows.map((row): GroupRef => ({ orgId: row.org_id, logId: row.log_id, group: row.group_name }));
  return [...new Map(refs.map((ref) => [JSON.stringify(ref), ref])).values()];
};

/**
 * Removes the dead letters of a group from before a time, also those that were redriven: whoever has them may still acknowledge them. Counts the others in the
 * group's row, which is held unless it is gone; gives how many these were.
 */
export async function removeOldDead(tx: Tx, group: GroupRef, before: number): Promise<number> {
  const rows = await tx.all<{ redriven: number }>(
    sql`delete from relay_dead where ${ofGroup(group)} and dead_ms < ${before} returning redriven`,
  );
  const gone = rows.filter(({ redriven }) => redriven === 0).length;
  if (gone > 0) await countDeadLost(tx, group, gone);
  return gone;
}

/** Takes dead letters of a group that is held back, the oldest first or those of these sequences, and counts them as outstanding; gives their sequences. */
export const takeDead = async (
  tx: Tx,
  group: GroupRef,
  sequences: readonly bigint[],
  limit: number,
): Promise<number[]> => {
  const wanted = sequences.length > 0 ? sql`and sequence in (${join([...sequences])})` : sql``;
  const rows = await tx.all<{ sequence: number }>(sql`
    select sequence from relay_dead where ${ofGroup(group)} and redriven = 0 ${wanted} order by sequence limit ${limit}`);
  const taken = rows.map(({ sequence }) => sequence);
  if (taken.length === 0) return taken;
  await tx.run(sql`update relay_dead set redriven = 1 where ${ofGroup(group)} and sequence in (${join(taken)})`);
  await countOutstanding(tx, group, taken.length);
  return taken;
};

export const toGroup = (channel: string, row: GroupRow): MessageInitShape<typeof ConsumerGroupSchema> => ({
  channel,
  name: row.name,
  position: BigInt(row.position),
  ackTimeout: durationFromMs(row.ack_timeout_ms),
  maxDeliveries: row.max_deliveries,
  outstanding: row.outstanding,
  deadLost: BigInt(row.dead_lost),
  lost: BigInt(row.lost),
  ownerAgentId: row.owner_agent_id,
  createTime: timestampFromMs(row.create_ms),
});

/** A dead letter as it is kept. */
export const deadMessage = (init: MessageInitShape<typeof DeadMessageSchema>): DeadMessage =>
  create(DeadMessageSchema, init);
