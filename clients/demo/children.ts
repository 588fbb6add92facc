/** The demo's processes: started with the demo, ended with it. */
import { type ChildProcess, spawn } from "node:child_process";
import { createInterface } from "node:readline";
import { setTimeout as delay } from "node:timers/promises";

/** A process that is up. */
export type Child = {
  readonly name: string;
  readonly pid: number;
  /** The line by which it said that it is ready. */
  readonly ready: RegExpExecArray;
};

/** How to start a process, and by which line of its standard error it says that it is ready. */
export type Start = {
  readonly name: string;
  /** Node's arguments: the program and its own. */
  readonly args: readonly string[];
  readonly env: NodeJS.ProcessEnv;
  readonly ready: RegExp;
};

const maxStartMs = 20_000;
const maxStopMs = 5_000;
const keptLines = 15;

type Process = {
  readonly name: string;
  readonly process: ChildProcess;
  readonly lines: string[];
  readonly ended: Promise<void>;
};

/**
 * Starts processes and ends them, last started first. Each is a process group of its own, so that a Ctrl-C comes to the demo alone
 * and they end in order; each has a pipe as its standard input, by whose end it can tell that the demo is gone.
 */
export function children() {
  const all: Process[] = [];
  // The last resort, when the demo itself fails in a way that it does not know of.
  const killAll = () => {
    for (const { process } of all) if (isUp(process)) process.kill("SIGKILL");
  };
  process.once("exit", killAll);
  let stopping = false;

  async function start({ name, args, env, ready }: Start): Promise<Child> {
    if (stopping) throw new Error("the demo is ending");
    const child = spawn(process.execPath, args, { env, stdio: ["pipe", "pipe", "pipe"], detached: true });
    const { promise: ended, resolve: end } = Promise.withResolvers<void>();
    const lines: string[] = [];
    const entry: Process = { name, process: child, lines, ended };
    all.push(entry);
    child.stdin!.on("error", () => {});
    child.once("error", (error) => {
      lines.push(error.message);
      end();
    });
    child.once("close", () => end());
    const keep = (line: string) => {
      lines.push(line);
      if (lines.length > keptLines) lines.shift();
    };
    createInterface({ input: child.stdout! }).on("line", keep);
    const { promise: isReady, resolve: sayReady } = Promise.withResolvers<RegExpExecArray>();
    createInterface({ input: child.stderr! }).on("line", (line) => {
      keep(line);
      const match = ready.exec(line);
      if (match) sayReady(match);
    });
    const timeout = new AbortController();
    const first = await Promise.race([
      isReady,
      ended.then(() => undefined),
      delay(maxStartMs, undefined, { signal: timeout.signal }).catch(() => undefined),
    ]);
    timeout.abort();
    if (first) return { name, pid: child.pid!, ready: first };
    const why = isUp(child) ? `is not ready after ${maxStartMs / 1_000} s` : `ended with ${exitOf(child)}`;
    throw new Error(`the ${name} ${why}${lines.length > 0 ? `; it said: ${lines.slice(-3).join(" ")}` : ""}`);
  }

  async function stop(): Promise<void> {
    stopping = true;
    for (const { process: child, ended } of all.toReversed()) {
      if (isUp(child)) child.kill("SIGTERM");
      const timeout = new AbortController();
      await Promise.race([ended, delay(maxStopMs, undefined, { signal: timeout.signal }).catch(() => {})]);
      timeout.abort();
      if (isUp(child)) child.kill("SIGKILL");
      await ended;
    }
    process.off("exit", killAll);
  }

  return {
    start,
    /** Ends all: SIGTERM, and after 5 s SIGKILL. */
    stop,
    /** Those that ended by themselves, and how, such as "SIGKILL" or "exit code 1". */
    fallen: (): { readonly name: string; readonly how: string }[] =>
      all.filter(({ process }) => !isUp(process)).map(({ name, process }) => ({ name, how: exitOf(process) })),
    /** Waits until one of them ends. */
    anyEnd: (): Promise<void> => Promise.race(all.map(({ ended }) => ended)),
    /** What a process said last. */
    lastLines: (name: string): readonly string[] => all.find((each) => each.name === name)?.lines ?? [],
  };
}

const isUp = ({ pid, exitCode, signalCode }: ChildProcess): boolean =>
  pid !== undefined && exitCode === null && signalCode === null;

const exitOf = ({ exitCode, signalCode, pid }: ChildProcess): string =>
  pid === undefined ? "no start" : (signalCode ?? `exit code ${exitCode}`);
