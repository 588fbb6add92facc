import { execFile, execFileSync, type SpawnOptions, spawn } from "node:child_process";
import { once } from "node:events";
import { chmodSync, chownSync, cpSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { text } from "node:stream/consumers";
import { promisify } from "node:util";
import { afterAll, beforeAll, expect, test } from "vitest";
import { packAll } from "../../scripts/package/all.ts";
import { runSteps } from "../../scripts/package/dockerfile-steps.ts";
import { cleanEnv } from "../cli-process.ts";
import { first, quickstart } from "../docs-fixtures/quickstart.ts";

const root = join(import.meta.dirname, "../..");
const folder = mkdtempSync(join(tmpdir(), "moltwire-package-"));
const env = { ...cleanEnv(), XDG_CONFIG_HOME: folder };
const maxMs = 900_000;
const running: { kill(): void }[] = [];
afterAll(() => {
  for (const each of running) each.kill();
  rmSync(folder, { recursive: true, force: true });
}, maxMs);

/** Starts a process of its own group, and waits for a line of its standard error. */
async function begin(command: string, args: readonly string[], options: SpawnOptions, ready: RegExp) {
  const child = spawn(command, args, { ...options, stdio: ["ignore", "pipe", "pipe"], detached: true });
  const end = (signal: NodeJS.Signals) => {
    if (child.exitCode === null && child.signalCode === null) process.kill(-child.pid!, signal);
  };
  running.push({ kill: () => end("SIGKILL") });
  const closed = once(child, "close");
  const said = { all: "" };
  const isReady = new Promise<RegExpExecArray>((resolve) => {
    for (const stream of [child.stdout!, child.stderr!])
      stream.setEncoding("utf8").on("data", (chunk: string) => {
        said.all += chunk;
        const match = ready.exec(said.all);
        if (match) resolve(match);
      });
  });
  const match = await Promise.race([isReady, closed.then(() => undefined)]);
  if (!match) throw new Error(`${command} ended without ${ready}:\n${said.all}`);
  const stop = async () => {
    end("SIGTERM");
    return await closed;
  };
  return { match, end: stop };
}

/** What `npm run packages` makes, and what it had no tools for. */
const packages = join(folder, "packages");
const tarball = join(packages, "moltwire-0.1.0.tgz");
let left: ReadonlyMap<string, string>;
beforeAll(async () => {
  left = await packAll(packages);
  // The user of the container reads what is in the folders.
  chmodSync(folder, 0o755);
}, maxMs);

test("docs/quickstart.md works from an empty folder with the packages and nothing else, in every language", {
  timeout: maxMs,
}, async () => {
  for (const why of left.values()) console.warn(`A part of the quickstart is not tried: ${why}`);
  const empty = join(folder, "five-minutes");
  cpSync(packages, empty, { recursive: true });
  const options = { cwd: empty, env };
  const began = performance.now();
  // The two lines of the first block, in the first terminal; its second terminal has the rest.
  const [install, dev, ...more] = first.body.split("\n");
  expect([install, dev, more]).toEqual([expect.stringMatching(/^npm install /), "npx moltwire dev", [""]]);
  execFileSync("sh", ["-c", install!], { ...options, stdio: ["ignore", "ignore", "inherit"] });
  const server = await begin("npx", ["moltwire", "dev", "--port", "0"], options, /MOLTWIRE_URL=(\S+)\n.*=(mw_\S+)/);
  const [, url, key] = server.match as unknown as [string, string, string];
  const without = [...left.keys()];
  const shown = await quickstart({ folder: empty, url, key, env, without });
  expect(shown).toContain('"greeting": "Hello, Ada!"');
  const languages = ["TypeScript", "Python", "Go"].filter((name) => !left.has(name.toLowerCase()));
  expect([...shown.matchAll(/"by": "(\w+)"/g)].map(([, by]) => by)).toEqual(languages);
  expect(shown.match(/"shouted": "HELLO"/g)).toHaveLength(languages.length);
  expect(shown).toContain('"whispered":"from anywhere"');
  await server.end();
  console.log(
    `the quickstart in ${languages.join(", ")}: ${Math.round((performance.now() - began) / 1000)} s with its downloads`,
  );
});

test("the packed package, installed in an empty folder, has the command, the server, the console and the client", {
  timeout: maxMs,
}, async () => {
  const listed = execFileSync("tar", ["-tzf", tarball]).toString().trim().split("\n");
  const paths = listed.map((path) => path.replace(/^package\//, ""));
  expect(paths).toEqual(
    expect.arrayContaining(["dist/src/main.js", "deploy/Dockerfile", "deploy/.env.example", "LICENSE"]),
  );
  expect(paths.filter((path) => /(^|\/)test\/|\.test\.|node_modules|(?<!\.d)\.ts$|\.env$/.test(path))).toEqual([]);

  const empty = join(folder, "empty");
  mkdirSync(empty);
  const install = ["install", "--prefer-offline", "--no-audit", "--no-fund", tarball];
  execFileSync("npm", install, { cwd: empty, env, stdio: "ignore" });
  const options = { cwd: empty, env };
  const dev = await begin("npx", ["moltwire", "dev", "--port", "0", "--json"], options, /^(\{"url".*\})\n/m);
  const { url, orgKey } = JSON.parse(dev.match[1]!) as { url: string; orgKey: string };
  const asAdmin = { ...env, MOLTWIRE_URL: url, MOLTWIRE_API_KEY: orgKey };
  const moltwire = async (...args: string[]) =>
    (await promisify(execFile)("npx", ["moltwire", ...args], { cwd: empty, env: asAdmin })).stdout;
  expect(await (await fetch(`${url}/`, { headers: { accept: "text/html" } })).text()).toContain("<script");
  expect(JSON.parse(await moltwire("submit", "greet", '{"name":"Ada"}'))).toEqual({ greeting: "Hello, Ada!" });
  expect(await moltwire("help", "memory", "set")).toContain("PAYLOAD_TOO_LARGE");

  await moltwire("init", "my-agent");
  const agent = await begin(
    "node",
    [join(empty, "my-agent/agent.ts")],
    { cwd: empty, env: asAdmin },
    /waits for tasks/,
  );
  expect(JSON.parse(await moltwire("submit", "my-agent/greet", '{"name":"Grace"}'))).toEqual({
    greeting: "Hello, Grace!",
  });
  await agent.end();
  await dev.end();
  expect(readdirSync(empty).toSorted()).toEqual(["my-agent", "node_modules", "package-lock.json", "package.json"]);
});

test("the steps of the Dockerfile make a server that, as a user who may write to its data folder alone, is healthy and stops on SIGTERM", {
  timeout: maxMs,
}, async () => {
  const steps = join(folder, "steps");
  const image = runSteps(steps, () => {});
  const before = readdirSync(image.folder);
  const [command, ...args] = image.command as [string, ...string[]];
  // Where this is root, as the container's user; what the steps made is root's, and so read-only.
  const user = process.getuid!() === 0 ? { uid: 65_534, gid: 65_534 } : {};
  if (user.uid) chownSync(image.env.MOLTWIRE_DATA!, user.uid, user.gid);
  const given = { ...env, ...image.env, MOLTWIRE_PORT: "0", MOLTWIRE_HOST: "127.0.0.1" };
  const options = { cwd: image.folder, env: given, ...user };
  const server = await begin(command, args, options, /listening on (http:\S+)/);
  const port = new URL(server.match[1]!).port;
  const check = (of: string) => {
    const [program, ...rest] = image.healthcheck as [string, ...string[]];
    const child = spawn(program, rest, {
      cwd: image.folder,
      env: { ...env, MOLTWIRE_PORT: of },
      ...user,
      stdio: ["ignore", "ignore", "pipe"],
    });
    return Promise.all([once(child, "close").then(([code]) => code), text(child.stderr!)]);
  };
  expect(await check(port)).toEqual([0, ""]);
  expect((await server.end())[0]).toBe(0);
  expect((await check(port))[0]).toBe(1);
  expect(readdirSync(image.folder)).toEqual(before);
  expect(readdirSync(image.env.MOLTWIRE_DATA!).length).toBeGreaterThan(0);
  expect(readFileSync(join(root, "deploy/Dockerfile"), "utf8")).toContain("\nUSER node\n");
});
