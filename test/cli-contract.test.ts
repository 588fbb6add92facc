import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { commandsAt } from "./cli-process.ts";
import { type Org, start, type World } from "./harness.ts";

let world: World;
let org: Org;
let commands: ReturnType<typeof commandsAt>;
let moltwire: ReturnType<typeof commandsAt>["moltwire"];
const folder = mkdtempSync(join(tmpdir(), "moltwire-cli-contract-"));
const schemaFile = join(folder, "input.schema.json");

beforeAll(async () => {
  world = await start();
  org = await world.org();
  commands = commandsAt(world.url, org.adminKey);
  ({ moltwire } = commands);
  writeFileSync(schemaFile, '{"type":"object","required":["text"],"properties":{"text":{"type":"string"}}}');
});

afterAll(async () => {
  await commands.stopAll();
  await world[Symbol.asyncDispose]();
  rmSync(folder, { recursive: true, force: true });
});

describe("moltwire contract", () => {
  test("register takes schemas from files, spans of time and what to fall back to; get shows the same", async () => {
    await org.admin.contracts.registerContract({ contractId: "murmur", version: "1.0.0" });
    const flags = [
      "--input",
      `@${schemaFile}`,
      "--timeout",
      "1m",
      "--repeatable",
      "--retries",
      "2",
      "--backoff",
      "50ms",
    ];
    const registered = await moltwire(["contract", "register", "shout", "1.0.0", ...flags, "--fallback", "murmur@^1"]);
    expect(registered.stderr).toBe("");
    const { contract } = await org.admin.contracts.getContract({ contractId: "shout" });
    expect(contract).toMatchObject({
      capability: "shout",
      timeout: { seconds: 60n, nanos: 0 },
      repeatable: true,
      retryPolicy: { maxRetries: 2, backoff: { seconds: 0n, nanos: 50_000_000 } },
      fallbacks: [{ contractId: "murmur", version: "^1" }],
      inputSchema: { required: ["text"] },
    });
    expect(registered.stdout).toMatch(
      /^shout {2}1\.0\.0 {2}open\n {2}capability {2}shout\n {2}timeout {5}1 min 0 s\n {2}repeatable {2}yes\n/,
    );
    expect(registered.stdout).toMatch(/^ {2}retries {5}2, the first after 50 ms at most/m);
    const again = await moltwire(["contract", "get", "shout", "^1"]);
    expect(again.stdout).toBe(registered.stdout);
  });

  test("check says what would break and which version it would have to be, and ends with 1 if something does", async () => {
    const schema = { type: "object", required: ["text"], properties: { text: { type: "string" } } };
    await org.admin.contracts.registerContract({ contractId: "checked", version: "1.2.0", inputSchema: schema });
    const same = await moltwire(["contract", "check", "checked", "--input", JSON.stringify(schema)]);
    expect(same).toMatchObject({ code: 0, stdout: "✔ compatible  with 1.2.0; nothing changes\n" });
    const stricter = JSON.stringify({ ...schema, required: ["text", "more"] });
    const broken = await moltwire(["contract", "check", "checked", "--input", stricter]);
    expect(broken.code).toBe(1);
    expect(broken.stdout).toMatch(
      /^✘ breaks {2}with 1\.2\.0; the next version should be 2\.0\.0\n {2}breaks {2}input {3}\/required {2}\S/,
    );
  });

  test("deprecate ends a version, which list shows, and one that is not there is refused with those that are", async () => {
    await org.admin.contracts.registerContract({ contractId: "old", version: "1.0.0", description: "As it was" });
    await org.admin.contracts.registerContract({ contractId: "old", version: "2.0.0" });
    const ended = await moltwire(["contract", "deprecate", "old", "1.0.0"]);
    expect(ended.stdout).toMatch(/^old {2}1\.0\.0 {2}deprecated\n/);
    const { stdout } = await moltwire(["contract", "list", "--contract", "old"]);
    expect(stdout.split("\n")).toEqual([
      expect.stringMatching(/^CONTRACT {2}VERSION {2}STATE {7} *AGE {2}TIMEOUT {2}CAPABILITY {2}FOR$/),
      expect.stringMatching(/^old {7}1\.0\.0 {4}deprecated {2} *\d+ s {3}30\.0 s {2}old {9}As it was$/),
      expect.stringMatching(/^old {7}2\.0\.0 {4}open {7} *\d+ s {3}30\.0 s {2}old$/),
      "",
    ]);
    const none = await moltwire(["contract", "get", "old", "^3"]);
    expect(none.code).toBe(4);
    expect(none.stderr).toMatch(
      /^✘ CONTRACT_VERSION_NOT_FOUND .*there are: .*2\.0\.0.*\n {2}field {2}version\n {2}fix {4}\S/,
    );
  });

  test("a schema that is none is refused with its place", async () => {
    const { code, stderr } = await moltwire(["contract", "register", "bad", "1.0.0", "--input", '{"type":"thing"}']);
    expect(code).toBe(4);
    expect(stderr).toMatch(/^✘ INVALID_SCHEMA .*\n {2}field {2}input_schema.*\n {2}fix {4}\S/);
  });
});
