import { randomBytes } from "node:crypto";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { readConfig } from "../src/config.ts";
import { parseMasterKey } from "../src/vault/master-key.ts";
import { commandsAt, commandsIn } from "./cli-process.ts";
import { eventually, start, type World } from "./harness.ts";
import { get, jsonOf, set } from "./memory-fixtures/memory.ts";

const master = parseMasterKey(randomBytes(32).toString("base64"));
let world: World;
let commands: ReturnType<typeof commandsAt>;
let moltwire: ReturnType<typeof commandsAt>["moltwire"];

beforeAll(async () => {
  world = await start("sqlite", { masterKeys: [master] });
  commands = commandsAt(world.url, world.operatorKey);
  ({ moltwire } = commands);
});

afterAll(async () => {
  await commands.stopAll();
  await world[Symbol.asyncDispose]();
});

describe("moltwire vault", () => {
  test("generate-key gives standard output a key that the server takes, and nothing else", async () => {
    const [one, other] = await Promise.all([moltwire(["vault", "generate-key"]), moltwire(["vault", "generate-key"])]);
    expect(one).toMatchObject({ code: 0 });
    expect(one.stdout).toMatch(/^[A-Za-z0-9+/]{43}=\n$/);
    expect(one.stderr).toMatch(/MOLTWIRE_MASTER_KEY/);
    expect(other.stdout).not.toBe(one.stdout);
    const { masterKeys } = readConfig([], { MOLTWIRE_MASTER_KEY: one.stdout.trim() });
    expect(masterKeys.map(({ id }) => id)).toEqual([expect.stringMatching(/^mk_[0-9a-f]{16}$/)]);
  });

  test("status and rotate show the keys and how far old rows are", async () => {
    const { as } = await (await world.org()).agent();
    await set(as, "a", 1);
    const before = await moltwire(["vault", "status"]);
    expect(before.stdout).toMatch(new RegExp(`^encrypted\n  master key  ${master.id}\n`));
    expect(before.stdout).toMatch(/^ {2}data keys {3}1 active, 0 retired, 0 dropped; 0 to wrap, 0 to replace$/m);
    expect(before.stdout).toMatch(/^memory_entry +encrypted +refused$/m);
    const rotated = await moltwire(["vault", "rotate", "--reencrypt"]);
    expect(rotated).toMatchObject({ code: 0, stdout: expect.stringContaining(`rotating under ${master.id}`) });
    await eventually(async () => {
      const { stdout } = await moltwire(["vault", "status", "--json"]);
      const { status } = JSON.parse(stdout) as { status: { dataKeys: { retired?: string } } };
      return Number(status.dataKeys.retired ?? 0) >= 1;
    });
  });

  test("drop refuses an organisation that is not disabled, and says how to go on", async () => {
    const { orgId } = await world.org();
    const refused = await moltwire(["vault", "drop", orgId]);
    expect(refused).toMatchObject({ code: 4, stderr: expect.stringContaining("disable it first") });
    await moltwire(["org", "update", orgId, "--disable"]);
    const dropped = await moltwire(["vault", "drop", orgId]);
    expect(dropped).toMatchObject({ code: 0, stdout: expect.stringMatching(/^dropped; keys it had: \d+\n$/) });
  });
});

describe("the master key in the settings", () => {
  const key = randomBytes(32).toString("base64");
  const other = randomBytes(32).toString("base64");
  test.each([
    [
      "no base64",
      { MOLTWIRE_MASTER_KEY: "hunter2!" },
      /MOLTWIRE_MASTER_KEY \(--master-key\): is not base64: `moltwire vault generate-key`/,
    ],
    ["of 16 bytes", { MOLTWIRE_MASTER_KEY: randomBytes(16).toString("base64") }, /holds 16 bytes and needs 32/],
    ["of one byte, 32 times", { MOLTWIRE_MASTER_KEY: Buffer.alloc(32, 7).toString("base64") }, /is weak: too few/],
    [
      "a sentence",
      { MOLTWIRE_MASTER_KEY: Buffer.from("correct-horse-battery-staple-42!").toString("base64") },
      /is weak: text/,
    ],
    [
      "twice",
      { MOLTWIRE_MASTER_KEY: key, MOLTWIRE_MASTER_KEY_FILE: "package.json" },
      /_FILE \(--master-key-file\): line 1 is not base64/,
    ],
    [
      "in a file that is not there",
      { MOLTWIRE_MASTER_KEY_FILE: "/nowhere/key" },
      /_FILE \(--master-key-file\): cannot be read: ENOENT/,
    ],
    ["a previous one alone", { MOLTWIRE_MASTER_KEY_PREVIOUS: key }, /means nothing without MOLTWIRE_MASTER_KEY/],
    [
      "a previous one that is none",
      { MOLTWIRE_MASTER_KEY: key, MOLTWIRE_MASTER_KEY_PREVIOUS: `${other},x` },
      /_PREVIOUS.*is not base64/,
    ],
  ])("%s is refused with its name, its fault and the fix, and not repeated", (_what, env, message) => {
    const refusal = (() => {
      try {
        return String(readConfig([], env));
      } catch (error) {
        return String(error);
      }
    })();
    expect(refusal).toMatch(message);
    for (const secret of Object.values(env).filter((value) => value.length > 20)) expect(refusal).not.toContain(secret);
  });

  test("a file has the current one on its first line and previous ones below, and opens what these have sealed", async () => {
    const folder = mkdtempSync(join(tmpdir(), "moltwire-keys-"));
    try {
      const file = join(folder, "keys");
      writeFileSync(file, `${key}\n\n  ${other}\n`, { mode: 0o600 });
      const { masterKeys } = readConfig([], { MOLTWIRE_MASTER_KEY_FILE: file });
      expect(masterKeys.map(({ id }) => id)).toEqual([parseMasterKey(key).id, parseMasterKey(other).id]);
      const data = join(folder, "data");
      let agentKey: string;
      {
        await using before = await start("sqlite", { data, masterKeys: [parseMasterKey(other)] });
        const agent = await (await before.org()).agent();
        await set(agent.as, "a", "kept");
        agentKey = agent.key;
      }
      await using after = await start("sqlite", { data, masterKeys });
      expect(jsonOf((await get(after.as(agentKey), "a")).value)).toBe("kept");
    } finally {
      rmSync(folder, { recursive: true });
    }
  });

  test("the server says at its start whether it encrypts, and under which key", async () => {
    const folder = mkdtempSync(join(tmpdir(), "moltwire-start-"));
    const { startServer, stopAll } = commandsIn(folder, "");
    try {
      const plain = await startServer(0, ":memory:");
      await plain.says(/at rest {3}not encrypted/);
      const sealing = await startServer(0, ":memory:", { MOLTWIRE_MASTER_KEY: key });
      await sealing.says(new RegExp(`at rest {3}encrypted under ${parseMasterKey(key).id}`));
    } finally {
      await stopAll();
      rmSync(folder, { recursive: true });
    }
  });

  test("the current one comes first, then the previous ones, each once", () => {
    const env = { MOLTWIRE_MASTER_KEY: key, MOLTWIRE_MASTER_KEY_PREVIOUS: `${other}, ${key}` };
    expect(readConfig([], env).masterKeys.map(({ id }) => id)).toEqual([
      parseMasterKey(key).id,
      parseMasterKey(other).id,
    ]);
  });
});
