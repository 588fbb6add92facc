/** Messages and enums as JSON Schemas of their ProtoJSON, which is what the Connect protocol speaks. */
import { type DescEnum, type DescField, type DescMessage, ScalarType } from "@bufbuild/protobuf";
import { FeatureSet_FieldPresence as Presence } from "@bufbuild/protobuf/wkt";
import type { FieldRules } from "@bufbuild/protovalidate/gen/buf/validate/validate_pb.js";
import { commentOf } from "./image.ts";
import { limitsOf, messageLimits, notIn, oneofRequired, requiredFields, rulesOf, type Schema } from "./limits.ts";

/** The forms in JSON of the types that protobuf itself brings. */
const wellKnown: Readonly<Record<string, Schema>> = {
  "google.protobuf.Timestamp": { type: "string", format: "date-time" },
  "google.protobuf.Duration": {
    type: "string",
    pattern: "^-?[0-9]+(\\.[0-9]{1,9})?s$",
  },
  "google.protobuf.Struct": { type: "object", additionalProperties: true },
  "google.protobuf.Value": {},
  "google.protobuf.ListValue": { type: "array", items: {} },
  "google.protobuf.FieldMask": {
    type: "string",
    description: "Names of fields with commas between, in camelCase.",
  },
  "google.protobuf.Empty": { type: "object" },
  "google.protobuf.Any": { type: "object", properties: { "@type": { type: "string" } }, additionalProperties: true },
};

/** Schemas by the name of their type, of all that was referred to. */
export type Schemas = {
  /** A reference to the schema of the type; the schema itself where protobuf brings the type. */
  readonly ref: (desc: DescMessage | DescEnum) => Schema;
  /** All that were referred to, in the order of their names. */
  readonly all: () => Readonly<Record<string, Schema>>;
};

export function createSchemas(): Schemas {
  const found = new Map<string, Schema>();
  const ref: Schemas["ref"] = (desc) => {
    const known = wellKnown[desc.typeName];
    if (known) return known;
    if (!found.has(desc.typeName)) {
      // First the place, since messages hold messages of their own type.
      found.set(desc.typeName, {});
      found.set(desc.typeName, desc.kind === "enum" ? enumSchema(desc) : messageSchema(desc, ref));
    }
    return { $ref: `#/components/schemas/${desc.typeName}` };
  };
  const all = () => Object.fromEntries([...found].toSorted(([a], [b]) => (a < b ? -1 : 1)));
  return { ref, all };
}

function enumSchema(desc: DescEnum): Schema {
  const values = desc.values.map((value) => `- \`${value.name}\`: ${commentOf(value).replaceAll("\n", " ")}`);
  return {
    type: "string",
    enum: desc.values.map(({ name }) => name),
    description: [commentOf(desc), values.join("\n")].filter(Boolean).join("\n\n"),
  };
}

function messageSchema(desc: DescMessage, ref: Schemas["ref"]): Schema {
  const required = requiredFields(desc);
  const oneofs = desc.oneofs.map((oneof) => {
    const one = oneof.fields.map(({ jsonName }) => ({ required: [jsonName] }));
    return { oneOf: oneofRequired(oneof) ? one : [...one, { not: { anyOf: one } }] };
  });
  const about = [commentOf(desc), ...messageLimits(desc)].filter(Boolean).join("\n\n");
  return {
    type: "object",
    ...(about && { description: about }),
    properties: Object.fromEntries(desc.fields.map((field) => [field.jsonName, fieldSchema(field, ref)])),
    ...(required.length > 0 && { required }),
    ...(oneofs.length > 0 && { allOf: oneofs }),
  };
}

function fieldSchema(field: DescField, ref: Schemas["ref"]): Schema {
  const schema = valueSchema(field, ref);
  const choice = field.oneof
    ? `${oneofRequired(field.oneof) ? "Exactly" : "At most"} one of ${field.oneof.fields.map(({ jsonName }) => `\`${jsonName}\``).join(", ")}.`
    : "";
  const description = [commentOf(field), schema.description, choice].filter(Boolean).join("\n\n");
  return {
    ...schema,
    ...(description && { description }),
    ...(field.proto.options?.deprecated && { deprecated: true }),
  };
}

function valueSchema(field: DescField, ref: Schemas["ref"]): Schema {
  const rules = rulesOf(field);
  switch (field.fieldKind) {
    case "scalar":
      return { ...scalarSchema(field.scalar), ...filled(field, rules), ...limitsOf(rules) };
    case "enum":
      return enumRef(field.enum, ref, notIn(rules));
    case "message":
      return { ...ref(field.message), ...limitsOf(rules) };
    case "list": {
      const items = rules?.type.case === "repeated" ? rules.type.value.items : undefined;
      const item =
        field.listKind === "scalar"
          ? { ...scalarSchema(field.scalar), ...limitsOf(items) }
          : field.listKind === "enum"
            ? enumRef(field.enum, ref, notIn(items))
            : ref(field.message);
      return { type: "array", items: item, ...limitsOf(rules) };
    }
    case "map": {
      const { keys, values } = rules?.type.case === "map" ? rules.type.value : {};
      const value =
        field.mapKind === "scalar"
          ? { ...scalarSchema(field.scalar), ...limitsOf(values) }
          : ref(field.mapKind === "enum" ? field.enum : field.message);
      const names = limitsOf(keys);
      return {
        type: "object",
        additionalProperties: value,
        ...(Object.keys(names).length > 0 && { propertyNames: names }),
        ...limitsOf(rules),
      };
    }
  }
}

/** A field without presence that is required must not be empty. */
const filled = (field: DescField & { fieldKind: "scalar" }, rules: FieldRules | undefined): Schema =>
  rules?.required && field.presence === Presence.IMPLICIT && field.scalar === ScalarType.STRING ? { minLength: 1 } : {};

const enumRef = (desc: DescEnum, ref: Schemas["ref"], not: readonly number[]): Schema => {
  const names = desc.values.filter(({ number }) => not.includes(number)).map(({ name }) => name);
  return names.length > 0 ? { ...ref(desc), not: { enum: names } } : ref(desc);
};

function scalarSchema(type: ScalarType): Schema {
  switch (type) {
    case ScalarType.STRING:
      return { type: "string" };
    case ScalarType.BYTES:
      return { type: "string", contentEncoding: "base64" };
    case ScalarType.BOOL:
      return { type: "boolean" };
    case ScalarType.DOUBLE:
    case ScalarType.FLOAT:
      return { type: "number", format: type === ScalarType.DOUBLE ? "double" : "float" };
    case ScalarType.INT32:
    case ScalarType.SINT32:
    case ScalarType.SFIXED32:
    case ScalarType.UINT32:
    case ScalarType.FIXED32:
      return { type: "integer", format: "int32" };
    default:
      // Answered as a string, since numbers of JSON do not hold 64 bits everywhere; both are taken.
      return { type: ["string", "integer"], format: "int64", pattern: "^-?[0-9]+$" };
  }
}
