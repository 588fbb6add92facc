import type { JsonObject, JsonValue } from "@bufbuild/protobuf";
import { canonicalJson } from "./compile.ts";
import { type Judge, say, shown } from "./demand.ts";
import type { Facts } from "./facts.ts";
import * as facts from "./facts.ts";

/** `type`: kinds of values. */
export const type: Judge = (_search, given, node, value, report) => {
  if (facts.kindsOf(given).difference(facts.kindsOfWord(value)).size === 0) return;
  report(say(node, "type", `type ${[value].flat().join(" or ")}`));
};

/** `enum` and `const`: values, one by one. */
export const listed =
  (keyword: "enum" | "const"): Judge =>
  (search, given, node, value, report) => {
    const values = keyword === "enum" ? (value as JsonValue[]) : [value];
    const possible = facts.listedValues(given);
    search.count(values.length + (possible?.length ?? 0));
    const allowed = new Set(values.map(canonicalJson));
    const missing = possible?.filter((each) => !allowed.has(canonicalJson(each)));
    if (missing?.length === 0) return;
    const what = keyword === "enum" ? `one of ${shown(value)}` : `the value ${shown(value)}`;
    report(say(node, keyword, missing ? `${what} (not ${missing.slice(0, 5).map(shown).join(", ")})` : what));
  };

/** A limit on a number or size. `holds` says whether the other's limits imply it. */
const limit =
  (keyword: string, words: string, holds: (given: Facts, value: number) => boolean): Judge =>
  (_search, given, node, value, report) => {
    const possible = facts.listedValues(given);
    const satisfied = possible
      ? possible.every((each) => keeps(keyword, each, value as number))
      : holds(given, value as number);
    if (!satisfied) report(say(node, keyword, `${words} ${value}`));
  };

const measure: Readonly<Record<string, (value: JsonValue) => number | undefined>> = {
  Length: (value) => (typeof value === "string" ? [...value].length : undefined),
  Items: (value) => (Array.isArray(value) ? value.length : undefined),
  Properties: (value) => (facts.kindOf(value) === "object" ? Object.keys(value as JsonObject).length : undefined),
  imum: (value) => (typeof value === "number" ? value : undefined),
};

/** Whether one given value keeps a limit. */
const keeps = (keyword: string, value: JsonValue, bound: number): boolean => {
  const size = measure[/(Length|Items|Properties|imum)$/i.exec(keyword)?.[1] ?? ""]?.(value);
  if (size === undefined) return keyword !== "multipleOf" || typeof value !== "number" || value % bound === 0;
  if (keyword === "exclusiveMinimum") return size > bound;
  if (keyword === "exclusiveMaximum") return size < bound;
  return keyword.startsWith("min") ? size >= bound : size <= bound;
};

const atLeast =
  (keyword: string) =>
  (given: Facts, value: number): boolean =>
    (facts.boundOf(given, keyword, Math.max) ?? Number.NEGATIVE_INFINITY) >= value;
const atMost =
  (keyword: string) =>
  (given: Facts, value: number): boolean =>
    (facts.boundOf(given, keyword, Math.min) ?? Number.POSITIVE_INFINITY) <= value;

const orZero =
  (holds: (given: Facts, value: number) => boolean) =>
  (given: Facts, value: number): boolean =>
    value === 0 || holds(given, value);

const isMultipleOf = (given: Facts, value: number): boolean => {
  const whole = !facts.kindsOf(given).has("fraction");
  return (
    (whole && Number.isInteger(1 / value)) ||
    given.some((node) =>
      Number.isInteger(((facts.wordOf(node, "multipleOf") as number | undefined) ?? Number.NaN) / value),
    )
  );
};

const below = (bound: number | undefined, value: number): boolean => bound !== undefined && bound < value;
const above = (bound: number | undefined, value: number): boolean => bound !== undefined && bound > value;

/** `minimum`; an exclusive one implies it. */
export const minimum = limit(
  "minimum",
  "at least",
  (given, value) => atLeast("minimum")(given, value) || atLeast("exclusiveMinimum")(given, value),
);
/** `maximum`. */
export const maximum = limit(
  "maximum",
  "at most",
  (given, value) => atMost("maximum")(given, value) || atMost("exclusiveMaximum")(given, value),
);
/** `exclusiveMinimum`. */
export const exclusiveMinimum = limit(
  "exclusiveMinimum",
  "more than",
  (given, value) =>
    atLeast("exclusiveMinimum")(given, value) || above(facts.boundOf(given, "minimum", Math.max), value),
);
/** `exclusiveMaximum`. */
export const exclusiveMaximum = limit(
  "exclusiveMaximum",
  "less than",
  (given, value) => atMost("exclusiveMaximum")(given, value) || below(facts.boundOf(given, "maximum", Math.min), value),
);
/** `multipleOf`. */
export const multipleOf = limit("multipleOf", "a multiple of", isMultipleOf);
/** `minLength`. */
export const minLength = limit("minLength", "a length of at least", orZero(atLeast("minLength")));
/** `maxLength`. */
export const maxLength = limit("maxLength", "a length of at most", atMost("maxLength"));
/** `minItems`. */
export const minItems = limit("minItems", "a number of items of at least", orZero(atLeast("minItems")));
/** `maxItems`. */
export const maxItems = limit("maxItems", "a number of items of at most", atMost("maxItems"));
/** `minProperties`. */
export const minProperties = limit(
  "minProperties",
  "a number of properties of at least",
  (given, value) => facts.requiredNames(given).size >= value || atLeast("minProperties")(given, value),
);
/** `maxProperties`. */
export const maxProperties = limit("maxProperties", "a number of properties of at most", atMost("maxProperties"));

/** `pattern`: implied by the very same, or by listed values that match. */
export const pattern: Judge = (search, given, node, value, report) => {
  const strings = facts.listedValues(given)?.filter((each) => typeof each === "string");
  if (strings?.every((each) => search.matches(value as string, each))) return;
  if (given.some((each) => facts.wordOf(each, "pattern") === value)) return;
  report(say(node, "pattern", `the pattern \`${shown(value).slice(1, -1)}\``));
};

/** `format` is worth a note. */
export const format: Judge = (_search, given, node, value, report) => {
  if (given.some((each) => facts.wordOf(each, "format") === value)) return;
  report({ ...say(node, "format", `the format ${shown(value)} (which is not checked)`), kind: "note" });
};
