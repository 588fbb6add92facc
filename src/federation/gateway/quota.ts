/** The quotas of a grant: what is set aside for a request that comes in, and what is put in its place when its task ends. */

import { usedByModel } from "../../bus/budget/use-store.ts";
import { dayMs, dayStart } from "../../bus/cost/day.ts";
import { counted } from "../../bus/cost/saturated.ts";
import type { Queryable, Tx } from "../../db/db.ts";
import { Fault } from "../../errors.ts";
import { type GrantRow, termsOf } from "../grant/store.ts";
import { type DayLimits, findDay, reserveGrant, settleGrant, type UsageRow } from "../grant/usage-store.ts";
import type { CrossingRow } from "./crossing-store.ts";

/** What a grant allows on a day, and what is used of it with this request. */
export type Quota = { readonly limits: DayLimits; readonly use: UsageRow };

const limitsOf = (grant: GrantRow): DayLimits => {
  const { tokensPerDay, requestsPerDay } = termsOf(grant);
  return {
    tokensPerDay: tokensPerDay === undefined ? undefined : Number(tokensPerDay),
    requestsPerDay: requestsPerDay === undefined ? undefined : Number(requestsPerDay),
  };
};

/** Sets a request and its tokens aside on the day of `now`; GRANT_QUOTA_EXCEEDED, given and not thrown, when the day has no room. */
export async function reserveQuota(tx: Tx, grant: GrantRow, tokens: number, now: number): Promise<Quota | Fault> {
  const limits = limitsOf(grant);
  const key = { orgId: grant.org_id, grantId: grant.grant_id, dayMs: dayStart(now) };
  const use = await reserveGrant(tx, key, tokens, limits);
  if (use) return { limits, use };
  const unit = lacking(limits, await findDay(tx, key), tokens);
  // A task that ended between the two looks has made room.
  return unit ? quotaFault(grant, unit, now) : reserveQuota(tx, grant, tokens, now);
}

/** What {@link reserveQuota} would refuse with now; changes nothing. */
export async function checkQuota(
  db: Queryable,
  grant: GrantRow,
  tokens: number,
  now: number,
): Promise<Fault | undefined> {
  const limits = limitsOf(grant);
  const use = await findDay(db, { orgId: grant.org_id, grantId: grant.grant_id, dayMs: dayStart(now) });
  const unit = lacking(limits, use, tokens);
  return unit && quotaFault(grant, unit, now);
}

type Unit = {
  readonly unit: string;
  readonly limit: number;
  readonly used: number;
  readonly reserved: number;
  readonly wanted: number;
};

/** The first unit that a request does not fit into. */
function lacking(
  { requestsPerDay, tokensPerDay }: DayLimits,
  use: UsageRow | undefined,
  tokens: number,
): Unit | undefined {
  const { requests = 0, tokens: used = 0, reserved_tokens: reserved = 0 } = use ?? {};
  if (requestsPerDay !== undefined && requests >= requestsPerDay)
    return { unit: "requests", limit: requestsPerDay, used: requests, reserved: 0, wanted: 1 };
  if (tokensPerDay !== undefined && used + reserved + tokens > tokensPerDay)
    return { unit: "tokens", limit: tokensPerDay, used, reserved, wanted: tokens };
  return undefined;
}

/** The figures, when the day ends, and whether it helps to wait for that. */
function quotaFault(grant: GrantRow, { unit, limit, used, reserved, wanted }: Unit, now: number): Fault {
  const resetMs = dayStart(now) + dayMs;
  const reset = new Date(resetMs).toISOString();
  const helps = wanted <= limit;
  const message =
    `the grant ${grant.grant_id} allows ${limit} ${unit} a day, of which ${used} are used and ${reserved} set aside, and the request needs ${wanted}: ` +
    `${helps ? `wait until ${reset}, or ` : ""}have the grantor raise it (GrantService/UpdateGrant)`;
  const figures = {
    unit,
    limit: String(limit),
    used: String(used),
    reserved: String(reserved),
    wanted: String(wanted),
  };
  return new Fault(
    "GRANT_QUOTA_EXCEEDED",
    message,
    { grant_id: grant.grant_id, ...figures, reset_time: reset },
    {
      quota: { subject: `grant:${grant.grant_id}/${unit}`, description: message },
      ...(helps && { retryAfterMs: Math.max(1, resetMs - now) }),
    },
  );
}

/** What all attempts of the task used takes the place of what was set aside, on the day on which that was. Once, by whoever closed the crossing. */
export async function settleQuota(tx: Tx, crossing: CrossingRow): Promise<void> {
  const { org_id: orgId, task_id: taskId, grant_id: grantId, day_ms: day, reserved_tokens: reserved } = crossing;
  const used = await usedByModel(tx, orgId, taskId);
  const tokens = counted(used.reduce((sum, one) => sum + one.tokens, 0));
  const micros = counted(used.reduce((sum, one) => sum + one.micros, 0));
  await settleGrant(tx, { orgId, grantId, dayMs: day }, reserved, { tokens, micros });
}
