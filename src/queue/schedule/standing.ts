import { findAgent } from "../../bus/agent-store.ts";
import { type Queryable, sql } from "../../db/db.ts";
import { Fault } from "../../errors.ts";
import type { ScheduleRow } from "./store.ts";

/**
 * Why the schedule's agent does nothing by itself now, if so: it or its organisation is disabled, or it had keys and all of them are revoked. An agent that never
 * had one acts through administrators, and they can still be asked.
 */
export async function standingFault(db: Queryable, { org_id, agent_id }: ScheduleRow): Promise<Fault | undefined> {
  const agent = await findAgent(db, org_id, agent_id);
  if (!agent) return new Fault("NOT_FOUND", "its agent is deleted");
  if (agent.disabled) return new Fault("FAILED_PRECONDITION", "its agent is disabled");
  const org = await db.one<{ disabled: number }>(sql`select disabled from organization where org_id = ${org_id}`);
  if (org?.disabled) return new Fault("FAILED_PRECONDITION", "its organisation is disabled");
  const keys = await keysOf(db, org_id, agent_id);
  if (keys.some && !keys.live) return new Fault("KEY_REVOKED", "all keys of its agent are revoked");
  return undefined;
}

/** Whether an agent has, or had, a key, and has one that is not revoked: the first of each by the index on agents. */
export async function keysOf(db: Queryable, orgId: string, agentId: string): Promise<{ some: boolean; live: boolean }> {
  const first = (live: boolean) =>
    db.one(sql`
      select 1 as found from api_key
      where org_id = ${orgId} and agent_id = ${agentId} ${live ? sql`and revoke_ms is null` : sql``} order by key_id desc limit 1`);
  if (await first(true)) return { some: true, live: true };
  return { some: (await first(false)) !== undefined, live: false };
}
