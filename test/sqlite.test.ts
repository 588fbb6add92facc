import { type ChildProcess, spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import { existsSync, mkdtempSync, readdirSync, rmSync, statSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { describe, expect, test } from "vitest";
import { ClosedError, type Db, OutcomeUnknownError, OverloadedError, sql } from "../src/db/db.ts";
import { openSqlite } from "../src/db/sqlite.ts";
import { StatementCache } from "../src/db/statement-cache.ts";

const acker = join(import.meta.dirname, "db-fixtures/acker.ts");

function folder() {
  const path = mkdtempSync(join(tmpdir(), "moltwire-test-"));
  return { path, file: join(path, "data.db"), [Symbol.dispose]: () => rmSync(path, { recursive: true }) };
}

const createT = (db: Db) => db.tx((tx) => tx.script("create table t (id text primary key) strict"));
const add = (db: Db, id: string) => db.tx((tx) => tx.run(sql`insert into t values (${id})`));
const count = async (db: Db) => (await db.query.one<{ n: number }>(sql`select count(*) as n from t`))?.n;
const statuses = (settled: PromiseSettledResult<unknown>[]) => settled.map(({ status }) => status);

/** The numbers a writing child has said are acknowledged; `first` resolves once there is one. */
function listenTo(child: ChildProcess, acknowledged: Set<number>): { first: Promise<void> } {
  const first = Promise.withResolvers<void>();
  let tail = "";
  child.stdout?.on("data", (chunk: Buffer) => {
    const lines = `${tail}${chunk}`.split("\n");
    tail = lines.pop() ?? "";
    for (const line of lines) acknowledged.add(Number(line));
    if (acknowledged.size > 0) first.resolve();
  });
  return { first: first.promise };
}

async function expectStored(file: string, acknowledged: Set<number>): Promise<void> {
  const db = openSqlite({ file });
  const rows = await db.query.all<{ n: number }>(sql`select n from seen`);
  const stored = new Set(rows.map(({ n }) => n));
  expect(acknowledged.difference(stored)).toEqual(new Set());
  expect(await db.query.one(sql`pragma integrity_check`)).toEqual({ integrity_check: "ok" });
  await db.close();
}

describe("durability", () => {
  test("kill -9, ten times: whatever was acknowledged is there", async () => {
    using at = folder();
    const acknowledged = new Set<number>();
    for (let round = 0; round < 10; round++) {
      const fromHere = new Set<number>();
      const child = spawn(process.execPath, [acker, at.file, String(round * 1e6)], {
        stdio: ["ignore", "pipe", "inherit"],
      });
      await listenTo(child, fromHere).first;
      setTimeout(() => child.kill("SIGKILL"), round * 7); // at another place in the work each time
      const [, signal] = await once(child, "close");
      expect(signal).toBe("SIGKILL");
      for (const n of fromHere) acknowledged.add(n);
    }
    await expectStored(at.file, acknowledged);
  });

  test("a disk that takes no more acknowledges nothing it lost, and ends the process", async () => {
    using at = folder();
    // No file may grow beyond 400 KB: to the process that is a disk that fails its writes.
    const script = `ulimit -f 400; exec "$0" "$@"`;
    const child = spawn("bash", ["-c", script, process.execPath, acker, at.file, "0"]);
    const acknowledged = new Set<number>();
    listenTo(child, acknowledged);
    let stderr = "";
    child.stderr.on("data", (chunk: Buffer) => {
      stderr += chunk;
    });
    const [status] = await once(child, "close");
    expect(stderr).toMatch(/storage failed/);
    expect(status).toBe(1);
    expect(acknowledged.size).toBeGreaterThan(0);
    await expectStored(at.file, acknowledged);
  });

  test("a failing COMMIT acknowledges nobody and is fatal", async () => {
    using at = folder();
    const fatal: unknown[] = [];
    const db = openSqlite({ file: at.file, onFatal: (error) => fatal.push(error), maxBatch: 3 });
    await db.tx((tx) =>
      tx.script(`create table t (id text primary key);
        create table child (id text references t deferrable initially deferred)`),
    );
    const batch = [
      add(db, "a"),
      db.tx((tx) => tx.run(sql`insert into child values ('orphan')`)), // violates at COMMIT only
      db.tx(async () => {
        throw new Error("refused");
      }),
    ];
    const next = add(db, "b");
    for (const body of batch) await expect(body).rejects.toThrow(OutcomeUnknownError);
    await expect(next).rejects.toThrow(ClosedError);
    expect(fatal).toHaveLength(1);
    await expect(add(db, "c")).rejects.toThrow(ClosedError);
    expect(await count(db)).toBe(0);
    await db.close();
  });

  test("losing the outer transaction is fatal, and no later body writes outside one", async () => {
    using at = folder();
    const fatal: unknown[] = [];
    const db = openSqlite({ file: at.file, onFatal: (error) => fatal.push(error) });
    await createT(db);
    const addOrRollback = (id: string) => db.tx((tx) => tx.run(sql`insert or rollback into t values (${id})`));
    const settled = await Promise.allSettled(["a", "a", "b"].map(addOrRollback));
    expect(statuses(settled)).toEqual(["rejected", "rejected", "rejected"]);
    expect(fatal).toMatchObject([
      { message: "the transaction of the batch was lost", cause: { code: "SQLITE_CONSTRAINT_PRIMARYKEY" } },
    ]);
    expect(await count(db)).toBe(0);
    await db.close();
  });

  test("the settings are those that keep an acknowledged commit", async () => {
    using at = folder();
    const db = openSqlite({ file: at.file });
    const settings = await db.tx(async (tx) => [
      await tx.one(sql`pragma journal_mode`),
      await tx.one(sql`pragma synchronous`),
      await tx.one(sql`pragma foreign_keys`),
    ]);
    expect(settings).toEqual([{ journal_mode: "wal" }, { synchronous: 2 }, { foreign_keys: 1 }]);
    await db.close();
  });
});

describe("the data file", () => {
  test("a second process is told that the file is in use, and what to do", async () => {
    using at = folder();
    const db = openSqlite({ file: at.file });
    expect(() => openSqlite({ file: at.file })).toThrow(/in use by another process/);
    const { stderr, status } = spawnSync(process.execPath, [acker, at.file], { encoding: "utf8", timeout: 120_000 });
    expect(status).toBe(1);
    expect(stderr).toContain(`${at.file} is in use by another process`);
    expect(stderr).toContain("stop the other one");
    await db.close();
    await openSqlite({ file: at.file }).close();
  });

  test("another name of the same file is the same file", async () => {
    using at = folder();
    const db = openSqlite({ file: at.file });
    const link = join(at.path, "link.db");
    symlinkSync(at.file, link);
    expect(() => openSqlite({ file: link })).toThrow(/in use by another process/);
    await db.close();
  });

  test("is readable by its owner only, and so is what SQLite puts beside it", async () => {
    using at = folder();
    const db = openSqlite({ file: at.file });
    await createT(db);
    const modes = readdirSync(at.path).map((name) => [name, statSync(join(at.path, name)).mode & 0o777]);
    expect(modes).toEqual(["data.db", "data.db-lock", "data.db-shm", "data.db-wal"].map((name) => [name, 0o600]));
    await db.close();
  });

  test("close moves everything into the one file and lets go of it", async () => {
    using at = folder();
    const db = openSqlite({ file: at.file });
    await createT(db);
    await add(db, "a");
    await Promise.all([db.close(), db.close()]);
    expect(existsSync(`${at.file}-wal`)).toBe(false);
    const again = openSqlite({ file: at.file });
    expect(await count(again)).toBe(1);
    await again.close();
  });

  test("one that cannot be opened is named, with the reason, and is not left locked", async () => {
    using at = folder();
    const nowhere = join(at.path, "missing", "data.db");
    expect(() => openSqlite({ file: nowhere })).toThrow(`${nowhere} cannot be opened: there is no folder`);
    expect(() => openSqlite({ file: at.path })).toThrow(`${at.path} cannot be opened: it is no file`);
    writeFileSync(at.file, "this is no database".repeat(100));
    expect(() => openSqlite({ file: at.file })).toThrow(`${at.file} cannot be opened: file is not a database`);
    rmSync(at.file);
    await openSqlite({ file: at.file }).close();
  });

  test("an ephemeral one is in a folder of its own, which is gone after close", async () => {
    const [one, two] = [openSqlite({ file: ":memory:" }), openSqlite({ ephemeral: true })];
    await createT(one);
    await add(one, "a");
    await createT(two);
    expect([await count(one), await count(two)]).toEqual([1, 0]);
    const row = await one.query.one<{ file: string }>(sql`select file from pragma_database_list`);
    const path = dirname(row!.file);
    expect(statSync(path).mode & 0o777).toBe(0o700);
    await Promise.all([one.close(), two.close()]);
    expect(existsSync(path)).toBe(false);
  });
});

describe("group commit", () => {
  test("bodies that arrive together share a batch, up to its limit", async () => {
    const sizes: number[] = [];
    const db = openSqlite({
      ephemeral: true,
      maxBatch: 4,
      maxBatchMs: 60_000,
      onBatch: ({ size }) => sizes.push(size),
    });
    await createT(db);
    await Promise.all(Array.from({ length: 10 }, (_, i) => add(db, `${i}`)));
    expect(sizes).toEqual([1, 4, 4, 2]);
    await db.close();
  });

  test("a batch of slow bodies is cut by time, and the event loop turns between", async () => {
    const batches: { size: number; ms: number; turn: number }[] = [];
    let turn = 0;
    let turning = true;
    const nextTurn = () => {
      turn++;
      if (turning) setImmediate(nextTurn);
    };
    const db = openSqlite({ ephemeral: true, maxBatchMs: 5, onBatch: (batch) => batches.push({ ...batch, turn }) });
    await createT(db);
    batches.length = 0;
    nextTurn();
    const slow = (id: number) =>
      db.tx(async (tx) => {
        const until = performance.now() + 3;
        while (performance.now() < until);
        await tx.run(sql`insert into t values (${`${id}`})`);
      });
    await Promise.all(Array.from({ length: 20 }, (_, i) => slow(i)));
    turning = false;
    expect(batches.reduce((sum, { size }) => sum + size, 0)).toBe(20);
    expect(Math.max(...batches.map(({ size }) => size))).toBeLessThanOrEqual(2);
    expect(Math.min(...batches.map(({ ms }) => ms))).toBeGreaterThan(2);
    expect(new Set(batches.map((batch) => batch.turn)).size).toBe(batches.length);
    expect(await count(db)).toBe(20);
    await db.close();
  });

  test("beyond the limit of the queue a transaction is refused at once, and room is made by commits", async () => {
    const db = openSqlite({ ephemeral: true, maxQueue: 5 });
    await createT(db);
    const settled = await Promise.allSettled(Array.from({ length: 8 }, (_, i) => add(db, `${i}`)));
    expect(statuses(settled)).toEqual([...Array(5).fill("fulfilled"), ...Array(3).fill("rejected")]);
    expect(settled[7]).toMatchObject({ reason: expect.any(OverloadedError) });
    expect(await count(db)).toBe(5);
    await add(db, "later");
    await db.close();
  });

  test("another program's lock on the file refuses the batch and harms nothing", async () => {
    using at = folder();
    const db = openSqlite({ file: at.file });
    await createT(db);
    const { default: Database } = await import("better-sqlite3");
    const shell = new Database(at.file);
    shell.exec("begin immediate");
    await expect(add(db, "a")).rejects.toThrow(OverloadedError);
    shell.exec("rollback");
    shell.close();
    await add(db, "a");
    expect(await count(db)).toBe(1);
    await db.close();
  });
});

describe("the statement cache", () => {
  test("never holds more than its limit, and keeps what is in use", () => {
    const cache = new StatementCache<{ text: string }>(10);
    let made = 0;
    const make = (text: string) => {
      made++;
      return { text };
    };
    const used = cache.get("used", make);
    for (let i = 0; i < 1_000; i++) {
      cache.get(`once ${i}`, make);
      expect(cache.get("used", make)).toBe(used);
      expect(cache.size).toBeLessThanOrEqual(10);
    }
    expect(made).toBe(1_001);
  });
});
