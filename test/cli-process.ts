/** The `moltwire` command and the server as processes, as a user starts them. */
import { type ChildProcess, fork, spawn } from "node:child_process";
import { once } from "node:events";
import { type AddressInfo, createServer } from "node:net";
import { join } from "node:path";
import type { Asked, Said } from "./cli-host.ts";

const root = join(import.meta.dirname, "..");
/** What a shell runs instead of `npx moltwire`. */
export const node = join(root, "node_modules/.bin/node");
export const main = join(root, "clients/cli/main.ts");
const maxCommandMs = 120_000;
const maxServerMs = 300_000;

/** The environment without what would reach the command from the outside. */
export const cleanEnv = (): NodeJS.ProcessEnv => ({
  ...Object.fromEntries(Object.entries(process.env).filter(([name]) => !name.startsWith("MOLTWIRE_"))),
  // Where nobody has logged in.
  XDG_CONFIG_HOME: join(root, "test/none"),
});

/** Starts commands and servers with a folder as their working directory. */
export function commandsIn(folder: string, operatorKey: string) {
  const running = new Set<ChildProcess>();

  /** A started command with what it has said so far. */
  function start(
    args: readonly string[],
    env: NodeJS.ProcessEnv = {},
    program: readonly string[] = [main],
    maxMs = program[0] === main ? maxCommandMs : maxServerMs,
  ) {
    const child = spawn(node, [...program, ...args], {
      cwd: folder,
      env: { ...cleanEnv(), ...env },
      stdio: ["pipe", "pipe", "pipe"],
      timeout: maxMs,
      killSignal: "SIGKILL",
    });
    running.add(child);
    child.once("close", () => running.delete(child));
    child.stdin.on("error", () => {});
    const said = { stdout: "", stderr: "" };
    const bell = new EventTarget();
    for (const name of ["stdout", "stderr"] as const) {
      child[name].setEncoding("utf8").on("data", (chunk: string) => {
        said[name] += chunk;
        bell.dispatchEvent(new Event("said"));
      });
    }
    const closed = once(child, "close") as Promise<[number | null, NodeJS.Signals | null]>;
    return {
      child,
      ended: closed.then(([code, signal]) => ({ code, signal, ...said })),
      async says(pattern: RegExp): Promise<RegExpExecArray> {
        for (;;) {
          const match = pattern.exec(said.stdout) ?? pattern.exec(said.stderr);
          if (match) return match;
          const end = await Promise.race([once(bell, "said").then(() => undefined), closed]);
          if (end) throw new Error(`ended without ${pattern}:\n${said.stdout}\n${said.stderr}`);
        }
      },
    };
  }

  return {
    start,
    async startServer(port: number, data: string, env: NodeJS.ProcessEnv = {}) {
      const flags = ["--host", "127.0.0.1", "--port", String(port), "--data", data];
      const server = start(flags, { MOLTWIRE_OPERATOR_KEY: operatorKey, ...env }, [join(root, "src/main.ts")]);
      const [, url] = await server.says(/listening on (http:[^\s"',]+)/);
      return { ...server, url: url! };
    },
    /** Ends whatever still runs. */
    async stopAll(): Promise<void> {
      const left = [...running].map((child) => once(child, "close"));
      for (const child of running) child.kill("SIGTERM");
      await Promise.all(left);
    },
  };
}

/** These hand their output to other programs. */
const withPrograms = ["server", "demo", "restore", "migrate"];
let host: ChildProcess | undefined;
let isHostBusy = false;

/** Runs a command to its end without a process of its own: a third of a second of the processor's less. */
async function onHost(asked: Asked): Promise<Said> {
  isHostBusy = true;
  host ??= fork(join(import.meta.dirname, "cli-host.ts"), {
    execPath: node,
    execArgv: [],
    cwd: import.meta.dirname,
    env: cleanEnv(),
    stdio: ["ignore", "inherit", "inherit", "ipc"],
  });
  const { promise, resolve, reject } = Promise.withResolvers<Said>();
  const lost = () => {
    host = undefined;
    reject(new Error(`moltwire ${asked.args.join(" ")} ended the process`));
  };
  host.once("message", resolve).once("exit", lost);
  try {
    host.send(asked);
    return await promise;
  } finally {
    isHostBusy = false;
    host?.off("message", resolve).off("exit", lost);
    // It ends when the tests do.
    host?.unref();
    host?.channel?.unref();
  }
}

/**
 * Runs the command to its end against a server with a key. A command that is not started at the same time as another shares a process with the ones before; that
 * it ends by itself, with all it has begun, is for those that `start` runs.
 */
export const commandsAt = (url: string, key: string, more: NodeJS.ProcessEnv = {}) => {
  const { start, stopAll } = commandsIn(import.meta.dirname, "");
  const env = { MOLTWIRE_URL: url, MOLTWIRE_API_KEY: key, ...more };
  return {
    stopAll,
    start: (...args: string[]) => start(args, env),
    /** What it said and ended with; `stdin` is what it may read. */
    async moltwire(args: readonly string[], stdin = "") {
      if (!isHostBusy && !withPrograms.includes(args[0]!))
        return { signal: null, ...(await onHost({ args, env, stdin })) };
      const { child, ended } = start(args, env);
      child.stdin.end(stdin);
      return await ended;
    },
  };
};

/** A port that was free a moment ago. */
export async function freePort(): Promise<number> {
  const probe = createServer().listen(0, "127.0.0.1");
  await once(probe, "listening");
  const { port } = probe.address() as AddressInfo;
  probe.close();
  await once(probe, "close");
  return port;
}
