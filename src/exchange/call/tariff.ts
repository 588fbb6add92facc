/** By what a request is paid, as things stand. */

import { Charge } from "../../../gen/moltwire/bus/v1/receipt_pb.ts";
import type { Offer } from "../../../gen/moltwire/exchange/v1/listing_pb.ts";
import { SubscriptionState } from "../../../gen/moltwire/exchange/v1/subscription_pb.ts";
import type { Queryable, Tx } from "../../db/db.ts";
import { pricesOf } from "../listing/offer.ts";
import { type Cover, type Tariff, tariffOf } from "../listing/price.ts";
import { calendarStart } from "../subscription/period.ts";
import { findLive, planOf, type SubscriptionRow, takeIncluded } from "../subscription/store.ts";
import { freeUsed, takeFree } from "./call-store.ts";

/** Who asks for what. */
export type Asked = { readonly orgId: string; readonly listingId: string; readonly offer: Offer; readonly now: number };

/** A tariff, and what the request counts for: empty and 0 for nothing. */
export type Taken = { readonly tariff: Tariff; readonly subscriptionId: string; readonly periodMs: number };

/** Whether a subscription covers a request now. */
const isPaid = (row: SubscriptionRow | undefined, now: number): row is SubscriptionRow =>
  row?.state === SubscriptionState.ACTIVE && row.period_start_ms <= now && now < row.period_end_ms;

/** The subscription of an organisation to a listing whose period is paid for, if it has one. */
export async function paidSubscription(
  db: Queryable,
  { orgId, listingId, now }: Omit<Asked, "offer">,
): Promise<SubscriptionRow | undefined> {
  const row = await findLive(db, orgId, listingId);
  return isPaid(row, now) ? row : undefined;
}

async function look(db: Queryable, asked: Asked) {
  const subscription = await paidSubscription(db, asked);
  const { freeTier } = asked.offer.pricing!;
  const periodMs = freeTier ? calendarStart(freeTier.period, asked.now) : 0;
  const { orgId, listingId } = asked;
  const used = freeTier && !subscription ? await freeUsed(db, { orgId, listingId, periodMs }) : 0;
  const cover: Cover = {
    ...(subscription && {
      subscription: {
        included: BigInt(subscription.included),
        used: BigInt(subscription.used),
        overageMicros: planOf(subscription).overageMicros,
      },
    }),
    ...(freeTier && { free: { requests: BigInt(freeTier.requests), used: BigInt(used) } }),
  };
  return { subscription, periodMs, cover };
}

/** What it would be now; changes nothing. */
export async function peekTariff(db: Queryable, asked: Asked): Promise<Tariff> {
  const { cover } = await look(db, asked);
  return tariffOf(pricesOf(asked.offer.pricing!), cover);
}

/** What it is, with the free or included request used that pays for it. */
export async function takeTariff(tx: Tx, asked: Asked): Promise<Taken> {
  const { orgId, listingId, offer } = asked;
  const { subscription, periodMs, cover } = await look(tx, asked);
  const pricing = pricesOf(offer.pricing!);
  const tariff = tariffOf(pricing, cover);
  const counts = subscription
    ? { subscriptionId: subscription.subscription_id, periodMs: subscription.period_start_ms }
    : { subscriptionId: "", periodMs: 0 };
  if (tariff.charge === Charge.INCLUDED && !(await takeIncluded(tx, subscription!))) {
    // Another has just used the last one.
    const used = cover.subscription!.included;
    return { tariff: tariffOf(pricing, { subscription: { ...cover.subscription!, used } }), ...counts };
  }
  if (tariff.charge !== Charge.FREE) return { tariff, ...counts };
  const most = offer.pricing!.freeTier!.requests;
  return (await takeFree(tx, { orgId, listingId, periodMs }, most))
    ? { tariff, subscriptionId: "", periodMs }
    : { tariff: tariffOf(pricing, {}), ...counts };
}
