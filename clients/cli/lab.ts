/** `moltwire lab`: agents that coordinate, and what holds when calls are lost and agents crash. */
import { toJson } from "@bufbuild/protobuf";
import { timestampMs } from "@bufbuild/protobuf/wkt";
import {
  PatternSchema,
  type Scenario,
  ScenarioEventKind,
  type ScenarioResults,
  ScenarioState,
  ScenarioStateSchema,
} from "../../gen/moltwire/lab/v1/scenario_pb.ts";
import {
  ScenarioService,
  type WatchScenarioResponse,
  WatchScenarioResponseSchema,
} from "../../gen/moltwire/lab/v1/scenario_service_pb.ts";
import { addCall } from "./call.ts";
import { addNoun, type Noun, run, withServer } from "./command.ts";
import { connectClients } from "./connect.ts";
import { exitCodes } from "./exit-codes.ts";
import { choices, duration, type Field, number, oneOf, type Reading } from "./field.ts";
import { follow } from "./follow.ts";
import { addList } from "./list.ts";
import { nameIn } from "./names.ts";
import { note, paint, plain, print, printJson, span } from "./output.ts";
import { type ConnectionOptions, readSettings, UsageError } from "./settings.ts";
import { age, at, type Column, renderFacts } from "./table.ts";

const { createScenario, runScenario, listScenarios, cancelScenario, getScenarioResults } = ScenarioService.method;

const which: Field = { name: "scenarioId", as: "<scenario>", help: "its id: scn_…" };
const rate = (name: string, help: string): Field => ({
  name: `faults.${name}`,
  as: `--${name} <probability>`,
  help,
  read: probability,
});

function probability(text: string, { label }: Reading): number {
  if (/^(0|1|0?\.\d{1,15}|1\.0+)$/.test(text)) return Number(text);
  throw new UsageError(`${label} ${text} is no probability`, "write it like 0.05, from 0 to 1");
}

/** Adds the commands. */
export const lab: Noun = (program) => {
  const noun = addNoun(program, "lab", "agents that coordinate, and what holds when things go wrong");
  addCall(noun, {
    name: "create",
    summary: "describe a play of agents",
    example: "moltwire lab create consensus 5 --drop 0.05 --seed 42",
    method: createScenario,
    fields: [
      { name: "pattern", as: "[pattern]", help: choices(PatternSchema), read: oneOf(PatternSchema), required: true },
      { name: "agentCount", as: "[agents]", help: "how many agents: 2 to 50", read: number, required: true },
      { name: "name", as: "--name <text>", help: "what it is called" },
      { name: "timeout", as: "--timeout <span>", help: "how long a run may take, such as 30s", read: duration },
      { name: "seed", as: "--seed <number>", help: "what faults and choices follow from" },
      rate("drop", "of each call and message: it is lost"),
      rate("delay", "of each call and message: it is late"),
      rate("crash", "of each agent: it crashes once"),
      rate("partition", "of the run: some agents are cut off for a while"),
    ],
    from: true,
    show: ({ scenario }) => describe(scenario!),
  });
  addCall(noun, {
    name: "run",
    summary: "begin a run; `lab watch` tells how it goes",
    method: runScenario,
    fields: [which],
    show: ({ scenario }) => describe(scenario!),
  });
  const watch = noun
    .command("watch <scenario>")
    .description("follow a run to its end; exits with 1 unless it succeeded");
  withServer(watch, ScenarioService.method.watchScenario).action(
    run((scenarioId: string, options: ConnectionOptions) => watchRun(scenarioId, options)),
  );
  addList(noun, {
    summary: "list the scenarios, newest first",
    method: listScenarios,
    filters: [
      { name: "pattern", as: "--pattern <pattern>", help: choices(PatternSchema), read: oneOf(PatternSchema) },
      { name: "state", as: "--state <state>", help: choices(ScenarioStateSchema), read: oneOf(ScenarioStateSchema) },
    ],
    rows: ({ scenarios }) => scenarios,
    columns,
    things: "scenarios",
    first: "moltwire lab create consensus 5",
  });
  addCall(noun, {
    name: "cancel",
    summary: "end a run at once",
    method: cancelScenario,
    fields: [which],
    show: ({ scenario }) => describe(scenario!),
  });
  addCall(noun, {
    name: "results",
    summary: "what was observed of the last run",
    method: getScenarioResults,
    fields: [which],
    show: ({ results }) => told(results!),
  });
};

async function watchRun(scenarioId: string, options: ConnectionOptions): Promise<number> {
  const settings = readSettings(options, process.env);
  const scenarios = connectClients(settings)(ScenarioService);
  const orgId = options.org ?? "";
  const messages = follow(settings.url, "0", (after, signal) =>
    withCursor(scenarios.watchScenario({ orgId, scenarioId, afterSequence: BigInt(after) }, { signal })),
  );
  let beganMs: number | undefined;
  for await (const { message } of messages) {
    if (options.json) printMessage(message);
    if (message.event.case !== "scenarioEvent") continue;
    const { time, agent, message: text, kind } = message.event.value;
    beganMs ??= timestampMs(time!);
    const who = agent === undefined ? "" : `agent ${agent} `;
    if (!options.json) note(`${span(timestampMs(time!) - beganMs).padStart(8)}  ${who}${plain(text)}`);
    if (kind === ScenarioEventKind.ENDED) break;
  }
  const { results } = await scenarios.getScenarioResults({ orgId, scenarioId });
  if (!options.json) for (const line of told(results!)) print(line);
  return results!.state === ScenarioState.SUCCEEDED ? exitCodes.ok : exitCodes.failed;
}

async function* withCursor(messages: AsyncIterable<WatchScenarioResponse>) {
  for await (const message of messages) yield { cursor: String(message.sequence), message };
}

function printMessage(message: WatchScenarioResponse): void {
  if (message.event.case !== "checkpoint") printJson(toJson(WatchScenarioResponseSchema, message), 0);
}

const mark = (held: boolean): string => (held ? paint("green", "✔") : paint("red", "✘"));

const told = ({ state, reason, safety, criteria, measures, faultCount }: ScenarioResults): string[] => [
  ...renderFacts(paint("bold", nameIn(ScenarioStateSchema, state)), [["because", plain(reason)]]),
  ...safety.flatMap(({ description, held, violations }) => [
    `${mark(held)} ${plain(description)}`,
    ...violations.map((violation) => `    ${plain(violation)}`),
  ]),
  ...criteria.map(
    ({ name, wanted, measured, met }) => `${mark(met)} ${plain(name)}: ${measured ?? "nothing"} of ${wanted}`,
  ),
  ...Object.entries(measures)
    .toSorted(([a], [b]) => (a < b ? -1 : 1))
    .map(([name, value]) => `  ${plain(name)}: ${Math.round(value * 1_000) / 1_000}`),
  `  faults that were met: ${faultCount}`,
];

const describe = (scenario: Scenario): string[] =>
  renderFacts(`${paint("bold", plain(scenario.name))}  ${scenario.scenarioId}`, [
    ["pattern", nameIn(PatternSchema, scenario.pattern)],
    ["state", nameIn(ScenarioStateSchema, scenario.state)],
    ["agents", String(scenario.agentCount)],
    ["seed", String(scenario.seed)],
    ["run", scenario.run > 0 ? `${scenario.run}, ${age(scenario.startTime)}` : ""],
    ["trace", scenario.traceId],
  ]);

const columns: readonly Column<Scenario>[] = [
  { title: "CREATED", cell: ({ createTime }) => at(createTime) },
  { title: "STATE", cell: ({ state }) => nameIn(ScenarioStateSchema, state) },
  { title: "PATTERN", cell: ({ pattern }) => nameIn(PatternSchema, pattern) },
  { title: "AGENTS", cell: ({ agentCount }) => String(agentCount), right: true },
  { title: "RUN", cell: ({ run: last }) => (last > 0 ? String(last) : ""), right: true },
  { title: "SCENARIO", cell: ({ scenarioId }) => scenarioId },
  { title: "NAME", cell: ({ name }) => name, cut: true },
];
