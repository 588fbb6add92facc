/** Lists of messages, and what their recipients have seen of them. */
import { join, type Queryable, type Sql, sql, type Tx } from "../db/db.ts";
import { type LogRef, type MessageRow, messageColumns, type WholeRow } from "./message.ts";

/** Where a list goes, and from where. */
export type Walk = {
  readonly newest: boolean;
  /** Only what is not read; of inboxes. */
  readonly unreadOnly: boolean;
  /** Only what comes after this sequence. */
  readonly from: number;
  /** Only what comes after this in the order of the list; undefined: from its beginning. */
  readonly after: number | undefined;
  /** Nothing after this. */
  readonly until: number;
};

/**
 * Messages of a log along the primary key or, of what is not read, along its index; no more than come to about `bytes`. Filters look at what the walk meets.
 */
export const listMessages = (
  db: Queryable,
  { orgId, logId }: LogRef,
  { newest, unreadOnly, from, after, until }: Walk,
  { messages, bytes }: { readonly messages: number; readonly bytes: number },
): Promise<WholeRow[]> => {
  const lowest = newest ? from : Math.max(from, after ?? 0);
  const own = sql`org_id = ${orgId} and log_id = ${logId}`;
  const range = newest && after !== undefined ? sql`and sequence < ${after}` : sql`and sequence <= ${until}`;
  const order = newest ? sql`sequence desc` : sql`sequence`;
  const walked = (columns: Sql, and: Sql) =>
    sql`select ${columns} from relay_message where ${own} and sequence > ${lowest} ${range} ${and} order by ${order} limit ${messages}`;
  // Apart, so that every engine goes along the index of what is not read, however much is.
  const near = unreadOnly
    ? sql`select * from relay_message where ${own} and sequence in (${walked(sql`sequence`, sql`and unread = 1`)})`
    : walked(sql`*`, sql``);
  return db.all<WholeRow>(sql`
    select ${messageColumns}, b.body from (
        select * from (select near.*, sum(size_bytes) over (order by ${order}) as upto from (${near}) near) summed
        where upto - size_bytes < ${bytes}) m
      join relay_body b on b.org_id = ${orgId} and b.log_id = ${logId} and b.sequence = m.sequence
    order by m.${order}`);
};

/** A message with where it lies. */
export type PlacedRow = MessageRow & { readonly org_id: string; readonly log_id: string };

/** A message with its body; by the index on ids. */
export const findMessage = (
  db: Queryable,
  orgId: string,
  messageId: string,
): Promise<(PlacedRow & { readonly body: Uint8Array }) | undefined> =>
  db.one(sql`
    select m.org_id, m.log_id, ${messageColumns}, b.body
    from relay_message m join relay_body b on b.org_id = m.org_id and b.log_id = m.log_id and b.sequence = m.sequence
    where m.org_id = ${orgId} and m.message_id = ${messageId}`);

/** A message that an agent has sent into the inbox of another organisation's; by the index on those. */
export const findSentAbroad = (
  db: Queryable,
  orgId: string,
  agentId: string,
  messageId: string,
): Promise<(PlacedRow & { readonly body: Uint8Array }) | undefined> =>
  db.one(sql`
    select m.org_id, m.log_id, ${messageColumns}, b.body
    from relay_message m join relay_body b on b.org_id = m.org_id and b.log_id = m.log_id and b.sequence = m.sequence
    where m.sender_org_id = ${orgId} and m.sender_org_id <> '' and m.sender_agent_id = ${agentId} and m.message_id = ${messageId}`);

/** What an agent has sent, the newest first, with the name of the channel, or null: inside its organisation by the index on senders, elsewhere by that on those. */
export const listSent = (db: Queryable, orgId: string, agentId: string, before: string | undefined, limit: number) => {
  const older = before === undefined ? sql`` : sql`and m.message_id < ${before}`;
  const newest = sql`${older} order by m.message_id desc limit ${limit}`;
  return db.all<PlacedRow & { readonly channel: string | null }>(sql`
    select either.*, c.name as channel from (
        select * from (
          select m.org_id, m.log_id, ${messageColumns} from relay_message m
          where m.org_id = ${orgId} and m.sender_agent_id = ${agentId} and m.sender_agent_id <> '' ${newest}) near
        union all select * from (
          select m.org_id, m.log_id, ${messageColumns} from relay_message m
          where m.sender_org_id = ${orgId} and m.sender_org_id <> '' and m.sender_agent_id = ${agentId} ${newest}) near) either
      left join relay_channel c on c.org_id = either.org_id and c.log_id = either.log_id
    order by either.message_id desc limit ${limit}`);
};

/** The first message of an inbox that is not read; undefined: there is none. */
export const firstUnread = async (db: Queryable, { orgId, logId }: LogRef): Promise<number | undefined> =>
  (
    await db.one<{ sequence: number }>(sql`
      select sequence from relay_message where org_id = ${orgId} and log_id = ${logId} and unread = 1 order by sequence limit 1`)
  )?.sequence;

/** Notes that messages were handed to their recipient; those that it had before stay as they are. */
export const markDelivered = (
  tx: Tx,
  { orgId, logId }: LogRef,
  sequences: readonly number[],
  now: number,
): Promise<number> =>
  tx.run(sql`
    update relay_message set delivered_ms = ${now}
    where org_id = ${orgId} and log_id = ${logId} and sequence in (${join([...sequences])}) and delivered_ms is null`);

const read = (now: number): Sql => sql`unread = 0, read_ms = ${now}, delivered_ms = coalesce(delivered_ms, ${now})`;

/** Marks messages of an inbox as read, by their ids; gives how many were not. */
export const markRead = (
  tx: Tx,
  { orgId, logId }: LogRef,
  messageIds: readonly string[],
  now: number,
): Promise<number> =>
  tx.run(sql`
    update relay_message set ${read(now)}
    where org_id = ${orgId} and log_id = ${logId} and unread = 1 and sequence in (
      select sequence from relay_message where org_id = ${orgId} and message_id in (${join([...messageIds])}) and log_id || '' = ${logId})`);

/** The newest of some messages of an inbox, by their ids; 0: none of them is in it. */
export const newestOf = async (
  db: Queryable,
  { orgId, logId }: LogRef,
  messageIds: readonly string[],
): Promise<number> =>
  (
    await db.one<{ newest: number | null }>(sql`
    select max(sequence) as newest from relay_message
    where org_id = ${orgId} and message_id in (${join([...messageIds])}) and log_id || '' = ${logId}`)
  )?.newest ?? 0;

/** Marks the messages of an inbox up to a sequence as read, the oldest first, a bounded number; gives how many were not. */
export const markReadThrough = (
  tx: Tx,
  { orgId, logId }: LogRef,
  through: bigint,
  limit: number,
  now: number,
): Promise<number> =>
  tx.run(sql`
    update relay_message set ${read(now)} where org_id = ${orgId} and log_id = ${logId} and sequence in (
      select sequence from relay_message where org_id = ${orgId} and log_id = ${logId} and unread = 1 and sequence <= ${through} order by sequence limit ${limit})`);
