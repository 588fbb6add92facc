/** `moltwire restore`: makes a database of a backup. The one command that needs no server, and none may run on the data. */
import { asJson, type Noun, run } from "./command.ts";
import { runProgram } from "./program.ts";

/** Adds the command. */
export const restore: Noun = (program) => {
  program
    .command("restore")
    .description("make a database of a backup, for a server to start on (moltwire restore --help)")
    .argument("[file]")
    .argument("[flags...]")
    .addOption(asJson())
    .helpOption(false)
    .allowUnknownOption()
    .passThroughOptions()
    .action(
      run((file: string | undefined, flags: string[], { json }) =>
        runProgram("restore", [...(json ? ["--json"] : []), ...(file === undefined ? [] : [file]), ...flags]),
      ),
    );
};
