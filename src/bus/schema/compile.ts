import type { JsonObject, JsonValue } from "@bufbuild/protobuf";
import { _, type FuncKeywordDefinition, type KeywordCxt } from "ajv";
import { Ajv2020, type ValidateFunction } from "ajv/dist/2020.js";
import { isObject } from "./error.ts";
import { keywords } from "./keywords.ts";
import { maxOptimizedSubschemas } from "./limits.ts";
import type { Meter } from "./meter.ts";
import { linearRegex } from "./regex.ts";
import type { SchemaNode, SchemaTree } from "./tree.ts";

/** A keyword that every prepared subschema has, and no user's can: it counts. */
const stepKeyword = "$step";

/** A `maxContains` that no array reaches. */
export const unlimited = Number.MAX_SAFE_INTEGER;

/** Keywords that go over all keys of an object, or all characters of a string. */
const passing = new Set([
  "additionalProperties",
  "patternProperties",
  "propertyNames",
  "minProperties",
  "maxProperties",
  "minLength",
  "maxLength",
]);

type Preparation = {
  readonly names: Map<SchemaNode, string>;
  readonly open: SchemaNode[];
  /** How much dearer a step is than one of optimised code. */
  readonly factor: number;
};

/** What making an error costs, in steps: in `anyOf`, `oneOf` and `contains` one does not end the check. */
const errorSteps = 3;

const namesIn = (map: JsonValue): number =>
  Object.values(map as JsonObject).reduce<number>((sum, names) => sum + 1 + (names as JsonValue[]).length, 0);

/** Steps that one keyword costs by itself: what it compares and names, not what is inside of its subschemas. */
const weightOf = (name: string, value: JsonValue): number => {
  if (name === "enum") return ((value as JsonValue[]).length + (JSON.stringify(value).length >> 4)) / 2;
  if (name === "const") return JSON.stringify(value).length >> 5;
  if (name === "dependentRequired") return namesIn(value) / 2;
  if (name === "anyOf" || name === "oneOf") return (value as JsonValue[]).length * errorSteps;
  return typeof value === "object" && value !== null ? Object.keys(value).length / 2 : 0;
};

/** How often a keyword goes over all keys of an object, or all characters of a string. */
const passesOf = (name: string, value: JsonValue): number => {
  if (name !== "enum" && name !== "const") return passing.has(name) ? 1 : 0;
  return (name === "enum" ? (value as JsonValue[]) : [value]).filter(isObject).length;
};

/** The steps of a subschema, as the meter wants them. */
const weigh = ({ factor }: Preparation, schema: JsonObject): JsonObject => {
  let weight = 1;
  let passes = 0;
  for (const [name, value] of Object.entries(schema)) {
    weight += weightOf(name, value);
    passes += passesOf(name, value);
  }
  return { weight: Math.ceil(weight) * factor, passes, itemSteps: "contains" in schema ? errorSteps * factor : 0 };
};

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

/** `prefixItems` in a subschema of its own: where an array is shorter, ajv skips whatever comes after it in the same schema. */
const isolatePrefix = (preparation: Preparation, body: JsonObject): void => {
  if (body.prefixItems === undefined) return;
  const own: JsonObject = { prefixItems: body.prefixItems, ...(body.items === undefined ? {} : { items: body.items }) };
  delete body.prefixItems;
  delete body.items;
  body.allOf = [...((body.allOf as JsonValue[] | undefined) ?? []), { ...own, [stepKeyword]: weigh(preparation, own) }];
};

const prepareBody = (preparation: Preparation, node: SchemaNode): JsonObject | boolean => {
  if (typeof node.schema === "boolean") return node.schema;
  const body: JsonObject = {};
  for (const [name, value] of Object.entries(node.schema)) {
    const keyword = keywords.get(name);
    if (!keyword || keyword.annotation || name === "unevaluatedProperties") continue;
    const holdsMap = keyword.shape === "schemaMap" || keyword.shape === "patternMap";
    body[name] = keyword.shape === "schemas" ? [] : holdsMap ? {} : value;
  }
  for (const { keyword, key, node: inner } of node.children) {
    if (keywords.get(keyword)!.annotation) continue;
    if (keyword === "allOf") body.allOf ??= [];
    const prepared = prepareNode(preparation, inner);
    if (key === undefined) body[keyword] = prepared;
    else if (Array.isArray(body[keyword])) body[keyword].push(prepared);
    else (body[keyword] as JsonObject)[key] = prepared;
  }
  if (node.ref) Object.assign(body, typeof node.ref.schema === "boolean" ? {} : refTo(preparation, node.ref));
  if (node.ref?.schema === false) body.not = {};
  if (typeof node.ref?.schema === "boolean") delete body.$ref;
  isolatePrefix(preparation, body);
  // Without a `maxContains` ajv can take the answer for one array to be that for the next.
  if (body.contains !== undefined) body.maxContains ??= unlimited;
  if (Object.keys(body).length === 0) return {};
  return { ...body, [stepKeyword]: weigh(preparation, body) };
};

/**
 * Rewrites a schema for ajv: only keywords that decide something, every target of a `$ref` under a name of ours, a counter in each subschema.
 * So no name or annotation of the user's reaches the code generator as anything but a property name or a constant.
 */
const prepare = (tree: SchemaTree): JsonObject | boolean => {
  const preparation: Preparation = {
    names: new Map(),
    open: [],
    factor: tree.nodes.size > maxOptimizedSubschemas ? 4 : 1,
  };
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
    const plain = new Set<JsonValue>();
    const texts = new Set<string>();
    for (const item of items) {
      const text = typeof item === "object" && item !== null ? canonicalJson(item) : undefined;
      meter.steps(text === undefined ? 4 : 8 + (text.length >> 1));
      if (text === undefined ? plain.has(item) : texts.has(text)) return false;
      if (text === undefined) plain.add(item);
      else texts.add(text);
    }
    return true;
  },
});

const newAjv = (meter: Meter, allErrors: boolean): Ajv2020 => {
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
  // `unevaluatedProperties` is rewritten by now: so ajv need not follow what was looked at, nor try every branch of `anyOf`.
  ajv.opts.unevaluated = false;
  ajv.removeKeyword("uniqueItems");
  ajv.addKeyword(uniqueItems(meter));
  ajv.addKeyword({
    keyword: stepKeyword,
    before: "$ref",
    code: ({ gen, data, schema }: KeywordCxt) => {
      const step = gen.scopeValue("func", { ref: meter.step });
      gen.code(_`${step}(${data}, ${schema.weight}, ${schema.passes}, ${schema.itemSteps})`);
    },
  });
  return ajv;
};

/** Compiles a schema that was read; `allErrors` = the validator goes on after the first. */
export const compileTree = (tree: SchemaTree, meter: Meter, allErrors: boolean): ValidateFunction =>
  newAjv(meter, allErrors).compile(prepare(tree));
