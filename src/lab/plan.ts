/**
 * What follows from a seed: every choice of the agents, and every fault. A pure function of the seed and of names, never of time or of the order in which things
 * happen: whoever asks twice for the fate of `vote 3->5` gets the same answer, in this run and in any other of the same seed.
 */
import { createHash } from "node:crypto";

/** Probabilities, from 0 to 1. */
export type FaultRates = {
  readonly drop: number;
  readonly delay: number;
  readonly crash: number;
  readonly partition: number;
};

/** What happens to one try of a call. */
export type CallFate = { readonly lost: "" | "request_lost" | "answer_lost"; readonly delayMs: number };

/** What happens to a message on its way to an agent: how many copies are lost, whether all of them are, and how late the one that comes is. */
export type MessageFate = { readonly lostCopies: number; readonly lost: boolean; readonly delayMs: number };

/** When an agent crashes, and for how long it is away: at its `atCall`th call, from 1, before it is sent or after it is answered. */
export type Crash = { readonly atCall: number; readonly after: boolean; readonly downMs: number };

/** Who is cut off, and when, counted from the beginning. */
export type Partition = { readonly agents: readonly number[]; readonly fromMs: number; readonly untilMs: number };

export type Plan = {
  /** A whole number from 0 to `below` - 1. */
  pick(name: string, below: number): number;
  callFate(name: string, attempt: number): CallFate;
  messageFate(name: string): MessageFate;
  readonly crashes: ReadonlyMap<number, Crash>;
  readonly partition: Partition | undefined;
};

/** How often a call is tried. */
export const maxTries = 5;
/** How often a message is sent. */
export const maxCopies = 4;
/** How long it takes until a lost copy is sent again. */
export const resendMs = 50;

const crashCalls = 4;
const hashBytes = 6;

/** The plan of a run. */
export function planOf(seed: bigint, agents: number, rates: FaultRates): Plan {
  const chance = (name: string): number =>
    createHash("sha256").update(`${seed} ${name}`).digest().readUIntBE(0, hashBytes) / 2 ** (8 * hashBytes);
  const pick = (name: string, below: number): number => Math.floor(chance(name) * below);
  const between = (name: string, from: number, to: number): number => from + pick(name, to - from + 1);
  const happens = (name: string, rate: number): boolean => chance(name) < rate;
  const delayOf = (name: string): number =>
    happens(`delay ${name}`, rates.delay) ? between(`delay-ms ${name}`, 10, 200) : 0;

  return {
    pick: (name, below) => pick(`pick ${name}`, below),
    callFate(name, attempt) {
      const place = `${name} #${attempt}`;
      const lost = happens(`drop ${place}`, rates.drop);
      const side = pick(`drop-side ${place}`, 2) === 0 ? "request_lost" : "answer_lost";
      return { lost: lost ? side : "", delayMs: delayOf(place) };
    },
    messageFate(name) {
      let lostCopies = 0;
      while (lostCopies < maxCopies && happens(`drop ${name} #${lostCopies + 1}`, rates.drop)) lostCopies++;
      return { lostCopies, lost: lostCopies === maxCopies, delayMs: delayOf(name) };
    },
    crashes: new Map(
      numbers(agents)
        .filter((agent) => happens(`crash ${agent}`, rates.crash))
        .map((agent) => [
          agent,
          {
            atCall: between(`crash-call ${agent}`, 1, crashCalls),
            after: pick(`crash-side ${agent}`, 2) === 1,
            downMs: between(`crash-ms ${agent}`, 100, 500),
          },
        ]),
    ),
    partition: happens("partition", rates.partition) ? partitionOf(agents, chance, between) : undefined,
  };
}

/** The agents that come first in an order of the seed's, fewer than half of them; of two agents one. */
function partitionOf(
  agents: number,
  chance: (name: string) => number,
  between: (name: string, from: number, to: number) => number,
): Partition {
  const most = Math.max(1, Math.ceil(agents / 2) - 1);
  const order = numbers(agents).toSorted((a, b) => chance(`cut ${a}`) - chance(`cut ${b}`));
  const cut = order.slice(0, between("cut-size", 1, most)).toSorted((a, b) => a - b);
  const fromMs = between("cut-from", 0, 200);
  return { agents: cut, fromMs, untilMs: fromMs + between("cut-ms", 300, 1_500) };
}

/** From 0 to `count` - 1. */
export const numbers = (count: number): number[] => Array.from({ length: count }, (_, n) => n);

/** The crashes and the partition, for people. */
export function plannedFaults({ crashes, partition }: Plan): string[] {
  const ofAgents = [...crashes].map(
    ([agent, { atCall, after, downMs }]) =>
      `crash/${agent} at call ${atCall}, ${after ? "after" : "before"} it, for ${downMs} ms`,
  );
  if (!partition) return ofAgents;
  const { agents, fromMs, untilMs } = partition;
  return [...ofAgents, `partition of ${agents.join(", ")} from ${fromMs} to ${untilMs} ms`];
}
