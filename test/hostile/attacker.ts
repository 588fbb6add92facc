/** The attacker, in a process of its own. */
import { random } from "../crash/random.ts";
import { largeCall, openAsker, validCall } from "./ask.ts";
import { type Attempts, pursue, type Tally, type Target } from "./attack.ts";
import { attacks } from "./attacks.ts";

/** What is to be done: an attack, or as many harmless calls, small or large. */
export type Job = {
  readonly attack: string;
  readonly harmless: false | "small" | "large";
  readonly target: Target;
  readonly count: number;
  readonly seed: number;
  /** Default: the attack's. */
  readonly pace?: { readonly perSecond: number; readonly atOnce: number };
};

/** How attempts ended, how long they took, and what part of that this process had a processor. */
export type Outcome = { readonly tally: Tally; readonly tookMs: number; readonly busy: number };

async function work({ attack: name, harmless, target, count, seed, pace }: Job): Promise<Outcome> {
  const attack = attacks.find((each) => each.name === name);
  if (!attack) throw new Error(`there is no attack called ${name}`);
  const attempts = harmless ? harmlessCalls(target, harmless) : attack.begin(target, random(seed));
  const cpu = process.cpuUsage();
  const startMs = performance.now();
  try {
    const tally = await pursue(attempts, { ...attack, ...pace, count });
    const tookMs = performance.now() - startMs;
    const { user, system } = process.cpuUsage(cpu);
    return { tally, tookMs, busy: (user + system) / 1_000 / tookMs };
  } finally {
    attempts.end();
  }
}

function harmlessCalls(target: Target, size: "small" | "large"): Attempts {
  const { ask, end } = openAsker(target);
  const call = size === "small" ? validCall(target) : largeCall();
  return { one: () => ask(...call), end };
}

process.on("message", (job: Job) => {
  work(job).then(
    (outcome) => process.send!(outcome),
    (error: unknown) => process.send!({ error: String((error as Error).stack ?? error) }),
  );
});
process.on("disconnect", () => process.exit(0));
