/** The fields of a request as flags, from its descriptor: nested ones by dots, lists by repeating. */
import { type DescEnum, type DescField, type DescMessage, type JsonValue, ScalarType } from "@bufbuild/protobuf";
import { agentIdOf } from "./agent-name.ts";
import { fieldComment, inShort } from "./comments.ts";
import { choices, duration, type Field, json, oneOf, type Reading, time } from "./field.ts";
import { readBytes } from "./input.ts";
import { UsageError } from "./settings.ts";

/** How far flags go into messages of messages; what is deeper is given as JSON. */
const maxDepth = 4;

/** Of options that every command has: a field of such a name has its request's noun before it. */
const taken = new Set([
  "url",
  "key-file",
  "org",
  "profile",
  "json",
  "from",
  "watch",
  "count",
  "help",
  "idempotency-key",
]);

/** The flags for all fields of a message but those named, and for theirs. `noun` is for names that are taken. */
export function flagsOf(message: DescMessage, noun: string, without: readonly string[] = []): Field[] {
  return message.fields
    .filter(({ name }) => !without.includes(name))
    .flatMap((field) => flagsOfField(field, { name: field.jsonName, flag: flagName(field, noun), above: [message] }));
}

const kebab = (name: string): string => name.replaceAll("_", "-");

/** The name of the flag of a request's field. */
export const flagName = ({ name }: DescField, noun: string): string =>
  taken.has(kebab(name)) ? `${noun}-${kebab(name)}` : kebab(name);

type Place = {
  /** Its path in JSON, and in the flag. */
  readonly name: string;
  readonly flag: string;
  /** The messages that it is in. */
  readonly above: readonly DescMessage[];
};

function flagsOfField(field: DescField, place: Place): Field[] {
  const { name, flag, above } = place;
  const one = (form: string, more: Partial<Field> & { readonly hint?: string }): Field => {
    const { hint, ...rest } = more;
    return { name, as: form === "" ? `--${flag}` : `--${flag} ${form}`, help: () => helpOf(field, hint), ...rest };
  };
  switch (field.fieldKind) {
    case "scalar":
      return [one(...scalarForm(field, field.scalar))];
    case "enum":
      return [one("<name>", { read: oneOf(field.enum), hint: choices(field.enum) })];
    case "list":
      return [one(...listForm(field))];
    case "map":
      return [one("<name=value>", mapForm(field))];
    case "message": {
      const leaf = wellKnown[field.message.typeName];
      if (leaf) return [one(leaf.form, leaf)];
      if (field.message.fields.length === 0) return [one("", { value: {} })];
      const whole = one("<json>", { read: json, hint: jsonHint });
      if (above.length >= maxDepth || above.includes(field.message)) return [whole];
      const inner = field.message.fields.flatMap((each) =>
        flagsOfField(each, {
          name: `${name}.${each.jsonName}`,
          flag: `${flag}.${kebab(each.name)}`,
          above: [...above, field.message],
        }),
      );
      return [whole, ...inner];
    }
  }
}

const jsonHint = "JSON, @file or -";
const textHint = "@file and - for standard input; @@ for an @";

type Form = Partial<Field> & { readonly hint?: string };

const wellKnown: Readonly<Record<string, Form & { readonly form: string }>> = {
  "google.protobuf.Timestamp": { form: "<time>", read: time, hint: "2030-01-31T12:00:00Z, 2h from now, -2h ago" },
  "google.protobuf.Duration": { form: "<span>", read: duration, hint: "such as 500ms, 30s, 5m, 2h or 30d" },
  "google.protobuf.Struct": { form: "<json>", read: json, hint: jsonHint },
  "google.protobuf.Value": { form: "<json>", read: json, hint: jsonHint },
  "google.protobuf.ListValue": { form: "<json>", read: json, hint: jsonHint },
  "google.protobuf.Any": { form: "<json>", read: json, hint: jsonHint },
  "google.protobuf.FieldMask": {
    form: "<fields>",
    read: (text) => text.replace(/_([a-z])/g, (_, letter: string) => letter.toUpperCase()),
    hint: "names with commas between",
  },
};

function helpOf(field: DescField, hint: string | undefined): string {
  const comment = inShort(fieldComment(field));
  return hint === undefined ? comment : comment === "" ? hint : `${comment}; ${hint}`;
}

function scalarForm(field: DescField, scalar: ScalarType): [form: string, more: Form] {
  if (field.proto.options?.debugRedact) return ["<file>", { read: secret, hint: "@file, or - for standard input" }];
  switch (scalar) {
    case ScalarType.BOOL:
      return ["[true|false]", { read: truth }];
    case ScalarType.STRING:
      if (/(^|_)agent_ids?$/.test(field.name)) return ["<agent>", { read: agentIdOf, hint: "its name or id" }];
      return [
        "<text>",
        { read: text, ...(/(text|payload|description|message|content)$/.test(field.name) && { hint: textHint }) },
      ];
    case ScalarType.BYTES:
      return ["<bytes>", { read: bytes, hint: "text, base64:…, @file, or - for standard input" }];
    default:
      return ["<number>", { read: number }];
  }
}

function listForm(field: DescField & { fieldKind: "list" }): [form: string, more: Form] {
  const many = "may be repeated";
  if (field.listKind === "enum")
    return ["<name>", { many: true, read: oneOf(field.enum), hint: `${choices(field.enum)}; ${many}` }];
  if (field.listKind === "scalar") {
    const [form, { hint, ...more }] = scalarForm(field, field.scalar);
    return [form, { ...more, many: true, hint: hint ? `${hint}; ${many}` : many }];
  }
  const leaf = wellKnown[field.message.typeName];
  if (leaf) return [leaf.form, { ...leaf, many: true, hint: `${leaf.hint}; ${many}` }];
  // A file may hold the whole list.
  const join = (values: JsonValue[]): JsonValue => values.flat();
  return ["<json>", { many: true, read: json, join, hint: `${jsonHint}, one or an array; ${many}` }];
}

function mapForm(field: DescField & { fieldKind: "map" }): Form {
  const value: NonNullable<Field["read"]> =
    field.mapKind === "scalar"
      ? (scalarForm(field, field.scalar)[1].read ?? text)
      : field.mapKind === "enum"
        ? oneOf(field.enum as DescEnum)
        : (wellKnown[field.message.typeName]?.read ?? json);
  const read = async (given: string, reading: Reading): Promise<JsonValue> => {
    const [, name, rest] = /^([^=]+)=(.*)$/s.exec(given) ?? [];
    if (name === undefined) throw new UsageError(`${reading.label} ${given}: there is no =`, "write it name=value");
    return [name, await value(rest!, reading)];
  };
  const join = (pairs: JsonValue[]): JsonValue => Object.fromEntries(pairs as [string, JsonValue][]);
  return { many: true, read, join, hint: "may be repeated" };
}

/** A text, or what a file or standard input holds. */
async function text(given: string): Promise<string> {
  if (given.startsWith("@@")) return given.slice(1);
  if (given !== "-" && !/^@./.test(given)) return given;
  return (await readBytes(given, process.stdin)).toString("utf8");
}

/** A text that must not stand on a command line, where it shows in `ps`: what the file holds without the end of its line. */
async function secret(given: string, { label }: Reading): Promise<string> {
  if (given !== "-" && !given.startsWith("@"))
    throw new UsageError(`${label} is a secret and would show in \`ps\``, "give it as @file, or - for standard input");
  return (await readBytes(given, process.stdin)).toString("utf8").replace(/\r?\n$/, "");
}

async function bytes(given: string): Promise<string> {
  if (given.startsWith("base64:")) return given.slice("base64:".length);
  const isPlace = given === "-" || /^@[^@]/.test(given);
  const read = isPlace ? await readBytes(given, process.stdin) : Buffer.from(given.replace(/^@@/, "@"));
  return read.toString("base64");
}

function truth(given: string, { label }: Reading): boolean {
  if (given === "true" || given === "false") return given === "true";
  throw new UsageError(`${label} ${given}: it is true or false`, "leave the value out for true");
}

/** A number as the server takes it: of 64 bits as text, so that none is rounded. */
function number(given: string, { label }: Reading): JsonValue {
  if (/^-?\d+$/.test(given)) return Number.isSafeInteger(Number(given)) ? Number(given) : given;
  if (/^-?\d*\.?\d+(e[+-]?\d+)?$/i.test(given)) return Number(given);
  throw new UsageError(`${label} ${given} is no number`, "write digits");
}
