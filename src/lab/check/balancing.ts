/** What load balancing promises. */
import { type Check, countByAgent, type Measure, ofKind } from "../observation.ts";

export const checkBalancing: Check = (log) => {
  const submitted = ofKind(log, "submitted").map(({ job }) => job);
  const stored = new Map(ofKind(log, "job").map(({ job, agent }) => [job, agent]));
  const completed = Map.groupBy(ofKind(log, "completed"), ({ job }) => job);
  const known = new Set(submitted);
  return [
    {
      name: "completed_once",
      description: "Each job is completed once, by one agent, which is who the queue says.",
      violations: [...completed].flatMap(([job, by]) => {
        if (!known.has(job)) return [`agent ${by[0]!.agent} completed ${job}, which nobody submitted`];
        if (by.length > 1) return [`${job} was completed by the agents ${by.map(({ agent }) => agent).join(" and ")}`];
        const agent = stored.get(job);
        return agent === undefined || agent === by[0]!.agent
          ? []
          : [`${job} was completed by agent ${by[0]!.agent}, and the queue says by ${agent}`];
      }),
    },
    {
      name: "none_lost",
      description: "What an agent was told is completed the queue holds as completed.",
      violations: [...completed.keys()].filter((job) => !stored.has(job)).map((job) => `${job} is lost`),
    },
  ];
};

export const measureBalancing: Measure = (log, agents) => {
  const submittedMs = new Map(ofKind(log, "submitted").map(({ job, atMs }) => [job, atMs]));
  const done = countByAgent(ofKind(log, "job"), agents);
  return {
    latenciesMs: ofKind(log, "completed").map(({ job, atMs }) => atMs - (submittedMs.get(job) ?? 0)),
    done,
    measures: {
      jobs: ofKind(log, "submitted").length,
      completed: ofKind(log, "job").length,
      ...(done.some((count) => count > 0) && { deviation: deviationOf(done) }),
    },
  };
};

/** The standard deviation of the whole population, as a part of the mean. */
export function deviationOf(counts: readonly number[]): number {
  const mean = counts.reduce((sum, count) => sum + count, 0) / counts.length;
  const variance = counts.reduce((sum, count) => sum + (count - mean) ** 2, 0) / counts.length;
  return Math.sqrt(variance) / mean;
}
