import { execFileSync, spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { commandLine } from "../clients/cli/commands.ts";
import { tablesOf } from "../clients/cli/completion.ts";
import { bashScript, fishScript, zshScript } from "../clients/cli/completion-scripts.ts";
import { connectClients } from "../clients/cli/connect.ts";
import { readSettings } from "../clients/cli/settings.ts";
import { BusService } from "../gen/moltwire/bus/v1/bus_service_pb.ts";
import { TaskState } from "../gen/moltwire/bus/v1/task_pb.ts";
import { commandsIn } from "./cli-process.ts";
import { start, type World } from "./harness.ts";

const folder = mkdtempSync(join(tmpdir(), "moltwire-cli-shell-"));
const config = join(folder, "config");
const profiles = join(config, "moltwire/profiles.json");
const commands = commandsIn(folder, "");
let world: World;
beforeAll(async () => {
  world = await start();
});
afterAll(async () => {
  await commands.stopAll();
  await world[Symbol.asyncDispose]();
  rmSync(folder, { recursive: true });
});

/** Runs a command of somebody who has no variables set. */
async function moltwire(args: readonly string[], stdin = "", env: NodeJS.ProcessEnv = {}) {
  const { child, ended } = commands.start(args, { XDG_CONFIG_HOME: config, ...env });
  child.stdin.end(stdin);
  return await ended;
}

describe("completion", () => {
  const tables = tablesOf(commandLine());

  /** What bash offers at the end of a line; a blank at the end begins a word. */
  function offered(line: string): string[] {
    const file = join(folder, "completion.bash");
    writeFileSync(file, bashScript(tables));
    const ask = `source '${file}'; read -ra COMP_WORDS <<< "$1"; [ "\${1: -1}" = ' ' ] && COMP_WORDS+=('')
      COMP_CWORD=$((\${#COMP_WORDS[@]} - 1)); _moltwire; printf '%s\\n' "\${COMPREPLY[@]}"`;
    const said = execFileSync("bash", ["--norc", "--noprofile", "-c", ask, "bash", line], { encoding: "utf8" });
    return said.split("\n").filter((word) => word !== "");
  }

  test.each([
    ["a command", "moltwire mem", ["memory"]],
    ["what it can do", "moltwire trace ", ["get", "tail", "list"]],
    ["its options", "moltwire memory set --write.k", ["--write.key", "--write.keep-ttl"]],
    ["the words that an option takes", "moltwire task list --state comp", ["completed"]],
    ["those of an option made from a descriptor", "moltwire relay converse --set-presence.status b", ["busy"]],
    ["a shell", "moltwire completion z", ["zsh"]],
    ["a command after options", "moltwire --json dead-letter res", ["resolve"]],
    ["nothing where there is no such thing", "moltwire memory set nothing", []],
  ])("of bash offers %s", (_what, line, words) => {
    expect(offered(line).toSorted()).toEqual(words.toSorted());
  });

  test("is printed whole for each shell, and refused for another", async () => {
    const { code, stdout } = await moltwire(["completion", "bash"]);
    expect([code, stdout]).toEqual([0, bashScript(tables)]);
    expect((await moltwire(["completion", "tcsh"])).code).toBe(2);
  });

  for (const [shell, script] of [
    ["zsh", zshScript(tables)],
    ["fish", fishScript(tables)],
  ] as const) {
    const isThere = ["/bin", "/usr/bin", "/usr/local/bin"].some((path) => existsSync(join(path, shell)));
    test.skipIf(!isThere)(`of ${shell} is read by ${shell} without a fault`, () => {
      const file = join(folder, `completion.${shell}`);
      writeFileSync(file, script);
      execFileSync(shell, ["-n", file]);
    });
  }
});

describe("profiles", () => {
  test("keep a server and a key in a file that its owner alone can read, and the key shows nowhere", async () => {
    const key = world.operatorKey;
    const wrong = await moltwire(["login", "--url", world.url], `${key}x\n`);
    expect([wrong.code, existsSync(profiles)]).toEqual([4, false]);

    const said = [await moltwire(["login", "--url", world.url], `${key}\n`)];
    expect(statSync(profiles).mode & 0o777).toBe(0o600);
    expect(JSON.parse(readFileSync(profiles, "utf8"))).toEqual({ default: { url: world.url, key } });
    said.push(await moltwire(["org", "list"]));
    expect(said.at(-1)!.stdout).toContain("ORGANISATION");

    writeFileSync(join(folder, "other.key"), `${key}\n`);
    said.push(await moltwire(["login", "--url", world.url, "--key-file", "other.key", "--profile", "work"]));
    said.push(await moltwire(["profile", "list"], "", { MOLTWIRE_PROFILE: "work" }));
    expect(said.at(-1)!.stdout).toMatch(/^ +PROFILE +SERVER\n +default +http\S+\n\* +work +http\S+\n$/);
    said.push(await moltwire(["org", "list", "--profile", "work"], "", { MOLTWIRE_API_KEY: "none" }));
    said.push(await moltwire(["logout", "--profile", "work"]));
    expect(said.map(({ code }) => code)).toEqual(said.map(() => 0));
    for (const { stdout, stderr } of [...said, wrong]) expect(stdout + stderr).not.toContain(key);

    const gone = await moltwire(["org", "list", "--profile", "work"]);
    expect([gone.code, gone.stderr]).toEqual([2, expect.stringContaining("there is no profile work")]);
  });

  test("are read after options and variables, and a profile's key goes to no other server", () => {
    const home = join(folder, "home");
    mkdirSync(join(home, "moltwire"), { recursive: true });
    const kept = { default: { url: "http://a.example", key: "ka" }, b: { url: "http://b.example", key: "kb" } };
    writeFileSync(join(home, "moltwire/profiles.json"), JSON.stringify(kept));
    const read = (options: object, env: NodeJS.ProcessEnv) => {
      const { url, key } = readSettings(options, { XDG_CONFIG_HOME: home, ...env });
      return [url, key];
    };
    const variables = { MOLTWIRE_URL: "http://v.example", MOLTWIRE_API_KEY: "kv" };
    expect(read({}, {})).toEqual(["http://a.example", "ka"]);
    expect(read({}, { MOLTWIRE_PROFILE: "b" })).toEqual(["http://b.example", "kb"]);
    expect(read({}, { ...variables, MOLTWIRE_PROFILE: "b" })).toEqual(["http://v.example", "kv"]);
    expect(read({ profile: "b" }, variables)).toEqual(["http://b.example", "kb"]);
    expect(read({ url: "http://o.example" }, {})).toEqual(["http://o.example", undefined]);
    expect(read({ profile: "b", url: "http://o.example" }, variables)).toEqual(["http://o.example", undefined]);
    expect(read({}, { MOLTWIRE_URL: "http://v.example" })).toEqual(["http://v.example", undefined]);
    writeFileSync(join(home, "moltwire/profiles.json"), "[1]");
    expect(() => read({}, {})).toThrow(/holds no profiles/);
  });
});

describe("help", () => {
  test("of a command is a page with its whole comment, its options, an example and the exit codes", async () => {
    const { code, stdout } = await moltwire(["help", "memory", "set"]);
    expect(code).toBe(0);
    for (const title of ["NAME", "SYNOPSIS", "DESCRIPTION", "OPTIONS", "EXAMPLES", "EXIT CODES", "SEE ALSO"])
      expect(stdout).toMatch(new RegExp(`^${title}$`, "m"));
    expect(stdout).toMatch(/^ {7}moltwire memory set --write\.key state /m);
    expect(stdout).toContain("PAYLOAD_TOO_LARGE");
    const none = await moltwire(["help", "memory", "forget"]);
    expect([none.code, none.stderr]).toEqual([2, expect.stringMatching(/moltwire memory forget\n.*one of: set, get/)]);
  });
});

describe("init", () => {
  /** The key of a new organisation's administrator, and what an agent is started with. */
  async function setting() {
    const { adminKey } = await world.org();
    return { MOLTWIRE_URL: world.url, MOLTWIRE_API_KEY: adminKey };
  }

  test("makes an agent in TypeScript that registers itself and does tasks, also when it is started again", async () => {
    const env = await setting();
    expect((await moltwire(["init", "greeter"])).code).toBe(0);
    // As npm would install it, from the sources.
    const installed = join(folder, "greeter/node_modules/moltwire");
    mkdirSync(installed, { recursive: true });
    symlinkSync(join(import.meta.dirname, ".."), join(installed, "project"));
    const exports = { "./client": "./project/clients/typescript/index.ts" };
    writeFileSync(join(installed, "package.json"), JSON.stringify({ name: "moltwire", type: "module", exports }));
    for (const name of ["Ada", "Grace"]) {
      const agent = commands.start([], env, [join(folder, "greeter/agent.ts")]);
      await agent.says(/waits for tasks/);
      const done = await moltwire(["submit", "greeter/greet", JSON.stringify({ name })], "", env);
      expect([done.code, done.stdout]).toEqual([0, `{\n  "greeting": "Hello, ${name}!"\n}\n`]);
      agent.child.kill("SIGTERM");
      await agent.ended;
    }
  });

  const hasPython = spawnSync("python3", ["--version"]).status === 0;
  test.skipIf(!hasPython)("makes one in Python too", async () => {
    const env = await setting();
    expect((await moltwire(["init", "snake", "--language", "python"])).code).toBe(0);
    const agent = spawn("python3", [join(folder, "snake/agent.py")], { env: { ...process.env, ...env } });
    const ended = once(agent, "close");
    try {
      await Promise.race([once(agent.stdout, "data"), ended]);
      const done = await moltwire(["submit", "snake/greet", '{"name":"Ada"}'], "", env);
      expect([done.code, done.stdout]).toEqual([0, '{\n  "greeting": "Hello, Ada!"\n}\n']);
    } finally {
      agent.kill("SIGKILL");
      await ended;
    }
  });

  test("refuses a folder that is not empty, and a name that no agent can have", async () => {
    mkdirSync(join(folder, "full/inner"), { recursive: true });
    const said = [await moltwire(["init", "full"]), await moltwire(["init", "No Name"])];
    expect(said.map(({ code, stderr }) => [code, stderr.split("\n")[0]])).toEqual([
      [2, "✘ USAGE  full is not empty"],
      [2, "✘ USAGE  No Name is no name of an agent"],
    ]);
  });
});

describe("dev", () => {
  test("is a server with a console and something to look at, tells its keys, and ends well on Ctrl-C", async () => {
    const dev = commands.start(["dev", "--port", "0", "--no-console", "--json"], {}, undefined, 300_000);
    await dev.says(/listening on/);
    const [, line] = await dev.says(/^(\{.*\})$/m);
    const told = JSON.parse(line!) as { url: string; orgKey: string; operatorKey: string; plannerKey: string };
    const states = new Set<TaskState>();
    await expect
      .poll(
        async () => {
          for (const { state } of (await listed(told)).tasks) states.add(state);
          return [...states].toSorted();
        },
        { timeout: 60_000 },
      )
      .toEqual([TaskState.AWAITING_APPROVAL, TaskState.COMPLETED, TaskState.FAILED].toSorted());
    dev.child.kill("SIGINT");
    expect((await dev.ended).code).toBe(0);
  }, 120_000);

  const listed = ({ url, orgKey }: { url: string; orgKey: string }) =>
    connectClients({ url, key: orgKey })(BusService).listTasks({});
});
