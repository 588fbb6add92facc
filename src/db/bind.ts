import { MisuseError, type Value } from "./db.ts";

/**
 * The one rule for parameters, so that what one engine would change in silence both refuse: SQLite stores NaN as
 * null and 2^60 as a rounded REAL; PostgreSQL's driver sends undefined as null, a Date as text and an object as JSON.
 */
export function bindable(value: unknown): Value {
  switch (typeof value) {
    case "string":
      if (value.includes("\0")) throw new MisuseError("text with a NUL character cannot be stored: use bytes");
      return value;
    case "number":
      if (!Number.isFinite(value)) throw new MisuseError(`${value} cannot be stored`);
      if (Number.isInteger(value) && !Number.isSafeInteger(value)) {
        throw new MisuseError(`${value} is beyond the exact integers: pass a bigint`);
      }
      return value;
    case "bigint":
      return value;
    default:
      if (value === null || value instanceof Uint8Array) return value;
      throw new MisuseError(`a ${value === undefined ? "missing" : typeof value} value cannot be stored`);
  }
}
