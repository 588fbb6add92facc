/** The pieces of work that are in hand, each by its id: begun, let go, waited for. */
export class Hand<Delivery> {
  readonly #works = new Map<string, { readonly work: Promise<void>; readonly give: AbortController }>();
  readonly #begin: (delivery: Delivery, give: AbortController) => Promise<void>;

  /** `begin` does one piece of work and never rejects; it stops when `give` is aborted, and may abort it itself. */
  constructor(begin: (delivery: Delivery, give: AbortController) => Promise<void>) {
    this.#begin = begin;
  }

  /** Begins it; what was begun under this id before is another's now. */
  take(id: string, delivery: Delivery): void {
    this.letGo(id);
    const give = new AbortController();
    const work = this.#begin(delivery, give).finally(() => {
      if (this.#works.get(id)?.give === give) this.#works.delete(id);
    });
    this.#works.set(id, { work, give });
  }

  letGo(id: string): void {
    this.#works.get(id)?.give.abort();
  }

  letAllGo(): void {
    for (const id of this.#works.keys()) this.letGo(id);
  }

  /** Resolves when there is nothing in hand. */
  async empty(): Promise<void> {
    while (this.#works.size > 0) await Promise.all([...this.#works.values()].map(({ work }) => work));
  }
}
