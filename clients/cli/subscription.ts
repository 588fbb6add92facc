/** `moltwire subscription`: requests for a listing, paid for in advance. */
import { BillingPeriodSchema } from "../../gen/moltwire/exchange/v1/listing_pb.ts";
import {
  type Subscription,
  SubscriptionState,
  SubscriptionStateSchema,
} from "../../gen/moltwire/exchange/v1/subscription_pb.ts";
import { SubscriptionService } from "../../gen/moltwire/exchange/v1/subscription_service_pb.ts";
import { addCall } from "./call.ts";
import { addNoun, type Noun } from "./command.ts";
import { creditsText } from "./credits.ts";
import { choices, oneOf } from "./field.ts";
import { addList } from "./list.ts";
import { nameIn } from "./names.ts";
import { paint } from "./output.ts";
import { at, type Column, renderFacts } from "./table.ts";

const { subscribe, listSubscriptions, cancelSubscription } = SubscriptionService.method;

/** Adds the commands. */
export const subscription: Noun = (program) => {
  const noun = addNoun(program, "subscription", "requests for a listing, paid for in advance");
  addCall(noun, {
    name: "create",
    summary: "pay for the first period of a plan of a listing, or for a new one of a subscription that is paused",
    example: "moltwire subscription create lst_… daily",
    method: subscribe,
    fields: [
      { name: "listingId", as: "<listing>", help: "the listing, by its id" },
      { name: "planId", as: "<plan>", help: "the plan: moltwire listing get shows them" },
    ],
    show: (response) => describe(response.subscription!),
  });
  addList(noun, {
    summary: "list the organisation's subscriptions, newest first",
    method: listSubscriptions,
    filters: [
      {
        name: "state",
        as: "--state <state>",
        help: choices(SubscriptionStateSchema),
        read: oneOf(SubscriptionStateSchema),
      },
      { name: "listingId", as: "--listing <listing>", help: "only those to this listing" },
    ],
    rows: ({ subscriptions }) => subscriptions,
    columns,
    things: "subscriptions",
    first: "moltwire subscription create LISTING PLAN",
  });
  addCall(noun, {
    name: "cancel",
    summary: "end a subscription with the period that is paid for; nothing is paid back",
    method: cancelSubscription,
    fields: [{ name: "subscriptionId", as: "<subscription>", help: "its id: sub_…" }],
    show: (response) => describe(response.subscription!),
  });
};

const columns: readonly Column<Subscription>[] = [
  { title: "SUBSCRIPTION", cell: ({ subscriptionId }) => subscriptionId },
  {
    title: "STATE",
    cell: ({ state }) => nameIn(SubscriptionStateSchema, state),
    colour: ({ state }) => (state === SubscriptionState.ACTIVE ? "green" : "yellow"),
  },
  { title: "LISTING", cell: ({ listingId }) => listingId },
  { title: "PLAN", cell: ({ plan }) => plan?.planId ?? "" },
  { title: "USED", cell: ({ usedRequests, plan }) => `${usedRequests}/${plan?.includedRequests}`, right: true },
  { title: "UNTIL", cell: ({ periodEndTime }) => at(periodEndTime) },
];

const describe = (row: Subscription): string[] =>
  renderFacts(`${paint("bold", row.subscriptionId)}  ${nameIn(SubscriptionStateSchema, row.state)}`, [
    ["listing", row.listingId],
    ["of", row.providerOrgId],
    ["plan", row.plan?.planId ?? ""],
    [
      "price",
      `${creditsText(row.plan?.priceMicros ?? 0n)} a ${nameIn(BillingPeriodSchema, row.plan?.period ?? 0).toLowerCase()}`,
    ],
    [
      "requests",
      `${row.usedRequests} of ${row.plan?.includedRequests} used, then ${creditsText(row.plan?.overageMicros ?? 0n)} each`,
    ],
    ["since", at(row.periodStartTime)],
    [row.cancelAtPeriodEnd ? "ends" : "renewed", at(row.periodEndTime)],
  ]);
