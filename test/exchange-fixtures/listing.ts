/** Two organisations of which one sells what the other buys: what the tests of listings say often. */
import type { JsonValue, MessageInitShape } from "@bufbuild/protobuf";
import { TrustTier } from "../../gen/moltwire/bus/v1/agent_pb.ts";
import type { RegisterAgentRequestSchema } from "../../gen/moltwire/bus/v1/agent_service_pb.ts";
import type { Task } from "../../gen/moltwire/bus/v1/task_pb.ts";
import type { InvokeListingRequestSchema } from "../../gen/moltwire/exchange/v1/catalog_service_pb.ts";
import type { Listing, OfferSchema } from "../../gen/moltwire/exchange/v1/listing_pb.ts";
import { contract, echoEndpoint, value } from "../bus-fixtures/bus.ts";
import type { Clients, Org, OrgAgent, World } from "../harness.ts";
import { credits } from "./ledger.ts";

type Fields<Shape> = Partial<Extract<Shape, { $typeName?: never }>>;
export type OfferInit = Fields<MessageInitShape<typeof OfferSchema>>;
type AgentInit = Fields<MessageInitShape<typeof RegisterAgentRequestSchema>>;

export type Market = {
  /** The organisation that sells, and the agent that does the work. */
  readonly seller: Org;
  readonly worker: OrgAgent;
  /** The organisation that buys, and an agent of it. */
  readonly buyer: Org;
  readonly asker: OrgAgent;
  readonly contractId: string;
  readonly listingId: string;
  readonly listing: Listing;
  readonly offer: OfferInit;
  /** Buys as the asker; the input is JSON. */
  buy(wish?: Wish, options?: CallOptions): Promise<Task>;
  /** Offers it anew, with these changes. */
  change(init: OfferInit): Promise<Listing>;
};

type CallOptions = Parameters<Clients["catalog"]["invokeListing"]>[1];
type Wish = Omit<Fields<MessageInitShape<typeof InvokeListingRequestSchema>>, "input"> & {
  readonly input?: JsonValue;
  readonly by?: Clients;
};

type Init = {
  readonly offer?: OfferInit;
  readonly agent?: AgentInit;
  readonly asker?: AgentInit;
  readonly contract?: Parameters<typeof contract>[1];
  readonly seller?: Org;
  readonly buyer?: Org;
};

/** 5 credits a request, unless told. */
export async function market(world: World, init: Init = {}): Promise<Market> {
  const [seller, buyer] = [init.seller ?? (await world.org()), init.buyer ?? (await world.org())];
  const contractId = await contract(seller, init.contract);
  const worker = await seller.agent({ capabilities: [contractId], endpoint: echoEndpoint, ...init.agent });
  const asker = await buyer.agent({ trustTier: TrustTier.INTERNAL_RESTRICTED, ...init.asker });
  const offer: OfferInit = {
    title: "Research on demand",
    category: "research",
    contractId,
    pricing: { requestMicros: credits(5) },
    ...init.offer,
  };
  const { listing } = await seller.admin.catalog.publishListing({ offer });
  const { listingId } = listing!;
  const buy: Market["buy"] = async ({ input = {}, by = asker.as, ...wish } = {}, options) =>
    (await by.catalog.invokeListing({ listingId, input: value(input), ...wish }, options)).task!;
  const change: Market["change"] = async (more) =>
    (await seller.admin.catalog.updateListing({ listingId, offer: { ...offer, ...more } })).listing!;
  return { seller, worker, buyer, asker, contractId, listingId, listing: listing!, offer, buy, change };
}

/** What an organisation's wallet holds, and what of it is set aside, in micro-credits. */
export async function walletOf(org: Org): Promise<[bigint, bigint]> {
  const { balance } = await org.admin.billing.getBalance({});
  return [balance!.balanceMicros, balance!.reservedMicros];
}

/** Takes all but so many micro-credits from an organisation that has not spent any, to an agent of it. */
export async function leave(org: Org, micros: bigint): Promise<OrgAgent> {
  const saver = await org.agent();
  const [held] = await walletOf(org);
  await org.admin.billing.transferCredits({ toAgentId: saver.agentId, amountMicros: held - micros });
  return saver;
}
