#!/usr/bin/env node
/** The `moltwire` command. It knows a server by the public protocol alone. */
import { Command, CommanderError, InvalidArgumentError } from "commander";
import manifest from "../../package.json" with { type: "json" };
import { doctor } from "./doctor.ts";
import { exitCodes, exitCodesHelp } from "./exit-codes.ts";
import { endWithReader } from "./output.ts";
import { explain, report } from "./problem.ts";
import { server } from "./server.ts";
import { type ConnectionOptions, defaultUrl } from "./settings.ts";
import { submit } from "./submit.ts";
import { traceGet } from "./trace.ts";
import { traceTail } from "./trace-tail.ts";

const program = new Command("moltwire")
  .description("Contracts, tasks and traces for agents, from the command line.")
  .version(manifest.version)
  .enablePositionalOptions()
  .exitOverride()
  .addHelpText(
    "after",
    `\nThe key is read from MOLTWIRE_API_KEY or a file: on a command line it would show in \`ps\`.\n${exitCodesHelp}`,
  );
withServer(program);

program
  .command("server")
  .description("run a server; its flags are passed on (moltwire server --help)")
  .argument("[flags...]")
  .helpOption(false)
  .allowUnknownOption()
  .passThroughOptions()
  .action(run((flags: string[]) => server(flags)));

program
  .command("demo")
  .description("start a server, two agents and a question, and watch the trace")
  .option("--question <text>", "what to ask of the project's own documents")
  .option("--keep", "leave the server up until Ctrl-C, and keep its data")
  .option("--port <number>", "the server's port (default: a free one)", wholeNumber(0, 65_535))
  .action(run(async (options) => (await import("../demo/demo.ts")).demo(options)));

withServer(program.command("submit"))
  .description("have a task done and print its output")
  .argument("<contract>", "the contract's id")
  .argument("[input]", "JSON, @file, or - for standard input (default: null)")
  .option("--version <range>", "an exact version, or a range such as ^1.2 (default: the latest)")
  .option("--target <agent>", "only this agent may do it (its id)")
  .option("--as <agent>", "the agent to act for; for administrators")
  .option("--dry-run", "show how it would be checked and routed; change nothing")
  .option("--no-wait", "end as soon as the task is accepted; print its id")
  .option("--idempotency-key <text>", "repeat safely: a second call with it joins the first one's task")
  .option("--timeout <seconds>", "give up, and let the task fail, after so long", seconds)
  .addHelpText("after", `\nExample:\n  moltwire submit research/search '{"terms": []}' > found.json\n${exitCodesHelp}`)
  .action(run((contract: string, input: string | undefined, options) => submit(contract, input, options)));

const trace = program.command("trace").description("look at traces").enablePositionalOptions();

withServer(trace.command("get"))
  .description("print one trace as a tree with times")
  .argument("<id>", "a trace's id, or that of one of its tasks")
  .action(run((id: string, options) => traceGet(id, options)));

withServer(trace.command("tail"))
  .description("print steps as they happen, over lost connections, until Ctrl-C")
  .option("--trace <id>", "only this trace")
  .option("--agent <id>", "only what concerns this agent")
  .option("--contract <id>", "only this contract")
  .option("--kind <name>", "only this kind of step, such as completed; may be repeated", collect)
  .option("--from-start", "begin with the oldest step kept")
  .option("--after <cursor>", "go on after this cursor (--json shows them)")
  .option("--count <number>", "end after so many steps", wholeNumber(1, 1_000_000))
  .action(run((options) => traceTail(options)));

withServer(program.command("doctor"))
  .description("check this machine, the server and the key, with a fix for each finding")
  .action(run((options) => doctor(options)));

/** Adds the options that every command with a server has. They may stand before the command's name as well. */
function withServer(command: Command): Command {
  return command
    .option("--url <url>", `the server; or MOLTWIRE_URL (default: ${defaultUrl})`)
    .option("--key-file <path>", "a file with the key; or MOLTWIRE_API_KEY holds it")
    .option("--org <id>", "the organisation; for the operator")
    .option("--json", "print JSON, for programs");
}

// biome-ignore lint/suspicious/noExplicitAny: commander hands over what the declarations above it say.
function run(action: (...values: any[]) => Promise<number>): (...values: any[]) => Promise<void> {
  return async (...values) => {
    const command = values.pop() as Command;
    const options = { ...program.opts<ConnectionOptions>(), ...command.opts<ConnectionOptions>() };
    values[values.length - 1] = options;
    try {
      process.exitCode = await action(...values);
    } catch (error) {
      const url = options.url ?? (process.env.MOLTWIRE_URL || defaultUrl);
      process.exitCode = report(explain(error, url), options.json);
    }
  };
}

function wholeNumber(least: number, most: number): (text: string) => number {
  return (text) => {
    const value = Number(text);
    if (/^\d+$/.test(text) && value >= least && value <= most) return value;
    throw new InvalidArgumentError(`It must be a whole number from ${least} to ${most}.`);
  };
}

function seconds(text: string): number {
  const value = Number(text);
  if (value >= 0.001 && value <= 86_400) return value;
  throw new InvalidArgumentError("It must be a number of seconds from 0.001 to 86400.");
}

function collect(value: string, before: string[] = []): string[] {
  return [...before, value];
}

endWithReader();
try {
  await program.parseAsync();
} catch (error) {
  if (!(error instanceof CommanderError)) throw error;
  // Commander has said what is wrong, or has printed the help or the version.
  process.exitCode = error.exitCode === 0 ? exitCodes.ok : exitCodes.usage;
}
