/** What becomes of what was seen: properties, criteria, measures, and how the run ends. Pure. */
import { create } from "@bufbuild/protobuf";
import { durationFromMs, durationMs } from "@bufbuild/protobuf/wkt";
import {
  type Faults,
  Pattern,
  type ScenarioResults,
  ScenarioResultsSchema,
  ScenarioState,
  type SuccessCriteria,
} from "../../gen/moltwire/lab/v1/scenario_pb.ts";
import type { Injected, Tally } from "./actor.ts";
import type { Measured, Observation, Property } from "./observation.ts";
import { type Plan, plannedFaults } from "./plan.ts";
import type { PatternPlay } from "./scene.ts";

const maxViolations = 20;
const maxFaults = 1_000;

/** How an agent fared. */
export type Fared = Tally & { readonly completed: boolean; readonly reason: string };

/** A run that was played to its end, or until its time was over. */
export type Played = {
  readonly scenarioId: string;
  readonly run: number;
  readonly pattern: Pattern;
  readonly criteria: SuccessCriteria;
  readonly faults: Faults;
  readonly play: PatternPlay;
  readonly plan: Plan;
  readonly log: readonly Observation[];
  readonly fared: readonly Fared[];
  readonly injected: readonly Injected[];
  readonly durationMs: number;
  /** Why it was cut short; empty: it was not. */
  readonly cutShort: string;
};

type Criterion = {
  readonly name: string;
  readonly wanted: number;
  readonly measured: number | undefined;
  readonly met: boolean;
};

/** The results of a run. */
export function resultsOf(played: Played): ScenarioResults {
  const { play, plan, log, fared, injected } = played;
  const agents = fared.length;
  const properties = play.check(log, agents);
  const measured = play.measure(log, agents);
  const participation = fared.filter(({ completed }) => completed).length / agents;
  const criteria = criteriaOf(played, measured, participation);
  const reason = reasonOf(played, properties, criteria);
  return create(ScenarioResultsSchema, {
    scenarioId: played.scenarioId,
    run: played.run,
    state: reason === "" ? ScenarioState.SUCCEEDED : ScenarioState.FAILED,
    reason,
    duration: durationFromMs(played.durationMs),
    safety: properties.map(({ name, description, violations }) => ({
      ...{ name, description, held: violations.length === 0, violations: violations.slice(0, maxViolations) },
    })),
    criteria: criteria.map(({ name, wanted, measured: found, met }) => ({
      ...{ name, wanted, met },
      ...(found !== undefined && { measured: found }),
    })),
    measures: {
      ...measured.measures,
      participation,
      ...latencies(measured),
      calls: sum(fared.map(({ calls }) => calls)),
    },
    participants: fared.map(({ completed, reason: why, calls, received, crashes }, agent) => ({
      ...{ agent, role: play.roleOf(agent), completed, reason: why, calls, received, crashes },
      done: measured.done[agent] ?? 0,
    })),
    plan: { choices: { ...play.choices(plan, agents) }, faults: plannedFaults(plan) },
    faults: injected
      .map(({ kind, place }) => ({ kind, place }))
      .toSorted((a, b) => (`${a.place} ${a.kind}` < `${b.place} ${b.kind}` ? -1 : 1))
      .slice(0, maxFaults),
    faultCount: injected.length,
  });
}

const latencies = ({ latenciesMs }: Measured): Record<string, number> =>
  latenciesMs.length === 0
    ? {}
    : { latency_max_ms: Math.max(...latenciesMs), latency_mean_ms: sum(latenciesMs) / latenciesMs.length };

const sum = (numbers: readonly number[]): number => numbers.reduce((total, one) => total + one, 0);

/** What is asked for, with the defaults that SuccessCriteria tells. */
function criteriaOf(
  { criteria, faults, pattern }: Pick<Played, "criteria" | "faults" | "pattern">,
  { latenciesMs, measures }: Measured,
  participation: number,
): Criterion[] {
  const isFaultless = faults.drop + faults.delay + faults.crash + faults.partition === 0;
  const atLeast = (name: string, wanted: number, measured: number | undefined): Criterion => ({
    ...{ name, wanted, measured, met: measured !== undefined && measured >= wanted },
  });
  const atMost = (name: string, wanted: number, measured: number | undefined): Criterion => ({
    ...{ name, wanted, measured, met: measured !== undefined && measured <= wanted },
  });
  const found = [atLeast("min_participation", criteria.minParticipation ?? (isFaultless ? 1 : 0.5), participation)];
  if (criteria.maxLatency) {
    const longest = latenciesMs.length > 0 ? Math.max(...latenciesMs) : undefined;
    found.push(atMost("max_latency", durationMs(criteria.maxLatency), longest));
  }
  if (pattern === Pattern.PUB_SUB_FANOUT)
    found.push(atLeast("min_delivery_rate", criteria.minDeliveryRate ?? 1, measures.delivery_rate));
  const isUneven = faults.crash > 0 || faults.partition > 0;
  const maxDeviation = criteria.maxDeviation ?? (isUneven ? undefined : 0.2);
  if (pattern === Pattern.LOAD_BALANCING && maxDeviation !== undefined)
    found.push(atMost("max_deviation", maxDeviation, measures.deviation));
  return found;
}

/** Why a run did not succeed, the worst first; empty: it did. */
function reasonOf(
  played: Pick<Played, "cutShort">,
  properties: readonly Property[],
  criteria: readonly Criterion[],
): string {
  const broken = properties.find(({ violations }) => violations.length > 0);
  if (broken) return `${broken.name} was violated: ${broken.violations[0]}`;
  if (played.cutShort !== "") return played.cutShort;
  const missed = criteria.find(({ met }) => !met);
  if (!missed) return "";
  const { name, wanted, measured } = missed;
  return `${name} is not met: ${wanted} was wanted, and ${measured === undefined ? "nothing was measured" : `it was ${measured}`}`;
}
