/** What the requests for a listing came to. */
import type { MessageInitShape } from "@bufbuild/protobuf";
import { durationFromMs } from "@bufbuild/protobuf/wkt";
import type { MeasuredSchema } from "../../../gen/moltwire/exchange/v1/listing_pb.ts";
import { dayMs, dayStart } from "../../bus/cost/day.ts";
import { type Queryable, sql } from "../../db/db.ts";
import type { ListingRow } from "./store.ts";

const windowDays = 30;
/** Of how many requests the times are. */
export const sampleSize = 1_000;

type Of = Pick<ListingRow, "org_id" | "listing_id">;

/** Requests of the days from one on that ended well and badly; along the key. */
export const endedSince = async (
  db: Queryable,
  { org_id, listing_id }: Of,
  day: number,
): Promise<{ readonly completed: number; readonly failed: number }> =>
  (await db.one<{ completed: number; failed: number }>(sql`
    select cast(coalesce(sum(completed), 0) as bigint) as completed, cast(coalesce(sum(failed), 0) as bigint) as failed
    from exchange_day where org_id = ${org_id} and listing_id = ${listing_id} and day_ms >= ${day}`))!;

/** How long the latest completed requests took, in milliseconds; backwards along the index on those. */
export const latestTimes = async (db: Queryable, { org_id, listing_id }: Of, sinceMs: number): Promise<number[]> =>
  (
    await db.all<{ took: number }>(sql`
      select end_ms - create_ms as took from exchange_call where org_id = ${org_id} and listing_id = ${listing_id} and state = 2 and end_ms >= ${sinceMs}
      order by end_ms desc limit ${sampleSize}`)
  ).map(({ took }) => took);

/** The nearest rank: the least time within which that part of them was done. `times` are sorted, and not none. */
export const percentile = (times: readonly number[], part: number): number =>
  times[Math.max(0, Math.ceil(part * times.length) - 1)]!;

export async function measured(db: Queryable, of: Of, now: number): Promise<MessageInitShape<typeof MeasuredSchema>> {
  const since = dayStart(now) - (windowDays - 1) * dayMs;
  const { completed, failed } = await endedSince(db, of, since);
  const ended = completed + failed;
  const times = (await latestTimes(db, of, since)).toSorted((a, b) => a - b);
  return {
    requests: BigInt(ended),
    completed: BigInt(completed),
    failed: BigInt(failed),
    ...(ended > 0 && { successRate: completed / ended }),
    ...(times.length > 0 && {
      p50: durationFromMs(percentile(times, 0.5)),
      p99: durationFromMs(percentile(times, 0.99)),
    }),
  };
}
