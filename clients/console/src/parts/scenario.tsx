import { timestampMs } from "@bufbuild/protobuf/wkt";
import { createClient } from "@connectrpc/connect";
import { useQuery, useTransport } from "@connectrpc/connect-query";
import { Anchor, Group, Stack, Text, Title } from "@mantine/core";
import { Link } from "@tanstack/react-router";
import { useState } from "react";
import {
  type CriterionResult,
  CriterionResultSchema,
  type Participant,
  ParticipantSchema,
  Pattern,
  type Scenario,
  type ScenarioEvent,
  ScenarioEventKind,
  type ScenarioResults,
  ScenarioResultsSchema,
  ScenarioState,
} from "../../../../gen/moltwire/lab/v1/scenario_pb.ts";
import { ScenarioService } from "../../../../gen/moltwire/lab/v1/scenario_service_pb.ts";
import { useFeed } from "../live/use-feed.ts";
import { useOrg } from "../session.ts";
import { Act } from "./act.tsx";
import { useReadAgain } from "./again.ts";
import { AsCommand, callOf } from "./command.tsx";
import { type Column, List } from "./list.tsx";
import { Facts, Mono, Raw, State, type Tone } from "./show.tsx";
import { clockText, durationText, enumText, timeText } from "./text.ts";

const { listScenarios, runScenario, cancelScenario, getScenarioResults } = ScenarioService.method;
/** Of a run the server keeps 1,000 events. */
const eventsKept = 1_000;

const tones: Readonly<Record<number, Tone>> = {
  [ScenarioState.UNSPECIFIED]: "off",
  [ScenarioState.CREATED]: "off",
  [ScenarioState.RUNNING]: "wait",
  [ScenarioState.SUCCEEDED]: "good",
  [ScenarioState.FAILED]: "bad",
  [ScenarioState.CANCELED]: "off",
  [ScenarioState.ABORTED]: "bad",
};
const eventTones: Readonly<Record<number, Tone>> = {
  [ScenarioEventKind.UNSPECIFIED]: "off",
  [ScenarioEventKind.STARTED]: "wait",
  [ScenarioEventKind.PLAYING]: "wait",
  [ScenarioEventKind.PROGRESS]: "good",
  [ScenarioEventKind.FAULT]: "bad",
  [ScenarioEventKind.AGENT_ENDED]: "off",
  [ScenarioEventKind.ENDED]: "good",
};

export const scenarioStateOf = ({ state }: { state: ScenarioState }) => (
  <State tone={tones[state] ?? "off"}>{enumText(ScenarioState, state)}</State>
);

const faultsText = ({ faults }: Scenario): string =>
  Object.entries({
    lost: faults?.drop,
    late: faults?.delay,
    crashes: faults?.crash,
    "cut off": faults?.partition,
  })
    .filter(([, chance]) => chance)
    .map(([name, chance]) => `${name} ${chance}`)
    .join(", ");

/** One scenario: its run as it goes, and what came of it. */
export function ScenarioDetails({ scenarioId }: { scenarioId: string }) {
  // Each run is a feed of its own, which ends with it.
  const [began, setBegan] = useState(0);
  return <Watched key={began} scenarioId={scenarioId} onRun={() => setBegan((before) => before + 1)} />;
}

function Watched({ scenarioId, onRun }: { scenarioId: string; onRun: () => void }) {
  const orgId = useOrg();
  const transport = useTransport();
  const readAgain = useReadAgain();
  const [scenario, setScenario] = useState<Scenario>();
  const [events, setEvents] = useState<readonly ScenarioEvent[]>([]);
  const [ended, setEnded] = useState(false);
  const [place] = useState({ afterSequence: 0n });
  const isNew = scenario?.state === ScenarioState.CREATED;
  useFeed(scenarioId, {
    begin: (signal) =>
      createClient(ScenarioService, transport).watchScenario({ orgId, scenarioId, ...place }, { signal }),
    onMessage: ({ sequence, event }) => {
      place.afterSequence = sequence;
      if (event.case === "scenario") setScenario(event.value);
      if (event.case !== "scenarioEvent") return;
      const told = event.value;
      setEvents((before) => [told, ...before].slice(0, eventsKept));
      if (told.kind === ScenarioEventKind.ENDED) setEnded(true);
      else if (told.kind === ScenarioEventKind.STARTED)
        setScenario((before) => before && { ...before, state: ScenarioState.RUNNING });
      return told.kind === ScenarioEventKind.ENDED ? "end" : "news";
    },
    onNews: () => void readAgain(ended ? [listScenarios, getScenarioResults] : [listScenarios]),
  });
  const results = useQuery(getScenarioResults, { orgId, scenarioId }, { enabled: ended });
  const shown = results.data?.scenario ?? scenario;
  if (!shown) return null;
  const isRunning = shown.state === ScenarioState.RUNNING;
  const request = { orgId, scenarioId };
  return (
    <Stack>
      <Title order={3} size="h4">
        {shown.name}
      </Title>
      <Facts
        facts={[
          ["State", scenarioStateOf(shown)],
          ["Why", results.data?.results?.reason],
          ["Id", <Mono key="id">{scenarioId}</Mono>],
          ["Pattern", enumText(Pattern, shown.pattern)],
          ["Agents", String(shown.agentCount)],
          ["Faults", faultsText(shown) || "none"],
          ["Seed", String(shown.seed)],
          ["Run", shown.run > 0 && String(shown.run)],
          ["Began", shown.startTime && timeText(shown.startTime)],
          ["Took", results.data?.results?.duration && durationText(results.data.results.duration)],
        ]}
      />
      <Group>
        {isRunning ? (
          <Act
            label="Cancel"
            tone="bad"
            title="End this run?"
            about="Its agents stop at once; what was observed may be nothing."
            method={cancelScenario}
            request={request}
            cli={`npx moltwire lab cancel ${scenarioId}`}
            again={[listScenarios]}
          />
        ) : (
          <Act
            label={isNew ? "Run" : "Run again"}
            tone="main"
            title="Run it?"
            about="With the same seed the same faults come. What the run before has left is replaced."
            method={runScenario}
            request={request}
            cli={`npx moltwire lab run ${scenarioId}`}
            again={[listScenarios]}
            onDone={onRun}
          />
        )}
        {shown.traceId && (
          <Anchor component={Link} to={`/traces/${shown.traceId}`} size="sm">
            Its trace
          </Anchor>
        )}
        <AsCommand cli={`npx moltwire lab watch ${scenarioId}`} call={callOf(getScenarioResults, request)} />
      </Group>
      {results.data?.results && <Results results={results.data.results} />}
      <Title order={3} size="h5">
        What happens
      </Title>
      {events.length === 0 && <Text size="sm">Nothing yet.</Text>}
      <ul className="feed" aria-label="What happens, newest first">
        {events.map(({ sequence, time, kind, agent, message }) => (
          <li key={String(sequence)}>
            <span className="mono dimmed">{time && clockText(timestampMs(time))}</span>
            <div>
              <State tone={eventTones[kind] ?? "off"}>{enumText(ScenarioEventKind, kind)}</State>{" "}
              <span className="dimmed">{agent !== undefined && `agent ${agent}`}</span>
              <div>{message}</div>
            </div>
          </li>
        ))}
      </ul>
    </Stack>
  );
}

const round = (value: number): string => value.toLocaleString(undefined, { maximumFractionDigits: 2 });

const criterionColumns: readonly Column<CriterionResult>[] = [
  { name: "Criterion", show: ({ name }) => name.replaceAll("_", " ") },
  { name: "Wanted", right: true, show: ({ wanted }) => round(wanted) },
  { name: "Measured", right: true, show: ({ measured }) => (measured === undefined ? "nothing" : round(measured)) },
  { name: "Met", show: ({ met }) => <State tone={met ? "good" : "bad"}>{met ? "yes" : "no"}</State> },
];

const participantColumns: readonly Column<Participant>[] = [
  { name: "Agent", right: true, show: ({ agent }) => String(agent) },
  { name: "Role", show: ({ role }) => role },
  {
    name: "End",
    show: ({ completed, reason }) => <State tone={completed ? "good" : "bad"}>{completed ? "done" : reason}</State>,
  },
  { name: "Work", right: true, show: ({ done }) => String(done) },
  { name: "Calls", wide: true, right: true, show: ({ calls }) => String(calls) },
  { name: "Received", wide: true, right: true, show: ({ received }) => String(received) },
  { name: "Crashes", wide: true, right: true, show: ({ crashes }) => String(crashes) },
];

/** What was observed: what must hold, what was to be reached, and who did what. */
function Results({ results }: { results: ScenarioResults }) {
  return (
    <>
      <Title order={3} size="h5">
        What must hold
      </Title>
      <ul className="feed" aria-label="What must hold">
        {results.safety.map(({ name, held, description, violations }) => (
          <li key={name}>
            <State tone={held ? "good" : "bad"}>{held ? "held" : "broken"}</State>
            <div>
              {name.replaceAll("_", " ")}
              <div className="dimmed">{description}</div>
              {violations.map((one) => (
                <div key={one}>{one}</div>
              ))}
            </div>
          </li>
        ))}
      </ul>
      <Title order={3} size="h5">
        What was to be reached
      </Title>
      <List
        label="Criteria"
        rows={results.criteria}
        schema={CriterionResultSchema}
        columns={criterionColumns}
        keyOf={({ name }) => name}
        isPending={false}
        error={undefined}
        empty={<Text size="sm">Nothing was asked for.</Text>}
      />
      <Title order={3} size="h5">
        Who did what
      </Title>
      <List
        label="Participants"
        rows={results.participants}
        schema={ParticipantSchema}
        columns={participantColumns}
        keyOf={({ agent }) => String(agent)}
        isPending={false}
        error={undefined}
        empty={<Text size="sm">Nobody came so far.</Text>}
      />
      <Facts
        facts={[
          ...Object.entries(results.measures).map(
            ([name, value]) => [name.replaceAll("_", " "), round(value)] as const,
          ),
          ["Faults met", String(results.faultCount)] as const,
        ]}
      />
      <Raw schema={ScenarioResultsSchema} message={results} />
    </>
  );
}
