import { once } from "node:events";
import { type AddressInfo, createServer } from "node:net";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { commandsAt } from "./cli-process.ts";
import { type Org, start, type World } from "./harness.ts";

let world: World;
let org: Org;
let commands: ReturnType<typeof commandsAt>;
let moltwire: ReturnType<typeof commandsAt>["moltwire"];

beforeAll(async () => {
  world = await start();
  org = await world.org();
  commands = commandsAt(world.url, org.adminKey);
  ({ moltwire } = commands);
});

afterAll(async () => {
  await commands.stopAll();
  await world[Symbol.asyncDispose]();
});

describe("moltwire agent", () => {
  test("an empty list teaches the command that makes the first agent, and standard output stays empty", async () => {
    const nobody = await world.org();
    const { code, stdout, stderr } = await commandsAt(world.url, nobody.adminKey).moltwire(["agent", "list"]);
    expect({ code, stdout }).toEqual({ code: 0, stdout: "" });
    expect(stderr).toMatch(/^no agents yet; for the first:\n {2}moltwire agent register NAME --capability /);
  });

  test("register takes every field as a flag, and shows the agent as the server has it", async () => {
    const flags = ["--capability", "shout", "--capability", "whisper", "--tool", "web", "--trust", "external-partner"];
    const more = [
      "--endpoint",
      "http=http://127.0.0.1:9/task",
      "--description",
      "Makes\u001b[2J noise",
      "--metadata",
      '{"team":"a"}',
    ];
    const { code, stdout } = await moltwire(["agent", "register", "shouter", ...flags, ...more]);
    expect(code).toBe(0);
    const { agents } = await org.admin.agents.listAgents({ name: "shouter" });
    expect(agents[0]).toMatchObject({
      capabilities: ["shout", "whisper"],
      allowedTools: ["web"],
      trustTier: 3,
      endpoint: { kind: { case: "http", value: { url: "http://127.0.0.1:9/task" } } },
      metadata: { team: "a" },
    });
    expect(stdout.split("\n")).toEqual([
      `shouter  ${agents[0]!.agentId}  enabled`,
      "  for           Makes [2J noise",
      "  capabilities  shout whisper",
      "  endpoint      http://127.0.0.1:9/task",
      "  tools         web",
      "  trust         EXTERNAL_PARTNER",
      '  metadata      {"team":"a"}',
      expect.stringMatching(/^ {2}registered {4}\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC$/),
      "",
    ]);
  });

  test("register takes an agent that pulls its tasks, and refuses what is no endpoint", async () => {
    const { code, stdout } = await moltwire(["agent", "register", "puller", "--endpoint", "pull"]);
    expect([code, stdout]).toEqual([0, expect.stringMatching(/^ {2}endpoint +pull$/m)]);
    const { agents } = await org.admin.agents.listAgents({ name: "puller" });
    expect(agents[0]!.endpoint?.kind.case).toBe("pull");
    const refused = await moltwire(["agent", "register", "other", "--endpoint", "push"]);
    expect([refused.code, refused.stderr]).toEqual([2, expect.stringContaining("push is no endpoint")]);
  });

  test("register takes a whole request from standard input; flags go over it, and --json answers the response", async () => {
    const request = '{"name":"from-file","capabilities":["a"],"endpoint":{"echo":{}}}';
    const { code, stdout } = await moltwire(
      ["agent", "register", "--from", "-", "--capability", "b", "--json"],
      request,
    );
    expect(code).toBe(0);
    expect(JSON.parse(stdout)).toMatchObject({
      agent: { name: "from-file", capabilities: ["b"], endpoint: { echo: {} }, revision: "1" },
    });
  });

  test("a request that does not fit ends with 2 and names the field", async () => {
    const { code, stdout, stderr } = await moltwire(["agent", "register", "--from", "-"], '{"name":5}');
    expect({ code, stdout }).toEqual({ code: 2, stdout: "" });
    expect(stderr).toMatch(/^✘ USAGE {2}standard input: name: expected string.*\n {2}fix {4}\S/);
  });

  test("what the server refuses ends with 4, with the field, what to do and the trace", async () => {
    const { code, stderr } = await moltwire(["agent", "register", "no blanks"]);
    expect(code).toBe(4);
    expect(stderr).toMatch(
      /^✘ INVALID_REQUEST {2}name: .*\n {2}field {2}name\n {2}fix {4}\S.*\n {2}trace {2}[0-9a-f]{32}\n$/,
    );
  });

  test("a connection lost before the answer ends with 3 and tells how to repeat the command safely", async () => {
    await using dropping = createServer((socket) => socket.once("data", () => socket.destroy())).listen(0, "127.0.0.1");
    await once(dropping, "listening");
    const url = `http://127.0.0.1:${(dropping.address() as AddressInfo).port}`;
    const { code, stderr } = await commandsAt(url, org.adminKey).moltwire(["agent", "register", "lost"]);
    expect(code).toBe(3);
    expect(stderr).toMatch(/^✘ UNREACHABLE .*\n {2}fix {4}it may have been done; .* add --idempotency-key cli-\S+\n$/);
  });

  test("update changes what is given and empties what is cleared, unless somebody was faster", async () => {
    const { agent } = await org.admin.agents.registerAgent({
      name: "changing",
      description: "old",
      capabilities: ["a"],
      endpoint: { kind: { case: "echo", value: {} } },
    });
    const flags = ["--disable", "--clear", "description", "--capability", "b", "--if-revision", "1"];
    const changed = await moltwire(["agent", "update", "changing", ...flags]);
    expect(changed.stdout).toMatch(/^changing {2}agt_\S+ {2}disabled\n {2}capabilities {2}b\n {2}endpoint {6}echo\n/);
    const now = await org.admin.agents.getAgent({ agentId: agent!.agentId });
    expect(now.agent).toMatchObject({ description: "", capabilities: ["b"], disabled: true, revision: 2n });

    const late = await moltwire(["agent", "update", "changing", "--enable", "--if-revision", "1"]);
    expect(late).toMatchObject({
      code: 4,
      stderr: expect.stringMatching(/^✘ FAILED_PRECONDITION .*\n {2}field {2}if_revision/),
    });
    const request = `{"agentId":"${agent!.agentId}","change":{"description":"new"}}`;
    const whole = await moltwire(["agent", "update", "--from", "-", "--json"], request);
    expect(JSON.parse(whole.stdout).agent).toMatchObject({ description: "new", capabilities: ["b"], disabled: true });
  });

  test("list pages with the command that it prints, and --all --json gives one agent a line", async () => {
    for (const name of ["one", "two", "three"])
      await org.admin.agents.registerAgent({ name, capabilities: ["count-it"] });
    const filter = ["agent", "list", "--capability", "count-it"];
    const first = await moltwire([...filter, "--page-size", "2"]);
    expect(first.stdout).toMatch(
      /^AGENT {33}NAME {2}STATE {4} *AGE {2}CAPABILITIES\nagt_\w{32} {2}one {3}enabled +\d+ s {2}count-it\nagt_\w{32} {2}two {3}enabled .*\n$/,
    );
    const [, next] = /^more: moltwire (.*)$/m.exec(first.stderr)!;
    const second = await moltwire(next!.split(" "));
    expect(second).toMatchObject({
      code: 0,
      stderr: "",
      stdout: expect.stringMatching(/^AGENT.*\nagt_\w{32} {2}three .*\n$/),
    });
    const all = await moltwire([...filter, "--page-size", "1", "--all", "--json"]);
    const names = all.stdout
      .trimEnd()
      .split("\n")
      .map((line) => JSON.parse(line).name);
    expect(names).toEqual(["one", "two", "three"]);
  });

  test("get and delete find an agent by its name, and tell how many keys went with it", async () => {
    const { agent } = await org.admin.agents.registerAgent({ name: "leaving" });
    await org.admin.keys.createApiKey({ agentId: agent!.agentId });
    expect((await moltwire(["agent", "get", "leaving"])).stdout).toContain(agent!.agentId);
    expect(await moltwire(["agent", "delete", "leaving"])).toMatchObject({
      code: 0,
      stdout: "deleted; 1 key revoked\n",
    });
    const gone = await moltwire(["agent", "get", "leaving"]);
    expect(gone).toMatchObject({
      code: 4,
      stderr: expect.stringMatching(/^✘ NOT_FOUND .*\n {2}fix {4}check the id or name/),
    });
  });
});
