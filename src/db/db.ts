/**
 * The storage seam: what an area may ask of a database, whichever engine is below.
 *
 * SQL is written once, in the portable subset: text ids, integer milliseconds, 0/1 flags, JSON as text, bytes,
 * snake_case aliases, `returning`, `on conflict`, `cast(sum(x) as bigint)`. Time and chance are passed in.
 */
import tag, { type Sql } from "sql-template-tag";

export { empty, join, raw, type Sql } from "sql-template-tag";

/**
 * What a parameter and a column can hold. Integers come back as number where that is exact, else as bigint; a
 * comparison in a select list comes back as 0 or 1. Refused as a parameter, on both engines: text with a NUL
 * character (PostgreSQL cannot hold it), a number that is not finite or is an integer beyond 2^53 (pass a bigint).
 */
export type Value = string | number | bigint | Uint8Array | null;

/** SQL text with its parameters: sql`select * from job where id = ${id}`. */
export const sql = tag as (strings: TemplateStringsArray, ...values: (Value | Sql)[]) => Sql;

/**
 * The few words in which the engines differ.
 *
 * **A log that promises only order** (traces, events, audit) takes no lock, because writers that wait for one
 * another's commit are slow. It has the columns `(xid bigint, seq)`, where `seq` is an identity or rowid column, and
 * an index on them. A writer inserts `${xid}`; a reader's cursor is the pair of the last row it read, from `(0, 0)`:
 *
 *     select … from event where (xid, seq) > (${cursor.xid}, ${cursor.seq}) and xid < ${horizon}
 *     order by xid, seq limit ${n}
 *
 * What keeps a position in such a log beside it names it `xid` and `seq` too: a backup of PostgreSQL numbers the logs anew, and such positions begin at
 * the start (src/ops/backup-source.ts).
 *
 * A reader that asked only for `seq > cursor` would lose rows on PostgreSQL: numbers are handed out before the
 * commit, so a lower one can appear after a higher one was read.
 */
export type Dialect = {
  readonly name: "sqlite" | "postgres";
  /** Ends a select that claims rows: locks them, passes over rows others hold. Empty where one writer is the rule. */
  readonly skipLocked: Sql;
  /**
   * Ends a select whose rows are about to be changed from what was read. Empty where one writer is the rule.
   *
   * Without it, read-then-write passes every test on SQLite and **loses updates on PostgreSQL**, whose transactions
   * run beside each other at READ COMMITTED: two read 5, both write 6. Better still is one statement that does both,
   * `update … set n = n + 1 where … returning n`. A row that is not there yet cannot be locked: use `on conflict`.
   */
  readonly forUpdate: Sql;
  /** The value a writer stores as `xid` of a row in an order-only log. */
  readonly xid: Sql;
  /**
   * Rows of an order-only log with `xid` below this are settled: no row will ever appear before or among them.
   * On PostgreSQL it stands still while the oldest writing transaction of the whole server runs, so that a row can
   * become readable later than its bell rang: a follower also polls.
   */
  readonly horizon: Sql;
};

/** Reads. Store functions that only read take this, and so serve both `db.query` and a transaction. */
export type Queryable = {
  readonly dialect: Dialect;
  all<Row>(q: Sql): Promise<Row[]>;
  /** The first row, or undefined if there is none. */
  one<Row>(q: Sql): Promise<Row | undefined>;
};

/**
 * One transaction, open while its body runs. A body awaits its own tx and nothing else: no network, no
 * timer, no other transaction. A body may run more than once, so its only effects go through tx.
 * After a failed statement the transaction cannot commit, on either engine: use `on conflict`, not catch.
 * On PostgreSQL other transactions commit between its statements, and each statement sees what is committed by then.
 */
export type Tx = Queryable & {
  /** Runs a statement for its effect; gives the number of rows changed. */
  run(q: Sql): Promise<number>;
  /** Rings the bells of a topic (at most {@link maxTopicLength} characters) once this is committed, and only then. */
  ring(topic: string): void;
  /** Calls back once this is committed, and only then: for counting, and nothing that must not be lost. It must not throw, and is quick. */
  afterCommit(tell: () => void): void;
  /** Several statements without parameters. For migrations. */
  script(text: string): Promise<void>;
};

export type Body<T> = (tx: Tx) => Promise<T>;

/** A pool of connections, in numbers of connections; `waiting` in callers. */
export type PoolLoad = {
  readonly used: number;
  readonly idle: number;
  readonly waiting: number;
  readonly limit: number;
};

/** For metrics. */
export type DbLoad = {
  /** Transactions that are not answered yet on SQLite, or have no connection yet on PostgreSQL. */
  readonly waiting: number;
  /** SQLite's data file. */
  readonly file?: string;
  /** PostgreSQL's connections. */
  readonly pools?: { readonly writers: PoolLoad; readonly readers: PoolLoad };
};

export type Db = {
  readonly engine: Dialect["name"];
  /** Reads committed, durable state; refuses to write. Every call is its own snapshot. */
  readonly query: Queryable;
  /**
   * Runs the body in one transaction; resolves when its effect is durable, rejects when it has none.
   *
   * Rejects with what the body or a statement threw, or with a {@link MisuseError}, {@link OverloadedError},
   * {@link UnavailableError} or {@link ClosedError}, none of which left an effect; or with an
   * {@link OutcomeUnknownError}, which may have.
   */
  tx<T>(body: Body<T>): Promise<T>;
  /** A bell rung by any of the topics, which hangs until the signal aborts. */
  listen(topics: string | readonly string[], signal: AbortSignal): Bell;
  /** How busy it is now. */
  load(): DbLoad;
  /** Finishes what was accepted, refuses the rest with {@link ClosedError}, then closes. */
  close(): Promise<void>;
};

/** The code using the database is wrong, and a retry will not help. */
export class MisuseError extends Error {
  override readonly name = "MisuseError";
}

/** Too much is waiting for the database, or for rows of it, already. Nothing was done; try again later. */
export class OverloadedError extends Error {
  override readonly name = "OverloadedError";
}

/** The database is not there, or went away before a commit was asked for. Nothing was done; try again later. */
export class UnavailableError extends Error {
  override readonly name = "UnavailableError";
}

/** The database was closed, or has failed, before this was begun. Nothing was done. */
export class ClosedError extends Error {
  override readonly name = "ClosedError";
}

/** The connection or the disk failed during COMMIT: the transaction may or may not have happened. */
export class OutcomeUnknownError extends Error {
  override readonly name = "OutcomeUnknownError";
}

/** The longest topic, in UTF-16 units: whatever it is made of, a few of them fit in a PostgreSQL notification. */
export const maxTopicLength = 512;

/**
 * A doorbell. It carries no data: who hears it reads again from a cursor. Any number of rings before a wait
 * count as one.
 */
export class Bell {
  #rung = false;
  #rungMs = 0;
  #heardMs: number | undefined;
  #wake: (() => void) | undefined;

  /** When the first of the rings was that the last wait heard, or, if it heard none, that no wait has heard yet; by `performance.now()`. */
  get rungMs(): number | undefined {
    return this.#heardMs ?? (this.#rung ? this.#rungMs : undefined);
  }

  ring(): void {
    if (!this.#rung) this.#rungMs = performance.now();
    this.#rung = true;
    this.#wake?.();
  }

  /** True on a ring, false after `ms` of silence; rejects with the signal's reason. One waiter at a time. */
  async wait(ms: number, signal: AbortSignal): Promise<boolean> {
    signal.throwIfAborted();
    if (this.#wake) throw new MisuseError("a bell has one waiter at a time: listen once for each");
    if (!this.#rung) await this.#ringOrSilence(ms, signal);
    const rung = this.#rung;
    this.#rung = false;
    this.#heardMs = rung ? this.#rungMs : undefined;
    return rung;
  }

  async #ringOrSilence(ms: number, signal: AbortSignal): Promise<void> {
    const { promise, resolve } = Promise.withResolvers<void>();
    const wake = () => resolve();
    const timer = setTimeout(wake, ms);
    signal.addEventListener("abort", wake);
    this.#wake = wake;
    await promise;
    this.#wake = undefined;
    signal.removeEventListener("abort", wake);
    clearTimeout(timer);
    signal.throwIfAborted();
  }
}

/** The bells of one process, by topic. */
export class Bells {
  readonly #topics = new Map<string, Set<Bell>>();

  /** Hangs one bell on every topic given, until the signal aborts. */
  add(topics: string | readonly string[], signal: AbortSignal): Bell {
    signal.throwIfAborted();
    const bell = new Bell();
    const names = typeof topics === "string" ? [topics] : [...topics];
    for (const name of names) {
      const bells = this.#topics.get(name) ?? new Set();
      this.#topics.set(name, bells.add(bell));
    }
    const remove = () => {
      for (const name of names) this.#remove(name, bell);
    };
    signal.addEventListener("abort", remove, { once: true });
    return bell;
  }

  ring(topics: Iterable<string>): void {
    for (const topic of topics) for (const bell of this.#topics.get(topic) ?? []) bell.ring();
  }

  ringAll(): void {
    this.ring(this.#topics.keys());
  }

  /** How many topics have a bell. */
  get size(): number {
    return this.#topics.size;
  }

  #remove(topic: string, bell: Bell): void {
    const bells = this.#topics.get(topic);
    if (bells?.delete(bell) && bells.size === 0) this.#topics.delete(topic);
  }
}
