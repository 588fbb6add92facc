/** The `moltwire` command again and again in one process, which loads it once: what `cli-process.ts` asks, one command after another. */
import { globalAgent } from "node:http";
import { Readable } from "node:stream";
import { CommanderError } from "commander";
import { commandLine } from "../clients/cli/commands.ts";
import { exitCodes } from "../clients/cli/exit-codes.ts";
import { main } from "./cli-process.ts";

/** A command with its environment, to which that of the host is added. */
export type Asked = { readonly args: readonly string[]; readonly env: Record<string, string>; readonly stdin: string };
/** What it ended with and said. */
export type Said = { readonly code: number; readonly stdout: string; readonly stderr: string };

const own = { ...process.env };

async function run({ args, env, stdin }: Asked): Promise<Said> {
  const said = { stdout: "", stderr: "" };
  for (const name of ["stdout", "stderr"] as const)
    process[name].write = (chunk: string | Uint8Array): boolean => {
      said[name] += typeof chunk === "string" ? chunk : Buffer.from(chunk).toString();
      return true;
    };
  process.env = { ...own, ...env };
  process.argv = [process.execPath, main, ...args];
  Object.defineProperty(process, "stdin", { value: Readable.from([Buffer.from(stdin)]), configurable: true });
  process.exitCode = undefined;
  try {
    await commandLine().parseAsync();
  } catch (error) {
    if (!(error instanceof CommanderError)) throw error;
    process.exitCode = error.exitCode === 0 ? exitCodes.ok : exitCodes.usage;
  }
  const code = Number(process.exitCode ?? 0);
  process.exitCode = undefined;
  // The next command begins without connections, as it would in a process of its own.
  globalAgent.destroy();
  return { code, ...said };
}

if (process.send) {
  process.on("message", async (asked: Asked) => process.send!(await run(asked)));
  process.on("disconnect", () => process.exit());
}
