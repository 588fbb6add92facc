/** What is seen of a run, in the order in which it is seen. Checks are made on this and nothing else. */

/** What agents do and what the stores hold at the end, by the kind of each; times are in milliseconds from the beginning of the play. */
export type Seen =
  /** An agent leads from now until it steps down, crashes, or `untilMs` is over. */
  | {
      readonly kind: "leads";
      readonly agent: number;
      readonly term: number;
      readonly token: number;
      readonly untilMs: number;
    }
  | { readonly kind: "steps_down"; readonly agent: number; readonly term: number }
  | { readonly kind: "follows"; readonly agent: number; readonly term: number; readonly leader: number }
  /** Under the lease; `token` is the one it held. */
  | { readonly kind: "wrote"; readonly agent: number; readonly term: number; readonly token: number }
  /** What the memory holds at the end. */
  | { readonly kind: "record"; readonly term: number; readonly agent: number; readonly token: number }
  | { readonly kind: "proposed"; readonly agent: number; readonly value: string }
  | { readonly kind: "voted"; readonly agent: number; readonly value: string }
  | { readonly kind: "decided"; readonly agent: number; readonly value: string; readonly votes: number }
  | { readonly kind: "submitted"; readonly job: string }
  | { readonly kind: "completed"; readonly agent: number; readonly job: string }
  /** What the queue holds at the end: a job that is done, and by whom. */
  | { readonly kind: "job"; readonly job: string; readonly agent: number }
  | { readonly kind: "published"; readonly number: number; readonly text: string }
  | {
      readonly kind: "received";
      readonly agent: number;
      readonly life: number;
      readonly number: number;
      readonly text: string;
    }
  | { readonly kind: "called" }
  | { readonly kind: "bid"; readonly agent: number; readonly amount: number }
  /** What the inbox of the auctioneer holds at the end. */
  | { readonly kind: "bid_stored"; readonly agent: number; readonly amount: number; readonly sequence: number }
  /** What the channel holds at the end: bids up to `closedAt` count. */
  | { readonly kind: "awarded"; readonly winner: number; readonly amount: number; readonly closedAt: number }
  | { readonly kind: "heard_award"; readonly agent: number; readonly winner: number; readonly amount: number }
  | { readonly kind: "crashed"; readonly agent: number };

/** With when it was seen. */
export type Observation = Seen & { readonly atMs: number };

/** All of one kind, in their order. */
export const ofKind = <Kind extends Seen["kind"]>(
  log: readonly Observation[],
  kind: Kind,
): readonly Extract<Observation, { readonly kind: Kind }>[] =>
  log.filter((one): one is Extract<Observation, { readonly kind: Kind }> => one.kind === kind);

/** What a pattern promises, and what was seen against it. */
export type Property = {
  readonly name: string;
  readonly description: string;
  readonly violations: readonly string[];
};

/** What a check makes of what was seen: a pure function. */
export type Check = (log: readonly Observation[], agents: number) => readonly Property[];

/** What each latency is measured of, and what else there is to measure: a pure function. */
export type Measure = (log: readonly Observation[], agents: number) => Measured;

export type Measured = {
  readonly latenciesMs: readonly number[];
  /** How many pieces of work each agent did. */
  readonly done: readonly number[];
  readonly measures: Readonly<Record<string, number>>;
};

/** How many of these each agent has. */
export const countByAgent = (seen: readonly { readonly agent: number }[], agents: number): number[] => {
  const counts = Array<number>(agents).fill(0);
  for (const { agent } of seen) if (agent >= 0 && agent < agents) counts[agent]!++;
  return counts;
};
