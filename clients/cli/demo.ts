/** `moltwire demo`: see clients/demo. */
import { asJson, type Noun, run, wholeNumber } from "./command.ts";

/** Adds the command. */
export const demo: Noun = (program) => {
  program
    .command("demo")
    .description("start a server and agents, and see what it promises in scenarios that check it")
    .option("--question <text>", "what to ask of the project's own documents")
    .option("--scenario <which>", "run only this one, by its number or its name")
    .option("--keep", "leave the server up until Ctrl-C, and keep its data")
    .option("--port <number>", "the server's port (default: a free one)", wholeNumber(0, 65_535))
    .addOption(asJson())
    .action(run(async (options) => (await import("../demo/demo.ts")).demo(options)));
};
