import { useInfiniteQuery, useQuery } from "@connectrpc/connect-query";
import { Card, SimpleGrid, Text } from "@mantine/core";
import { type AgentDayCosts, AgentDayCostsSchema } from "../../../../gen/moltwire/bus/v1/cost_pb.ts";
import { CostService } from "../../../../gen/moltwire/bus/v1/cost_service_pb.ts";
import { AdminService } from "../../../../gen/moltwire/ops/v1/admin_service_pb.ts";
import { useRefresh } from "../live/use-live.ts";
import { callOf } from "../parts/command.tsx";
import { type Column, List } from "../parts/list.tsx";
import { useAgentNames } from "../parts/names.ts";
import { Empty, Head, Spark } from "../parts/show.tsx";
import { countText, creditsText } from "../parts/text.ts";
import { useOrg } from "../session.ts";

const { listAgentCosts } = CostService.method;

/** What the agents used, by day. */
export function Costs() {
  const orgId = useOrg();
  const nameOf = useAgentNames();
  const overview = useQuery(AdminService.method.getOverview, { orgId });
  const costs = useInfiniteQuery(
    listAgentCosts,
    { orgId, pageSize: 50, pageToken: "" },
    { pageParamKey: "pageToken", getNextPageParam: ({ nextPageToken }) => nextPageToken || undefined },
  );
  useRefresh(
    [listAgentCosts, AdminService.method.getOverview],
    ({ type }) => type === "ANSWERED" || type === "ATTEMPT_FAILED",
    2_000,
  );
  const days = overview.data?.days ?? [];
  const tokens = days.map((day) => Number(day.tokens));
  const credits = days.map((day) => Number(day.costMicros) / 1_000_000);
  const sum = (values: readonly number[]) => values.reduce((total, value) => total + value, 0);
  const columns: readonly Column<AgentDayCosts>[] = [
    { name: "Day", show: ({ date }) => date },
    { name: "Agent", show: ({ agentId }) => nameOf(agentId) },
    { name: "Tasks", wide: true, right: true, show: ({ totals }) => countText(totals?.tasks ?? 0n) },
    { name: "Attempts", wide: true, right: true, show: ({ totals }) => countText(totals?.attempts ?? 0n) },
    {
      name: "Tokens",
      right: true,
      show: ({ totals }) => countText((totals?.inputTokens ?? 0n) + (totals?.outputTokens ?? 0n)),
    },
    { name: "Credits", right: true, show: ({ totals }) => creditsText(totals?.costMicros ?? 0n) },
    { name: "Without a rate", wide: true, right: true, show: ({ totals }) => countText(totals?.unratedAttempts ?? 0n) },
  ];
  return (
    <>
      <Head title="Costs" about="The last 30 days, in UTC." call={callOf(listAgentCosts, { orgId })} />
      <SimpleGrid cols={{ base: 1, sm: 2 }} mb="lg">
        <Card withBorder padding="sm">
          <Text size="sm">Tokens: {countText(sum(tokens))}</Text>
          <Spark values={tokens} label="Tokens by day" />
        </Card>
        <Card withBorder padding="sm">
          <Text size="sm">Credits: {sum(credits).toLocaleString()}</Text>
          <Spark values={credits} label="Credits by day" />
        </Card>
      </SimpleGrid>
      <List
        label="Costs by agent and day"
        schema={AgentDayCostsSchema}
        rows={costs.data?.pages.flatMap((page) => page.agentCosts) ?? []}
        columns={columns}
        keyOf={({ agentId, date }) => `${date} ${agentId}`}
        isPending={costs.isPending}
        error={costs.error}
        more={costs.hasNextPage ? () => void costs.fetchNextPage() : undefined}
        isFetchingMore={costs.isFetchingNextPage}
        empty={
          <Empty title="Nothing was used">
            Tokens are counted when an agent tells, with its answer, how many it used; what they cost follows from the
            rates of CostService/SetRates.
          </Empty>
        }
      />
    </>
  );
}
