import { MisuseError, maxTopicLength } from "./db.ts";

/**
 * What guards one transaction on any engine: it is usable while its body runs, and not after a failed
 * statement, which is remembered so that a body that swallows the error still cannot commit.
 */
export class TxState {
  #closed = false;
  #failure: { readonly error: unknown } | undefined;
  #topics: Set<string> | undefined;
  #watchers: (() => void)[] | undefined;

  /** The topics to ring after the commit, each once. */
  get topics(): Iterable<string> {
    return this.#topics ?? [];
  }

  ring(topic: string): void {
    this.assertUsable();
    if (topic.length > maxTopicLength) throw new MisuseError(`a topic has at most ${maxTopicLength} characters`);
    this.#topics ??= new Set();
    this.#topics.add(topic);
  }

  afterCommit(tell: () => void): void {
    this.assertUsable();
    this.#watchers ??= [];
    this.#watchers.push(tell);
  }

  /** Tells whoever wanted to know of the commit. */
  tellCommitted(): void {
    for (const tell of this.#watchers ?? []) tell();
  }

  assertUsable(): void {
    if (this.#closed) throw new MisuseError("this transaction is over: await everything its body starts");
    if (this.#failure) throw new MisuseError("this transaction has failed", { cause: this.#failure.error });
  }

  fail(error: unknown): void {
    this.#failure ??= { error };
  }

  assertCommittable(): void {
    if (this.#failure) throw this.#failure.error;
  }

  close(): void {
    this.#closed = true;
  }
}

/** For a db used where only the tx may be. */
export const nested = (): MisuseError => new MisuseError("db used inside a transaction: pass the tx on instead");

/** For a body that awaits something other than its tx. */
export const waitedElsewhere = (cause?: unknown): MisuseError =>
  new MisuseError("I/O inside a transaction: await only its tx", { cause });
