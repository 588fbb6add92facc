import { createHash } from "node:crypto";
import type { ServiceImpl } from "@connectrpc/connect";
import { Role } from "../../../gen/moltwire/api/v1/access_pb.ts";
import type { CatalogService, SearchListingsRequest } from "../../../gen/moltwire/exchange/v1/catalog_service_pb.ts";
import { ListingOrder, ListingState } from "../../../gen/moltwire/exchange/v1/listing_pb.ts";
import type { App } from "../../app.ts";
import type { Dispatcher } from "../../bus/dispatch.ts";
import type { Queryable } from "../../db/db.ts";
import { maxSearchWords, wordsOf } from "../../directory/words.ts";
import { badField, Fault, notFound } from "../../errors.ts";
import { lockOrganization, type OrganizationRow } from "../../federation/organization-store.ts";
import { quotaExceeded } from "../../federation/quota.ts";
import type { Caller } from "../../rpc/caller.ts";
import { command } from "../../rpc/command.ts";
import { defaultPageSize, readPage } from "../../rpc/page.ts";
import { type Query, query } from "../../rpc/query.ts";
import { invokeListing } from "../call/invoke.ts";
import { rankOf, reviewSummary } from "../review/rating.ts";
import { measured } from "./measure.ts";
import { checkOffer, offerOf, offerText } from "./offer.ts";
import { fewListings, type ListingFilter, searchListings } from "./search-store.ts";
import {
  countListings,
  enterCategory,
  findListing,
  findOffer,
  insertListing,
  insertOffer,
  isOpen,
  type ListingRow,
  leaveCategory,
  listCategories,
  lockListing,
  markUnpublished,
  toListed,
  toListing,
  updateOffer,
} from "./store.ts";
import { indexOf } from "./words.ts";

const { PUBLISHED, UNPUBLISHED } = ListingState;
const maxVersions = 10_000;

export const catalogHandler = (app: App, dispatcher: Dispatcher): ServiceImpl<typeof CatalogService> => ({
  publishListing: command(app, async (req, { tx, orgId, now }) => {
    const offer = req.offer!;
    await checkOffer(tx, orgId, offer);
    // Held, so that its listings are counted one after another.
    const counts = isCounted(await lockOrganization(tx, orgId));
    if ((await countListings(tx, orgId, fewListings)) >= fewListings)
      throw quotaExceeded("listings", fewListings, `an organisation has at most ${fewListings} listings: update one`);
    const made = { org_id: orgId, listing_id: app.ids.next("lst"), offer: offerText(offer) };
    const state = PUBLISHED;
    await insertListing(tx, { ...made, ...indexOf(offer), state, rank_milli: rankOf(0, 0), create_ms: now });
    await insertOffer(tx, { ...made, version: 1, update_ms: now });
    if (counts) await enterCategory(tx, offer.category);
    return { listing: toListing((await findListing(tx, made.listing_id))!) };
  }),

  updateListing: command(app, async (req, { tx, orgId, now }) => {
    const counts = isCounted(await lockOrganization(tx, orgId));
    const before = own(await lockListing(tx, req.listingId), orgId, req.listingId);
    checkVersion(req.ifVersion, before.version);
    const offer = req.offer!;
    const { contractId } = offerOf(before.offer);
    if (offer.contractId !== contractId)
      throw badField(
        "offer.contract_id",
        `is ${contractId} and stays so: publish another listing for another contract`,
      );
    if (before.version >= maxVersions)
      throw quotaExceeded("listing_versions", maxVersions, `a listing has at most ${maxVersions} versions`);
    await checkOffer(tx, orgId, offer);
    const change = { state: PUBLISHED, version: before.version + 1, offer: offerText(offer), update_ms: now };
    const row: ListingRow = { ...before, ...change };
    await updateOffer(tx, { ...row, ...indexOf(offer) });
    await insertOffer(tx, row);
    const left = before.state === PUBLISHED ? before.category : undefined;
    if (counts && left !== offer.category) {
      // In one order, as others may move the other way.
      if (left !== undefined && left < offer.category) await leaveCategory(tx, left);
      await enterCategory(tx, offer.category);
      if (left !== undefined && left > offer.category) await leaveCategory(tx, left);
    }
    return { listing: toListing(row) };
  }),

  unpublishListing: command(app, async (req, { tx, orgId }) => {
    const counts = isCounted(await lockOrganization(tx, orgId));
    const before = own(await lockListing(tx, req.listingId), orgId, req.listingId);
    if (before.state === PUBLISHED) {
      await markUnpublished(tx, before.listing_id, "");
      if (counts) await leaveCategory(tx, before.category);
    }
    return { listing: toListing({ ...before, state: UNPUBLISHED }) };
  }),

  getListing: query(app, async (req, { db, caller, now }) => {
    const row = await visibleListing(db, caller, req.listingId);
    const version = Number(req.version) || row.version;
    const made = version === row.version ? undefined : await findOffer(db, row, version);
    if (version !== row.version && !made) throw notFound("listing version", `${req.listingId}@${version}`);
    const listing = made
      ? toListing(row, { version, offer: offerOf(made.offer), madeMs: made.create_ms })
      : toListing(row);
    return { listing, reviews: reviewSummary(row), measured: await measured(db, row, now) };
  }),

  searchListings: query(app, (req, given) => search(app, req, given)),

  listCategories: query(app, async (req, { db }) => {
    const page = await readPage(
      app.cursors,
      ["ListCategories"],
      req,
      (after, limit) => listCategories(db, String(after?.[0] ?? ""), limit),
      ({ category }) => [category],
    );
    const categories = page.rows.map(({ category, listings }) => ({ category, listings: BigInt(listings) }));
    return { categories, nextPageToken: page.nextPageToken };
  }),

  invokeListing: (req, context) => invokeListing(app, dispatcher, req, context),
});

/** Whether listings of an organisation count in their categories. It is held, as who disables it holds it. */
const isCounted = (row: OrganizationRow | undefined): boolean => row?.disabled === 0;

/** Refuses a lost update. */
function checkVersion(ifVersion: bigint, version: number): void {
  if (ifVersion === 0n || ifVersion === BigInt(version)) return;
  const message = `it was changed meanwhile: the version is ${version}, not ${ifVersion}`;
  throw new Fault("FAILED_PRECONDITION", message, { field: "if_version", version: String(version) });
}

/** NOT_FOUND for another organisation's. */
function own(row: ListingRow | undefined, orgId: string, listingId: string): ListingRow {
  if (row?.org_id !== orgId) throw notFound("listing", listingId);
  return row;
}

/** A listing that the caller may look at: a published one of an organisation that works, or one of its own. */
export async function visibleListing(
  db: Queryable,
  caller: Pick<Caller, "orgId" | "role">,
  listingId: string,
): Promise<ListingRow> {
  const row = await findListing(db, listingId);
  if (!row) throw notFound("listing", listingId);
  if (row.org_id === caller.orgId || caller.role === Role.OPERATOR) return row;
  if (row.state !== PUBLISHED || !(await isOpen(db, row.org_id))) throw notFound("listing", listingId);
  return row;
}

/** One page of the listings that fit. Its token is good for the same filter and order. */
async function search(app: App, req: SearchListingsRequest, { db, caller }: Query) {
  const words = wordsOf(req.text);
  if (req.text.trim() !== "" && words.length === 0) throw badField("text", "needs a word of letters or digits");
  if (words.length > maxSearchWords) throw badField("text", `at most ${maxSearchWords} words`);
  if (req.mine && caller.role === Role.PUBLIC) throw badField("mine", "needs a key, which tells whose they are");
  const filter: ListingFilter = {
    words,
    category: req.category,
    tags: req.tags,
    maxPriceMicros: Number(req.maxPriceMicros),
    minMeanMilli: Math.round(req.minRating * 1_000),
    providerOrgId: req.mine ? caller.orgId : req.providerOrgId,
    mine: req.mine,
  };
  const order = req.order || ListingOrder.BEST;
  const asked = createHash("sha256").update(JSON.stringify(filter)).digest("base64url");
  const place = ["SearchListings", String(order), asked];
  const after = req.pageToken ? app.cursors.decode(place, req.pageToken, "page_token") : undefined;
  const { rows, next } = await searchListings(db, filter, order, after, req.pageSize || defaultPageSize);
  return { listings: rows.map(toListed), nextPageToken: next ? app.cursors.encode(place, next) : "" };
}
