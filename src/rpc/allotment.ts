/**
 * The rule by which replicas share a limit of requests in a sliding window. Requests are booked before they come: a replica is allotted some that it may let in within
 * {@link allotmentMs}, and these count until a window after the last moment they may be used in. Whatever a replica does with them, in any window there are no more
 * than the limit: all that can be used in a window are in the book when the last of them is allotted, and the book never holds more than the limit. What was
 * spent is said later, and counts from then on only for what it was; what a replica that died had left counts as if it had been used.
 */

/** The window of all limits of requests. */
export const windowMs = 60_000;
/** How long requests that are allotted may be used. */
export const allotmentMs = 5_000;
/** Requests spent within this time count as one booking, at the time of the last: it bounds a book. */
const mergedMs = 500;
/** Of what is left, a replica is allotted at most this share, so that the others find some too. */
const share = 4;

/** So many requests, the last of which came, or may come, at `lastMs`. `holder` names an allotment that is open; spent ones have none. */
export type Booking = { readonly lastMs: number; readonly count: number; readonly holder?: string };

/** All that counts for one id, by `lastMs`. */
export type Book = readonly Booking[];

/** What became of an allotment. */
export type Spent = { readonly holder: string; readonly count: number; readonly lastMs: number };

export type Ask = {
  readonly now: number;
  readonly limit: number;
  /** Allotments that are over. */
  readonly spent: readonly Spent[];
  /** Names the new allotment. */
  readonly holder: string;
  /** How many requests are there now, and how many were taken for the same call, which will be repeated with it. */
  readonly need: number;
  readonly before: number;
  /** How many are expected. */
  readonly want: number;
};

export type Allotted = {
  readonly book: Book;
  /** None if there is no room for what is needed. */
  readonly granted: number;
  /** The new allotment may be used before this time. */
  readonly untilMs: number;
  /** What the book has left. */
  readonly left: number;
  /** When there will be room, if there is none now; undefined: never, being more than the limit at once. */
  readonly retryAfterMs: number | undefined;
};

/** Settles what is over and allots what there is room for: all that is needed, or none. */
export function allot(book: Book, ask: Ask): Allotted {
  const { limit, need, before, want, holder } = ask;
  // Where the clock of another replica is ahead, what it has booked is not in the future.
  const now = Math.max(ask.now, ...book.map((one) => one.lastMs - (one.holder === undefined ? 0 : allotmentMs)));
  const counting = settled(book, ask.spent).filter(({ lastMs }) => lastMs + windowMs > now);
  const left = limit - counting.reduce((sum, { count }) => sum + count, 0); // less than nothing where the limit was lowered
  const refused = { book: counting, granted: 0, untilMs: now, left: Math.max(0, left) };
  if (before + need > limit) return { ...refused, retryAfterMs: undefined };
  if (need > left) return { ...refused, retryAfterMs: freeMs(counting, before + need - left) - now };
  const granted = Math.max(need, Math.min(want, Math.floor(left / share)));
  const untilMs = now + allotmentMs;
  const open: Book = granted > 0 ? [{ lastMs: untilMs, count: granted, holder }] : [];
  return { book: inOrder([...counting, ...open]), granted, untilMs, left: left - granted, retryAfterMs: 0 };
}

/** The book in which allotments that are over count for what was spent of them. One that is not in it counts no more, or was settled before. */
function settled(book: Book, spent: readonly Spent[]): Book {
  if (spent.length === 0) return book;
  const over = new Map(spent.map((one) => [one.holder, one]));
  const kept: Booking[] = [];
  for (const booking of book) {
    const known = booking.holder === undefined ? undefined : over.get(booking.holder);
    if (!known) kept.push(booking);
    else if (known.count > 0) kept.push({ lastMs: known.lastMs, count: known.count });
  }
  return merged(inOrder(kept));
}

function merged(book: Book): Book {
  const kept: Booking[] = [];
  for (const booking of book) {
    const at = kept.findLastIndex(({ holder }) => holder === undefined);
    const last = kept[at];
    if (booking.holder === undefined && last && bucket(last) === bucket(booking))
      kept[at] = { lastMs: booking.lastMs, count: last.count + booking.count };
    else kept.push(booking);
  }
  return inOrder(kept);
}

const bucket = ({ lastMs }: Booking): number => Math.floor(lastMs / mergedMs);

const inOrder = (book: readonly Booking[]): Book => book.toSorted((a, b) => a.lastMs - b.lastMs);

/** When so many requests of the book will have ceased to count. */
function freeMs(book: Book, count: number): number {
  let free = 0;
  for (const booking of book) {
    free += booking.count;
    if (free >= count) return booking.lastMs + windowMs;
  }
  throw new Error(`${count} requests are more than the book holds`);
}
