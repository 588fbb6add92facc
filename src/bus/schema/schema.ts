import { createHash } from "node:crypto";
import type { JsonValue } from "@bufbuild/protobuf";
import type { ValidateFunction } from "ajv/dist/2020.js";
import { canonicalJson, compileTree } from "./compile.ts";
import { SchemaError } from "./error.ts";
import { maxCachedWeight, maxCheckSteps, maxDetailSteps, maxDetailSubschemas } from "./limits.ts";
import { createMeter } from "./meter.ts";
import { readSchema, type SchemaNode, type SchemaTree } from "./tree.ts";
import { type Violation, violationsOf } from "./violation.ts";

export type { Violation } from "./violation.ts";

/** Why a schema cannot be used: where (JSON Pointer into the schema, RFC 6901) and what is wrong, for people. */
export type SchemaFault = { readonly path: string; readonly message: string };

/** A compiled schema. */
export type Checker = {
  /**
   * What is wrong with a value: empty = nothing, otherwise 1 to 20 violations. Several only where that is cheap. One with the
   * keyword `costKeyword` = the value could not be judged within the limits.
   */
  readonly check: (value: JsonValue) => Violation[];
  /** What keeping it costs: about 2 KB of memory each. */
  readonly weight: number;
};

/** Weight of a pattern, in subschemas. */
const patternWeight = 50;

const weightOf = (tree: SchemaTree): number => {
  const patterns = (node: SchemaNode) =>
    (typeof node.schema === "object" && "pattern" in node.schema ? 1 : 0) +
    node.children.filter((child) => child.keyword === "patternProperties").length;
  return [...tree.nodes.values()].reduce((sum, node) => sum + 1 + patternWeight * patterns(node), 10);
};

/** The `keyword` of the only violation answered when a value was too deep or too costly to check against its schema. */
export const costKeyword = "cost";

/**
 * Judges a schema (JSON Schema 2020-12) without compiling it; `undefined` = it may be registered, and will compile. Refused: unknown
 * keywords but `x-…`, references out of the schema, `$dynamicRef`, patterns that need backtracking, a schema that applies itself
 * to the same value, and whatever exceeds a limit of `schema-limits.ts`. `format` is an annotation.
 */
export const checkSchema = (schema: JsonValue): SchemaFault | undefined => {
  try {
    readSchema(schema);
    return undefined;
  } catch (error) {
    if (error instanceof SchemaError) return { path: error.path, message: error.message };
    throw error;
  }
};

const tooCostly: Violation = {
  path: "",
  keyword: costKeyword,
  message: "is too large or too deep to be checked against this schema",
};

/** Compiles a schema. Throws SchemaError for one that `checkSchema` refuses. `{}` accepts anything. */
export const compileSchema = (schema: JsonValue): Checker => {
  const tree = readSchema(schema);
  const meter = createMeter();
  const first = compileTree(tree, meter, false);
  let all: ValidateFunction | undefined;
  const violationsBy = (validate: ValidateFunction, maxSteps: number, value: JsonValue): Violation[] | undefined =>
    meter.run(maxSteps, () => {
      const valid = validate(value);
      const errors = validate.errors ?? [];
      // They hold on to the value.
      validate.errors = null;
      return valid ? [] : violationsOf(value, errors);
    });
  const check = (value: JsonValue): Violation[] => {
    const violations = violationsBy(first, maxCheckSteps, value) ?? [tooCostly];
    if (violations.length === 0 || violations[0] === tooCostly || tree.nodes.size > maxDetailSubschemas)
      return violations;
    all ??= compileTree(tree, meter, true);
    return violationsBy(all, maxDetailSteps, value) ?? violations;
  };
  return { check, weight: weightOf(tree) };
};

/** SHA-256 (hex) of a schema's canonical JSON: the same whatever the order of its keys. */
export const schemaDigest = (schema: JsonValue): string =>
  createHash("sha256").update(canonicalJson(schema)).digest("hex");

/** Compiled schemas, the least recently used of them dropped. */
export type SchemaCache = {
  /** The checker of a digest; `load` is called only when it is not there, and what it throws is thrown. */
  readonly checker: (digest: string, load: () => JsonValue) => Checker;
  readonly size: () => number;
};

/**
 * Keeps up to `maxEntries` compiled schemas, fewer where they are large; a version of a contract never changes, so nothing in it goes
 * stale.
 */
export const schemaCache = (maxEntries: number): SchemaCache => {
  const entries = new Map<string, Checker>();
  let weight = 0;
  const dropOldest = (): void => {
    const [digest, checker] = entries.entries().next().value!;
    entries.delete(digest);
    weight -= checker.weight;
  };
  const checker = (digest: string, load: () => JsonValue): Checker => {
    const known = entries.get(digest);
    const found = known ?? compileSchema(load());
    // Last in the order of insertion = used last.
    entries.delete(digest);
    entries.set(digest, found);
    if (!known) weight += found.weight;
    while (entries.size > maxEntries || (weight > maxCachedWeight && entries.size > 1)) dropOldest();
    return found;
  };
  return { checker, size: () => entries.size };
};
