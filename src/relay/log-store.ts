/** The logs: their heads, their messages, and what becomes of the old ends. */
import { type Queryable, sql, type Tx } from "../db/db.ts";
import { type LogRef, type MessageRow, messageColumns, type WholeRow } from "./message.ts";

/** A log's row. */
export type Head = {
  readonly head: number;
  readonly floor: number;
  readonly messages: number;
  readonly bytes: number;
  /** The newest message that was not read and is gone, until it is marked as read; 0: there is none. */
  readonly unread_gone: number;
};

/** A log in which nothing was ever written. */
export const emptyHead: Head = { head: 0, floor: 0, messages: 0, bytes: 0, unread_gone: 0 };

const columns = sql`head, floor, messages, bytes, unread_gone`;

export const findHead = (db: Queryable, { orgId, logId }: LogRef): Promise<Head | undefined> =>
  db.one<Head>(sql`select ${columns} from relay_log where org_id = ${orgId} and log_id = ${logId}`);

/** A log's row with its first message that is not read; null: there is none. */
export type Begin = Head & { readonly first_unread: number | null };

export const emptyBegin: Begin = { ...emptyHead, first_unread: null };

/** In one statement, by the primary key and the index of what is not read. */
export const findBegin = (db: Queryable, { orgId, logId }: LogRef): Promise<Begin | undefined> =>
  db.one<Begin>(sql`
    select ${columns}, (
        select m.sequence from relay_message m
        where m.org_id = ${orgId} and m.log_id = ${logId} and m.unread = 1 order by m.sequence limit 1) as first_unread
    from relay_log where org_id = ${orgId} and log_id = ${logId}`);

/**
 * Takes the next sequence of a log, and counts the message. Holds the log until the transaction ends, so that sequences become readable in their order. Undefined:
 * there is no such log.
 */
export const takeSequence = (tx: Tx, { orgId, logId }: LogRef, bytes: number): Promise<Head | undefined> =>
  tx.one<Head>(sql`
    update relay_log set head = head + 1, messages = messages + 1, bytes = bytes + ${bytes} where org_id = ${orgId} and log_id = ${logId}
    returning ${columns}`);

/** As {@link takeSequence}, and makes the log where there is none: `head` is 1 then. */
export const takeSequenceOrMake = async (tx: Tx, { orgId, logId }: LogRef, bytes: number): Promise<Head> =>
  (await tx.one<Head>(sql`
    insert into relay_log (org_id, log_id, head, floor, messages, bytes) values (${orgId}, ${logId}, 1, 0, 1, ${bytes})
    on conflict (org_id, log_id) do update set head = relay_log.head + 1, messages = relay_log.messages + 1, bytes = relay_log.bytes + excluded.bytes
    returning ${columns}`))!;

/** Makes an empty log. */
export const insertLog = (tx: Tx, { orgId, logId }: LogRef): Promise<number> =>
  tx.run(
    sql`insert into relay_log (org_id, log_id, head, floor, messages, bytes) values (${orgId}, ${logId}, 0, 0, 0, 0)`,
  );

/** Holds the log until the transaction ends. */
export const lockLog = (tx: Tx, { orgId, logId }: LogRef): Promise<Head | undefined> =>
  tx.one<Head>(sql`
    select ${columns} from relay_log where org_id = ${orgId} and log_id = ${logId} ${tx.dialect.forUpdate}`);

export async function insertMessage(
  tx: Tx,
  { orgId, logId }: LogRef,
  row: Omit<WholeRow, "delivered_ms" | "read_ms">,
  unread: boolean,
): Promise<void> {
  await tx.run(sql`
    insert into relay_message (org_id, log_id, sequence, message_id, sender_agent_id, sender_org_id, label, thread_id, size_bytes, create_ms, expire_ms, delivered_ms, read_ms, unread)
    values (${orgId}, ${logId}, ${row.sequence}, ${row.message_id}, ${row.sender_agent_id}, ${row.sender_org_id}, ${row.label}, ${row.thread_id}, ${row.size_bytes}, ${row.create_ms},
      ${row.expire_ms}, ${null}, ${null}, ${unread ? 1 : 0})`);
  await tx.run(sql`
    insert into relay_body (org_id, log_id, sequence, body) values (${orgId}, ${logId}, ${row.sequence}, ${row.body})`);
}

/** What follows a sequence in a log, and how the log stands. */
export type Stretch = { readonly head: number; readonly floor: number; readonly rows: readonly WholeRow[] };

/**
 * The messages after a sequence with the state of the log, in one statement: what was removed between two would be missed. By the primary keys, and no more bodies
 * than come to about `bytes`; the rows in a query of their own, since PostgreSQL would sort all that follow before it takes the first. Undefined: there is no such log.
 */
export async function readStretch(
  db: Queryable,
  { orgId, logId }: LogRef,
  after: number,
  { messages, bytes }: { readonly messages: number; readonly bytes: number },
): Promise<Stretch | undefined> {
  type Row = { head: number; floor: number } & { [Column in keyof WholeRow]: WholeRow[Column] | null };
  const rows = await db.all<Row>(sql`
    select l.head, l.floor, ${messageColumns}, b.body
    from (select ${orgId} as org_id, ${logId} as log_id) k join relay_log l on l.org_id = k.org_id and l.log_id = k.log_id left join (
        select * from (
          select near.*, sum(size_bytes) over (order by sequence) as upto from (
            select * from relay_message where org_id = ${orgId} and log_id = ${logId} and sequence > ${after} order by sequence limit ${messages}) near) summed
        where upto - size_bytes < ${bytes}) m on true
      left join relay_body b on b.org_id = l.org_id and b.log_id = l.log_id and b.sequence = m.sequence
    order by m.sequence`);
  const [first] = rows;
  return (
    first && {
      head: first.head,
      floor: first.floor,
      rows: rows.filter((row): row is Row & WholeRow => row.sequence !== null),
    }
  );
}

/** The oldest messages of a log, by the primary key. */
export const oldestMessages = (db: Queryable, { orgId, logId }: LogRef, limit: number) =>
  db.all<Pick<MessageRow, "sequence" | "size_bytes" | "create_ms" | "expire_ms"> & { unread: number }>(sql`
    select sequence, size_bytes, create_ms, expire_ms, unread from relay_message where org_id = ${orgId} and log_id = ${logId} order by sequence limit ${limit}`);

/**
 * Removes the messages up to and with a sequence, and says so in the log's row, which the caller holds. `unread` is the newest of them that was not read; 0: all
 * were.
 */
export async function removeThrough(
  tx: Tx,
  { orgId, logId }: LogRef,
  through: number,
  gone: { readonly messages: number; readonly bytes: number; readonly unread: number },
): Promise<void> {
  await tx.run(sql`
    update relay_log set floor = ${through}, messages = messages - ${gone.messages}, bytes = bytes - ${gone.bytes}
      ${gone.unread > 0 ? sql`, unread_gone = ${gone.unread}` : sql``} where org_id = ${orgId} and log_id = ${logId}`);
  await tx.run(sql`delete from relay_message where org_id = ${orgId} and log_id = ${logId} and sequence <= ${through}`);
  await tx.run(sql`delete from relay_body where org_id = ${orgId} and log_id = ${logId} and sequence <= ${through}`);
}

/** Notes that what was gone unread is known of. The caller holds the log. */
export const forgetUnreadGone = (tx: Tx, { orgId, logId }: LogRef): Promise<number> =>
  tx.run(sql`update relay_log set unread_gone = 0 where org_id = ${orgId} and log_id = ${logId}`);

/** A log with the time of its oldest message, null if it has none. */
export type LogAge = LogRef & { readonly oldestMs: number | null };

/** The logs after one of them in the order of their keys, of all organisations: for walking through them in bounded steps. */
export async function logAges(db: Queryable, after: LogRef, limit: number): Promise<LogAge[]> {
  type Row = { org_id: string; log_id: string; oldest_ms: number | null };
  const rows = await db.all<Row>(sql`
    select l.org_id, l.log_id, (
        select m.create_ms from relay_message m where m.org_id = l.org_id and m.log_id = l.log_id order by m.sequence limit 1) as oldest_ms
    from relay_log l where (l.org_id, l.log_id) > (${after.orgId}, ${after.logId}) order by l.org_id, l.log_id limit ${limit}`);
  return rows.map(({ org_id, log_id, oldest_ms }) => ({ orgId: org_id, logId: log_id, oldestMs: oldest_ms }));
}
