import { type Judge, say } from "./demand.ts";
import type { Facts } from "./facts.ts";
import * as facts from "./facts.ts";

/** `uniqueItems`. */
export const uniqueItems: Judge = (_search, given, node, value, report) => {
  if (value === false || (facts.boundOf(given, "maxItems", Math.min) ?? 2) < 2) return;
  if (!given.some((each) => facts.wordOf(each, "uniqueItems") === true))
    report(say(node, "uniqueItems", "unique items"));
};

const canHaveItem = (given: Facts, index: number): boolean =>
  (facts.boundOf(given, "maxItems", Math.min) ?? Number.POSITIVE_INFINITY) > index;

/** `prefixItems`, as far as there can be items. */
export const prefixItems: Judge = (search, given, node, _value, report) => {
  for (const [index, { node: inner }] of facts.childrenOf(node, "prefixItems").entries()) {
    if (canHaveItem(given, index)) search.demand(facts.itemFacts(given, index), inner, report);
  }
};

/** `items`: those that the other names, then the rest. */
export const items: Judge = (search, given, node, _value, report) => {
  const inner = facts.childOf(node, "items")!;
  const last = facts.prefixLength(given);
  for (let index = facts.prefixLength([node]); index < last; index += 1) {
    if (canHaveItem(given, index)) search.demand(facts.itemFacts(given, index), inner, report);
  }
  if (canHaveItem(given, Math.max(last, facts.prefixLength([node]))))
    search.demand(facts.itemFacts(given, undefined), inner, report);
};

/** `contains` with its counts. */
export const contains: Judge = (search, given, node, _value, report) => {
  const inner = facts.childOf(node, "contains")!;
  const min = (facts.wordOf(node, "minContains") as number | undefined) ?? 1;
  const max = (facts.wordOf(node, "maxContains") as number | undefined) ?? Number.POSITIVE_INFINITY;
  const holds = given.some((each) => {
    const its = facts.childOf(each, "contains");
    if (!its) return false;
    const [itsMin, itsMax] = [
      facts.wordOf(each, "minContains") ?? 1,
      facts.wordOf(each, "maxContains") ?? Number.POSITIVE_INFINITY,
    ];
    const same = search.same(its, inner);
    const enough = min === 0 || (itsMin as number) >= min;
    return (
      enough &&
      (min === 0 || same || search.implies(facts.flatten(its), inner)) &&
      (max === Number.POSITIVE_INFINITY || (same && (itsMax as number) <= max))
    );
  });
  if (!holds && (min > 0 || max < Number.POSITIVE_INFINITY))
    report(
      say(
        node,
        "contains",
        "`contains`",
        given.some((each) => facts.childOf(each, "contains")),
      ),
    );
};
