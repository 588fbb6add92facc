import type { Database } from "better-sqlite3";
import { type Body, ClosedError, OutcomeUnknownError, OverloadedError, type Tx } from "./db.ts";
import { nested, type TxState, waitedElsewhere } from "./tx-state.ts";

type Outcome = { readonly value: unknown } | { readonly error: unknown };

type Waiting = {
  /** Starts the body; `ended` is its promise. */
  readonly start: (tx: Tx) => void;
  readonly ended: Promise<unknown>;
  readonly resolve: (value: never) => void;
  readonly reject: (error: unknown) => void;
};

type Done = { readonly waiting: Waiting; readonly state: TxState; readonly outcome: Outcome };

export type GroupCommitOptions = {
  readonly writer: Database;
  readonly openTx: () => { readonly tx: Tx; readonly state: TxState };
  /** Rings the bells of one committed body, and tells whoever waits for its commit. */
  readonly onCommitted: (state: TxState) => void;
  /** Told after each batch how many bodies it held and how long it held the event loop. */
  readonly onBatch: (batch: { readonly size: number; readonly ms: number }) => void;
  readonly onFatal: (error: unknown) => void;
  /** The most bodies behind one fsync. */
  readonly maxBatch: number;
  /** No body begins once the batch is this old; a body that has begun is not cut short. */
  readonly maxBatchMs: number;
  /** The most bodies waiting for their turn; more are refused. */
  readonly maxQueue: number;
};

/**
 * One fsync for many transactions. The bodies that are waiting run one after another, each in a savepoint,
 * inside one outer transaction; after its COMMIT all are answered. Nothing is answered before, refusals
 * included: a body may have refused because of what an earlier one in the batch wrote.
 *
 * Why async bodies are safe here: a body awaits only its own tx, whose promises are already settled, so a
 * whole batch runs within one drain of the microtask queue and no other request's code can come between.
 * A body still pending once that queue is empty is waiting for the outside world; it is failed at once.
 */
export function groupCommit(options: GroupCommitOptions) {
  const { writer, openTx, onCommitted, onBatch, onFatal, maxBatch, maxBatchMs, maxQueue } = options;
  const begin = writer.prepare("begin immediate");
  const commit = writer.prepare("commit");
  const rollback = writer.prepare("rollback");
  const savepoint = writer.prepare("savepoint body");
  const release = writer.prepare("release body");
  const undo = writer.prepare("rollback to body");

  let queue: Waiting[] = [];
  let scheduled = false;
  let refuse: (() => ClosedError) | undefined;
  let idle = Promise.withResolvers<void>();
  /** Fails the body that is running now; undefined between bodies. */
  let interrupt: (() => void) | undefined;

  function submit<T>(body: Body<T>): Promise<T> {
    if (interrupt) return Promise.reject(nested());
    if (refuse) return Promise.reject(refuse());
    if (queue.length >= maxQueue) {
      return Promise.reject(new OverloadedError(`${queue.length} transactions are waiting for the disk`));
    }
    const turn = Promise.withResolvers<Tx>();
    // A body called by the batch would run in the async context (trace, caller) of whichever request opened
    // the batch; one that continues a promise runs in the context of this call. (So it would with
    // AsyncLocalStorage.snapshot(), for 2 µs more per transaction.)
    const ended = turn.promise.then(body);
    const { promise, resolve, reject } = Promise.withResolvers<T>();
    queue.push({ start: turn.resolve, ended, resolve, reject });
    schedule();
    return promise;
  }

  /** After the I/O of this turn of the event loop, so that requests which arrived together commit together. */
  function schedule(): void {
    if (scheduled) return;
    scheduled = true;
    setImmediate(() => void runBatch());
  }

  async function runBatch(): Promise<void> {
    const startMs = performance.now();
    const done: Done[] = [];
    try {
      begin.run();
      await runBodies(done, startMs + maxBatchMs);
      commit.run();
    } catch (error) {
      if (done.length > 0 || !isBusy(error)) return fatal(done.length, error);
      // Another program, such as a sqlite3 shell, holds the file: nothing had begun.
      for (const { reject } of queue.splice(0, maxBatch)) reject(new OverloadedError("busy", { cause: error }));
    }
    const ms = performance.now() - startMs;
    queue.splice(0, done.length);
    for (const each of done) answer(each);
    finish();
    if (done.length > 0) onBatch({ size: done.length, ms });
  }

  /** Runs bodies from the head of the queue, where they stay until it is known what became of them. */
  async function runBodies(done: Done[], deadlineMs: number): Promise<void> {
    await undefined; // now inside the microtask queue, so that the next tick means: the queue is empty
    const stopWatching = watch();
    try {
      const size = Math.min(queue.length, maxBatch);
      while (done.length < size && (done.length === 0 || performance.now() < deadlineMs)) {
        const waiting = queue[done.length]!;
        const { tx, state } = openTx();
        savepoint.run();
        const outcome = await runBody(waiting, tx, state);
        done.push({ waiting, state, outcome });
        // Some errors (disk full, `on conflict rollback`) end the outer transaction, and with it the batch.
        if (!writer.inTransaction) throw new Error("the transaction of the batch was lost", causeOf(outcome));
        if ("error" in outcome) undo.run();
        release.run();
      }
    } finally {
      stopWatching();
    }
  }

  async function runBody(waiting: Waiting, tx: Tx, state: TxState): Promise<Outcome> {
    try {
      const value = await new Promise((resolve, reject) => {
        interrupt = () => reject(waitedElsewhere());
        waiting.start(tx);
        waiting.ended.then(resolve, reject);
      });
      state.assertCommittable();
      return { value };
    } catch (error) {
      return { error };
    } finally {
      state.close();
      interrupt = undefined;
    }
  }

  /** Interrupts each body that is still pending when the microtask queue has run empty. */
  function watch(): () => void {
    let over = false;
    const onDrained = () => {
      if (over) return;
      interrupt?.();
      queueMicrotask(() => process.nextTick(onDrained));
    };
    process.nextTick(onDrained);
    return () => {
      over = true;
    };
  }

  function answer({ waiting, state, outcome }: Done): void {
    if ("error" in outcome) {
      waiting.reject(outcome.error);
      return;
    }
    onCommitted(state);
    waiting.resolve(outcome.value as never);
  }

  function finish(): void {
    scheduled = false;
    if (queue.length > 0) {
      schedule();
      return;
    }
    idle.resolve();
    idle = Promise.withResolvers();
  }

  /** Whether the batch is on disk is unknown, and fsync cannot be asked twice. Nobody is acknowledged. */
  function fatal(begun: number, cause: unknown): void {
    const closed = () => new ClosedError("storage has failed", { cause });
    refuse = closed;
    try {
      if (writer.inTransaction) rollback.run();
    } catch {
      // It has failed already.
    }
    const unknown = new OutcomeUnknownError("storage failed before this was known to be on disk", { cause });
    for (const [index, { reject }] of queue.entries()) reject(index < begun ? unknown : closed());
    queue = [];
    finish();
    onFatal(cause);
  }

  return {
    submit,
    /** Bodies that are not answered yet. */
    waiting: (): number => queue.length,
    /** Whether a transaction body is running at this instant, that is: whether the caller is inside one. */
    isInside: (): boolean => interrupt !== undefined,
    /** Refuses new bodies and resolves once the accepted ones are answered. */
    async close(): Promise<void> {
      refuse ??= () => new ClosedError("the database is closed");
      if (scheduled) await idle.promise;
    },
  };
}

const isBusy = (error: unknown): boolean =>
  error instanceof Error && "code" in error && String(error.code).startsWith("SQLITE_BUSY");

const causeOf = (outcome: Outcome): ErrorOptions => ("error" in outcome ? { cause: outcome.error } : {});
