import { sql, type Tx } from "../../db/db.ts";

/**
 * Deletes the schedules of an agent that is deleted, by their index; gives how many. The agent is deleted in the same transaction before, so that no other one makes
 * it a new schedule. What its schedules carry goes first, while they tell whose it is.
 */
export async function dropSchedules(tx: Tx, orgId: string, agentId: string): Promise<number> {
  await tx.run(sql`
    delete from queue_schedule_data where org_id = ${orgId} and schedule_id in (
      select schedule_id from queue_schedule where org_id = ${orgId} and agent_id = ${agentId})`);
  return tx.run(sql`delete from queue_schedule where org_id = ${orgId} and agent_id = ${agentId}`);
}
