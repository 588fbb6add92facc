import { execFile, spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync, globSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { Role } from "../gen/moltwire/api/v1/access_pb.ts";
import { ErrorReason } from "../gen/moltwire/api/v1/error_reason_pb.ts";
import { settings } from "../src/config.ts";
import { accessOf, methodName } from "../src/rpc/access.ts";
import { services } from "../src/services.ts";
import { contract, json, value } from "./bus-fixtures/bus.ts";
import { puller } from "./bus-fixtures/instance.ts";
import { blocksOf } from "./docs-fixtures/pages.ts";
import { start, type World } from "./harness.ts";

const read = (file: string): string => readFileSync(new URL(`../${file}`, import.meta.url), "utf8");
const methods = new Map(services.flatMap((service) => service.methods).map((method) => [methodName(method), method]));

/** A machine does other things too. */
const maxMs = 120_000;

/** An answer, as far as it may tell of a failure. */
type Failure = { code?: string; message?: string; details?: { debug?: { reason?: string } }[] };

let world: World;
beforeAll(async () => {
  world = await start("sqlite", { registration: "open" });
});
afterAll(async () => await world[Symbol.asyncDispose]());

describe("docs/reference", () => {
  test("has every reason, method and setting that there is", () => {
    const errors = read("docs/reference/errors.md");
    for (const name of Object.keys(ErrorReason).filter((name) => name !== "UNSPECIFIED"))
      expect(errors).toContain(`| \`${name}\` |`);
    const access = read("docs/reference/access.md");
    expect(access.match(/^\| `\w+` \| (PUBLIC|AGENT|ORG|OPERATOR) \|/gm)).toHaveLength(methods.size);
    for (const { typeName } of services) expect(access).toContain(`## ${typeName}\n`);
    const configuration = read("docs/reference/configuration.md");
    for (const [name, { flag, form }] of Object.entries(settings))
      expect(configuration).toContain(`| \`${name}\` | \`--${flag} ${form}\` |`);
  });
});

describe("docs/migrating.md", () => {
  const text = read("docs/migrating.md");
  const rows = [...text.matchAll(/^\| `([^`]+)` \| (?:`([^`]+)`|—) \| (.*) \|$/gm)].map(([, was, is, call]) => ({
    was: was!,
    is: is && `moltwire.${is}`,
    call: call!,
  }));
  const line = ({ call }: { call: string }) => /`(call [^`]+)`/.exec(call)?.[1];
  let keys: Partial<Record<Role, string>>;
  beforeAll(async () => {
    const { adminKey, agent } = await world.org();
    keys = { [Role.AGENT]: (await agent()).key, [Role.ORG]: adminKey };
  });

  test("has a row for every endpoint of both, and none for anything else", () => {
    const endpoints = read("test/docs-fixtures/seed-endpoints.txt")
      .split("\n")
      .filter((one) => one !== "" && !one.startsWith("#"));
    expect(endpoints.length).toBeGreaterThan(100);
    expect(rows.map(({ was }) => was)).toEqual(endpoints);
  });

  test("names methods that the server has, and says of exactly the others that they are not built yet", () => {
    for (const { was, is, call } of rows) {
      if (!is) continue;
      // Take the words away where this fails: the call after them is then tried below.
      expect([was, is, call.startsWith("not built yet: ")]).toEqual([was, is, !methods.has(is)]);
    }
    const names = new Set([...methods.values()].map(({ name }) => name));
    // What MoltMesh calls its errors is in such quotes too.
    const [body] = text.split("\nIts errors are reasons here");
    for (const [, name] of body!.matchAll(/`([A-Z][a-z]\w+)`/g)) expect(names, name).toContain(name);
  });

  test("shows calls that the server takes as they stand", async () => {
    const [block] = blocksIn("docs/migrating.md", "sh");
    // The shell is given another server and a key.
    expect(block).toMatch(/^export MOLTWIRE_URL=http:\/\/127\.0\.0\.1:6658 MOLTWIRE_API_KEY=mw_…\ncall\(\) \{.*\}\n$/);
    const [, define] = block!.split("\n");
    const built = rows.filter(({ call }) => !call.startsWith("not built yet"));
    const shown = built.flatMap((row) => (row.is && line(row) ? [{ ...row, line: line(row)! }] : []));
    expect(shown.length).toBeGreaterThan(70);
    for (const { is, line } of shown) expect(line.startsWith(`call ${is} '`), line).toBe(true);
    for (const { is, line } of shown) {
      const { role } = accessOf(methods.get(is!)!);
      const answer = await shell(`${define}\n${line}`, world.url, keys[role] ?? world.operatorKey);
      const { code, message, details } = JSON.parse(answer) as Failure;
      const reason = code && details?.find(({ debug }) => debug?.reason)?.debug?.reason;
      expect([line, reason ?? "done", message]).toEqual([
        line,
        expect.not.stringMatching(/INVALID_REQUEST|MALFORMED|UNIMPLEMENTED|INTERNAL|KEY_|ROLE_|SCOPE_/),
        code ? expect.anything() : message,
      ]);
    }
  });
});

/** The blocks of a page in a language. */
const blocksIn = (file: string, language: string): string[] =>
  blocksOf(file).flatMap((block) => (block.language === language ? [block.body] : []));

const pages = readdirSync(new URL("../docs/how-to", import.meta.url)).filter((name) => name !== "README.md");

/** Blocks that no test of this file runs as they stand: which one does, or why none can. */
const elsewhere: Readonly<Record<string, string>> = {
  "docs/how-to/README.md sh": "here, before the blocks of every other page",
  "docs/agents.md ts": "here",
  "docs/agents.md python": "test/long/clients.test.ts",
  "docs/agents.md go": "test/long/clients.test.ts",
  "docs/migrating.md sh": "here, with each call of its tables",
  "docs/concepts.md mermaid": "a picture",
  "docs/operations.md plain":
    "needs a PostgreSQL of the reader's: test/migrate.test.ts migrates from and to one of its own",
  "docs/quickstart.md sh": "test/quickstart.test.ts, and from packages test/long/package.test.ts",
  "docs/quickstart.md ts": "the same",
  "docs/quickstart.md js": "the same",
  "docs/quickstart.md python": "test/long/package.test.ts",
  "docs/quickstart.md go": "test/long/package.test.ts",
  "clients/http/README.md sh": "test/http-files.test.ts runs each of its files",
  "clients/typescript/README.md ts": "here",
  "clients/python/README.md python": "a fragment: the contract and the entry that it speaks of are the reader's",
  "clients/go/README.md go": "a fragment, like that",
  "clients/templates/README.md plain": "needs plugins of other languages; its README says what was tried",
  "deploy/README.md plain":
    "needs Docker: test/long/package.test.ts runs the steps of the Dockerfile, test/long/nginx.test.ts the settings of nginx",
  "README.md js":
    "test/readme.test.ts runs the adapter; an agent by HTTP is that of the quickstart; the bridge of a payment provider needs one",
  "README.md ts": "here",
  "README.md plain":
    "test/cli-readme.test.ts the screens of commands, test/demo.test.ts the demo; the others are starts of servers and of tests, and a map",
  "CONTRIBUTING.md plain": "the commands of .ci/run",
  "src/ops/AUDIT.md plain": "test/cli-audit.test.ts has its commands; a row of an export",
  "src/ops/METRICS.md ts": "a fragment of the server",
  "src/ops/METRICS.md yaml": "where Prometheus asks",
};

describe("docs", () => {
  const written = ["docs/agents.md", "docs/concepts.md", "docs/operations.md", "docs/security.md", "CHANGELOG.md"];
  const clients = ["python", "go", "templates", "conformance"].map((name) => `clients/${name}/README.md`);
  const all = [...written, ...clients, "docs/how-to/README.md", ...pages.map((name) => `docs/how-to/${name}`)];
  const words = blocksIn("docs/how-to/README.md", "sh")[0]!;
  const commands = all.filter((file) => file !== "docs/how-to/README.md" && blocksIn(file, "sh").length > 0);

  test("every block of a page is run by a test, or cannot be run for a reason that stands here", () => {
    const root = new URL("..", import.meta.url);
    const found = globSync(["*.md", "{docs,deploy,clients,src}/**/*.md"], { cwd: root })
      .filter((file) => !/node_modules|\/dist\//.test(file))
      .flatMap((file) => blocksOf(file).map(({ language }) => `${file} ${language || "plain"}`));
    const run = new Map([...commands.map((file) => [`${file} sh`, "above"] as const), ...Object.entries(elsewhere)]);
    for (const block of new Set(found)) expect([...run.keys()], `${block} is run by no test`).toContain(block);
    for (const block of run.keys()) expect(found).toContain(block);
  });

  test.each(commands)(
    "%s shows calls that are done as they stand",
    async (file) => {
      const shown = await shell(["set -eu", words, ...blocksIn(file, "sh")].join("\n"), world.url, world.operatorKey);
      expect(shown).not.toContain('"code":"');
      expect(shown.length).toBeGreaterThan(0);
    },
    maxMs,
  );

  test.each(["docs/agents.md", "clients/typescript/README.md", "README.md"])(
    "the agent in TypeScript of %s does its task, and ends on SIGTERM",
    async (file) => {
      const org = await world.org();
      const contractId = await contract(org);
      const { key } = await puller(org, contractId);
      const folder = mkdtempSync(join(tmpdir(), "ten-lines-"));
      const client = new URL("../clients/typescript/index.ts", import.meta.url).href;
      writeFileSync(join(folder, "agent.mts"), blocksIn(file, "ts")[0]!.replace("@moltwire/client", client));
      const env = { PATH: process.env.PATH, MOLTWIRE_URL: world.url, MOLTWIRE_API_KEY: key };
      const child = spawn(process.execPath, [join(folder, "agent.mts")], { env, stdio: "inherit" });
      const ended = once(child, "exit");
      try {
        const { task } = await org.admin.bus.submitTask({ contractId, input: value({ text: "hello" }) });
        expect(json(task?.output)).toEqual({ shouted: "HELLO" });
        child.kill("SIGTERM");
        expect(await ended).toEqual([0, null]);
      } finally {
        child.kill("SIGKILL");
        await ended;
        rmSync(folder, { recursive: true });
      }
    },
    maxMs,
  );

  test.each(all)("%s names methods and files that there are", (file) => {
    const text = read(file);
    const served = new Set([...methods.values()].map(({ parent, name }) => `${parent.name}/${name}`));
    for (const [, name] of text.matchAll(/\b(\w+Service\/\w+)/g)) expect(served, name).toContain(name);
    const folder = join(import.meta.dirname, "..", dirname(file));
    for (const [, target] of text.matchAll(/\]\((?!https?:)([^)#]+)\)/g))
      expect([target, existsSync(join(folder, target!))]).toEqual([target, true]);
  });

  test("how-to lists all its pages", () => {
    const listed = [...read("docs/how-to/README.md").matchAll(/\]\((\w+\.md)\)/g)].map(([, name]) => name!);
    expect(listed.toSorted()).toEqual(pages.toSorted());
  });
});

/** Runs a script as a shell does, and answers what it prints. */
async function shell(script: string, url: string, key: string): Promise<string> {
  const { promise, resolve, reject } = Promise.withResolvers<string>();
  const env = { PATH: process.env.PATH, MOLTWIRE_URL: url, MOLTWIRE_API_KEY: key };
  execFile("sh", ["-c", script], { env, timeout: maxMs }, (error, stdout, stderr) =>
    error ? reject(new Error(`${error.message}\n${stdout}\n${stderr}`)) : resolve(stdout),
  );
  return await promise;
}
