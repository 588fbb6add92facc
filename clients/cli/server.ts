/** `moltwire server`: runs the server in a process of its own, as `npm start` does. */
import { spawn } from "node:child_process";
import { constants } from "node:os";
import { join } from "node:path";
import { type Noun, run } from "./command.ts";

const main = join(import.meta.dirname, "../../src/main.ts");
/**
 * MiB, as in the script `start`. Node would let what is newly allocated take 128 MiB before it tidies up, three times what the server holds under
 * load; so it is 32.
 */
const nodeFlags = ["--max-semi-space-size=16"];

/** Adds the command. */
export const server: Noun = (program) => {
  program
    .command("server")
    .description("run a server; its flags are passed on (moltwire server --help)")
    .argument("[flags...]")
    .helpOption(false)
    .allowUnknownOption()
    .passThroughOptions()
    .action(run((flags: string[]) => runServer(flags)));
};

/**
 * Starts the server with these flags and waits for its end. Returns its exit code, or 128 and the signal's number.
 *
 * A Ctrl-C reaches the server by itself, being of the same terminal; it only must not end this process first. SIGTERM is passed on.
 */
async function runServer(flags: readonly string[]): Promise<number> {
  const child = spawn(process.execPath, [...nodeFlags, main, ...flags], { stdio: "inherit" });
  const stay = () => {};
  const pass = (signal: NodeJS.Signals) => void child.kill(signal);
  process.on("SIGINT", stay).on("SIGTERM", pass).on("SIGHUP", pass);
  const { promise, resolve, reject } = Promise.withResolvers<number>();
  child.once("error", reject);
  child.once("exit", (code, signal) => resolve(code ?? 128 + constants.signals[signal!]));
  return promise;
}
