import { useMutation } from "@connectrpc/connect-query";
import { Drawer, NumberInput, Select, Text } from "@mantine/core";
import { useState } from "react";
import { Pattern, type Scenario, ScenarioSchema, ScenarioState } from "../../../../gen/moltwire/lab/v1/scenario_pb.ts";
import { ScenarioService } from "../../../../gen/moltwire/lab/v1/scenario_service_pb.ts";
import { Act } from "../parts/act.tsx";
import { useWord } from "../parts/address.ts";
import { callOf } from "../parts/command.tsx";
import { Failure } from "../parts/failure.tsx";
import { WordChoice } from "../parts/filters.tsx";
import { type Column, List } from "../parts/list.tsx";
import { usePages } from "../parts/pages.ts";
import { ScenarioDetails, scenarioStateOf } from "../parts/scenario.tsx";
import { Empty, Head } from "../parts/show.tsx";
import { agoText, choicesOf, enumText, enumWord, optionsText } from "../parts/text.ts";
import { useOrg } from "../session.ts";

const { listScenarios, createScenario, runScenario } = ScenarioService.method;

/** Plays of agents that coordinate while calls are lost and agents crash. */
export function Lab() {
  const orgId = useOrg();
  const [pattern] = useWord("pattern");
  const [state] = useWord("state");
  const [opened, open] = useWord("scenario");
  const request = { orgId, pattern: Number(pattern) as Pattern, state: Number(state) as ScenarioState };
  const scenarios = usePages(listScenarios, request, (page) => page.scenarios);
  const columns: readonly Column<Scenario>[] = [
    { name: "State", show: scenarioStateOf },
    { name: "Name", show: ({ name }) => <div className="fit">{name}</div> },
    { name: "Pattern", wide: true, show: (one) => enumText(Pattern, one.pattern) },
    { name: "Agents", right: true, show: ({ agentCount }) => String(agentCount) },
    { name: "Runs", wide: true, right: true, show: ({ run }) => String(run) },
    { name: "Age", wide: true, right: true, show: ({ createTime }) => agoText(createTime) },
  ];
  return (
    <>
      <Head
        title="Lab"
        about="Agents coordinate over this server's own relay, memory and queue, and you see what holds when things go wrong."
        cli={`npx moltwire lab list${optionsText({
          pattern: pattern && enumWord(Pattern, request.pattern),
          state: state && enumWord(ScenarioState, request.state),
        })}`}
        call={callOf(listScenarios, request)}
        onRefresh={scenarios.refetch}
      >
        <WordChoice word="pattern" label="Pattern" choices={choicesOf(Pattern, "Any pattern")} />
        <WordChoice word="state" label="State" choices={choicesOf(ScenarioState, "In any state")} />
        <NewScenario onMade={open} />
      </Head>
      <List
        label="Scenarios"
        {...scenarios.list}
        schema={ScenarioSchema}
        columns={columns}
        keyOf={({ scenarioId }) => scenarioId}
        onOpen={({ scenarioId }) => open(scenarioId)}
        empty={
          <Empty title="Nothing was played" command="npx moltwire lab create leader-election 5 --crash 0.3">
            A scenario says what agents do together, and what goes wrong meanwhile. To describe one:
          </Empty>
        }
      />
      <Drawer opened={opened !== ""} onClose={() => open("")} position="right" size="xl" title="Scenario">
        {opened !== "" && <ScenarioDetails key={opened} scenarioId={opened} />}
      </Drawer>
    </>
  );
}

const chances = ["drop", "delay", "crash", "partition"] as const;

/** Describes a play and begins it. */
function NewScenario({ onMade }: { onMade: (scenarioId: string) => void }) {
  const orgId = useOrg();
  const [word, setWord] = useState(String(Pattern.LEADER_ELECTION));
  const [agentCount, setCount] = useState(5);
  const [faults, setFaults] = useState({ drop: 0, delay: 0, crash: 0, partition: 0 });
  const run = useMutation(runScenario);
  const pattern = Number(word) as Pattern;
  return (
    <>
      <Act
        label="New run"
        size="compact-sm"
        tone="main"
        title="What shall they do?"
        about="A run makes an organisation of its own; when it has ended nothing of it is left but what was observed."
        method={createScenario}
        request={{ orgId, pattern, agentCount, faults }}
        cli={`npx moltwire lab create ${enumWord(Pattern, pattern)} ${agentCount}${chances.map((one) => (faults[one] > 0 ? ` --${one} ${faults[one]}` : "")).join("")}`}
        again={[listScenarios]}
        onDone={({ scenario }) => {
          const { scenarioId = "" } = scenario ?? {};
          run.mutate({ orgId, scenarioId }, { onSuccess: () => onMade(scenarioId) });
        }}
      >
        <Select
          label="Pattern"
          data={choicesOf(Pattern, "").filter(({ value }) => value !== "")}
          value={word}
          onChange={(next) => setWord(next ?? word)}
          allowDeselect={false}
        />
        <NumberInput
          label="Agents"
          value={agentCount}
          onChange={(next) => setCount(Number(next) || 2)}
          min={2}
          max={50}
        />
        <Text size="sm">What goes wrong, each with a probability from 0 to 1:</Text>
        {chances.map((one) => (
          <NumberInput
            key={one}
            label={chanceTitles[one]}
            value={faults[one]}
            onChange={(next) => setFaults((before) => ({ ...before, [one]: Number(next) || 0 }))}
            min={0}
            max={1}
            step={0.1}
            decimalScale={2}
          />
        ))}
      </Act>
      {run.error && <Failure error={run.error} />}
    </>
  );
}

const chanceTitles = {
  drop: "A call or message is lost",
  delay: "A call or message is late",
  crash: "An agent crashes once",
  partition: "Some agents are cut off",
} as const;
