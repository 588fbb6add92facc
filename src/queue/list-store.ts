/** Reads for lists: each walks an index in the order of the list. */
import type { JobState } from "../../gen/moltwire/queue/v1/job_pb.ts";
import { empty, join, type Queryable, sql } from "../db/db.ts";
import type { Position } from "../rpc/cursor.ts";
import { type JobRow, jobColumns } from "./job-store.ts";

/** Jobs in some states, newest first: one walk for each state, of the queue or of the organisation, put together. */
export function listJobs(
  db: Queryable,
  orgId: string,
  { queue, states }: { readonly queue: string; readonly states: readonly JobState[] },
  after: Position | undefined,
  limit: number,
): Promise<JobRow[]> {
  const within = queue ? sql`and queue = ${queue}` : empty;
  const before = after ? sql`and seq < ${after[0]!}` : empty;
  const walks = states.map(
    (state) => sql`select * from (
      select ${jobColumns} from queue_job where org_id = ${orgId} ${within} and state + 0 = ${state} ${before} order by seq desc limit ${limit}) one`,
  );
  return db.all<JobRow>(
    sql`select ${jobColumns} from (${join(walks, " union all ")}) found order by seq desc limit ${limit}`,
  );
}

/** Dead jobs, latest death first, by their partial indexes. */
export function listDeadJobs(
  db: Queryable,
  orgId: string,
  queue: string,
  after: Position | undefined,
  limit: number,
): Promise<JobRow[]> {
  const within = queue ? sql`and queue = ${queue}` : empty;
  const endMs = queue ? sql`end_ms` : sql`end_ms + 0`; // as each index has it
  const before = after ? sql`and (${endMs}, seq) < (${after[0]!}, ${after[1]!})` : empty;
  return db.all<JobRow>(sql`
    select ${jobColumns} from queue_job where org_id = ${orgId} ${within} and state = 5 ${before}
    order by ${endMs} desc, seq desc limit ${limit}`);
}

/**
 * Since when the oldest job that can be claimed could be: the first of each priority, by the index of claims, and of those the oldest. `between` and not `=`:
 * PostgreSQL would see that only `seq` is left of the order, and walk the primary key.
 */
export const oldestPending = async (db: Queryable, orgId: string, queue: string): Promise<number | undefined> => {
  const walks = Array.from(
    { length: 10 },
    (_, n) => sql`select * from (
      select seq, ready_ms from queue_job where org_id = ${orgId} and queue = ${queue} and state = 2
        and priority between ${n + 1} and ${n + 1} order by priority desc, seq limit 1) one`,
  );
  const row = await db.one<{ ready_ms: number }>(
    sql`select ready_ms from (${join(walks, " union all ")}) firsts order by seq limit 1`,
  );
  return row?.ready_ms;
};
