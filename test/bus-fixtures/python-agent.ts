/** The agent of test/agents/python as a process: written in another language, from the protos alone. */
import { execFile, spawn } from "node:child_process";
import { createHash } from "node:crypto";
import { once } from "node:events";
import { existsSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { promisify } from "node:util";
import { keptFolder } from "../temporary-folder.ts";

const root = join(import.meta.dirname, "../..");
const folder = join(root, "test/agents/python");
const run = promisify(execFile);
const maxInstallMs = 120_000;

/** A Python that has gRPC, or why there is none. It is made once a machine, in the folder for temporary files that stays, and needs a package index then. */
export async function pythonWithGrpc(): Promise<{ readonly python: string } | { readonly missing: string }> {
  const requirements = join(folder, "requirements.txt");
  const digest = createHash("sha256").update(readFileSync(requirements)).digest("hex").slice(0, 12);
  const environment = join(keptFolder(), `moltwire-python-${digest}`);
  const python = join(environment, "bin/python");
  const ready = join(environment, "ready");
  if (existsSync(ready)) return { python };
  const options = { timeout: maxInstallMs };
  try {
    rmSync(environment, { recursive: true, force: true });
    await run("python3", ["-m", "venv", environment], options);
    await run(python, ["-m", "pip", "install", "--quiet", "--requirement", requirements], options);
    writeFileSync(ready, "");
    return { python };
  } catch (error) {
    return { missing: `no Python 3 with grpcio can be had: ${(error as Error).message.split("\n")[0]}` };
  }
}

export type PythonAgent = AsyncDisposable & {
  readonly url: string;
  /** Ends it without a word. */
  kill(): Promise<void>;
};

export async function pythonAgent(python: string): Promise<PythonAgent> {
  const args = [join(folder, "agent.py"), join(root, "proto"), join(root, "third_party/proto")];
  const child = spawn(python, args, { stdio: ["pipe", "ignore", "pipe"] });
  const exited = once(child, "exit");
  const end = async (signal: NodeJS.Signals) => {
    if (child.exitCode !== null || child.signalCode !== null) return;
    child.kill(signal);
    await exited;
  };
  const lines: string[] = [];
  for await (const line of createInterface({ input: child.stderr })) {
    const [, url] = /listening on (\S+)/.exec(line) ?? [];
    if (url) {
      child.stderr.resume();
      return { url, kill: () => end("SIGKILL"), [Symbol.asyncDispose]: () => end("SIGKILL") };
    }
    lines.push(line);
  }
  throw new Error(`the agent did not start: ${lines.join("\n")}`);
}
