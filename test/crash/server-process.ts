/** The real program in a process of its own, as anybody would start it. */
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { createServer } from "node:net";
import { join } from "node:path";

/** A running program. Whatever happens to this process, that one ends with it. */
export type ServerProcess = {
  readonly pid: number;
  /** The URL, once it listens; rejects when the process ends before, or after 20 s. */
  readonly ready: Promise<string>;
  /** Resolves when the process has ended, however. */
  readonly ended: Promise<unknown>;
  /** kill -9; resolves when the process is gone. */
  kill(): Promise<void>;
  /** SIGTERM; resolves with the exit code, or rejects after 20 s. */
  stop(): Promise<number | null>;
  /** The last of what it printed. */
  log(): string;
};

const entry = join(import.meta.dirname, "../../src/main.ts");
const patienceMs = 20_000;
const keptCharacters = 8_000;

/** Starts the server as `npm start` does, with these settings only: what this environment has of `MOLTWIRE_…` is left out. */
export function startServer(settings: Record<string, string>): ServerProcess {
  const inherited = Object.entries(process.env).filter(([name]) => !name.startsWith("MOLTWIRE_"));
  const allocator = { MALLOC_ARENA_MAX: "2", MALLOC_MMAP_THRESHOLD_: "131072" };
  return startProgram(["--max-semi-space-size=16", entry], {
    ...Object.fromEntries(inherited),
    ...allocator,
    ...settings,
  });
}

/** Starts a program under Node that prints `listening on http://…` (or https) once it does. */
export function startProgram(args: readonly string[], env: NodeJS.ProcessEnv = process.env): ServerProcess {
  const child = spawn(process.execPath, args, { env, stdio: ["ignore", "pipe", "pipe"] });
  const ended = once(child, "exit");
  const takeAlong = () => child.kill("SIGKILL");
  process.once("exit", takeAlong);
  ended.then(() => process.off("exit", takeAlong));
  let log = "";
  const listening = Promise.withResolvers<string>();
  const hear = (chunk: Buffer) => {
    log = `${log}${chunk}`.slice(-keptCharacters);
    const [, url] = /listening on (https?:\S+)/.exec(log) ?? [];
    if (url) listening.resolve(url);
  };
  child.stdout.on("data", hear);
  child.stderr.on("data", hear);
  ended.then(() => listening.reject(new Error(`the server ended before it listened:\n${log}`)));
  const ready = within(listening.promise, () => `the server does not listen:\n${log}`);
  ready.catch(() => {}); // who kills it before it listens does not ask
  return {
    pid: child.pid!,
    ready,
    ended,
    kill: () => end(child, "SIGKILL", ended).then(() => {}),
    stop: () => within(end(child, "SIGTERM", ended), () => `the server does not stop:\n${log}`),
    log: () => log,
  };
}

async function end(child: ChildProcess, signal: NodeJS.Signals, ended: Promise<unknown>): Promise<number | null> {
  child.kill(signal);
  await ended;
  return child.exitCode;
}

async function within<T>(promise: Promise<T>, why: () => string): Promise<T> {
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(new Error(`after ${patienceMs} ms ${why()}`)), patienceMs);
  });
  try {
    return await Promise.race([promise, late]);
  } finally {
    clearTimeout(timer);
  }
}

/** A port of the loopback interface that is free now, so that a server can come back to it. */
export async function freePort(): Promise<number> {
  const server = createServer().listen(0, "127.0.0.1");
  await once(server, "listening");
  const address = server.address();
  await new Promise((closed) => server.close(closed));
  if (address === null || typeof address === "string") throw new Error("no free port");
  return address.port;
}
