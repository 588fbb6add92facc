import { execFileSync } from "node:child_process";
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { commandLine } from "../clients/cli/commands.ts";
import { tablesOf } from "../clients/cli/completion.ts";
import { bashScript, fishScript, zshScript } from "../clients/cli/completion-scripts.ts";
import { readSettings } from "../clients/cli/settings.ts";
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
