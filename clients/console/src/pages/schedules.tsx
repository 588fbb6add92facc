import { useInfiniteQuery, useMutation } from "@connectrpc/connect-query";
import { Button, Drawer, Group, Stack, Text } from "@mantine/core";
import { useState } from "react";
import { type Schedule, ScheduleSchema } from "../../../../gen/moltwire/queue/v1/schedule_pb.ts";
import { ScheduleService } from "../../../../gen/moltwire/queue/v1/schedule_service_pb.ts";
import { useRefresh } from "../live/use-live.ts";
import { useReadAgain } from "../parts/again.ts";
import { AsCommand, callOf } from "../parts/command.tsx";
import { Failure } from "../parts/failure.tsx";
import { type Column, List } from "../parts/list.tsx";
import { useAgentNames } from "../parts/names.ts";
import { Payload, useIsKept } from "../parts/reveal.tsx";
import { Empty, Facts, Head, Mono, Raw, State } from "../parts/show.tsx";
import { countText, timeText } from "../parts/text.ts";
import { useOrg } from "../session.ts";

const { listSchedules, triggerSchedule } = ScheduleService.method;

const stateOf = ({ settings, lastError, nextTime }: Schedule) => {
  if (settings?.disabled) return <State tone="off">disabled</State>;
  if (lastError) return <State tone="bad">failing</State>;
  return nextTime ? <State tone="good">runs</State> : <State tone="off">over</State>;
};

/** What makes jobs at its times. */
export function Schedules() {
  const orgId = useOrg();
  const nameOf = useAgentNames();
  const [opened, open] = useState<Schedule>();
  const schedules = useInfiniteQuery(
    listSchedules,
    { orgId, pageSize: 50, pageToken: "" },
    { pageParamKey: "pageToken", getNextPageParam: ({ nextPageToken }) => nextPageToken || undefined },
  );
  useRefresh([listSchedules], ({ type }) => type.startsWith("job."), 2_000);
  const columns: readonly Column<Schedule>[] = [
    { name: "State", show: stateOf },
    { name: "Name", show: ({ settings, scheduleId }) => settings?.name || <Mono>{scheduleId}</Mono> },
    { name: "Times", wide: true, show: ({ settings }) => <Mono>{settings?.timing?.cron}</Mono> },
    { name: "Agent", wide: true, show: ({ agentId }) => nameOf(agentId) },
    { name: "Queue", wide: true, show: ({ settings }) => settings?.job?.queue },
    { name: "Runs", wide: true, right: true, show: ({ runCount }) => countText(runCount) },
    { name: "Next", right: true, show: ({ nextTime }) => timeText(nextTime) },
  ];
  return (
    <>
      <Head title="Schedules" call={callOf(listSchedules, { orgId })} onRefresh={() => void schedules.refetch()} />
      <List
        label="Schedules"
        rows={schedules.data?.pages.flatMap((page) => page.schedules) ?? []}
        columns={columns}
        keyOf={({ scheduleId }) => scheduleId}
        onOpen={open}
        isPending={schedules.isPending}
        error={schedules.error}
        more={schedules.hasNextPage ? () => void schedules.fetchNextPage() : undefined}
        isFetchingMore={schedules.isFetchingNextPage}
        empty={
          <Empty
            title="No schedules"
            command={`curl -sS ${window.location.origin}/moltwire.queue.v1.ScheduleService/CreateSchedule \\\n  -H "authorization: Bearer $MOLTWIRE_API_KEY" -H 'content-type: application/json' \\\n  -d '{"settings":{"name":"nightly","timing":{"cron":"0 3 * * *"},"job":{"queue":"reports"}}}'`}
          >
            A schedule puts a job into a queue at each of its times. To make one, with the key of an agent:
          </Empty>
        }
      />
      <Drawer opened={opened !== undefined} onClose={() => open(undefined)} position="right" size="lg" title="Schedule">
        {opened && <Details schedule={opened} />}
      </Drawer>
    </>
  );
}

function Details({ schedule }: { schedule: Schedule }) {
  const orgId = useOrg();
  const nameOf = useAgentNames();
  const readAgain = useReadAgain();
  const isKept = useIsKept();
  const { scheduleId, settings } = schedule;
  const trigger = useMutation(triggerSchedule, {
    onSuccess: () => readAgain([listSchedules]),
  });
  return (
    <Stack>
      <Facts
        facts={[
          ["State", stateOf(schedule)],
          ["Id", <Mono key="id">{scheduleId}</Mono>],
          ["Name", settings?.name],
          ["Times", <Mono key="times">{`${settings?.timing?.cron} ${settings?.timing?.timeZone}`}</Mono>],
          ["Agent", nameOf(schedule.agentId)],
          ["Queue", settings?.job?.queue],
          ["Next", timeText(schedule.nextTime)],
          ["Last", timeText(schedule.lastRunTime)],
          [
            "Runs",
            `${countText(schedule.runCount)}, ${countText(schedule.missedCount)} missed, ${countText(schedule.skippedCount)} skipped`,
          ],
          ["Error", schedule.lastError?.message],
        ]}
      />
      {trigger.error && <Failure error={trigger.error} />}
      {trigger.data && (
        <Text size="sm" role="status">
          <State tone="good">Made {trigger.data.job?.jobId}</State>
        </Text>
      )}
      <Group>
        <Button variant="default" onClick={() => trigger.mutate({ orgId, scheduleId })} loading={trigger.isPending}>
          Run now
        </Button>
        <AsCommand call={callOf(triggerSchedule, { orgId, scheduleId })} />
      </Group>
      {isKept && <Payload subject={{ case: "scheduleId", value: scheduleId }}>{null}</Payload>}
      <Raw schema={ScheduleSchema} message={schedule} />
    </Stack>
  );
}
