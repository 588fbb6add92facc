/** Limits of the protos (protovalidate) as keywords of JSON Schema. */
import { create, type DescField, type DescMessage, getOption, hasOption } from "@bufbuild/protobuf";
import { durationMs } from "@bufbuild/protobuf/wkt";
import { createValidator } from "@bufbuild/protovalidate";
import {
  type FieldRules,
  field as fieldRules,
  Ignore,
  message as messageRules,
  oneof as oneofRules,
} from "@bufbuild/protovalidate/gen/buf/validate/validate_pb.js";

export type Schema = { readonly [keyword: string]: unknown };

const validator = createValidator();

/** The rules of a field; undefined: it has none. */
export const rulesOf = (field: DescField): FieldRules | undefined =>
  hasOption(field, fieldRules) ? getOption(field, fieldRules) : undefined;

/** Whether one field of the oneof must be set. */
export const oneofRequired = (oneof: DescMessage["oneofs"][number]): boolean =>
  hasOption(oneof, oneofRules) && getOption(oneof, oneofRules).required === true;

/** What the message's own rules say, in words. */
export const messageLimits = (message: DescMessage): readonly string[] =>
  hasOption(message, messageRules) ? getOption(message, messageRules).cel.map((rule) => rule.message) : [];

/** The names in JSON of the fields without which an otherwise empty message breaks a limit: asked of the validator itself. */
export function requiredFields(message: DescMessage): readonly string[] {
  const result = validator.validate(message, create(message));
  if (result.kind === "error") throw result.error;
  const names = (result.violations ?? []).flatMap(({ field: [part] }) =>
    part?.kind === "field" ? [part.jsonName] : [],
  );
  return [...new Set(names)];
}

/** The keywords for one value under these rules: the field itself, or an item of a list, or a key or value of a map. */
export function limitsOf(rules: FieldRules | undefined): Schema {
  if (!rules) return {};
  const { type } = rules;
  const keywords = keywordsOf(type);
  // What is empty counts as not set, and then the other rules do not hold.
  return rules.ignore === Ignore.IF_ZERO_VALUE && type.case === "string" && Object.keys(keywords).length > 0
    ? { anyOf: [{ const: "" }, keywords] }
    : keywords;
}

function keywordsOf(type: FieldRules["type"]): Schema {
  switch (type.case) {
    case "string": {
      const { minLen, maxLen, maxBytes, len, pattern, wellKnown } = type.value;
      const given = (name: "minLen" | "maxLen" | "maxBytes" | "len" | "pattern") => Object.hasOwn(type.value, name);
      return {
        ...(given("minLen") && { minLength: Number(minLen) }),
        ...(given("maxLen") && { maxLength: Number(maxLen) }),
        ...(given("maxBytes") && { maxLength: Number(maxBytes), description: `At most ${maxBytes} bytes in UTF-8.` }),
        ...(given("len") && { minLength: Number(len), maxLength: Number(len) }),
        ...(given("pattern") && { pattern }),
        ...(wellKnown.case === "email" && { format: "email" }),
      };
    }
    case "bytes": {
      const { len, maxLen } = type.value;
      const exactly = Object.hasOwn(type.value, "len");
      if (!exactly && !Object.hasOwn(type.value, "maxLen")) return {};
      const most = exactly ? len : maxLen;
      const words = `${exactly ? "Exactly" : "At most"} ${most} bytes before base64.`;
      return { maxLength: Math.ceil(Number(most) / 3) * 4, description: words };
    }
    case "int32":
    case "int64":
    case "uint32":
    case "uint64":
    case "float":
    case "double": {
      const { greaterThan, lessThan } = type.value;
      return {
        ...(greaterThan.case && {
          [greaterThan.case === "gte" ? "minimum" : "exclusiveMinimum"]: Number(greaterThan.value),
        }),
        ...(lessThan.case && { [lessThan.case === "lte" ? "maximum" : "exclusiveMaximum"]: Number(lessThan.value) }),
      };
    }
    case "bool":
      return Object.hasOwn(type.value, "const") ? { const: type.value.const } : {};
    case "duration": {
      const { greaterThan, lessThan } = type.value;
      const words = [
        greaterThan.value &&
          `${greaterThan.case === "gte" ? "at least" : "more than"} ${seconds(durationMs(greaterThan.value))}`,
        lessThan.value && `${lessThan.case === "lte" ? "at most" : "less than"} ${seconds(durationMs(lessThan.value))}`,
      ].filter(Boolean);
      return words.length > 0 ? { description: `${capital(words.join(", "))}.` } : {};
    }
    case "repeated": {
      const { minItems, maxItems, unique } = type.value;
      return {
        ...(minItems > 0n && { minItems: Number(minItems) }),
        ...(Object.hasOwn(type.value, "maxItems") && { maxItems: Number(maxItems) }),
        ...(unique && { uniqueItems: true }),
      };
    }
    case "map": {
      const { minPairs, maxPairs } = type.value;
      return {
        ...(minPairs > 0n && { minProperties: Number(minPairs) }),
        ...(Object.hasOwn(type.value, "maxPairs") && { maxProperties: Number(maxPairs) }),
      };
    }
    default:
      return {};
  }
}

/** The numbers that an enum may not be here. */
export const notIn = (rules: FieldRules | undefined): readonly number[] =>
  rules?.type.case === "enum" ? rules.type.value.notIn : [];

const seconds = (ms: number): string => `${ms / 1_000}s`;
const capital = (text: string): string => text.charAt(0).toUpperCase() + text.slice(1);
