/** What no rule of a schema says, and yet not every engine, JSON reader and language takes. */
import type { ReflectMessage } from "@bufbuild/protobuf/reflect";
import type { Duration, ListValue, Struct, Timestamp, Value } from "@bufbuild/protobuf/wkt";
import type { FieldViolation } from "../errors.ts";

/** The range of google.protobuf.Timestamp: the years 1 to 9999. */
const minTimestampSeconds = -62_135_596_800n;
const maxTimestampSeconds = 253_402_300_799n;
/** The range of google.protobuf.Duration: about 10,000 years. */
const maxDurationSeconds = 315_576_000_000n;
const nanosPerSecond = 1_000_000_000;

/**
 * The fields that are malformed: text with a NUL character, which not every engine stores; times that have no form in JSON; and free JSON
 * that JSON cannot say (NaN, infinities, a value that is none, half a surrogate pair). JSON itself may hold NUL characters: it is stored as bytes.
 */
export function malformedFields(message: ReflectMessage, prefix = ""): FieldViolation[] {
  const found: FieldViolation[] = [];
  const report = (field: string, fault: Wrong | undefined) => {
    if (fault) found.push({ field, ...fault });
  };
  for (const field of message.fields) {
    if (!message.isSet(field)) continue;
    const name = prefix + field.name;
    switch (field.fieldKind) {
      case "scalar":
        report(name, textFault(message.get(field)));
        break;
      case "message": {
        const fault = wellKnown[field.message.typeName];
        if (fault) report(name, fault(raw(message, field)));
        else found.push(...malformedFields(message.get(field), `${name}.`));
        break;
      }
      case "list":
        for (const [index, item] of [...message.get(field)].entries()) {
          if (field.listKind === "scalar") report(`${name}[${index}]`, textFault(item));
          else if (field.listKind === "message")
            found.push(...malformedFields(item as ReflectMessage, `${name}[${index}].`));
        }
        break;
      case "map":
        for (const [key, value] of message.get(field)) {
          report(name, textFault(key) ?? textFault(value));
          if (field.mapKind === "message") found.push(...malformedFields(value as ReflectMessage, `${name}.`));
        }
        break;
      default:
    }
  }
  return found;
}

type Wrong = Omit<FieldViolation, "field">;

const wellKnown: Readonly<Record<string, (value: never) => Wrong | undefined>> = {
  "google.protobuf.Timestamp": ({ seconds, nanos }: Timestamp) =>
    seconds < minTimestampSeconds || seconds > maxTimestampSeconds || nanos < 0 || nanos >= nanosPerSecond
      ? { description: "must be a time of the years 1 to 9999", reason: "timestamp.range" }
      : undefined,
  "google.protobuf.Duration": ({ seconds, nanos }: Duration) =>
    seconds < -maxDurationSeconds ||
    seconds > maxDurationSeconds ||
    Math.abs(nanos) >= nanosPerSecond ||
    (seconds > 0n && nanos < 0) ||
    (seconds < 0n && nanos > 0)
      ? { description: "must be a duration of at most 10,000 years", reason: "duration.range" }
      : undefined,
  "google.protobuf.Struct": (value: object) => jsonFault(value),
  "google.protobuf.Value": (value: Value) => (value.kind.case === undefined ? undefined : valueFault(value)),
  "google.protobuf.ListValue": (value: ListValue) => firstFault(value.values, valueFault),
};

/** The field's own value, as the generated code holds it: of a Struct a JSON object. */
function raw(message: ReflectMessage, field: ReflectMessage["fields"][number]): never {
  const held = message.message as unknown as Record<string, unknown>;
  const value = field.oneof ? (held[field.oneof.localName] as { value: unknown }).value : held[field.localName];
  return value as never;
}

const textFault = (value: unknown): Wrong | undefined =>
  typeof value === "string" && value.includes("\0")
    ? { description: "must not contain the NUL character", reason: "string.nul" }
    : undefined;

const numberFault = (value: number): Wrong | undefined =>
  Number.isFinite(value)
    ? undefined
    : { description: "must not contain NaN or an infinite number: JSON has none", reason: "json.number" };

const jsonTextFault = (value: string): Wrong | undefined =>
  value.isWellFormed()
    ? undefined
    : { description: "must not contain half a surrogate pair: it is no Unicode text", reason: "json.text" };

/** Of JSON as JavaScript holds it. */
function jsonFault(value: unknown): Wrong | undefined {
  if (typeof value === "number") return numberFault(value);
  if (typeof value === "string") return jsonTextFault(value);
  if (typeof value !== "object" || value === null) return undefined;
  if (Array.isArray(value)) return firstFault(value, jsonFault);
  return firstFault(Object.entries(value), ([key, inner]) => jsonTextFault(key) ?? jsonFault(inner));
}

/** Of JSON as messages hold it. */
function valueFault({ kind }: Value): Wrong | undefined {
  switch (kind.case) {
    case "numberValue":
      return numberFault(kind.value);
    case "stringValue":
      return jsonTextFault(kind.value);
    case "listValue":
      return firstFault(kind.value.values, valueFault);
    case "structValue":
      return structFault(kind.value);
    case undefined:
      return { description: "must not contain a google.protobuf.Value of no kind", reason: "json.value" };
    default:
      return undefined;
  }
}

const structFault = ({ fields }: Struct): Wrong | undefined =>
  firstFault(Object.entries(fields), ([key, inner]) => jsonTextFault(key) ?? valueFault(inner));

function firstFault<T>(values: readonly T[], faultOf: (value: T) => Wrong | undefined): Wrong | undefined {
  for (const value of values) {
    const fault = faultOf(value);
    if (fault) return fault;
  }
  return undefined;
}
