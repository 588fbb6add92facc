/** The comments of the protos, for help: read when somebody asks for it, and not at every command. */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import type { DescField, DescMethod, DescService, JsonObject } from "@bufbuild/protobuf";
import type { Command, Option } from "commander";

type Commented = { readonly description?: string };
type Document = {
  readonly tags: readonly { readonly name: string; readonly description: string }[];
  readonly paths: Readonly<Record<string, { readonly post: Commented & { readonly requestBody?: JsonObject } }>>;
  readonly components: {
    readonly schemas: Readonly<Record<string, { readonly properties?: Readonly<Record<string, Commented>> }>>;
  };
};

let read: Document | undefined;
const document = (): Document => {
  // Generated with the code, and the one place where the comments of all protos are.
  read ??= JSON.parse(readFileSync(join(import.meta.dirname, "../../gen/openapi.json"), "utf8")) as Document;
  return read;
};

/** What a service is, as its proto says; paragraphs have empty lines between. */
export const serviceComment = ({ typeName }: DescService): string =>
  document().tags.find(({ name }) => name === typeName)?.description ?? "";

/** What a method does, its errors, and who may call it. */
export const methodComment = (method: DescMethod): string =>
  document().paths[`/${method.parent.typeName}/${method.name}`]?.post.description ?? "";

/** What a field holds, and its limits. */
export const fieldComment = (field: DescField): string =>
  document().components.schemas[field.parent.typeName]?.properties?.[field.jsonName]?.description ?? "";

/** A request as the reference shows it. Streams have none. */
export function exampleRequest(method: DescMethod): JsonObject | undefined {
  const body = document().paths[`/${method.parent.typeName}/${method.name}`]?.post.requestBody as
    | { content?: { "application/json"?: { example?: JsonObject } } }
    | undefined;
  return body?.content?.["application/json"]?.example;
}

/** The first sentence of a comment, without the name that it begins with: "Creates or overwrites an entry". */
export function inShort(comment: string, name = ""): string {
  const [sentence = ""] = /^.*?[^.]\.(?=\s|$)/s.exec(comment) ?? [comment];
  const rest = sentence.startsWith(`${name} `) ? sentence.slice(name.length + 1) : sentence;
  return rest.replace(/\s+/g, " ").replace(/\.$/, "");
}

const later = new WeakMap<Command | Option, () => string>();

/** Describes it: now, or when help is asked for. */
export function tellLater<T extends Command | Option>(of: T, text: string | (() => string)): T {
  if (typeof text === "function") later.set(of, text);
  else if ("flags" in of) of.description = text;
  else of.description(text);
  return of;
}

/** What was said of it, or is said now. */
export const toldOf = (of: Command | Option): string =>
  later.get(of)?.() ?? ("flags" in of ? of.description : of.description());

const examples = new WeakMap<Command, string>();

/** Adds a line to copy to the help of a command. */
export function withExample(command: Command, line: string): Command {
  examples.set(command, line);
  return command.addHelpText("after", `\nExample:\n  ${line}`);
}

/** That line. */
export const exampleOf = (command: Command): string | undefined => examples.get(command);
