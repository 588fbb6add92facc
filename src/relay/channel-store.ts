/** Channels and their members. */

import type { MessageInitShape } from "@bufbuild/protobuf";
import { timestampFromMs } from "@bufbuild/protobuf/wkt";
import type { ChannelSchema } from "../../gen/moltwire/relay/v1/channel_pb.ts";
import { type Queryable, sql, type Tx } from "../db/db.ts";
import type { Log, LogRef } from "./message.ts";

export type ChannelRow = {
  readonly org_id: string;
  readonly name: string;
  readonly log_id: string;
  readonly description: string;
  readonly owner_agent_id: string;
  readonly members_only: number;
  readonly members: number;
  readonly revision: number;
  readonly create_ms: number;
  readonly update_ms: number;
};

/** A channel with where its log stands, and whether an agent has joined. */
export type ListedRow = ChannelRow & { readonly head: number; readonly floor: number; readonly joined: number };

const columns = sql`c.org_id, c.name, c.log_id, c.description, c.owner_agent_id, c.members_only, c.members, c.revision, c.create_ms, c.update_ms`;

export const logOf = ({ org_id, log_id, name }: ChannelRow): Log => ({ orgId: org_id, logId: log_id, channel: name });

export const findChannel = (db: Queryable, orgId: string, name: string): Promise<ChannelRow | undefined> =>
  db.one<ChannelRow>(sql`select ${columns} from relay_channel c where c.org_id = ${orgId} and c.name = ${name}`);

/** The channel of a log. */
export const channelOfLog = (db: Queryable, { orgId, logId }: LogRef): Promise<ChannelRow | undefined> =>
  db.one<ChannelRow>(sql`select ${columns} from relay_channel c where c.org_id = ${orgId} and c.log_id = ${logId}`);

/** Holds the channel until the transaction ends. */
export const lockChannel = (tx: Tx, orgId: string, name: string): Promise<ChannelRow | undefined> =>
  tx.one<ChannelRow>(
    sql`select ${columns} from relay_channel c where c.org_id = ${orgId} and c.name = ${name} ${tx.dialect.forUpdate}`,
  );

/** Makes a channel; 0 when the name is taken. */
export const insertChannel = (tx: Tx, row: ChannelRow): Promise<number> =>
  tx.run(sql`
    insert into relay_channel (org_id, name, log_id, description, owner_agent_id, members_only, members, revision, create_ms, update_ms)
    values (${row.org_id}, ${row.name}, ${row.log_id}, ${row.description}, ${row.owner_agent_id}, ${row.members_only}, ${row.members}, ${row.revision},
      ${row.create_ms}, ${row.update_ms})
    on conflict do nothing`);

export const updateChannel = (tx: Tx, row: ChannelRow): Promise<number> =>
  tx.run(sql`
    update relay_channel set description = ${row.description}, members_only = ${row.members_only}, revision = ${row.revision}, update_ms = ${row.update_ms}
    where org_id = ${row.org_id} and name = ${row.name}`);

export const deleteChannel = (tx: Tx, { org_id, name }: ChannelRow): Promise<number> =>
  tx.run(sql`delete from relay_channel where org_id = ${org_id} and name = ${name}`);

/** How many channels there are, counted no further than a bound. */
export const countChannels = async (db: Queryable, orgId: string, bound: number): Promise<number> =>
  (await db.one<{ n: number }>(sql`
    select count(*) as n from (select 1 as one from relay_channel where org_id = ${orgId} limit ${bound}) near`))!.n;

/** How many channels an agent has joined. */
export const countMemberships = async (db: Queryable, orgId: string, agentId: string): Promise<number> =>
  (await db.one<{ n: number }>(
    sql`select count(*) as n from relay_member where org_id = ${orgId} and agent_id = ${agentId}`,
  ))!.n;

export const isMember = async (db: Queryable, { orgId, logId }: LogRef, agentId: string): Promise<boolean> =>
  (await db.one(
    sql`select 1 as found from relay_member where org_id = ${orgId} and log_id = ${logId} and agent_id = ${agentId}`,
  )) !== undefined;

/** Makes an agent a member of a channel that the caller holds; false when it is one. */
export async function insertMember(tx: Tx, log: LogRef, agentId: string, now: number): Promise<boolean> {
  const { orgId, logId } = log;
  const made = await tx.run(sql`
    insert into relay_member (org_id, log_id, agent_id, join_ms) values (${orgId}, ${logId}, ${agentId}, ${now}) on conflict do nothing`);
  if (made === 1) await countMembers(tx, log, 1);
  return made === 1;
}

/** Ends a membership; false when there was none. */
export async function deleteMember(tx: Tx, log: LogRef, agentId: string): Promise<boolean> {
  const { orgId, logId } = log;
  const gone = await tx.run(
    sql`delete from relay_member where org_id = ${orgId} and log_id = ${logId} and agent_id = ${agentId}`,
  );
  if (gone === 1) await countMembers(tx, log, -1);
  return gone === 1;
}

const countMembers = (tx: Tx, { orgId, logId }: LogRef, by: number): Promise<number> =>
  tx.run(sql`update relay_channel set members = members + ${by} where org_id = ${orgId} and log_id = ${logId}`);

/** Ends all memberships of an agent; in the order of the channels, as others lock them one at a time. At most 1,000, by their index. */
export async function leaveAll(tx: Tx, orgId: string, agentId: string): Promise<void> {
  const rows = await tx.all<{ log_id: string }>(
    sql`select log_id from relay_member where org_id = ${orgId} and agent_id = ${agentId} order by log_id`,
  );
  for (const { log_id } of rows) await deleteMember(tx, { orgId, logId: log_id }, agentId);
}

/** The members of a channel after one of them, by id. */
export const listMembers = (db: Queryable, { orgId, logId }: LogRef, after: string, limit: number) =>
  db.all<{ agent_id: string; join_ms: number }>(sql`
    select agent_id, join_ms from relay_member where org_id = ${orgId} and log_id = ${logId} and agent_id > ${after} order by agent_id limit ${limit}`);

const withLog = (agentId: string) => sql`
  select ${columns}, l.head, l.floor, case when m.agent_id is null then 0 else 1 end as joined
  from relay_channel c join relay_log l on l.org_id = c.org_id and l.log_id = c.log_id
    left join relay_member m on m.org_id = c.org_id and m.log_id = c.log_id and m.agent_id = ${agentId}`;

/** A channel as it is shown to an agent. */
export const shownChannel = (
  db: Queryable,
  { org_id, name }: ChannelRow,
  agentId: string,
): Promise<ListedRow | undefined> =>
  db.one<ListedRow>(sql`${withLog(agentId)} where c.org_id = ${org_id} and c.name = ${name}`);

/** The channels after a name, by name: a walk along the key. */
export const listChannels = (
  db: Queryable,
  orgId: string,
  agentId: string,
  after: string,
  limit: number,
): Promise<ListedRow[]> =>
  db.all<ListedRow>(
    sql`${withLog(agentId)} where c.org_id = ${orgId} and c.name > ${after} order by c.name limit ${limit}`,
  );

/** The channels that an agent has joined, at most 1,000, by name; from the memberships on, which `cross join` tells SQLite. */
export const joinedChannels = (db: Queryable, orgId: string, agentId: string): Promise<ListedRow[]> =>
  db.all<ListedRow>(sql`
    select ${columns}, l.head, l.floor, 1 as joined
    from relay_member m cross join relay_channel c cross join relay_log l
    where m.org_id = ${orgId} and m.agent_id = ${agentId} and c.org_id = m.org_id and c.log_id = m.log_id
      and l.org_id = c.org_id and l.log_id = c.log_id order by c.name`);

export const toChannel = (row: ListedRow): MessageInitShape<typeof ChannelSchema> => ({
  orgId: row.org_id,
  name: row.name,
  description: row.description,
  membersOnly: row.members_only !== 0,
  ownerAgentId: row.owner_agent_id,
  members: row.members,
  joined: row.joined !== 0,
  lastSequence: BigInt(row.head),
  oldestSequence: BigInt(row.floor + 1),
  revision: BigInt(row.revision),
  createTime: timestampFromMs(row.create_ms),
  updateTime: timestampFromMs(row.update_ms),
});
