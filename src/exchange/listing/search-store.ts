/** Listings that fit: along one index in the order of the list, or among the few that a filter leaves. */
import { ListingOrder } from "../../../gen/moltwire/exchange/v1/listing_pb.ts";
import { type Dialect, join, type Queryable, type Sql, sql } from "../../db/db.ts";
import type { Position } from "../../rpc/cursor.ts";
import { type ListingRow, listingColumns } from "./store.ts";
import { listingsWith } from "./words.ts";

/** Empty and 0: any. */
export type ListingFilter = {
  readonly words: readonly string[];
  readonly category: string;
  readonly tags: readonly string[];
  readonly maxPriceMicros: number;
  readonly minMeanMilli: number;
  readonly providerOrgId: string;
  /** Of that organisation those that are not published too. */
  readonly mine: boolean;
};

/** Found ones, and where the list goes on after them; undefined: it does not. */
export type FoundListings = { readonly rows: readonly ListingRow[]; readonly next: Position | undefined };

type SortedRow = ListingRow & { readonly sort: number };

/** A filter that leaves no more than this is read whole; the most listings of an organisation, too. */
export const fewListings = 1_000;
/** How many listings along an index one page looks at. */
export const walkLength = 2_000;

/** How a list is sorted: by an expression, then by age. Positions are its value and the row, behind which of the two ways the list is read. */
type Sort = { readonly by: Sql; readonly order: Sql; readonly after: (at: Position | undefined) => Sql };

function sortOf(order: ListingOrder, words: readonly string[], among: "few" | "walk"): Sort {
  if (order === ListingOrder.PRICE) {
    const by = sql`l.price_micros`;
    const after = (at: Position | undefined) => (at ? sql`and (${by}, l.seq) > (${at[1]!}, ${at[2]!})` : sql``);
    return { by, order: sql`${by}, l.seq`, after };
  }
  if (order === ListingOrder.NEWEST) {
    const after = (at: Position | undefined) => (at ? sql`and l.seq < ${at[2]!}` : sql``);
    return { by: sql`0`, order: sql`l.seq desc`, after };
  }
  const by = among === "few" && words.length > 0 ? sql`(${titleHits(words)} + l.rank_milli)` : sql`l.rank_milli`;
  const after = (at: Position | undefined) => (at ? sql`and (${by}, l.seq) < (${at[1]!}, ${at[2]!})` : sql``);
  return { by, order: sql`${by} desc, l.seq desc`, after };
}

/** More for each word of the title than any rating is. Words are letters and digits, of which none means anything to `like`. */
const titleHits = (words: readonly string[]): Sql =>
  join(
    words.map((word) => sql`case when l.title_words like ${`% ${word}%`} then 10000 else 0 end`),
    " + ",
  );

function fits({ category, tags, maxPriceMicros, minMeanMilli, providerOrgId, mine }: ListingFilter): Sql {
  const all = [
    mine
      ? sql`1 = 1`
      : sql`l.state = 1 and exists (select 1 from organization o where o.org_id = l.org_id and o.disabled = 0)`,
    ...(providerOrgId === "" ? [] : [sql`l.org_id = ${providerOrgId}`]),
    ...(category === "" ? [] : [sql`l.category = ${category}`]),
    // A tag has no character that means anything to `like`, or to JSON.
    ...tags.map((tag) => sql`l.tags like ${`%"${tag}"%`}`),
    ...(maxPriceMicros === 0 ? [] : [sql`l.price_micros <= ${maxPriceMicros}`]),
    ...(minMeanMilli === 0 ? [] : [sql`l.mean_milli >= ${minMeanMilli}`]),
  ];
  return join(all, " and ");
}

/** The listings that fit, after a position. */
export async function searchListings(
  db: Queryable,
  filter: ListingFilter,
  order: ListingOrder,
  at: Position | undefined,
  size: number,
): Promise<FoundListings> {
  const few = at?.[0] === "walk" ? undefined : await candidates(db, filter, at !== undefined);
  const among = few ? "few" : "walk";
  const sort = sortOf(order, filter.words, among);
  const where = sql`${fits(filter)} ${few ? sql`` : wordsFit(db.dialect, filter)} ${sort.after(at)}`;
  const from = few ? listed(db.dialect, few) : stretch(filter, sort, at);
  // A cross join, which SQLite does not turn round: it begins with the few.
  const found = await db.all<SortedRow>(sql`
    select ${listingColumns}, ${sort.by} as sort from (${from}) chosen cross join exchange_listing l
    where l.seq = chosen.seq and ${where} order by ${sort.order} limit ${size + 1}`);
  const rows = found.slice(0, size);
  const last = rows.at(-1);
  if (found.length > size && last) return { rows, next: [among, last.sort, last.seq] };
  return { rows, next: few ? undefined : await endOfWalk(db, filter, sort, at) };
}

const isNarrow = ({ words, tags }: ListingFilter): boolean => words.length + tags.length > 0;

/** The listings that a filter leaves, if it leaves few; `begun`: however many it leaves by now. */
async function candidates(
  db: Queryable,
  filter: ListingFilter,
  begun: boolean,
): Promise<readonly number[] | undefined> {
  const { providerOrgId, words, tags } = filter;
  const query =
    providerOrgId !== ""
      ? sql`select seq from exchange_listing where org_id = ${providerOrgId}`
      : isNarrow(filter)
        ? listingsWith(db.dialect, words, tags)
        : undefined;
  if (!query) return undefined;
  const found = await db.all<{ seq: number }>(sql`${query} limit ${fewListings + 1}`);
  if (found.length > fewListings && !begun) return undefined;
  const seqs = found.map(({ seq }) => seq);
  if (providerOrgId === "" || !isNarrow(filter) || seqs.length === 0) return seqs;
  const both = await db.all<{ seq: number }>(sql`
    select seq from (${listed(db.dialect, seqs)}) own where seq in (${listingsWith(db.dialect, words, tags)})`);
  return both.map(({ seq }) => seq);
}

/** A list of numbers as one parameter, so that there is one statement for all. */
const listed = (dialect: Dialect, numbers: readonly number[]): Sql =>
  dialect.name === "sqlite"
    ? sql`select value as seq from json_each(${JSON.stringify(numbers)})`
    : sql`select cast(value as bigint) as seq from json_array_elements_text(cast(${JSON.stringify(numbers)} as json))`;

const wordsFit = (dialect: Dialect, filter: ListingFilter): Sql =>
  isNarrow(filter) ? sql`and l.seq in (${listingsWith(dialect, filter.words, filter.tags)})` : sql``;

const walked = ({ category }: ListingFilter): Sql =>
  category === "" ? sql`l.state = 1` : sql`l.state = 1 and l.category = ${category}`;

/** A bounded stretch of the index of the order. */
const stretch = (filter: ListingFilter, sort: Sort, at: Position | undefined): Sql =>
  sql`select l.seq from exchange_listing l where ${walked(filter)} ${sort.after(at)} order by ${sort.order} limit ${walkLength}`;

/** Where the stretch of a walk ends; undefined: it came to the end of the index. */
async function endOfWalk(
  db: Queryable,
  filter: ListingFilter,
  sort: Sort,
  at: Position | undefined,
): Promise<Position | undefined> {
  const row = await db.one<{ seq: number; sort: number }>(sql`
    select l.seq, ${sort.by} as sort from exchange_listing l where ${walked(filter)} ${sort.after(at)} order by ${sort.order} limit 1 offset ${walkLength - 1}`);
  return row && ["walk", row.sort, row.seq];
}
