/** A command that lists things, page by page. */
import {
  type DescMessage,
  type DescMethodUnary,
  isFieldSet,
  type Message,
  type MessageShape,
  toJson,
} from "@bufbuild/protobuf";
import type { Command } from "commander";
import { printAgain, type WatchOptions, withWatch } from "./again.ts";
import { run, wholeNumber, withServer } from "./command.ts";
import { tellLater } from "./comments.ts";
import { callOnce, connectClients } from "./connect.ts";
import { exitCodes } from "./exit-codes.ts";
import { declare, type Field } from "./field.ts";
import { note, paintError, safeJson, shellWord, columns as width } from "./output.ts";
import { readRequest } from "./request.ts";
import { type ConnectionOptions, readSettings } from "./settings.ts";
import { type Column, renderTable } from "./table.ts";

/** What a list is: the method behind it, its filters, and its table. */
export type List<I extends DescMessage, O extends DescMessage, T extends Message> = {
  /** Default: "list". */
  readonly name?: string;
  readonly summary: string | (() => string);
  readonly method: DescMethodUnary<I, O>;
  readonly filters?: readonly Field[];
  readonly rows: (page: MessageShape<O>) => readonly T[];
  readonly columns: readonly Column<T>[];
  /** What is told of all pages together, under the table. */
  readonly foot?: (page: MessageShape<O>) => readonly string[];
  /** Of what there is nothing, such as "agents"; and the command that makes the first. */
  readonly things: string;
  readonly first: string;
};

type ListOptions = ConnectionOptions &
  WatchOptions & {
    readonly pageSize?: number;
    readonly pageToken?: string;
    readonly all?: boolean;
  };

const maxRows = 10_000;

/** Adds it to its noun. */
export function addList<I extends DescMessage, O extends DescMessage, T extends Message>(
  noun: Command,
  list: List<I, O, T>,
): Command {
  const command = tellLater(noun.command(list.name ?? "list"), list.summary);
  declare(command, list.filters ?? []);
  command
    .option("--page-size <number>", "how many at once (default: 50)", wholeNumber(1, 250))
    .option("--page-token <token>", "go on after a page, which told it")
    .option("--all", `page after page, up to ${maxRows.toLocaleString("en")}`);
  withServer(withWatch(command), list.method);
  return command.action(run((options: ListOptions) => show(list, command, options)));
}

async function show<I extends DescMessage, O extends DescMessage, T extends Message>(
  list: List<I, O, T>,
  command: Command,
  options: ListOptions,
): Promise<number> {
  const { method, filters = [] } = list;
  const settings = readSettings(options, process.env);
  const reading = { clients: connectClients(settings), orgId: options.org ?? "" };
  const wanted = await readRequest(method.input, { fields: filters }, command, reading);
  let pageToken = "";
  const look = async () => {
    const rows: T[] = [];
    let foot: readonly string[] = [];
    pageToken = options.pageToken ?? "";
    do {
      const page = await callOnce(settings, method, { ...wanted, pageToken, pageSize: options.pageSize ?? 0 });
      rows.push(...list.rows(page));
      foot = list.foot?.(page) ?? [];
      pageToken = nextPageToken(page);
    } while (options.all && pageToken !== "" && rows.length < maxRows);
    if (options.json) return rows.map((row) => safeJson(toJson(itemOf(method.output), row), 0));
    if (rows.length > 0) return [...renderTable(list.columns, rows, width()), ...foot];
    const filtered = filters.some(({ name }) => isFieldSet(wanted, method.input.field[name.split(".")[0]!]!));
    note(filtered ? `no ${list.things} match` : `no ${list.things} yet; for the first:\n  ${list.first}`);
    return [];
  };
  await printAgain(options, look);
  if (pageToken !== "") tellNext(pageToken, options);
  return exitCodes.ok;
}

/** Every response of a List method has it. */
const nextPageToken = (page: Message): string => (page as Message & { nextPageToken?: string }).nextPageToken ?? "";

/** The message that a List method lists. */
function itemOf(response: DescMessage): DescMessage {
  const field = response.fields.find(({ fieldKind }) => fieldKind === "list");
  if (field?.fieldKind === "list" && field.listKind === "message") return field.message;
  throw new Error(`${response.typeName} lists no messages`);
}

function tellNext(pageToken: string, { json }: ListOptions): void {
  if (json) note(safeJson({ nextPageToken: pageToken }, 0));
  else note(paintError("dim", `\nmore: ${nextCommand(process.argv.slice(2), pageToken)}`));
}

/** The same command for the page after, to copy into a shell. */
export function nextCommand(args: readonly string[], pageToken: string): string {
  const kept = args.filter((arg, at) => !/^--page-token(=|$)/.test(arg) && args[at - 1] !== "--page-token");
  const words = ["moltwire", ...kept, "--page-token", pageToken];
  return words.map(shellWord).join(" ");
}
