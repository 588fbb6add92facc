/** One run: a server is started, a neighbour goes about its business, and one attack after the other is made. */
import { setTimeout as sleep } from "node:timers/promises";
import type { Attack, Tally, Target } from "./attack.ts";
import type { Job, Outcome } from "./attacker.ts";
import { maxGrowthMib, maxRatio, ownFaults, p99, wrongEnds } from "./judge.ts";
import { type Reading, watchMemory } from "./memory.ts";
import type { Seen } from "./neighbour.ts";
import { startVictim } from "./victim.ts";
import { startWorker } from "./worker.ts";

export type RunOptions = {
  readonly folder: string;
  readonly isTls: boolean;
  readonly attacks: readonly Attack[];
  readonly seed: number;
  /** Attempts of a kind of which a full run makes 5,000. */
  readonly count: number;
  /** How long the neighbour is watched before and after each attack. */
  readonly quietMs: number;
  /** Whether the neighbour's p99 is judged, and compared with harmless load: that takes enough calls of its. */
  readonly judgesTime: boolean;
  readonly say: (line: string) => void;
};

/** The neighbour's p99 in milliseconds. */
export type Times = {
  readonly before: number;
  readonly harmless: number;
  readonly during: number;
  readonly after: number;
};

/** One kind of attack, and what was seen. */
export type Row = {
  readonly attack: string;
  readonly attempts: number;
  readonly tookMs: number;
  readonly ends: Tally;
  readonly twin: Attack["twin"];
  readonly known: Times;
  readonly fresh: Times;
  /** The neighbour's longest call during the attack, and during what is harmless. */
  readonly longestMs: number;
  readonly longestHarmlessMs: number;
  /** How many calls of the neighbour's the p99 during the attack is of. */
  readonly calls: number;
  readonly memory: { readonly beforeMib: number; readonly peakMib: number; readonly afterMib: number };
  readonly tries: number;
  readonly problems: readonly string[];
};

export type Result = {
  readonly isTls: boolean;
  /** At the start, and the most during the warm-up. */
  readonly startMib: number;
  readonly baselineMib: number;
  readonly rows: readonly Row[];
  readonly memory: readonly Reading[];
  /** All kinds together. */
  readonly pooled: Times;
  readonly problems: readonly string[];
};

const fullCount = 5_000;
/** Calls as fast as they are answered, until memory is as large as work makes it: V8 lets the heap grow before it collects. */
const warmUps = [
  ["small", { count: 8_000, pace: { perSecond: 100_000, atOnce: 64 } }],
  ["large", { count: 200, pace: { perSecond: 100_000, atOnce: 16 } }],
] as const;
const maxTries = 3;

export async function run(options: RunOptions): Promise<Result> {
  const { folder, isTls, attacks, count, quietMs, judgesTime, say } = options;
  const victim = await startVictim(folder, isTls);
  const attacker = startWorker<Job, Outcome>("attacker.ts", victim.certificate);
  const neighbour = startWorker<{ begin: Target } | "take", Seen>("neighbour.ts", victim.certificate);
  const memory = watchMemory(victim.process.pid);
  const problems: string[] = [];
  const all = { before: [] as number[], harmless: [] as number[], during: [] as number[], after: [] as number[] };
  let hasEnded = false;
  void victim.process.ended.then(() => {
    hasEnded = true;
  });
  try {
    await neighbour.ask({ begin: victim.target });
    const startMib = memory.nowMib();
    for (const [harmless, warmUp] of warmUps)
      await attacker.ask({ attack: attacks[0]!.name, harmless, target: victim.target, ...warmUp, seed: options.seed });
    const baselineMib = memory.peakMib();
    await sleep(quietMs);
    const rows: Row[] = [];
    for (const attack of attacks) {
      for (let tries = 1; ; tries++) {
        const row = await attempt(attack, tries, baselineMib);
        const isSlow = row.problems.some((problem) => problem.startsWith("p99"));
        if (isSlow && row.problems.length === 1 && tries < maxTries) {
          say(`${attack.name}: ${row.problems[0]}; once more`);
          continue;
        }
        rows.push(row);
        say(`${isTls ? "TLS" : "clear"}: ${attack.name}: ${row.problems.join("; ") || "passed"}`);
        break;
      }
      if (hasEnded) break;
    }
    if (hasEnded) problems.push(`the server ended:\n${victim.process.log()}`);
    else problems.push(...ownFaults(await victim.metrics()).map((fault) => `counted by the server: ${fault}`));
    const pooled = {
      before: p99(all.before),
      harmless: p99(all.harmless),
      during: p99(all.during),
      after: p99(all.after),
    };
    if (judgesTime && isDoubled(pooled)) problems.push(`p99 of all kinds together: ${told(pooled)}`);
    return { isTls, startMib, baselineMib, rows, memory: memory.stop(), pooled, problems };
  } finally {
    memory.stop();
    await Promise.all([attacker.close(), neighbour.close()]);
    await victim.close();
  }

  async function attempt(attack: Attack, tries: number, baselineMib: number): Promise<Row> {
    const attempts = attemptsOf(attack, count);
    const harmlessTarget = attack.twin === "bare" ? victim.bare : victim.target;
    await neighbour.ask("take");
    await sleep(quietMs);
    const before = await neighbour.ask("take");
    if (judgesTime) await attacker.ask(jobOf(attack, harmlessTarget, attempts, options, harmlessOf[attack.twin]));
    const harmless = await neighbour.ask("take");
    await sleep(quietMs / 2);
    await neighbour.ask("take");
    const beforeMib = memory.nowMib();
    memory.peakMib();
    const logged = victim.process.log().length;
    const { tally, tookMs } = await attacker.ask(jobOf(attack, victim.target, attempts, options, false));
    const during = await neighbour.ask("take");
    const peakMib = memory.peakMib();
    await sleep(quietMs);
    const after = await neighbour.ask("take");
    const known = timesOf({ before, harmless, during, after }, "known");
    for (const [phase, seen] of Object.entries({ before, harmless, during, after }))
      all[phase as keyof Times].push(...seen.known);
    const problems = [
      ...wrongEnds(tally, attack.right).map((end) => `ended wrongly: ${end}`),
      ...[...new Set([...during.failures, ...after.failures])].map(
        (failure) => `the neighbour's call failed: ${failure}`,
      ),
      ...(/"level":(50|60)/.test(victim.process.log().slice(logged))
        ? [`logged: ${victim.process.log().slice(logged)}`]
        : []),
      ...(peakMib - baselineMib > maxGrowthMib ? [`memory grew by ${Math.round(peakMib - baselineMib)} MiB`] : []),
      ...(judgesTime && isDoubled(known) ? [`p99 ${told(known)}`] : []),
      ...(hasEnded ? ["the server ended"] : []),
    ];
    return {
      attack: attack.name,
      attempts,
      tookMs,
      ends: tally,
      twin: attack.twin,
      known,
      fresh: timesOf({ before, harmless, during, after }, "fresh"),
      longestMs: Math.max(0, ...during.known),
      longestHarmlessMs: Math.max(0, ...harmless.known),
      calls: during.known.length,
      memory: { beforeMib, peakMib, afterMib: memory.nowMib() },
      tries,
      problems,
    };
  }
}

const harmlessOf = { valid: "small", polite: "polite", bare: false } as const;

const attemptsOf = ({ attempts = fullCount, least = 3 }: Attack, count: number): number =>
  Math.max(least, Math.round((attempts * count) / fullCount));

const jobOf = (
  attack: Attack,
  target: Target,
  count: number,
  { seed }: RunOptions,
  harmless: Job["harmless"],
): Job => ({
  attack: attack.name,
  harmless,
  target,
  count,
  seed,
});

const timesOf = (seen: Record<keyof Times, Seen>, of: "known" | "fresh"): Times => ({
  before: p99(seen.before[of]),
  harmless: p99(seen.harmless[of]),
  during: p99(seen.during[of]),
  after: p99(seen.after[of]),
});

const isDoubled = ({ before, harmless, during }: Times): boolean => during > maxRatio * Math.max(before, harmless);

const told = ({ before, harmless, during }: Times): string =>
  `${during.toFixed(1)} ms against ${before.toFixed(1)} before and ${harmless.toFixed(1)} under harmless load`;
