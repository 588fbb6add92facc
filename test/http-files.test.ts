import { execFile } from "node:child_process";
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { afterAll, beforeAll, expect, test } from "vitest";
import { services } from "../src/services.ts";
import { start, type World } from "./harness.ts";

const folder = join(import.meta.dirname, "../clients/http");
const files = readdirSync(folder).filter((name) => name.endsWith(".sh") && name !== "call.sh");

let world: World;
beforeAll(async () => {
  world = await start();
});
afterAll(async () => await world[Symbol.asyncDispose]());

type Run = { readonly code: number | string | null | undefined; readonly stdout: string; readonly stderr: string };

async function run(file: string, key: string): Promise<Run> {
  const { promise, resolve } = Promise.withResolvers<Run>();
  const env = { PATH: process.env.PATH, MOLTWIRE_URL: world.url, MOLTWIRE_API_KEY: key };
  execFile("sh", [join(folder, file)], { env, timeout: 120_000 }, (error, stdout, stderr) =>
    resolve({ code: error ? error.code : 0, stdout, stderr }),
  );
  return await promise;
}

test.each(files)("clients/http/%s runs to its end, and each of its calls is answered", async (file) => {
  const { code, stdout, stderr } = await run(file, world.operatorKey);
  expect([code, stdout + stderr]).toEqual([0, expect.not.stringMatching(/"code":"|curl: /)]);
  const called = stderr.trim().split("\n");
  const lines = readFileSync(join(folder, file), "utf8").match(/\b(call|ask) \w+\.v1\./g)!;
  expect(called.length).toBeGreaterThanOrEqual(lines.length);
  const names = services.flatMap(({ methods }) => methods.map(({ parent, name }) => `${parent.typeName}/${name}`));
  for (const name of called) expect(names).toContain(`moltwire.${name}`);
});

test("a file ends where a call fails", async () => {
  const { code, stdout, stderr } = await run("text.sh", "mw_wrong");
  expect(code).not.toBe(0);
  expect(stdout).toContain("KEY_INVALID");
  expect(stderr.match(/TextService/g)).toHaveLength(1);
});

test("every area has a file", () => {
  const areas = new Set(services.map(({ typeName }) => typeName.split(".")[1]));
  const told = files.map((file) => readFileSync(join(folder, file), "utf8")).join();
  for (const area of areas) expect(told).toContain(`${area}.v1.`);
});
