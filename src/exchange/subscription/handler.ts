import type { ServiceImpl } from "@connectrpc/connect";
import { ListingState } from "../../../gen/moltwire/exchange/v1/listing_pb.ts";
import { SubscriptionState } from "../../../gen/moltwire/exchange/v1/subscription_pb.ts";
import type { SubscriptionService } from "../../../gen/moltwire/exchange/v1/subscription_service_pb.ts";
import type { App } from "../../app.ts";
import type { Queryable } from "../../db/db.ts";
import { badField, Fault, notFound } from "../../errors.ts";
import { command } from "../../rpc/command.ts";
import { readPage } from "../../rpc/page.ts";
import { query } from "../../rpc/query.ts";
import { auditListingGrant, listingGrant } from "../call/grant.ts";
import { walletOf } from "../ledger/account.ts";
import { offerOf } from "../listing/offer.ts";
import { findListing, isOpen, type ListingRow } from "../listing/store.ts";
import { payPeriod } from "./pay-period.ts";
import { periodEnd } from "./period.ts";
import {
  insertSubscription,
  listSubscriptions,
  lockLive,
  lockSubscription,
  planText,
  type SubscriptionRow,
  toSubscription,
  updateSubscription,
} from "./store.ts";

const { ACTIVE, PAUSED, ENDED } = SubscriptionState;

export const subscriptionHandler = (app: App): ServiceImpl<typeof SubscriptionService> => ({
  subscribe: command(app, async (req, { tx, orgId, now, trace }) => {
    const listing = await offered(tx, orgId, req.listingId);
    const { plans } = offerOf(listing.offer);
    const plan = plans.find(({ planId }) => planId === req.planId);
    if (!plan) {
      const there = plans.map(({ planId }) => planId).join(", ") || "none";
      throw badField("plan_id", `the listing has no plan ${req.planId}; there are: ${there}`);
    }
    const granted = await listingGrant(tx, app, listing, orgId, now);
    if (granted instanceof Fault) throw granted;
    if (granted.isNew) await auditListingGrant(tx, app, granted.grant, { now, trace });
    const before = await lockLive(tx, orgId, listing.listing_id);
    if (before?.state === ACTIVE) throw isThere(before.subscription_id);
    const begun = {
      ...{ state: ACTIVE, plan: planText(plan), included: Number(plan.includedRequests), used: 0, cancel_at_end: 0 },
      ...{ anchor_ms: now, periods: 1, period_start_ms: now, period_end_ms: periodEnd(plan.period, now, 1) },
    };
    const row: SubscriptionRow = before
      ? { ...before, ...begun, payments: before.payments + 1 }
      : {
          ...{ org_id: orgId, subscription_id: app.ids.next("sub"), provider_org_id: listing.org_id },
          ...{ listing_id: listing.listing_id, payer_id: walletOf(orgId).accountId },
          ...begun,
          ...{ payments: 1, create_ms: now },
        };
    if (before) await updateSubscription(tx, row);
    else if ((await insertSubscription(tx, row)) === 0) throw isThere("");
    await payPeriod(tx, app, row, now);
    return { subscription: toSubscription(row) };
  }),

  listSubscriptions: query(app, async (req, { db, orgId }) => {
    const scope = ["ListSubscriptions", orgId, String(req.state), req.listingId];
    const page = await readPage(
      app.cursors,
      scope,
      req,
      (after, limit) => listSubscriptions(db, orgId, req, after, limit),
      (row) => [row.subscription_id],
    );
    return { subscriptions: page.rows.map(toSubscription), nextPageToken: page.nextPageToken };
  }),

  cancelSubscription: command(app, async (req, { tx, orgId }) => {
    const before = await lockSubscription(tx, orgId, req.subscriptionId);
    if (!before) throw notFound("subscription", req.subscriptionId);
    if (before.state === ENDED)
      throw new Fault("FAILED_PRECONDITION", "the subscription has ended already", { state: "ENDED" });
    const row = before.state === PAUSED ? { ...before, state: ENDED } : { ...before, cancel_at_end: 1 };
    await updateSubscription(tx, row);
    return { subscription: toSubscription(row) };
  }),
});

/** A published listing of another organisation that works. */
async function offered(db: Queryable, orgId: string, listingId: string): Promise<ListingRow> {
  const row = await findListing(db, listingId);
  const isOwn = row?.org_id === orgId;
  if (!row || (!isOwn && (row.state !== ListingState.PUBLISHED || !(await isOpen(db, row.org_id)))))
    throw notFound("listing", listingId);
  if (isOwn) throw badField("listing_id", "it is your organisation's own: what it asks itself it does not pay for");
  return row;
}

const isThere = (id: string): Fault =>
  new Fault(
    "ALREADY_EXISTS",
    "the organisation has a subscription to this listing: cancel it first, or wait for its end",
    {
      resource: "subscription",
      id,
    },
  );
