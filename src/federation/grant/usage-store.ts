/** What is used under grants, by day of UTC. Every change is one statement that asks for what it needs. */
import type { MessageInitShape } from "@bufbuild/protobuf";
import type { GrantDayUsageSchema } from "../../../gen/moltwire/federation/v1/grant_pb.ts";
import { dayText } from "../../bus/cost/day.ts";
import { minus, plus } from "../../bus/cost/saturated.ts";
import { type Queryable, type Sql, sql, type Tx } from "../../db/db.ts";
import type { Position } from "../../rpc/cursor.ts";

/** What is used of a grant on the day that begins at `day_ms`. */
export type UsageRow = {
  readonly day_ms: number;
  readonly requests: number;
  readonly denials: number;
  readonly tokens: number;
  readonly reserved_tokens: number;
  readonly cost_micros: number;
};

/** Which count; `orgId` is the grantor's. */
export type UsageKey = { readonly orgId: string; readonly grantId: string; readonly dayMs: number };

/** The quotas of a day; undefined: none. */
export type DayLimits = { readonly tokensPerDay: number | undefined; readonly requestsPerDay: number | undefined };

const columns = sql`day_ms, requests, denials, tokens, reserved_tokens, cost_micros`;
const keyed = ({ orgId, grantId, dayMs }: UsageKey): Sql =>
  sql`org_id = ${orgId} and grant_id = ${grantId} and day_ms = ${dayMs}`;
const insert = ({ orgId, grantId, dayMs }: UsageKey, requests: number, denials: number, reserved: number): Sql => sql`
  insert into federation_grant_usage (org_id, grant_id, ${columns}) values (${orgId}, ${grantId}, ${dayMs}, ${requests}, ${denials}, 0, ${reserved}, 0)
  on conflict (org_id, grant_id, day_ms) do update`;

/**
 * Lets in one request and sets its tokens aside, if the day has room for both; undefined when it has not. One statement, so that no other admission comes between
 * the look and the deed; its insert is not asked, and so what would be too much alone is refused before.
 */
export async function reserveGrant(
  tx: Tx,
  key: UsageKey,
  tokens: number,
  { tokensPerDay, requestsPerDay }: DayLimits,
): Promise<UsageRow | undefined> {
  if (requestsPerDay === 0 || (tokensPerDay !== undefined && tokens > tokensPerDay)) return undefined;
  const used = sql`federation_grant_usage.tokens + federation_grant_usage.reserved_tokens`;
  const inTokens = tokensPerDay === undefined ? sql`1 = 1` : sql`${used} + ${tokens} <= ${tokensPerDay}`;
  const inRequests =
    requestsPerDay === undefined ? sql`1 = 1` : sql`federation_grant_usage.requests < ${requestsPerDay}`;
  return tx.one<UsageRow>(sql`
    ${insert(key, 1, 0, tokens)} set requests = federation_grant_usage.requests + 1,
      reserved_tokens = ${plus(sql`federation_grant_usage.reserved_tokens`, tokens)}
    where ${inTokens} and ${inRequests} returning ${columns}`);
}

/** Puts what a request used in place of what was set aside for it, on the day of the reserve. It may be more: then it is counted, and blocks further admission. */
export const settleGrant = (
  tx: Tx,
  key: UsageKey,
  reservedTokens: number,
  { tokens, micros }: { readonly tokens: number; readonly micros: number },
): Promise<number> =>
  tx.run(sql`
    update federation_grant_usage set reserved_tokens = ${minus(sql`reserved_tokens`, reservedTokens)}, tokens = ${plus(sql`tokens`, tokens)},
      cost_micros = ${plus(sql`cost_micros`, micros)} where ${keyed(key)}`);

/** Counts a request that was refused under the grant; gives how many those of the day are with it. */
export const denyUnderGrant = async (tx: Tx, key: UsageKey): Promise<number> =>
  (await tx.one<{ denials: number }>(sql`
    ${insert(key, 0, 1, 0)} set denials = federation_grant_usage.denials + 1 returning denials`))!.denials;

/** What is used on one day, or undefined while that is nothing. */
export const findDay = (db: Queryable, key: UsageKey): Promise<UsageRow | undefined> =>
  db.one<UsageRow>(sql`select ${columns} from federation_grant_usage where ${keyed(key)}`);

/** Locks the count of one day until the transaction ends. */
export const lockDay = (tx: Tx, key: UsageKey): Promise<object | undefined> =>
  tx.one(sql`select day_ms from federation_grant_usage where ${keyed(key)} ${tx.dialect.forUpdate}`);

/** The days of a window, latest first, backwards along the key. */
export function listUsage(
  db: Queryable,
  { orgId, grantId }: Omit<UsageKey, "dayMs">,
  { startMs, endMs }: { readonly startMs: number; readonly endMs: number },
  after: Position | undefined,
  limit: number,
): Promise<UsageRow[]> {
  const before = after ? sql`and day_ms < ${after[0]!}` : sql``;
  return db.all<UsageRow>(sql`
    select ${columns} from federation_grant_usage
    where org_id = ${orgId} and grant_id = ${grantId} and day_ms >= ${startMs} and day_ms <= ${endMs} ${before} order by day_ms desc limit ${limit}`);
}

export const toDayUsage = (row: UsageRow): MessageInitShape<typeof GrantDayUsageSchema> => ({
  date: dayText(row.day_ms),
  requests: BigInt(row.requests),
  denials: BigInt(row.denials),
  tokens: BigInt(row.tokens),
  reservedTokens: BigInt(row.reserved_tokens),
  costMicros: BigInt(row.cost_micros),
});
