/** How well an agent fits what somebody needs, and why. The formula stands at DirectoryService.MatchAgents. */
import { Availability } from "../../gen/moltwire/directory/v1/profile_pb.ts";

/** What is known of an agent that could do it. */
export type Candidate = {
  /** Of the needs. */
  readonly granted: readonly string[];
  readonly advertised: readonly string[];
  readonly availability: Availability;
  readonly reputation: number;
  readonly ratings: number;
  /** Undefined for an agent of another organisation, of which neither is told. */
  readonly openTasks: number | undefined;
  /** Undefined while it has completed none. */
  readonly latencyMs: number | undefined;
};

export type Factor = {
  readonly name: "fit" | "availability" | "reputation" | "load" | "latency";
  readonly value: number;
  readonly weight: number;
  readonly reason: string;
};

const onlyAdvertised = 0.6;
const unknown = 0.5;
const bestReputation = 5;
const halfLoadTasks = 4;
const halfLatencyMs = 10_000;

const availabilityValues: Partial<Record<Availability, readonly [number, string]>> = {
  [Availability.AVAILABLE]: [1, "available"],
  [Availability.BUSY]: [0.3, "busy"],
};

/** The five factors of a candidate. `foreign`: it is of another organisation, where an advertised capability is all there is. */
export function factorsOf(candidate: Candidate, needs: readonly string[], foreign: boolean): Factor[] {
  const [available, availability] = availabilityValues[candidate.availability] ?? [0, "away"];
  const { reputation, ratings, openTasks, latencyMs } = candidate;
  return [
    fitOf(candidate, needs, foreign),
    { name: "availability", value: available, weight: 0.2, reason: availability },
    {
      ...{ name: "reputation", weight: 0.2, value: ratings === 0 ? unknown : reputation / bestReputation },
      reason: ratings === 0 ? "not rated yet" : `reputation ${reputation.toFixed(1)} of ${counted(ratings, "rating")}`,
    },
    {
      ...{ name: "load", weight: 0.1, value: openTasks === undefined ? unknown : 1 / (1 + openTasks / halfLoadTasks) },
      reason: openTasks === undefined ? "load unknown" : counted(openTasks, "open task"),
    },
    {
      ...{ name: "latency", weight: 0.1 },
      value: latencyMs === undefined ? unknown : 1 / (1 + latencyMs / halfLatencyMs),
      reason: latencyMs === undefined ? "latency unknown" : `completes in ${Math.round(latencyMs)} ms`,
    },
  ];
}

/** From 0 to 1. */
export const scoreOf = (factors: readonly Factor[]): number =>
  factors.reduce((sum, { value, weight }) => sum + value * weight, 0);

function fitOf({ granted, advertised }: Candidate, needs: readonly string[], foreign: boolean): Factor {
  const worth = needs.map((need): number => {
    if (granted.includes(need)) return 1;
    if (!advertised.includes(need)) return 0;
    return foreign ? 1 : onlyAdvertised;
  });
  const has = needs.filter((_, n) => worth[n]! > 0);
  const merely = foreign ? [] : has.filter((need) => !granted.includes(need));
  const reason =
    `has ${has.length} of ${needs.length}: ${has.join(", ")}` +
    (merely.length > 0 ? ` (not granted, so not routed to: ${merely.join(", ")})` : "");
  return { name: "fit", value: worth.reduce((a, b) => a + b, 0) / needs.length, weight: 0.4, reason };
}

const counted = (count: number, what: string): string => `${count} ${what}${count === 1 ? "" : "s"}`;
