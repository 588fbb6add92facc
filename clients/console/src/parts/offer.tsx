/** How listings, prices and plans are written. */
import {
  BillingPeriod,
  type Listing,
  ListingState,
  type Offer,
  type SubscriptionPlan,
} from "../../../../gen/moltwire/exchange/v1/listing_pb.ts";
import { State } from "./show.tsx";
import { countText, creditsText, enumText } from "./text.ts";

export const listingStateOf = ({ state }: Listing) => (
  <State tone={state === ListingState.PUBLISHED ? "good" : "off"}>{enumText(ListingState, state)}</State>
);

export const ratingText = ({ ratingMean, ratingCount }: Listing): string =>
  ratingCount === 0n ? "not rated" : `${ratingMean.toFixed(1)} by ${countText(ratingCount)}`;

/** What a request costs without a plan. */
export function priceText(offer: Offer | undefined): string {
  const { requestMicros, thousandTokensMicros } = offer?.pricing ?? {};
  return [
    requestMicros !== undefined && creditsText(requestMicros),
    thousandTokensMicros !== undefined && `${creditsText(thousandTokensMicros)} / 1,000 tokens`,
  ]
    .filter(Boolean)
    .join(" + ");
}

export const planText = ({ priceMicros, period, includedRequests, overageMicros }: SubscriptionPlan): string =>
  `${creditsText(priceMicros)} a ${enumText(BillingPeriod, period)}, ${countText(includedRequests)} requests included, ${creditsText(overageMicros)} for each more`;
