import type { JsonValue } from "@bufbuild/protobuf";

/** Which schema of a contract: what callers send, or what agents answer. */
export type Direction = "input" | "output";

/** One difference between two versions of a schema; the shape of `moltwire.bus.v1.SchemaChange`. */
export type Change = {
  readonly breaking: boolean;
  readonly direction: Direction;
  /** JSON Pointer into the later schema, or into the earlier one for what was removed. */
  readonly path: string;
  readonly message: string;
};

/** Compares two versions of a schema that `checkSchema` accepts (`{}` or `undefined` = anything): at most 200 changes, breaking ones first. */
export const compareSchemas = (
  _direction: Direction,
  _before: JsonValue | undefined,
  _after: JsonValue | undefined,
): Change[] => {
  throw new Error("not built");
};

/** The least version to give to a contract with these changes after `beforeVersion` (semver 2.0.0). */
export const suggestVersion = (_beforeVersion: string, _changes: readonly Change[]): string => {
  throw new Error("not built");
};
