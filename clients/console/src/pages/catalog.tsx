import { useQuery } from "@connectrpc/connect-query";
import { Drawer, Select, Text } from "@mantine/core";
import { CatalogService } from "../../../../gen/moltwire/exchange/v1/catalog_service_pb.ts";
import { type Listing, ListingOrder, ListingSchema } from "../../../../gen/moltwire/exchange/v1/listing_pb.ts";
import { useWord } from "../parts/address.ts";
import { callOf } from "../parts/command.tsx";
import { WordChoice, WordSwitch, WordText } from "../parts/filters.tsx";
import { type Column, List } from "../parts/list.tsx";
import { ListingDetails } from "../parts/listing.tsx";
import { listingStateOf, priceText, ratingText } from "../parts/offer.tsx";
import { usePages } from "../parts/pages.ts";
import { Publish } from "../parts/publish.tsx";
import { Empty, Head } from "../parts/show.tsx";
import { agoText, choicesOf, countText, enumWord, optionsText } from "../parts/text.ts";
import { useOrg, useSession } from "../session.ts";

const { searchListings, listCategories } = CatalogService.method;

const example = JSON.stringify({
  ...{ title: "Research on demand", category: "research", contractId: "research/search" },
  pricing: { requestMicros: "5000000" },
});

/** What organisations sell, and, of the organisation's own, what is not published too. */
export function Catalog() {
  const orgId = useOrg();
  const { session } = useSession();
  const [text] = useWord("text");
  const [category] = useWord("category");
  const [order] = useWord("order");
  const [own] = useWord("own");
  const [opened, open] = useWord("listing");
  const isOwn = own !== "";
  // Unpublished listings are told to their own organisation; of another one that the operator looks at only the published ones.
  const whose = !isOwn ? {} : orgId === session.orgId ? { mine: true } : { providerOrgId: orgId };
  const request = { text, category, order: Number(order) as ListingOrder, ...whose };
  const listings = usePages(searchListings, request, (page) => page.listings);
  const columns: readonly Column<Listing>[] = [
    { name: "Title", show: ({ offer }) => <div className="fit">{offer?.title}</div> },
    { name: "Price", right: true, show: ({ offer }) => priceText(offer) },
    { name: "Category", wide: true, show: ({ offer }) => offer?.category },
    { name: "Rating", wide: true, right: true, show: ratingText },
    { name: "By", wide: true, show: (one) => (one.orgId === orgId ? "this organisation" : "another") },
    ...(isOwn ? [{ name: "State", show: listingStateOf }] : []),
    { name: "Changed", wide: true, right: true, show: ({ updateTime }) => agoText(updateTime) },
  ];
  return (
    <>
      <Head
        title="Catalog"
        about="Work that organisations sell to each other for credits."
        cli={`npx moltwire listing search${optionsText({ text, category, mine: isOwn, order: order && enumWord(ListingOrder, Number(order)) })}`}
        call={callOf(searchListings, request)}
        onRefresh={listings.refetch}
      >
        <WordText word="text" label="Words" />
        <Categories />
        <WordChoice
          word="order"
          label="Order"
          choices={choicesOf(ListingOrder, "Best first").filter(({ value }) => value !== String(ListingOrder.BEST))}
        />
        <WordSwitch word="own" label="This organisation's own" />
        <Publish onDone={open} />
      </Head>
      <List
        label="Listings"
        {...listings.list}
        schema={ListingSchema}
        columns={columns}
        keyOf={({ listingId }) => listingId}
        onOpen={({ listingId }) => open(listingId)}
        empty={
          <Empty title="Nothing is for sale" command={`npx moltwire listing publish --offer '${example}'`}>
            A listing offers the work under one of your contracts to all other organisations. To publish one:
          </Empty>
        }
      />
      <Drawer opened={opened !== ""} onClose={() => open("")} position="right" size="xl" title="Listing">
        {opened !== "" && <ListingDetails listingId={opened} />}
      </Drawer>
    </>
  );
}

/** The categories that have something. */
function Categories() {
  const [category, choose] = useWord("category");
  const { data } = useQuery(listCategories, { pageSize: 250 });
  const found = (data?.categories ?? []).map((one) => ({
    value: one.category,
    label: `${one.category} (${countText(one.listings)})`,
  }));
  const isFound = category === "" || found.some(({ value }) => value === category);
  return (
    <Select
      size="xs"
      aria-label="Category"
      searchable
      data={[
        { value: "", label: "Any category" },
        ...found,
        ...(isFound ? [] : [{ value: category, label: category }]),
      ]}
      value={category}
      onChange={(next) => choose(next ?? "")}
      allowDeselect={false}
      nothingFoundMessage={<Text size="sm">No such category</Text>}
    />
  );
}
