/** An organisation publishes a listing at 5 credits a request; anybody reads it, and a new price makes a new version that leaves the old one to be read. */
import { create } from "@bufbuild/protobuf";
import { CatalogService } from "../../../gen/moltwire/exchange/v1/catalog_service_pb.ts";
import { ListingStateSchema, PricingSchema } from "../../../gen/moltwire/exchange/v1/listing_pb.ts";
import { connectClients } from "../../cli/connect.ts";
import { nameIn } from "../../cli/names.ts";
import { refused, same } from "./claim.ts";
import { addPartner } from "./partner.ts";
import type { Outcome, World } from "./scenario.ts";
import { addProvider, credits, price, publish } from "./shop.ts";

const dearer = credits(6);

/** Publishes, and changes the price. */
export async function publication(world: World): Promise<Outcome> {
  const provider = await addProvider(world, "publication");
  const { contractId, orgId } = provider;
  const other = await addPartner(world, "publication");
  const { metadata } = await refused("CONTRACT_NOT_FOUND", publish({ ...provider, admin: other.admin }));
  const { listingId, offer } = await publish(provider);

  const anybody = connectClients({ url: world.url })(CatalogService);
  const read = async (version: bigint) => {
    const { listing } = await anybody.getListing({ listingId, version });
    const { orgId, state, offer } = listing!;
    return [
      orgId,
      listing!.version,
      nameIn(ListingStateSchema, state),
      offer?.contractId,
      offer?.pricing?.requestMicros,
    ];
  };
  const first = [orgId, 1n, "PUBLISHED", contractId, price];
  same("the listing, as one without a key reads it", await read(0n), first);
  const change = { listingId, offer: { ...offer!, pricing: create(PricingSchema, { requestMicros: dearer }) } };
  await refused("NOT_FOUND", other.admin(CatalogService).updateListing(change));
  await provider.admin(CatalogService).updateListing(change);
  same("its next version", await read(0n), [orgId, 2n, "PUBLISHED", contractId, dearer]);
  same("its first version", await read(1n), first);
  return {
    proof: `PUBLISHED at 5 credits a request, read without a key; another organisation cannot offer the same contract (CONTRACT_NOT_FOUND) or change the listing (NOT_FOUND); at 6 credits it is version 2, and version 1 still reads 5`,
    traceId: metadata.trace_id!,
  };
}
