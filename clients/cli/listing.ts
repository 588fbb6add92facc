/** `moltwire listing`: work that is sold, and bought. */
import { toJson } from "@bufbuild/protobuf";
import { ValueSchema } from "@bufbuild/protobuf/wkt";
import { ChargeSchema, type Receipt, ReceiptStateSchema } from "../../gen/moltwire/bus/v1/receipt_pb.ts";
import { TaskState } from "../../gen/moltwire/bus/v1/task_pb.ts";
import { CatalogService } from "../../gen/moltwire/exchange/v1/catalog_service_pb.ts";
import {
  BillingPeriodSchema,
  type Category,
  type Listing,
  ListingOrderSchema,
  ListingStateSchema,
  type Measured,
  type Pricing,
  type SubscriptionPlan,
} from "../../gen/moltwire/exchange/v1/listing_pb.ts";
import { agentIdOf } from "./agent-name.ts";
import { addCall } from "./call.ts";
import { addNoun, type Noun } from "./command.ts";
import { credits, creditsText } from "./credits.ts";
import { exitCodes } from "./exit-codes.ts";
import { choices, type Field, json, number, oneOf } from "./field.ts";
import { addList } from "./list.ts";
import { nameIn } from "./names.ts";
import { note, paint, plain, safeJson } from "./output.ts";
import { at, type Column, type Fact, renderFacts } from "./table.ts";
import { isEnd, renderEnd } from "./task-end.ts";

const { publishListing, updateListing, unpublishListing, getListing } = CatalogService.method;
const { searchListings, listCategories, invokeListing } = CatalogService.method;

const which: Field = { name: "listingId", as: "[listing]", help: "its id: lst_…", required: true };
const offer: readonly Field[] = [
  {
    name: "offer",
    as: "--offer <json>",
    help: "what is offered, an Offer: JSON, @file, or - for standard input",
    read: json,
  },
];

/** Adds the commands. */
export const listing: Noun = (program) => {
  const noun = addNoun(program, "listing", "work that is sold for credits, and bought");
  addList(noun, {
    name: "search",
    summary: "find listings that fit all that is asked for",
    method: searchListings,
    filters: [
      { name: "text", as: "--text <words>", help: "words that must all begin a word of it" },
      { name: "category", as: "--category <name>", help: "of this category" },
      { name: "tags", as: "--tag <name>", help: "with this tag; may be repeated", many: true },
      { name: "maxPriceMicros", as: "--max-price <credits>", help: "a request costs at most this", read: credits },
      { name: "minRating", as: "--min-rating <number>", help: "rated at least so, from 1 to 5", read: Number },
      { name: "providerOrgId", as: "--of <organisation>", help: "of this organisation, by its id" },
      { name: "mine", as: "--mine", help: "the organisation's own, those that are not published too" },
      {
        name: "order",
        as: "--order <order>",
        help: choices(ListingOrderSchema),
        read: oneOf(ListingOrderSchema),
      },
    ],
    rows: ({ listings }) => listings,
    columns,
    things: "listings",
    first: "moltwire listing publish --offer @offer.json",
  });
  addList(noun, {
    name: "categories",
    summary: "list the categories, and how many listings each has",
    method: listCategories,
    rows: ({ categories }) => categories,
    columns: ofCategories,
    things: "categories",
    first: "moltwire listing publish --offer @offer.json",
  });
  addCall(noun, {
    name: "get",
    summary: "show a listing, what others say of it and what was measured",
    method: getListing,
    fields: [which, { name: "version", as: "--version <number>", help: "as it was in this version", read: number }],
    show: ({ listing: row, measured }) => describe(row!, measured),
  });
  addCall(noun, {
    name: "publish",
    summary: "offer work under a contract to all other organisations",
    example: `moltwire listing publish --offer '{"title":"Search","category":"research","contractId":"search","pricing":{"requestMicros":"5000000"}}'`,
    method: publishListing,
    fields: offer,
    from: true,
    show: (response) => describe(response.listing!),
  });
  addCall(noun, {
    name: "update",
    summary: "replace what is offered, for requests from now on",
    method: updateListing,
    fields: [
      which,
      ...offer,
      { name: "ifVersion", as: "--if-version <number>", help: "only if this is its version", read: number },
    ],
    from: true,
    show: (response) => describe(response.listing!),
  });
  addCall(noun, {
    name: "unpublish",
    summary: "take a listing out of the catalog; what is under way or paid for goes on",
    method: unpublishListing,
    fields: [which],
    show: (response) => describe(response.listing!),
  });
  addCall(noun, {
    name: "invoke",
    summary: "have a task done for its price; standard output gets its output",
    example: "moltwire listing invoke lst_… '{\"terms\": []}' --max-price 5",
    method: invokeListing,
    fields: [
      which,
      { name: "input", as: "[input]", help: "JSON, @file, or - for standard input (default: null)", read: json },
      { name: "maxPriceMicros", as: "--max-price <credits>", help: "only if it can cost no more", read: credits },
      { name: "fromAgentWallet", as: "--from-agent", help: "the agent's own wallet pays, not the organisation's" },
      { name: "agentId", as: "--as <agent>", help: "the agent to act for; for administrators", read: agentIdOf },
      { name: "returnImmediately", as: "--detach", help: "end as soon as the task is accepted" },
    ],
    from: true,
    show({ task }) {
      for (const line of renderEnd(task!, isEnd(task!.state))) note(line);
      if (task!.receipt) note(receiptText(task!.receipt));
      return [task!.output ? safeJson(toJson(ValueSchema, task!.output)) : task!.taskId];
    },
    exitCode: ({ task }) =>
      task && isEnd(task.state) && task.state !== TaskState.COMPLETED ? exitCodes.failed : exitCodes.ok,
  });
};

const priceText = ({ requestMicros, thousandTokensMicros, maxTokens }: Pricing): string =>
  [
    ...(requestMicros === undefined ? [] : [`${creditsText(requestMicros)} a request`]),
    ...(thousandTokensMicros === undefined
      ? []
      : [`${creditsText(thousandTokensMicros)} for 1,000 tokens, up to ${maxTokens} tokens`]),
  ].join(" and ");

const period = (of: number): string => nameIn(BillingPeriodSchema, of).toLowerCase();

const planText = ({ planId, period: of, priceMicros, includedRequests, overageMicros }: SubscriptionPlan): string =>
  `${planId}: ${creditsText(priceMicros)} a ${period(of)} with ${includedRequests} requests, then ${creditsText(overageMicros)} each`;

function receiptText({ state, charge, amountMicros, reservedMicros, feeMicros }: Receipt): string {
  const of = `${nameIn(ReceiptStateSchema, state)}, ${nameIn(ChargeSchema, charge)}`;
  return `${of}: cost ${creditsText(amountMicros)} of ${creditsText(reservedMicros)} credits, ${creditsText(feeMicros)} of it for the platform`;
}

const ratingText = ({ ratingMean, ratingCount }: Listing): string =>
  ratingCount === 0n ? "" : `${ratingMean.toFixed(1)} of ${ratingCount}`;

const columns: readonly Column<Listing>[] = [
  { title: "LISTING", cell: ({ listingId }) => listingId },
  { title: "TITLE", cell: ({ offer: of }) => of?.title ?? "", cut: true },
  { title: "CATEGORY", cell: ({ offer: of }) => of?.category ?? "" },
  { title: "PRICE", cell: ({ offer: of }) => (of?.pricing ? priceText(of.pricing) : ""), cut: true },
  { title: "RATING", cell: ratingText },
];

const ofCategories: readonly Column<Category>[] = [
  { title: "CATEGORY", cell: ({ category }) => category },
  { title: "LISTINGS", cell: ({ listings }) => String(listings), right: true },
];

const measuredText = ({ requests, successRate }: Measured): string =>
  requests === 0n ? "" : `${requests} requests in 30 days, ${((successRate ?? 0) * 100).toFixed(1)} % completed`;

function describe(row: Listing, measured?: Measured): string[] {
  const { offer: of } = row;
  const free = of?.pricing?.freeTier;
  const facts: Fact[] = [
    ["title", plain(of?.title ?? "")],
    ["description", plain(of?.description ?? "")],
    ["of", row.orgId],
    ["category", of?.category ?? ""],
    ["tags", (of?.tags ?? []).join(" ")],
    ["contract", plain(`${of?.contractId} ${of?.contractVersion}`.trim())],
    ["price", of?.pricing ? priceText(of.pricing) : ""],
    ["free", free ? `${free.requests} requests a ${period(free.period)}` : ""],
    ...(of?.plans ?? []).map((plan): Fact => ["plan", planText(plan)]),
    ["rating", ratingText(row)],
    ["measured", measured ? measuredText(measured) : ""],
    ["version", `${row.version}, of ${at(row.updateTime)}`],
    ["published", at(row.createTime)],
  ];
  return renderFacts(`${paint("bold", row.listingId)}  ${nameIn(ListingStateSchema, row.state)}`, facts);
}
