import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { commandsAt } from "./cli-process.ts";
import { start, unique, type World } from "./harness.ts";

let world: World;
let commands: ReturnType<typeof commandsAt>;
let moltwire: ReturnType<typeof commandsAt>["moltwire"];

beforeAll(async () => {
  world = await start();
  commands = commandsAt(world.url, world.operatorKey);
  ({ moltwire } = commands);
});

afterAll(async () => {
  await commands.stopAll();
  await world[Symbol.asyncDispose]();
});

describe("moltwire org", () => {
  test("create, update, get and list an organisation as the operator", async () => {
    const name = unique("acme");
    const made = await moltwire(["org", "create", name, "--display-name", "Acme Ltd", "--json"]);
    const { orgId } = JSON.parse(made.stdout).organization as { orgId: string };
    const updated = await moltwire(["org", "update", orgId, "--display-name", "Acme", "--disable"]);
    expect(updated.stdout).toMatch(
      new RegExp(`^${name}  ${orgId}  disabled\n  for people  Acme\n  created     .*\n  revision    2, of `),
    );
    const [got, listed] = await Promise.all([moltwire(["org", "get", "--org", orgId]), moltwire(["org", "list"])]);
    expect(got.stdout).toBe(updated.stdout);
    expect(listed.stdout).toMatch(new RegExp(`^${orgId}  ${name}  disabled +\\d+ s  Acme$`, "m"));
  });
});

describe("moltwire key", () => {
  test("create gives standard output the secret and nothing else, and says on standard error that it is shown once", async () => {
    const { orgId, admin } = await world.org();
    await admin.agents.registerAgent({ name: "planner" });
    const flags = [
      "--org",
      orgId,
      "--agent",
      "planner",
      "--scope",
      "tasks:*",
      "--allow-ip",
      "127.0.0.0/8",
      "--allow-ip",
      "::1",
      "--expires",
      "30d",
      "--name",
      "for tests",
    ];
    const { code, stdout, stderr } = await moltwire(["key", "create", ...flags]);
    expect(code).toBe(0);
    expect(stdout).toMatch(/^mw_\S+\n$/);
    expect(stderr).toMatch(
      /^key_\w{32} {2}active\n {2}name {7}for tests\n {2}role {7}agent\n {2}agent {6}agt_\w{32}\n {2}scopes {5}tasks:\*\n {2}only from {2}127.0.0.0\/8 ::1\n/,
    );
    expect(stderr).toMatch(/shown this once/);
    expect(stderr).not.toContain(stdout.trim());
    const { apiKeys } = await admin.keys.listApiKeys({});
    const days = (Number(apiKeys.at(-1)!.expireTime!.seconds) * 1_000 - Date.now()) / 86_400_000;
    expect(days).toBeGreaterThan(29.9);
    expect(days).toBeLessThan(30.1);
    await world.as(stdout.trim()).bus.listTasks({});
  });

  test("a creation that is repeated shows no secret, and says what to do if it is lost", async () => {
    const create = ["key", "create", "--name", "twice", "--idempotency-key", unique("twice")];
    const first = await moltwire(create);
    const second = await moltwire(create);
    expect(first.stdout).toMatch(/^mw_/);
    expect(second).toMatchObject({
      code: 0,
      stdout: "",
      stderr: expect.stringMatching(/if that is lost: moltwire key rotate key_/),
    });
  });

  test("rotate makes a key that follows the old one, revoke ends it, and list shows both", async () => {
    const { orgId, admin } = await world.org();
    const { apiKey } = await admin.keys.createApiKey({ name: "aging" });
    const rotated = await moltwire(["key", "rotate", apiKey!.keyId, "--org", orgId, "--overlap", "1h", "--json"]);
    const { secret, apiKey: next } = JSON.parse(rotated.stdout);
    expect(next.rotatedFromKeyId).toBe(apiKey!.keyId);
    await world.as(secret).bus.listTasks({});
    const revoked = await moltwire(["key", "revoke", apiKey!.keyId, "--org", orgId]);
    expect(revoked.stdout).toMatch(new RegExp(`^${apiKey!.keyId}  revoked\n`));
    const got = await moltwire(["key", "get", apiKey!.keyId, "--org", orgId]);
    expect([got.code, got.stdout]).toEqual([0, revoked.stdout]);
    const { stdout } = await moltwire(["key", "list", "--org", orgId]);
    expect(stdout).toMatch(/^KEY {35}STATE {4}ROLE +AGE +USED +NAME\n/);
    expect(stdout).toMatch(new RegExp(`^${apiKey!.keyId}  revoked  org .* aging$`, "m"));
    expect(stdout).toMatch(new RegExp(`^${next.keyId}  active   org .* aging$`, "m"));
    expect(stdout).not.toContain("mw_");
  });
});

describe("moltwire status", () => {
  test("tells the operator counts, and others that the server is healthy", async () => {
    const [operator, nobody] = await Promise.all([
      moltwire(["status"]),
      commandsAt(world.url, "").moltwire(["status", "--json"]),
    ]);
    expect(operator.stdout).toMatch(
      /^Moltwire \d+\.\d+\.\d+ {2}healthy\n {2}time .*UTC\n {2}up .*\n {2}storage {8}sqlite, schema \d+\n/,
    );
    expect(operator.stdout).toMatch(/^ {2}organisations {2}\d+$/m);
    expect(JSON.parse(nobody.stdout)).toEqual({
      ...{ version: expect.any(String), healthy: true },
      ...{ time: expect.any(String), uptime: expect.stringMatching(/^[\d.]+s$/) },
    });
  });
});
