import { TaskState } from "../../gen/moltwire/bus/v1/task_pb.ts";
import { join, type Queryable, type Sql, sql } from "../db/db.ts";
import { type ProfileRow, profileColumns } from "./profile-store.ts";
import { chosenFew, isVisible, type Scope } from "./search-store.ts";

/** How many agents of each need are looked at. */
const perNeed = 200;
/** Of each agent these are looked at, by its index. */
const latestTasks = 50;

/** What an agent had to do lately: how many tasks are open, and how long the completed ones took in the mean. */
export type WorkRow = { readonly seq: number; readonly open: number; readonly latency_ms: number | null };

/** Of each need the agents of the best reputation, by the index that has them in that order. */
export async function agentsInNeed(
  db: Queryable,
  scope: Scope,
  needs: readonly string[],
  minMilli: number,
): Promise<ProfileRow[]> {
  const place = scope.orgId === undefined ? sql`c.visibility = 3 and c.advertised = 1` : sql`c.org_id = ${scope.orgId}`;
  const walks = needs.map(
    (need) => sql`select * from (
      select c.profile_seq as seq from directory_capability c
      where ${place} and c.capability = ${need} and c.reputation_milli >= ${minMilli}
      order by c.reputation_milli desc, c.profile_seq desc limit ${perNeed}) one`,
  );
  const found = await db.all<{ seq: number }>(join(walks, " union all "));
  if (found.length === 0) return [];
  return db.all<ProfileRow>(sql`
    select ${profileColumns} from ${chosenFew(db.dialect, [...new Set(found.map(({ seq }) => seq))])} and ${isVisible(scope)} and a.disabled = 0 order by p.agent_id`);
}

/** The latest tasks of agents, in one statement: each agent's walk along its own index is bounded, however many tasks it ever had. */
export function recentWork(db: Queryable, seqs: readonly number[]): Promise<WorkRow[]> {
  const latest = (columns: Sql) => sql`
    (select ${columns} from task t where t.org_id = p.org_id and t.target_agent_id = p.agent_id order by t.task_id desc limit ${latestTasks}) latest`;
  return db.all<WorkRow>(sql`
    select p.seq,
      (select count(*) from ${latest(sql`t.state`)} where state <= ${TaskState.AWAITING_APPROVAL}) as open,
      (select cast(avg(took) as double precision) from ${latest(sql`t.state, t.end_ms - t.create_ms as took`)} where state = ${TaskState.COMPLETED}) as latency_ms
    from ${chosenFew(db.dialect, seqs)}`);
}
