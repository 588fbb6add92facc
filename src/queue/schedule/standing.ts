import { type Queryable, sql } from "../../db/db.ts";
import { Fault } from "../../errors.ts";
import type { ScheduleRow } from "./store.ts";

/**
 * Why the schedule's agent does nothing by itself now, if so: it or its organisation is disabled, or it had keys and each of them is revoked or has expired. An agent
 * that never had one acts through administrators, and they can still be asked.
 */
export async function standingFault(
  db: Queryable,
  { org_id, agent_id }: ScheduleRow,
  now: number,
): Promise<Fault | undefined> {
  const found = await standingOf(db, org_id, agent_id, now);
  if (!found) return new Fault("NOT_FOUND", "its agent is deleted");
  if (found.disabled) return new Fault("FAILED_PRECONDITION", "its agent is disabled");
  if (found.org_disabled) return new Fault("FAILED_PRECONDITION", "its organisation is disabled");
  if (!found.has_key || found.has_live_key) return undefined;
  return found.has_revoked_key
    ? new Fault("KEY_REVOKED", "the keys of its agent are revoked, or have expired")
    : new Fault("KEY_EXPIRED", "all keys of its agent have expired");
}

type Standing = {
  readonly disabled: number;
  readonly org_disabled: number;
  readonly has_key: number | null;
  readonly has_revoked_key: number | null;
  readonly has_live_key: number | null;
};

/** The agent, its organisation and the first of its keys, in one statement by their keys and the index on agents. */
export const standingOf = (db: Queryable, orgId: string, agentId: string, now: number): Promise<Standing | undefined> =>
  db.one<Standing>(sql`
    select a.disabled, o.disabled as org_disabled,
      (select 1 from api_key k where k.org_id = a.org_id and k.agent_id = a.agent_id limit 1) as has_key,
      (select 1 from api_key k where k.org_id = a.org_id and k.agent_id = a.agent_id and k.revoke_ms is not null limit 1) as has_revoked_key,
      (select 1 from api_key k where k.org_id = a.org_id and k.agent_id = a.agent_id and k.revoke_ms is null
        and (k.expire_ms is null or k.expire_ms > ${now}) limit 1) as has_live_key
    from agent a join organization o on o.org_id = a.org_id where a.org_id = ${orgId} and a.agent_id = ${agentId}`);
