/** What the governed bus was asked for and what it acknowledged, to be held against what it knows at the end. */
import type { Clients } from "../../harness.ts";
import type { Random } from "../random.ts";
import type { Life } from "../workload.ts";
import type { Workers } from "./workers.ts";

/** What is expected of each contract's tasks; all reserve {@link estimatedTokens}. `guarded`: somebody has to approve first. */
export const terms = {
  once: { capability: "work", repeatable: false, guarded: false, retries: 2 },
  repeat: { capability: "work", repeatable: true, guarded: false, retries: 2 },
  guarded: { capability: "work", repeatable: false, guarded: true, retries: 2 },
  "guarded-repeat": { capability: "work", repeatable: true, guarded: true, retries: 2 },
  /** Its wait between two attempts is longer than a server lives. */
  patient: { capability: "work", repeatable: false, guarded: false, retries: 2 },
  /** Fails at its first attempt and becomes a dead letter. */
  hopeless: { capability: "work", repeatable: false, guarded: false, retries: 0 },
  pull: { capability: "fetch", repeatable: false, guarded: false, retries: 2 },
  "pull-repeat": { capability: "fetch", repeatable: true, guarded: false, retries: 2 },
  "guarded-pull": { capability: "fetch", repeatable: false, guarded: true, retries: 2 },
  /** Done by agents whose circuits the run opens, or nearly, before the first kill. */
  tripping: { capability: "trip", repeatable: false, guarded: false, retries: 0 },
  bruising: { capability: "bruise", repeatable: false, guarded: false, retries: 0 },
} as const;

export type Kind = keyof typeof terms;

/** What an agent does with an attempt: answers at once or after `slowMs`, says that it failed, or waits to be released. */
export type Act = "answer" | "slow" | "fail" | "hold";

/** The input of every task: what to do at the first attempt, the second, …; the last one stands for the rest. */
export type Orders = { readonly n: number; readonly plan: readonly Act[]; readonly slowMs: number };

export const estimatedTokens = 100;
export const model = "m";

/** What agents report of the n-th order; never more than was reserved. */
export const usageOf = (n: number) => ({ inputTokens: 10 + (n % 40), outputTokens: 5 + (n % 30), model });

/** By the rates of the run, in micro-credits. */
export const costOf = (inputTokens: number, outputTokens: number): number => inputTokens + 2 * outputTokens;

export type Verdict = "approve" | "deny";

/** One SubmitTask, under an idempotency key, and what followed it. */
export type Ask = {
  readonly kind: Kind;
  readonly orders: Orders;
  /** The phase at which the server was killed for it; empty for the others. */
  readonly phase: string;
  readonly by: "caller" | "frugal";
  readonly blocking: boolean;
  taskId?: string;
  approvalId?: string;
  /** Refused for its budget, so that there is no task. */
  refused?: true;
  /** Once any answer said how it ended. */
  ended?: string;
  /** The decision on its approval, when it was sent, and whether it was acknowledged. */
  verdict?: { readonly word: Verdict; readonly sentMs: number; acknowledged: boolean };
  /** The retry of its dead letter; `taskId` once it was acknowledged. */
  retry?: { readonly deadLetterId: string; taskId?: string };
};

export type Book = {
  readonly asks: Ask[];
  /** Calls whose answer was lost with the server. */
  lost: number;
  /** Calls under an idempotency key that were repeated after their answer was lost. */
  repeats: number;
  /** What must not happen; the run fails with these. */
  readonly surprises: string[];
  /** What was looked at after restarts. */
  checks: number;
  /** The tokens that the frugal agent may use. */
  allowance: number;
};

/** One start of the server, and who speaks to it. */
export type Stage = {
  readonly life: Life;
  readonly book: Book;
  readonly choose: Random;
  readonly workers: Workers;
  readonly admin: Clients;
  /** Another administrator. */
  readonly other: Clients;
  readonly caller: Clients;
  /** An agent whose budget is tight. */
  readonly frugal: Clients;
};
