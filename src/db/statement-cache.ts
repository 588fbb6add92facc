/**
 * A map that forgets what was not used lately. It holds at most `max` entries in two generations: what is asked for
 * moves to the young one, and when that is full the old one is dropped. Unlike a list kept in exact order of use,
 * a hit on a young entry, which is nearly every hit, costs one look-up and no write.
 */
export class StatementCache<V> {
  readonly #halfMax: number;
  #young = new Map<string, V>();
  #old = new Map<string, V>();

  constructor(max: number) {
    this.#halfMax = Math.max(1, Math.floor(max / 2));
  }

  get size(): number {
    return this.#young.size + this.#old.size;
  }

  /** The entry for this text, made now if it is not known. */
  get(text: string, make: (text: string) => V): V {
    const hit = this.#young.get(text);
    if (hit !== undefined) return hit;
    const value = this.#old.get(text) ?? make(text);
    this.#old.delete(text);
    if (this.#young.size >= this.#halfMax) {
      this.#old = this.#young;
      this.#young = new Map();
    }
    this.#young.set(text, value);
    return value;
  }
}
