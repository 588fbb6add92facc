import { mkdtempSync, readdirSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import Database from "better-sqlite3";
import pg from "pg";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { type Moved, type MovePlace, move } from "../src/ops/move.ts";
import { tableSummer } from "../src/ops/move-checksum.ts";
import { migrations } from "./backup-fixtures/backup.ts";
import { type EveryArea, everyArea } from "./backup-fixtures/every-area.ts";
import { commandsIn } from "./cli-process.ts";
import { freshDatabase, type OwnDatabase, postgresUrl } from "./engines.ts";
import { proofOf } from "./exchange-fixtures/ledger.ts";
import { start, unique, type World } from "./harness.ts";
import { claim } from "./queue-fixtures/jobs.ts";

const folder = mkdtempSync(join(tmpdir(), "moltwire-migrate-"));
const newPath = () => join(folder, unique("data"));
const commands = commandsIn(folder, "");
const killed = join(import.meta.dirname, "backup-fixtures/killed-move.ts");
const data = newPath();
let made: EveryArea;
let operatorKey: string;
const databases: OwnDatabase[] = [];

beforeAll(async () => {
  await using world = await start("sqlite", { data });
  operatorKey = world.operatorKey;
  made = await everyArea(world);
}, 300_000);
afterAll(async () => {
  await commands.stopAll();
  for (const { drop } of databases) await drop();
  rmSync(folder, { recursive: true });
});

const through = (from: MovePlace, to: MovePlace, batchRows?: number): Promise<Moved> =>
  move({ from, to, migrations, tell: () => {}, nowMs: Date.now, ...(batchRows && { batchRows }) });

async function emptyPlace(engine: "sqlite" | "postgres"): Promise<MovePlace> {
  if (engine === "sqlite") return { folder: newPath() };
  const database = await freshDatabase();
  databases.push(database);
  return { postgres: database.url };
}

/** Moves in a process of its own that kills itself after so many transactions. */
const moveKilled = (from: MovePlace, to: MovePlace, puts: number) =>
  commands.start([JSON.stringify({ from, to, puts })], {}, [killed]).ended;

const startOn = (place: MovePlace): Promise<World> =>
  "folder" in place ? start("sqlite", { data: place.folder }) : start("postgres", { databaseUrl: place.postgres });

/** Changes what is in a database that is being filled. */
async function change(place: MovePlace, text: string): Promise<void> {
  if ("folder" in place) {
    const db = new Database(join(place.folder, "moltwire.db.migrating"));
    expect(db.prepare(text).run().changes).toBeGreaterThan(0);
    return void db.close();
  }
  const client = new pg.Client({ connectionString: place.postgres });
  await client.connect();
  expect((await client.query(text)).rowCount).toBeGreaterThan(0);
  await client.end();
}

/** What the world that was migrated has to have, by the protocol. */
async function holds(world: World): Promise<void> {
  const { org, agent, taskId, traceId, listingId } = made;
  const operator = world.as(operatorKey);
  const admin = world.as(org.adminKey);
  expect((await admin.bus.getTask({ taskId })).task).toMatchObject({ taskId });
  expect((await admin.traces.getTrace({ traceId })).events.length).toBeGreaterThan(3);
  expect((await admin.deadLetters.listDeadLetters({})).deadLetters).toHaveLength(1);
  expect((await admin.agents.getAgent({ agentId: agent.agentId })).agent!.description).toContain("🦞");
  expect((await world.as(agent.key).relay.listInbox({})).messages).toHaveLength(1);
  expect((await operator.catalog.getListing({ listingId })).listing!.listingId).toBe(listingId);
  expect(await proofOf(operator)).toMatchObject({ ok: true });
  const { head, unsealed } = await operator.admin.getAuditHead({ orgId: org.orgId });
  expect([head!.number > 0n, typeof unsealed]).toEqual([true, "number"]);
  // Numbers go on where they were.
  expect(await claim(world.as(agent.key), { queues: ["work"], maxJobs: 50 })).not.toEqual([]);
}

/** What may be empty in a database of every area. */
const mayBeEmpty = 40;

const directions = postgresUrl ? (["postgres", "sqlite"] as const) : (["sqlite"] as const);

describe.each(directions)("into %s", (engine) => {
  test("all of it arrives, is compared and proved; servers start on it, and it goes back as it was", async () => {
    const there = await emptyPlace(engine);
    const moved = await through({ folder: data }, there, 7);
    expect(moved.resumed).toBe(0);
    const filled = [...moved.tables].filter(([, { rows }]) => rows > 0).map(([name]) => name);
    console.log(`${filled.length} tables of ${moved.tables.size} have rows`);
    expect(moved.tables.size - filled.length).toBeLessThan(mayBeEmpty);
    expect(moved.audit.chains).toBeGreaterThan(1);
    expect(moved.ledger.transfers).toBeGreaterThan(1);
    const back = await emptyPlace("sqlite");
    const again = await through(there, back);
    // What is made anew: the secret of the cursors. Positions in logs begin at their start on the way back, and the logs are numbered anew.
    const anew = ["setting", ...("postgres" in there ? logs : [])];
    const lasting = ({ tables }: Moved) => [...tables].filter(([name]) => !anew.includes(name));
    expect(lasting(again)).toEqual(lasting(moved));
    for (const place of [there, back]) {
      await using world = await startOn(place);
      await holds(world);
    }
  });

  test("killed in the middle of a table it goes on where it was; no server starts on it meanwhile, and no other source is taken", async () => {
    const there = await emptyPlace(engine);
    const { signal, stderr } = await moveKilled({ folder: data }, there, 60);
    expect([signal, stderr]).toEqual(["SIGKILL", ""]);
    if ("postgres" in there) {
      await expect(startOn(there)).rejects.toThrow("moltwire migrate");
      const other = newPath();
      await (await start("sqlite", { data: other }))[Symbol.asyncDispose]();
      await expect(through({ folder: other }, there)).rejects.toThrow("half filled from another database");
    } else expect(readdirSync(there.folder)).not.toContain("moltwire.db-wal");
    const moved = await through({ folder: data }, there);
    expect(moved.resumed).toBeGreaterThan(60);
    await using world = await startOn(there);
    await holds(world);
  });

  test.each([
    ["changed", "update organization set display_name = 'Eve'", "the table organization has other rows"],
    ["removed", "delete from memory_entry", "the table memory_entry has 0 rows, and the source has"],
    ["a row of the ledger changed", "update ledger_account set balance = balance + 1", "ledger"],
    [
      "a row of the audit log changed",
      "update audit_event set method = 'other' where number = 2",
      "row 2 of the audit log is changed",
    ],
  ])("a copy that is not the same is found: %s", async (_what, text, told) => {
    const there = await emptyPlace(engine);
    const interrupted = move({
      ...{ from: { folder: data }, to: there, migrations, nowMs: Date.now },
      tell: ({ phase }) => {
        if (phase === "checking") throw new Error("interrupted");
      },
    });
    await expect(interrupted).rejects.toThrow("interrupted");
    await change(there, text);
    const ended = await through({ folder: data }, there).catch((error: unknown) => error);
    expect(ended).toMatchObject({ name: "MoveFault", message: expect.stringContaining(told) });
    // Nor is it taken the next time, and no server starts on it.
    await expect(through({ folder: data }, there)).rejects.toMatchObject({ name: "MoveFault" });
    if ("postgres" in there) await expect(startOn(there)).rejects.toThrow("moltwire migrate");
    else expect(readdirSync(there.folder)).toContain("moltwire.db.migrating");
  });

  test("is refused while a server runs on the source, and into what is not empty", async () => {
    const there = await emptyPlace(engine);
    await through({ folder: data }, there);
    await expect(through({ folder: data }, there)).rejects.toThrow(/is not empty|has a database already/);
    {
      await using _world = await startOn(there);
      await expect(through(there, { folder: newPath() })).rejects.toThrow(/a server runs on|in use by another process/);
    }
    const { tables } = await through(there, { folder: newPath() });
    expect(tables.get("organization")!.rows).toBeGreaterThan(1);
  });
});

test("moltwire migrate says what it moved; what is wrong with its arguments is told, and nothing is made", async () => {
  const to = newPath();
  const ended = await commands.start(["migrate", "--from", data, "--to", to]).ended;
  expect(ended).toMatchObject({ code: 0, stderr: "" });
  expect(ended.stdout).toMatch(/^organization +\d+ rows +[\d.]+ KiB {2}[0-9a-f]{16}$/m);
  expect(ended.stdout).toMatch(
    /^migrated {2}\d+ rows, .*\ncompared {2}\d+ tables: the same rows on both sides\nproved {4}the ledger: \d+ accounts/m,
  );
  expect(readdirSync(to).sort()).toEqual(["moltwire.db", "moltwire.db-lock"]);
  const attempts = [
    [["--from", data], "Say --from and --to"],
    [["--from", newPath(), "--to", newPath()], "has no moltwire.db"],
    [["--from", data, "--to", to], "has a database already"],
    [["--from", data, "--to", "postgres://127.0.0.1:1/nothing"], "PostgreSQL at 127.0.0.1:1/nothing"],
    [["--from", ":memory:", "--to", to], "kept in memory"],
  ] as const;
  const before = readdirSync(folder).sort();
  const ends = await Promise.all(attempts.map(([args]) => commands.start(["migrate", ...args]).ended));
  for (const [nth, { code, stderr }] of ends.entries())
    expect([code, stderr]).toEqual([2, expect.stringContaining(attempts[nth]![1])]);
  expect(readdirSync(folder).sort()).toEqual(before);
});

const logs = ["trace_event", "outbox", "audit_event", "queue_change", "audit_head", "queue_change_floor"];

test("a checksum tells rows apart that differ in anything, and not by their order", () => {
  const sum = (...rows: Parameters<ReturnType<typeof tableSummer>["add"]>[0][]) => {
    const summer = tableSummer({ name: "t", columns: ["b", "a"] });
    for (const row of rows) summer.add(row);
    return summer.sum().checksum;
  };
  expect(sum(["x", 1n], ["y", 2n])).toBe(sum(["y", 2n], ["x", 1n]));
  const all = [
    sum(),
    sum(["x", 1n]),
    sum(["x", "1"]),
    sum(["x", 1]),
    sum(["x", null]),
    sum(["", null]),
    sum([null, "x"]),
    sum([Buffer.from("x"), 1n]),
    sum(["x", 1n], ["x", 1n]),
    sum(["xt1:", 1n]),
  ];
  expect(new Set(all).size).toBe(all.length);
});
