/** `moltwire server`: runs the server in a process of its own, as `npm start` does. */
import { asJson, type Noun, run } from "./command.ts";
import { runProgram } from "./program.ts";

/** Adds the command. */
export const server: Noun = (program) => {
  program
    .command("server")
    .description("run a server; its flags are passed on (moltwire server --help)")
    .argument("[flags...]")
    .addOption(asJson())
    .helpOption(false)
    .allowUnknownOption()
    .passThroughOptions()
    .action(run((flags: string[], { json }) => runProgram("main", [...(json ? ["--json"] : []), ...flags])));
};
