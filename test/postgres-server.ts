/**
 * The PostgreSQL server of one test run: the one named by MOLTWIRE_TEST_DATABASE_URL, else a private one made from
 * the programs on this machine, else none, in which case the suites that need one are skipped and the run says so.
 * On it is made once the database that servers begin with: to copy it is much faster than to make it.
 */
import { type ChildProcess, execFile, spawn } from "node:child_process";
import { randomUUID } from "node:crypto";
import { once } from "node:events";
import { chownSync, existsSync, globSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { delimiter, join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import pg from "pg";
import type { TestProject } from "vitest/node";
import { migrate, readMigrations } from "../src/db/migrate.ts";
import { openPostgres } from "../src/db/postgres.ts";

declare module "vitest" {
  export interface ProvidedContext {
    /** A PostgreSQL server whose user may create databases, and the name of one that has the schema; or nothing and why. */
    postgres: { readonly url: string; readonly template: string } | { readonly missing: string };
  }
}

type Identity = { readonly uid?: number; readonly gid?: number };

const readyMs = 20_000;
const settings = {
  listen_addresses: "127.0.0.1",
  unix_socket_directories: "",
  fsync: "off",
  synchronous_commit: "off",
  full_page_writes: "off",
  shared_buffers: "32MB",
  max_connections: "300",
  // Or the test of a deadlock waits for a second.
  deadlock_timeout: "50ms",
};

/**
 * Runs the server until our end of the pipe closes, which it does however the run ends, then removes its folder.
 * Its own session, so that Ctrl-C in a terminal reaches it only through that pipe.
 */
const keeper = `
  folder=$1; shift
  exec 3<&0
  "$@" </dev/null 3<&- & server=$!
  { cat <&3 >/dev/null; kill -QUIT $server; } 2>/dev/null &
  wait $server
  rm -rf "$folder"`;

type Server = { readonly url: string; readonly stop: () => Promise<void> };

export default async function setup(project: TestProject): Promise<() => Promise<void>> {
  const server = await findServer();
  if ("missing" in server) {
    console.warn(`PostgreSQL suites are skipped: ${server.missing}`);
    project.provide("postgres", server);
    return async () => {};
  }
  const { url, stop } = server;
  const template = `template_${randomUUID().replaceAll("-", "")}`;
  const end = async () => {
    try {
      await runOn(url, `drop database if exists ${template}`);
    } finally {
      await stop();
    }
  };
  try {
    await makeTemplate(url, template);
  } catch (error) {
    await end();
    throw error;
  }
  project.provide("postgres", { url, template });
  return end;
}

async function findServer(): Promise<Server | { readonly missing: string }> {
  const given = process.env.MOLTWIRE_TEST_DATABASE_URL;
  if (given) return { url: given, stop: async () => {} };
  try {
    return await startServer();
  } catch (error) {
    return { missing: error instanceof Error ? error.message : String(error) };
  }
}

/** Makes a database with the schema of the server. */
async function makeTemplate(url: string, name: string): Promise<void> {
  await runOn(url, `create database ${name}`);
  const db = await openPostgres(Object.assign(new URL(url), { pathname: `/${name}` }).href);
  try {
    const folder = fileURLToPath(new URL("../src/db/migrations", import.meta.url));
    await migrate(db, readMigrations(folder, "postgres"));
  } finally {
    await db.close();
  }
}

async function runOn(url: string, text: string): Promise<void> {
  const client = new pg.Client({ connectionString: url });
  await client.connect();
  await client.query(text);
  await client.end();
}

async function startServer(): Promise<Server> {
  const bin = findPrograms();
  const identity = unprivileged();
  const folder = mkdtempSync(join(tmpdir(), "moltwire-postgres-"));
  try {
    if (identity.uid !== undefined) chownSync(folder, identity.uid, identity.gid ?? identity.uid);
    const data = join(folder, "data");
    const how = ["-A", "trust", "-U", "postgres", "-E", "UTF8", "--locale=C", "--no-sync", "-D", data];
    await promisify(execFile)(join(bin, "initdb"), how, { ...identity, cwd: folder, timeout: 60_000 });
    const port = await freePort();
    const options = Object.entries({ ...settings, port }).flatMap(([name, value]) => ["-c", `${name}=${value}`]);
    const args = ["-c", keeper, "sh", folder, join(bin, "postgres"), "-D", data, ...options];
    const stdio = ["pipe", "ignore", "pipe"] as const;
    const child = spawn("/bin/sh", args, { ...identity, cwd: "/", stdio: [...stdio], detached: true });
    const url = `postgres://postgres@127.0.0.1:${port}/postgres`;
    await ready(child, url);
    return { url, stop: () => stop(child) };
  } catch (error) {
    rmSync(folder, { recursive: true, force: true });
    throw error;
  }
}

/** The folder of initdb and postgres; of several installed versions the newest. */
function findPrograms(): string {
  const version = (folder: string) => Number(/postgresql\/(\d+)/.exec(folder)?.[1] ?? 0);
  const installed = globSync("/usr/lib/postgresql/*/bin").sort((a, b) => version(b) - version(a));
  const folders = [...installed, "/usr/local/bin", ...(process.env.PATH ?? "").split(delimiter)];
  const bin = folders.find((folder) => ["initdb", "postgres"].every((name) => existsSync(join(folder, name))));
  if (!bin) throw new Error("no initdb and postgres on this machine, and MOLTWIRE_TEST_DATABASE_URL is not set");
  return bin;
}

/** PostgreSQL refuses to run as root. */
function unprivileged(): Identity {
  if (process.getuid?.() !== 0) return {};
  for (const name of ["postgres", "nobody"]) {
    const entry = new RegExp(`^${name}:[^:]*:(\\d+):(\\d+):`, "m").exec(readFileSync("/etc/passwd", "utf8"));
    if (entry) return { uid: Number(entry[1]), gid: Number(entry[2]) };
  }
  throw new Error("running as root, and there is no user postgres or nobody to run it as");
}

async function freePort(): Promise<number> {
  const server = createServer().listen(0, "127.0.0.1");
  await once(server, "listening");
  const address = server.address();
  await new Promise((closed) => server.close(closed));
  if (address === null || typeof address === "string") throw new Error("no free port");
  return address.port;
}

async function ready(child: ChildProcess, url: string): Promise<void> {
  let log = "";
  child.stderr?.on("data", (chunk: Buffer) => {
    log = `${log}${chunk}`.slice(-2_000);
  });
  const deadline = Date.now() + readyMs;
  while (child.exitCode === null && Date.now() < deadline) {
    const client = new pg.Client({ connectionString: url, connectionTimeoutMillis: 2_000 });
    client.on("error", () => {});
    try {
      await client.connect();
      return;
    } catch {
      await sleep(50);
    } finally {
      await client.end().catch(() => {});
    }
  }
  await stop(child);
  throw new Error(`the private server did not start: ${log.trim().split("\n").at(-1) ?? "no reason given"}`);
}

async function stop(child: ChildProcess): Promise<void> {
  child.stdin?.end();
  if (child.exitCode === null && child.signalCode === null) await once(child, "exit");
}
