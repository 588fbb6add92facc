import { useQuery } from "@connectrpc/connect-query";
import { Card, SimpleGrid, Text, Title } from "@mantine/core";
import { type SlaWindow, StatusService } from "../../../../gen/moltwire/ops/v1/status_service_pb.ts";
import { callOf } from "../parts/command.tsx";
import { Failure } from "../parts/failure.tsx";
import { Facts, Head, State } from "../parts/show.tsx";
import { countText, durationText, timeText } from "../parts/text.ts";

const { getSla } = StatusService.method;

/** How much of the time the server was up. */
export function Sla() {
  const { data, error, refetch } = useQuery(getSla, {});
  const target = data?.targetPercent ?? 100;
  const spans: readonly (readonly [string, SlaWindow | undefined])[] = [
    ["24 hours", data?.day],
    ["7 days", data?.week],
    ["30 days", data?.month],
  ];
  return (
    <>
      <Head
        title="SLA"
        about="Each minute the server writes to its storage and reads that back; a minute in which it did not counts as down."
        cli="npx moltwire status"
        call={callOf(getSla, {})}
        onRefresh={() => void refetch()}
      />
      {error && <Failure error={error} />}
      <Text size="sm" mb="md">
        It aims at {target} %, and counts since {timeText(data?.sinceTime)}.
      </Text>
      <SimpleGrid cols={{ base: 1, sm: 3 }}>
        {spans.map(([title, window]) => (
          <Card key={title} withBorder padding="md">
            <Title order={2} size="h5" mb="xs">
              {title}
            </Title>
            <Text size="xl" fw={600}>
              <State tone={toneOf(window, target)}>{percentOf(window)}</State>
            </Text>
            <Facts
              facts={[
                ["Minutes up", window && `${countText(window.minutesUp)} of ${countText(window.minutesTotal)}`],
                ["Answers in", window?.meanResponse && `${durationText(window.meanResponse)} in the mean`],
              ]}
            />
          </Card>
        ))}
      </SimpleGrid>
    </>
  );
}

const percentOf = (window: SlaWindow | undefined): string =>
  window?.uptimePercent === undefined ? "not known yet" : `${window.uptimePercent.toFixed(3)} %`;

const toneOf = (window: SlaWindow | undefined, target: number) =>
  window?.uptimePercent === undefined ? "off" : window.uptimePercent >= target ? "good" : "bad";
