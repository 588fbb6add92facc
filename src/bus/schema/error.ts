import type { JsonObject, JsonValue } from "@bufbuild/protobuf";

/** A schema that cannot be used. `path` is a JSON Pointer (RFC 6901). */
export class SchemaError extends Error {
  readonly path: string;
  constructor(path: string, message: string) {
    super(message);
    this.path = path;
  }
}

/** Adds a key to a JSON Pointer. */
export const pointerTo = (pointer: string, key: string | number): string =>
  `${pointer}/${String(key).replaceAll("~", "~0").replaceAll("/", "~1")}`;

/** Whether a JSON value is an object. */
export const isObject = (value: JsonValue | undefined): value is JsonObject =>
  typeof value === "object" && value !== null && !Array.isArray(value);
