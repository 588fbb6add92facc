import { useQuery } from "@connectrpc/connect-query";
import { Card, SimpleGrid, Text, Title } from "@mantine/core";
import {
  BillingService,
  type DayEarnings,
  DayEarningsSchema,
} from "../../../../gen/moltwire/exchange/v1/billing_service_pb.ts";
import { CatalogService } from "../../../../gen/moltwire/exchange/v1/catalog_service_pb.ts";
import { useWord } from "../parts/address.ts";
import { callOf, curlOf } from "../parts/command.tsx";
import { WordText } from "../parts/filters.tsx";
import { type Column, List } from "../parts/list.tsx";
import { usePages } from "../parts/pages.ts";
import { Empty, Head, Spark } from "../parts/show.tsx";
import { countText, creditsText, shortId } from "../parts/text.ts";
import { useOrg } from "../session.ts";

const { getEarnings } = BillingService.method;
const { searchListings } = CatalogService.method;

/** What the organisation has earned by its listings, by day. */
export function Earnings() {
  const orgId = useOrg();
  const [listingId] = useWord("listing");
  const request = { orgId, listingId };
  const total = useQuery(getEarnings, { ...request, pageSize: 1 });
  const earnings = usePages(getEarnings, request, (page) => page.days);
  const listings = useQuery(searchListings, { providerOrgId: orgId, pageSize: 250 });
  const titles = new Map(listings.data?.listings.map((one) => [one.listingId, one.offer?.title]));
  const all = total.data?.total;
  const columns: readonly Column<DayEarnings>[] = [
    { name: "Day", show: ({ date }) => date },
    {
      name: "Listing",
      show: (one) => <div className="fit">{titles.get(one.listingId) ?? shortId(one.listingId)}</div>,
    },
    { name: "Completed", wide: true, right: true, show: (one) => countText(one.earnings?.completedRequests ?? 0n) },
    { name: "Failed", wide: true, right: true, show: (one) => countText(one.earnings?.failedRequests ?? 0n) },
    { name: "Requests", wide: true, right: true, show: (one) => creditsText(one.earnings?.requestsMicros ?? 0n) },
    { name: "Plans", wide: true, right: true, show: (one) => creditsText(one.earnings?.subscriptionsMicros ?? 0n) },
    { name: "Fees", wide: true, right: true, show: (one) => creditsText(one.earnings?.feesMicros ?? 0n) },
    { name: "Earned", right: true, show: (one) => creditsText(one.earnings?.netMicros ?? 0n) },
  ];
  const figures: readonly (readonly [string, string])[] = [
    ["Earned", creditsText(all?.netMicros ?? 0n)],
    ["By requests", creditsText(all?.requestsMicros ?? 0n)],
    ["By subscriptions", creditsText(all?.subscriptionsMicros ?? 0n)],
    ["Fees", creditsText(all?.feesMicros ?? 0n)],
  ];
  return (
    <>
      <Head
        title="Earnings"
        about="Credits that came in by this organisation's listings, by day of UTC."
        call={callOf(getEarnings, request)}
        onRefresh={() => {
          void total.refetch();
          earnings.refetch();
        }}
      >
        <WordText word="listing" label="Listing, by its id" />
      </Head>
      <SimpleGrid cols={{ base: 2, sm: 4 }} mb="md">
        {figures.map(([title, value]) => (
          <Card key={title} withBorder padding="sm">
            <Text size="sm" c="dimmed">
              {title}
            </Text>
            <Title order={2} size="h3">
              {value}
            </Title>
          </Card>
        ))}
      </SimpleGrid>
      {earnings.list.rows.length > 1 && (
        <Card withBorder padding="sm" mb="md">
          <Spark
            values={earnings.list.rows.map((one) => Number(one.earnings?.netMicros ?? 0n) / 1e6).toReversed()}
            label="Earned, oldest first"
          />
        </Card>
      )}
      <List
        label="Earnings"
        {...earnings.list}
        schema={DayEarningsSchema}
        columns={columns}
        keyOf={(one) => `${one.date} ${one.listingId}`}
        empty={
          <Empty title="Nothing was earned yet" command={curlOf(callOf(getEarnings, {}))}>
            Each request for a listing of yours that completes is paid at once. To read this from a program:
          </Empty>
        }
      />
    </>
  );
}
