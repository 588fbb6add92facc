/** The life of a task of the marketplace. No database here. */
import { MarketplaceTaskState as State } from "../../../gen/moltwire/exchange/v1/marketplace_pb.ts";

const dayMs = 86_400_000;

/** Limits that the contract tells. */
export const limits = {
  liveTasks: 10_000,
  claims: 100,
  deliveries: 100,
  /** Of results of one worker for one task. */
  rejections: 3,
  resultBytes: 51_200,
  resultDepth: 32,
  deadlineMs: 366 * dayMs,
  defaultDisputeMs: dayMs,
  /** After which a result that nobody reviewed is accepted. */
  reviewMs: 7 * dayMs,
} as const;

/** What decides what may happen to a task, and when something does by itself. */
export type Life = {
  readonly state: State;
  /** Since when. */
  readonly sinceMs: number;
  readonly deadlineMs: number | null;
  readonly claimTimeoutMs: number | null;
  readonly disputeWindowMs: number;
  /** Until when the worker whose result was rejected has the task to itself; null: nobody has. */
  readonly heldUntilMs: number | null;
  /** The agent that works on it, or did last; empty: none. */
  readonly worker: string;
};

/** What people do. */
export type Act = "claim" | "deliver" | "accept" | "reject" | "dispute" | "settle" | "cancel";
/** What time does: it ends a claim, the task, or the wait for a review. */
export type TimedAct = "release" | "expire" | "auto_accept";

/** Why something may not be done: where the task stands; it is for its worker; another has it to itself for a while. */
export type Refusal =
  | { readonly why: "state" }
  | { readonly why: "worker" }
  | { readonly why: "held"; readonly untilMs: number };

/** What time has made of a task. */
export type Step = { readonly act: TimedAct; readonly life: Life };

const { OPEN, CLAIMED, DELIVERED, DISPUTED, COMPLETED, SETTLED, CANCELED, EXPIRED } = State;

const moves: Record<Act | TimedAct, { readonly from: readonly State[]; readonly to: State }> = {
  claim: { from: [OPEN], to: CLAIMED },
  deliver: { from: [CLAIMED], to: DELIVERED },
  accept: { from: [DELIVERED], to: COMPLETED },
  reject: { from: [DELIVERED], to: OPEN },
  dispute: { from: [OPEN], to: DISPUTED },
  settle: { from: [DISPUTED], to: SETTLED },
  cancel: { from: [OPEN, CLAIMED], to: CANCELED },
  release: { from: [CLAIMED], to: OPEN },
  expire: { from: [OPEN, CLAIMED], to: EXPIRED },
  auto_accept: { from: [DELIVERED], to: COMPLETED },
};

/** Whether a task has ended: nothing happens to it any more, and its escrow is empty. */
export const hasEnded = (state: State): boolean => state >= COMPLETED;

/** Until when the worker has the task to itself; undefined: it has not, or no longer. */
export const heldUntil = ({ state, heldUntilMs }: Pick<Life, "state" | "heldUntilMs">, now: number) =>
  state === OPEN && heldUntilMs !== null && heldUntilMs > now ? heldUntilMs : undefined;

/** What somebody does to a task, of which time has made `life` by now. `agentId`: the agent that claims, delivers or disputes; for other acts it does not matter. */
export function take(
  life: Life,
  act: Act,
  agentId: string,
  now: number,
): { readonly life: Life } | { readonly refusal: Refusal } {
  if (!moves[act].from.includes(life.state)) return { refusal: { why: "state" } };
  const untilMs = heldUntil(life, now);
  if (act === "dispute" && untilMs === undefined) return { refusal: { why: "state" } };
  if ((act === "deliver" || act === "dispute") && agentId !== life.worker) return { refusal: { why: "worker" } };
  const isKept = act === "cancel" || (act === "claim" && agentId !== life.worker);
  if (isKept && untilMs !== undefined) return { refusal: { why: "held", untilMs } };
  return { life: after(life, act, agentId, now) };
}

function after(life: Life, act: Act | TimedAct, agentId: string, atMs: number): Life {
  const next = { ...life, state: moves[act].to, sinceMs: atMs, heldUntilMs: null };
  switch (act) {
    case "claim":
      return { ...next, worker: agentId };
    case "release":
      return { ...next, worker: "" };
    case "reject":
      return life.disputeWindowMs > 0 ? { ...next, heldUntilMs: atMs + life.disputeWindowMs } : { ...next, worker: "" };
    case "cancel":
    case "expire":
      // Who had it before it was open has no part in how it ends.
      return life.state === OPEN ? { ...next, worker: "" } : next;
    default:
      return next;
  }
}

/** What time does next to a task if nobody does anything, and when. */
export function nextByTime(life: Life): { readonly act: TimedAct; readonly atMs: number } | undefined {
  const { state, sinceMs, deadlineMs, claimTimeoutMs, heldUntilMs } = life;
  if (state === DELIVERED) return { act: "auto_accept", atMs: sinceMs + limits.reviewMs };
  if (state === OPEN && deadlineMs !== null)
    return { act: "expire", atMs: Math.max(deadlineMs, heldUntilMs ?? 0, sinceMs) };
  if (state !== CLAIMED) return undefined;
  const releaseMs = claimTimeoutMs === null ? Number.POSITIVE_INFINITY : sinceMs + claimTimeoutMs;
  const expireMs = deadlineMs === null ? Number.POSITIVE_INFINITY : Math.max(deadlineMs, sinceMs);
  if (releaseMs < expireMs) return { act: "release", atMs: releaseMs };
  return Number.isFinite(expireMs) ? { act: "expire", atMs: expireMs } : undefined;
}

/** What time has made of a task by now, step by step; none: it is as it was. */
export function stepsUntil(life: Life, now: number): Step[] {
  const steps: Step[] = [];
  for (let current = life; ; ) {
    const next = nextByTime(current);
    if (!next || next.atMs > now) return steps;
    current = after(current, next.act, "", next.atMs);
    steps.push({ act: next.act, life: current });
  }
}

/** How a reward is divided, in micro-credits: they add up to it. */
export type Shares = { readonly worker: bigint; readonly fee: bigint; readonly creator: bigint };

/** `forWorker` of the reward is the worker's, less the fee on it, which is rounded down. */
export function sharesOf(reward: bigint, forWorker: bigint, feeBasisPoints: number): Shares {
  const fee = (forWorker * BigInt(feeBasisPoints)) / 10_000n;
  return { worker: forWorker - fee, fee, creator: reward - forWorker };
}

/** How much of the reward is for the worker after an act; undefined: the reward stays where it is. `settled`: what the operator says. */
export function forWorkerAfter(act: Act | TimedAct, reward: bigint, settled: bigint): bigint | undefined {
  if (!hasEnded(moves[act].to)) return undefined;
  if (act === "settle") return settled;
  return moves[act].to === COMPLETED ? reward : 0n;
}
