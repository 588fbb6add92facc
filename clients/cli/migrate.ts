/** `moltwire migrate`: all data into a database of the other engine. It needs no server, and none may run on either. */
import { asJson, type Noun, run } from "./command.ts";
import { runProgram } from "./program.ts";

/** Adds the command. */
export const migrate: Noun = (program) => {
  program
    .command("migrate")
    .description("copy all data from SQLite to PostgreSQL or back, and compare it (moltwire migrate --help)")
    .argument("[flags...]")
    .addOption(asJson())
    .helpOption(false)
    .allowUnknownOption()
    .passThroughOptions()
    .action(run((flags: string[], { json }) => runProgram("migrate", [...(json ? ["--json"] : []), ...flags])));
};
