/** `moltwire help`: the page of a command, as man(1) has pages. */
import { type DescMessage, type DescMethod, type JsonObject, type JsonValue, ScalarType } from "@bufbuild/protobuf";
import type { Argument, Command, Option } from "commander";
import { asJson, methodOf, type Noun, run } from "./command.ts";
import { exampleOf, exampleRequest, methodComment, toldOf } from "./comments.ts";
import { exitCodes, exitCodesHelp } from "./exit-codes.ts";
import { flagName } from "./flags.ts";
import { isGenerated } from "./generated.ts";
import { paint, print, printJson, safeJson, shellWord, columns as width, wrap } from "./output.ts";
import { UsageError } from "./settings.ts";

const maxWidth = 100;
const indent = 7;

/** Adds the command. */
export const help: Noun = (program) => {
  program
    .command("help")
    .description("the page of a command: what it does, its options, examples and exit codes")
    .argument("[command...]", "such as: memory set")
    .addOption(asJson())
    .action(run((words: string[], options) => showPage(program, words, options)));
};

async function showPage(program: Command, words: readonly string[], { json }: { json?: boolean }): Promise<number> {
  const command = words.reduce(under, program);
  const page = pageOf(command);
  if (json) printJson(page);
  else for (const line of renderPage(page)) print(line);
  return exitCodes.ok;
}

function under(command: Command, word: string): Command {
  const found = command.commands.find((each) => each.name() === word);
  if (found) return found;
  throw new UsageError(
    `there is no command ${[...wordsTo(command), word].join(" ")}`,
    command.commands.length > 0 ? `one of: ${command.commands.map((each) => each.name()).join(", ")}` : "see --help",
  );
}

/** What is called, from the program's name on. */
const wordsTo = (command: Command): string[] => [...(command.parent ? wordsTo(command.parent) : []), command.name()];

/** How an argument is written. */
export const argumentTerm = (argument: Argument): string =>
  argument.required ? `<${argument.name()}>` : `[${argument.name()}${argument.variadic ? "..." : ""}]`;

type Term = { readonly term: string; readonly text: string };

type Page = {
  readonly name: string;
  readonly summary: string;
  readonly synopsis: string;
  readonly description: readonly string[];
  readonly commands: readonly Term[];
  readonly arguments: readonly Term[];
  readonly options: readonly Term[];
  readonly examples: readonly string[];
  readonly seeAlso: readonly string[];
};

/** All that there is to say of a command. */
function pageOf(command: Command): Page {
  const words = wordsTo(command);
  const method = methodOf(command);
  const args = command.registeredArguments;
  const comment = method && isGenerated(command) ? methodComment(method) : toldOf(command);
  return {
    name: words.join(" "),
    summary: toldOf(command),
    synopsis: [...words, ...(command.commands.length > 0 ? ["<command>"] : args.map(argumentTerm)), "[options]"].join(
      " ",
    ),
    description: comment.split(/\n+/),
    commands: command.commands.map((each) => ({
      term: [each.name(), ...each.registeredArguments.map(argumentTerm)].join(" "),
      text: toldOf(each),
    })),
    arguments: args.map((argument) => ({ term: argumentTerm(argument), text: argument.description })),
    options: command.options.map((option: Option) => ({ term: option.flags, text: toldOf(option) })),
    examples: examplesOf(command, method),
    seeAlso: [
      ...(command.parent ? [`moltwire help ${wordsTo(command.parent).slice(1).join(" ")}`.trim()] : []),
      ...(method ? [`${method.parent.typeName}/${method.name}, at /docs of a server`] : []),
    ],
  };
}

function examplesOf(command: Command, method: DescMethod | undefined): string[] {
  const written = exampleOf(command);
  if (written !== undefined) return [written];
  if (!method || !isGenerated(command)) return [];
  const example = exampleRequest(method);
  return example
    ? [[...wordsTo(command), ...exampleWords(method.input, example, command.parent!.name()).map(shellWord)].join(" ")]
    : [];
}

/** The flags that fill a request so, where flags can: what is in lists of messages stays JSON. */
export function exampleWords(message: DescMessage, request: JsonObject, noun: string, path = ""): string[] {
  const isUpdate = path === "" && message.field.updateMask !== undefined && message.field.change !== undefined;
  return message.fields.flatMap((field): string[] => {
    const json = request[field.jsonName];
    if (json === undefined || (isUpdate && field.name === "update_mask")) return [];
    const flag = path === "" ? flagName(field, noun) : `${path}${field.name.replaceAll("_", "-")}`;
    const isOurs = field.fieldKind === "message" && field.message.typeName.startsWith("moltwire.");
    if (isOurs && isObject(json) && Object.keys(json).length > 0)
      return exampleWords(field.message, json, noun, isUpdate && field.name === "change" ? "" : `${flag}.`);
    if (field.fieldKind === "list" && Array.isArray(json)) return json.flatMap((each) => [`--${flag}`, wordOf(each)]);
    if (field.fieldKind === "enum") return [`--${flag}`, shortName(field.enum.values, json)];
    if (field.fieldKind === "scalar" && field.scalar === ScalarType.BYTES) return [`--${flag}`, `base64:${json}`];
    if (field.fieldKind === "scalar" && json === true) return [`--${flag}`];
    if (field.fieldKind === "message" && !isOurs) {
      const isText = /\.(Timestamp|Duration|FieldMask)$/.test(field.message.typeName);
      return [`--${flag}`, isText ? String(json) : safeJson(json, 0)];
    }
    if (field.fieldKind === "scalar" && field.proto.options?.debugRedact) return [`--${flag}`, "@file"];
    return [`--${flag}`, wordOf(json)];
  });
}

const isObject = (json: JsonValue): json is JsonObject =>
  typeof json === "object" && json !== null && !Array.isArray(json);

const wordOf = (json: JsonValue): string => (typeof json === "string" ? json : safeJson(json, 0));

const shortName = (values: readonly { name: string; localName: string }[], json: JsonValue): string =>
  (values.find(({ name }) => name === json)?.localName ?? String(json)).toLowerCase().replaceAll("_", "-");

function renderPage(page: Page): string[] {
  const room = Math.min(maxWidth, width()) - indent;
  const block = (lines: readonly string[], at = indent) => lines.map((line) => `${" ".repeat(at)}${line}`.trimEnd());
  const section = (title: string, lines: readonly string[]) =>
    lines.length > 0 ? ["", paint("bold", title), ...lines] : [];
  const terms = (all: readonly Term[]) =>
    all.flatMap(({ term, text }) => [...block([term]), ...block(wrap(text, room - indent), 2 * indent)]);
  const paragraphs = page.description.flatMap((text, at) => [...(at > 0 ? [""] : []), ...wrap(text, room)]);
  return [
    ...section("NAME", block(wrap(`${page.name} - ${page.summary}`, room))).slice(1),
    ...section("SYNOPSIS", block([page.synopsis])),
    ...section("DESCRIPTION", block(paragraphs)),
    ...section("COMMANDS", terms(page.commands)),
    ...section("ARGUMENTS", terms(page.arguments)),
    ...section("OPTIONS", terms(page.options)),
    ...section("EXAMPLES", block(page.examples)),
    ...section("EXIT CODES", block(exitCodesHelp.split("\n").slice(2), indent - 2)),
    ...section("SEE ALSO", block(page.seeAlso)),
  ];
}
