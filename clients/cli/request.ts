/** The request of a method, from a file and from the command line. */
import { type DescMessage, fromJson, type JsonObject, type MessageShape } from "@bufbuild/protobuf";
import type { Command } from "commander";
import { collect } from "./command.ts";
import { declare, type Field, fill, labelOf, type Reading } from "./field.ts";
import { readJsonFile } from "./input.ts";
import { UsageError } from "./settings.ts";

/** What fills a request. */
export type RequestFields = {
  /** Arguments, in their order, and options. */
  readonly fields?: readonly Field[];
  /** For an update: options for the fields of its `change`. The mask names those that were given, and those of --clear. */
  readonly change?: readonly Field[];
  /** Whether --from may give the whole request; options then change what it says. */
  readonly from?: boolean;
};

/** Adds to a command what fills a request of this type. */
export function declareRequest(
  command: Command,
  schema: DescMessage,
  { fields = [], change, from }: RequestFields,
): void {
  declare(command, fields);
  if (change) {
    declare(command, change);
    const names = topNames(change).join(", ");
    command.option("--clear <field>", `empty this field: ${names}; may be repeated`, collect);
  }
  if (from) command.option("--from <file>", `the whole request as JSON, a ${schema.name}; - for standard input`);
}

/**
 * Reads the request of a command that was declared with the same fields.
 *
 * @throws UsageError naming the option or the field that is wrong.
 */
export async function readRequest<I extends DescMessage>(
  schema: I,
  { fields = [], change }: RequestFields,
  command: Command,
  reading: Omit<Reading, "label">,
): Promise<MessageShape<I>> {
  const { from, clear = [] } = command.opts<{ from?: string; clear?: string[] }>();
  const request = from === undefined ? {} : await readObject(from);
  if (schema.field.orgId && reading.orgId !== "") request.orgId = reading.orgId;
  await fill(request, fields, command, reading);
  for (const field of fields) {
    if (!field.required || request[field.name] !== undefined) continue;
    throw new UsageError(`${labelOf(field)} is missing`, "give it after the command, or in the request of --from");
  }
  if (change) await fillChange(request, change, clear, command, reading);
  return parseRequest(schema, request, from);
}

async function readObject(path: string): Promise<JsonObject> {
  const json = await readJsonFile(path, process.stdin);
  if (isObject(json)) return { ...json };
  throw new UsageError("--from holds no JSON object", 'write the request like {"name": "…"}');
}

const isObject = (json: unknown): json is JsonObject =>
  typeof json === "object" && json !== null && !Array.isArray(json);

const topNames = (fields: readonly Field[]): string[] => [...new Set(fields.map(({ name }) => name.split(".")[0]!))];

async function fillChange(
  request: JsonObject,
  fields: readonly Field[],
  clear: readonly string[],
  command: Command,
  reading: Omit<Reading, "label">,
): Promise<void> {
  const change = isObject(request.change) ? request.change : {};
  const masked = typeof request.updateMask === "string" ? request.updateMask.split(",") : Object.keys(change);
  const given = await fill(change, fields, command, reading);
  for (const name of clear) {
    const names = topNames(fields);
    if (!names.includes(name))
      throw new UsageError(`--clear ${name}: there is no such field`, `one of: ${names.join(", ")}`);
    delete change[name];
  }
  // A field of a field is changed by replacing the whole.
  const mask = new Set(
    [...masked, ...given.map(({ name }) => name.split(".")[0]!), ...clear].filter((name) => name !== ""),
  );
  if (mask.size === 0) throw new UsageError("there is nothing to change", `give ${fields.map(labelOf).join(", ")}`);
  request.change = change;
  request.updateMask = [...mask].join(",");
}

function parseRequest<I extends DescMessage>(
  schema: I,
  request: JsonObject,
  from: string | undefined,
): MessageShape<I> {
  try {
    return fromJson(schema, request);
  } catch (error) {
    // "cannot decode field moltwire.bus.v1.HttpEndpoint.url from JSON: expected string, got 5"
    const [, place, what] =
      /^cannot decode \w+ moltwire\.\w+\.v1\.(\S+) from JSON: (.*)$/s.exec((error as Error).message) ?? [];
    const path = place?.replace(new RegExp(`^${schema.name}\\.?`), "");
    const message = what === undefined ? (error as Error).message : `${path ? `${path}: ` : ""}${what}`;
    const where = from === undefined ? "the request" : from === "-" ? "standard input" : from;
    throw new UsageError(
      `${where}: ${message}`,
      `a ${schema.name} has: ${schema.fields.map(({ jsonName }) => jsonName).join(", ")}`,
    );
  }
}
