/** When periods begin and end, in UTC. Pure. */
import { BillingPeriod } from "../../../gen/moltwire/exchange/v1/listing_pb.ts";
import { dayMs, dayStart } from "../../bus/cost/day.ts";

/** When the day or month of a time begins. */
export function calendarStart(period: BillingPeriod, atMs: number): number {
  if (period === BillingPeriod.DAY) return dayStart(atMs);
  const at = new Date(atMs);
  return Date.UTC(at.getUTCFullYear(), at.getUTCMonth());
}

/** When the last of so many periods ends that are counted from a time: days have 24 hours; months end on the day they began on, or on their last if they have no such day. */
export function periodEnd(period: BillingPeriod, anchorMs: number, count: number): number {
  if (period === BillingPeriod.DAY) return anchorMs + count * dayMs;
  const anchor = new Date(anchorMs);
  const [year, month] = [anchor.getUTCFullYear(), anchor.getUTCMonth() + count];
  const lastDay = new Date(Date.UTC(year, month + 1, 0)).getUTCDate();
  const dayStartMs = Date.UTC(year, month, Math.min(anchor.getUTCDate(), lastDay));
  return dayStartMs + (anchorMs - dayStart(anchorMs));
}
