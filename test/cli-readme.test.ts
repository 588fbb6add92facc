import { execFile } from "node:child_process";
import { readFileSync } from "node:fs";
import { afterAll, beforeAll, expect, test } from "vitest";
import { exitCodes, exitCodesHelp } from "../clients/cli/exit-codes.ts";
import { cleanEnv, main, node } from "./cli-process.ts";
import { start, type World } from "./harness.ts";

const readme = readFileSync(new URL("../README.md", import.meta.url), "utf8");
const [, transcript = ""] = /### From the terminal\n\n```\n(.*?)```/s.exec(readme) ?? [];
/** Each command with the screen under it. */
const screens = transcript
  .split(/^\$ npx moltwire /m)
  .slice(1)
  .map((text) => {
    const end = text.indexOf("\n");
    return { command: text.slice(0, end), screen: text.slice(end + 1).trimEnd() };
  });

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
async function shell(line: string): Promise<string> {
  const env = { ...cleanEnv(), MOLTWIRE_URL: world.url, MOLTWIRE_API_KEY: world.operatorKey };
  const { promise, resolve } = Promise.withResolvers<string>();
  execFile("sh", ["-c", `${line} 2>&1`], { env, timeout: 20_000 }, (_, stdout) => resolve(stdout.trimEnd()));
  return await promise;
}

test("the README's commands show what the README shows", async () => {
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

test("the README and --help list the exit codes there are", () => {
  expect(readme).toContain(`\`\`\`${exitCodesHelp}\n\`\`\``);
  const listed = [...exitCodesHelp.matchAll(/^ {2}(\d+) {2}/gm)].map(([, code]) => Number(code));
  expect(listed).toEqual(Object.values(exitCodes));
});
