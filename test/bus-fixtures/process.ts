/** Servers as processes: what a kill -9 or a SIGTERM does to them is what it does to the product. */
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { createInterface } from "node:readline";

export type ServerProcess = AsyncDisposable & {
  readonly url: string;
  readonly pid: number;
  /** Ends it without a word, as a power cut would. */
  kill(): Promise<void>;
  /** Asks it to stop; gives its exit code. */
  stop(): Promise<number | null>;
};

/** Runs a TypeScript program that says `listening on <url>` on its standard error. */
export async function serverProcess(
  program: string,
  args: readonly string[],
  env: Record<string, string> = {},
): Promise<ServerProcess> {
  const { PATH, NODE_COMPILE_CACHE } = process.env;
  const child = spawn(process.execPath, [program, ...args], {
    env: { PATH, NODE_COMPILE_CACHE, ...env },
    stdio: ["ignore", "ignore", "pipe"],
  });
  const url = await listening(child);
  const exited = once(child, "exit");
  const kill = async () => {
    child.kill("SIGKILL");
    await exited;
  };
  return {
    url,
    pid: child.pid!,
    kill,
    async stop() {
      child.kill("SIGTERM");
      await exited;
      return child.exitCode;
    },
    async [Symbol.asyncDispose]() {
      if (child.exitCode === null && child.signalCode === null) await kill();
    },
  };
}

async function listening(child: ChildProcess): Promise<string> {
  const lines: string[] = [];
  for await (const line of createInterface({ input: child.stderr! })) {
    const [, url] = /listening on (\S+)/.exec(line) ?? [];
    if (url) {
      child.stderr!.resume();
      return url;
    }
    lines.push(line);
  }
  throw new Error(`the server did not start: ${lines.join("\n")}`);
}
