import { type Judge, ofType, type Search, say } from "./demand.ts";
import type { Facts, Kind } from "./facts.ts";
import * as facts from "./facts.ts";
import type { SchemaNode } from "./tree.ts";

/** Whether no value can satisfy both: judged by the kinds of values alone. */
const areDisjoint = (branches: readonly SchemaNode[]): boolean => {
  const seen = new Set<Kind>();
  for (const branch of branches) {
    for (const kind of facts.kindsOf(facts.flatten(branch))) {
      if (seen.has(kind)) return false;
      seen.add(kind);
    }
  }
  return true;
};

/** Whether facts imply a disjunction: as a whole, or each type of value, or each branch of a disjunction of their own. */
const impliesEither = (search: Search, given: Facts, branches: readonly SchemaNode[]): boolean => {
  const oneOfThem = (more: Facts) => branches.some((branch) => search.implies([...given, ...more], branch));
  if (oneOfThem([])) return true;
  for (const node of given) {
    for (const keyword of ["anyOf", "oneOf"]) {
      const own = facts.childrenOf(node, keyword);
      if (own.length > 0 && own.every((child) => oneOfThem(facts.flatten(child.node)))) return true;
    }
  }
  const possible = facts.kindsOf(given);
  const types = new Set([...possible].map((kind) => (kind === "fraction" ? "number" : kind)));
  if (types.has("number")) types.delete("integer");
  return types.size > 1 && [...types].every((name) => oneOfThem([ofType(name)]));
};

/** `anyOf`, and `oneOf` where no value can satisfy two branches. */
export const either =
  (keyword: "anyOf" | "oneOf"): Judge =>
  (search, given, node, _value, report) => {
    const branches = facts.childrenOf(node, keyword).map((child) => child.node);
    const exclusive = keyword === "anyOf" || areDisjoint(branches);
    if (exclusive && impliesEither(search, given, branches)) return;
    report(
      say(
        node,
        keyword,
        `\`${keyword}\``,
        given.some((each) => facts.childrenOf(each, keyword).length > 0),
      ),
    );
  };

/** `not`: implied by a `not` of something wider. */
export const not: Judge = (search, given, node, _value, report) => {
  const refused = facts.childOf(node, "not")!;
  if (facts.kindsOf(given).intersection(facts.kindsOf(facts.flatten(refused))).size === 0) return;
  const own = given.flatMap((each) => facts.childrenOf(each, "not").map((child) => child.node));
  if (own.some((other) => search.implies(facts.flatten(refused), other))) return;
  report(say(node, "not", "`not`", own.length > 0));
};

/** `if`, `then` and `else`: implied by the very same. */
export const conditional: Judge = (search, given, node, _value, report) => {
  const part = (each: SchemaNode, keyword: string) => facts.childOf(each, keyword);
  const same = (each: SchemaNode) =>
    ["if", "then", "else"].every((keyword) => {
      const [mine, its] = [part(node, keyword), part(each, keyword)];
      return mine && its ? search.same(mine, its) : mine === its;
    });
  const decides = part(node, "then") || part(node, "else");
  if (decides && !given.some(same))
    report(
      say(
        node,
        "if",
        "`if`, `then` and `else`",
        given.some((each) => part(each, "if")),
      ),
    );
};
