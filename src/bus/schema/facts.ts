import type { JsonObject, JsonValue } from "@bufbuild/protobuf";
import { isObject } from "./error.ts";
import type { SchemaChild, SchemaNode } from "./tree.ts";

/** What all of some subschemas say together about one value: none of them = anything goes. */
export type Facts = readonly SchemaNode[];

/** Remembers what was derived from a subschema: the same is asked again and again, and nothing about one changes. */
const remembered = <T>(derive: (node: SchemaNode) => T): ((node: SchemaNode) => T) => {
  const known = new WeakMap<SchemaNode, T>();
  return (node) => {
    const before = known.get(node);
    if (before !== undefined) return before;
    const derived = derive(node);
    known.set(node, derived);
    return derived;
  };
};

/** A subschema with whatever it refers to or includes by `allOf`: each of these applies to the same value. */
export const flatten: (node: SchemaNode) => SchemaNode[] = remembered((node) => {
  const included = childrenOf(node, "allOf").map((child) => child.node);
  if (node.ref) included.push(node.ref);
  return [...new Set([node, ...included.flatMap(flatten)])];
});

/** The subschemas under a keyword. */
export const childrenOf = (node: SchemaNode, keyword: string): SchemaChild[] =>
  node.children.filter((child) => child.keyword === keyword);

/** The subschema under a keyword, or under a key of it. */
export const childOf = (node: SchemaNode, keyword: string, key?: string): SchemaNode | undefined =>
  node.children.find((child) => child.keyword === keyword && child.key === key)?.node;

/** The value of a keyword. */
export const wordOf = (node: SchemaNode, keyword: string): JsonValue | undefined =>
  typeof node.schema === "object" ? (node.schema as JsonObject)[keyword] : undefined;

/** The kinds of values that JSON Schema tells apart; `number` is `integer` and `fraction`. */
export const kinds = ["null", "boolean", "integer", "fraction", "string", "array", "object"] as const;
/** One of `kinds`. */
export type Kind = (typeof kinds)[number];
/** A set of them. */
export type Kinds = ReadonlySet<Kind>;

const everyKind: Kinds = new Set(kinds);

const kindsOfType = (type: string): Kind[] => (type === "number" ? ["integer", "fraction"] : [type as Kind]);

/** The kind of a value. */
export const kindOf = (value: JsonValue): Kind => {
  if (value === null) return "null";
  if (Array.isArray(value)) return "array";
  if (typeof value === "number") return Number.isInteger(value) ? "integer" : "fraction";
  return typeof value as Kind;
};

/** The kinds that a `type` allows. */
export const kindsOfWord = (type: JsonValue): Kinds =>
  new Set([type].flat().flatMap((each) => kindsOfType(each as string)));

const ownKinds: (node: SchemaNode) => Kinds = remembered((node) => {
  if (node.schema === false) return new Set();
  const type = wordOf(node, "type");
  let found = type === undefined ? everyKind : kindsOfWord(type);
  const values = valuesOf(node);
  if (values) found = found.intersection(new Set(values.map(kindOf)));
  for (const keyword of ["anyOf", "oneOf"]) {
    const branches = childrenOf(node, keyword);
    if (branches.length === 0) continue;
    const either = branches.map((branch) => kindsOf(flatten(branch.node)));
    found = found.intersection(either.reduce((all, some) => all.union(some)));
  }
  return found;
});

/** The kinds of values that can satisfy some facts: no other can. */
export const kindsOf = (facts: Facts): Kinds =>
  facts.reduce<Kinds>((found, node) => found.intersection(ownKinds(node)), everyKind);

/** The values that a subschema lists by itself, if it does. */
const valuesOf = (node: SchemaNode): JsonValue[] | undefined => {
  const fixed = wordOf(node, "const");
  if (fixed !== undefined) return [fixed];
  return wordOf(node, "enum") as JsonValue[] | undefined;
};

/** All values that can satisfy some facts, where that is a list; it may hold some that cannot. */
export const listedValues = (facts: Facts): JsonValue[] | undefined => {
  const possible = kindsOf(facts);
  const lists = facts.map(valuesOf).filter((values) => values !== undefined);
  const shortest = lists.sort((a, b) => a.length - b.length)[0];
  if (shortest) return shortest.filter((value) => possible.has(kindOf(value)));
  if (possible.difference(new Set<Kind>(["null", "boolean"])).size > 0) return undefined;
  return [...(possible.has("null") ? [null] : []), ...(possible.has("boolean") ? [true, false] : [])];
};

/** The largest (or least) number that some facts give a keyword. */
export const boundOf = (facts: Facts, keyword: string, pick: (...numbers: number[]) => number): number | undefined => {
  const numbers = facts.map((node) => wordOf(node, keyword)).filter((value) => typeof value === "number");
  return numbers.length === 0 ? undefined : pick(...numbers);
};

/** The names that some facts require. */
export const requiredNames = (facts: Facts): ReadonlySet<string> =>
  new Set(facts.flatMap((node) => (wordOf(node, "required") as string[] | undefined) ?? []));

/** The names of properties that some facts mention. */
export const propertyNames = (facts: Facts): ReadonlySet<string> =>
  new Set(facts.flatMap((node) => childrenOf(node, "properties").map((child) => child.key!)));

/** What facts say of an array's item at an index; `undefined` = of those beyond all that are named. */
export const itemFacts = (facts: Facts, index: number | undefined): SchemaNode[] =>
  facts.flatMap((node) => {
    const named = index === undefined ? undefined : childOf(node, "prefixItems", String(index));
    const rest = named ?? childOf(node, "items");
    return rest ? flatten(rest) : [];
  });

/** How many items the longest `prefixItems` of some facts names. */
export const prefixLength = (facts: Facts): number =>
  Math.max(0, ...facts.map((node) => childrenOf(node, "prefixItems").length));

/** Whether nothing at all satisfies some facts; `false` = not known. */
export const isImpossible = (facts: Facts): boolean => kindsOf(facts).size === 0;

/** Whether a subschema that applies to everything says nothing. */
export const isAnything = (node: SchemaNode): boolean =>
  node.schema === true || (isObject(node.schema as JsonValue) && Object.keys(node.schema as JsonObject).length === 0);
