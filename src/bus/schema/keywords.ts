/** What a keyword's value must be, and so what is inside of it. */
export type Shape =
  | "schema"
  | "schemas"
  | "schemaMap"
  | "patternMap"
  | "string"
  | "strings"
  | "stringsMap"
  | "pattern"
  | "ref"
  | "types"
  | "enum"
  | "number"
  | "positive"
  | "count"
  | "boolean"
  | "any";

/** What is known of a keyword of JSON Schema 2020-12. */
export type Keyword = {
  readonly shape: Shape;
  /** Whether its subschemas apply to the very value, not to a part of it. */
  readonly inPlace?: true;
  /** Whether it decides nothing about a value. */
  readonly annotation?: true;
};

const inPlace = true;
const annotation = true;

/** The keywords that a schema may have. `format` is an annotation, as it is by default in 2020-12. */
export const keywords: ReadonlyMap<string, Keyword> = new Map<string, Keyword>([
  ["$ref", { shape: "ref" }],
  ["$defs", { shape: "schemaMap", annotation }],
  ["definitions", { shape: "schemaMap", annotation }],
  ["allOf", { shape: "schemas", inPlace }],
  ["anyOf", { shape: "schemas", inPlace }],
  ["oneOf", { shape: "schemas", inPlace }],
  ["not", { shape: "schema", inPlace }],
  ["if", { shape: "schema", inPlace }],
  ["then", { shape: "schema", inPlace }],
  ["else", { shape: "schema", inPlace }],
  ["dependentSchemas", { shape: "schemaMap", inPlace }],
  ["properties", { shape: "schemaMap" }],
  ["patternProperties", { shape: "patternMap" }],
  ["additionalProperties", { shape: "schema" }],
  ["propertyNames", { shape: "schema" }],
  ["unevaluatedProperties", { shape: "schema" }],
  ["prefixItems", { shape: "schemas" }],
  ["items", { shape: "schema" }],
  ["contains", { shape: "schema" }],
  ["type", { shape: "types" }],
  ["enum", { shape: "enum" }],
  ["const", { shape: "any" }],
  ["multipleOf", { shape: "positive" }],
  ["maximum", { shape: "number" }],
  ["exclusiveMaximum", { shape: "number" }],
  ["minimum", { shape: "number" }],
  ["exclusiveMinimum", { shape: "number" }],
  ["maxLength", { shape: "count" }],
  ["minLength", { shape: "count" }],
  ["pattern", { shape: "pattern" }],
  ["maxItems", { shape: "count" }],
  ["minItems", { shape: "count" }],
  ["uniqueItems", { shape: "boolean" }],
  ["maxContains", { shape: "count" }],
  ["minContains", { shape: "count" }],
  ["maxProperties", { shape: "count" }],
  ["minProperties", { shape: "count" }],
  ["required", { shape: "strings" }],
  ["dependentRequired", { shape: "stringsMap" }],
  ["format", { shape: "string", annotation }],
  ["title", { shape: "string", annotation }],
  ["description", { shape: "string", annotation }],
  ["$comment", { shape: "string", annotation }],
  ["$schema", { shape: "string", annotation }],
  ["$id", { shape: "string", annotation }],
  ["$anchor", { shape: "string", annotation }],
  ["contentEncoding", { shape: "string", annotation }],
  ["contentMediaType", { shape: "string", annotation }],
  ["contentSchema", { shape: "any", annotation }],
  ["deprecated", { shape: "boolean", annotation }],
  ["readOnly", { shape: "boolean", annotation }],
  ["writeOnly", { shape: "boolean", annotation }],
  ["default", { shape: "any", annotation }],
  ["examples", { shape: "any", annotation }],
  // What OpenAPI, pydantic and editors add, none of which decides anything.
  ["example", { shape: "any", annotation }],
  ["discriminator", { shape: "any", annotation }],
  ["externalDocs", { shape: "any", annotation }],
  ["xml", { shape: "any", annotation }],
  ["markdownDescription", { shape: "any", annotation }],
  ["enumNames", { shape: "any", annotation }],
  ["enumDescriptions", { shape: "any", annotation }],
]);

/** What to write instead of keywords of other drafts, which would silently decide nothing. */
const replaced: ReadonlyMap<string, string> = new Map([
  // ajv does not count what `contains` and `if` looked at, so its verdicts would be wrong.
  ["unevaluatedItems", "is not supported: use `prefixItems` and `items`"],
  ["additionalItems", "is not of 2020-12: use `prefixItems` and `items`"],
  ["dependencies", "is not of 2020-12: use `dependentRequired` or `dependentSchemas`"],
  ["nullable", 'is not JSON Schema: use `"type": ["…", "null"]`'],
  ["id", "is not of 2020-12: use `$id`"],
  ["divisibleBy", "is not of 2020-12: use `multipleOf`"],
  ["$dynamicRef", "is not supported: use `$ref`"],
  ["$dynamicAnchor", "is not supported: use `$ref`"],
  ["$recursiveRef", "is not supported: use `$ref`"],
  ["$recursiveAnchor", "is not supported: use `$ref`"],
  ["$vocabulary", "is not supported"],
]);

/** Whether two words differ by at most one inserted, left out, changed or swapped letter, or by case. */
const nearlySame = (one: string, other: string): boolean => {
  const [a, b] = [one.toLowerCase(), other.toLowerCase()];
  let head = 0;
  while (head < a.length && a[head] === b[head]) head += 1;
  const [restA, restB] = [a.slice(head), b.slice(head)];
  const swapped = restA[0] === restB[1] && restA[1] === restB[0] && restA.slice(2) === restB.slice(2);
  return swapped || restA.slice(1) === restB || restA === restB.slice(1) || restA.slice(1) === restB.slice(1);
};

/** Why a name is not a keyword; `undefined` = it is one, or an extension (`x-…`), which decides nothing. */
export const unknownKeyword = (name: string): string | undefined => {
  if (keywords.has(name) || name.startsWith("x-")) return undefined;
  const other = replaced.get(name);
  if (other) return other;
  for (const known of keywords.keys()) {
    if (nearlySame(name, known)) return `is not a keyword: did you mean \`${known}\`?`;
  }
  return "is not a keyword of JSON Schema 2020-12; an extension's name begins with `x-`";
};
