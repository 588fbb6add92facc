/** Who has bought may rate, once; the provider answers; mean and count stand with the listing at once. */
import { CatalogService } from "../../../gen/moltwire/exchange/v1/catalog_service_pb.ts";
import { ReviewService } from "../../../gen/moltwire/exchange/v1/review_service_pb.ts";
import { connectClients } from "../../cli/connect.ts";
import { outputOf } from "../ask.ts";
import { refused, same } from "./claim.ts";
import type { Outcome, World } from "./scenario.ts";
import { buy, openShop } from "./shop.ts";

const [hasty, considered] = [2, 4];
const text = "It counts well.";
const response = "We can count on you.";

/** Rates before a purchase, after it, and anew. */
export async function rating(world: World): Promise<Outcome> {
  const shop = await openShop(world, "rating");
  const { provider, buyer, listing } = shop;
  const { listingId } = listing;
  const rate = async (rating: number) =>
    (await buyer.asker(ReviewService).createReview({ listingId, rating, text })).review!.reviewId;
  await refused("FAILED_PRECONDITION", rate(considered));
  const task = await buy(shop, "what is to be rated");
  outputOf(task);
  const reviewId = await rate(hasty);
  same("the review that takes its place", await rate(considered), reviewId);
  await refused("NOT_FOUND", buyer.admin(ReviewService).respondToReview({ reviewId, text: response }));
  await provider.admin(ReviewService).respondToReview({ reviewId, text: response });

  const { reviews } = await buyer.asker(ReviewService).listReviews({ listingId });
  same(
    "the reviews, and what the provider says to them",
    reviews.map((one) => [one.reviewerOrgId, one.rating, one.text, one.response]),
    [[buyer.orgId, considered, text, response]],
  );
  const anybody = connectClients({ url: world.url })(CatalogService);
  const { mean, count } = (await anybody.getListing({ listingId })).reviews!;
  same("mean and count", [mean, count], [considered, 1n]);
  const good = await anybody.searchListings({ providerOrgId: provider.orgId, minRating: considered });
  const found = good.listings.map(({ ratingMean, ratingCount }) => [ratingMean, ratingCount]);
  same("mean and count of those that are found by their rating", found, [[mean, count]]);
  return {
    proof: `not before a purchase (FAILED_PRECONDITION); rated ${hasty} and then ${considered}, mean ${mean} of ${count} review, and found by it; the provider, and nobody else, responds: “${response}”`,
    traceId: task.traceId,
  };
}
