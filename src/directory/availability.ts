import { Availability } from "../../gen/moltwire/directory/v1/profile_pb.ts";
import { type Sql, sql } from "../db/db.ts";

/** What an agent said of its availability; see directory_profile. */
export type Said = {
  readonly availability: number;
  readonly busy_until_ms: number | null;
  readonly disabled: number;
};

/** What holds now: whoever was busy until a time that has passed is available again. */
export function availabilityAt(
  said: Said,
  now: number,
): { readonly availability: Availability; readonly busyUntilMs?: number } {
  if (said.disabled !== 0) return { availability: Availability.AWAY };
  const { busy_until_ms: untilMs } = said;
  if (said.availability !== Availability.BUSY || untilMs === null)
    return { availability: said.availability as Availability };
  return untilMs <= now
    ? { availability: Availability.AVAILABLE }
    : { availability: Availability.BUSY, busyUntilMs: untilMs };
}

/** The same as {@link availabilityAt} being AVAILABLE, of the profile `p` and the agent `a`. */
export const isAvailable = (now: number): Sql =>
  sql`(a.disabled = 0 and (p.availability = ${Availability.AVAILABLE} or (p.availability = ${Availability.BUSY} and p.busy_until_ms <= ${now})))`;
