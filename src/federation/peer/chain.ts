/** How far work has gone from server to server: along the chain of who asked whom for it, and not by how much else is done in its trace. */
import { findTaskSummary, type TaskSummaryRow } from "../../bus/task-store.ts";
import { type Queryable, sql } from "../../db/db.ts";
import { findCrossing } from "../gateway/crossing-store.ts";
import { isGuest } from "../gateway/sides.ts";
import { findCallOfTask } from "./call-store.ts";

/** A task in a chain. */
type Link = Pick<TaskSummaryRow, "org_id" | "task_id" | "target_org_id" | "origin" | "trace_id" | "parent_span_id">;

/** How many tasks of this server a chain is followed over. */
const maxLinks = 64;

/**
 * How often the work of a task has gone from server to server until now; 0 when it began here. Each task was asked for by the agent that works on the one whose span is above its own, and the chain ends where a
 * task came from a peer or where nothing is above. Where what is above is no task, as of an agent that writes spans of its own, nobody knows for what it asks: then it has gone as far as the farthest work of
 * the trace that is under way here, of which it may be a part.
 */
export async function hopsUntil(db: Queryable, task: Link): Promise<number> {
  let at: Link | undefined = task;
  for (let link = 0; at && link < maxLinks; link++) {
    const asked: Link | undefined = isGuest(at) ? await askedAs(db, at) : at;
    if (!asked) break;
    const call = await findCallOfTask(db, asked.org_id, asked.task_id);
    if (call) return call.hops;
    if (asked.parent_span_id === "") return 0;
    at = await taskOfSpan(db, asked.org_id, asked.trace_id, asked.parent_span_id);
  }
  return hopsUnderWay(db, task.trace_id);
}

/** The task of a guest as the organisation has it that asked for it, while that is kept. */
async function askedAs(db: Queryable, { org_id, task_id }: Link): Promise<Link | undefined> {
  const crossing = await findCrossing(db, org_id, task_id);
  return crossing && findTaskSummary(db, crossing.caller_org_id, task_id);
}

/** The task of an organisation whose span it is; along the index on its traces. */
export const taskOfSpan = (db: Queryable, orgId: string, traceId: string, spanId: string): Promise<Link | undefined> =>
  db.one<Link>(sql`
    select org_id, task_id, target_org_id, origin, trace_id, parent_span_id from task
    where org_id = ${orgId} and trace_id = ${traceId} and span_id = ${spanId} order by task_id limit 1`);

/** How far the work of a trace has come that peers asked for and that has not ended, at most; 0 when there is none. By the index on traces, and the key of each task. */
export const hopsUnderWay = async (db: Queryable, traceId: string): Promise<number> =>
  (await db.one<{ hops: number | null }>(sql`
    select max(c.hops) as hops from federation_peer_call c join task t on t.org_id = c.org_id and t.task_id = c.task_id
    where c.trace_id = ${traceId} and t.state in (1, 2, 3)`))!.hops ?? 0;
