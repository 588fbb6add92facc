import { mkdtempSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { checkBackup } from "../src/ops/backup-format.ts";
import { cleanEnv, commandsIn } from "./cli-process.ts";
import { integrity } from "./crash/integrity.ts";
import { freshDatabase, postgresUrl } from "./engines.ts";
import { start, unique, type World } from "./harness.ts";
import { get, jsonOf, set } from "./memory-fixtures/memory.ts";
import { claim, leaseOf, submit } from "./queue-fixtures/jobs.ts";

const folder = mkdtempSync(join(tmpdir(), "moltwire-cli-backup-"));
const newPath = () => join(folder, unique("x"));
const { start: run, stopAll } = commandsIn(folder, "");
let world: World;
const data = newPath();

beforeAll(async () => {
  world = await start("sqlite", { data });
});
afterAll(async () => {
  await stopAll();
  await world[Symbol.asyncDispose]();
  rmSync(folder, { recursive: true });
});

const moltwire = (args: readonly string[], key = world.operatorKey) =>
  run(args, { ...cleanEnv(), MOLTWIRE_URL: world.url, MOLTWIRE_API_KEY: key }).ended;

describe("moltwire backup and restore", () => {
  test("what one server has, the other has: backup, restore, start", async () => {
    const agent = await (await world.org()).agent();
    await set(agent.as, "kept", "precious");
    const file = newPath();
    const made = await moltwire(["backup", file]);
    expect(made).toMatchObject({ code: 0, stderr: "" });
    expect(made.stdout).toMatch(
      /^\S+\n {2}as of {3}.* UTC\n {2}data {4}\d+ rows, [\d.]+ KiB\n {2}from {4}sqlite, schema \d+, Moltwire .*\n {2}sha256 {2}[0-9a-f]{64}\n$/,
    );
    expect(statSync(file).mode & 0o777).toBe(0o600);
    const to = newPath();
    const restored = await moltwire(["restore", file, "--data", to]);
    expect(restored).toMatchObject({ code: 0, stderr: "" });
    expect(restored.stdout).toMatch(/^restored {2}\d+ rows of .*Z, from sqlite, Moltwire /);
    expect(readdirSync(to).sort()).toEqual(["moltwire.db", "moltwire.db-lock"]);
    expect(statSync(join(to, "moltwire.db")).mode & 0o777).toBe(0o600);
    expect(integrity(join(to, "moltwire.db"))).toEqual(["ok"]);
    await using other = await start("sqlite", { data: to });
    expect((await get(other.as(agent.key), "kept")).revision).toBe(1n);
  });

  test.skipIf(!postgresUrl)(
    "restore fills an empty PostgreSQL database too, and refuses it once it is not",
    async () => {
      const agent = await (await world.org()).agent();
      await set(agent.as, "kept", "precious");
      await submit(agent.as, { queue: "held" });
      const [leased] = await claim(agent.as, { queues: ["held"], lease: { seconds: 3_600n } });
      const file = newPath();
      expect((await moltwire(["backup", file])).code).toBe(0);
      const { url, drop } = await freshDatabase();
      try {
        const restored = await moltwire(["restore", file, "--database-url", url]);
        expect(restored).toMatchObject({ code: 0, stderr: "" });
        expect(restored.stdout).toMatch(/^restored {2}\d+ rows of .*\ninto {6}the PostgreSQL database\n/);
        const again = await moltwire(["restore", file, "--database-url", url]);
        expect([again.code, again.stderr]).toEqual([2, expect.stringContaining("empty")]);
        await using other = await start("postgres", { databaseUrl: url });
        const as = other.as(agent.key);
        expect(jsonOf((await get(as, "kept")).value)).toBe("precious");
        // Whoever had a job goes on with it, and nobody else gets it.
        expect(await claim(as, { queues: ["held"] })).toEqual([]);
        await as.queues.completeJob(leaseOf(leased!));
      } finally {
        await drop();
      }
    },
  );

  test("a backup is written over only with --force, and what failed leaves neither a file nor a part of one", async () => {
    const file = newPath();
    writeFileSync(file, "mine");
    const refused = await moltwire(["backup", file]);
    expect([refused.code, refused.stderr]).toEqual([2, expect.stringContaining("is there already")]);
    const before = readdirSync(folder).sort();
    const agent = await (await world.org()).agent();
    const denied = await moltwire(["backup", newPath()], agent.key);
    expect([denied.code, denied.stderr]).toEqual([4, expect.stringContaining("ROLE_REQUIRED")]);
    const nowhere = await moltwire(["backup", join(folder, "no-such-folder", "x")]);
    expect([nowhere.code, nowhere.stderr]).toEqual([2, expect.stringContaining("cannot be written")]);
    expect([readFileSync(file, "utf8"), readdirSync(folder).sort()]).toEqual(["mine", before]);
    const forced = await moltwire(["backup", file, "--force", "--json"]);
    expect(forced.code).toBe(0);
    expect(JSON.parse(forced.stdout)).toMatchObject({ formatVersion: 1, engine: "sqlite" });
    expect(checkBackup(file).rows).toBe(Number(JSON.parse(forced.stdout).rows));
  });

  test("a backup leaves alone what another command is writing for a file of the same name", async () => {
    const file = newPath();
    const other = `${file}.part`;
    writeFileSync(other, "the other's");
    expect((await moltwire(["backup", file])).code).toBe(0);
    expect(readFileSync(other, "utf8")).toBe("the other's");
    rmSync(other);
    const [one, two] = await Promise.all([1, 2].map(() => moltwire(["backup", file, "--force"])));
    expect([one!.code, two!.code]).toContain(0);
    expect(checkBackup(file).rows).toBeGreaterThan(0);
    expect(readdirSync(folder).filter((name) => name.endsWith(".part"))).toEqual([]);
  });

  test("restore refuses a database that is there and one that a server has; --replace keeps the old one beside", async () => {
    const file = newPath();
    expect((await moltwire(["backup", file])).code).toBe(0);
    const inUse = await moltwire(["restore", file, "--data", data, "--replace"]);
    expect([inUse.code, inUse.stderr]).toEqual([2, expect.stringContaining("in use by another process")]);
    const to = newPath();
    {
      await using other = await start("sqlite", { data: to });
      const agent = await (await other.org()).agent();
      await set(agent.as, "kept", "older");
    }
    const old = readFileSync(join(to, "moltwire.db"));
    const refused = await moltwire(["restore", file, "--data", to]);
    expect([refused.code, refused.stderr]).toEqual([2, expect.stringMatching(/has a database already.*--replace/)]);
    expect(readFileSync(join(to, "moltwire.db"))).toEqual(old);
    const replaced = await moltwire(["restore", file, "--data", to, "--replace"]);
    expect(replaced).toMatchObject({ code: 0, stderr: "" });
    const [, kept] = /^kept .* as (\S+)$/m.exec(replaced.stdout)!;
    expect(readFileSync(kept!)).toEqual(old);
    await using other = await start("sqlite", { data: to });
    expect(other.operatorKey).toBe("");
  });

  test("restore says what is wrong with the file, the arguments or the folder, and makes nothing", async () => {
    const file = newPath();
    expect((await moltwire(["backup", file])).code).toBe(0);
    const broken = newPath();
    writeFileSync(broken, readFileSync(file).subarray(0, 5_000));
    const to = newPath();
    const before = readdirSync(folder).sort();
    const attempts: readonly (readonly [readonly string[], string])[] = [
      [[broken, "--data", to], "is cut off or damaged: its end is missing. Nothing was changed"],
      [[newPath(), "--data", to], "cannot be read"],
      [[file, "--data", ":memory:"], "kept in memory"],
      [[file, "--dta", to], "see --help"],
      [[file, "--data", join(broken, "sub")], "ENOTDIR"],
      [[file, "--database-url", "postgres://127.0.0.1:1/nothing"], "PostgreSQL at 127.0.0.1:1/nothing"],
    ];
    const ends = await Promise.all(attempts.map(([args]) => moltwire(["restore", ...args])));
    for (const [nth, { code, stderr }] of ends.entries())
      expect([code, stderr]).toEqual([2, expect.stringContaining(attempts[nth]![1])]);
    expect(readdirSync(folder).sort()).toEqual(before);
    expect((await moltwire(["restore", "--help"])).stdout).toMatch(/^Usage: moltwire restore FILE/);
  });
});
