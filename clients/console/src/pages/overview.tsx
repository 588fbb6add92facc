import { useQuery } from "@connectrpc/connect-query";
import { Anchor, Card, Group, SimpleGrid, Stack, Text, Title } from "@mantine/core";
import { Link } from "@tanstack/react-router";
import { Role } from "../../../../gen/moltwire/api/v1/access_pb.ts";
import { AdminService } from "../../../../gen/moltwire/ops/v1/admin_service_pb.ts";
import { StatusService } from "../../../../gen/moltwire/ops/v1/status_service_pb.ts";
import { useLive, useRefresh } from "../live/use-live.ts";
import { callOf } from "../parts/command.tsx";
import { Failure } from "../parts/failure.tsx";
import { Feed } from "../parts/feed.tsx";
import { Empty, Facts, Head, Spark, State, type Tone } from "../parts/show.tsx";
import { countText, creditsText, durationText } from "../parts/text.ts";
import { Waiting } from "../parts/waiting.tsx";
import { useOrg, useSession } from "../session.ts";

type Figure = {
  readonly label: string;
  readonly value: string;
  readonly to: string;
  readonly hint?: string;
  readonly tone?: Tone;
  readonly spark?: readonly number[];
};

/** What a person looks at first: what there is, what goes on, what waits for somebody. */
export function Overview() {
  const orgId = useOrg();
  const { session } = useSession();
  const { items } = useLive();
  const overview = useQuery(AdminService.method.getOverview, { orgId });
  const status = useQuery(StatusService.method.getStatus, {});
  useRefresh([AdminService.method.getOverview], () => true, 1_000);
  if (!overview.data) return overview.error ? <Failure error={overview.error} /> : null;
  const { data } = overview;
  const ofHours = (count: (hour: (typeof data.hours)[number]) => bigint) =>
    data.hours.map((hour) => Number(count(hour)));
  const sum = (values: readonly number[]) => values.reduce((total, value) => total + value, 0);
  const traces = ofHours(({ traces }) => traces);
  const denied = ofHours(({ denied }) => denied);
  const allowed = ofHours(({ allowed }) => allowed);
  const failed = ofHours(({ failedTasks }) => failedTasks);
  const deliveries = ofHours(({ deliveries }) => deliveries);
  const today = data.days.at(-1);
  const alarm = (count: bigint, tone: Tone): { tone?: Tone } => (count > 0n ? { tone } : {});
  const figures: readonly Figure[] = [
    {
      label: "Tasks under way",
      value: countText(data.openTasks),
      to: "/traces",
      hint: `${countText(sum(traces))} traces in 24 h`,
      spark: traces,
    },
    {
      label: "Errors in 24 h",
      value: countText(sum(failed)),
      to: "/dead-letters",
      hint: `${countText(data.openDeadLetters)} dead letters are open`,
      spark: failed,
      tone: "bad",
    },
    {
      label: "Decisions in 24 h",
      value: countText(sum(allowed)),
      to: "/decisions",
      hint: `${countText(sum(denied))} denied`,
      spark: denied,
      tone: "wait",
    },
    {
      label: "Tokens today",
      value: countText(today?.tokens ?? 0n),
      to: "/costs",
      hint: "by day, for 30 days",
      spark: data.days.map(({ tokens }) => Number(tokens)),
    },
    {
      label: "Credits today",
      value: creditsText(today?.costMicros ?? 0n),
      to: "/costs",
      hint: "by day, for 30 days",
      spark: data.days.map(({ costMicros }) => Number(costMicros)),
    },
    {
      label: "Approvals that wait",
      value: countText(data.pendingApprovals),
      to: "/approvals",
      ...alarm(data.pendingApprovals, "wait"),
    },
    {
      label: "Deliveries in 24 h",
      value: countText(sum(deliveries)),
      to: "/webhooks",
      hint: `${countText(data.pendingDeliveries)} under way, ${countText(data.failedDeliveries)} given up`,
      spark: deliveries,
    },
    {
      label: "Jobs that wait",
      value: countText(data.pendingJobs),
      to: "/queues",
      hint: `${countText(data.leasedJobs)} under way, ${countText(data.deadJobs)} dead`,
    },
    {
      label: "Agents",
      value: countText(data.agents),
      to: "/agents",
      hint:
        data.openCircuits > 0n
          ? `${countText(data.openCircuits)} with an open circuit`
          : `${countText(data.contractVersions)} contract versions`,
      ...alarm(data.openCircuits, "bad"),
    },
  ];
  const details = status.data?.details;
  return (
    <>
      <Head title="Overview" call={callOf(AdminService.method.getOverview, { orgId })} />
      <SimpleGrid cols={{ base: 2, sm: 3 }} spacing="sm" mb="lg">
        {figures.map((figure) => (
          <FigureCard key={figure.label} {...figure} />
        ))}
      </SimpleGrid>
      <SimpleGrid cols={{ base: 1, md: 2 }} spacing="lg">
        <Stack gap="xs">
          <Title order={2} size="h4">
            Now
          </Title>
          {items.length > 0 ? (
            <Feed items={items.slice(0, 12)} />
          ) : (
            <Empty
              title="Nothing has happened since this page was opened"
              command={`npx moltwire submit echo '{"hello":"world"}'`}
            >
              Steps of tasks and events appear here as they are committed. To see one, submit a task:
            </Empty>
          )}
        </Stack>
        <Stack gap="xs">
          <Waiting />
          <Title order={2} size="h4">
            Server
          </Title>
          <Card withBorder>
            <Facts
              facts={[
                [
                  "Health",
                  status.data ? (
                    <State tone={status.data.healthy ? "good" : "bad"}>
                      {status.data.healthy ? "healthy" : "not healthy"}
                    </State>
                  ) : (
                    "–"
                  ),
                ],
                ["Version", status.data?.version],
                ["Up for", durationText(status.data?.uptime)],
                ["At rest", status.data?.encryptionAtRest ? "encrypted" : "not encrypted"],
                ["Storage", details && `${details.engine}, schema ${details.schemaVersion}`],
                ["Organisations", details && countText(details.organizations)],
                ["Open streams", details && countText(details.openStreams)],
                ["Signed in as", `${session.role === Role.OPERATOR ? "operator" : "administrator"} (${session.keyId})`],
              ]}
            />
          </Card>
        </Stack>
      </SimpleGrid>
    </>
  );
}

const FigureCard = ({ label, value, to, hint, tone, spark }: Figure) => (
  <Card withBorder padding="sm">
    <Stack gap={4} h="100%" justify="space-between">
      <div>
        <Anchor component={Link} to={to} size="sm">
          {label}
        </Anchor>
        <Group gap="xs" align="baseline">
          <Text size="xl" fw={700} className={tone && !spark ? `state ${tone}` : ""}>
            {value}
          </Text>
        </Group>
        {hint && (
          <Text size="xs" c="dimmed">
            {hint}
          </Text>
        )}
      </div>
      {spark && <Spark values={spark} label={hint ?? label} {...(tone && { tone })} />}
    </Stack>
  </Card>
);
