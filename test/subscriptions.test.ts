import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { Charge } from "../gen/moltwire/bus/v1/receipt_pb.ts";
import { TransactionKind } from "../gen/moltwire/exchange/v1/ledger_pb.ts";
import { BillingPeriod } from "../gen/moltwire/exchange/v1/listing_pb.ts";
import { type Subscription, SubscriptionState } from "../gen/moltwire/exchange/v1/subscription_pb.ts";
import type { Adapter, Assignment } from "../src/server.ts";
import { stateOf } from "./bus-fixtures/bus.ts";
import { credits, proofOf } from "./exchange-fixtures/ledger.ts";
import { leave, type Market, market, type OfferInit, walletOf } from "./exchange-fixtures/listing.ts";
import { dialects, eventually, fakeClock, type Org, refusal, start, type World } from "./harness.ts";

const day = 86_400_000;
const { ACTIVE, PAUSED, ENDED } = SubscriptionState;
const { DAY, MONTH } = BillingPeriod;
const plan = {
  ...{ planId: "daily", period: DAY, priceMicros: credits(50) },
  ...{ includedRequests: 10n, overageMicros: credits(3) },
};
const scripted = { kind: { case: "custom", value: { adapter: "scripted", config: {} } } } as const;

describe.each(dialects)("%s", (dialect) => {
  const clock = fakeClock();
  let world: World;
  let work: (assignment: Assignment) => ReturnType<Adapter>;
  beforeAll(async () => {
    const adapters = { scripted: (_: unknown, assignment: Assignment) => work(assignment) };
    world = await start(dialect, { clock, adapters });
  });
  afterAll(() => world[Symbol.asyncDispose]());

  const selling = (offer: OfferInit = {}, init: Parameters<typeof market>[1] = {}) =>
    market(world, { ...init, offer: { plans: [plan], ...offer } });
  const subscribe = async ({ buyer, listingId }: Market, planId = "daily") =>
    (await buyer.admin.subscriptions.subscribe({ listingId, planId })).subscription!;
  const now = async (org: Org): Promise<Subscription> =>
    (await org.admin.subscriptions.listSubscriptions({})).subscriptions[0]!;
  /** Advances until the subscription is so. */
  const until = (org: Org, is: (one: Subscription) => boolean, step = 1_000) =>
    eventually(async () => {
      clock.advance(step);
      const one = await now(org);
      return is(one) && one;
    });

  test("50 a day with 10 requests: paid at once, ten for nothing more, then overage, and fees of both", async () => {
    const at = await selling();
    const subscription = await subscribe(at);
    expect(subscription).toMatchObject({ state: ACTIVE, plan, usedRequests: 0n, providerOrgId: at.seller.orgId });
    expect(await walletOf(at.buyer)).toEqual([credits(950), 0n]);
    expect(await walletOf(at.seller)).toEqual([credits(1_045), 0n]);
    const tasks = await Promise.all(Array.from({ length: 14 }, () => at.buy()));
    const charges = tasks.map(({ receipt }) => receipt!.charge);
    expect(charges.filter((one) => one === Charge.INCLUDED)).toHaveLength(10);
    expect(charges.filter((one) => one === Charge.OVERAGE)).toHaveLength(4);
    expect(tasks.every(({ receipt }) => receipt!.subscriptionId === subscription.subscriptionId)).toBe(true);
    expect(await walletOf(at.buyer)).toEqual([credits(938), 0n]);
    expect(await walletOf(at.seller)).toEqual([credits(1_045 + 12 * 0.9), 0n]);
    expect((await now(at.buyer)).usedRequests).toBe(10n);
    const { total } = await at.seller.admin.billing.getEarnings({});
    expect(total).toMatchObject({
      ...{ requestsMicros: credits(12), subscriptionsMicros: credits(50), feesMicros: credits(6.2) },
      ...{ netMicros: credits(55.8), completedRequests: 14n },
    });
    const again = await refusal(subscribe(at));
    expect([again.code, again.reason]).toEqual(["AlreadyExists", "ALREADY_EXISTS"]);
    const auditedOf = async ({ admin }: Org) =>
      (await admin.admin.listAuditEvents({})).auditEvents.map(({ method }) => method.split(".").at(-1));
    const audited = await auditedOf(at.buyer);
    // The grant under which the requests run, which nobody made by a call.
    for (const once of ["SubscriptionService/Subscribe", "GrantService/AcceptGrant"])
      expect(audited.filter((one) => one === once)).toHaveLength(1);
    expect((await auditedOf(at.seller)).filter((one) => one === "GrantService/CreateGrant")).toHaveLength(1);
  });

  test("too few credits, no such plan, one's own listing: nothing is paid", async () => {
    const at = await selling();
    expect((await refusal(subscribe(at, "weekly"))).metadata.field).toBe("plan_id");
    const own = at.seller.admin.subscriptions.subscribe({ listingId: at.listingId, planId: "daily" });
    expect((await refusal(own)).metadata.field).toBe("listing_id");
    await leave(at.buyer, credits(49));
    expect((await refusal(subscribe(at))).reason).toBe("INSUFFICIENT_CREDITS");
    expect((await at.buyer.admin.subscriptions.listSubscriptions({})).subscriptions).toEqual([]);
    expect(await walletOf(at.buyer)).toEqual([credits(49), 0n]);
    const agents = at.asker.as.subscriptions.subscribe({ listingId: at.listingId, planId: "daily" });
    expect((await refusal(agents)).reason).toBe("ROLE_REQUIRED");
  });

  test("of concurrent subscriptions to one listing one is made and paid", async () => {
    const at = await selling();
    const made = await Promise.allSettled(Array.from({ length: 8 }, () => subscribe(at)));
    expect(made.filter(({ status }) => status === "fulfilled")).toHaveLength(1);
    expect(await walletOf(at.buyer)).toEqual([credits(950), 0n]);
  });

  test("an included request that fails is given back", async () => {
    const at = await selling({}, { agent: { endpoint: scripted } });
    await subscribe(at);
    work = async () => {
      throw new Error("it broke");
    };
    expect(stateOf(await at.buy())).toBe("FAILED");
    expect((await now(at.buyer)).usedRequests).toBe(0n);
    work = async () => ({ output: null, usage: { inputTokens: 0, outputTokens: 0, model: "" } });
    await at.buy();
    expect((await now(at.buyer)).usedRequests).toBe(1n);
  });

  test("at the end of a period the next one is paid once, at the price that was subscribed to, with new included requests", async () => {
    const at = await selling();
    const { periodEndTime } = await subscribe(at);
    await at.buy();
    await at.change({ plans: [{ ...plan, priceMicros: credits(500), includedRequests: 1n }] });
    clock.advance(day - 5_000);
    expect((await now(at.buyer)).periodEndTime).toEqual(periodEndTime);
    const renewed = await until(at.buyer, ({ usedRequests }) => usedRequests === 0n);
    expect(renewed).toMatchObject({ state: ACTIVE, plan, periodStartTime: periodEndTime });
    expect(await walletOf(at.buyer)).toEqual([credits(900), 0n]);
    for (let n = 0; n < 20; n++) clock.advance(1_000);
    const paid = await at.buyer.admin.billing.listTransactions({ kind: TransactionKind.SUBSCRIPTION });
    expect(paid.transactions.map(({ amountMicros }) => amountMicros)).toEqual([-credits(50), -credits(50)]);
    expect((await at.buy()).receipt!.charge).toBe(Charge.INCLUDED);
  });

  test("a request that comes before the sweep renews the subscription itself, and a month has its length", async () => {
    const at = await selling({ plans: [{ ...plan, period: MONTH }] });
    const { periodStartTime, periodEndTime } = await subscribe(at);
    const days = Number(periodEndTime!.seconds - periodStartTime!.seconds) / 86_400;
    expect([28, 29, 30, 31]).toContain(days);
    clock.advance(days * day);
    const [one, other] = await Promise.all([at.buy(), at.buy()]);
    expect([one.receipt!.charge, other.receipt!.charge]).toEqual([Charge.INCLUDED, Charge.INCLUDED]);
    expect(await walletOf(at.buyer)).toEqual([credits(900), 0n]);
  });

  test("with too few credits for the next period it is paused, with an event and nothing for free, until it is paid again", async () => {
    const at = await selling();
    await leave(at.buyer, credits(60));
    const { subscriptionId } = await subscribe(at);
    clock.advance(day);
    const paused = await until(at.buyer, ({ state }) => state === PAUSED);
    expect(paused.subscriptionId).toBe(subscriptionId);
    expect(await walletOf(at.buyer)).toEqual([credits(10), 0n]);
    await world.settled();
    const { events } = await at.buyer.admin.events.listEvents({});
    const told = events.filter(({ type }) => type === "subscription.paused");
    expect(told.map(({ payload }) => payload)).toEqual([
      {
        ...{ subscription_id: subscriptionId, listing_id: at.listingId, provider_org_id: at.seller.orgId },
        ...{ plan_id: "daily", price_micros: "50000000", available_micros: "10000000" },
      },
    ]);
    expect((await at.buy()).receipt).toMatchObject({ charge: Charge.PRICED, amountMicros: credits(5) });
    expect((await refusal(subscribe(at))).reason).toBe("INSUFFICIENT_CREDITS");
    await world.operator.billing.topUp({ orgId: at.buyer.orgId, amountMicros: credits(100) });
    const back = await subscribe(at);
    expect(back).toMatchObject({ subscriptionId, state: ACTIVE, usedRequests: 0n });
    expect(await walletOf(at.buyer)).toEqual([credits(55), 0n]);
    expect((await at.buy()).receipt!.charge).toBe(Charge.INCLUDED);
  });

  test("one that is canceled goes on until its period is over, nothing is paid back, and then it has ended", async () => {
    const at = await selling();
    const { subscriptionId } = await subscribe(at);
    const cancel = (org: Org) => org.admin.subscriptions.cancelSubscription({ subscriptionId });
    expect((await refusal(cancel(at.seller))).reason).toBe("NOT_FOUND");
    for (let n = 0; n < 2; n++)
      expect((await cancel(at.buyer)).subscription).toMatchObject({ state: ACTIVE, cancelAtPeriodEnd: true });
    expect((await at.buy()).receipt!.charge).toBe(Charge.INCLUDED);
    clock.advance(day);
    await until(at.buyer, ({ state }) => state === ENDED);
    expect(await walletOf(at.buyer)).toEqual([credits(950), 0n]);
    expect((await refusal(cancel(at.buyer))).reason).toBe("FAILED_PRECONDITION");
    expect((await at.buy()).receipt!.charge).toBe(Charge.PRICED);
    const { subscriptions } = await at.buyer.admin.subscriptions.listSubscriptions({ state: ENDED });
    expect(subscriptions).toHaveLength(1);
    expect((await at.buyer.admin.subscriptions.listSubscriptions({ state: ACTIVE })).subscriptions).toEqual([]);
    await subscribe(at);
    const page = await at.buyer.admin.subscriptions.listSubscriptions({ pageSize: 1 });
    const next = await at.buyer.admin.subscriptions.listSubscriptions({ pageSize: 1, pageToken: page.nextPageToken });
    expect([page.subscriptions[0]!.state, next.subscriptions[0]!.state, next.nextPageToken]).toEqual([
      ACTIVE,
      ENDED,
      "",
    ]);
    expect((await at.seller.admin.subscriptions.listSubscriptions({})).subscriptions).toEqual([]);
  });

  test("who has paid for a period of a listing that is taken out uses it to the end, and does not pay for another", async () => {
    const at = await selling();
    await subscribe(at);
    await at.seller.admin.catalog.unpublishListing({ listingId: at.listingId });
    expect((await at.buy()).receipt!.charge).toBe(Charge.INCLUDED);
    clock.advance(day);
    await until(at.buyer, ({ state }) => state === ENDED);
    expect((await refusal(at.buy())).reason).toBe("NOT_FOUND");
    expect(await walletOf(at.buyer)).toEqual([credits(950), 0n]);
    expect((await proofOf(world.operator)).faults).toEqual([]);
  });

  test("a server that was away for a week does not charge for the days that nobody could use", async () => {
    const at = await selling();
    await subscribe(at);
    clock.advance(7 * day + 3_600_000);
    const renewed = await until(at.buyer, ({ periodEndTime }) => Number(periodEndTime!.seconds) * 1_000 > clock.now());
    expect(Number(renewed.periodEndTime!.seconds - renewed.periodStartTime!.seconds)).toBe(86_400);
    const paid = await at.buyer.admin.billing.listTransactions({ kind: TransactionKind.SUBSCRIPTION });
    expect(paid.transactions.length).toBeLessThanOrEqual(3);
  });
});
