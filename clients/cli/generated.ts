/** Commands for the methods that none was written for, made from their descriptors. */
import type {
  DescMessage,
  DescMethod,
  DescMethodBiDiStreaming,
  DescMethodServerStreaming,
  DescMethodUnary,
  Message,
} from "@bufbuild/protobuf";
import type { Command } from "commander";
import { columnsOf, renderAnswer } from "./answer.ts";
import { type Area, areas } from "./areas.ts";
import { addCall } from "./call.ts";
import { addNoun, methodOf } from "./command.ts";
import { inShort, methodComment } from "./comments.ts";
import { flagsOf } from "./flags.ts";
import { addList } from "./list.ts";
import type { RequestFields } from "./request.ts";
import { addStream } from "./stream.ts";

const made = new WeakSet<Command>();

/** Whether a command was made here. */
export const isGenerated = (command: Command): boolean => made.has(command);

/** Adds what the areas of a heading lack; their commands that there are must have been added before. */
export function addMissing(program: Command, heading: string): void {
  const there = new Set(methodsUnder(program));
  for (const area of areas[heading] ?? []) {
    const missing = area.service.methods.filter((method) => !there.has(method));
    if (missing.length === 0) continue;
    const noun =
      program.commands.find((command) => command.name() === area.noun) ?? addNoun(program, area.noun, area.about);
    for (const [verb, method] of verbsOf(area, missing, noun)) made.add(addMethod(noun, verb, method, area));
  }
}

/** The methods that commands are for. */
const methodsUnder = (command: Command): DescMethod[] =>
  command.commands.flatMap((each) => [...(methodOf(each) ? [methodOf(each)!] : []), ...methodsUnder(each)]);

/** "list-dead-jobs" of ListDeadJobs; "list" of ListJobs, where jobs are what the noun is about and no other is called so. */
export function verbsOf({ things }: Area, methods: readonly DescMethod[], noun: Command): [string, DescMethod][] {
  const names = new Set(noun.commands.map((command) => command.name()));
  return methods.map((method) => {
    const thing = things.find((each) => method.name.endsWith(each) && method.name.length > each.length);
    const short = kebab(thing ? method.name.slice(0, -thing.length) : method.name);
    // Get and List of other things end with the thing's name too: ListDeadJobs.
    const isShort = !short.includes("-") || /^batch-/.test(short);
    const verb = thing && isShort && !names.has(short) ? short : kebab(method.name);
    names.add(verb);
    return [verb, method];
  });
}

const kebab = (name: string): string => name.replace(/(?<=[a-z])(?=[A-Z])/g, "-").toLowerCase();

function addMethod(noun: Command, verb: string, method: DescMethod, { noun: name }: Area): Command {
  switch (method.methodKind) {
    case "unary":
      return addUnary(noun, verb, method as DescMethodUnary, name);
    case "client_streaming":
      throw new Error(`${method.name} streams to the server alone, for which there is no command yet`);
    default: {
      const stream = method as DescMethodServerStreaming | DescMethodBiDiStreaming;
      return addStream(noun, { ...told(verb, method), method: stream, ...fieldsOf(method.input, name), from: true });
    }
  }
}

const told = (name: string, method: DescMethod) => ({
  name,
  summary: () => inShort(methodComment(method), method.name),
});

function addUnary(noun: Command, verb: string, method: DescMethodUnary, name: string): Command {
  const items = itemsOf(method);
  if (items) return addItems(noun, verb, method, items, name);
  return addCall(noun, {
    ...told(verb, method),
    method,
    ...fieldsOf(method.input, name),
    from: true,
    show: (response) => renderAnswer(method.output, response),
  });
}

/** Flags for a request: those of an update's `change` stand for its fields, and its mask names those that were given. */
export function fieldsOf(input: DescMessage, noun: string): RequestFields {
  const { change } = input.field;
  if (change?.fieldKind !== "message" || !input.field.updateMask) return { fields: flagsOf(input, noun, ["org_id"]) };
  return {
    fields: flagsOf(input, noun, ["org_id", "change", "update_mask"]),
    change: flagsOf(change.message, noun),
  };
}

type Items = { readonly field: string; readonly item: DescMessage };

/** What a method lists page by page, if that is all it answers. */
function itemsOf({ name, input, output }: DescMethod): Items | undefined {
  if (!/^(List|Search)/.test(name) || !input.field.pageToken) return undefined;
  const [list, ...others] = output.fields.filter(({ fieldKind }) => fieldKind === "list");
  if (others.length > 0 || list?.fieldKind !== "list" || list.listKind !== "message") return undefined;
  return { field: list.localName, item: list.message };
}

function addItems(noun: Command, verb: string, method: DescMethodUnary, { field, item }: Items, name: string): Command {
  return addList(noun, {
    ...told(verb, method),
    method,
    filters: flagsOf(method.input, name, ["org_id", "page_size", "page_token"]),
    rows: (page) => (page as Message & Record<string, Message[]>)[field]!,
    columns: columnsOf(item),
    things: kebab(method.name.replace(/^(List|Search)/, "")).replaceAll("-", " "),
    first: `moltwire ${name} --help`,
  });
}
