/** What becomes of logs that are gone: an agent's inbox with its agent, a channel's messages with the channel; and of consumer groups that are. */
import type { App } from "../app.ts";
import { type Sql, sql, type Tx } from "../db/db.ts";
import { leaveAll } from "./channel-store.ts";
import { anyDroppedGroup, deleteGroup, type GroupRef, lockDroppedGroup } from "./group-store.ts";
import { type LogRef, logTopic } from "./message.ts";

/** Rows of each kind in one transaction. */
const batch = 500;

/** Lets go of a log: nobody sees it from the commit on. Gives how many messages it held. */
export async function dropLog(tx: Tx, { orgId, logId }: LogRef): Promise<number> {
  const [row] = await tx.all<{ messages: number }>(
    sql`delete from relay_log where org_id = ${orgId} and log_id = ${logId} returning messages`,
  );
  tx.ring(logTopic(logId));
  if (!row) return 0;
  await tx.run(sql`insert into relay_drop (org_id, log_id) values (${orgId}, ${logId})`);
  return row.messages;
}

/**
 * Lets go of an agent's inbox and memberships. The agent is deleted in the same transaction before, so that no other one makes it a new inbox or member.
 * Gives how many messages the inbox held. What it has sent, and its channels, stay.
 */
export async function dropAgent(tx: Tx, orgId: string, agentId: string): Promise<number> {
  await leaveAll(tx, orgId, agentId);
  await tx.run(sql`delete from relay_presence where org_id = ${orgId} and agent_id = ${agentId}`);
  return dropLog(tx, { orgId, logId: agentId });
}

/** What a log has beside its row, and the rest of each table's key. */
const tables: readonly (readonly [Sql, Sql])[] = [
  [sql`relay_message`, sql`sequence`],
  [sql`relay_body`, sql`sequence`],
  [sql`relay_member`, sql`agent_id`],
  [sql`relay_group`, sql`name`],
  [sql`relay_flight`, sql`group_name, sequence`],
  [sql`relay_dead`, sql`group_name, sequence`],
];

/** Removes what is left of logs that are gone, a bounded number of rows in a transaction; gives how many logs that were. */
export async function removeDroppedLogs(app: App): Promise<number> {
  let gone = 0;
  while (!app.stopping.aborted) {
    const row = await app.db.query.one<{ org_id: string; log_id: string }>(
      sql`select org_id, log_id from relay_drop order by org_id, log_id limit 1`,
    );
    if (!row) break;
    gone += await app.db.tx((tx) => removeSome(tx, { orgId: row.org_id, logId: row.log_id }));
  }
  return gone;
}

/** One server at a time: another would see fewer rows go than there are, and take it for the end. */
async function removeSome(tx: Tx, { orgId, logId }: LogRef): Promise<number> {
  const held = await tx.one(
    sql`select 1 as found from relay_drop where org_id = ${orgId} and log_id = ${logId} ${tx.dialect.forUpdate}`,
  );
  if (!held) return 0;
  for (const [table, key] of tables) if ((await removeRows(tx, table, key, { orgId, logId })) === batch) return 0;
  return tx.run(sql`delete from relay_drop where org_id = ${orgId} and log_id = ${logId}`);
}

/** Removes what a group that is being deleted has left, and then the group, a bounded number of rows in a transaction. */
export async function removeDroppedGroup(app: App, ref: GroupRef): Promise<void> {
  while (!app.stopping.aborted && !(await app.db.tx((tx) => removeSomeOfGroup(tx, ref))));
}

/** The same of all groups whose deletion nobody ended. */
export async function removeDroppedGroups(app: App): Promise<void> {
  for (;;) {
    const ref = app.stopping.aborted ? undefined : await anyDroppedGroup(app.db.query);
    if (!ref) return;
    await removeDroppedGroup(app, ref);
  }
}

/** Whether that was all. One server at a time, as above. */
async function removeSomeOfGroup(tx: Tx, ref: GroupRef): Promise<boolean> {
  if (!(await lockDroppedGroup(tx, ref))) return true;
  const rest = sql`and group_name = ${ref.group}`;
  for (const table of [sql`relay_flight`, sql`relay_dead`])
    if ((await removeRows(tx, table, sql`group_name, sequence`, ref, rest)) === batch) return false;
  await deleteGroup(tx, ref);
  return true;
}

/** By the primary key. */
export const removeRows = (tx: Tx, table: Sql, key: Sql, { orgId, logId }: LogRef, and: Sql = sql``): Promise<number> =>
  tx.run(sql`
    delete from ${table} where org_id = ${orgId} and log_id = ${logId} ${and} and (${key}) in (
      select ${key} from ${table} where org_id = ${orgId} and log_id = ${logId} ${and} order by ${key} limit ${batch})`);
