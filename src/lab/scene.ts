/** What the patterns have in common: the stage, and what one of them has to say of itself. */
import type { Life } from "./actor.ts";
import type { Check, Measure, Seen } from "./observation.ts";
import type { Plan } from "./plan.ts";
import type { Clients } from "./wire.ts";

/** The stage of one run. */
export type Scene = {
  readonly plan: Plan;
  /** The ids of the agents, by their numbers. */
  readonly agentIds: readonly string[];
  /** Whose memory they share, and for whom the arbiter acts. It plays no part. */
  readonly registryId: string;
  /** An administrator of the sandbox, whom no fault meets: it sets the stage, and reads at the end what is stored. */
  readonly arbiter: Clients;
  /** How long a round waits for those who are silent. */
  readonly roundMs: number;
  /** Milliseconds since the beginning. */
  nowMs(): number;
  /** The same of a time that a server told. */
  sinceStart(timeMs: number): number;
  see(seen: Seen, atMs?: number): void;
  /** For who watches the run. */
  tell(message: string, agent?: number): void;
};

/** One of the patterns. */
export type PatternPlay = {
  readonly roleOf: (agent: number) => string;
  /** What the agents choose by the seed, by name. */
  readonly choices: (plan: Plan, agents: number) => Readonly<Record<string, string>>;
  /** Before any agent begins. */
  readonly prepare: (scene: Scene) => Promise<void>;
  /** One life of one agent: to its end, or until it crashes. */
  readonly play: (life: Life, scene: Scene) => Promise<void>;
  /** After all have ended: what is stored. */
  readonly conclude: (scene: Scene) => Promise<void>;
  readonly check: Check;
  readonly measure: Measure;
};

/** The channel that the agents share. */
export const channel = "lab";

/** What a message of theirs says. */
export type Said = Readonly<Record<string, string | number>>;
