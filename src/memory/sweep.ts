/** What is done in the background, by any number of replicas at once: expiry, and the old ends of the logs. */
import type { App } from "../app.ts";
import { sql, type Tx } from "../db/db.ts";
import { limitsOf } from "./change.ts";
import { removeEntries } from "./drop.ts";
import { logAges, oldestChanges, removeChanges, setCompacted } from "./log-store.ts";
import { type MemoryRef, toHeld } from "./message.ts";
import { placeId, planChanges } from "./plan.ts";
import { carryOut, dueEntries, findHead, lockMemory } from "./store.ts";

const batch = 500;
const hourMs = 3_600_000;

/**
 * Announces what has expired, as changes of their memories; gives how many. Each is announced once: whoever does it holds the memory and finds the entry still
 * there.
 */
export async function expireEntries(app: App): Promise<number> {
  let expired = 0;
  while (!app.stopping.aborted) {
    const now = app.clock.now();
    const due = await dueMemories(app, now);
    for (const memory of due) expired += await app.db.tx((tx) => expireIn(tx, app, memory, now));
    if (due.length === 0) break;
  }
  return expired;
}

/** Whose are the entries that expired first; by the index on expiry. */
async function dueMemories({ db }: App, now: number): Promise<readonly MemoryRef[]> {
  const rows = await db.query.all<{ org_id: string; memory_id: string }>(
    sql`select org_id, memory_id from memory_entry where expire_ms <= ${now} order by expire_ms limit ${batch}`,
  );
  const memories = rows.map((row): MemoryRef => ({ orgId: row.org_id, memoryId: row.memory_id }));
  return [...new Map(memories.map((memory) => [JSON.stringify(memory), memory])).values()];
}

async function expireIn(tx: Tx, app: App, memory: MemoryRef, now: number): Promise<number> {
  await lockMemory(tx, memory);
  const head = await findHead(tx, memory);
  if (!head) {
    await removeEntries(tx, memory);
    return 0;
  }
  const due = await dueEntries(tx, memory, now, batch);
  const entries = new Map(due.map((row) => [placeId(row), toHeld(row)]));
  const wishes = due.map(({ namespace, key }) => ({ kind: "expire", place: { namespace, key } }) as const);
  const plan = planChanges({ head, entries }, wishes, now, limitsOf(app.config));
  if (plan.changes.length > 0 && !(await carryOut(tx, app.vault, memory, head, plan, now)))
    throw new Error(`${memory.memoryId}: its head moved although it was held`);
  return plan.changes.length;
}

/**
 * Walks through the logs, some at each call, and removes changes that are older than they are kept. Changes that are too many are removed by the writes that
 * make them so. The walk begins again at its end.
 */
export function logWalk(app: App): () => Promise<number> {
  const first: MemoryRef = { orgId: "", memoryId: "" };
  let at = first;
  return async () => {
    const before = app.clock.now() - app.config.memoryLogHours * hourMs;
    const logs = await logAges(app.db.query, at, batch);
    let removed = 0;
    for (const log of logs)
      if (log.oldestMs !== null && log.oldestMs < before)
        removed += await app.db.tx((tx) => compactBefore(tx, log, before));
    at = logs.length === batch ? logs.at(-1)! : first;
    return removed;
  };
}

/** Removes a bounded number of changes from the old end of a log. */
async function compactBefore(tx: Tx, memory: MemoryRef, before: number): Promise<number> {
  const oldest = await oldestChanges(tx, memory, batch);
  const kept = oldest.findIndex(({ time_ms }) => time_ms >= before);
  const last = oldest.at(kept === -1 ? -1 : kept - 1);
  if (!last || kept === 0 || (await setCompacted(tx, memory, last.revision)) === 0) return 0;
  return removeChanges(tx, memory, last.revision);
}
