/** How many unfinished jobs an organisation may have, and in how many queues. */
import { type Queryable, sql, type Tx } from "../db/db.ts";
import { Fault } from "../errors.ts";
import { limits } from "./rule.ts";
import { levelsNamed } from "./tally.ts";

/** How an organisation stood before its jobs were put into queues. */
export type Room = { readonly unfinished: number };

/**
 * Looks before the jobs are there, at the organisation's count and at the queues they go to: one walk along the key. What others put in at the same time on
 * PostgreSQL is not seen, so that both limits may be passed by it. Throws QUOTA_EXCEEDED for a queue too many.
 */
export async function lookForRoom(tx: Tx, orgId: string, queues: ReadonlySet<string>): Promise<Room> {
  const { unfinished, known } = await levelsNamed(tx, orgId, queues);
  const more = [...queues].filter((queue) => !known.has(queue)).length;
  if (more > 0 && (await countQueues(tx, orgId)) + more > limits.queues) {
    const what = `an organisation has at most ${limits.queues} queues: use one that there is; one without jobs is forgotten after a while`;
    throw exceeded("queues", limits.queues, what);
  }
  return { unfinished };
}

/** Throws QUOTA_EXCEEDED if there were unfinished jobs so many that these are too many. */
export function checkRoom({ unfinished }: Room, more: number): void {
  if (more === 0 || unfinished + more <= limits.unfinished) return;
  const what = `an organisation has at most ${limits.unfinished} unfinished jobs: let some be done, or cancel some`;
  throw exceeded("jobs", limits.unfinished, what);
}

/** Walks along the key past every shard; asked only when a name is new. */
export const countQueues = async (db: Queryable, orgId: string): Promise<number> =>
  (await db.one<{ n: number }>(sql`
    select count(distinct queue) as n from queue_level where org_id = ${orgId} and queue > ${""}`))!.n;

const exceeded = (resource: string, limit: number, message: string): Fault =>
  new Fault(
    "QUOTA_EXCEEDED",
    message,
    { resource, limit: String(limit) },
    { quota: { subject: resource, description: message } },
  );
