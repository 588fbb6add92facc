import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { BillingPeriod, type Listing, ListingOrder, ListingState } from "../gen/moltwire/exchange/v1/listing_pb.ts";
import { contract, echoEndpoint, value } from "./bus-fixtures/bus.ts";
import { httpAgent } from "./bus-fixtures/http-agent.ts";
import { credits } from "./exchange-fixtures/ledger.ts";
import { market, type OfferInit } from "./exchange-fixtures/listing.ts";
import { type Clients, dialects, fakeClock, type Org, refusal, start, unique, type World } from "./harness.ts";

const day = 86_400_000;
const { BEST, NEWEST, PRICE } = ListingOrder;
type Search = Parameters<Clients["catalog"]["searchListings"]>[0];

describe.each(dialects)("%s", (dialect) => {
  const clock = fakeClock();
  let world: World;
  let anybody: Clients;
  beforeAll(async () => {
    world = await start(dialect, { clock });
    anybody = world.as(undefined);
  });
  afterAll(() => world[Symbol.asyncDispose]());

  /** Publishes so many listings of an organisation under one contract. */
  async function published(org: Org, offers: readonly OfferInit[]): Promise<Listing[]> {
    const contractId = await contract(org);
    await org.agent({ capabilities: [contractId], endpoint: echoEndpoint });
    const made: Listing[] = [];
    for (const offer of offers) {
      const whole = { title: "Untitled", category: "misc", contractId, pricing: { requestMicros: 1n }, ...offer };
      made.push((await org.admin.catalog.publishListing({ offer: whole })).listing!);
    }
    return made;
  }
  const idsOf = (listings: readonly Listing[]) => listings.map(({ listingId }) => listingId);
  async function found(request: Search, by: Clients = anybody): Promise<string[]> {
    const ids: string[] = [];
    for (let pageToken = ""; ; ) {
      const page = await by.catalog.searchListings({ ...request, pageToken });
      ids.push(...idsOf(page.listings));
      pageToken = page.nextPageToken;
      if (!pageToken) return ids;
    }
  }

  test("a listing is published, found by anybody, offered anew with all versions kept, and taken out", async () => {
    const org = await world.org();
    const word = unique("w").replace("-", "");
    const contractId = await contract(org);
    const worker = await org.agent({ capabilities: [contractId], endpoint: echoEndpoint });
    const offer: OfferInit = {
      title: `Translation ${word}`,
      description: "Any text, into any language",
      category: "translation",
      tags: ["text", "any-language"],
      contractId,
      agentId: worker.agentId,
      exampleInput: value({ text: "hello", to: ["de"] }),
      exampleOutput: value("hallo"),
      pricing: {
        requestMicros: credits(1),
        thousandTokensMicros: 500n,
        maxTokens: 10_000n,
        freeTier: { requests: 3, period: BillingPeriod.DAY },
      },
      plans: [
        { planId: "daily", period: BillingPeriod.DAY, priceMicros: 50n, includedRequests: 10n, overageMicros: 7n },
      ],
      serviceLevel: { successRate: 0.99, p99: { seconds: 2n }, text: "answers in seconds" },
    };
    const { listing } = await org.admin.catalog.publishListing({ offer });
    expect(listing).toMatchObject({ orgId: org.orgId, version: 1n, state: ListingState.PUBLISHED, offer });
    expect(listing!.listingId).toMatch(/^lst_[0-9a-f]{32}$/);
    const { listingId } = listing!;
    const read = await anybody.catalog.getListing({ listingId });
    expect(read.listing).toEqual(listing);
    expect(read.reviews).toMatchObject({ mean: 0, count: 0n, byRating: [0n, 0n, 0n, 0n, 0n] });
    expect(read.measured).toMatchObject({ requests: 0n, completed: 0n, failed: 0n });
    expect([read.measured!.successRate, read.measured!.p50]).toEqual([undefined, undefined]);
    const [shown] = (await anybody.catalog.searchListings({ text: word })).listings;
    expect([shown!.listingId, shown!.offer!.title]).toEqual([listingId, offer.title]);
    expect(shown!.offer!.exampleInput).toBeUndefined();

    clock.advance(1_000);
    const dearer = { ...offer, title: `Better ${word}`, pricing: { requestMicros: credits(2) } };
    const stale = await refusal(org.admin.catalog.updateListing({ listingId, offer: dearer, ifVersion: 7n }));
    expect([stale.reason, stale.metadata.version]).toEqual(["FAILED_PRECONDITION", "1"]);
    const { listing: second } = await org.admin.catalog.updateListing({ listingId, offer: dearer, ifVersion: 1n });
    expect(second).toMatchObject({ version: 2n, offer: { title: `Better ${word}` } });
    expect((await anybody.catalog.getListing({ listingId, version: 1n })).listing).toEqual(listing);
    expect((await anybody.catalog.getListing({ listingId })).listing).toEqual(second);
    expect((await refusal(anybody.catalog.getListing({ listingId, version: 3n }))).reason).toBe("NOT_FOUND");
    expect(await found({ text: `translation ${word}` })).toEqual([listingId]);

    const { listing: gone } = await org.admin.catalog.unpublishListing({ listingId });
    expect(gone!.state).toBe(ListingState.UNPUBLISHED);
    await org.admin.catalog.unpublishListing({ listingId });
    expect(await found({ text: word })).toEqual([]);
    const { reason, error } = await refusal(anybody.catalog.getListing({ listingId }));
    const none = await refusal(anybody.catalog.getListing({ listingId: "lst_none" }));
    expect([reason, error.rawMessage]).toEqual([none.reason, none.error.rawMessage]);
    expect((await org.admin.catalog.getListing({ listingId })).listing!.state).toBe(ListingState.UNPUBLISHED);
    expect(await found({ mine: true }, org.admin)).toEqual([listingId]);
    await org.admin.catalog.updateListing({ listingId, offer });
    expect(await found({ text: word })).toEqual([listingId]);
  });

  test("prices below one, above what can be, and of tokens without a most are refused, and so is what is not there", async () => {
    const org = await world.org();
    const contractId = await contract(org);
    const good: OfferInit = { title: "t", category: "c", contractId, pricing: { requestMicros: 1n } };
    const refused = async (offer: OfferInit) => {
      const { reason, metadata } = await refusal(org.admin.catalog.publishListing({ offer: { ...good, ...offer } }));
      return [reason, metadata.field ?? metadata.resource];
    };
    const most = 1_000_000_000_000_000n;
    const plan = { planId: "p", period: BillingPeriod.DAY, priceMicros: 1n, includedRequests: 1n, overageMicros: 1n };
    const field = "offer.pricing.request_micros";
    expect(await refused({ pricing: { requestMicros: 0n } })).toEqual(["INVALID_REQUEST", field]);
    expect(await refused({ pricing: { requestMicros: -5n } })).toEqual(["INVALID_REQUEST", field]);
    expect(await refused({ pricing: { requestMicros: most + 1n } })).toEqual(["INVALID_REQUEST", field]);
    expect(await refused({ pricing: { requestMicros: 2n ** 63n - 1n } })).toEqual(["INVALID_REQUEST", field]);
    expect(await refused({ pricing: {} })).toEqual(["INVALID_REQUEST", "offer.pricing"]);
    expect(await refused({ pricing: { thousandTokensMicros: 1n } })).toEqual([
      "INVALID_REQUEST",
      "offer.pricing.max_tokens",
    ]);
    const overflow = { requestMicros: 1n, thousandTokensMicros: most, maxTokens: 1_000_000_000n };
    expect(await refused({ pricing: overflow })).toEqual(["INVALID_REQUEST", "offer.pricing"]);
    expect(await refused({ plans: [{ ...plan, priceMicros: 0n }] })).toEqual([
      "INVALID_REQUEST",
      "offer.plans[0].price_micros",
    ]);
    expect(await refused({ plans: [plan, plan] })).toEqual(["INVALID_REQUEST", "offer.plans"]);
    expect(await refused({ exampleInput: value("x".repeat(16_384)) })).toEqual([
      "INVALID_REQUEST",
      "offer.example_input",
    ]);
    expect(await refused({ contractId: "none" })).toEqual(["CONTRACT_NOT_FOUND", "offer.contract_id"]);
    expect(await refused({ contractVersion: "^9" })).toEqual(["CONTRACT_VERSION_NOT_FOUND", "offer.contract_version"]);
    expect(await refused({ agentId: "agt_none" })).toEqual(["NOT_FOUND", "agent"]);
    const foreign = await (await world.org()).agent();
    expect(await refused({ agentId: foreign.agentId })).toEqual(["NOT_FOUND", "agent"]);
    await org.admin.contracts.deprecateContract({ contractId, version: "1.0.0" });
    expect((await refused({ contractVersion: "1.0.0" }))[0]).toBe("CONTRACT_DEPRECATED");
    expect(await found({ mine: true }, org.admin)).toEqual([]);
  });

  test("a search finds by words, category, tags, price and organisation, whatever is asked for at once, page by page", async () => {
    const word = unique("q").replace("-", "");
    const org = await world.org();
    const listings = await published(
      org,
      Array.from({ length: 12 }, (_, n) => ({
        title: n % 2 ? `Plain ${n}` : `${word} ${n}`,
        description: `Ä thing called ${word}`,
        category: n < 6 ? `${word}-a` : `${word}-b`,
        tags: n % 3 ? ["odd-one"] : ["odd-one", "third"],
        pricing: { requestMicros: BigInt(100 - n) },
      })),
    );
    const ids = idsOf(listings);
    const at = (...numbers: number[]) => numbers.map((n) => ids[n]!);
    expect((await found({ text: word, pageSize: 5 })).toSorted()).toEqual(ids.toSorted());
    // Those with the word in the title first, and of equals the newest.
    expect(await found({ text: word, order: BEST, pageSize: 3 })).toEqual(at(10, 8, 6, 4, 2, 0, 11, 9, 7, 5, 3, 1));
    expect(await found({ text: `a THING ${word.slice(0, 6)}`, pageSize: 4 })).toHaveLength(12);
    expect(await found({ text: `${word} absent` })).toEqual([]);
    expect(await found({ category: `${word}-a`, order: NEWEST, pageSize: 4 })).toEqual(at(5, 4, 3, 2, 1, 0));
    expect(await found({ category: `${word}-b`, order: PRICE, pageSize: 4 })).toEqual(at(11, 10, 9, 8, 7, 6));
    expect(await found({ text: word, tags: ["third"], order: PRICE })).toEqual(at(9, 6, 3, 0));
    expect(await found({ text: word, tags: ["third", "odd-one"], order: PRICE })).toHaveLength(4);
    expect(await found({ text: word, tags: ["oddone"] })).toEqual([]);
    expect(await found({ text: word, maxPriceMicros: 91n, order: PRICE })).toEqual(at(11, 10, 9));
    expect(await found({ providerOrgId: org.orgId, order: NEWEST, pageSize: 7 })).toEqual(ids.toReversed());
    expect(await found({ providerOrgId: org.orgId, text: "plain", maxPriceMicros: 95n })).toHaveLength(4);
    expect(await found({ text: word, minRating: 1 })).toEqual([]);
    expect((await refusal(anybody.catalog.searchListings({ text: "..." }))).reason).toBe("INVALID_REQUEST");
    expect((await refusal(anybody.catalog.searchListings({ text: "a ".repeat(11) }))).reason).toBe("INVALID_REQUEST");
    expect((await refusal(anybody.catalog.searchListings({ mine: true }))).metadata.field).toBe("mine");
    const { nextPageToken } = await anybody.catalog.searchListings({ text: word, pageSize: 1 });
    const other = anybody.catalog.searchListings({ text: `${word}x`, pageToken: nextPageToken });
    expect((await refusal(other)).reason).toBe("INVALID_PAGE_TOKEN");
  });

  test("categories have as many listings as are published in them, whatever becomes of these at once", async () => {
    const org = await world.org();
    const [a, b] = [unique("cat-a"), unique("cat-b")];
    const listings = await published(
      org,
      Array.from({ length: 8 }, (_, n) => ({ category: n % 2 ? a : b })),
    );
    const counts = async () => {
      const all = new Map<string, bigint>();
      for (let pageToken = ""; ; ) {
        const page = await anybody.catalog.listCategories({ pageSize: 2, pageToken });
        for (const one of page.categories) all.set(one.category, one.listings);
        pageToken = page.nextPageToken;
        if (!pageToken) return [all.get(a), all.get(b)];
      }
    };
    expect(await counts()).toEqual([4n, 4n]);
    const swap = ({ listingId, offer }: Listing) =>
      org.admin.catalog.updateListing({ listingId, offer: { ...offer!, category: offer!.category === a ? b : a } });
    await Promise.all(listings.map(swap));
    expect(await counts()).toEqual([4n, 4n]);
    await Promise.all(
      listings
        .filter(({ offer }) => offer!.category === a)
        .map(({ listingId }) => org.admin.catalog.unpublishListing({ listingId })),
    );
    expect(await counts()).toEqual([4n, undefined]);
  });

  test("listings of an organisation that is disabled are not there", async () => {
    const category = unique("cat");
    const { seller, buyer, listingId, offer, buy } = await market(world, { offer: { category } });
    const listings = async () => {
      const { categories } = await anybody.catalog.listCategories({ pageSize: 250 });
      return categories.find((one) => one.category === category)?.listings;
    };
    expect(await listings()).toBe(1n);
    const { organization } = await world.operator.organizations.getOrganization({ orgId: seller.orgId });
    const disable = (disabled: boolean) =>
      world.operator.organizations.updateOrganization({
        orgId: organization!.orgId,
        change: { disabled },
        updateMask: { paths: ["disabled"] },
      });
    await disable(true);
    expect((await refusal(anybody.catalog.getListing({ listingId }))).reason).toBe("NOT_FOUND");
    expect((await refusal(buy())).reason).toBe("NOT_FOUND");
    expect(await found({ providerOrgId: seller.orgId }, buyer.admin)).toEqual([]);
    expect(await listings()).toBeUndefined();
    // What becomes of them meanwhile counts when they are there again.
    const { orgId } = seller;
    const { listing } = await world.operator.catalog.publishListing({ orgId, offer });
    await world.operator.catalog.publishListing({ orgId, offer });
    await world.operator.catalog.unpublishListing({ orgId, listingId: listing!.listingId });
    await disable(true);
    expect(await listings()).toBeUndefined();
    await disable(false);
    expect(await listings()).toBe(2n);
    await seller.admin.catalog.unpublishListing({
      listingId: (await world.operator.catalog.publishListing({ orgId, offer })).listing!.listingId,
    });
    expect(await listings()).toBe(2n);
    expect(await found({ providerOrgId: seller.orgId }, buyer.admin)).toContain(listingId);
  });

  test("what was measured is what real requests came to, of the last thirty days", async () => {
    await using agent = await httpAgent();
    const endpoint = { kind: { case: "http", value: { url: agent.url } } } as const;
    const { buy, listingId } = await market(world, { agent: { endpoint }, contract: { retries: 0 } });
    // Each takes as many milliseconds as its number says.
    agent.handle = ({ task }) => {
      const { ms, fails } = task.input as { ms: number; fails?: boolean };
      clock.advance(ms);
      return fails ? { wrong: "shape" } : { output: null };
    };
    for (let ms = 1; ms <= 50; ms++) await buy({ input: { ms: ms * 10 } });
    for (let n = 0; n < 3; n++) await buy({ input: { ms: 0, fails: true } }).catch(() => undefined);
    const { measured } = await anybody.catalog.getListing({ listingId });
    const { completed, failed, requests, successRate } = measured!;
    expect([completed, requests]).toEqual([50n, 50n + failed]);
    expect(successRate).toBeCloseTo(50 / (50 + Number(failed)), 10);
    expect(Number(failed)).toBeGreaterThan(0);
    const ms = ({ seconds, nanos }: { seconds: bigint; nanos: number }) => Number(seconds) * 1_000 + nanos / 1e6;
    expect([ms(measured!.p50!), ms(measured!.p99!)]).toEqual([250, 500]);
    clock.advance(31 * day);
    const later = await anybody.catalog.getListing({ listingId });
    expect(later.measured).toMatchObject({ requests: 0n });
    expect([later.measured!.successRate, later.measured!.p99]).toEqual([undefined, undefined]);
  });

  test("who has bought it reviews it once, again and again, and the provider answers", async () => {
    const { seller, buyer, asker, listingId, buy } = await market(world);
    const review = (by: Clients, rating: number, text = "") => by.reviews.createReview({ listingId, rating, text });
    const early = await refusal(review(asker.as, 5));
    expect([early.reason, early.metadata.listing_id]).toEqual(["FAILED_PRECONDITION", listingId]);
    await buy();
    const { review: first } = await review(asker.as, 4, "good");
    expect(first).toMatchObject({ listingId, reviewerOrgId: buyer.orgId, rating: 4, text: "good", response: "" });
    expect((await refusal(review(asker.as, 6))).reason).toBe("INVALID_REQUEST");
    expect((await refusal(review(asker.as, 0))).reason).toBe("INVALID_REQUEST");
    expect((await refusal(review(seller.admin, 5))).reason).toBe("FAILED_PRECONDITION");
    const respond = (by: Org, text: string) => by.admin.reviews.respondToReview({ reviewId: first!.reviewId, text });
    expect((await refusal(respond(buyer, "no"))).reason).toBe("NOT_FOUND");
    expect((await respond(seller, "thank you")).review!.response).toBe("thank you");
    clock.advance(1_000);
    const { review: second } = await review(buyer.admin, 2, "not so good");
    expect(second).toMatchObject({
      reviewId: first!.reviewId,
      rating: 2,
      response: "thank you",
      createTime: first!.createTime,
    });
    expect(second!.updateTime).not.toEqual(first!.updateTime);

    const others = await Promise.all([1, 2, 3].map(async () => world.org()));
    for (const other of others) {
      const { task } = await other.admin.catalog.invokeListing({ listingId, input: value({}) });
      expect(task!.receipt).toBeDefined();
    }
    await Promise.all(others.map((other, n) => review(other.admin, 3 + n)));
    const { reviews, listing } = await anybody.catalog.getListing({ listingId });
    expect(reviews).toMatchObject({ mean: 3.5, count: 4n, byRating: [0n, 1n, 1n, 1n, 1n] });
    expect([listing!.ratingMean, listing!.ratingCount]).toEqual([3.5, 4n]);
    const pages = [];
    for (let pageToken = ""; ; ) {
      const page = await asker.as.reviews.listReviews({ listingId, pageSize: 3, pageToken });
      pages.push(...page.reviews.map(({ rating }) => rating));
      pageToken = page.nextPageToken;
      if (!pageToken) break;
    }
    expect(pages.toSorted()).toEqual([2, 3, 4, 5]);
    expect(await found({ providerOrgId: seller.orgId, minRating: 3.5 })).toEqual([listingId]);
    expect(await found({ providerOrgId: seller.orgId, minRating: 3.6 })).toEqual([]);
    // Of listings with the same words who is rated well comes before who is not rated, and that before who is rated badly, in whatever order they were published.
    const word = unique("r").replace("-", "");
    const sell = () => market(world, { offer: { title: `${word} here`, category: word } });
    const [bad, good, none] = [await sell(), await sell(), await sell()];
    for (const [at, rating] of [
      [bad, 1],
      [good, 5],
    ] as const) {
      await at.buy();
      await at.asker.as.reviews.createReview({ listingId: at.listingId, rating });
    }
    const ranked = [good.listingId, none.listingId, bad.listingId];
    for (const by of [{ text: word }, { category: word }]) expect(await found({ ...by, order: BEST })).toEqual(ranked);
    for (const rating of [5, 1])
      await (rating === 5 ? bad : good).asker.as.reviews.createReview({
        listingId: (rating === 5 ? bad : good).listingId,
        rating,
      });
    expect(await found({ text: word, order: BEST })).toEqual(ranked.toReversed());
    expect((await refusal(asker.as.reviews.listReviews({ listingId: "lst_none" }))).reason).toBe("NOT_FOUND");
    const audited = (await buyer.admin.admin.listAuditEvents({})).auditEvents.map(({ method }) => method);
    expect(audited.filter((one) => one.endsWith("ReviewService/CreateReview"))).toHaveLength(2);
  });

  test("another organisation changes nothing of a listing, and learns nothing of one that is not published", async () => {
    const { buyer, seller, listingId, offer } = await market(world);
    await seller.admin.catalog.unpublishListing({ listingId });
    const { catalog, reviews, subscriptions } = buyer.admin;
    for (const call of [
      () => catalog.updateListing({ listingId, offer }),
      () => catalog.unpublishListing({ listingId }),
      () => catalog.getListing({ listingId }),
      () => catalog.invokeListing({ listingId }),
      () => reviews.createReview({ listingId, rating: 1 }),
      () => reviews.listReviews({ listingId }),
      () => subscriptions.subscribe({ listingId, planId: "p" }),
    ]) {
      const { reason, metadata } = await refusal(call());
      const { trace_id: _, ...rest } = metadata;
      expect([reason, rest]).toEqual(["NOT_FOUND", { resource: "listing", id: listingId }]);
    }
    expect((await refusal(buyer.admin.catalog.publishListing({ orgId: seller.orgId, offer }))).reason).toBe(
      "NOT_FOUND",
    );
    const { asker } = await market(world);
    expect((await refusal(asker.as.catalog.publishListing({ offer }))).reason).toBe("ROLE_REQUIRED");
    expect((await refusal(anybody.catalog.invokeListing({ listingId }))).reason).toBe("KEY_MISSING");
  });
});
