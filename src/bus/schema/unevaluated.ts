import type { SchemaNode } from "./tree.ts";

/** Which properties a subschema looks at; `all` = every one. */
type Evaluated = { readonly names: Set<string>; readonly patterns: Set<string>; all: boolean };

const bySome = new Set(["anyOf", "oneOf", "if", "then", "else", "dependentSchemas"]);

/** Adds what a subschema looks at; `false` = that depends on the value. */
const evaluate = (node: SchemaNode, isRoot: boolean, depends: boolean, into: Evaluated): boolean => {
  for (const { keyword, key } of node.children) {
    if (keyword === "properties") into.names.add(key!);
    else if (keyword === "patternProperties") into.patterns.add(key!);
    else if (keyword === "additionalProperties" || (keyword === "unevaluatedProperties" && !isRoot)) into.all = true;
    else continue;
    if (depends) return false;
  }
  for (const { keyword, node: inner } of node.children) {
    const conditional = bySome.has(keyword);
    if ((conditional || keyword === "allOf") && !evaluate(inner, false, depends || conditional, into)) return false;
  }
  return !node.ref || evaluate(node.ref, false, depends, into);
};

const newNode = (pointer: string, schema: SchemaNode["schema"]): SchemaNode => ({
  pointer,
  schema,
  children: [],
  ref: undefined,
  target: false,
});

/**
 * Rewrites `unevaluatedProperties` as the `additionalProperties` of a subschema that names all that is looked at: the same where that
 * does not depend on the value. Where it does, answers `undefined`: ajv 8 is wrong about it (it even throws at some values).
 * Otherwise answers how many names it wrote.
 */
export const rewriteUnevaluated = (node: SchemaNode): number | undefined => {
  const at = node.children.findIndex((child) => child.keyword === "unevaluatedProperties");
  if (at < 0) return 0;
  const evaluated: Evaluated = { names: new Set(), patterns: new Set(), all: false };
  if (!evaluate(node, true, false, evaluated)) return undefined;
  const rest = node.children[at]!;
  node.children.splice(at, 1);
  if (evaluated.all) return 0;
  const { names, patterns } = evaluated;
  const named = (of: Set<string>) => Object.fromEntries([...of].map((name) => [name, true]));
  const words = {
    properties: named(names),
    patternProperties: named(patterns),
    additionalProperties: rest.node.schema,
  };
  const instead = newNode(rest.node.pointer, words);
  const child = (keyword: string, key: string | undefined, inner: SchemaNode) =>
    instead.children.push({ keyword, key, node: inner, inPlace: false });
  for (const name of names) child("properties", name, newNode(rest.node.pointer, true));
  for (const name of patterns) child("patternProperties", name, newNode(rest.node.pointer, true));
  child("additionalProperties", undefined, rest.node);
  node.children.push({ keyword: "allOf", key: "unevaluated", node: instead, inPlace: true });
  return names.size + patterns.size;
};
