import { execFile } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, expect, test } from "vitest";
import { exitCodes, exitCodesHelp } from "../clients/cli/exit-codes.ts";
import { cleanEnv, main, node } from "./cli-process.ts";
import { start, type World } from "./harness.ts";

const readme = readFileSync(new URL("../README.md", import.meta.url), "utf8");
/** Each command under a heading, with the screen under it. */
function screensUnder(heading: string) {
  const [, transcript = ""] = new RegExp(`### ${heading}\n\n\`\`\`\n(.*?)\`\`\``, "s").exec(readme) ?? [];
  return transcript
    .split(/^\$ npx moltwire /m)
    .slice(1)
    .map((text) => {
      const end = text.indexOf("\n");
      return { command: text.slice(0, end), screen: text.slice(end + 1).trimEnd() };
    });
}

let world: World;
beforeAll(async () => {
  world = await start();
});
afterAll(async () => await world[Symbol.asyncDispose]());

const ids = /\b(?:[a-z]{3}_)?[0-9a-f]{32}\b/g;

/** A screen without what differs each time: ids and times, and the blanks before them that align a column. */
const lasting = (screen: string): string =>
  screen
    .replace(ids, "<id>")
    .replace(/\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC/g, "<time>")
    .replace(/ *\b\d+(\.\d+)? (ms|s|min)\b/g, " <span>")
    .replace(/ {2,}(AGE|TOOK)\b/g, "  $1");

/** Runs a line as a shell does, and answers what a terminal would show. */
async function shell(line: string, cwd?: string): Promise<string> {
  const env = { ...cleanEnv(), MOLTWIRE_URL: world.url, MOLTWIRE_API_KEY: world.operatorKey };
  const { promise, resolve } = Promise.withResolvers<string>();
  execFile("sh", ["-c", `${line} 2>&1`], { env, cwd, timeout: 120_000 }, (_, stdout) => resolve(stdout.trimEnd()));
  return await promise;
}

test("the README's commands show what the README shows", async () => {
  const screens = screensUnder("From the terminal");
  expect(screens.map(({ command }) => command.split(" ").slice(0, 2).join(" "))).toEqual([
    "agent register",
    "contract register",
    "submit repeat",
    "submit repeat",
    "trace list",
    "trace get",
  ]);
  const ours = new Map<string, string>();
  for (const { command, screen } of screens) {
    const shown = await shell(`'${node}' '${main}' ${command.replace(ids, (id) => ours.get(id) ?? id)}`);
    expect(lasting(shown)).toBe(lasting(screen));
    const found = shown.match(ids) ?? [];
    for (const [at, id] of (screen.match(ids) ?? []).entries()) ours.set(id, found[at]!);
  }
});

test("the README's backup and restore show what the README shows", async () => {
  const folder = mkdtempSync(join(tmpdir(), "moltwire-readme-"));
  try {
    const screens = screensUnder("Backup");
    expect(screens.map(({ command }) => command.split(" ")[0])).toEqual(["backup", "restore"]);
    const steady = (screen: string) =>
      lasting(screen).replace(
        /[0-9a-f]{64}|\d{4}-\d\d-\d\dT[\d:.]+Z|\b\d+(\.\d+)?(?= (rows|KiB))|(?<=schema )\d+/g,
        "<any>",
      );
    for (const { command, screen } of screens)
      expect(steady(await shell(`'${node}' '${main}' ${command}`, folder))).toBe(steady(screen));
  } finally {
    rmSync(folder, { recursive: true });
  }
});

test("the README and --help list the exit codes there are", () => {
  expect(readme).toContain(`\`\`\`${exitCodesHelp}\n\`\`\``);
  const listed = [...exitCodesHelp.matchAll(/^ {2}(\d+) {2}/gm)].map(([, code]) => Number(code));
  expect(listed).toEqual(Object.values(exitCodes));
});
