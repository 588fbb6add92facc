/** What others do of the same, where they are on this machine: Redis with an fsync for each command, and pg-boss. Neither is a dependency. */
import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdirSync } from "node:fs";
import { createRequire } from "node:module";
import { connect } from "node:net";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { pathToFileURL } from "node:url";
import { freePort } from "../crash/server-process.ts";
import type { Case } from "./cases.ts";
import { type Loader, startLoader } from "./loader.ts";
import { counterMark } from "./requests.ts";
import { command } from "./resp.ts";
import type { Target } from "./targets.ts";

const readyMs = 5_000;

/** Redis with `appendfsync always`, in a folder of its own; undefined where there is no redis-server. */
export async function startRedis(folder: string): Promise<Target | undefined> {
  const dir = join(folder, "redis");
  mkdirSync(dir);
  const port = await freePort();
  const durable = ["--save", "", "--appendonly", "yes", "--appendfsync", "always"];
  const args = ["--bind", "127.0.0.1", "--port", String(port), "--dir", dir, "--daemonize", "no", ...durable];
  const child = spawn("redis-server", args, { stdio: "ignore" });
  const ended = once(child, "exit").catch(() => {});
  const takeAlong = () => void child.kill("SIGKILL");
  process.once("exit", takeAlong);
  const kill = async () => {
    child.kill("SIGKILL");
    await ended;
    process.off("exit", takeAlong);
  };
  for (const untilMs = performance.now() + readyMs; performance.now() < untilMs; await sleep(20)) {
    if (child.pid === undefined) return undefined;
    const socket = connect({ port, host: "127.0.0.1" });
    const connected = await once(socket, "connect").then(
      () => true,
      () => false,
    );
    socket.destroy();
    if (connected) return { process: { pid: child.pid, kill }, port };
  }
  await kill();
  throw new Error("redis-server does not listen");
}

const word = `value ${counterMark} ${"x".repeat(80)}`;

/** SET, GET and a queue of two lists (LPUSH, LMOVE to the jobs at work, LREM from there), each as SetEntry, GetEntry and the cycle have them. */
export function redisCases(target: Target, callers: number): Case[] {
  const of = (name: string, what: Case["what"], template: (n: number) => Case["templates"][number]): Case => ({
    name: `${name}, Redis AOF always @${callers}`,
    what,
    callers,
    target,
    templates: Array.from({ length: callers }, (_, n) => template(n)),
    idPrefix: undefined,
    speaks: "redis",
  });
  const remove = command("LREM", "working", "1", word);
  const at = Buffer.from(remove.bytes).indexOf(word);
  const { bytes } = remove;
  return [
    of("SET", "redis-set", (n) => command("SET", `bench-${n}`, word)),
    of("GET", "redis-get", (n) => command("GET", `bench-${n}`)),
    of("queue cycle", "redis-cycle", () => ({
      ...command("LPUSH", "pending", word),
      next: {
        ...command("LMOVE", "pending", "working", "RIGHT", "LEFT"),
        next: { bytes, counterAt: undefined, copies: [{ after: "\r\n", length: word.length, at }] },
      },
    })),
  ];
}

/** Where pg-boss is: among the packages, or in NODE_PATH; undefined where it is not. */
function findBoss(): string | undefined {
  try {
    return import.meta.resolve("pg-boss");
  } catch {
    try {
      return pathToFileURL(createRequire(import.meta.url).resolve("pg-boss")).href;
    } catch {
      return undefined;
    }
  }
}

/** pg-boss on a database of its own; undefined where it is not installed. */
export async function startBoss(openDatabase: () => Promise<string>): Promise<Loader | undefined> {
  const library = findBoss();
  return library === undefined ? undefined : startLoader("boss-load.ts", [library, await openDatabase()]);
}

/** Send, fetch, complete. */
export const bossCase = (loader: Loader, database: string, callers: number): Case => ({
  name: `queue cycle, pg-boss on ${database} @${callers}`,
  what: "boss-cycle",
  callers,
  // It works in the load generator and in PostgreSQL: no one process has the time of it.
  target: { process: { pid: -1, kill: async () => {} }, port: 0 },
  templates: Array.from({ length: callers }, () => ({ bytes: new Uint8Array(0), counterAt: undefined })),
  idPrefix: undefined,
  loader,
});
