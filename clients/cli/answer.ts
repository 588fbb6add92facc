/** Answers for people whose commands were made from descriptors: as facts, tables and lines. */
import {
  type DescField,
  type DescMessage,
  type JsonObject,
  type JsonValue,
  type Message,
  type MessageShape,
  toJson,
} from "@bufbuild/protobuf";
import { paint, plain, safeJson, span } from "./output.ts";
import { type Column, type Fact, jsonText, renderFacts } from "./table.ts";

const maxColumns = 6;

const label = ({ name }: DescField): string => name.replaceAll("_", " ");
const isMessage = (field: DescField, typeName: string): boolean =>
  field.fieldKind === "message" && field.message.typeName === typeName;

/** An answer as a block: of its only field, if that is a message, else of itself. */
export function renderAnswer<O extends DescMessage>(schema: O, answer: MessageShape<O>): string[] {
  const json = toJson(schema, answer) as JsonObject;
  const [only, ...others] = schema.fields.filter(({ jsonName }) => json[jsonName] !== undefined);
  if (only === undefined) return ["done"];
  const isWrapped =
    others.length === 0 && only.fieldKind === "message" && only.message.typeName.startsWith("moltwire.");
  return isWrapped ? block(only.message, json[only.jsonName] as JsonObject) : block(schema, json);
}

function block(schema: DescMessage, json: JsonObject): string[] {
  const set = schema.fields.filter(({ jsonName }) => json[jsonName] !== undefined);
  const head = set.find((field) => field.fieldKind === "scalar" && /(^|_)(id|key|name)$/.test(field.name));
  const facts = set
    .filter((field) => field !== head)
    .map((field): Fact => [label(field), factOf(field, json[field.jsonName]!)]);
  return renderFacts(paint("bold", head ? plain(String(json[head.jsonName])) : schema.name), facts);
}

const factOf = (field: DescField, json: JsonValue): string | readonly string[] | undefined =>
  textOf(field, json) ?? jsonText(json);

/** A value in a few words, if it has such; what it says may be of others. */
function textOf(field: DescField, json: JsonValue): string | undefined {
  if (field.fieldKind === "enum") return enumText(field, json);
  if (isMessage(field, "google.protobuf.Timestamp")) return `${String(json).slice(0, 19).replace("T", " ")} UTC`;
  if (isMessage(field, "google.protobuf.Duration")) return span(Number.parseFloat(String(json)) * 1_000);
  if (field.fieldKind === "scalar") return typeof json === "string" ? json : String(json);
  if (field.fieldKind === "list" && Array.isArray(json) && json.every((each) => typeof each === "string"))
    return json.map((each) => (field.listKind === "enum" ? enumText(field, each) : each)).join(" ");
  return undefined;
}

const enumText = (field: DescField, json: JsonValue): string =>
  field.enum?.values.find(({ name }) => name === json)?.localName ?? String(json);

/** Columns for a list of such messages: what each says in a word, ids first, and what is of many words as JSON, cut. */
export function columnsOf<T extends Message>(schema: DescMessage): Column<T>[] {
  const known = new WeakMap<Message, JsonObject>();
  const jsonOf = (row: T): JsonObject => {
    const json = known.get(row) ?? (toJson(schema, row) as JsonObject);
    known.set(row, json);
    return json;
  };
  const fields = schema.fields
    .filter(({ name }) => name !== "org_id" && name !== "revision")
    .map((field, at, all) => ({ field, weight: isId(field) && all.findIndex(isId) < at ? 5 : weight(field) }))
    .toSorted((a, b) => a.weight - b.weight)
    .map(({ field }) => field)
    .slice(0, maxColumns);
  return fields.map((field) => ({
    title: label(field).toUpperCase(),
    cell(row) {
      const json = jsonOf(row)[field.jsonName];
      return json === undefined ? "" : (textOf(field, json) ?? safeJson(json, 0));
    },
    cut: !isId(field) && field.fieldKind !== "enum" && !isMessage(field, "google.protobuf.Timestamp"),
  }));
}

const isId = ({ name }: DescField): boolean => /(^|_)(id|key)$/.test(name);

/** What is told first: what it is called by, in what state it is, then words, then times, then the rest; what it is of comes last. */
function weight(field: DescField): number {
  if (isId(field)) return 0;
  if (field.fieldKind === "enum") return 1;
  if (field.fieldKind === "scalar") return 2;
  return isMessage(field, "google.protobuf.Timestamp") ? 3 : 4;
}

/** A message of a stream in a line: what it is and what it says; undefined for one that says nothing. */
export function lineOf<O extends DescMessage>(schema: O, message: MessageShape<O>): string | undefined {
  const json = toJson(schema, message) as JsonObject;
  const said = schema.fields.find((field) => field.oneof !== undefined && json[field.jsonName] !== undefined);
  if (said?.name === "checkpoint") return undefined;
  if (!said) return safeJson(json, 0);
  return `${paint("dim", label(said))}  ${safeJson(json[said.jsonName], 0)}`;
}

/** Where a feed is; see {@link asideOf}. */
const places = new Set(["cursor", "sequence", "revision"]);

/** What a message of a stream says beside its place when it tells nothing that happened, such as what is gone; undefined for nothing. */
export function asideOf<O extends DescMessage>(schema: O, message: MessageShape<O>): string | undefined {
  const json = toJson(schema, message) as JsonObject;
  const said = schema.fields.find(
    ({ oneof, name, jsonName }) => !oneof && !places.has(name) && json[jsonName] !== undefined,
  );
  return said && `${label(said)}: ${safeJson(json[said.jsonName], 0)}`;
}
