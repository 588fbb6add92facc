import { join, type Sql, sql, type Value } from "../db/db.ts";

/** The items in runs whose lengths are powers of two: statements over them have few texts, each of which is prepared once. */
export function* inRuns<T>(items: readonly T[]): Generator<readonly T[]> {
  for (let at = 0; at < items.length; ) {
    const length = 2 ** Math.floor(Math.log2(items.length - at));
    yield items.slice(at, at + length);
    at += length;
  }
}

/** As many items as the next power of two, the last one repeated: for statements to which a repetition is nothing. */
export const toPower = <T>(items: readonly T[]): readonly T[] => {
  const length = 2 ** Math.ceil(Math.log2(Math.max(1, items.length)));
  return Array.from({ length }, (_, n) => items[Math.min(n, items.length - 1)]!);
};

/** Rows of `values`. */
export const valuesOf = (rows: readonly (readonly Value[])[]): Sql => join(rows.map((row) => sql`(${join(row)})`));
