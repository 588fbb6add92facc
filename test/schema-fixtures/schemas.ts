import type { JsonObject, JsonValue } from "@bufbuild/protobuf";
import fc from "fast-check";

const name = fc.constantFrom("a", "b", "c", "x1");
const small = fc.integer({ min: -1, max: 3 });
const size = fc.integer({ min: 0, max: 3 });

/** Small values, of few names and numbers, so that random schemas say something about them. */
export const value: fc.Arbitrary<JsonValue> = fc.letrec<{ value: JsonValue }>((tie) => ({
  value: fc.oneof(
    { maxDepth: 2, depthSize: "small", withCrossShrink: true },
    fc.constantFrom<JsonValue>(null, true, false, 0, 1, 2, -1, 0.5, 1.5, "", "a", "b", "ab", "x1", "abcd", [], {}),
    fc.dictionary(name, tie("value"), { maxKeys: 3, noNullPrototype: true }),
    fc.array(tie("value"), { maxLength: 3 }),
  ),
})).value;

const type = fc.constantFrom("null", "boolean", "integer", "number", "string", "array", "object");
const listed = fc.constantFrom<JsonValue>(null, true, 0, 1, 1.5, "", "a", "ab", [], [1], {}, { a: 1 });
const pattern = fc.constantFrom("^a", "b$", "^x\\d", "^.?$");

/** Names of `$defs`, which every schema of `schema` has: so references always lead somewhere, mostly in circles. */
const definitions = ["p", "q"] as const;

const keywords = (inner: fc.Arbitrary<JsonValue>): fc.Arbitrary<readonly [string, JsonValue]> => {
  const map = (keys: fc.Arbitrary<string>) => fc.dictionary(keys, inner, { maxKeys: 3, noNullPrototype: true });
  const list = fc.array(inner, { minLength: 1, maxLength: 3 });
  const words: Record<string, fc.Arbitrary<JsonValue>> = {
    type: fc.oneof(type, fc.uniqueArray(type, { minLength: 1, maxLength: 3 })),
    enum: fc.array(listed, { minLength: 1, maxLength: 4 }),
    const: listed,
    minimum: small,
    maximum: small,
    exclusiveMinimum: small,
    exclusiveMaximum: small,
    multipleOf: fc.constantFrom(1, 2, 0.5),
    minLength: size,
    maxLength: size,
    pattern,
    format: fc.constantFrom("date", "email"),
    minItems: size,
    maxItems: size,
    uniqueItems: fc.boolean(),
    minProperties: size,
    maxProperties: size,
    required: fc.uniqueArray(name, { maxLength: 2 }),
    dependentRequired: fc.dictionary(name, fc.uniqueArray(name, { maxLength: 2 }), {
      maxKeys: 2,
      noNullPrototype: true,
    }),
    properties: map(name),
    patternProperties: map(pattern),
    additionalProperties: inner,
    propertyNames: inner,
    unevaluatedProperties: inner,
    prefixItems: list,
    items: inner,
    contains: inner,
    minContains: size,
    maxContains: size,
    allOf: list,
    anyOf: list,
    oneOf: list,
    not: inner,
    if: inner,
    // biome-ignore lint/suspicious/noThenProperty: the keyword of JSON Schema
    then: inner,
    else: inner,
    dependentSchemas: map(name),
    $ref: fc.constantFrom(...definitions.map((each) => `#/$defs/${each}`)),
  };
  const often = ["type", "type", "properties", "properties", "required", "additionalProperties", "items", "enum"];
  const pick = fc.constantFrom(...Object.keys(words), ...often);
  return pick.chain((keyword) => words[keyword]!.map((each) => [keyword, each] as const));
};

const subschema = fc.letrec<{ schema: JsonValue }>((tie) => ({
  schema: fc.oneof(
    { maxDepth: 3, depthSize: "small", withCrossShrink: true },
    fc.constantFrom<JsonValue>(true, true, false, {}, { type: "string" }, { type: "integer" }),
    fc
      .array(keywords(tie("schema")), { minLength: 1, maxLength: 4 })
      .map((words): JsonValue => Object.fromEntries(words)),
  ),
})).schema;

/** Small schemas of every keyword; about a tenth of them are refused, for they apply themselves to the same value. */
export const schema: fc.Arbitrary<JsonObject> = fc.tuple(subschema, subschema, subschema).map(([root, p, q]) => ({
  ...(typeof root === "object" ? (root as JsonObject) : { allOf: [root] }),
  $defs: { p, q },
}));

const places = (node: JsonValue, into: JsonObject[]): JsonObject[] => {
  if (typeof node !== "object" || node === null) return into;
  if (!Array.isArray(node)) into.push(node);
  for (const inner of Object.values(node)) places(inner, into);
  return into;
};

/** A schema and another that differs from it in few places. */
export const schemaPair: fc.Arbitrary<[JsonObject, JsonObject]> = fc
  .tuple(schema, fc.array(fc.tuple(fc.nat(), keywords(subschema), fc.boolean()), { maxLength: 2 }))
  .map(([first, edits]) => {
    const second = structuredClone(first);
    for (const [at, [keyword, changed], removes] of edits) {
      const all = places(second, []);
      const place = all[at % all.length]!;
      const present = Object.keys(place).filter((key) => key !== "$defs" && key !== "p" && key !== "q");
      if (removes && present.length > 0) delete place[present[at % present.length]!];
      else place[keyword] = structuredClone(changed);
    }
    return [first, second];
  });
