import { useQuery } from "@connectrpc/connect-query";
import { Card, SimpleGrid, Text, Title } from "@mantine/core";
import {
  type SlaSlice,
  SlaSliceSchema,
  type SlaWindow,
  StatusService,
} from "../../../../gen/moltwire/ops/v1/status_service_pb.ts";
import { callOf } from "../parts/command.tsx";
import { Failure } from "../parts/failure.tsx";
import { type Column, List } from "../parts/list.tsx";
import { Facts, Head, State, type Tone } from "../parts/show.tsx";
import { countText, durationText, timeText } from "../parts/text.ts";

const { getSla } = StatusService.method;

/** How much of the time the server was up. */
export function Sla() {
  const { data, error, isPending, refetch } = useQuery(getSla, {});
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
      <Timeline title="The last 24 hours" slices={data?.hours ?? []} target={target} />
      <Timeline title="The last 30 days" slices={data?.days ?? []} target={target} />
      <Title order={2} size="h4" mt="xl" mb="xs">
        Days and hours that were not whole
      </Title>
      <List
        label="Uptime"
        rows={[...(data?.hours ?? []), ...(data?.days ?? [])].filter((one) => one.minutesUp < one.minutesTotal)}
        schema={SlaSliceSchema}
        columns={columns}
        keyOf={(one) => `${timeText(one.startTime)} ${one.minutesTotal}`}
        isPending={isPending}
        error={undefined}
        empty={<Text size="sm">None: the server was up in every minute that counts.</Text>}
      />
    </>
  );
}

const columns: readonly Column<SlaSlice>[] = [
  { name: "From", show: ({ startTime }) => timeText(startTime) },
  { name: "Down", right: true, show: (one) => `${countText(one.minutesTotal - one.minutesUp)} min` },
  { name: "Of", right: true, show: ({ minutesTotal }) => `${countText(minutesTotal)} min` },
];

type TimelineProps = { readonly title: string; readonly slices: readonly SlaSlice[]; readonly target: number };

/** A bar for each hour or day, as high as it was up and coloured by the target; oldest first. */
const Timeline = ({ title, slices, target }: TimelineProps) => (
  <>
    <Title order={2} size="h4" mt="xl" mb="xs">
      {title}
    </Title>
    <ol className="uptime" aria-label={title}>
      {slices.map((slice) => {
        const text = `${timeText(slice.startTime)}: ${slice.minutesUp} of ${slice.minutesTotal} min`;
        return (
          <li key={timeText(slice.startTime)} className={toneOfSlice(slice, target)} title={text}>
            <span style={{ height: `${partOf(slice) * 100}%` }} />
            <em>{text}</em>
          </li>
        );
      })}
    </ol>
  </>
);

const partOf = ({ minutesUp, minutesTotal }: SlaSlice): number => (minutesTotal === 0 ? 0 : minutesUp / minutesTotal);

const toneOfSlice = (slice: SlaSlice, target: number): Tone => {
  if (slice.minutesTotal === 0) return "off";
  return partOf(slice) * 100 >= target ? "good" : partOf(slice) > 0.9 ? "wait" : "bad";
};

const percentOf = (window: SlaWindow | undefined): string =>
  window?.uptimePercent === undefined ? "not known yet" : `${window.uptimePercent.toFixed(3)} %`;

const toneOf = (window: SlaWindow | undefined, target: number) =>
  window?.uptimePercent === undefined ? "off" : window.uptimePercent >= target ? "good" : "bad";
