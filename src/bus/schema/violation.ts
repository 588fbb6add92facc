import type { JsonValue } from "@bufbuild/protobuf";
import type { ErrorObject } from "ajv/dist/2020.js";
import { unlimited } from "./compile.ts";
import { maxViolations } from "./limits.ts";

/** One way in which a value breaks its schema: the field (`query`, `items[3].name`; empty = the whole value), the keyword, and what is wrong. */
export type Violation = { readonly path: string; readonly keyword: string; readonly message: string };

const maxPathLength = 256;
const maxListedLength = 200;

const cut = (text: string, max: number): string => (text.length <= max ? text : `${text.slice(0, max - 1)}…`);

const listed = (values: readonly unknown[]): string => {
  // Enough to fill the message: an enum can have thousands.
  const some = values
    .slice(0, 20)
    .map((value) => JSON.stringify(value))
    .join(", ");
  return cut(values.length > 20 ? `${some}, …` : some, maxListedLength);
};

const step = (path: string, key: string, inArray: boolean): string => {
  if (inArray) return `${path}[${key}]`;
  if (!/^[A-Za-z_$][\w$-]*$/.test(key)) return `${path}[${JSON.stringify(cut(key, 64))}]`;
  return path === "" ? key : `${path}.${key}`;
};

/** Writes ajv's JSON Pointer as a field; the value tells indexes from keys that are digits. */
const fieldOf = (value: JsonValue, pointer: string, last: string | undefined): string => {
  let path = "";
  let at: JsonValue | undefined = value;
  for (const part of pointer.split("/").slice(1)) {
    const key = part.replaceAll("~1", "/").replaceAll("~0", "~");
    path = step(path, key, Array.isArray(at));
    at = typeof at === "object" && at !== null ? (at as Record<string, JsonValue>)[key] : undefined;
  }
  return cut(last === undefined ? path : step(path, last, false), maxPathLength);
};

type Wording = { readonly key?: string; readonly message: string };

/** In our own words where ajv's name the parent, or leave out what is allowed. Never the value: it can be secret. */
const wordingOf = ({ keyword, params, message }: ErrorObject): Wording => {
  switch (keyword) {
    case "required":
      return { key: params.missingProperty, message: "is required" };
    case "dependentRequired":
      return { key: params.missingProperty, message: `is required when \`${cut(params.property, 64)}\` is there` };
    case "additionalProperties":
      return { key: params.additionalProperty, message: "is not allowed here" };
    case "propertyNames":
      return { key: params.propertyName, message: "is not an allowed name" };
    case "type":
      return { message: `must be ${[params.type].flat().join(" or ")}` };
    case "enum":
      return { message: `must be one of ${listed(params.allowedValues)}` };
    case "const":
      return { message: `must be ${listed([params.allowedValue])}` };
    case "uniqueItems":
      return { message: "must not have the same item twice" };
    case "contains": {
      const most = params.maxContains === unlimited ? "" : ` and at most ${params.maxContains}`;
      return { message: `must have at least ${params.minContains}${most} items that match the schema in contains` };
    }
    case "anyOf":
      return { message: "must match at least one of the schemas in anyOf" };
    case "oneOf":
      return {
        message: params.passingSchemas
          ? "must match only one of the schemas in oneOf"
          : "must match one of the schemas in oneOf",
      };
    case "not":
      return { message: "must not match the schema in not" };
    case "false schema":
      return { message: "is not allowed here" };
    default:
      return { message: cut(message ?? `breaks ${keyword}`, 2 * maxListedLength) };
  }
};

/** Turns ajv's errors into violations: the first 20, without those that only say that another one happened. */
export const violationsOf = (value: JsonValue, errors: readonly ErrorObject[]): Violation[] => {
  const telling = errors.filter(({ keyword }) => keyword !== "if");
  const seen = new Set<string>();
  const violations: Violation[] = [];
  for (const error of telling) {
    if (violations.length === maxViolations) break;
    const { key, message } = wordingOf(error);
    const keyword = error.keyword === "false schema" ? "false" : error.keyword;
    const violation = { path: fieldOf(value, error.instancePath, key), keyword, message };
    const identity = JSON.stringify(violation);
    if (!seen.has(identity)) violations.push(violation);
    seen.add(identity);
  }
  return violations;
};
