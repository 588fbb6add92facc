/** What consensus promises. */
import { type Check, countByAgent, type Measure, ofKind } from "../observation.ts";

export const checkConsensus: Check = (log, agents) => {
  const proposed = new Set(ofKind(log, "proposed").map(({ value }) => value));
  const decided = ofKind(log, "decided");
  const votes = ofKind(log, "voted");
  const [first] = decided;
  return [
    {
      name: "agreement",
      description: "Nobody decides otherwise than another.",
      violations: decided
        .filter(({ value }) => value !== first?.value)
        .map(({ agent, value }) => `agent ${agent} decides ${value}, and agent ${first!.agent} ${first!.value}`),
    },
    {
      name: "validity",
      description: "Only what was proposed is decided.",
      violations: decided
        .filter(({ value }) => !proposed.has(value))
        .map(({ agent, value }) => `agent ${agent} decides ${value}, which nobody proposed`),
    },
    {
      name: "one_vote",
      description: "Nobody votes for two values, and what is decided has the votes of more than half of all.",
      violations: [
        ...votes
          .filter(({ agent, value }, n) =>
            votes.slice(0, n).some((other) => other.agent === agent && other.value !== value),
          )
          .map(({ agent, value }) => `agent ${agent} votes for ${value} after it voted for another`),
        ...[...new Set(decided.map(({ value }) => value))]
          .map((value) => ({
            value,
            count: new Set(votes.filter((one) => one.value === value).map(({ agent }) => agent)).size,
          }))
          .filter(({ count }) => count * 2 <= agents)
          .map(({ value, count }) => `${value} is decided with ${count} of ${agents} votes`),
      ],
    },
  ];
};

export const measureConsensus: Measure = (log, agents) => {
  const decided = ofKind(log, "decided");
  const beganMs = ofKind(log, "proposed")[0]?.atMs ?? 0;
  const proposed = ofKind(log, "proposed").map(({ value }) => value);
  return {
    latenciesMs: decided.map(({ atMs }) => atMs - beganMs),
    done: countByAgent(decided, agents),
    measures: { decided: decided.length, proposals: new Set(proposed).size },
  };
};
