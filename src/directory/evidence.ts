/** What two agents did together. A new kind of it is a kind here and a member of the oneofs in the protos. */
import { JobState } from "../../gen/moltwire/queue/v1/job_pb.ts";
import { type Queryable, sql } from "../db/db.ts";
import { badField, Fault, notFound } from "../errors.ts";

export type EvidenceKind = "task" | "job" | "thread" | "marketplaceTask";

/** What a request names as evidence. */
export type Evidence = { readonly kind: EvidenceKind; readonly id: string };

/** As they are stored. */
export const evidenceNumbers: Record<EvidenceKind, number> = { task: 1, job: 2, thread: 3, marketplaceTask: 4 };

/** As people read them. */
export const evidenceNames: Record<EvidenceKind, string> = {
  task: "task",
  job: "job",
  thread: "thread",
  marketplaceTask: "marketplace task",
};

/** One who says it, and of whom. */
type Pair = { readonly agentId: string; readonly partnerId: string };

/** Who took part, with their organisations, and whether it has ended. Someone who took no part is empty. */
type Involved = {
  readonly asked: string;
  readonly asked_org: string;
  readonly worked: string;
  readonly worked_org: string;
  readonly ended: number;
};

type Find = (db: Queryable, orgId: string, id: string, pair: Pair) => Promise<Involved | undefined>;

/** Each by its primary key or unique index. A task that no agent was given has nobody who worked on it. */
const find: Record<EvidenceKind, Find> = {
  task: (db, orgId, id) =>
    db.one<Involved>(sql`
      select caller_agent_id as asked, org_id as asked_org, case when attempts > 0 then target_agent_id else '' end as worked, org_id as worked_org,
        end_ms is not null as ended
      from task where org_id = ${orgId} and task_id = ${id}`),
  job: (db, orgId, id) =>
    db.one<Involved>(sql`
      select submitter_agent_id as asked, org_id as asked_org, worker_agent_id as worked, org_id as worked_org,
        state in (${JobState.COMPLETED}, ${JobState.FAILED}) as ended
      from queue_job where org_id = ${orgId} and job_id = ${id}`),
  thread: findThread,
  // Of any organisation. One that ended without a result has nobody who worked on it.
  marketplaceTask: (db, _orgId, id) =>
    db.one<Involved>(sql`
      select creator_agent_id as asked, org_id as asked_org, case when deliveries > 0 then worker_agent_id else '' end as worked, worker_org_id as worked_org,
        state in (5, 6) as ended
      from marketplace_task where task_id = ${id}`),
};

/** How many messages of one agent in channels are looked at. */
const mostInChannels = 10_000;

/**
 * The agent's part in a thread, and the partner's if there is one: each has written to the other, or both to one channel. By the index on the threads of senders. It has
 * no end that one could wait for.
 */
async function findThread(
  db: Queryable,
  orgId: string,
  id: string,
  { agentId, partnerId }: Pair,
): Promise<Involved | undefined> {
  const by = (sender: string) =>
    sql`m.org_id = ${orgId} and m.sender_agent_id = ${sender} and m.thread_id = ${id} and m.thread_id <> ''`;
  const row = await db.one<{ wrote: number; to_partner: number; to_agent: number; in_channel: number }>(sql`
    select exists (select 1 from relay_message m where ${by(agentId)}) as wrote,
      exists (select 1 from relay_message m where ${by(agentId)} and m.log_id = ${partnerId}) as to_partner,
      exists (select 1 from relay_message m where ${by(partnerId)} and m.log_id = ${agentId}) as to_agent,
      exists (
        select 1 from (select m.log_id from relay_message m where ${by(agentId)} and m.log_id >= 'chn_' and m.log_id < 'chn~' limit ${mostInChannels}) own
        where exists (select 1 from relay_message m where ${by(partnerId)} and m.log_id = own.log_id)) as in_channel`);
  if (!row || Number(row.wrote) === 0) return undefined;
  const isShared = (Number(row.to_partner) && Number(row.to_agent)) || Number(row.in_channel);
  return { asked: agentId, asked_org: orgId, worked: isShared ? partnerId : "", worked_org: orgId, ended: 1 };
}

/**
 * Throws unless both took part in it and it has ended. Whether it exists is told only to who took part, and of others no more than that they did not. Gives the partner's organisation.
 */
export async function checkEvidence(
  db: Queryable,
  orgId: string,
  { kind, id }: Evidence,
  { agentId, partnerId }: Pair,
): Promise<string> {
  const found = await find[kind](db, orgId, id, { agentId, partnerId });
  const isAsked = found?.asked === agentId && found.asked_org === orgId;
  const isWorked = found?.worked === agentId && found.worked_org === orgId;
  if (!found || agentId === "" || !(isAsked || isWorked)) throw notFound(evidenceNames[kind], id);
  const [other, otherOrgId] = isAsked ? [found.worked, found.worked_org] : [found.asked, found.asked_org];
  if (partnerId === agentId || partnerId !== other)
    throw badField("partner_agent_id", `is not the agent that took part in the ${evidenceNames[kind]} beside you`);
  if (Number(found.ended) === 0)
    throw new Fault("FAILED_PRECONDITION", `the ${evidenceNames[kind]} has not ended: say how it went when it has`, {
      field: kind === "marketplaceTask" ? "marketplace_task_id" : `${kind}_id`,
    });
  return otherOrgId;
}
