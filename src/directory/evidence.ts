/** What two agents did together. A new kind of it (a thread of messages, a task of the marketplace) is a kind here and a member of the oneofs in the protos. */
import { JobState } from "../../gen/moltwire/queue/v1/job_pb.ts";
import { type Queryable, sql } from "../db/db.ts";
import { badField, Fault, notFound } from "../errors.ts";

export type EvidenceKind = "task" | "job";

/** What a request names as evidence. */
export type Evidence = { readonly kind: EvidenceKind; readonly id: string };

/** As they are stored. */
export const evidenceNumbers: Record<EvidenceKind, number> = { task: 1, job: 2 };

/** Who took part, and whether it has ended. Someone who took no part is empty. */
type Involved = { readonly asked: string; readonly worked: string; readonly ended: number };

/** Each by its primary key or unique index. A task that no agent was given has nobody who worked on it. */
const find: Record<EvidenceKind, (db: Queryable, orgId: string, id: string) => Promise<Involved | undefined>> = {
  task: (db, orgId, id) =>
    db.one<Involved>(sql`
      select caller_agent_id as asked, case when attempts > 0 then target_agent_id else '' end as worked, end_ms is not null as ended
      from task where org_id = ${orgId} and task_id = ${id}`),
  job: (db, orgId, id) =>
    db.one<Involved>(sql`
      select submitter_agent_id as asked, worker_agent_id as worked, state in (${JobState.COMPLETED}, ${JobState.FAILED}) as ended
      from queue_job where org_id = ${orgId} and job_id = ${id}`),
};

/**
 * Throws unless both took part in it and it has ended. Whether it exists is told only to who took part, and of others no more than that they did not.
 */
export async function checkEvidence(
  db: Queryable,
  orgId: string,
  { kind, id }: Evidence,
  agentId: string,
  partnerId: string,
): Promise<void> {
  const found = await find[kind](db, orgId, id);
  if (!found || agentId === "" || (found.asked !== agentId && found.worked !== agentId)) throw notFound(kind, id);
  const other = found.asked === agentId ? found.worked : found.asked;
  if (partnerId === agentId || partnerId !== other)
    throw badField("partner_agent_id", `is not the agent that took part in the ${kind} beside you`);
  if (Number(found.ended) === 0)
    throw new Fault("FAILED_PRECONDITION", `the ${kind} has not ended: say how it went when it has`, {
      field: `${kind}_id`,
    });
}
