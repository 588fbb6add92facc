/** Rows in groups of few sizes, so that statements with many rows have few texts and stay prepared. */
export function* inChunks<T>(rows: readonly T[]): Generator<readonly T[]> {
  let from = 0;
  for (const size of [100, 10, 1]) {
    for (; rows.length - from >= size; from += size) yield rows.slice(from, from + size);
  }
}
