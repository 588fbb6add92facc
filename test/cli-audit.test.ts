import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { commandsAt } from "./cli-process.ts";
import { eventually, start, unique, type World } from "./harness.ts";

const folder = mkdtempSync(join(tmpdir(), "moltwire-cli-audit-"));
const newPath = () => join(folder, unique("export"));
let world: World;
let orgId: string;
let commands: ReturnType<typeof commandsAt>;
let moltwire: ReturnType<typeof commandsAt>["moltwire"];

/** The head as `moltwire audit head` prints it, once all is chained. */
const headOf = async (): Promise<string> => {
  const head = async () => (await moltwire(["audit", "head", "--org", orgId])).stdout;
  const told = await eventually(async () => {
    const stdout = await head();
    return !stdout.includes("to chain") && stdout;
  });
  return told.split("\n")[0]!;
};

beforeAll(async () => {
  world = await start("sqlite");
  const org = await world.org();
  ({ orgId } = org);
  for (const name of ["a", "b", "c"]) await org.admin.keys.createApiKey({ name });
  commands = commandsAt(world.url, world.operatorKey);
  ({ moltwire } = commands);
});

afterAll(async () => {
  await commands.stopAll();
  await world[Symbol.asyncDispose]();
  rmSync(folder, { recursive: true });
});

describe("moltwire audit", () => {
  test("head, export and verify: an export verifies without a server, against a head that was noted", async () => {
    const head = await headOf();
    expect(head).toMatch(/^4:[0-9a-f]{64}$/);
    const path = newPath();
    const written = await moltwire(["audit", "export", path, "--org", orgId]);
    expect(written).toMatchObject({ code: 0, stderr: "" });
    expect(written.stdout).toMatch(/^ {2}rows +4: 1 to 4$/m);
    const noServer = commandsAt("http://127.0.0.1:1", "");
    const verified = await noServer.moltwire(["audit", "verify", path, "--head", head]);
    expect(verified).toEqual({
      code: 0,
      signal: null,
      stdout: `✔ unbroken  4 rows: 1 to 4\n  organisation  ${orgId}\n  head          ${head}\n`,
      stderr: "",
    });
    const alone = await noServer.moltwire(["audit", "verify", path]);
    expect(alone).toMatchObject({ code: 0, stderr: expect.stringContaining("--head NUMBER:HASH") });
    const json = await noServer.moltwire(["audit", "verify", path, "--json"]);
    expect(JSON.parse(json.stdout)).toEqual({
      ...{ orgId, afterNumber: 0, afterHash: "0".repeat(64) },
      ...{ headNumber: 4, headHash: head.slice(2) },
    });
    expect((await moltwire(["audit", "export", path, "--org", orgId])).code).toBe(2);
    expect((await moltwire(["audit", "export", path, "--org", orgId, "--force"])).code).toBe(0);
  });

  test("verify ends with 1 and names the row, in words and as JSON", async () => {
    const head = await headOf();
    const path = newPath();
    await moltwire(["audit", "export", path, "--org", orgId]);
    const lines = readFileSync(path, "utf8").split("\n");
    const verify = async (changed: readonly string[], ...more: string[]) => {
      const other = newPath();
      writeFileSync(other, changed.join("\n"));
      const { code, stdout, stderr } = await moltwire(["audit", "verify", other, ...more]);
      expect([code, stdout]).toEqual([1, ""]);
      return stderr;
    };
    expect(await verify(lines.with(2, lines[2]!.replace("CreateApiKey", "CreateApiKez")))).toMatch(
      /^✘ AUDIT_CHANGED {2}row 2, in line 3, was changed: its hash is [0-9a-f]{64}, and its content has the hash [0-9a-f]{64}\n {2}fix /,
    );
    expect(await verify(lines.toSpliced(2, 1))).toMatch(
      /AUDIT_REMOVED {2}row 2 is missing: row 3, in line 3, follows row 1/,
    );
    expect(await verify(lines.with(2, lines[3]!).with(3, lines[2]!))).toMatch(
      /AUDIT_REORDERED {2}row 3, in line 3, stands before row 2, which is in line 4/,
    );
    expect(await verify(lines.toSpliced(4, 1))).toMatch(
      /AUDIT_CUT {2}the file ends with row 3, and line 1 says that row 4 is the last/,
    );
    const told = await verify(lines, "--head", `9:${"a".repeat(64)}`, "--json");
    expect(JSON.parse(told)).toMatchObject({ error: { reason: "AUDIT_CUT" } });
    expect(await verify(lines, "--head", `4:${"a".repeat(64)}`)).toContain(
      `row 4 has the hash ${head.slice(2)}, and aaaa`,
    );
  });

  test("what is no export or no head is a wrong argument", async () => {
    const path = newPath();
    for (const args of [
      ["verify", path],
      ["verify", folder],
      ["verify", path, "--head", "12"],
      ["export", path, "--after", "a".repeat(64)],
      ["export", join(path, "sub")],
    ])
      expect([args, (await moltwire(["audit", ...args])).code]).toEqual([args, 2]);
    writeFileSync(path, "hello\n");
    expect((await moltwire(["audit", "verify", path])).code).toBe(1);
    expect(readdirSync(folder).filter((name) => name.endsWith(".part"))).toEqual([]);
  });

  test("an export goes on after the last, and not after a head that the server does not have", async () => {
    const head = await headOf();
    await world.operator.keys.createApiKey({ orgId });
    expect(await headOf()).toMatch(/^5:/);
    const path = newPath();
    expect((await moltwire(["audit", "export", path, "--org", orgId, "--after", head])).code).toBe(0);
    expect((await moltwire(["audit", "verify", path, "--after", head])).stdout).toMatch(
      /^✔ unbroken {2}1 row: 5 to 5$/m,
    );
    const other = await moltwire(["audit", "export", newPath(), "--org", orgId, "--after", `4:${"b".repeat(64)}`]);
    expect(other).toMatchObject({ code: 1, stderr: expect.stringContaining("AUDIT_OTHER") });
    const behind = await moltwire(["audit", "export", newPath(), "--org", orgId, "--after", `99:${"b".repeat(64)}`]);
    expect(behind).toMatchObject({ code: 4, stderr: expect.stringContaining("after_number") });
  });

  test("list shows rows, newest first", async () => {
    await headOf();
    const { stdout } = await moltwire(["audit", "list", "--org", orgId]);
    expect(stdout).toMatch(/^ROW +AGE +METHOD +ROLE +KEY +WHAT\n/);
    expect(stdout).toMatch(/^ *1 .* ApiKeyService\/CreateApiKey +operator +key_\S+ /m);
  });
});
