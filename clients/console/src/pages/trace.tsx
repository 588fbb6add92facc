import { toJson } from "@bufbuild/protobuf";
import { useQuery } from "@connectrpc/connect-query";
import { Anchor, Button, Card, Drawer, Group, SimpleGrid, Stack, Text, Title } from "@mantine/core";
import { Link, useParams } from "@tanstack/react-router";
import { useState } from "react";
import { CostService } from "../../../../gen/moltwire/bus/v1/cost_service_pb.ts";
import type { TraceEvent } from "../../../../gen/moltwire/bus/v1/trace_pb.ts";
import { GetTraceResponseSchema, TraceService } from "../../../../gen/moltwire/bus/v1/trace_service_pb.ts";
import { kindName, ofStep } from "../live/item.ts";
import { useRefresh } from "../live/use-live.ts";
import { callOf } from "../parts/command.tsx";
import { Failure } from "../parts/failure.tsx";
import { lanesOf } from "../parts/lanes.ts";
import { useAgentNames } from "../parts/names.ts";
import { Facts, Head, Json, Mono, State } from "../parts/show.tsx";
import { TaskPayloads } from "../parts/task-payloads.tsx";
import { countText, creditsText, spanText, timeText } from "../parts/text.ts";
import { Waterfall } from "../parts/waterfall.tsx";
import { useOrg } from "../session.ts";
import { TraceState, tookText } from "./traces.tsx";

const mostEvents = 1_000;

/** One trace: its tasks over time, and every step with its facts. */
export function TracePage() {
  const orgId = useOrg();
  const nameOf = useAgentNames();
  const { traceId = "" } = useParams({ strict: false });
  const request = { orgId, traceId, pageSize: mostEvents };
  const found = useQuery(TraceService.method.getTrace, request);
  const costs = useQuery(CostService.method.getTraceCosts, { orgId, traceId });
  const [step, setStep] = useState<TraceEvent>();
  const [raw, setRaw] = useState(false);
  useRefresh([TraceService.method.getTrace, CostService.method.getTraceCosts], (item) => item.traceId === traceId, 250);
  const head = (
    <Head
      title="Trace"
      cli={`npx moltwire trace get ${traceId}`}
      call={callOf(TraceService.method.getTrace, { orgId, traceId })}
    >
      <Anchor component={Link} to="/traces" size="sm">
        All traces
      </Anchor>
      <Mono>{traceId}</Mono>
    </Head>
  );
  if (!found.data?.trace)
    return (
      <>
        {head}
        {found.error && <Failure error={found.error} />}
      </>
    );
  const { trace, events } = found.data;
  const totals = costs.data?.totals;
  const beganMs = ofStep(events[0]!).timeMs;
  return (
    <>
      {head}
      <SimpleGrid cols={{ base: 1, md: 2 }} mb="lg">
        <Card withBorder>
          <Facts
            facts={[
              ["State", <TraceState key="state" trace={trace} />],
              ["Contract", trace.contractId],
              ["Asked by", nameOf(trace.openerAgentId)],
              ["Began", timeText(trace.startTime)],
              ["Took", tookText(trace)],
            ]}
          />
        </Card>
        <Card withBorder>
          <Facts
            facts={[
              ["Tasks", `${trace.tasks}, of which ${trace.openTasks} under way and ${trace.failedTasks} failed`],
              ["Attempts", totals && countText(totals.attempts)],
              ["Tokens", totals && `${countText(totals.inputTokens)} read, ${countText(totals.outputTokens)} written`],
              ["Cost", totals && `${creditsText(totals.costMicros)} credits`],
            ]}
          />
        </Card>
      </SimpleGrid>
      <Waterfall lanes={lanesOf(events)} nameOf={nameOf} costs={costs.data?.steps ?? []} />
      <Group justify="space-between" mt="xl" mb="xs">
        <Title order={2} size="h4">
          Steps
        </Title>
        <Button variant="default" size="compact-sm" onClick={() => setRaw(!raw)}>
          {raw ? "As a list" : "Raw JSON"}
        </Button>
      </Group>
      {raw ? (
        <Json value={toJson(GetTraceResponseSchema, found.data)} />
      ) : (
        <ul className="feed">
          {events.map((event) => {
            const { tone, timeMs } = ofStep(event);
            return (
              <li key={event.cursor}>
                <Text size="sm" c="dimmed" className="mono">
                  +{spanText(timeMs - beganMs)}
                </Text>
                <div>
                  <Anchor component="button" type="button" c="inherit" size="sm" onClick={() => setStep(event)}>
                    <State tone={tone}>{kindName(event.kind)}</State>
                  </Anchor>{" "}
                  <Text size="sm" span c="dimmed">
                    {event.contractId}
                  </Text>
                  <Text size="sm">{event.message}</Text>
                </div>
              </li>
            );
          })}
        </ul>
      )}
      {found.data.nextPageToken && (
        <Text size="sm" c="dimmed" mt="sm">
          These are the first {countText(mostEvents)} steps. All of them: <Mono>npx moltwire trace get {traceId}</Mono>
        </Text>
      )}
      <Drawer
        opened={step !== undefined}
        onClose={() => setStep(undefined)}
        position="right"
        size="lg"
        title={step && kindName(step.kind)}
      >
        {step && (
          <Stack>
            <Text size="sm">{step.message}</Text>
            <Facts
              facts={[
                ["When", timeText(step.time)],
                ["Task", step.taskId && <Mono key="task">{step.taskId}</Mono>],
                ["Span", <Mono key="span">{step.spanId}</Mono>],
                ["Asked by", nameOf(step.callerAgentId)],
                ["Agent", step.targetAgentId && nameOf(step.targetAgentId)],
              ]}
            />
            <Json value={step.details ?? {}} />
            {step.taskId && <TaskPayloads key={step.taskId} taskId={step.taskId} />}
          </Stack>
        )}
      </Drawer>
    </>
  );
}
