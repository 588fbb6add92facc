import type { JsonObject, JsonValue } from "@bufbuild/protobuf";
import { canonicalJson } from "./compile.ts";
import { keywords } from "./keywords.ts";
import type { SchemaNode } from "./tree.ts";

const decisive = (node: SchemaNode): Map<string, JsonValue> => {
  const words = Object.entries(node.schema as JsonObject);
  // A format decides nothing, but a change of it is worth a note.
  return new Map(
    words.filter(([name]) => name === "format" || (keywords.has(name) && !keywords.get(name)!.annotation)),
  );
};

const sameWords = (one: SchemaNode, other: SchemaNode): boolean => {
  const [mine, its] = [decisive(one), decisive(other)];
  if (mine.size !== its.size) return false;
  for (const [name, value] of mine) {
    const match = its.get(name);
    if (match === undefined) return false;
    const structured = name === "$ref" || one.children.some((child) => child.keyword === name);
    if (!structured && canonicalJson(value) !== canonicalJson(match)) return false;
  }
  return true;
};

/**
 * Whether two subschemas, of whatever schemas, are the same but for annotations and for the names that `$ref`s go by. Pairs met again on
 * the way are taken to be the same: where they are not, the difference shows elsewhere. `count` is called for each pair, and may throw.
 */
export const sameSchema = (one: SchemaNode, other: SchemaNode, count: () => void): boolean => {
  const met = new Map<SchemaNode, Set<SchemaNode>>();
  const same = (a: SchemaNode, b: SchemaNode): boolean => {
    count();
    if (typeof a.schema === "boolean" || typeof b.schema === "boolean") return a.schema === b.schema;
    const partners = met.get(a) ?? new Set();
    if (partners.has(b)) return true;
    met.set(a, partners.add(b));
    if ((a.ref === undefined) !== (b.ref === undefined) || !sameWords(a, b)) return false;
    if (a.ref && !same(a.ref, b.ref!)) return false;
    const mine = a.children.filter((child) => !keywords.get(child.keyword)!.annotation);
    const its = b.children.filter((child) => !keywords.get(child.keyword)!.annotation);
    if (mine.length !== its.length) return false;
    const byPlace = new Map(its.map((child) => [JSON.stringify([child.keyword, child.key]), child.node]));
    return mine.every((child) => {
      const match = byPlace.get(JSON.stringify([child.keyword, child.key]));
      return match !== undefined && same(child.node, match);
    });
  };
  return same(one, other);
};
