import type { ServiceImpl } from "@connectrpc/connect";
import { Role } from "../../../gen/moltwire/api/v1/access_pb.ts";
import type { ReviewService } from "../../../gen/moltwire/exchange/v1/review_service_pb.ts";
import type { App } from "../../app.ts";
import { Fault, notFound } from "../../errors.ts";
import { command } from "../../rpc/command.ts";
import { readPage } from "../../rpc/page.ts";
import { query } from "../../rpc/query.ts";
import { hasBought } from "../call/call-store.ts";
import { visibleListing } from "../listing/handler.ts";
import { lockListing } from "../listing/store.ts";
import { rated } from "./rating.ts";
import { findReview, listReviews, putReview, type ReviewRow, respond, toReview, updateRatings } from "./store.ts";

export const reviewHandler = (app: App): ServiceImpl<typeof ReviewService> => ({
  createReview: command(app, async (req, { tx, orgId, now }) => {
    // Who has bought it knows that it is there, published or not.
    const isBuyer = await hasBought(tx, orgId, req.listingId);
    const listing = isBuyer ? await lockListing(tx, req.listingId) : undefined;
    if (!listing) {
      await visibleListing(tx, { orgId, role: Role.ORG }, req.listingId);
      throw new Fault("FAILED_PRECONDITION", "no request of the organisation for this listing has completed yet", {
        listing_id: req.listingId,
      });
    }
    // The listing is locked, so that its reviews change one after another.
    const before = await findReview(tx, listing, orgId);
    const row: ReviewRow = {
      ...{ org_id: listing.org_id, listing_id: listing.listing_id, reviewer_org_id: orgId },
      ...{ review_id: before?.review_id ?? app.ids.next("rev"), response: before?.response ?? "" },
      ...{ response_ms: before?.response_ms ?? null, create_ms: before?.create_ms ?? now, update_ms: now },
      ...{ rating: req.rating, body: req.text },
    };
    await putReview(tx, row);
    await updateRatings(tx, rated(listing, before?.rating, req.rating));
    return { review: toReview(row) };
  }),

  listReviews: query(app, async (req, { db, caller }) => {
    const listing = await visibleListing(db, caller, req.listingId);
    const page = await readPage(
      app.cursors,
      ["ListReviews", req.listingId],
      req,
      (after, limit) => listReviews(db, listing, after, limit),
      (row) => [row.update_ms, row.review_id],
    );
    return { reviews: page.rows.map(toReview), nextPageToken: page.nextPageToken };
  }),

  respondToReview: command(app, async (req, { tx, orgId, now }) => {
    const row = await respond(tx, orgId, req.reviewId, req.text, now);
    if (!row) throw notFound("review", req.reviewId);
    return { review: toReview(row) };
  }),
});
