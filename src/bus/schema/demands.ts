import type { Demand, Judge, Report, Search } from "./demand.ts";
import * as arrays from "./demand-arrays.ts";
import * as objects from "./demand-objects.ts";
import * as unions from "./demand-unions.ts";
import * as values from "./demand-values.ts";
import * as facts from "./facts.ts";
import { type Facts, type Kind, kinds } from "./facts.ts";
import { linearRegex } from "./regex.ts";
import { sameSchema } from "./same.ts";
import type { SchemaNode } from "./tree.ts";

/** Comparisons in all, about 1 µs each: where unions nest, each doubles them. */
const maxComparisons = 30_000;

/** Work of patterns on names of properties in all (see `schema-limits.ts`). */
const maxPatternWork = 300_000;

/** The schemas are too large, or too entangled, to be compared. */
export class ComparisonTooLarge extends Error {}

const numbers: readonly Kind[] = ["integer", "fraction"];

/** How each keyword is judged, and to which kinds of values it applies; of the others, it demands nothing. */
const judges: ReadonlyMap<string, readonly [kinds: readonly Kind[], judge: Judge]> = new Map<
  string,
  readonly [readonly Kind[], Judge]
>([
  ["type", [kinds, values.type]],
  ["enum", [kinds, values.listed("enum")]],
  ["const", [kinds, values.listed("const")]],
  ["minimum", [numbers, values.minimum]],
  ["maximum", [numbers, values.maximum]],
  ["exclusiveMinimum", [numbers, values.exclusiveMinimum]],
  ["exclusiveMaximum", [numbers, values.exclusiveMaximum]],
  ["multipleOf", [numbers, values.multipleOf]],
  ["minLength", [["string"], values.minLength]],
  ["maxLength", [["string"], values.maxLength]],
  ["pattern", [["string"], values.pattern]],
  ["format", [kinds, values.format]],
  ["minItems", [["array"], values.minItems]],
  ["maxItems", [["array"], values.maxItems]],
  ["uniqueItems", [["array"], arrays.uniqueItems]],
  ["prefixItems", [["array"], arrays.prefixItems]],
  ["items", [["array"], arrays.items]],
  ["contains", [["array"], arrays.contains]],
  ["minProperties", [["object"], values.minProperties]],
  ["maxProperties", [["object"], values.maxProperties]],
  ["required", [["object"], objects.required]],
  ["dependentRequired", [["object"], objects.dependentRequired]],
  ["dependentSchemas", [["object"], objects.dependentSchemas]],
  ["properties", [["object"], objects.properties]],
  ["patternProperties", [["object"], objects.patternProperties]],
  ["additionalProperties", [["object"], objects.additionalProperties]],
  ["propertyNames", [["object"], objects.propertyNames]],
  ["anyOf", [kinds, unions.either("anyOf")]],
  ["oneOf", [kinds, unions.either("oneOf")]],
  ["not", [kinds, unions.not]],
  ["if", [kinds, unions.conditional]],
]);

/** What one subschema by itself demands that facts do not imply. */
const demandOwn = (search: Search, given: Facts, node: SchemaNode, report: Report): void => {
  if (node.schema === true || given.some((each) => search.same(each, node))) return;
  if (node.schema === false) {
    report({ path: node.pointer, what: "that there is none", kind: "decided" });
    return;
  }
  const possible = facts.kindsOf(given);
  for (const [name, value] of Object.entries(node.schema)) {
    search.count(1);
    const [applies, judge] = judges.get(name) ?? [];
    if (judge && applies!.some((kind) => possible.has(kind))) judge(search, given, node, value, report);
  }
};

const newSearch = (): Search => {
  let comparisonsLeft = maxComparisons;
  let workLeft = maxPatternWork;
  const ids = new Map<SchemaNode, number>();
  const matchers = new Map<string, (name: string) => boolean>();
  // Comparisons under way: met again, deeper inside of the value, they hold if they hold here.
  const open = new Set<string>();
  const count = (comparisons: number): void => {
    comparisonsLeft -= comparisons;
    if (comparisonsLeft < 0) throw new ComparisonTooLarge();
  };
  const spend = (work: number): void => {
    workLeft -= work;
    if (workLeft < 0) throw new ComparisonTooLarge();
  };
  const matches = (pattern: string, name: string): boolean => {
    count(1);
    const known = matchers.get(pattern) ?? linearRegex(pattern, spend).test;
    matchers.set(pattern, known);
    return known(name);
  };
  const idOf = (node: SchemaNode): number => {
    const id = ids.get(node) ?? ids.size;
    ids.set(node, id);
    return id;
  };
  const demand = (given: Facts, node: SchemaNode, report: Report): void => {
    const known = [...new Set(given)];
    count(1 + known.length);
    if (facts.isImpossible(known)) return;
    const question = `${known.map(idOf).sort((a, b) => a - b)}>${idOf(node)}`;
    if (open.has(question)) return;
    open.add(question);
    const isOneOfThem = known.some((each) => search.same(each, node));
    for (const part of isOneOfThem ? [] : facts.flatten(node)) demandOwn(search, known, part, report);
    open.delete(question);
  };
  const implies = (given: Facts, node: SchemaNode): boolean => {
    let implied = true;
    demand(given, node, ({ kind }) => {
      if (kind !== "note") implied = false;
    });
    return implied;
  };
  const search: Search = {
    count,
    same: (one, other) => sameSchema(one, other, () => count(1)),
    matches,
    demand,
    implies,
  };
  return search;
};

/**
 * What `stronger` demands that `weaker` does not. Nothing but notes = whatever `weaker` accepts, `stronger` accepts. The reverse is not
 * always so: a demand may be implied in a way that is not seen. Throws ComparisonTooLarge.
 */
export const demandsBeyond = (weaker: SchemaNode, stronger: SchemaNode): Demand[] => {
  const demands = new Map<string, Demand>();
  newSearch().demand(facts.flatten(weaker), stronger, (each) => demands.set(JSON.stringify(each), each));
  return [...demands.values()];
};
