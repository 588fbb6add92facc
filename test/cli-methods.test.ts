import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type DescMethod, fromJson, type Message, toJson } from "@bufbuild/protobuf";
import type { Command } from "commander";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { methodOf } from "../clients/cli/command.ts";
import { commandLine } from "../clients/cli/commands.ts";
import { exampleRequest, toldOf } from "../clients/cli/comments.ts";
import type { Clients } from "../clients/cli/connect.ts";
import { fieldsOf, isGenerated } from "../clients/cli/generated.ts";
import { exampleWords } from "../clients/cli/help.ts";
import { readRequest } from "../clients/cli/request.ts";
import { sql } from "../src/db/db.ts";
import { services } from "../src/services.ts";
import { commandsAt } from "./cli-process.ts";
import { type Org, type OrgAgent, start, type World } from "./harness.ts";
import { json as jsonPayload, toAgent } from "./relay-fixtures/relay.ts";

const folder = mkdtempSync(join(tmpdir(), "moltwire-cli-methods-"));
let world: World;
let org: Org;
let agent: OrgAgent;
let other: OrgAgent;
let commands: ReturnType<typeof commandsAt>;
beforeAll(async () => {
  world = await start();
  org = await world.org();
  [agent, other] = [await org.agent({ name: "ada" }), await org.agent({ name: "bob" })];
  commands = commandsAt(world.url, agent.key);
});
afterAll(async () => {
  await commands.stopAll();
  await world[Symbol.asyncDispose]();
  rmSync(folder, { recursive: true });
});

/** Runs a command and answers its JSON, or fails with what it said. */
async function json(words: string, args: readonly string[] = [], stdin = ""): Promise<Record<string, unknown>> {
  const { code, stdout, stderr } = await commands.moltwire([...words.split(" "), ...args, "--json"], stdin);
  expect([code, stderr]).toEqual([0, ""]);
  return JSON.parse(stdout);
}

const commandsUnder = (command: Command): Command[] =>
  command.commands.flatMap((each) => [each, ...commandsUnder(each)]);

const nameOf = ({ parent, name }: DescMethod) => `${parent.name}/${name}`;

describe("every method of the server", () => {
  const all = commandsUnder(commandLine());
  const byMethod = Map.groupBy(all, methodOf);

  test("has a command, with help for it and for each of its options", () => {
    const methods = services.flatMap((service) => service.methods);
    expect(methods.filter((method) => !byMethod.has(method)).map(nameOf)).toEqual([]);
    for (const command of methods.flatMap((method) => byMethod.get(method)!)) {
      expect(toldOf(command), command.name()).not.toBe("");
      for (const option of command.options) expect(toldOf(option), `${command.name()} ${option.flags}`).not.toBe("");
      expect(command.helpInformation()).toContain("--json");
    }
  });

  test("that no command was written for has one of its own, with an option for each field of its request", () => {
    for (const command of all.filter(isGenerated)) {
      const method = methodOf(command)!;
      expect(byMethod.get(method), nameOf(method)).toEqual([command]);
      const flags = command.options.map(({ long }) => long!.slice(2));
      const change = method.input.field.updateMask && method.input.field.change?.message;
      const fields = [...method.input.fields, ...(change ? change.fields : [])].map(({ name }) =>
        name.replaceAll("_", "-"),
      );
      const missing = fields.filter(
        (name) => !flags.includes(name) && !flags.some((flag) => flag.endsWith(`-${name}`)),
      );
      // `org` stands for the first; options for the fields of a change make the two others.
      const others = change ? ["change", "update-mask"] : [];
      expect(
        missing.filter((name) => name !== "org-id" && !others.includes(name)),
        nameOf(method),
      ).toEqual([]);
    }
  });
});

test("the example of each command made from a descriptor is the request that the reference shows", async () => {
  const clients: Clients = () => {
    throw new Error("an example needs no server");
  };
  for (const command of commandsUnder(commandLine()).filter(isGenerated)) {
    const method = methodOf(command)!;
    const example = exampleRequest(method);
    if (!example) continue;
    const noun = command.parent!.name();
    const line = exampleWords(method.input, example, noun);
    // A secret is in a file, which is not here.
    if (line.includes("@file")) continue;
    let read: Promise<Message> | undefined;
    const from = { fields: [], ...fieldsOf(method.input, noun) };
    command.action(() => {
      read = readRequest(method.input, from, command, { clients, orgId: "" });
    });
    await command.exitOverride().parseAsync(line, { from: "user" });
    expect(toJson(method.input, (await read)!), nameOf(method)).toEqual(
      toJson(method.input, fromJson(method.input, example)),
    );
  }
});

describe("a command made from a descriptor", () => {
  test("takes nested fields, lists, spans, JSON of a file and bytes of standard input, and shows what is answered", async () => {
    writeFileSync(join(folder, "value.json"), '{"step":3}');
    const write = ["--write.key", "state", "--write.value.json", `@${join(folder, "value.json")}`];
    const set = await json("memory set", [...write, "--write.ttl", "2h", "--write.tags", "a", "--write.tags", "b"]);
    expect(set).toMatchObject({ entry: { key: "state", revision: "1", tags: ["a", "b"] } });
    const bytes = ["--write.key", "raw", "--write.value.data", "-", "--write.value.content-type", "text/plain"];
    await json("memory set", bytes, "two\nlines\n");

    const { entry } = await agent.as.memory.getEntry({ key: "state" });
    expect(entry).toMatchObject({ value: { kind: { case: "json", value: { kind: { case: "structValue" } } } } });
    expect(Number(entry!.expireTime!.seconds - entry!.updateTime!.seconds)).toBe(7_200);
    const raw = await agent.as.memory.getEntry({ key: "raw" });
    expect(raw.entry!.value!.kind.value).toEqual(new TextEncoder().encode("two\nlines\n"));

    const shown = await commands.moltwire(["memory", "get", "--key", "state"]);
    expect([shown.code, shown.stdout]).toEqual([0, expect.stringMatching(/^state\n.* revision +1\n/s)]);
    expect(shown.stdout).toMatch(/^ {2}value +\{ "json": \{ "step": 3 \} \}$|^ {2}value +\{"json":\{"step":3\}\}$/m);
    const table = await commands.moltwire(["memory", "list", "--prefix", "s"]);
    expect(table.stdout).toMatch(/^KEY +.*\nstate /);
    expect(table.stdout).not.toContain("raw");
  });

  test("follows a feed line by line, and ends after so many", async () => {
    await json("memory set", ["--write.key", "one", "--write.value.json", "1", "--write.namespace", "feed"]);
    await json("memory delete", ["--key", "one", "--namespace", "feed"]);
    const { code, stdout } = await commands.moltwire([
      "memory",
      "watch",
      "--namespace",
      "feed",
      "--after-revision",
      "0",
      "--count",
      "2",
      "--json",
    ]);
    expect(code).toBe(0);
    const lines = stdout
      .trimEnd()
      .split("\n")
      .map((line) => JSON.parse(line));
    expect(lines).toMatchObject([
      { change: { kind: "CHANGE_KIND_SET", entry: { key: "one" } } },
      { change: { kind: "CHANGE_KIND_DELETED" } },
    ]);
  });

  test("says beside a feed what is gone of it", async () => {
    const reader = await org.agent();
    await world.server.app.db.tx((tx) =>
      tx.run(sql`
        insert into relay_log (org_id, log_id, head, floor, messages, bytes, unread_gone) values (${org.orgId}, ${reader.agentId}, 9, 9, 0, 0, 7)`),
    );
    await agent.as.relay.send({ ...toAgent(reader.agentId), payload: jsonPayload("kept") });
    const theirs = commandsAt(world.url, reader.key);
    const { code, stdout, stderr } = await theirs.moltwire(["relay", "subscribe", "--count", "1"]);
    expect([code, stderr]).toEqual([0, expect.stringMatching(/^.*unread gone sequence: "7"\n$/)]);
    expect(stdout).toMatch(/^message .*"sequence":"10".*\n$/);
  });

  test("--watch asks again, and prints what has changed", async () => {
    await json("memory set", ["--write.key", "watched", "--write.value.json", '"before"']);
    const watching = commands.start("memory", "get", "--key", "watched", "--watch", "0.05", "--json");
    await watching.says(/"before"/);
    await json("memory set", ["--write.key", "watched", "--write.value.json", '"after"']);
    await watching.says(/"after"/);
    watching.child.kill("SIGINT");
    const { stdout } = await watching.ended;
    expect(stdout.match(/"before"/g)).toHaveLength(1);
  });

  test("talks on a stream of both sides: flags say the first message, each line of standard input another", async () => {
    const send = { send: { message: { toAgentId: other.agentId, payload: { json: "hello" } } }, ref: "1" };
    const talking = commands.start("relay", "converse", "--open.send-only", "--count", "2", "--json");
    await talking.says(/"opened"/);
    talking.child.stdin.write(`${JSON.stringify(send)}\n`);
    const { code, stdout } = await talking.ended;
    expect([code, stdout]).toEqual([0, expect.stringContaining('"sent":')]);
    expect((await other.as.relay.listInbox({})).messages).toHaveLength(1);
  });

  test("names agents by their name, and changes only what was named", async () => {
    const sent = await json("relay send", ["--to-agent-id", "bob", "--payload.json", "1", "--headers", "a=b=c"]);
    expect(sent).toMatchObject({ messageId: expect.stringMatching(/^msg_/) });
    const { messages } = await other.as.relay.listInbox({});
    expect(messages.at(-1)).toMatchObject({ messageId: sent.messageId, headers: { a: "b=c" } });
    const made = await agent.as.schedules.createSchedule({
      settings: {
        name: "stays",
        timing: { cron: "0 0 1 1 *" },
        job: { queue: "work", payload: { kind: { case: "json", value: { kind: { case: "numberValue", value: 1 } } } } },
      },
    });
    const { scheduleId } = made.schedule!;
    const changed = await json("schedule update", ["--schedule-id", scheduleId, "--disabled"]);
    expect(changed).toMatchObject({ schedule: { settings: { name: "stays" } } });
    const again = await json("schedule update", [
      "--schedule-id",
      scheduleId,
      "--disabled",
      "false",
      "--clear",
      "name",
    ]);
    expect(again).not.toMatchObject({ schedule: { settings: { name: "stays" } } });
  });

  test.each([
    ["a value that an enum has not", ["memory", "list", "--order", "sideways"], "one of: "],
    ["a map without =", ["relay", "send", "--headers", "a"], "write it name=value"],
    ["two of what there is one", ["relay", "send", "--to-agent-id", "agt_1", "--to-channel", "news"], "oneof"],
    ["a secret on the command line", ["session", "sign-in", "--password", "secret"], "@file"],
    ["JSON that is none", ["memory", "set", "--write", "{"], "is not JSON"],
    ["a span that is none", ["memory", "set", "--write.ttl", "soon"], "500ms"],
    ["a flag that is not true or false", ["session", "sign-out", "--idempotency-key"], "argument missing"],
  ])("refuses %s with 2, before anything is sent", async (_what, args, word) => {
    const { code, stdout, stderr } = await commands.moltwire(args);
    expect([code, stdout, stderr]).toEqual([2, "", expect.stringContaining(word)]);
    expect(stderr).toMatch(/^✘ USAGE /);
  });

  test("is refused by the server as every other, with its reason", async () => {
    const { code, stderr } = await commands.moltwire(["memory", "get", "--key", "nowhere"]);
    expect([code, stderr]).toEqual([4, expect.stringMatching(/^✘ NOT_FOUND /)]);
  });
});
