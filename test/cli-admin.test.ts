import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { commandsAt } from "./cli-process.ts";
import { start, type World } from "./harness.ts";

let world: World;
let commands: ReturnType<typeof commandsAt>;
beforeAll(async () => {
  world = await start();
  commands = commandsAt(world.url, world.operatorKey);
});
afterAll(async () => {
  await commands.stopAll();
  await world[Symbol.asyncDispose]();
});

describe("moltwire admin set-password", () => {
  test("takes the first line of standard input, and shows it nowhere", async () => {
    const { code, stdout, stderr } = await commands.moltwire(["admin", "set-password"], "correct horse battery\n");
    expect([code, stdout]).toEqual([0, "set; sessions that ended with the one before: 0\n"]);
    expect(stderr).not.toContain("correct horse");
    expect((await world.as(undefined).sessions.getSession({})).passwordSet).toBe(true);
  });

  test("refuses one of fewer than 12 characters before anything is sent", async () => {
    const { code, stderr } = await commands.moltwire(["admin", "set-password"], "too short\n");
    expect([code, stderr]).toEqual([2, expect.stringContaining("fewer than 12 characters")]);
  });
});
