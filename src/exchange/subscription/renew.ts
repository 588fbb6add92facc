/** Periods of subscriptions that are over: the next is paid for, or the subscription is paused, or has ended. */
import { ListingState } from "../../../gen/moltwire/exchange/v1/listing_pb.ts";
import { SubscriptionState } from "../../../gen/moltwire/exchange/v1/subscription_pb.ts";
import type { App } from "../../app.ts";
import type { Queryable, Tx } from "../../db/db.ts";
import { takeLease } from "../../lease.ts";
import { emit } from "../../ops/outbox.ts";
import { availableOf, unlessRaced } from "../ledger/afford.ts";
import { findListing, isOpen } from "../listing/store.ts";
import { payPeriod } from "./pay-period.ts";
import { periodEnd } from "./period.ts";
import { dueSubscriptions, lockSubscription, planOf, type SubscriptionRow, updateSubscription } from "./store.ts";

/** How often what is due is looked for. A request that comes before renews its own. */
export const renewMs = 1_000;

const batch = 100;
const leaseMs = 30_000;

type Named = Pick<SubscriptionRow, "org_id" | "subscription_id">;

/** Renews what is due. One server at a time, so that replicas do not do it all at once; each period is paid for once all the same. */
export async function renewSubscriptions(app: App): Promise<void> {
  // Not the server's own name, by whose leases others tell whether it lives.
  const owner = `subscriptions:${app.serverId}`;
  while (!app.stopping.aborted) {
    const due = await dueSubscriptions(app.db.query, app.clock.now(), batch);
    if (due.length === 0) return;
    const now = app.clock.now();
    if (!(await app.db.tx((tx) => takeLease(tx, "subscription renewal", owner, now, leaseMs)))) return;
    // One that cannot be renewed now must not keep the others waiting.
    for (const one of due)
      await renewOne(app, one).catch((error: unknown) =>
        app.log.error({ err: error, subscription_id: one.subscription_id }, "a subscription could not be renewed"),
      );
    if (due.length < batch) return;
  }
}

/** Nothing, if its period is not over, or somebody else has renewed it. */
export const renewOne = (app: App, one: Named): Promise<void> =>
  unlessRaced(() => app.db.tx((tx) => renew(tx, app, one, app.clock.now())));

async function renew(tx: Tx, app: App, { org_id, subscription_id }: Named, now: number): Promise<void> {
  const row = await lockSubscription(tx, org_id, subscription_id);
  if (row?.state !== SubscriptionState.ACTIVE || row.period_end_ms > now) return;
  if (row.cancel_at_end || !(await isOffered(tx, row))) {
    await updateSubscription(tx, { ...row, state: SubscriptionState.ENDED });
    return;
  }
  const { priceMicros } = planOf(row);
  const available = await availableOf(tx, { orgId: org_id, accountId: row.payer_id }, now);
  if (available < priceMicros) return pause(tx, app, row, available, now);
  const next = { ...row, ...nextPeriod(row, now), used: 0, payments: row.payments + 1 };
  await updateSubscription(tx, next);
  await payPeriod(tx, app, next, now);
}

async function isOffered(db: Queryable, { listing_id }: SubscriptionRow): Promise<boolean> {
  const listing = await findListing(db, listing_id);
  return listing?.state === ListingState.PUBLISHED && (await isOpen(db, listing.org_id));
}

/** The period after the one that is over; after a longer silence one that begins now, so that nobody pays for what could not be used. */
export function nextPeriod(
  row: Pick<SubscriptionRow, "plan" | "anchor_ms" | "periods" | "period_end_ms">,
  now: number,
): Pick<SubscriptionRow, "anchor_ms" | "periods" | "period_start_ms" | "period_end_ms"> {
  const { period } = planOf(row);
  const periods = row.periods + 1;
  const endMs = periodEnd(period, row.anchor_ms, periods);
  if (endMs > now)
    return { anchor_ms: row.anchor_ms, periods, period_start_ms: row.period_end_ms, period_end_ms: endMs };
  return { anchor_ms: now, periods: 1, period_start_ms: now, period_end_ms: periodEnd(period, now, 1) };
}

async function pause(tx: Tx, app: App, row: SubscriptionRow, available: bigint, now: number): Promise<void> {
  await updateSubscription(tx, { ...row, state: SubscriptionState.PAUSED });
  const { planId, priceMicros } = planOf(row);
  await emit(tx, app, {
    ...{ orgId: row.org_id, type: "subscription.paused", agentId: "", timeMs: now, traceId: app.ids.trace() },
    payload: {
      subscription_id: row.subscription_id,
      listing_id: row.listing_id,
      provider_org_id: row.provider_org_id,
      plan_id: planId,
      price_micros: String(priceMicros),
      available_micros: String(available),
    },
  });
}
