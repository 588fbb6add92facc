import { execFile, spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
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
    const [define] = /^call\(\).*$/m.exec(text)!;
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
const blocksOf = (file: string, language: string): string[] =>
  [...read(file).matchAll(/^```(\w+)\n(.*?)^```/gms)].flatMap(([, kind, body]) => (kind === language ? [body!] : []));

const pages = readdirSync(new URL("../docs/how-to", import.meta.url)).filter((name) => name !== "README.md");

describe("docs", () => {
  const written = ["docs/agents.md", "docs/concepts.md", "docs/operations.md", "docs/security.md", "CHANGELOG.md"];
  const clients = ["python", "go", "templates", "conformance"].map((name) => `clients/${name}/README.md`);
  const all = [...written, ...clients, "docs/how-to/README.md", ...pages.map((name) => `docs/how-to/${name}`)];
  const words = blocksOf("docs/how-to/README.md", "sh")[0]!;
  const commands = all.filter((file) => file !== "docs/how-to/README.md" && blocksOf(file, "sh").length > 0);

  test.each(commands)(
    "%s shows calls that are done as they stand",
    async (file) => {
      const shown = await shell(["set -eu", words, ...blocksOf(file, "sh")].join("\n"), world.url, world.operatorKey);
      expect(shown).not.toContain('"code":"');
      expect(shown.length).toBeGreaterThan(0);
    },
    maxMs,
  );

  test(
    "the agent in TypeScript does its task, and ends on SIGTERM",
    async () => {
      const org = await world.org();
      const contractId = await contract(org);
      const { key } = await puller(org, contractId);
      const folder = mkdtempSync(join(tmpdir(), "ten-lines-"));
      const client = new URL("../clients/typescript/index.ts", import.meta.url).href;
      writeFileSync(
        join(folder, "agent.mts"),
        blocksOf("docs/agents.md", "ts")[0]!.replace("@moltwire/client", client),
      );
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
