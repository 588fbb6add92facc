/** What the reviews of a listing come to. Pure. */
import type { MessageInitShape } from "@bufbuild/protobuf";
import type { ReviewSummarySchema } from "../../../gen/moltwire/exchange/v1/listing_pb.ts";
import { type ListingRow, type Ratings, ratingCount } from "../listing/store.ts";

/** What listings are sorted by counts so many reviews of this rating more, so that one review of 5 does not beat a hundred of which some are 4. */
const assumedReviews = 5;
const assumedMean = 3.5;

export const ratingSum = ({ rated_1, rated_2, rated_3, rated_4, rated_5 }: Ratings): number =>
  rated_1 + 2 * rated_2 + 3 * rated_3 + 4 * rated_4 + 5 * rated_5;

/** The mean in thousandths; 0: there is no review. */
export const meanOf = (sum: number, count: number): number => (count === 0 ? 0 : Math.round((sum * 1_000) / count));

/** What listings are sorted by, in thousandths: a Bayesian mean. */
export const rankOf = (sum: number, count: number): number =>
  Math.round(((sum + assumedReviews * assumedMean) * 1_000) / (count + assumedReviews));

export const reviewSummary = (row: ListingRow): MessageInitShape<typeof ReviewSummarySchema> => ({
  mean: row.mean_milli / 1_000,
  count: BigInt(ratingCount(row)),
  byRating: [row.rated_1, row.rated_2, row.rated_3, row.rated_4, row.rated_5].map(BigInt),
});

/** A listing with one review more, or with another rating in the place of that review's former one. */
export function rated(row: ListingRow, before: number | undefined, rating: number): ListingRow {
  const one = (of: number) => (of === rating ? 1 : 0) - (of === before ? 1 : 0);
  const counts: Ratings = {
    rated_1: row.rated_1 + one(1),
    rated_2: row.rated_2 + one(2),
    rated_3: row.rated_3 + one(3),
    rated_4: row.rated_4 + one(4),
    rated_5: row.rated_5 + one(5),
  };
  const [sum, count] = [ratingSum(counts), ratingCount(counts)];
  return { ...row, ...counts, mean_milli: meanOf(sum, count), rank_milli: rankOf(sum, count) };
}
