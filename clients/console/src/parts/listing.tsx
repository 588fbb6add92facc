import { type JsonValue, toJson } from "@bufbuild/protobuf";
import { ValueSchema } from "@bufbuild/protobuf/wkt";
import { useQuery } from "@connectrpc/connect-query";
import { Group, NumberInput, Stack, Text, Textarea, Title } from "@mantine/core";
import { useState } from "react";
import { CatalogService, type GetListingResponse } from "../../../../gen/moltwire/exchange/v1/catalog_service_pb.ts";
import {
  BillingPeriod,
  ListingSchema,
  ListingState,
  type SubscriptionPlan,
  SubscriptionPlanSchema,
} from "../../../../gen/moltwire/exchange/v1/listing_pb.ts";
import { type Review, ReviewSchema } from "../../../../gen/moltwire/exchange/v1/review_pb.ts";
import { ReviewService } from "../../../../gen/moltwire/exchange/v1/review_service_pb.ts";
import { SubscriptionService } from "../../../../gen/moltwire/exchange/v1/subscription_service_pb.ts";
import { useOrg } from "../session.ts";
import { Act } from "./act.tsx";
import { AsCommand, callOf } from "./command.tsx";
import { Failure } from "./failure.tsx";
import { Invoke } from "./invoke.tsx";
import { type Column, List } from "./list.tsx";
import { listingStateOf, planText, priceText, ratingText } from "./offer.tsx";
import { usePages } from "./pages.ts";
import { Facts, Json, Mono, Raw, Spark } from "./show.tsx";
import { agoText, countText, creditsText, durationText, enumText, shortId, timeText } from "./text.ts";

const { getListing, searchListings, unpublishListing } = CatalogService.method;
const { subscribe, listSubscriptions } = SubscriptionService.method;
const { listReviews, createReview, respondToReview } = ReviewService.method;

/** One listing: what is offered, what was measured, what others say, and what one can do about it. */
export function ListingDetails({ listingId }: { listingId: string }) {
  const orgId = useOrg();
  const { data, error } = useQuery(getListing, { listingId });
  const listing = data?.listing;
  if (!listing) return error ? <Failure error={error} /> : null;
  const { offer } = listing;
  const isOwn = listing.orgId === orgId;
  return (
    <Stack>
      <Title order={3} size="h4">
        {offer?.title}
      </Title>
      {offer?.description && (
        <Text size="sm" style={{ whiteSpace: "pre-wrap" }}>
          {offer.description}
        </Text>
      )}
      <Facts
        facts={[
          ["State", listingStateOf(listing)],
          ["Id", <Mono key="id">{listingId}</Mono>],
          ["By", isOwn ? "this organisation" : <Mono key="org">{listing.orgId}</Mono>],
          ["Version", String(listing.version)],
          ["Category", offer?.category],
          ["Tags", offer?.tags.join(", ")],
          ["Contract", `${offer?.contractId} ${offer?.contractVersion}`],
          ["A request costs", `${priceText(offer)} credits`],
          ["Requests for nothing", freeText(data)],
          ["Published", timeText(listing.createTime)],
        ]}
      />
      <Group>
        {isOwn && listing.state === ListingState.PUBLISHED && (
          <Act
            label="Unpublish"
            tone="bad"
            title={`Take ${offer?.title} out of the catalog?`}
            about="Requests under way go on. Subscriptions go on until what was paid for is over, and are not renewed."
            method={unpublishListing}
            request={{ orgId, listingId }}
            cli={`npx moltwire listing unpublish ${listingId}`}
            again={[searchListings, getListing]}
          />
        )}
        {!isOwn && listing.state === ListingState.PUBLISHED && <Invoke listing={listing} />}
        {!isOwn && <Rate listingId={listingId} />}
        <AsCommand cli={`npx moltwire listing get ${listingId}`} call={callOf(getListing, { listingId })} />
      </Group>
      <Measured answer={data} />
      {(offer?.plans.length ?? 0) > 0 && <Plans listingId={listingId} plans={offer?.plans ?? []} isOwn={isOwn} />}
      <Reviews listingId={listingId} isOwn={isOwn} answer={data} />
      {offer?.exampleInput && (
        <>
          <Title order={3} size="h5">
            An example: in, and out
          </Title>
          <Json value={toJson(ValueSchema, offer.exampleInput) as JsonValue} />
          {offer.exampleOutput && <Json value={toJson(ValueSchema, offer.exampleOutput) as JsonValue} />}
        </>
      )}
      <Raw schema={ListingSchema} message={listing} />
    </Stack>
  );
}

function freeText({ listing }: GetListingResponse): string {
  const free = listing?.offer?.pricing?.freeTier;
  return free ? `${countText(free.requests)} a ${enumText(BillingPeriod, free.period)}` : "";
}

const percentText = (part: number | undefined): string =>
  part === undefined ? "not known" : `${(part * 100).toFixed(2)} %`;

/** What its provider promises, beside what requests for it came to. */
function Measured({ answer: { listing, measured } }: { answer: GetListingResponse }) {
  const promised = listing?.offer?.serviceLevel;
  return (
    <>
      <Title order={3} size="h5">
        Measured
      </Title>
      <Facts
        facts={[
          ["Requests", measured && `${countText(measured.requests)}, ${countText(measured.failed)} failed`],
          [
            "Completed",
            `${percentText(measured?.successRate)}${promised?.successRate ? `, promised ${percentText(promised.successRate)}` : ""}`,
          ],
          ["Half within", measured?.p50 && durationText(measured.p50)],
          [
            "99 of 100 within",
            `${durationText(measured?.p99)}${promised?.p99 ? `, promised ${durationText(promised.p99)}` : ""}`,
          ],
          ["Promised", promised?.text],
        ]}
      />
    </>
  );
}

type PlansProps = { readonly listingId: string; readonly plans: readonly SubscriptionPlan[]; readonly isOwn: boolean };

function Plans({ listingId, plans, isOwn }: PlansProps) {
  const orgId = useOrg();
  const columns: readonly Column<SubscriptionPlan>[] = [
    { name: "Plan", show: ({ planId }) => planId },
    { name: "Price", show: planText },
    ...(isOwn
      ? []
      : [
          {
            name: "",
            right: true,
            show: (plan: SubscriptionPlan) => (
              <Act
                label="Subscribe"
                size="compact-xs"
                title={`Subscribe to ${plan.planId}?`}
                about={`${creditsText(plan.priceMicros)} credits are paid now for the first ${enumText(BillingPeriod, plan.period)}, and again for each that follows until you cancel.`}
                method={subscribe}
                request={{ orgId, listingId, planId: plan.planId }}
                cli={`npx moltwire subscription create ${listingId} ${plan.planId}`}
                again={[listSubscriptions]}
              />
            ),
          },
        ]),
  ];
  return (
    <>
      <Title order={3} size="h5">
        Plans
      </Title>
      <List
        label="Plans"
        rows={plans}
        schema={SubscriptionPlanSchema}
        columns={columns}
        keyOf={({ planId }) => planId}
        isPending={false}
        error={undefined}
        empty={null}
      />
    </>
  );
}

/** What the organisation says of it, once a request of its own has completed. */
function Rate({ listingId }: { listingId: string }) {
  const orgId = useOrg();
  const [rating, setRating] = useState(5);
  const [text, setText] = useState("");
  return (
    <Act
      label="Review"
      title="What do you say of it?"
      about="Everybody reads it. It takes the place of what this organisation said before."
      method={createReview}
      request={{ orgId, listingId, rating, text }}
      cli={`npx moltwire review create ${listingId} ${rating}`}
      again={[listReviews, getListing, searchListings]}
    >
      <NumberInput
        label="From 1 to 5"
        value={rating}
        onChange={(next) => setRating(Number(next) || 1)}
        min={1}
        max={5}
      />
      <Textarea
        label="In words"
        value={text}
        onChange={({ currentTarget }) => setText(currentTarget.value)}
        maxLength={2048}
        autosize
        minRows={3}
      />
    </Act>
  );
}

type ReviewsProps = { readonly listingId: string; readonly isOwn: boolean; readonly answer: GetListingResponse };

function Reviews({ listingId, isOwn, answer: { listing, reviews } }: ReviewsProps) {
  const pages = usePages(listReviews, { listingId }, (page) => page.reviews);
  const columns: readonly Column<Review>[] = [
    { name: "Rating", show: ({ rating }) => `${rating} of 5` },
    {
      name: "Says",
      show: ({ text, response }) => (
        <div className="any">
          <div>{text}</div>
          {response && <div className="dimmed">Provider: {response}</div>}
        </div>
      ),
    },
    { name: "By", wide: true, show: ({ reviewerOrgId }) => <Mono>{shortId(reviewerOrgId)}</Mono> },
    { name: "Age", wide: true, right: true, show: ({ updateTime }) => agoText(updateTime) },
    ...(isOwn ? [{ name: "", right: true, show: (review: Review) => <Respond review={review} /> }] : []),
  ];
  const counts = reviews?.byRating.map(Number) ?? [];
  return (
    <>
      <Group justify="space-between">
        <Title order={3} size="h5">
          Reviews
        </Title>
        <Text size="sm">{listing && ratingText(listing)}</Text>
      </Group>
      {counts.some((count) => count > 0) && (
        <div>
          <Spark values={counts} label="Reviews with 1, 2, 3, 4 and 5 of 5" />
          <Text size="xs" c="dimmed">
            {counts.map((count, index) => `${index + 1} of 5: ${count}`).join(" · ")}
          </Text>
        </div>
      )}
      <List
        label="Reviews"
        {...pages.list}
        schema={ReviewSchema}
        columns={columns}
        keyOf={({ reviewId }) => reviewId}
        empty={<Text size="sm">Nobody has said anything yet.</Text>}
      />
    </>
  );
}

function Respond({ review: { reviewId, response } }: { review: Review }) {
  const orgId = useOrg();
  const [text, setText] = useState(response);
  return (
    <Act
      label="Answer"
      size="compact-xs"
      title="Answer this review?"
      about="Everybody reads it, below the review."
      method={respondToReview}
      request={text.trim() === "" ? undefined : { orgId, reviewId, text }}
      again={[listReviews]}
    >
      <Textarea
        label="Answer"
        value={text}
        onChange={({ currentTarget }) => setText(currentTarget.value)}
        maxLength={2048}
        autosize
        minRows={3}
      />
    </Act>
  );
}
