import { fromJsonString, type MessageInitShape, toJsonString } from "@bufbuild/protobuf";
import { timestampFromMs } from "@bufbuild/protobuf/wkt";
import { type SubscriptionPlan, SubscriptionPlanSchema } from "../../../gen/moltwire/exchange/v1/listing_pb.ts";
import type { SubscriptionSchema, SubscriptionState } from "../../../gen/moltwire/exchange/v1/subscription_pb.ts";
import { type Queryable, sql, type Tx } from "../../db/db.ts";
import type { Position } from "../../rpc/cursor.ts";

/** A subscription as it is stored; columns are described in the migration. */
export type SubscriptionRow = {
  readonly org_id: string;
  readonly subscription_id: string;
  readonly provider_org_id: string;
  readonly listing_id: string;
  readonly state: SubscriptionState;
  readonly payer_id: string;
  readonly plan: string;
  readonly included: number;
  readonly used: number;
  readonly anchor_ms: number;
  readonly periods: number;
  readonly payments: number;
  readonly period_start_ms: number;
  readonly period_end_ms: number;
  readonly cancel_at_end: number;
  readonly create_ms: number;
};

const columns = sql`org_id, subscription_id, provider_org_id, listing_id, state, payer_id, plan, included, used, anchor_ms, periods, payments, period_start_ms,
  period_end_ms, cancel_at_end, create_ms`;

export const planText = (plan: SubscriptionPlan): string => toJsonString(SubscriptionPlanSchema, plan);
export const planOf = ({ plan }: Pick<SubscriptionRow, "plan">): SubscriptionPlan =>
  fromJsonString(SubscriptionPlanSchema, plan);

/** Adds a subscription; 0 when the organisation has one to the listing that has not ended. */
export const insertSubscription = (tx: Tx, row: SubscriptionRow): Promise<number> =>
  tx.run(sql`
    insert into exchange_subscription (${columns})
    values (${row.org_id}, ${row.subscription_id}, ${row.provider_org_id}, ${row.listing_id}, ${row.state}, ${row.payer_id}, ${row.plan}, ${row.included}, ${row.used},
      ${row.anchor_ms}, ${row.periods}, ${row.payments}, ${row.period_start_ms}, ${row.period_end_ms}, ${row.cancel_at_end}, ${row.create_ms})
    on conflict do nothing`);

/** Of a row that is locked. */
export const updateSubscription = (tx: Tx, row: SubscriptionRow): Promise<number> =>
  tx.run(sql`
    update exchange_subscription set state = ${row.state}, plan = ${row.plan}, included = ${row.included}, used = ${row.used}, anchor_ms = ${row.anchor_ms}, periods = ${row.periods},
      payments = ${row.payments}, period_start_ms = ${row.period_start_ms}, period_end_ms = ${row.period_end_ms}, cancel_at_end = ${row.cancel_at_end}
    where org_id = ${row.org_id} and subscription_id = ${row.subscription_id}`);

/** The one to a listing that has not ended; by its own index. */
export const findLive = (db: Queryable, orgId: string, listingId: string): Promise<SubscriptionRow | undefined> =>
  db.one<SubscriptionRow>(sql`
    select ${columns} from exchange_subscription where org_id = ${orgId} and listing_id = ${listingId} and state < 3`);

/** The same, locked for a change. */
export const lockLive = (tx: Tx, orgId: string, listingId: string): Promise<SubscriptionRow | undefined> =>
  tx.one<SubscriptionRow>(sql`
    select ${columns} from exchange_subscription where org_id = ${orgId} and listing_id = ${listingId} and state < 3 ${tx.dialect.forUpdate}`);

export const lockSubscription = (tx: Tx, orgId: string, id: string): Promise<SubscriptionRow | undefined> =>
  tx.one<SubscriptionRow>(sql`
    select ${columns} from exchange_subscription where org_id = ${orgId} and subscription_id = ${id} ${tx.dialect.forUpdate}`);

/** Uses one of the included requests of the period, if one is left: one statement, so that no other comes between the look and the deed. */
export const takeIncluded = async (
  tx: Tx,
  { org_id, subscription_id, period_start_ms }: SubscriptionRow,
): Promise<boolean> =>
  (await tx.run(sql`
    update exchange_subscription set used = used + 1
    where org_id = ${org_id} and subscription_id = ${subscription_id} and period_start_ms = ${period_start_ms} and state = 1 and used < included`)) ===
  1;

/** Gives one back, unless another period has begun since. */
export const giveBackIncluded = (tx: Tx, orgId: string, id: string, periodMs: number): Promise<number> =>
  tx.run(sql`
    update exchange_subscription set used = used - 1
    where org_id = ${orgId} and subscription_id = ${id} and period_start_ms = ${periodMs} and used > 0`);

type Named = Pick<SubscriptionRow, "org_id" | "subscription_id">;

/** Those of all organisations whose period is over, the longest first; by the partial index on them. */
export const dueSubscriptions = (db: Queryable, now: number, limit: number): Promise<Named[]> =>
  db.all<Named>(sql`
    select org_id, subscription_id from exchange_subscription where state = 1 and period_end_ms <= ${now} order by period_end_ms limit ${limit}`);

/** Zero and empty stand for any. */
export type SubscriptionFilter = { readonly state: SubscriptionState; readonly listingId: string };

/** Newest first, backwards along the key; an organisation has few. */
export const listSubscriptions = (
  db: Queryable,
  orgId: string,
  { state, listingId }: SubscriptionFilter,
  after: Position | undefined,
  limit: number,
): Promise<SubscriptionRow[]> =>
  db.all<SubscriptionRow>(sql`
    select ${columns} from exchange_subscription where org_id = ${orgId}
      ${after ? sql`and subscription_id < ${after[0]!}` : sql``} ${state ? sql`and state + 0 = ${state}` : sql``}
      ${listingId ? sql`and listing_id || '' = ${listingId}` : sql``}
    order by subscription_id desc limit ${limit}`);

export const toSubscription = (row: SubscriptionRow): MessageInitShape<typeof SubscriptionSchema> => ({
  subscriptionId: row.subscription_id,
  orgId: row.org_id,
  listingId: row.listing_id,
  providerOrgId: row.provider_org_id,
  state: row.state,
  plan: planOf(row),
  periodStartTime: timestampFromMs(row.period_start_ms),
  periodEndTime: timestampFromMs(row.period_end_ms),
  usedRequests: BigInt(row.used),
  cancelAtPeriodEnd: row.cancel_at_end !== 0,
  payerAccountId: row.payer_id,
  createTime: timestampFromMs(row.create_ms),
});
