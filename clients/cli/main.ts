#!/usr/bin/env node
/** The `moltwire` command. It knows a server by the public protocol alone. */
import { CommanderError } from "commander";
import { commandLine } from "./commands.ts";
import { exitCodes } from "./exit-codes.ts";
import { endWithReader } from "./output.ts";

endWithReader();
try {
  await commandLine().parseAsync();
} catch (error) {
  if (!(error instanceof CommanderError)) throw error;
  // Commander has said what is wrong, or has printed the help or the version.
  process.exitCode = error.exitCode === 0 ? exitCodes.ok : exitCodes.usage;
}
