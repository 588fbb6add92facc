/** Fields of a request, as arguments and options of a command. */
import type { DescEnum, JsonObject, JsonValue } from "@bufbuild/protobuf";
import { type Command, Option } from "commander";
import { collect } from "./command.ts";
import { tellLater } from "./comments.ts";
import type { Clients } from "./connect.ts";
import { readJson } from "./input.ts";
import { UsageError } from "./settings.ts";

/** One field of a request: what fills it, and how. */
export type Field = {
  /** Its name in the request's JSON; with dots for fields of fields: "retryPolicy.maxRetries". */
  readonly name: string;
  /** "<contract>" or "[contract]" for an argument, "--tool <name>" for an option with a value, "--repeatable" for one without. */
  readonly as: string;
  /** As text, or told when somebody asks for help. */
  readonly help: string | (() => string);
  /** For a list: the option may be repeated. */
  readonly many?: boolean;
  /** For an argument that may stand in a whole request instead: it must be given one way or the other. */
  readonly required?: boolean;
  /** The field's JSON, from the text on the command line. Default: the text itself. */
  readonly read?: Reader;
  /** For a list: its JSON, from that of the values. Default: an array of them. */
  readonly join?: (values: JsonValue[]) => JsonValue;
  /** The field's JSON, for an option without a value. Default: true. */
  readonly value?: JsonValue;
};

/** Reads a field's JSON from the text on the command line; what it takes, if that is a few words. */
export type Reader = ((text: string, from: Reading) => JsonValue | Promise<JsonValue>) & {
  readonly among?: readonly string[];
};

/** What reading a field may need. */
export type Reading = {
  /** What the text was given by, for people: "--timeout". */
  readonly label: string;
  readonly clients: Clients;
  readonly orgId: string;
};

const isArgument = ({ as }: Field): boolean => !as.startsWith("-");

/** How people know the field: "--tool", or "contract" for an argument. */
export const labelOf = (field: Field): string =>
  isArgument(field) ? field.as.replace(/[<>[\]]/g, "") : (new Option(field.as).long ?? field.as);

/** Adds the fields to a command. */
export function declare(command: Command, fields: readonly Field[]): void {
  for (const field of fields) {
    if (isArgument(field)) command.argument(field.as, typeof field.help === "string" ? field.help : field.help());
    else command.addOption(optionOf(field));
  }
}

function optionOf({ as, help, many, read }: Field): Option {
  const option = tellLater(new Option(as), help);
  if (read?.among) among.set(option, read.among);
  return many ? option.argParser(collect) : option;
}

const among = new WeakMap<Option, readonly string[]>();

/** The words that an option takes, if they are few. */
export const wordsOf = (option: Option): readonly string[] => among.get(option) ?? [];

/** Puts what was given on the command line into a request. Answers the fields that were given. */
export async function fill(
  request: JsonObject,
  fields: readonly Field[],
  command: Command,
  reading: Omit<Reading, "label">,
): Promise<Field[]> {
  const values = [...command.processedArgs];
  const given: Field[] = [];
  for (const field of fields) {
    const value = isArgument(field) ? values.shift() : command.opts()[new Option(field.as).attributeName()];
    if (value === undefined) continue;
    given.push(field);
    const read = (text: string) => field.read?.(text, { ...reading, label: labelOf(field) }) ?? text;
    if (value === true) put(request, field.name, field.value ?? true);
    else if (!Array.isArray(value)) put(request, field.name, await read(value));
    else {
      const values = await Promise.all(value.map(read));
      put(request, field.name, field.join?.(values) ?? values);
    }
  }
  return given;
}

function put(target: JsonObject, path: string, value: JsonValue): void {
  const [first, ...rest] = path.split(".") as [string, ...string[]];
  if (rest.length === 0) {
    target[first] = value;
    return;
  }
  const inner = target[first];
  const object = typeof inner === "object" && inner !== null && !Array.isArray(inner) ? inner : (target[first] = {});
  put(object, rest.join("."), value);
}

/** Reads JSON: itself, @file, or - for standard input. */
export const json = (text: string, { label }: Reading): Promise<JsonValue> => readJson(text, label, process.stdin);

/** Reads a value of an enum by its last words: "internal-trusted" for TRUST_TIER_INTERNAL_TRUSTED. */
export function oneOf(schema: DescEnum): Reader {
  const read = (text: string, { label }: Reading): JsonValue => {
    const known = schema.values.filter(({ number }) => number !== 0);
    const found = known.find(({ localName }) => localName === text.toUpperCase().replaceAll("-", "_"));
    if (found) return found.name;
    throw new UsageError(`${label} ${text}: there is no such value`, `one of: ${choices(schema)}`);
  };
  return Object.assign(read, { among: words(schema) });
}

/** The values of an enum as `oneOf` takes them. */
export const choices = (schema: DescEnum): string => words(schema).join(", ");

const words = (schema: DescEnum): string[] =>
  schema.values
    .filter(({ number }) => number !== 0)
    .map(({ localName }) => localName.toLowerCase().replaceAll("_", "-"));

const unitSeconds: Readonly<Record<string, number>> = { ms: 0.001, s: 1, m: 60, min: 60, h: 3_600, d: 86_400 };

/** Reads a span of time such as 500ms, 30s, 5m, 2h, 30d. */
export const duration = (text: string, { label }: Reading): JsonValue => `${spanSeconds(text, label)}s`;

function spanSeconds(text: string, label: string): number {
  const [, count, unit] = /^(\d+(?:\.\d+)?)(ms|s|m|min|h|d)$/.exec(text) ?? [];
  if (count !== undefined) return Number((Number(count) * unitSeconds[unit!]!).toFixed(9));
  throw new UsageError(`${label} ${text} is no span of time`, "write it like 500ms, 30s, 5m, 2h or 30d");
}

/** Reads a time to come: a span from now such as 30d, or a date and time such as 2030-01-31T12:00:00Z. */
export function timeToCome(text: string, { label }: Reading): JsonValue {
  if (/^\d{4}-/.test(text)) {
    const time = new Date(text);
    if (!Number.isNaN(time.getTime())) return time.toISOString();
    throw new UsageError(`${label} ${text} is no time`, "write it like 2030-01-31T12:00:00Z");
  }
  return new Date(Date.now() + spanSeconds(text, label) * 1_000).toISOString();
}

/** Reads a time: as one to come, or with a minus as a span ago: -2h. */
export function time(text: string, reading: Reading): JsonValue {
  if (!text.startsWith("-")) return timeToCome(text, reading);
  return new Date(Date.now() - spanSeconds(text.slice(1), reading.label) * 1_000).toISOString();
}

/** Reads a whole number; the request's own limits are the server's to check. */
export function number(text: string, { label }: Reading): JsonValue {
  if (/^\d{1,15}$/.test(text)) return Number(text);
  throw new UsageError(`${label} ${text} is no whole number`, "write digits only");
}
