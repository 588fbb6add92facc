/** `moltwire dev`: see clients/demo/dev.ts. */
import { asJson, type Noun, run, wholeNumber } from "./command.ts";

/** Adds the command. */
export const dev: Noun = (program) => {
  program
    .command("dev")
    .description("a server to try out, with its console and something in it, until Ctrl-C; nothing is kept")
    .option("--port <number>", "its port; 0 for any that is free (default: 6658)", wholeNumber(0, 65_535))
    .option("--no-console", "do not build the console first, where it is run from its sources")
    .addOption(asJson())
    .action(run(async (options) => (await import("../demo/dev.ts")).dev(options)));
};
