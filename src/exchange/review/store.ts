import type { MessageInitShape } from "@bufbuild/protobuf";
import { timestampFromMs } from "@bufbuild/protobuf/wkt";
import type { ReviewSchema } from "../../../gen/moltwire/exchange/v1/review_pb.ts";
import { type Queryable, sql, type Tx } from "../../db/db.ts";
import type { Position } from "../../rpc/cursor.ts";
import type { ListingRow } from "../listing/store.ts";

/** A review as it is stored; columns are described in the migration. */
export type ReviewRow = {
  readonly org_id: string;
  readonly listing_id: string;
  readonly reviewer_org_id: string;
  readonly review_id: string;
  readonly rating: number;
  readonly body: string;
  readonly response: string;
  readonly create_ms: number;
  readonly update_ms: number;
  readonly response_ms: number | null;
};

const columns = sql`org_id, listing_id, reviewer_org_id, review_id, rating, body, response, create_ms, update_ms, response_ms`;

type Of = Pick<ListingRow, "org_id" | "listing_id">;

/** What an organisation says of a listing, if it has said anything. */
export const findReview = (
  db: Queryable,
  { org_id, listing_id }: Of,
  reviewerOrgId: string,
): Promise<ReviewRow | undefined> =>
  db.one<ReviewRow>(sql`
    select ${columns} from exchange_review where org_id = ${org_id} and listing_id = ${listing_id} and reviewer_org_id = ${reviewerOrgId}`);

/** Adds a review, or replaces what it says. Whoever calls this has locked the listing. */
export const putReview = (tx: Tx, row: ReviewRow): Promise<number> =>
  tx.run(sql`
    insert into exchange_review (${columns})
    values (${row.org_id}, ${row.listing_id}, ${row.reviewer_org_id}, ${row.review_id}, ${row.rating}, ${row.body}, ${row.response}, ${row.create_ms},
      ${row.update_ms}, ${row.response_ms})
    on conflict (org_id, listing_id, reviewer_org_id) do update set rating = excluded.rating, body = excluded.body, update_ms = excluded.update_ms`);

/** Writes the provider's answer, and gives the review; undefined: there is none of that id of its listings. */
export const respond = (
  tx: Tx,
  orgId: string,
  reviewId: string,
  text: string,
  now: number,
): Promise<ReviewRow | undefined> =>
  tx.one<ReviewRow>(sql`
    update exchange_review set response = ${text}, response_ms = ${now} where org_id = ${orgId} and review_id = ${reviewId} returning ${columns}`);

/** Those that were written last first, backwards along their index. */
export const listReviews = (
  db: Queryable,
  { org_id, listing_id }: Of,
  after: Position | undefined,
  limit: number,
): Promise<ReviewRow[]> =>
  db.all<ReviewRow>(sql`
    select ${columns} from exchange_review where org_id = ${org_id} and listing_id = ${listing_id}
      ${after ? sql`and (update_ms, review_id) < (${after[0]!}, ${after[1]!})` : sql``}
    order by update_ms desc, review_id desc limit ${limit}`);

/** Of a listing that is locked. */
export const updateRatings = (tx: Tx, row: ListingRow): Promise<number> =>
  tx.run(sql`
    update exchange_listing set rated_1 = ${row.rated_1}, rated_2 = ${row.rated_2}, rated_3 = ${row.rated_3}, rated_4 = ${row.rated_4}, rated_5 = ${row.rated_5},
      mean_milli = ${row.mean_milli}, rank_milli = ${row.rank_milli}
    where listing_id = ${row.listing_id}`);

export const toReview = (row: ReviewRow): MessageInitShape<typeof ReviewSchema> => ({
  reviewId: row.review_id,
  listingId: row.listing_id,
  reviewerOrgId: row.reviewer_org_id,
  rating: row.rating,
  text: row.body,
  response: row.response,
  createTime: timestampFromMs(row.create_ms),
  updateTime: timestampFromMs(row.update_ms),
  ...(row.response_ms !== null && { responseTime: timestampFromMs(row.response_ms) }),
});
