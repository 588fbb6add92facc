import { type Judge, ofType, type Search, say, shown } from "./demand.ts";
import type { Facts } from "./facts.ts";
import * as facts from "./facts.ts";
import type { SchemaNode } from "./tree.ts";

/** What facts say of a property: by its name, by patterns, or, named by neither, as an additional one. */
const propertyFacts = (search: Search, given: Facts, name: string): SchemaNode[] =>
  given.flatMap((node) => {
    const own = facts.childOf(node, "properties", name);
    const byPattern = facts.childrenOf(node, "patternProperties").filter(({ key }) => search.matches(key!, name));
    const applied = [...(own ? [own] : []), ...byPattern.map((child) => child.node)];
    const rest = applied.length === 0 ? facts.childOf(node, "additionalProperties") : undefined;
    return [...applied, ...(rest ? [rest] : [])].flatMap(facts.flatten);
  });

const isCovered = (search: Search, node: SchemaNode, name: string): boolean =>
  facts.childOf(node, "properties", name) !== undefined ||
  facts.childrenOf(node, "patternProperties").some(({ key }) => search.matches(key!, name));

/** `required`, name by name. */
export const required: Judge = (_search, given, node, value, report) => {
  const already = facts.requiredNames(given);
  for (const name of value as string[]) {
    if (!already.has(name)) report(say(node, "required", `the property ${shown(name)}`));
  }
};

/** `dependentRequired`, pair by pair. */
export const dependentRequired: Judge = (_search, given, node, value, report) => {
  const already = facts.requiredNames(given);
  for (const [name, names] of Object.entries(value as Record<string, string[]>)) {
    const also = new Set(
      given.flatMap(
        (each) => (facts.wordOf(each, "dependentRequired") as Record<string, string[]> | undefined)?.[name] ?? [],
      ),
    );
    for (const other of names) {
      if (!already.has(other) && !also.has(other)) {
        report(say(node, "dependentRequired", `the property ${shown(other)} whenever there is ${shown(name)}`));
      }
    }
  }
};

/** `properties`: what the other says of each, by whatever keyword. */
export const properties: Judge = (search, given, node, _value, report) => {
  for (const { key, node: inner } of facts.childrenOf(node, "properties")) {
    search.demand(propertyFacts(search, given, key!), inner, report);
  }
};

/** What facts say of properties that nobody names: those that match a pattern, or those that match none of some patterns. */
const unnamedFacts = (given: Facts, matching: string | undefined, notMatching: ReadonlySet<string>): SchemaNode[] =>
  given.flatMap((node) => {
    const patterns = facts.childrenOf(node, "patternProperties");
    const same = patterns.filter(({ key }) => key === matching).map((child) => child.node);
    const rest = facts.childOf(node, "additionalProperties");
    const restApplies = patterns.every(({ key }) => notMatching.has(key!));
    return [...same, ...(rest && restApplies ? [rest] : [])].flatMap(facts.flatten);
  });

/** `patternProperties`: of names unknown, and of those that the other names. */
export const patternProperties: Judge = (search, given, node, _value, report) => {
  for (const { key, node: inner } of facts.childrenOf(node, "patternProperties")) {
    search.demand(unnamedFacts(given, key!, new Set()), inner, report);
    for (const name of facts.propertyNames(given)) {
      if (search.matches(key!, name)) search.demand(propertyFacts(search, given, name), inner, report);
    }
  }
};

/** `additionalProperties`: of those that the other names, then of the rest. */
export const additionalProperties: Judge = (search, given, node, _value, report) => {
  const rest = facts.childOf(node, "additionalProperties")!;
  const patterns = new Set(facts.childrenOf(node, "patternProperties").map((child) => child.key!));
  for (const name of facts.propertyNames(given)) {
    if (isCovered(search, node, name) || search.implies(propertyFacts(search, given, name), rest)) continue;
    const what =
      rest.schema === false
        ? `that there is no property ${shown(name)}`
        : `of ${shown(name)} what it demands of additional properties`;
    report(say(node, "additionalProperties", what));
  }
  const others = unnamedFacts(given, undefined, patterns);
  if (rest.schema !== false) search.demand(others, rest, report);
  else if (!facts.isImpossible(others)) report(say(node, "additionalProperties", "that there are no other properties"));
};

/** `propertyNames`. */
export const propertyNames: Judge = (search, given, node, _value, report) => {
  // Names are strings.
  const names = given.flatMap((each) =>
    facts.childrenOf(each, "propertyNames").flatMap((child) => facts.flatten(child.node)),
  );
  search.demand([ofType("string"), ...names], facts.childOf(node, "propertyNames")!, report);
};

/** `dependentSchemas`: given that the property is there. */
export const dependentSchemas: Judge = (search, given, node, _value, report) => {
  const already = facts.requiredNames(given);
  for (const { key, node: inner } of facts.childrenOf(node, "dependentSchemas")) {
    const own = given.flatMap((each) => facts.childOf(each, "dependentSchemas", key) ?? []);
    const known = [...given, ...own.flatMap(facts.flatten)];
    if (already.has(key!) ? search.implies(given, inner) : search.implies(known, inner)) continue;
    report(say(node, "dependentSchemas", `\`dependentSchemas\` for ${shown(key!)}`, own.length > 0));
  }
};
