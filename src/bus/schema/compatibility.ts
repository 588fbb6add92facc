import type { JsonValue } from "@bufbuild/protobuf";
import { inc, major } from "semver";
import type { Demand } from "./demand.ts";
import { ComparisonTooLarge, demandsBeyond } from "./demands.ts";
import { readSchema, type SchemaNode } from "./tree.ts";

/** Which schema of a contract: what callers send, or what agents answer. */
export type Direction = "input" | "output";

/** One difference between two versions of a schema; the shape of `moltwire.bus.v1.SchemaChange`. */
export type Change = {
  readonly breaking: boolean;
  readonly direction: Direction;
  /** JSON Pointer into the later schema, or into the earlier one for what it no longer demands. */
  readonly path: string;
  readonly message: string;
};

/** Changes that a comparison answers. */
const maxChanges = 200;

const wording = ({ what, kind }: Demand, later: boolean): string => {
  if (kind === "undecided") return `${what} differs, and it could not be decided how: taken as breaking`;
  return later ? `now demands ${what}` : `no longer demands ${what}`;
};

type Finding = { readonly demand: Demand; readonly later: boolean };

const findings = (before: SchemaNode, after: SchemaNode): Finding[] => [
  ...demandsBeyond(before, after).map((demand) => ({ demand, later: true })),
  ...demandsBeyond(after, before).map((demand) => ({ demand, later: false })),
];

const changesOf = (direction: Direction, found: readonly Finding[]): Change[] => {
  // Callers are broken by new demands on what they send, readers by lost demands on what they are sent.
  const breaks = ({ demand, later }: Finding) => demand.kind !== "note" && later === (direction === "input");
  const undecided = new Set(
    found
      .filter(breaks)
      .filter(({ demand }) => demand.kind === "undecided")
      .map(({ demand }) => demand.path),
  );
  const changes = found
    .filter((each) => breaks(each) || each.demand.kind !== "undecided" || !undecided.has(each.demand.path))
    .map((each) => ({
      breaking: breaks(each),
      direction,
      path: each.demand.path,
      message:
        breaks(each) || each.demand.kind !== "undecided"
          ? wording(each.demand, each.later)
          : `${each.demand.what} differs, and breaks nobody`,
    }));
  return [...changes.filter((change) => change.breaking), ...changes.filter((change) => !change.breaking)].slice(
    0,
    maxChanges,
  );
};

/**
 * Compares two versions of a schema that `checkSchema` accepts (`{}` or `undefined` = anything): at most 200 changes, breaking ones
 * first. No breaking change = every value that `before` accepts `after` accepts (input), or the other way round (output). Where that
 * cannot be decided, the change is breaking and says so. Throws SchemaError for a schema that `checkSchema` refuses.
 */
export const compareSchemas = (
  direction: Direction,
  before: JsonValue | undefined,
  after: JsonValue | undefined,
): Change[] => {
  const [earlier, later] = [readSchema(before ?? {}).root, readSchema(after ?? {}).root];
  try {
    return changesOf(direction, findings(earlier, later));
  } catch (error) {
    if (!(error instanceof ComparisonTooLarge)) throw error;
    return [
      { breaking: true, direction, path: "", message: "the schemas are too large to be compared: taken as breaking" },
    ];
  }
};

/**
 * The least version to give to a contract with these changes after `beforeVersion` (semver 2.0.0): breaking → major, other
 * changes → minor, none → patch. Before 1.0.0 everything moves one place to the right, as ranges such as `^0.1` have it.
 */
export const suggestVersion = (beforeVersion: string, changes: readonly Change[]): string => {
  const size = changes.some((change) => change.breaking) ? 0 : changes.length > 0 ? 1 : 2;
  const initial = major(beforeVersion) === 0 ? 1 : 0;
  const places = ["major", "minor", "patch"] as const;
  return inc(beforeVersion, places[Math.min(2, size + initial)]!)!;
};
