import { join, sql, type Tx } from "../../db/db.ts";
import { inChunks } from "../chunk.ts";

/**
 * Deletes the schedules of an agent that is deleted, by their index; gives how many. The agent is deleted in the same transaction before, so that no other one makes
 * it a new schedule. The schedules before what they carry, as everything locks a schedule first.
 */
export async function dropSchedules(tx: Tx, orgId: string, agentId: string): Promise<number> {
  const rows = await tx.all<{ schedule_id: string }>(
    sql`delete from queue_schedule where org_id = ${orgId} and agent_id = ${agentId} returning schedule_id`,
  );
  for (const some of inChunks(rows)) {
    const ids = join(some.map(({ schedule_id }) => schedule_id));
    await tx.run(sql`delete from queue_schedule_data where org_id = ${orgId} and schedule_id in (${ids})`);
  }
  return rows.length;
}
