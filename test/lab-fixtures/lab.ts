import { durationFromMs } from "@bufbuild/protobuf/wkt";
import {
  Pattern,
  type Scenario,
  type ScenarioEvent,
  type ScenarioResults,
} from "../../gen/moltwire/lab/v1/scenario_pb.ts";
import { type Db, raw, sql } from "../../src/db/db.ts";
import { tablesOfOrganizations } from "../../src/lab/sandbox.ts";
import type { Clients } from "../harness.ts";

export const patterns = [
  Pattern.LEADER_ELECTION,
  Pattern.CONSENSUS,
  Pattern.LOAD_BALANCING,
  Pattern.PUB_SUB_FANOUT,
  Pattern.TASK_AUCTION,
] as const;

/** What to play; seconds and probabilities. The time is the longest there is unless told, for machines that are slow. */
export type Wish = {
  readonly pattern: Pattern;
  readonly agentCount?: number;
  readonly seed?: bigint;
  readonly timeoutS?: number;
  readonly faults?: { drop?: number; delay?: number; crash?: number; partition?: number };
  readonly criteria?: { minParticipation?: number; maxDeviation?: number; minDeliveryRate?: number };
};

export async function newScenario(as: Clients, wish: Wish): Promise<Scenario> {
  const { pattern, agentCount = 5, seed, timeoutS = 300, faults = {}, criteria = {} } = wish;
  const { scenario } = await as.scenarios.createScenario({
    ...{ pattern, agentCount, faults, successCriteria: criteria, timeout: durationFromMs(timeoutS * 1_000) },
    ...(seed !== undefined && { seed }),
  });
  return scenario!;
}

/** All that is told of a run, to its end. */
export async function watchToEnd(as: Clients, scenarioId: string): Promise<readonly ScenarioEvent[]> {
  const events: ScenarioEvent[] = [];
  for await (const { event } of as.scenarios.watchScenario({ scenarioId }))
    if (event.case === "scenarioEvent") events.push(event.value);
  return events;
}

/** Runs a scenario to its end. */
export async function runToEnd(as: Clients, scenarioId: string): Promise<ScenarioResults> {
  await as.scenarios.runScenario({ scenarioId });
  await watchToEnd(as, scenarioId);
  return (await as.scenarios.getScenarioResults({ scenarioId })).results!;
}

export const play = async (as: Clients, wish: Wish): Promise<ScenarioResults> =>
  runToEnd(as, (await newScenario(as, wish)).scenarioId);

/** What was seen against the promises of a pattern. */
export const violationsIn = ({ safety }: ScenarioResults): readonly string[] =>
  safety.flatMap(({ name, violations }) => violations.map((violation) => `${name}: ${violation}`));

/** How many rows there are of each organisation, by table: whatever tables there are. */
export async function rowsByOrganization({ query }: Db): Promise<Readonly<Record<string, number>>> {
  const counts: Record<string, number> = {};
  for (const table of await tablesOfOrganizations(query)) {
    const rows = await query.all<{ org_id: string; n: number }>(
      sql`select org_id, count(*) as n from ${raw(table)} group by org_id`,
    );
    for (const { org_id, n } of rows) counts[`${org_id} ${table}`] = n;
  }
  return counts;
}
