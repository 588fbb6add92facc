import { type Queryable, sql } from "../db/db.ts";

/** What an agent has and did, as far as it is stored. */
export type StatsRow = {
  readonly name: string;
  readonly create_ms: number;
  readonly last_seen_ms: number;
  readonly reputation_milli: number;
  readonly ratings: number;
  readonly requests: number;
  readonly jobs: number;
  readonly memory_keys: number;
  readonly shared_keys: number;
  readonly tasks_submitted: number;
  readonly tasks_received: number;
  readonly given: number;
  readonly messages_sent: number;
  readonly messages_received: number;
  readonly webhooks: number;
  readonly schedules: number;
  readonly market_posted: number;
  readonly market_worked: number;
};

const most = 10_000;

/**
 * All in one statement: counts that are kept, by their keys, and counts along an agent's own index that end at 10,000. Its namespaces are found by their index
 * first, or SQLite would walk all memories of the organisation. The sequence of the last message of its inbox is how many came.
 */
export const readStats = (db: Queryable, orgId: string, agentId: string): Promise<StatsRow | undefined> =>
  db.one<StatsRow>(sql`
    select a.name, a.create_ms, p.last_seen_ms, p.reputation_milli, p.ratings,
      coalesce(c.requests, 0) as requests, coalesce(c.jobs, 0) as jobs, coalesce(c.messages, 0) as messages_sent,
      coalesce(l.head, 0) as messages_received, coalesce(m.entries, 0) as memory_keys,
      (select cast(coalesce(sum(s.entries), 0) as bigint)
        from (select org_id, memory_id from memory where org_id = ${orgId} and agent_id = ${agentId} and namespace is not null limit ${most}) own
        cross join memory s where s.org_id = own.org_id and s.memory_id = own.memory_id) as shared_keys,
      (select count(*) from (select 1 as one from task where org_id = ${orgId} and caller_agent_id = ${agentId} limit ${most}) counted) as tasks_submitted,
      (select count(*) from (select 1 as one from task where org_id = ${orgId} and target_agent_id = ${agentId} limit ${most}) counted) as tasks_received,
      (select count(*) from (select 1 as one from webhook where org_id = ${orgId} and agent_id = ${agentId} limit ${most}) counted) as webhooks,
      (select count(*) from (select 1 as one from queue_schedule where org_id = ${orgId} and agent_id = ${agentId} limit ${most}) counted) as schedules,
      (select count(*) from (select 1 as one from marketplace_task where org_id = ${orgId} and creator_agent_id = ${agentId} limit ${most}) counted) as market_posted,
      (select count(*) from (select 1 as one from marketplace_task
        where worker_org_id = ${orgId} and worker_agent_id = ${agentId} and worker_agent_id <> '' limit ${most}) counted) as market_worked,
      (select count(*) from (select 1 as one from collaboration where org_id = ${orgId} and agent_id = ${agentId} limit ${most}) counted) as given
    from agent a join directory_profile p on p.org_id = a.org_id and p.agent_id = a.agent_id
      left join agent_activity c on c.org_id = a.org_id and c.agent_id = a.agent_id
      left join relay_log l on l.org_id = a.org_id and l.log_id = a.agent_id
      left join memory m on m.org_id = a.org_id and m.memory_id = a.agent_id
    where a.org_id = ${orgId} and a.agent_id = ${agentId}`);
