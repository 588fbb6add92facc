import type { JsonObject, JsonValue } from "@bufbuild/protobuf";
import { isObject, pointerTo, SchemaError } from "./error.ts";
import { type Keyword, keywords, type Shape, unknownKeyword } from "./keywords.ts";
import * as limits from "./limits.ts";
import { linearRegex, PatternError } from "./regex.ts";
import { checkJson, checkStrings, checkTypes, plainChecks } from "./shapes.ts";
import { rewriteUnevaluated } from "./unevaluated.ts";

/** A subschema and what it applies. */
export type SchemaNode = {
  readonly pointer: string;
  readonly schema: JsonObject | boolean;
  readonly children: SchemaChild[];
  /** What its `$ref` leads to. */
  ref: SchemaNode | undefined;
  /** Whether a `$ref` leads here. */
  target: boolean;
};

/** A subschema under a keyword, with its key or index where the keyword holds several. */
export type SchemaChild = {
  readonly keyword: string;
  readonly key: string | undefined;
  readonly node: SchemaNode;
  readonly inPlace: boolean;
};

/** A schema that keeps every rule and limit. */
export type SchemaTree = { readonly root: SchemaNode; readonly nodes: ReadonlyMap<string, SchemaNode> };

type Reader = {
  readonly nodes: Map<string, SchemaNode>;
  readonly refs: SchemaNode[];
  parts: number;
  patterns: number;
  programs: number;
  enumEntries: number;
};

const countParts = (reader: Reader, count: number, pointer: string): void => {
  reader.parts += count;
  if (reader.parts > limits.maxSubschemas)
    throw new SchemaError(pointer, `is more than ${limits.maxSubschemas} subschemas`);
};

const readPattern = (reader: Reader, pattern: string, pointer: string): void => {
  if (pattern.length > limits.maxPatternLength)
    throw new SchemaError(pointer, `is a pattern longer than ${limits.maxPatternLength}`);
  if (++reader.patterns > limits.maxPatterns)
    throw new SchemaError(pointer, `is more than ${limits.maxPatterns} patterns`);
  try {
    const { program } = linearRegex(pattern, () => {});
    reader.programs += program;
    if (program > limits.maxPatternProgram) throw new PatternError("repeats too much to be matched in time");
  } catch (error) {
    if (error instanceof PatternError) throw new SchemaError(pointer, `is not a usable pattern: ${error.message}`);
    throw error;
  }
  if (reader.programs > limits.maxPatternPrograms)
    throw new SchemaError(pointer, "makes the patterns of the schema too large together");
};

const readChildren = (reader: Reader, node: SchemaNode, keyword: string, shape: Shape, inPlace: boolean): void => {
  const value = (node.schema as JsonObject)[keyword]!;
  const pointer = pointerTo(node.pointer, keyword);
  const add = (key: string | undefined, schema: JsonValue, at: string) =>
    node.children.push({ keyword, key, node: readNode(reader, schema, at), inPlace });
  if (shape === "schema") {
    add(undefined, value, pointer);
    return;
  }
  if (shape === "schemas" ? !Array.isArray(value) || value.length === 0 : !isObject(value)) {
    throw new SchemaError(
      pointer,
      shape === "schemas" ? "must be an array of at least one schema" : "must be an object of schemas",
    );
  }
  for (const [key, schema] of Object.entries(value as JsonObject)) {
    if (shape === "patternMap") readPattern(reader, key, pointerTo(pointer, key));
    add(key, schema, pointerTo(pointer, key));
  }
};

const readKeyword = (reader: Reader, node: SchemaNode, name: string, keyword: Keyword): void => {
  const { shape } = keyword;
  const value = (node.schema as JsonObject)[name]!;
  const pointer = pointerTo(node.pointer, name);
  if (name === "items" && Array.isArray(value))
    throw new SchemaError(pointer, "must be a schema; a list of schemas is `prefixItems`");
  if (shape === "schema" || shape === "schemas" || shape === "schemaMap" || shape === "patternMap") {
    readChildren(reader, node, name, shape, keyword.inPlace === true);
    return;
  }
  const plain = plainChecks[shape];
  if (plain && !plain[0](value)) throw new SchemaError(pointer, plain[1]);
  if (shape === "types") checkTypes(value, pointer);
  if (shape === "strings") checkStrings(value, pointer);
  if (shape === "stringsMap") {
    if (!isObject(value)) throw new SchemaError(pointer, "must be an object of arrays of strings");
    for (const [key, names] of Object.entries(value)) checkStrings(names, pointerTo(pointer, key));
    countParts(reader, Object.keys(value).length, pointer);
  }
  if (shape === "pattern") readPattern(reader, value as string, pointer);
  if (shape === "enum") reader.enumEntries += (value as JsonValue[]).length;
  if (reader.enumEntries > limits.maxEnumEntries)
    throw new SchemaError(pointer, `makes more than ${limits.maxEnumEntries} entries of \`enum\``);
  if (shape === "ref") reader.refs.push(node);
  if (name === "$schema" && !/^https?:\/\/json-schema\.org\//.test(value as string)) {
    throw new SchemaError(
      pointer,
      "must be a dialect of json-schema.org, such as https://json-schema.org/draft/2020-12/schema",
    );
  }
  if (name === "$id" && node.pointer !== "") throw new SchemaError(pointer, "is allowed at the root only");
};

const readNode = (reader: Reader, schema: JsonValue, pointer: string): SchemaNode => {
  if (typeof schema !== "boolean" && !isObject(schema))
    throw new SchemaError(pointer, "must be a schema: an object, true or false");
  const node: SchemaNode = { pointer, schema, children: [], ref: undefined, target: false };
  reader.nodes.set(pointer, node);
  countParts(reader, 1, pointer);
  if (typeof schema === "boolean") return node;
  for (const name of Object.keys(schema)) {
    const fault = unknownKeyword(name);
    if (fault) throw new SchemaError(pointerTo(pointer, name), fault);
    const keyword = keywords.get(name);
    if (keyword) readKeyword(reader, node, name, keyword);
  }
  return node;
};

const decodeRef = (ref: string, pointer: string): string => {
  try {
    return decodeURIComponent(ref.slice(1));
  } catch {
    throw new SchemaError(pointer, "is not percent-encoded as a URI asks");
  }
};

const resolveRefs = (reader: Reader): void => {
  let targets = 0;
  for (const node of reader.refs) {
    const pointer = pointerTo(node.pointer, "$ref");
    const ref = (node.schema as JsonObject).$ref as string;
    node.ref = reader.nodes.get(decodeRef(ref, pointer));
    if (!node.ref) throw new SchemaError(pointer, `leads to no schema: \`${ref.slice(0, 100)}\``);
    if (!node.ref.target && ++targets > limits.maxRefTargets) {
      throw new SchemaError(pointer, `is a reference to more than ${limits.maxRefTargets} different schemas`);
    }
    node.ref.target = true;
  }
};

/** What a schema applies to the very same value. */
const inPlaceOf = (node: SchemaNode): SchemaNode[] => {
  const inner = node.children.filter((child) => child.inPlace).map((child) => child.node);
  return node.ref ? [...inner, node.ref] : inner;
};

/** Steps before a schema looks inside of a value. Refuses those that never do, and those that take too long. */
const checkInPlace = (nodes: Iterable<SchemaNode>): void => {
  const steps = new Map<SchemaNode, number | "open">();
  const visit = (node: SchemaNode): number => {
    const known = steps.get(node);
    if (known === "open")
      throw new SchemaError(node.pointer, "applies itself to the same value again: it would never end");
    if (known !== undefined) return known;
    steps.set(node, "open");
    const sum = inPlaceOf(node).reduce((total, inner) => total + visit(inner), 1);
    if (sum > limits.maxInPlaceSteps)
      throw new SchemaError(node.pointer, "combines so many schemas that checking one value would take too long");
    steps.set(node, sum);
    return sum;
  };
  for (const node of nodes) visit(node);
};

const rewriteAllUnevaluated = (nodes: Iterable<SchemaNode>): void => {
  let names = 0;
  for (const node of nodes) {
    const written = rewriteUnevaluated(node);
    const pointer = pointerTo(node.pointer, "unevaluatedProperties");
    if (written === undefined) {
      throw new SchemaError(
        pointer,
        "is supported where all `properties` are in the schema itself, its `allOf` and its `$ref`, not in `anyOf`, `oneOf`, `if` or `dependentSchemas`",
      );
    }
    names += written;
    if (names > limits.maxUnevaluatedNames) throw new SchemaError(pointer, "is used on too many properties together");
  }
};

/** Reads a schema whole; throws SchemaError for the first rule or limit that it breaks. */
export const readSchema = (schema: JsonValue): SchemaTree => {
  checkJson(schema);
  const reader: Reader = { nodes: new Map(), refs: [], parts: 0, patterns: 0, programs: 0, enumEntries: 0 };
  const root = readNode(reader, schema, "");
  resolveRefs(reader);
  checkInPlace(reader.nodes.values());
  rewriteAllUnevaluated(reader.nodes.values());
  return { root, nodes: reader.nodes };
};
