/** Listings are found by their words, tags, category and price; categories are counted; what is unpublished is gone. */
import { CatalogService } from "../../../gen/moltwire/exchange/v1/catalog_service_pb.ts";
import { ListingOrder } from "../../../gen/moltwire/exchange/v1/listing_pb.ts";
import { connectClients } from "../../cli/connect.ts";
import { refused, same } from "./claim.ts";
import type { Outcome, World } from "./scenario.ts";
import { addProvider, credits, publish } from "./shop.ts";

const [verse, prose] = ["verse", "prose"];

/** Publishes three, and looks for them as anybody may. */
export async function discovery(world: World): Promise<Outcome> {
  const provider = await addProvider(world, "discovery");
  const put = async (title: string, category: string, tags: string[], price: number) =>
    (await publish(provider, { title, category, tags, pricing: { requestMicros: credits(price) } })).listingId;
  const sonnets = await put("Sonnets, word by word", verse, ["poetry", "short"], 5);
  const epics = await put("Epics, word by word", verse, ["poetry"], 20);
  const novels = await put("Novels, word by word", prose, ["short"], 3);

  const anybody = connectClients({ url: world.url })(CatalogService);
  const find = async (wish: Parameters<typeof anybody.searchListings>[0]) =>
    (await anybody.searchListings({ providerOrgId: provider.orgId, ...wish })).listings.map(
      ({ listingId }) => listingId,
    );
  const counted = async () => {
    const { categories } = await anybody.listCategories({ pageSize: 250 });
    const own = categories.filter(({ category }) => category === verse || category === prose);
    return own.map(({ category, listings }) => `${category} ${listings}`).join(", ");
  };
  same("found by the beginnings of two words", await find({ text: "SONN wor" }), [sonnets]);
  same("found by two tags", await find({ tags: ["poetry", "short"] }), [sonnets]);
  same("found by category, cheapest first", await find({ category: verse, order: ListingOrder.PRICE }), [
    sonnets,
    epics,
  ]);
  const cheap = { maxPriceMicros: credits(5), order: ListingOrder.PRICE };
  same("found by price, cheapest first", await find(cheap), [novels, sonnets]);
  same("found by a word that none has", await find({ text: "limericks" }), []);
  const before = await counted();
  same("the categories", before, "prose 1, verse 2");

  await provider.admin(CatalogService).unpublishListing({ listingId: epics });
  same("found by category after one was unpublished", await find({ category: verse }), [sonnets]);
  const after = await counted();
  same("the categories after that", after, "prose 1, verse 1");
  const { metadata } = await refused("NOT_FOUND", anybody.getListing({ listingId: epics }));
  return {
    proof: `without a key, of 3 listings “SONN wor” finds 1, two tags 1, a category 2, and at most 5 credits 2, cheapest first; categories: ${before}; one unpublished is NOT_FOUND, and they are ${after}`,
    traceId: metadata.trace_id!,
  };
}
