/** A cache that forgets the least recently used. */
export type Bounded<V> = {
  get(key: string): V | undefined;
  set(key: string, value: V, weight: number): void;
  delete(key: string): void;
  clear(): void;
  readonly size: () => number;
  readonly weight: () => number;
};

/** Keeps at most `maxEntries`, and of them as many as weigh `maxWeight` together, but always the last one set. `onDrop` is told what it forgets for want of room. */
export function bounded<V>(
  maxEntries: number,
  maxWeight: number,
  onDrop?: (key: string, value: V) => void,
): Bounded<V> {
  const entries = new Map<string, { readonly value: V; readonly weight: number }>();
  let total = 0;
  const remove = (key: string): V | undefined => {
    const entry = entries.get(key);
    if (!entry) return undefined;
    entries.delete(key);
    total -= entry.weight;
    return entry.value;
  };
  return {
    get(key) {
      const entry = entries.get(key);
      if (!entry) return undefined;
      // Last in the order of insertion = used last.
      entries.delete(key);
      entries.set(key, entry);
      return entry.value;
    },
    set(key, value, weight) {
      remove(key);
      entries.set(key, { value, weight });
      total += weight;
      while (entries.size > maxEntries || (total > maxWeight && entries.size > 1)) {
        const oldest = entries.keys().next().value!;
        const dropped = remove(oldest)!;
        onDrop?.(oldest, dropped);
      }
    },
    delete: (key) => void remove(key),
    clear() {
      entries.clear();
      total = 0;
    },
    size: () => entries.size,
    weight: () => total,
  };
}
