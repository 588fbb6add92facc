/**
 * `npm run test:conformance`: the official suite of Connect, gRPC and gRPC-Web against whole Moltwire servers. Needs Go, which builds the suite once, at a pinned
 * version, into node_modules/.cache/bin; without Go it says so and skips. Arguments go to the suite: `npm run test:conformance -- --run 'Timeouts/**' --trace`.
 * What the suite said is kept in conformance-result.txt, with the totals on its last line. Exits non-zero unless every case passes that is not in known-failing.txt, and every case there fails.
 */
import { type ChildProcess, spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import { createWriteStream, existsSync, mkdirSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { serveSuite } from "./server.ts";

const version = "v1.0.5";
const root = join(import.meta.dirname, "../..");
const folder = join(root, "node_modules/.cache/bin", `connectconformance-${version}`);
const suite = join(folder, "connectconformance");
const installMaxMs = 240_000;
const runMaxMs = 280_000;
/** Where Go puts the program, and no more than two processors for it. */
const env = { ...process.env, GOBIN: folder, GOMAXPROCS: "2" };

async function main(): Promise<number> {
  const go = ["go", "/usr/local/go/bin/go"].find((name) => spawnSync(name, ["version"]).status === 0);
  if (!existsSync(suite)) {
    if (go === undefined) {
      console.log("conformance: skipped, because Go is not on this machine");
      return 0;
    }
    mkdirSync(folder, { recursive: true });
    console.log(`conformance: building the suite ${version}`);
    const install = spawn(go, ["install", `connectrpc.com/conformance/cmd/connectconformance@${version}`], {
      env,
      stdio: ["ignore", "ignore", "inherit"],
      detached: true,
    });
    const code = await ended(install, installMaxMs);
    if (code !== 0) {
      console.log(`conformance ${version}: failed: the suite could not be built (${code})`);
      return 1;
    }
  }
  return await runSuite();
}

async function runSuite(): Promise<number> {
  const here = (name: string) => join(import.meta.dirname, name);
  const files = ["--conf", here("config.yaml"), "--known-failing", `@${here("known-failing.txt")}`];
  const limits = ["--max-servers", "2", "--parallel", "4"];
  const place = mkdtempSync(join(tmpdir(), "moltwire-conformance-"));
  const path = join(place, "servers");
  const servers = await serveSuite(path);
  const server = [process.execPath, here("relay.ts"), path];
  const startMs = performance.now();
  const run = spawn(suite, ["--mode", "server", ...files, ...limits, ...process.argv.slice(2), "--", ...server], {
    env,
    stdio: ["ignore", "pipe", "inherit"],
    detached: true,
  });
  const kept = createWriteStream(join(root, "conformance-result.txt"));
  let tail = "";
  run.stdout.on("data", (chunk: Buffer) => {
    process.stdout.write(chunk);
    kept.write(chunk);
    tail = `${tail}${chunk}`.slice(-2_000);
  });
  const code = await ended(run, runMaxMs);
  await servers.close();
  rmSync(place, { recursive: true });
  const seconds = Math.round((performance.now() - startMs) / 1_000);
  const [, cases] = /Total cases: (\d+)/.exec(tail) ?? [];
  const [totals] = /\d+ passed, \d+ failed.*/.exec(tail) ?? [];
  const wrong =
    code !== 0
      ? `${totals ?? "no totals"} (the suite ended with ${code} after ${seconds} s)`
      : cases === undefined || totals === undefined || cases === "0"
        ? "the suite ran nothing"
        : undefined;
  const told = `conformance ${version}: ${wrong ? `failed: ${wrong}` : `${cases} cases, ${totals}, in ${seconds} s`}`;
  kept.end(`${told}\n`);
  await once(kept, "finish");
  console.log(told);
  return wrong ? 1 : 0;
}

/** The exit code, or why there is none. The process leads a group, which is killed when the time is over or this process goes. */
async function ended(child: ChildProcess, maxMs: number): Promise<number | string> {
  const killAll = () => {
    try {
      if (child.pid !== undefined) process.kill(-child.pid, "SIGKILL");
    } catch {
      // None of the group is left.
    }
  };
  const interrupted = () => process.exit(130);
  process.on("exit", killAll).on("SIGINT", interrupted).on("SIGTERM", interrupted);
  const timer = setTimeout(killAll, maxMs);
  try {
    const [code, signal] = (await once(child, "close")) as [number | null, string | null];
    return code ?? `${signal}, perhaps because it took longer than ${maxMs / 1_000} s`;
  } catch (error) {
    return String(error);
  } finally {
    clearTimeout(timer);
    killAll();
    process.off("exit", killAll).off("SIGINT", interrupted).off("SIGTERM", interrupted);
  }
}

process.exitCode = await main();
