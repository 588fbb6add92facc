/** What happens to messages by themselves: their time is over, they are old, or nobody acknowledged their last delivery. Any number of replicas may do this at once. */
import type { App } from "../app.ts";
import { join, type Queryable, sql, type Tx } from "../db/db.ts";
import { channelOfLog, logOf } from "./channel-store.ts";
import { type FlightRow, flightsOf, groupsWithOldDead, lockGroup, removeOldDead } from "./group-store.ts";
import { type LogAge, lockLog, logAges, oldestMessages, removeThrough } from "./log-store.ts";
import type { LogRef } from "./message.ts";
import { giveBack } from "./pull.ts";
import { newestUnread } from "./retention.ts";

const batch = 500;
const dayMs = 86_400_000;

/** Removes what has expired, and makes dead letters of what was not acknowledged after its last delivery. */
export async function sweepRelay(app: App): Promise<void> {
  await expireMessages(app);
  await endLastDeliveries(app);
}

type Due = { readonly org_id: string; readonly log_id: string };

const logsOf = <T extends Due>(rows: readonly T[]): Map<string, T[]> =>
  Map.groupBy(rows, ({ org_id, log_id }) => `${org_id} ${log_id}`);

/** Messages whose time is over, of all organisations; by the index on expiry. */
export const dueMessages = (db: Queryable, now: number, limit: number) =>
  db.all<Due & { readonly sequence: number }>(
    sql`select org_id, log_id, sequence from relay_message where expire_ms <= ${now} order by expire_ms limit ${limit}`,
  );

/** Deliveries that were the last of their message and were not acknowledged in time, of all organisations; by their index. */
export const dueDeliveries = (db: Queryable, now: number, limit: number) =>
  db.all<Due & { readonly group_name: string; readonly sequence: number }>(sql`
    select org_id, log_id, group_name, sequence from relay_flight where last = 1 and due_ms <= ${now} order by due_ms limit ${limit}`);

/** Log by log, each held for its own transaction. */
async function expireMessages(app: App): Promise<void> {
  while (!app.stopping.aborted) {
    const now = app.clock.now();
    const due = await dueMessages(app.db.query, now, batch);
    for (const rows of logsOf(due).values()) {
      const { org_id: orgId, log_id: logId } = rows[0]!;
      const sequences = rows.map(({ sequence }) => sequence);
      await app.db.tx((tx) => removeExpired(tx, app, { orgId, logId }, sequences, now));
    }
    if (due.length < batch) break;
  }
}

async function removeExpired(tx: Tx, app: App, log: LogRef, sequences: readonly number[], now: number): Promise<void> {
  const { orgId, logId } = log;
  await lockLog(tx, log);
  const where = sql`org_id = ${orgId} and log_id = ${logId} and sequence in (${join([...sequences])})`;
  const gone = await tx.all<{ size_bytes: number }>(
    sql`delete from relay_message where ${where} and expire_ms <= ${now} returning size_bytes`,
  );
  await tx.run(sql`delete from relay_body where ${where}`);
  const bytes = gone.reduce((sum, { size_bytes }) => sum + size_bytes, 0);
  await tx.run(sql`
    update relay_log set messages = messages - ${gone.length}, bytes = bytes - ${bytes} where org_id = ${orgId} and log_id = ${logId}`);
  tx.afterCommit(() => app.relayCounts.removed("expired", gone.length));
}

/** Group by group. */
async function endLastDeliveries(app: App): Promise<void> {
  while (!app.stopping.aborted) {
    const now = app.clock.now();
    const due = await dueDeliveries(app.db.query, now, batch);
    for (const rows of Map.groupBy(due, (row) => `${row.org_id} ${row.log_id} ${row.group_name}`).values()) {
      const { org_id: orgId, log_id: logId, group_name: group } = rows[0]!;
      const sequences = rows.map(({ sequence }) => sequence);
      await app.db.tx((tx) => endDeliveries(tx, app, { orgId, logId, group }, sequences, now));
    }
    if (due.length < batch) break;
  }
}

async function endDeliveries(
  tx: Tx,
  app: App,
  ref: LogRef & { readonly group: string },
  sequences: readonly number[],
  now: number,
): Promise<void> {
  const group = await lockGroup(tx, ref);
  const channel = await channelOfLog(tx, ref);
  if (!group || !channel) {
    // Its channel is gone; the rest of it is removed with that.
    await tx.run(sql`
      update relay_flight set last = 0 where org_id = ${ref.orgId} and log_id = ${ref.logId} and group_name = ${ref.group} and sequence in (${join([...sequences])})`);
    return;
  }
  const isOver = ({ due_ms, deliveries }: FlightRow) => due_ms <= now && deliveries >= group.max_deliveries;
  const rows = (await flightsOf(tx, ref, sequences)).filter(isOver);
  await giveBack(tx, app, { log: logOf(channel), ref, group }, rows, { dueMs: now, cause: "ack_timeout", now });
}

/**
 * Walks through the logs, some at each call, and removes messages that are older than they are kept, read or not, and dead letters of channels as old. Messages that
 * are too many go when others come. The walk begins again at its end.
 */
export function retentionWalk(app: App): () => Promise<number> {
  const first: LogRef = { orgId: "", logId: "" };
  let at = first;
  return async () => {
    const now = app.clock.now();
    const before = now - app.config.relayRetentionDays * dayMs;
    const logs = await logAges(app.db.query, at, batch);
    let removed = 0;
    for (const log of logs) removed += await removeOld(app, log, before, now);
    at = logs.length === batch ? logs.at(-1)! : first;
    await removeDeadFrom(app, before);
    return removed;
  };
}

async function removeOld(app: App, log: LogAge, before: number, now: number): Promise<number> {
  if (log.oldestMs === null || log.oldestMs >= before) return 0;
  let removed = 0;
  for (;;) {
    const some = await app.db.tx(async (tx) => {
      if (!(await lockLog(tx, log))) return 0;
      const oldest = await oldestMessages(tx, log, batch);
      const kept = oldest.findIndex(({ create_ms }) => create_ms >= before);
      const old = kept === -1 ? oldest : oldest.slice(0, kept);
      const last = old.at(-1);
      if (!last) return 0;
      const bytes = old.reduce((sum, { size_bytes }) => sum + size_bytes, 0);
      await removeThrough(tx, log, last.sequence, { messages: old.length, bytes, unread: newestUnread(old, now) });
      tx.afterCommit(() => app.relayCounts.removed("retention", old.length));
      return old.length;
    });
    removed += some;
    if (some < batch || app.stopping.aborted) return removed;
  }
}

/** Group by group, each held for its own transaction: its dead letters are counted in its row, and there are not more of them than it may have. */
async function removeDeadFrom(app: App, before: number): Promise<void> {
  while (!app.stopping.aborted) {
    const groups = await groupsWithOldDead(app.db.query, before, batch);
    if (groups.length === 0) return;
    for (const ref of groups)
      await app.db.tx(async (tx) => {
        await lockGroup(tx, ref);
        const gone = await removeOldDead(tx, ref, before);
        tx.afterCommit(() => app.relayCounts.removed("dead_letters", gone));
      });
  }
}
