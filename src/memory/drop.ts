/** What becomes of the memories of an agent that is deleted. */
import type { App } from "../app.ts";
import { sql, type Tx } from "../db/db.ts";
import { oldestChanges, removeChanges } from "./log-store.ts";
import type { MemoryRef } from "./message.ts";
import { memoryTopic } from "./store.ts";

/** Rows of each kind in one transaction. */
const batch = 500;

/**
 * Lets go of an agent's memories, its own and those it shared: nobody sees them from the commit on. The agent is deleted in the same transaction before, so that
 * no other one makes it a new memory. Gives how many; at most 101, by their index.
 */
export async function dropMemories(tx: Tx, orgId: string, agentId: string): Promise<number> {
  await tx.run(sql`
    insert into memory_drop (org_id, memory_id) select org_id, memory_id from memory where org_id = ${orgId} and agent_id = ${agentId}`);
  const rows = await tx.all<{ memory_id: string }>(
    sql`delete from memory where org_id = ${orgId} and agent_id = ${agentId} returning memory_id`,
  );
  for (const { memory_id } of rows) tx.ring(memoryTopic(memory_id));
  return rows.length;
}

/** Removes what is left of dropped memories, a bounded number of rows in a transaction; gives how many memories are gone. */
export async function removeDropped(app: App): Promise<number> {
  let gone = 0;
  while (!app.stopping.aborted) {
    const row = await app.db.query.one<{ org_id: string; memory_id: string }>(
      sql`select org_id, memory_id from memory_drop order by org_id, memory_id limit 1`,
    );
    if (!row) break;
    gone += await app.db.tx((tx) => removeSome(tx, { orgId: row.org_id, memoryId: row.memory_id }));
  }
  return gone;
}

/** One server at a time: another would see fewer rows go than there are, and take it for the end. */
async function removeSome(tx: Tx, memory: MemoryRef): Promise<number> {
  const { orgId, memoryId } = memory;
  const held = await tx.one(
    sql`select 1 as found from memory_drop where org_id = ${orgId} and memory_id = ${memoryId} ${tx.dialect.forUpdate}`,
  );
  if (!held) return 0;
  const [entries, changes] = [await removeEntries(tx, memory), await removeOldest(tx, memory)];
  if (entries === batch || changes === batch) return 0;
  return tx.run(sql`delete from memory_drop where org_id = ${orgId} and memory_id = ${memoryId}`);
}

/** Removes a bounded number of a memory's entries without a word; by the primary key. Gives how many. */
export const removeEntries = (tx: Tx, { orgId, memoryId }: MemoryRef): Promise<number> =>
  tx.run(sql`
    delete from memory_entry where org_id = ${orgId} and memory_id = ${memoryId} and (namespace, key) in (
      select namespace, key from memory_entry where org_id = ${orgId} and memory_id = ${memoryId} order by namespace, key limit ${batch})`);

/** By the primary key. */
async function removeOldest(tx: Tx, memory: MemoryRef): Promise<number> {
  const last = (await oldestChanges(tx, memory, batch)).at(-1);
  return last ? removeChanges(tx, memory, last.revision) : 0;
}
