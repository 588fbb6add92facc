/** What all commands are made of: their common options, and how they begin and end. */
import type { DescMethod } from "@bufbuild/protobuf";
import { type Command, InvalidArgumentError, Option } from "commander";
import { explain, report } from "./problem.ts";
import { type ConnectionOptions, defaultUrl, shownUrl } from "./settings.ts";

/** Adds the commands of one noun, such as `agent`, to the program. */
export type Noun = (program: Command) => void;

/** Adds a command that only has others under it. */
export const addNoun = (program: Command, name: string, description: string): Command =>
  program.command(name).description(description).enablePositionalOptions().helpCommand(false);

/** The option of every command that calls a server or says which. */
export const profileOption = (): Option =>
  new Option("--profile <name>", "the server and key that `moltwire login` kept by this name; or MOLTWIRE_PROFILE");

/** The option of every command: nothing on standard output but JSON. */
export const asJson = (): Option => new Option("--json", "print JSON, for programs");

const methods = new WeakMap<Command, DescMethod>();

/** The method of the server that a command is for, if it is for one. */
export const methodOf = (command: Command): DescMethod | undefined => methods.get(command);

/** Adds the options that every command with a server has. They may stand before the command's name as well. `method` is what it is for. */
export function withServer(command: Command, method?: DescMethod): Command {
  if (method) methods.set(command, method);
  const options = [
    new Option("--url <url>", `the server; or MOLTWIRE_URL (default: ${defaultUrl})`),
    new Option("--key-file <path>", "a file with the key; or MOLTWIRE_API_KEY holds it"),
    profileOption(),
    new Option("--org <id>", "the organisation; for the operator"),
    asJson(),
  ];
  for (const option of options) command.addOption(option.helpGroup("Options of every command:"));
  return command;
}

/**
 * The action of a command: takes its arguments and its options, those before its name too, and returns the exit code. What it throws is
 * explained on standard error.
 */
// biome-ignore lint/suspicious/noExplicitAny: commander hands over what the declarations of the command say.
export function run(action: (...values: any[]) => Promise<number>): (...values: any[]) => Promise<void> {
  return async (...values) => {
    const options = optionsOf(values.pop() as Command);
    values[values.length - 1] = options;
    try {
      process.exitCode = await action(...values);
    } catch (error) {
      process.exitCode = report(explain(error, shownUrl(options, process.env)), options.json);
    }
  };
}

/** A command's options over those of the commands above it. */
const optionsOf = (command: Command): ConnectionOptions =>
  command.parent ? { ...optionsOf(command.parent), ...command.opts() } : command.opts();

/** Reads a whole number within limits. */
export function wholeNumber(least: number, most: number): (text: string) => number {
  return (text) => {
    const value = Number(text);
    if (/^\d+$/.test(text) && value >= least && value <= most) return value;
    throw new InvalidArgumentError(`It must be a whole number from ${least} to ${most}.`);
  };
}

/** Reads a number of seconds, at most a day. */
export function seconds(text: string): number {
  const value = Number(text);
  if (value >= 0.001 && value <= 86_400) return value;
  throw new InvalidArgumentError("It must be a number of seconds from 0.001 to 86400.");
}

/** For an option that may be repeated. */
export const collect = (value: string, before: readonly string[] = []): string[] => [...before, value];
