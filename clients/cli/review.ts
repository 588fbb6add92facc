/** `moltwire review`: what organisations say of listings that they have used. */
import type { Review } from "../../gen/moltwire/exchange/v1/review_pb.ts";
import { ReviewService } from "../../gen/moltwire/exchange/v1/review_service_pb.ts";
import { addCall } from "./call.ts";
import { addNoun, type Noun } from "./command.ts";
import type { Field } from "./field.ts";
import { paint, plain } from "./output.ts";
import { at, renderFacts } from "./table.ts";

const { createReview, listReviews, respondToReview } = ReviewService.method;

const listing: Field = { name: "listingId", as: "<listing>", help: "the listing, by its id" };

/** Adds the commands. */
export const review: Noun = (program) => {
  const noun = addNoun(program, "review", "what organisations say of listings that they have used");
  addCall(noun, {
    name: "create",
    summary: "rate a listing that the organisation has used, or rate it anew",
    example: "moltwire review create lst_… 4 --text 'quick and right'",
    method: createReview,
    fields: [
      listing,
      { name: "rating", as: "<rating>", help: "from 1 to 5", read: Number },
      { name: "text", as: "--text <text>", help: "what there is to say" },
    ],
    show: (response) => describe(response.review!),
  });
  addCall(noun, {
    name: "list",
    summary: "show the reviews of a listing, the latest first",
    method: listReviews,
    fields: [
      listing,
      { name: "pageSize", as: "--page-size <number>", help: "how many at once (default: 50)", read: Number },
      { name: "pageToken", as: "--page-token <token>", help: "go on after a page, which told it" },
    ],
    show: ({ reviews, nextPageToken }) => [
      ...(reviews.length > 0 ? reviews.flatMap(describe) : ["nobody has said anything yet"]),
      ...(nextPageToken ? [`there are more: --page-token ${nextPageToken}`] : []),
    ],
  });
  addCall(noun, {
    name: "respond",
    summary: "answer a review of one's own listing",
    method: respondToReview,
    fields: [
      { name: "reviewId", as: "<review>", help: "its id: rev_…" },
      { name: "text", as: "<text>", help: "what there is to answer" },
    ],
    show: (response) => describe(response.review!),
  });
};

const describe = (row: Review): string[] =>
  renderFacts(`${paint("bold", row.reviewId)}  ${row.rating} of 5`, [
    ["listing", row.listingId],
    ["by", row.reviewerOrgId],
    ["says", plain(row.text)],
    ["answer", plain(row.response)],
    ["written", at(row.updateTime)],
    ["answered", at(row.responseTime)],
  ]);
