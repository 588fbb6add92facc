import type { JsonValue } from "@bufbuild/protobuf";
import { pointerTo, SchemaError } from "./error.ts";
import type { Shape } from "./keywords.ts";
import * as limits from "./limits.ts";

/** Refuses a schema for its depth, names, numbers or size as mere JSON, before anything recurses into it. */
export const checkJson = (schema: JsonValue): void => {
  const open: { value: JsonValue; pointer: string; depth: number }[] = [{ value: schema, pointer: "", depth: 0 }];
  for (let next = open.pop(); next; next = open.pop()) {
    const { value, pointer, depth } = next;
    if (typeof value === "number" && !Number.isFinite(value)) throw new SchemaError(pointer, "must be a finite number");
    if (typeof value !== "object" || value === null) continue;
    if (depth === limits.maxSchemaDepth)
      throw new SchemaError(pointer, `is nested deeper than ${limits.maxSchemaDepth}`);
    for (const [key, inner] of Object.entries(value)) {
      if (key === "__proto__") throw new SchemaError(pointer, "must not have a key `__proto__`");
      open.push({ value: inner, pointer: pointerTo(pointer, key), depth: depth + 1 });
    }
  }
  const bytes = Buffer.byteLength(JSON.stringify(schema));
  if (bytes > limits.maxSchemaBytes)
    throw new SchemaError("", `has ${bytes} bytes; the limit is ${limits.maxSchemaBytes}`);
};

const typeNames = new Set(["null", "boolean", "object", "array", "number", "string", "integer"]);

/** Refuses what is not an array of different strings. */
export const checkStrings = (value: JsonValue, pointer: string): void => {
  const strings = Array.isArray(value) && value.every((each) => typeof each === "string");
  if (!strings) throw new SchemaError(pointer, "must be an array of strings");
  if (new Set(value).size < value.length) throw new SchemaError(pointer, "must not name the same twice");
  if (value.includes("__proto__")) throw new SchemaError(pointer, "must not name `__proto__`");
};

/** Refuses what is no type, nor an array of different types. */
export const checkTypes = (value: JsonValue, pointer: string): void => {
  const names = Array.isArray(value) ? value : [value];
  if (
    names.length === 0 ||
    new Set(names).size < names.length ||
    !names.every((name) => typeNames.has(name as string))
  ) {
    throw new SchemaError(pointer, `must be one or several of ${[...typeNames].join(", ")}`);
  }
};

/** What a value of a shape must be, where one look tells. */
export const plainChecks: Partial<Record<Shape, readonly [test: (value: JsonValue) => boolean, message: string]>> = {
  string: [(value) => typeof value === "string", "must be a string"],
  number: [(value) => typeof value === "number", "must be a number"],
  positive: [(value) => typeof value === "number" && value > 0, "must be a number above 0"],
  count: [(value) => Number.isSafeInteger(value) && (value as number) >= 0, "must be a whole number of 0 or more"],
  boolean: [(value) => typeof value === "boolean", "must be true or false"],
  enum: [(value) => Array.isArray(value) && value.length > 0, "must be an array of at least one value"],
  pattern: [(value) => typeof value === "string", "must be a string"],
  ref: [
    (value) => typeof value === "string" && /^#(?:\/|$)/.test(value),
    "must be `#` or begin with `#/`: only references inside of the same schema are followed",
  ],
};
