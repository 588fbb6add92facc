/** What an attack is, and how many attempts of one are made how fast. */
import { setTimeout as sleep } from "node:timers/promises";
import type { Random } from "../crash/random.ts";

/** Whom an attack is made on; it travels between processes. */
export type Target = {
  readonly port: number;
  readonly isTls: boolean;
  /** The key of an agent, and the agent: the attacker is a customer too. */
  readonly key: string;
  readonly agentId: string;
  /** The key of an administrator, who may register contracts. */
  readonly adminKey: string;
  /** The operator's, to read metrics with. */
  readonly operatorKey: string;
  /** Finished tasks, the second of 128 KiB in and 128 KiB out. */
  readonly taskId: string;
  readonly largeTaskId: string;
};

/** One kind of attack. */
export type Attack = {
  readonly name: string;
  /** How attempts may end. Anything else breaks the promise. */
  readonly right: RegExp;
  /** Attempts begun in a second, and under way at once, at most. */
  readonly perSecond: number;
  readonly atOnce: number;
  /** Attempts in a run of 5,000; default 5,000. For those of which each is itself thousands of frames. */
  readonly attempts?: number;
  /** Attempts in any run, at least; default 3. */
  readonly least?: number;
  /**
   * What is harmless and keeps the machine as busy. `valid`: the same number of calls of GetAgent to the same server, as fast. `bare`: the attack
   * itself, on a node:http server of nobody's, so that only the attacker's share of the processors is felt. `polite`: the same calls to the same server,
   * by who behaves, where the calls themselves are work.
   */
  readonly twin: "valid" | "bare" | "polite";
  /** Opens what its attempts share. */
  begin(target: Target, choose: Random): Attempts;
  /** The same by who behaves, for the twin `polite`. */
  readonly polite?: (target: Target) => Attempts;
};

export type Attempts = {
  /** Makes one attempt and tells how it ended. */
  one(): Promise<string>;
  /** Lets go of everything. */
  end(): void;
};

/** How many attempts ended how. */
export type Tally = Record<string, number>;

const patienceMs = 30_000;

/** Makes so many attempts, no faster than allowed. Resolves when the last one has ended. */
export async function pursue(
  { one }: Pick<Attempts, "one">,
  { count, perSecond, atOnce }: { readonly count: number; readonly perSecond: number; readonly atOnce: number },
): Promise<Tally> {
  const tally: Tally = {};
  const startMs = performance.now();
  let begun = 0;
  async function attempts(): Promise<void> {
    while (begun < count) {
      const dueMs = startMs + (begun++ * 1_000) / perSecond - performance.now();
      if (dueMs > 1) await sleep(dueMs);
      const end = await inTime(one().catch((error: unknown) => `failed: ${(error as Error).message}`));
      tally[end] = (tally[end] ?? 0) + 1;
    }
  }
  await Promise.all(Array.from({ length: Math.min(atOnce, count) }, attempts));
  return tally;
}

async function inTime(ending: Promise<string>): Promise<string> {
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<string>((resolve) => {
    timer = setTimeout(() => resolve("no end"), patienceMs);
  });
  try {
    return await Promise.race([ending, late]);
  } finally {
    clearTimeout(timer);
  }
}
