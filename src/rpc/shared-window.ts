/** A limit of requests that all replicas share, by allotments: see allotment.ts. */
import { AsyncLocalStorage } from "node:async_hooks";
import type { Clock } from "../clock.ts";
import { OverloadedError } from "../db/db.ts";
import { type Allotted, allot, type Spent, windowMs } from "./allotment.ts";
import { type BookStore, nothingSeen, type Seen } from "./allotment-store.ts";
import { type Allowance, type Limiter, neverBack } from "./limits.ts";

/** Ids that one replica keeps at hand; beyond, who called least lately is forgotten, and what it had left counts until it is over. */
const maxTracked = 100_000;
/** Others may give back what they did not use: when it is worth looking again, and not at each call of a flood. */
const refusedMs = 1_000;
/** Other replicas may have changed the book each time. */
const maxSwaps = 50;
/** Allotments whose fate is not known to be in the book; more are left to count until they are over. */
const maxUnsettled = 10;
/** How many are given back in one round. */
const maxGivenBack = 1_000;

/** An allotment of this replica. */
type Allotment = {
  readonly holder: string;
  readonly limit: number;
  readonly untilMs: number;
  left: number;
  spent: number;
  lastMs: number;
};

/** One id, as this replica knows it. */
type Known = {
  seen: Seen;
  current: Allotment | undefined;
  /** What was spent of allotments before it, as long as the book may not say so. */
  unsettled: readonly Spent[];
  /** What the book had left. */
  rest: number;
  /** How many it asks for next. */
  want: number;
  refused:
    | { readonly untilMs: number; readonly freeMs: number; readonly count: number; readonly allowance: Allowance }
    | undefined;
  /** Who asks for an allotment now; one after another. */
  asking: Promise<unknown>;
  /** How often asking has failed, and how the last time. */
  failures: number;
  failure: unknown;
  lastUseMs: number;
};

export type SharedLimiter = Limiter & {
  /** Gives back what is left of allotments that nobody has used up in time; at the stop, of all. */
  giveBack(all?: boolean): Promise<void>;
};

/** `usual` requests in any 60 s, and never more, over all replicas that have the same store; `server` names this one. A limit of 0 switches it off. */
export function sharedWindow(usual: number, store: BookStore, clock: Clock, server: string): SharedLimiter {
  const ids = new Map<string, Known>();
  const now = neverBack(clock);
  const off: Allowance = { limit: 0, remaining: 0, retryAfterMs: 0, allowed: true };
  let made = 0;
  /** A transaction may begin to ask, and ends while the book is read: none of the asking belongs to it. */
  const outside = AsyncLocalStorage.snapshot();

  function knownOf(id: string, at: number): Known {
    const known: Known = ids.get(id) ?? {
      seen: nothingSeen,
      current: undefined,
      unsettled: [],
      rest: 0,
      want: 1,
      refused: undefined,
      asking: Promise.resolve(),
      failures: 0,
      failure: undefined,
      lastUseMs: at,
    };
    known.lastUseMs = at;
    ids.delete(id); // and back in at the end: the map's order is that of use
    ids.set(id, known);
    return known;
  }

  /** Forgets of whom nothing counts any more, a few at each call, and beyond the most that are tracked, who called least lately. */
  function forget(at: number): void {
    for (const [id, known] of ids) {
      if (known.lastUseMs + 2 * windowMs > at && ids.size <= maxTracked) return;
      ids.delete(id);
    }
  }

  /** Takes from what is at hand; undefined if the book has to be asked. */
  function takeNow(known: Known, at: number, count: number, limit: number): Allowance | undefined {
    const { current, refused } = known;
    if (current && current.left >= count && at < current.untilMs && current.limit === limit) {
      current.left -= count;
      current.spent += count;
      current.lastMs = at;
      return { limit, remaining: known.rest + current.left, retryAfterMs: 0, allowed: true };
    }
    if (refused && at < refused.untilMs && count >= refused.count && refused.allowance.limit === limit)
      return { ...refused.allowance, retryAfterMs: refused.freeMs - at };
    return undefined;
  }

  /** Asks the book. Throws OverloadedError when others change it again and again, and whatever storage fails with: then nothing was taken. */
  async function takeFromBook(
    id: string,
    known: Known,
    count: number,
    before: number,
    limit: number,
  ): Promise<Allowance> {
    for (let swaps = 0; swaps < maxSwaps; swaps++) {
      const at = now();
      const taken = takeNow(known, at, count, limit);
      if (taken) return taken;
      const spent = [...known.unsettled, ...settlement(known.current)];
      const holder = `${server}:${++made}`;
      const ask = { now: at, limit, spent, holder, need: count, before, want: wanted(known, at) };
      const allotted = allot(known.seen.book, ask);
      if (allotted.granted === 0) {
        const seen = await store.read(id);
        const isNew = seen.stamp !== known.seen.stamp;
        known.seen = seen;
        if (isNew) continue;
        return refuse(known, at, count, before, limit, allotted);
      }
      const next = { book: allotted.book, stamp: holder };
      // Until the answer is there nobody knows: if it was made and the answer is lost, nothing of it is used.
      known.unsettled = [...spent, { holder, count: 0, lastMs: at }].slice(-maxUnsettled);
      known.current = undefined;
      if (!(await store.swap(id, known.seen.stamp, next))) {
        known.unsettled = spent;
        known.seen = await store.read(id);
        continue;
      }
      known.seen = next;
      known.unsettled = [];
      known.refused = undefined;
      known.rest = allotted.left;
      known.want = ask.want;
      known.current = { holder, limit, untilMs: allotted.untilMs, left: allotted.granted, spent: 0, lastMs: at };
    }
    throw new OverloadedError("too many requests of one caller are being counted");
  }

  function refuse(
    known: Known,
    at: number,
    count: number,
    before: number,
    limit: number,
    allotted: Allotted,
  ): Allowance {
    const { left: remaining, retryAfterMs } = allotted;
    const allowance: Allowance = { limit, remaining, retryAfterMs, allowed: false };
    // What follows on others of the same call says nothing of a call alone.
    if (retryAfterMs !== undefined && before === 0) {
      const freeMs = at + retryAfterMs;
      known.refused = { untilMs: Math.min(freeMs, at + refusedMs), freeMs, count, allowance };
    }
    return allowance;
  }

  async function giveBackOf(id: string, known: Known): Promise<void> {
    const spent = [...known.unsettled, ...settlement(known.current)];
    known.unsettled = spent;
    known.current = undefined;
    const ask = { now: now(), limit: 0, spent, holder: "", need: 0, before: 0, want: 0 };
    const next = { book: allot(known.seen.book, ask).book, stamp: `${server}:${++made}` };
    const isSwapped = await store.swap(id, known.seen.stamp, next);
    // Else it is said with the next allotment, if there is one in time.
    known.seen = isSwapped ? next : await store.read(id);
    if (isSwapped) known.unsettled = [];
  }

  /** One after another for an id, so that all find what the first was allotted; who waited for one that failed fails with it, and does not wait as long again. */
  function inTurn<T>(known: Known, work: () => Promise<T>): Promise<T> {
    const { failures } = known;
    const turn = known.asking.then(async () => {
      if (known.failures !== failures) throw known.failure;
      try {
        return await work();
      } catch (error) {
        known.failures++;
        known.failure = error;
        throw error;
      }
    });
    known.asking = turn.catch(() => {});
    return turn;
  }

  return {
    take(id, count = 1, before = 0, limit = usual) {
      if (limit === 0) return off;
      const at = now();
      forget(at);
      const known = knownOf(id, at);
      const taken = takeNow(known, at, count, limit);
      return taken ?? outside(() => inTurn(known, () => takeFromBook(id, known, count, before, limit)));
    },
    async giveBack(all = false) {
      const at = now();
      const isIdle = ({ current }: Known) =>
        current !== undefined && current.left > 0 && (all || at >= current.untilMs);
      const idle = [...ids].filter(([, known]) => isIdle(known)).slice(0, maxGivenBack);
      for (const [id, known] of idle)
        await inTurn(known, async () => {
          if (isIdle(known)) await giveBackOf(id, known);
        });
    },
  };
}

const settlement = (current: Allotment | undefined): readonly Spent[] =>
  current ? [{ holder: current.holder, count: current.spent, lastMs: current.lastMs }] : [];

/** Twice as many when the last were used up before their time was over, else as many as were used. */
function wanted({ current, want }: Known, at: number): number {
  if (!current) return want;
  return at < current.untilMs ? 2 * want : Math.max(1, current.spent);
}

/** Makes the limiters of all kinds over one store, and gives back for all of them. */
export function sharedWindows(storeOf: (kind: string) => BookStore, clock: Clock, server: string) {
  const made: SharedLimiter[] = [];
  return {
    window(kind: string, usual: number): Limiter {
      const limiter = sharedWindow(usual, storeOf(kind), clock, server);
      made.push(limiter);
      return limiter;
    },
    async giveBack(all = false): Promise<void> {
      for (const limiter of made) await limiter.giveBack(all);
    },
  };
}
