/** How many jobs there are in each state and what happened in each minute, kept with every change so that nobody has to count. */
import { JobState } from "../../gen/moltwire/queue/v1/job_pb.ts";
import { join, type Queryable, sql, type Tx } from "../db/db.ts";
import { inChunks } from "./chunk.ts";
import { bucketOf } from "./rule.ts";

/** The kinds of `queue_minute`. */
export const minuteKinds = { submitted: 0, completed: 1, failed: 2, canceled: 3, firstBucket: 10 } as const;

export const minuteMs = 60_000;
/** On PostgreSQL, where transactions of one queue run beside each other. */
const shards = 16;
/** The queue under which an organisation's unfinished jobs are counted. */
const wholeOrg = "";

/** A job coming from one state to another; `from` undefined: it is new; `to` undefined: it is no longer kept. */
export type Move = {
  readonly queue: string;
  readonly from: JobState | undefined;
  readonly to: JobState | undefined;
  /** At the first claim: how long the job could have been claimed. */
  readonly waitMs?: number | undefined;
};

const counted = ["scheduled", "pending", "leased", "failed"] as const;
type Levels = Record<(typeof counted)[number], number>;
const columnOf: Partial<Record<JobState, keyof Levels>> = {
  [JobState.SCHEDULED]: "scheduled",
  [JobState.PENDING]: "pending",
  [JobState.LEASED]: "leased",
  [JobState.FAILED]: "failed",
};
const isUnfinished = (state: JobState | undefined): boolean => state !== undefined && state < JobState.COMPLETED;

/**
 * Adds moves of one organisation to the counts. The last statements of a transaction, and in the order of the keys: transactions that share a shard wait for one
 * another, shortly and never in a circle. `spread` chooses the shard.
 */
export async function tally(tx: Tx, orgId: string, moves: readonly Move[], now: number, spread: string): Promise<void> {
  const shard = tx.dialect.name === "sqlite" ? 0 : Number.parseInt(spread.slice(-1), 16) % shards;
  const levels = new Map<string, Levels>();
  const minutes = new Map<string, Map<number, number>>();
  const level = (queue: string): Levels => {
    const found = levels.get(queue) ?? { scheduled: 0, pending: 0, leased: 0, failed: 0 };
    levels.set(queue, found);
    return found;
  };
  const happened = (queue: string, kind: number) => {
    const kinds = minutes.get(queue) ?? new Map<number, number>();
    minutes.set(queue, kinds.set(kind, (kinds.get(kind) ?? 0) + 1));
  };
  for (const { queue, from, to, waitMs } of moves) {
    const [left, reached] = [from && columnOf[from], to && columnOf[to]];
    if (left) level(queue)[left]--;
    if (reached) level(queue)[reached]++;
    const unfinished = Number(isUnfinished(to)) - Number(isUnfinished(from));
    if (unfinished !== 0) level(wholeOrg).pending += unfinished;
    if (from === undefined) happened(queue, minuteKinds.submitted);
    if (to === JobState.COMPLETED) happened(queue, minuteKinds.completed);
    if (to === JobState.FAILED) happened(queue, minuteKinds.failed);
    if (to === JobState.CANCELED) happened(queue, minuteKinds.canceled);
    if (waitMs !== undefined) happened(queue, minuteKinds.firstBucket + bucketOf(waitMs));
  }
  const levelRows = [...levels].filter(([, row]) => counted.some((column) => row[column] !== 0)).sort(byKey);
  for (const rows of inChunks(levelRows)) {
    await tx.run(sql`
      insert into queue_level (org_id, queue, shard, scheduled, pending, leased, failed)
      values ${join(rows.map(([queue, row]) => sql`(${orgId}, ${queue}, ${shard}, ${row.scheduled}, ${row.pending}, ${row.leased}, ${row.failed})`))}
      on conflict (org_id, queue, shard) do update set scheduled = queue_level.scheduled + excluded.scheduled,
        pending = queue_level.pending + excluded.pending, leased = queue_level.leased + excluded.leased, failed = queue_level.failed + excluded.failed`);
  }
  const minute = Math.floor(now / minuteMs);
  const minuteRows = [...minutes]
    .sort(byKey)
    .flatMap(([queue, kinds]) => [...kinds].sort(([a], [b]) => a - b).map(([kind, n]) => ({ queue, kind, n })));
  for (const rows of inChunks(minuteRows)) {
    await tx.run(sql`
      insert into queue_minute (org_id, queue, minute, kind, shard, n)
      values ${join(rows.map(({ queue, kind, n }) => sql`(${orgId}, ${queue}, ${minute}, ${kind}, ${shard}, ${n})`))}
      on conflict (org_id, queue, minute, kind, shard) do update set n = queue_minute.n + excluded.n`);
  }
}

const byKey = ([a]: readonly [string, unknown], [b]: readonly [string, unknown]): number => (a < b ? -1 : 1);

/** The unfinished jobs of an organisation, and which of these queues it has: a few rows, however many jobs. */
export async function levelsNamed(
  db: Queryable,
  orgId: string,
  queues: ReadonlySet<string>,
): Promise<{ readonly unfinished: number; readonly known: ReadonlySet<string> }> {
  let unfinished = 0;
  const known = new Set<string>();
  for (const names of inChunks([wholeOrg, ...queues])) {
    const rows = await db.all<{ queue: string; pending: number }>(sql`
      select queue, cast(sum(pending) as bigint) as pending from queue_level where org_id = ${orgId} and queue in (${join(names)}) group by queue`);
    for (const { queue, pending } of rows) {
      if (queue === wholeOrg) unfinished = pending;
      else known.add(queue);
    }
  }
  return { unfinished, known };
}

/**
 * Forgets those of the queues that have no job to do or to redrive, and of whose last hour there is nothing to tell. In a transaction of its own: it locks all
 * rows of a queue, in the order of the keys, since what one shard counts another may take away.
 */
export async function forgetIdle(tx: Tx, orgId: string, queues: ReadonlySet<string>): Promise<void> {
  for (const names of inChunks([...queues].sort())) {
    const rows = await tx.all<LevelRow>(sql`
      select queue, scheduled, pending, leased, failed from queue_level where org_id = ${orgId} and queue in (${join(names)})
      order by queue, shard ${tx.dialect.forUpdate}`);
    const lately = await tx.all<{ queue: string }>(sql`
      select distinct queue from queue_minute where org_id = ${orgId} and queue in (${join(names)})`);
    const busy = new Set(lately.map(({ queue }) => queue));
    for (const [queue, shares] of Map.groupBy(rows, (row) => row.queue))
      if (counted.some((column) => shares.reduce((sum, share) => sum + share[column], 0) !== 0)) busy.add(queue);
    const idle = names.filter((queue) => !busy.has(queue));
    if (idle.length > 0)
      await tx.run(sql`delete from queue_level where org_id = ${orgId} and queue in (${join(idle)})`);
  }
}

/** How a queue's jobs stand. */
export type LevelRow = { readonly queue: string } & Readonly<Levels>;

/** The queues of an organisation after a name, by name, or one of them: a walk along the key. */
export const readLevels = (
  db: Queryable,
  orgId: string,
  { after, only }: { readonly after: string; readonly only: string },
  limit: number,
): Promise<LevelRow[]> =>
  db.all<LevelRow>(sql`
    select queue, cast(sum(scheduled) as bigint) as scheduled, cast(sum(pending) as bigint) as pending, cast(sum(leased) as bigint) as leased,
      cast(sum(failed) as bigint) as failed
    from queue_level where org_id = ${orgId} and ${only ? sql`queue = ${only}` : sql`queue > ${after}`}
    group by queue order by queue limit ${limit}`);

/** What happened to a queue within the last hour: counts by kind. */
export const readHour = (db: Queryable, orgId: string, queue: string, now: number) =>
  db.all<{ readonly kind: number; readonly n: number }>(sql`
    select kind, cast(sum(n) as bigint) as n from queue_minute
    where org_id = ${orgId} and queue = ${queue} and minute > ${Math.floor(now / minuteMs) - 60} group by kind`);
