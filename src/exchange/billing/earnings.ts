/** What organisations earn by their listings. */
import type { MessageInitShape } from "@bufbuild/protobuf";
import type { DayEarningsSchema, EarningsSchema } from "../../../gen/moltwire/exchange/v1/billing_service_pb.ts";
import { dayStart, dayText, parseDay } from "../../bus/cost/day.ts";
import { type Queryable, type Sql, sql } from "../../db/db.ts";
import { badField } from "../../errors.ts";
import type { Position } from "../../rpc/cursor.ts";

type Stored = number | bigint;

/** Sums; integers come as bigint only beyond 2^53. */
export type EarningsRow = {
  readonly completed: Stored;
  readonly failed: Stored;
  readonly requests_micros: Stored;
  readonly subscriptions_micros: Stored;
  readonly fees_micros: Stored;
};

export type DayRow = EarningsRow & { readonly day_ms: number; readonly listing_id: string };

/** An empty listing: all. Both days are in it. */
export type Window = { readonly listingId: string; readonly startMs: number; readonly endMs: number };

const within = (orgId: string, { listingId, startMs, endMs }: Window): Sql =>
  sql`org_id = ${orgId} ${listingId ? sql`and listing_id = ${listingId}` : sql``} and day_ms >= ${startMs} and day_ms <= ${endMs}`;

/** Latest day first, then by listing, backwards along the index on days, or for one listing along the key. */
export const listEarnings = (
  db: Queryable,
  orgId: string,
  window: Window,
  after: Position | undefined,
  limit: number,
): Promise<DayRow[]> =>
  db.all<DayRow>(sql`
    select day_ms, listing_id, completed, failed, requests_micros, subscriptions_micros, fees_micros from exchange_day
    where ${within(orgId, window)} ${after ? sql`and (day_ms, listing_id) < (${after[0]!}, ${after[1]!})` : sql``}
    order by day_ms desc, listing_id desc limit ${limit}`);

/** What all of them come to. */
export const totalEarnings = async (db: Queryable, orgId: string, window: Window): Promise<EarningsRow> => {
  const sum = (column: Sql) => sql`cast(coalesce(sum(${column}), 0) as bigint)`;
  return (await db.one<EarningsRow>(sql`
    select ${sum(sql`completed`)} as completed, ${sum(sql`failed`)} as failed, ${sum(sql`requests_micros`)} as requests_micros,
      ${sum(sql`subscriptions_micros`)} as subscriptions_micros, ${sum(sql`fees_micros`)} as fees_micros
    from exchange_day where ${within(orgId, window)}`))!;
};

type Dates = { readonly listingId: string; readonly startDate: string; readonly endDate: string };

/** INVALID_REQUEST for a date that is none, and for a window that ends before it begins. */
export function windowOf({ listingId, startDate, endDate }: Dates, now: number): Window {
  const endMs = endDate ? dayOf("end_date", endDate) : dayStart(now);
  const startMs = startDate ? dayOf("start_date", startDate) : 0;
  if (startMs > endMs) throw badField("start_date", `is after the last day, ${dayText(endMs)}`);
  return { listingId, startMs, endMs };
}

function dayOf(field: string, text: string): number {
  const day = parseDay(text);
  if (day === undefined) throw badField(field, `${text} is no date`);
  return day;
}

export function toEarnings(row: EarningsRow): MessageInitShape<typeof EarningsSchema> {
  const [requests, subscriptions] = [BigInt(row.requests_micros), BigInt(row.subscriptions_micros)];
  const fees = BigInt(row.fees_micros);
  return {
    requestsMicros: requests,
    subscriptionsMicros: subscriptions,
    feesMicros: fees,
    netMicros: requests + subscriptions - fees,
    completedRequests: BigInt(row.completed),
    failedRequests: BigInt(row.failed),
  };
}

export const toDayEarnings = (row: DayRow): MessageInitShape<typeof DayEarningsSchema> => ({
  date: dayText(row.day_ms),
  listingId: row.listing_id,
  earnings: toEarnings(row),
});
