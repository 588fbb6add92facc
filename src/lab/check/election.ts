/** What leader election promises. */
import { type Check, countByAgent, type Measure, type Observation, ofKind } from "../observation.ts";

/** A time in which an agent may act as the leader: it knows itself when that is over, whoever else it hears from. */
type Reign = {
  readonly agent: number;
  readonly term: number;
  readonly token: number;
  readonly fromMs: number;
  readonly endMs: number;
};

/** A reign ends when the agent steps down or crashes, and at the latest when its lease is over by its own clock. */
export function reignsOf(log: readonly Observation[]): readonly Reign[] {
  return log.flatMap((one, n) => {
    if (one.kind !== "leads") return [];
    const { agent, term, token, atMs, untilMs } = one;
    const ended = log
      .slice(n + 1)
      .find(
        (later) =>
          (later.kind === "steps_down" && later.agent === agent && later.term === term) ||
          (later.kind === "crashed" && later.agent === agent),
      );
    return [{ agent, term, token, fromMs: atMs, endMs: Math.min(untilMs, ended?.atMs ?? untilMs) }];
  });
}

export const checkElection: Check = (log) => {
  const reigns = reignsOf(log);
  return [
    {
      name: "one_leader",
      description: "At no instant two agents lead.",
      violations: reigns.flatMap((one, n) =>
        reigns
          .slice(n + 1)
          .filter((other) => other.fromMs < one.endMs && one.fromMs < other.endMs)
          .map(
            (other) =>
              `agent ${one.agent} leads term ${one.term} from ${one.fromMs} to ${one.endMs} ms, and agent ${other.agent} term ${other.term} from ${other.fromMs} to ${other.endMs} ms`,
          ),
      ),
    },
    {
      name: "agreement",
      description: "Of each term all agents know the same leader.",
      violations: disagreements(log),
    },
    {
      name: "fencing",
      description:
        "Tokens grow from term to term, and what is written is written by who holds the lease, once in a term.",
      violations: [...shrinking(reigns), ...unfenced(log, reigns)],
    },
  ];
};

function disagreements(log: readonly Observation[]): string[] {
  const leaders = new Map<number, number>();
  const said = [
    ...ofKind(log, "leads").map(({ agent, term }) => ({ by: agent, term, leader: agent })),
    ...ofKind(log, "follows").map(({ agent, term, leader }) => ({ by: agent, term, leader })),
  ];
  return said.flatMap(({ by, term, leader }) => {
    const known = leaders.get(term) ?? leader;
    leaders.set(term, known);
    return known === leader ? [] : [`of term ${term} agent ${by} knows the leader ${leader}, and others ${known}`];
  });
}

const shrinking = (reigns: readonly Reign[]): string[] =>
  reigns
    .toSorted((a, b) => a.term - b.term)
    .flatMap((one, n, all) => {
      const before = all[n - 1];
      return before && before.token >= one.token
        ? [`term ${one.term} has the token ${one.token}, and term ${before.term} had ${before.token}`]
        : [];
    });

function unfenced(log: readonly Observation[], reigns: readonly Reign[]): string[] {
  const held = (term: number, agent: number, token: number) =>
    reigns.some((one) => one.term === term && one.agent === agent && one.token === token);
  const records = ofKind(log, "record");
  const lost = ofKind(log, "wrote").filter(
    ({ term, agent, token }) =>
      records.length > 0 && !records.some((one) => one.term === term && one.agent === agent && one.token === token),
  );
  return [
    ...ofKind(log, "wrote")
      .filter(({ term, agent, token }) => !held(term, agent, token))
      .map(({ term, agent }) => `agent ${agent} wrote in term ${term}, in which it does not lead`),
    ...lost.map(({ term, agent }) => `what agent ${agent} wrote in term ${term} is not what the memory holds`),
  ];
}

export const measureElection: Measure = (log, agents) => {
  const reigns = reignsOf(log);
  return {
    latenciesMs: reigns.map(({ fromMs }, n) => fromMs - (reigns[n - 1]?.endMs ?? 0)),
    done: countByAgent(ofKind(log, "leads"), agents),
    measures: { terms: reigns.length, leaders: new Set(reigns.map(({ agent }) => agent)).size },
  };
};
