/** The attacker, in a process of its own. */
import { random } from "../crash/random.ts";
import { largeCall, openAsker, validCall } from "./ask.ts";
import { type Attack, type Attempts, pursue, type Tally, type Target } from "./attack.ts";
import { attacks } from "./attacks.ts";

/** What is to be done: an attack, or as many harmless calls, small, large or the attack's own by who behaves. */
export type Job = {
  readonly attack: string;
  readonly harmless: false | "small" | "large" | "polite";
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
  const attempts = attemptsOf(attack, harmless, target, seed);
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

function attemptsOf(attack: Attack, harmless: Job["harmless"], target: Target, seed: number): Attempts {
  if (!harmless) return attack.begin(target, random(seed));
  if (harmless !== "polite") return harmlessCalls(target, harmless);
  if (!attack.polite) throw new Error(`${attack.name} has no polite twin`);
  return attack.polite(target);
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
