/** Listings, and every offer that was made of them. */
import type { MessageInitShape } from "@bufbuild/protobuf";
import { timestampFromMs } from "@bufbuild/protobuf/wkt";
import type { ListingSchema, ListingState, Offer } from "../../../gen/moltwire/exchange/v1/listing_pb.ts";
import { type Queryable, sql, type Tx } from "../../db/db.ts";
import { offerOf, withoutExamples } from "./offer.ts";

/** How many reviews there are of 1, 2, 3, 4 and 5. */
export type Ratings = {
  readonly rated_1: number;
  readonly rated_2: number;
  readonly rated_3: number;
  readonly rated_4: number;
  readonly rated_5: number;
};

/** A listing as it is stored; columns are described in the migration. */
export type ListingRow = Ratings & {
  readonly seq: number;
  readonly org_id: string;
  readonly listing_id: string;
  readonly state: ListingState;
  readonly version: number;
  readonly offer: string;
  readonly category: string;
  readonly price_micros: number;
  readonly mean_milli: number;
  readonly rank_milli: number;
  readonly create_ms: number;
  readonly update_ms: number;
};

/** What of an offer is searched. */
export type Indexed = {
  readonly category: string;
  readonly tags: string;
  readonly price_micros: bigint;
  readonly title_words: string;
  readonly words: string;
};

/** Qualified, for every query of this table as `l`. */
export const listingColumns = sql`l.seq, l.org_id, l.listing_id, l.state, l.version, l.offer, l.category, l.price_micros, l.rated_1, l.rated_2, l.rated_3, l.rated_4,
  l.rated_5, l.mean_milli, l.rank_milli, l.create_ms, l.update_ms`;

type NewListing = Indexed & {
  readonly org_id: string;
  readonly listing_id: string;
  readonly state: ListingState;
  readonly offer: string;
  readonly rank_milli: number;
  readonly create_ms: number;
};

export const insertListing = (tx: Tx, row: NewListing): Promise<number> =>
  tx.run(sql`
    insert into exchange_listing (org_id, listing_id, state, version, offer, category, tags, price_micros, title_words, words, rank_milli, create_ms, update_ms)
    values (${row.org_id}, ${row.listing_id}, ${row.state}, 1, ${row.offer}, ${row.category}, ${row.tags}, ${row.price_micros}, ${row.title_words}, ${row.words},
      ${row.rank_milli}, ${row.create_ms}, ${row.create_ms})`);

export const insertOffer = (
  tx: Tx,
  row: Pick<ListingRow, "org_id" | "listing_id" | "version" | "offer" | "update_ms">,
): Promise<number> =>
  tx.run(sql`
    insert into exchange_offer (org_id, listing_id, version, offer, create_ms)
    values (${row.org_id}, ${row.listing_id}, ${row.version}, ${row.offer}, ${row.update_ms})`);

/** Of a row that is locked. */
export const updateOffer = (
  tx: Tx,
  row: Pick<ListingRow, "org_id" | "listing_id" | "state" | "version" | "offer" | "update_ms"> & Indexed,
): Promise<number> =>
  tx.run(sql`
    update exchange_listing set state = ${row.state}, version = ${row.version}, offer = ${row.offer}, category = ${row.category}, tags = ${row.tags},
      price_micros = ${row.price_micros}, title_words = ${row.title_words}, words = ${row.words}, update_ms = ${row.update_ms}
    where listing_id = ${row.listing_id}`);

/** Of a row that is locked. What nobody finds has no words, so that the index of words has what is found only. */
export const markUnpublished = (tx: Tx, listingId: string, words: string): Promise<number> =>
  tx.run(sql`update exchange_listing set state = 2, words = ${words} where listing_id = ${listingId}`);

/** By its id, whoever's it is. */
export const findListing = (db: Queryable, listingId: string): Promise<ListingRow | undefined> =>
  db.one<ListingRow>(sql`select ${listingColumns} from exchange_listing l where l.listing_id = ${listingId}`);

/** The same, locked for a change. */
export const lockListing = (tx: Tx, listingId: string): Promise<ListingRow | undefined> =>
  tx.one<ListingRow>(
    sql`select ${listingColumns} from exchange_listing l where l.listing_id = ${listingId} ${tx.dialect.forUpdate}`,
  );

/** How many listings an organisation has, counted up to a bound. */
export const countListings = async (db: Queryable, orgId: string, bound: number): Promise<number> =>
  (await db.one<{ n: number }>(sql`
    select count(*) as n from (select 1 as one from exchange_listing where org_id = ${orgId} limit ${bound}) counted`))!
    .n;

/** An offer as it was made. */
export const findOffer = (
  db: Queryable,
  { org_id, listing_id }: Pick<ListingRow, "org_id" | "listing_id">,
  version: number,
): Promise<{ readonly offer: string; readonly create_ms: number } | undefined> =>
  db.one(sql`
    select offer, create_ms from exchange_offer where org_id = ${org_id} and listing_id = ${listing_id} and version = ${version}`);

/** Whether the organisation of a listing works: those of one that is disabled are not there. */
export const isOpen = async (db: Queryable, orgId: string): Promise<boolean> =>
  (await db.one(sql`select 1 as found from organization where org_id = ${orgId} and disabled = 0`)) !== undefined;

/** A listing of the category is published: it is there from its first one on. */
export const enterCategory = (tx: Tx, category: string): Promise<number> =>
  tx.run(sql`
    insert into exchange_category (category, listings) values (${category}, 1)
    on conflict (category) do update set listings = exchange_category.listings + 1`);

/** One is published in it no more: with the last one it goes. */
export async function leaveCategory(tx: Tx, category: string): Promise<void> {
  await tx.run(sql`update exchange_category set listings = listings - 1 where category = ${category}`);
  await tx.run(sql`delete from exchange_category where category = ${category} and listings <= 0`);
}

/** All listings that an organisation has published come back, or are there no more, since it is disabled; it is held. In one order of categories, as others move theirs. */
export async function moveListings(tx: Tx, orgId: string, to: "enter" | "leave"): Promise<void> {
  const change = to === "enter" ? sql`count(*)` : sql`-count(*)`;
  await tx.run(sql`
    insert into exchange_category (category, listings)
    select category, ${change} from exchange_listing where org_id = ${orgId} and state = 1 group by category order by category
    on conflict (category) do update set listings = exchange_category.listings + excluded.listings`);
  if (to === "leave")
    await tx.run(sql`
      delete from exchange_category where listings <= 0 and category in (select category from exchange_listing where org_id = ${orgId} and state = 1)`);
}

/** By name, along the key. */
export const listCategories = (
  db: Queryable,
  after: string,
  limit: number,
): Promise<{ readonly category: string; readonly listings: number }[]> =>
  db.all(sql`
    select category, listings from exchange_category where category > ${after} order by category limit ${limit}`);

export const ratingCount = ({ rated_1, rated_2, rated_3, rated_4, rated_5 }: Ratings): number =>
  rated_1 + rated_2 + rated_3 + rated_4 + rated_5;

/** A listing as clients read it; with `offer`, as it was with that one. */
export const toListing = (
  row: ListingRow,
  { version, offer, madeMs }: { readonly version: number; readonly offer: Offer; readonly madeMs: number } = {
    version: row.version,
    offer: offerOf(row.offer),
    madeMs: row.update_ms,
  },
): MessageInitShape<typeof ListingSchema> => ({
  listingId: row.listing_id,
  orgId: row.org_id,
  version: BigInt(version),
  state: row.state,
  offer,
  ratingMean: row.mean_milli / 1_000,
  ratingCount: BigInt(ratingCount(row)),
  createTime: timestampFromMs(row.create_ms),
  updateTime: timestampFromMs(madeMs),
});

/** As lists have it. */
export const toListed = (row: ListingRow): MessageInitShape<typeof ListingSchema> =>
  toListing(row, { version: row.version, offer: withoutExamples(offerOf(row.offer)), madeMs: row.update_ms });
