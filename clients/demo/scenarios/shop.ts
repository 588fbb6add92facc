/** An organisation that sells the counting of words, and another that buys it: what scenarios of the exchange need. */
import type { MessageInitShape } from "@bufbuild/protobuf";
import type { Task } from "../../../gen/moltwire/bus/v1/task_pb.ts";
import { BillingService } from "../../../gen/moltwire/exchange/v1/billing_service_pb.ts";
import { CatalogService } from "../../../gen/moltwire/exchange/v1/catalog_service_pb.ts";
import { BillingPeriod, type Listing, type OfferSchema } from "../../../gen/moltwire/exchange/v1/listing_pb.ts";
import { SubscriptionService } from "../../../gen/moltwire/exchange/v1/subscription_service_pb.ts";
import { type Clients, connectClients } from "../../cli/connect.ts";
import { callTimeoutMs, toValue } from "../ask.ts";
import { addOrganization } from "../setup.ts";
import { addFlaky } from "./flaky-agent.ts";
import { addPartner, type Partner } from "./partner.ts";
import type { World } from "./scenario.ts";

const microsOfOne = 1_000_000;

/** Credits as micro-credits. */
export const credits = (amount: number): bigint => BigInt(Math.round(amount * microsOfOne));

/** What an organisation of the demo begins with. */
export const atFirst = credits(1_000);
/** What a request costs. */
export const price = credits(5);
/** A request pays the provider and, by the server's default fee of 10 %, the platform. */
export const share = { provider: credits(4.5), platform: credits(0.5) };
/** 50 credits a day with 10 requests, and 3 for each beyond. */
export const daily = {
  planId: "daily",
  period: BillingPeriod.DAY,
  priceMicros: credits(50),
  includedRequests: 10n,
  overageMicros: credits(3),
};

/** An organisation that has an agent, and may offer its work. */
export type Provider = { readonly orgId: string; readonly admin: Clients; readonly contractId: string };

/** A provider with a listing, and who buys. */
export type Shop = { readonly provider: Provider; readonly buyer: Partner; readonly listing: Listing };

type Offer = Exclude<MessageInitShape<typeof OfferSchema>, { $typeName: string }>;

/** Makes the organisation `NAME-provider`, with an agent that counts words. */
export async function addProvider({ operator, url, flakyUrl }: World, name: string): Promise<Provider> {
  const { orgId, orgKey } = await addOrganization(operator, `${name}-provider`);
  const admin = connectClients({ url, key: orgKey });
  const { contractId } = await addFlaky({ admin, flakyUrl }, name, {});
  return { orgId, admin, contractId };
}

/** Publishes work of a provider, at the price unless told otherwise. */
export async function publish({ admin, contractId }: Provider, offer: Offer = {}): Promise<Listing> {
  const { listing } = await admin(CatalogService).publishListing({
    offer: {
      ...{ title: "Words counted", category: "counting", contractId, pricing: { requestMicros: price } },
      ...offer,
    },
  });
  return listing!;
}

/** Makes `NAME-provider` with a listing, and `NAME-partner` that may buy. */
export async function openShop(world: World, name: string, offer: Offer = {}): Promise<Shop> {
  const [provider, buyer] = [await addProvider(world, name), await addPartner(world, name)];
  return { provider, buyer, listing: await publish(provider, offer) };
}

/** Has the buyer's agent buy one request, which has ended when this answers. */
export async function buy({ buyer, listing: { listingId } }: Shop, text: string): Promise<Task> {
  const request = { listingId, input: toValue({ text }) };
  return (await buyer.asker(CatalogService).invokeListing(request, { timeoutMs: callTimeoutMs })).task!;
}

/** Has the buyer's administrator subscribe to the plan {@link daily}, which the listing must have. */
export async function subscribe({ buyer, listing: { listingId } }: Shop) {
  const { subscription } = await buyer.admin(SubscriptionService).subscribe({ listingId, planId: daily.planId });
  return subscription!;
}

/** What the wallet of an organisation holds, in micro-credits. */
export async function walletOf(admin: Clients): Promise<bigint> {
  return (await admin(BillingService).getBalance({})).balance!.balanceMicros;
}

/** What the buyer and the provider hold. */
export const walletsOf = ({ buyer, provider }: Shop): Promise<bigint[]> =>
  Promise.all([walletOf(buyer.admin), walletOf(provider.admin)]);
