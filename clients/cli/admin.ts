/** `moltwire admin`: who may sign in to the console. */
import { create, toJson } from "@bufbuild/protobuf";
import { MaintenanceService, SetAdminPasswordRequestSchema } from "../../gen/moltwire/ops/v1/maintenance_service_pb.ts";
import { ask, firstLine } from "./ask.ts";
import { addNoun, type Noun, run, withServer } from "./command.ts";
import { callOnce } from "./connect.ts";
import { exitCodes } from "./exit-codes.ts";
import { print, printJson } from "./output.ts";
import { type ConnectionOptions, readSettings, UsageError } from "./settings.ts";

const { setAdminPassword } = MaintenanceService.method;
const leastCharacters = 12;

/** Adds the commands. */
export const admin: Noun = (program) => {
  const noun = addNoun(program, "admin", "the operator's password for the console, and what there is on the server");
  withServer(
    noun
      .command("set-password")
      .description(
        `set or replace it: at least ${leastCharacters} characters, asked for, or the first line of standard input`,
      )
      .addHelpText("after", "\nExample:\n  moltwire admin set-password"),
    setAdminPassword,
  ).action(run(setPassword));
};

async function setPassword(options: ConnectionOptions): Promise<number> {
  const settings = readSettings(options, process.env);
  const password = process.stdin.isTTY ? await askTwice() : await firstLine();
  if (password.length < leastCharacters)
    throw new UsageError(`the password has fewer than ${leastCharacters} characters`, "choose a longer one");
  const request = create(SetAdminPasswordRequestSchema, { password });
  const response = await callOnce(settings, setAdminPassword, request);
  if (options.json) printJson(toJson(setAdminPassword.output, response));
  else print(`set; sessions that ended with the one before: ${response.endedSessions}`);
  return exitCodes.ok;
}

async function askTwice(): Promise<string> {
  const password = await ask("password: ");
  if ((await ask("once more: ")) !== password) throw new UsageError("the two differ", "type the same one twice");
  return password;
}
