import type { JsonObject, JsonValue } from "@bufbuild/protobuf";
import { _, type FuncKeywordDefinition, type KeywordCxt } from "ajv";
import { Ajv2020, type ValidateFunction } from "ajv/dist/2020.js";
import { keywords } from "./schema-keywords.ts";
import type { Meter } from "./schema-meter.ts";
import { linearRegex } from "./schema-regex.ts";
import type { SchemaNode, SchemaTree } from "./schema-tree.ts";

/** A keyword that every prepared subschema has, and no user's can: it counts. */
const stepKeyword = "$step";

/** Keywords that go over all keys of an object, or all characters of a string. */
const passing = new Set([
  "additionalProperties",
  "unevaluatedProperties",
  "patternProperties",
  "propertyNames",
  "minProperties",
  "maxProperties",
  "minLength",
  "maxLength",
]);

/** Steps that applying a subschema costs by itself: what it compares and names, not what is inside of its subschemas. */
const weigh = (schema: JsonObject): { readonly weight: number; readonly passes: number } => {
  let weight = 1;
  let passes = 0;
  for (const [name, value] of Object.entries(schema)) {
    if (passing.has(name)) passes += 1;
    if (name === "enum" || name === "const") {
      const values = (name === "enum" ? value : [value]) as JsonValue[];
      weight += values.length + (JSON.stringify(value).length >> 4);
      passes += values.filter((each) => typeof each === "object" && each !== null).length;
    } else if (name === "dependentRequired") {
      weight += Object.values(value as JsonObject).reduce<number>(
        (sum, names) => sum + 1 + (names as string[]).length,
        0,
      );
    } else if (typeof value === "object" && value !== null) {
      weight += Object.keys(value).length;
    }
  }
  return { weight: Math.ceil(weight / 2), passes };
};

type Preparation = { readonly names: Map<SchemaNode, string>; readonly open: SchemaNode[] };

const refTo = (preparation: Preparation, node: SchemaNode): JsonObject => {
  let name = preparation.names.get(node);
  if (name === undefined) {
    name = `d${preparation.names.size}`;
    preparation.names.set(node, name);
    preparation.open.push(node);
  }
  return { $ref: `#/$defs/${name}` };
};

const prepareNode = (preparation: Preparation, node: SchemaNode): JsonObject | boolean =>
  node.target && typeof node.schema !== "boolean" ? refTo(preparation, node) : prepareBody(preparation, node);

const prepareBody = (preparation: Preparation, node: SchemaNode): JsonObject | boolean => {
  if (typeof node.schema === "boolean") return node.schema;
  const body: JsonObject = {};
  for (const [name, value] of Object.entries(node.schema)) {
    const keyword = keywords.get(name);
    if (!keyword || keyword.annotation) continue;
    const holdsMap = keyword.shape === "schemaMap" || keyword.shape === "patternMap";
    body[name] = keyword.shape === "schemas" ? [] : holdsMap ? {} : value;
  }
  for (const { keyword, key, node: inner } of node.children) {
    if (!(keyword in body)) continue;
    const prepared = prepareNode(preparation, inner);
    if (key === undefined) body[keyword] = prepared;
    else if (Array.isArray(body[keyword])) body[keyword].push(prepared);
    else (body[keyword] as JsonObject)[key] = prepared;
  }
  if (node.ref) Object.assign(body, typeof node.ref.schema === "boolean" ? {} : refTo(preparation, node.ref));
  if (node.ref?.schema === false) body.not = {};
  if (typeof node.ref?.schema === "boolean") delete body.$ref;
  // Without a `then` ajv forgets what a successful `if` looked at.
  if ("if" in body && !("then" in body)) body.then = { [stepKeyword]: { weight: 1, passes: 0 } };
  if (Object.keys(body).length === 0) return {};
  return { ...body, [stepKeyword]: weigh(body) };
};

/**
 * Rewrites a schema for ajv: only keywords that decide something, every target of a `$ref` under a name of ours, a counter in each subschema.
 * So no name or annotation of the user's reaches the code generator as anything but a property name or a constant.
 */
const prepare = (tree: SchemaTree): JsonObject | boolean => {
  const preparation: Preparation = { names: new Map(), open: [] };
  const root = prepareNode(preparation, tree.root);
  const $defs: JsonObject = {};
  for (let node = preparation.open.pop(); node; node = preparation.open.pop()) {
    $defs[preparation.names.get(node)!] = prepareBody(preparation, node);
  }
  return typeof root === "boolean" || preparation.names.size === 0 ? root : { ...root, $defs };
};

/** A value's JSON with sorted keys: equal for values that are equal by JSON Schema. */
export const canonicalJson = (value: JsonValue): string => {
  if (typeof value !== "object" || value === null) return Object.is(value, -0) ? "0" : JSON.stringify(value);
  if (Array.isArray(value)) return `[${value.map(canonicalJson).join(",")}]`;
  const keys = Object.keys(value).sort();
  return `{${keys.map((key) => `${JSON.stringify(key)}:${canonicalJson(value[key]!)}`).join(",")}}`;
};

/** `uniqueItems` in one pass: ajv compares each item with each. */
const uniqueItems = (meter: Meter): FuncKeywordDefinition => ({
  keyword: "uniqueItems",
  type: "array",
  schemaType: "boolean",
  errors: false,
  validate: (wanted: boolean, items: JsonValue[]) => {
    if (!wanted || items.length < 2) return true;
    const seen = new Set<string>();
    for (const item of items) {
      const text = canonicalJson(item);
      meter.steps(1 + (text.length >> 2));
      if (seen.has(text)) return false;
      seen.add(text);
    }
    return true;
  },
});

const usesUnevaluated = (tree: SchemaTree): boolean =>
  [...tree.nodes.values()].some(({ schema }) => typeof schema === "object" && "unevaluatedProperties" in schema);

const newAjv = (tree: SchemaTree, meter: Meter, allErrors: boolean): Ajv2020 => {
  const regExp = Object.assign((pattern: string) => linearRegex(pattern, meter.patternWork), { code: "linearRegex" });
  const ajv = new Ajv2020({
    allErrors,
    // Our own rules have judged the schema already.
    meta: false,
    validateSchema: false,
    strict: false,
    addUsedSchema: false,
    logger: false,
    // Every reference is a function: inlining multiplies code.
    inlineRefs: false,
    loopRequired: 20,
    loopEnum: 20,
    // `constructor` and its like are ordinary names.
    ownProperties: true,
    multipleOfPrecision: 9,
    code: { regExp, optimize: false },
  });
  // Without those keywords ajv need not follow which parts were looked at, nor try every branch of `anyOf`.
  ajv.opts.unevaluated = usesUnevaluated(tree);
  ajv.removeKeyword("uniqueItems");
  ajv.addKeyword(uniqueItems(meter));
  ajv.addKeyword({
    keyword: stepKeyword,
    before: "$ref",
    code: ({ gen, data, schema }: KeywordCxt) => {
      const step = gen.scopeValue("func", { ref: meter.step });
      gen.code(_`${step}(${data}, ${schema.weight}, ${schema.passes})`);
    },
  });
  return ajv;
};

/** Compiles a schema that was read; `allErrors` = the validator goes on after the first. */
export const compileTree = (tree: SchemaTree, meter: Meter, allErrors: boolean): ValidateFunction =>
  newAjv(tree, meter, allErrors).compile(prepare(tree));
