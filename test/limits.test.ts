import { type DescField, type DescMessage, getOption, hasOption } from "@bufbuild/protobuf";
import { type FieldRules, field as fieldRules } from "@bufbuild/protovalidate/gen/buf/validate/validate_pb.js";
import { expect, test } from "vitest";
import { services } from "../src/services.ts";

/** Limited by what handlers check, in bytes and levels of JSON, or by their own nature. */
const limitedOtherwise: ReadonlySet<string> = new Set([
  "google.protobuf.Struct",
  "google.protobuf.Value",
  "google.protobuf.FieldMask",
  "google.protobuf.Timestamp",
]);

test("every string, list, map and number that a request can hold has a limit in its proto", () => {
  const unlimited = new Set<string>();
  const seen = new Set<DescMessage>();
  const visit = (message: DescMessage): void => {
    if (seen.has(message) || limitedOtherwise.has(message.typeName)) return;
    seen.add(message);
    for (const field of message.fields) {
      if (!isLimited(field)) unlimited.add(`${message.typeName}.${field.name}`);
      if (field.message && field.message.typeName !== "google.protobuf.Duration") visit(field.message);
    }
  };
  for (const service of services) for (const method of service.methods) visit(method.input);
  expect([...unlimited]).toEqual([]);
  expect(seen.size).toBeGreaterThan(50);
});

/** Whether the field's rules bound what it holds. */
function isLimited(field: DescField): boolean {
  const rules = hasOption(field, fieldRules) ? getOption(field, fieldRules) : undefined;
  if (field.fieldKind === "list") return bounded(rules, "repeated", ["maxItems"]);
  if (field.fieldKind === "map") return bounded(rules, "map", ["maxPairs"]);
  if (field.fieldKind === "enum") return bounded(rules, "enum", ["definedOnly", "in"]);
  if (field.fieldKind === "message") {
    return field.message.typeName !== "google.protobuf.Duration" || bounded(rules, "duration", ["lessThan"]);
  }
  if (rules?.type.case === "bool" || field.scalar === 8) return true;
  const { case: kind } = rules?.type ?? {};
  if (kind === "string") return bounded(rules, "string", ["maxLen", "maxBytes", "len", "pattern"]);
  if (kind === "bytes") return bounded(rules, "bytes", ["maxLen", "len"]);
  return kind !== undefined && bounded(rules, kind, ["lessThan", "in", "greaterThan"]);
}

function bounded(rules: FieldRules | undefined, kind: string, names: readonly string[]): boolean {
  if (rules?.type.case !== kind) return false;
  const held = rules.type.value as unknown as Record<string, unknown>;
  return names.some((name) => {
    const value = held[name];
    if (typeof value === "object" && value !== null && "case" in value) return value.case !== undefined;
    if (Array.isArray(value)) return value.length > 0;
    return Object.hasOwn(held, name) && value !== undefined;
  });
}
