import { isDeepStrictEqual } from "node:util";
import type { JsonObject, JsonValue } from "@bufbuild/protobuf";

/** What a schema looked at in a value, besides whether it accepts it. */
type Verdict = { readonly valid: boolean; readonly evaluated: ReadonlySet<string> };

const kinds: Record<string, (value: JsonValue) => boolean> = {
  null: (value) => value === null,
  boolean: (value) => typeof value === "boolean",
  integer: (value) => Number.isInteger(value),
  number: (value) => typeof value === "number",
  string: (value) => typeof value === "string",
  array: Array.isArray,
  object: (value) => isObject(value),
};

const isObject = (value: JsonValue | undefined): value is JsonObject =>
  typeof value === "object" && value !== null && !Array.isArray(value);

const lookUp = (root: JsonValue, ref: string): JsonValue =>
  ref
    .split("/")
    .slice(1)
    .reduce<JsonValue>((at, key) => (at as JsonObject)[key]!, root);

const checkNumber = (s: JsonObject, value: number): boolean =>
  !(value < ((s.minimum as number) ?? -Infinity)) &&
  !(value > ((s.maximum as number) ?? Infinity)) &&
  !("exclusiveMinimum" in s && value <= (s.exclusiveMinimum as number)) &&
  !("exclusiveMaximum" in s && value >= (s.exclusiveMaximum as number)) &&
  !("multipleOf" in s && value % (s.multipleOf as number) !== 0);

const within = (size: number, min: JsonValue | undefined, max: JsonValue | undefined): boolean =>
  size >= ((min as number) ?? 0) && size <= ((max as number) ?? Infinity);

const checkString = (s: JsonObject, value: string): boolean =>
  within([...value].length, s.minLength, s.maxLength) &&
  (s.pattern === undefined || new RegExp(s.pattern as string, "u").test(value));

const checkArray = (root: JsonValue, s: JsonObject, value: JsonValue[]): boolean => {
  const prefix = (s.prefixItems as JsonValue[]) ?? [];
  const contained = s.contains === undefined ? 0 : value.filter((item) => accepts(root, s.contains!, item)).length;
  return (
    within(value.length, s.minItems, s.maxItems) &&
    !(s.uniqueItems && value.some((item, i) => value.slice(0, i).some((other) => isDeepStrictEqual(item, other)))) &&
    value.every((item, i) => accepts(root, prefix[i] ?? s.items ?? true, item)) &&
    (s.contains === undefined || within(contained, s.minContains ?? 1, s.maxContains))
  );
};

const applyObject = (root: JsonValue, s: JsonObject, value: JsonObject): Verdict => {
  const keys = Object.keys(value);
  const evaluated = new Set<string>();
  let valid = within(keys.length, s.minProperties, s.maxProperties);
  for (const name of (s.required as string[]) ?? []) valid &&= Object.hasOwn(value, name);
  for (const [name, names] of Object.entries((s.dependentRequired as Record<string, string[]>) ?? {})) {
    valid &&= !Object.hasOwn(value, name) || names.every((each) => Object.hasOwn(value, each));
  }
  for (const key of keys) {
    const named = (s.properties as JsonObject)?.[key];
    const schemas = Object.entries((s.patternProperties as JsonObject) ?? {})
      .filter(([pattern]) => new RegExp(pattern, "u").test(key))
      .map(([, each]) => each);
    if (named !== undefined) schemas.push(named);
    if (schemas.length === 0 && s.additionalProperties !== undefined) schemas.push(s.additionalProperties);
    if (schemas.length > 0) evaluated.add(key);
    valid &&= schemas.every((each) => accepts(root, each, value[key]!));
    valid &&= accepts(root, s.propertyNames ?? true, key);
  }
  return { valid, evaluated };
};

/** The verdicts of the subschemas that apply to the same value, and whether they make the whole valid. */
const applyInPlace = (root: JsonValue, s: JsonObject, value: JsonValue): { valid: boolean; verdicts: Verdict[] } => {
  const all = (schemas: JsonValue[]) => schemas.map((each) => apply(root, each, value));
  const allOf = all([
    ...((s.allOf as JsonValue[]) ?? []),
    ...(s.$ref === undefined ? [] : [lookUp(root, s.$ref as string)]),
  ]);
  const anyOf = all((s.anyOf as JsonValue[]) ?? []);
  const oneOf = all((s.oneOf as JsonValue[]) ?? []);
  const test = s.if === undefined ? [] : all([s.if]);
  const branch = test[0]?.valid ? s.then : s.else;
  const dependent = Object.entries((s.dependentSchemas as JsonObject) ?? {}).filter(
    ([key]) => isObject(value) && Object.hasOwn(value, key),
  );
  const must = [
    ...allOf,
    ...all(test.length === 0 || branch === undefined ? [] : [branch]),
    ...all(dependent.map(([, each]) => each)),
  ];
  const valid =
    must.every((each) => each.valid) &&
    (anyOf.length === 0 || anyOf.some((each) => each.valid)) &&
    (oneOf.length === 0 || oneOf.filter((each) => each.valid).length === 1) &&
    (s.not === undefined || !apply(root, s.not, value).valid);
  return { valid, verdicts: [...must, ...anyOf, ...oneOf, ...test].filter((each) => each.valid) };
};

const apply = (root: JsonValue, s: JsonValue, value: JsonValue): Verdict => {
  if (!isObject(s)) return { valid: s === true, evaluated: new Set() };
  const inPlace = applyInPlace(root, s, value);
  const own: Verdict = isObject(value) ? applyObject(root, s, value) : { valid: true, evaluated: new Set() };
  const evaluated = new Set([own, ...inPlace.verdicts].flatMap((each) => [...each.evaluated]));
  let valid = inPlace.valid && own.valid;
  if (s.type !== undefined) valid &&= [s.type].flat().some((type) => kinds[type as string]!(value));
  if (s.enum !== undefined) valid &&= (s.enum as JsonValue[]).some((each) => isDeepStrictEqual(each, value));
  if (s.const !== undefined) valid &&= isDeepStrictEqual(s.const, value);
  if (typeof value === "number") valid &&= checkNumber(s, value);
  if (typeof value === "string") valid &&= checkString(s, value);
  if (Array.isArray(value)) valid &&= checkArray(root, s, value);
  if (isObject(value) && s.unevaluatedProperties !== undefined) {
    for (const key of Object.keys(value)) {
      if (evaluated.has(key)) continue;
      valid &&= accepts(root, s.unevaluatedProperties, value[key]!);
      evaluated.add(key);
    }
  }
  return { valid, evaluated };
};

/** Whether a schema accepts a value, by a plain reading of JSON Schema 2020-12: slow, without limits, and sharing no code with ours. */
export const accepts = (root: JsonValue, schema: JsonValue, value: JsonValue): boolean =>
  apply(root, schema, value).valid;
