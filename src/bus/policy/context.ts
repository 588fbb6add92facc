/** The circumstances of a question: as the bus has them, as Cedar takes them, and as they are recorded and asked over the wire. */
import type { JsonObject, JsonValue } from "@bufbuild/protobuf";
import { badField } from "../../errors.ts";
import type { CedarValueJson } from "./cedar.ts";
import type { ActionShape, ContextField } from "./vocabulary.ts";

/** A moment in milliseconds since 1970; apart from a number, which policies compare with numbers. */
export type Moment = { readonly ms: number };
export type ContextValue = string | number | boolean | Moment;
export type ContextValues = Readonly<Record<string, ContextValue>>;

const maxBytes = 16_384;
/** RFC 3339, up to milliseconds. */
const rfc3339 = /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?(Z|[+-]\d\d:\d\d)$/;

export const toCedarContext = (context: ContextValues): Record<string, CedarValueJson> =>
  Object.fromEntries(Object.entries(context).map(([name, value]) => [name, toCedarValue(value)]));

const toCedarValue = (value: ContextValue): CedarValueJson =>
  typeof value === "object" ? { __extn: { fn: "datetime", arg: new Date(value.ms).toISOString() } } : value;

/** As it is recorded: moments as RFC 3339. */
export const toJsonContext = (context: ContextValues): JsonObject =>
  Object.fromEntries(
    Object.entries(context).map(([name, value]) => [
      name,
      typeof value === "object" ? new Date(value.ms).toISOString() : value,
    ]),
  );

/**
 * The circumstances that a caller gives for an action, with what it leaves out: no tokens, no reward, now, and the bus. INVALID_REQUEST for what the action does not have,
 * for another type, and for more than 16 KiB.
 */
export function readContext(
  given: JsonObject,
  action: string,
  shape: ActionShape,
  now: number,
  field: string,
): ContextValues {
  if (Buffer.byteLength(JSON.stringify(given)) > maxBytes) throw badField(field, `at most ${maxBytes} bytes as JSON`);
  const bare = { tokens: 0, origin: "bus", time: { ms: now } };
  const defaults: Record<string, ContextValue> = { ...bare, own_request: false, reward_micros: 0 };
  const read: Record<string, ContextValue> = {};
  for (const [name, value] of Object.entries(given)) {
    const type = Object.hasOwn(shape.context, name) ? shape.context[name] : undefined;
    if (!type) {
      const known = Object.keys(shape.context).join(", ");
      throw badField(`${field}.${name.slice(0, 64)}`, `${action} is not decided by this; there are: ${known}`);
    }
    read[name] = readValue(value, type, `${field}.${name}`);
  }
  for (const [name, { required }] of Object.entries(shape.context)) {
    if (name in read || !required) continue;
    if (!Object.hasOwn(defaults, name)) throw badField(`${field}.${name}`, `${action} is decided by this: give it`);
    read[name] = defaults[name]!;
  }
  return read;
}

function readValue(value: JsonValue, { type }: ContextField, field: string): ContextValue {
  switch (type) {
    case "Long":
      if (Number.isSafeInteger(value)) return value as number;
      throw badField(field, "a whole number up to 9007199254740991");
    case "String":
      if (typeof value === "string") return value;
      throw badField(field, "a string");
    case "Bool":
      if (typeof value === "boolean") return value;
      throw badField(field, "true or false");
    case "datetime": {
      const ms = typeof value === "string" && rfc3339.test(value) ? Date.parse(value) : Number.NaN;
      if (!Number.isNaN(ms)) return { ms };
      throw badField(field, "a time as RFC 3339, such as 2026-01-01T00:00:00Z");
    }
  }
}
