import { AsyncLocalStorage } from "node:async_hooks";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { Bells, ClosedError, type Db, MisuseError, sql, type Tx, type Value } from "../src/db/db.ts";
import { type Migration, migrate, readMigrations } from "../src/db/migrate.ts";
import { engines } from "./engines.ts";

const migrations = new URL("./db-fixtures/migrations/", import.meta.url);

const addJob = (tx: Tx, id: string) =>
  tx.run(sql`insert into job (id, state, priority) values (${id}, ${"ready"}, ${5})`);

const jobIds = async (db: Db) =>
  (await db.query.all<{ id: string }>(sql`select id from job order by id`)).map(({ id }) => id);

/** One text for both engines; materialized, or PostgreSQL may run the inner select again and claim more. */
const claimJobs = (tx: Tx, worker: string, limit: number) =>
  tx.all<{ id: string }>(sql`
    with picked as materialized (
      select id from job where state = 'ready' order by priority desc, id limit ${limit} ${tx.dialect.skipLocked}
    )
    update job set state = 'running', worker = ${worker} where id in (select id from picked) returning id`);

const statuses = (settled: PromiseSettledResult<unknown>[]) => settled.map(({ status }) => status);

describe.each(engines)("$name", (engine) => {
  test("a failing body undoes itself and no other of its batch", async () => {
    await using setup = await engine.open({ migrations });
    const { db } = setup;
    const bodies = Array.from({ length: 40 }, (_, i) =>
      db.tx(async (tx) => {
        await addJob(tx, `j${i}`);
        if (i % 4 === 1) throw new Error("refused");
        if (i % 4 === 2) await addJob(tx, `j${i}`); // unique violation
      }),
    );
    const expected = bodies.map((_, i) => (i % 4 === 0 || i % 4 === 3 ? "fulfilled" : "rejected"));
    expect(statuses(await Promise.allSettled(bodies))).toEqual(expected);
    expect(await jobIds(db)).toHaveLength(20);
  });

  test("a swallowed statement error still prevents the commit", async () => {
    await using setup = await engine.open({ migrations });
    const { db } = setup;
    await db.tx((tx) => addJob(tx, "a"));
    const body = db.tx(async (tx) => {
      await addJob(tx, "b");
      await addJob(tx, "a").catch(() => {});
      return "done";
    });
    await expect(body).rejects.toThrow(/unique/i);
    expect(await jobIds(db)).toEqual(["a"]);
  });

  test("what a reader sees is committed, and what was acknowledged it sees", async () => {
    await using setup = await engine.open({ migrations });
    const { db } = setup;
    await Promise.all(
      Array.from({ length: 50 }, async (_, i) => {
        await db.tx((tx) => addJob(tx, `j${i}`));
        expect(await db.query.one(sql`select id from job where id = ${`j${i}`}`)).toEqual({ id: `j${i}` });
      }),
    );
    const failed = db.tx(async (tx) => {
      await tx.run(sql`delete from job`);
      throw new Error("refused");
    });
    await expect(failed).rejects.toThrow("refused");
    expect(await jobIds(db)).toHaveLength(50);
  });

  test("a query cannot write", async () => {
    await using setup = await engine.open({ migrations });
    const { db } = setup;
    await db.tx((tx) => addJob(tx, "a"));
    await expect(db.query.all(sql`delete from job returning id`)).rejects.toThrow(/read-?only/);
    await expect(db.query.one(sql`delete from job`)).rejects.toThrow(/read-?only/);
    expect(await jobIds(db)).toEqual(["a"]);
  });

  test("bells ring after the commit, and not for a rollback", async () => {
    await using setup = await engine.open({ migrations });
    const { db } = setup;
    const leaving = new AbortController();
    const good = db.listen("good", leaving.signal);
    const bad = db.listen("bad", leaving.signal);
    const heard = good.wait(5_000, leaving.signal).then(async (rung) => ({ rung, ids: await jobIds(db) }));
    const failed = db.tx(async (tx) => {
      tx.ring("bad");
      throw new Error("refused");
    });
    await expect(failed).rejects.toThrow("refused");
    await db.tx(async (tx) => {
      tx.ring("good");
      await addJob(tx, "a");
    });
    expect(await heard).toEqual({ rung: true, ids: ["a"] });
    expect(await bad.wait(20, leaving.signal)).toBe(false);
  });

  test("one bell hangs on several topics", async () => {
    await using setup = await engine.open();
    const { db } = setup;
    const { signal } = new AbortController();
    const bell = db.listen(["a", "b"], signal);
    for (const topic of ["a", "b"]) {
      await db.tx(async (tx) => tx.ring(topic));
      expect(await bell.wait(5_000, signal)).toBe(true);
    }
    await db.tx(async (tx) => tx.ring("c"));
    expect(await bell.wait(20, signal)).toBe(false);
    await expect(db.tx(async (tx) => tx.ring("x".repeat(513)))).rejects.toThrow(MisuseError);
  });

  test("64 claimers share 500 jobs with none lost and none claimed twice", async () => {
    await using setup = await engine.open({ migrations });
    const { db } = setup;
    await db.tx(async (tx) => {
      for (let i = 0; i < 500; i++) await addJob(tx, `j${i}`);
    });
    const claimed: string[] = [];
    await Promise.all(
      Array.from({ length: 64 }, async (_, worker) => {
        for (;;) {
          const jobs = await db.tx((tx) => claimJobs(tx, `w${worker}`, 3));
          expect(jobs.length).toBeLessThanOrEqual(3);
          if (jobs.length === 0) return;
          claimed.push(...jobs.map(({ id }) => id));
        }
      }),
    );
    expect(claimed).toHaveLength(500);
    expect(new Set(claimed).size).toBe(500);
  });

  test("a head row gives numbers without gaps and without duplicates", async () => {
    await using setup = await engine.open({ migrations });
    const { db } = setup;
    const heads = await Promise.all(
      Array.from({ length: 100 }, () =>
        db.tx((tx) => tx.one<{ n: number }>(sql`update counter set n = n + 1 where id = 'head' returning n`)),
      ),
    );
    const numbers = heads.map((row) => row!.n).sort((a, b) => a - b);
    expect(numbers).toEqual(Array.from({ length: 100 }, (_, i) => i + 1));
  });

  test("a row read for update and then written loses no update", async () => {
    await using setup = await engine.open({ migrations });
    const { db } = setup;
    const increment = async (tx: Tx) => {
      const row = await tx.one<{ n: number }>(sql`select n from counter where id = 'head' ${tx.dialect.forUpdate}`);
      await tx.run(sql`update counter set n = ${row!.n + 1} where id = 'head'`);
    };
    await Promise.all(Array.from({ length: 64 }, () => db.tx(increment)));
    expect(await db.query.one(sql`select n from counter`)).toEqual({ n: 64 });
  });

  test("a follower of an order-only log sees every row of 32 writers exactly once", async () => {
    await using setup = await engine.open({ migrations });
    const { db } = setup;
    const writers = 32;
    const rowsEach = 10;
    /** Late in committing, so that rows with higher numbers are there before it is. */
    const dawdle = (tx: Tx) =>
      tx.dialect.name === "postgres" ? tx.all(sql`select pg_sleep(0.03)`) : Promise.resolve([]);
    const append = (writer: number, row: number) =>
      db.tx(async (tx) => {
        await tx.run(sql`insert into event (xid, writer) values (${tx.dialect.xid}, ${`${writer}/${row}`})`);
        tx.ring("event");
        if ((writer + row) % 4 === 0) await dawdle(tx);
      });
    const writing = Promise.all(
      Array.from({ length: writers }, async (_, writer) => {
        for (let row = 0; row < rowsEach; row++) await append(writer, row);
      }),
    );
    const leaving = new AbortController();
    const bell = db.listen("event", leaving.signal);
    const cursor = { xid: 0, seq: 0 };
    const readPage = () =>
      db.query.all<{ xid: number; seq: number; writer: string }>(sql`
        select xid, seq, writer from event
        where (xid, seq) > (${cursor.xid}, ${cursor.seq}) and xid < ${db.query.dialect.horizon}
        order by xid, seq limit 7`);
    const seen: string[] = [];
    while (seen.length < writers * rowsEach) {
      const page = await readPage();
      for (const { xid, seq, writer } of page) {
        Object.assign(cursor, { xid, seq });
        seen.push(writer);
      }
      if (page.length === 0) await bell.wait(20, leaving.signal);
    }
    await writing;
    expect(await readPage()).toEqual([]);
    expect(new Set(seen).size).toBe(writers * rowsEach);
  });

  test("db is refused inside a body; afterwards, and to others, it is not", async () => {
    await using setup = await engine.open({ migrations });
    const { db } = setup;
    await expect(db.tx(() => db.tx((tx) => addJob(tx, "x")))).rejects.toThrow(MisuseError);
    await expect(db.tx(() => jobIds(db))).rejects.toThrow(/inside a transaction/);
    const over = Promise.withResolvers<void>();
    let later: Promise<string[]> | undefined;
    await Promise.all([
      db.tx(async (tx) => {
        later = over.promise.then(() => jobIds(db));
        await addJob(tx, "a");
      }),
      db.tx((tx) => addJob(tx, "b")),
      jobIds(db),
    ]);
    over.resolve();
    expect(await later).toEqual(["a", "b"]);
  });

  test("I/O in a body fails that body; the others of its batch and new ones go on", async () => {
    await using setup = await engine.open({ migrations, idleInTxMs: 200 });
    const { db } = setup;
    const io = Promise.withResolvers<void>();
    const bodies: Promise<unknown>[] = [];
    const waiting = (tx: Tx) => {
      const body = (async () => {
        await addJob(tx, `slow${bodies.length}`);
        await io.promise;
        await addJob(tx, "too late");
      })();
      bodies.push(body);
      return body;
    };
    const settled = await Promise.allSettled([
      db.tx((tx) => addJob(tx, "a")),
      db.tx(waiting),
      db.tx((tx) => addJob(tx, "b")),
      db.tx(waiting),
      db.tx(() => new Promise(() => {})),
    ]);
    expect(statuses(settled)).toEqual(["fulfilled", "rejected", "fulfilled", "rejected", "rejected"]);
    for (const outcome of settled)
      if (outcome.status === "rejected") expect(outcome.reason).toBeInstanceOf(MisuseError);
    await db.tx((tx) => addJob(tx, "c"));
    io.resolve();
    for (const body of bodies) await expect(body).rejects.toThrow(/over/);
    expect(await jobIds(db)).toEqual(["a", "b", "c"]);
  });

  test("a tx kept beyond its body is refused", async () => {
    await using setup = await engine.open({ migrations });
    const { db } = setup;
    const kept = await db.tx(async (tx) => ({ tx }));
    await expect(addJob(kept.tx, "a")).rejects.toThrow(/over/);
    expect(() => kept.tx.ring("topic")).toThrow(/over/);
    expect(await jobIds(db)).toEqual([]);
  });

  test("a body runs in its caller's async context", async () => {
    await using setup = await engine.open({ migrations });
    const { db } = setup;
    const caller = new AsyncLocalStorage<number>();
    const ask = async (tx: Tx) => {
      const before = caller.getStore();
      await addJob(tx, `j${before}`);
      return [before, caller.getStore()];
    };
    const seen = await Promise.all([1, 2, 3].map((i) => caller.run(i, () => db.tx(ask))));
    expect(seen).toEqual([
      [1, 1],
      [2, 2],
      [3, 3],
    ]);
  });

  test("values come back as they went in", async () => {
    await using setup = await engine.open({ migrations });
    const { db } = setup;
    const big = 2n ** 60n + 1n;
    const payload = new Uint8Array([0, 1, 255]);
    await db.tx(async (tx) => {
      await tx.run(sql`
        insert into job (id, state, priority, amount, payload)
        values ('a', ${"schön 🦞"}, ${1_700_000_000_000}, ${big}, ${payload})`);
      await tx.run(sql`update job set state = state || cast(${7} as text) where id = 'a'`);
    });
    expect(await db.query.one(sql`select state, priority, amount, worker, payload from job`)).toEqual({
      ...{ state: "schön 🦞7", priority: 1_700_000_000_000, amount: big, worker: null, payload },
    });
    const row = await db.query.one(sql`
      select count(*) as n, cast(sum(priority) as bigint) as total, id = 'a' as yes, id = 'b' as no from job group by id`);
    expect(row).toEqual({ n: 1, total: 1_700_000_000_000, yes: 1, no: 0 });
    expect(await db.query.one(sql`select id from job where id = 'none'`)).toBeUndefined();
  });

  test("a value that one engine would change in silence is refused by both", async () => {
    await using setup = await engine.open({ migrations });
    const { db } = setup;
    const bad: unknown[] = [
      "nul \0",
      Number.NaN,
      Number.POSITIVE_INFINITY,
      2 ** 60,
      undefined,
      true,
      new Date(0),
      ["a"],
    ];
    for (const value of bad) {
      const write = db.tx((tx) => tx.run(sql`update job set worker = ${value as Value}`));
      await expect(write, String(value)).rejects.toThrow(MisuseError);
      await expect(db.query.all(sql`select id from job where id = ${value as Value}`)).rejects.toThrow(MisuseError);
    }
  });

  test("run counts the rows changed, and any verb takes any statement", async () => {
    await using setup = await engine.open({ migrations });
    const { db } = setup;
    await db.tx(async (tx) => {
      expect(await tx.all(sql`insert into job (id, state, priority) values ('a', 's', 1), ('b', 's', 2)`)).toEqual([]);
      expect(await tx.run(sql`update job set state = 's'`)).toBe(2);
      expect(await tx.run(sql`update job set state = 't' where id = 'a' returning id`)).toBe(1);
      expect(await tx.run(sql`insert into job (id, state, priority) values ('a', 's', 1) on conflict do nothing`)).toBe(
        0,
      );
      expect(await tx.one(sql`delete from job where id = 'b'`)).toBeUndefined();
    });
    expect(await jobIds(db)).toEqual(["a"]);
  });

  test("Promise.all inside a body works", async () => {
    await using setup = await engine.open({ migrations });
    const { db } = setup;
    await db.tx((tx) => Promise.all(["a", "b", "c"].map((id) => addJob(tx, id))));
    expect(await jobIds(db)).toEqual(["a", "b", "c"]);
  });

  test("close finishes what was accepted and refuses the rest", async () => {
    await using setup = await engine.open({ migrations });
    const { db } = setup;
    const accepted = Array.from({ length: 300 }, (_, i) => db.tx((tx) => addJob(tx, `j${i}`)));
    const reads = Array.from({ length: 20 }, () => jobIds(db));
    const closing = db.close();
    await expect(db.tx((tx) => addJob(tx, "late"))).rejects.toThrow(ClosedError);
    expect(await Promise.all(accepted)).toEqual(accepted.map(() => 1));
    await Promise.all(reads);
    await closing;
    await expect(jobIds(db)).rejects.toThrow(ClosedError);
  });

  describe("migrate", () => {
    const step = (version: number, text: string): Migration => ({
      ...{ version, text, file: `000${version}-step.sql` },
    });
    const first = step(1, "create table t (id text)");
    const second = step(2, "insert into t values ('once')");

    test("ten racing starters take each step once", async () => {
      await using setup = await engine.open();
      const { db } = setup;
      await Promise.all(Array.from({ length: 10 }, () => migrate(db, [first, second])));
      expect(await db.query.all(sql`select * from t`)).toEqual([{ id: "once" }]);
      await migrate(db, [first, second, step(3, "insert into t values ('later')")]);
      expect(await db.query.all(sql`select * from t order by id`)).toEqual([{ id: "later" }, { id: "once" }]);
    });

    test("a schema made by a newer program is refused, naming both", async () => {
      await using setup = await engine.open();
      const { db } = setup;
      await migrate(db, [first, second]);
      await expect(migrate(db, [first])).rejects.toThrow(/schema 2.* only 1: .*newer Moltwire/);
    });

    test("a failing migration names its file, leaves nothing of itself and keeps those before", async () => {
      await using setup = await engine.open();
      const { db } = setup;
      const broken = step(2, "create table half (id text); insert into nowhere values (1)");
      await expect(migrate(db, [first, broken])).rejects.toThrow(/0002-step\.sql failed: .*nowhere/);
      await expect(db.query.all(sql`select * from half`)).rejects.toThrow(/half/);
      await migrate(db, [first, second]);
      expect(await db.query.all(sql`select * from t`)).toEqual([{ id: "once" }]);
    });
  });
});

describe("readMigrations", () => {
  const folderOf = (...files: string[]) => {
    const path = mkdtempSync(join(tmpdir(), "moltwire-test-"));
    for (const file of files) writeFileSync(join(path, file), `-- ${file}`);
    return { path, [Symbol.dispose]: () => rmSync(path, { recursive: true }) };
  };
  const filesFor = (path: string, dialect: "sqlite" | "postgres") =>
    readMigrations(path, dialect).map(({ version, file, text }) => `${version} ${file} ${text}`);

  test("gives each dialect its own file of a number, else the common one", () => {
    using folder = folderOf(
      "0001-a.sql",
      "0002-b.sqlite.sql",
      "0002-b.postgres.sql",
      "0003-c.sql",
      "0003-c.sqlite.sql",
    );
    expect(filesFor(folder.path, "sqlite")).toEqual([
      "1 0001-a.sql -- 0001-a.sql",
      "2 0002-b.sqlite.sql -- 0002-b.sqlite.sql",
      "3 0003-c.sqlite.sql -- 0003-c.sqlite.sql",
    ]);
    expect(filesFor(folder.path, "postgres")).toEqual([
      "1 0001-a.sql -- 0001-a.sql",
      "2 0002-b.postgres.sql -- 0002-b.postgres.sql",
      "3 0003-c.sql -- 0003-c.sql",
    ]);
  });

  test("refuses a gap, a number used twice and a name it cannot read", () => {
    using gap = folderOf("0001-a.sql", "0003-b.sql");
    expect(() => readMigrations(gap.path, "sqlite")).toThrow(/0002 for sqlite is missing/);
    using oneSided = folderOf("0001-a.sql", "0002-b.sqlite.sql", "0003-c.sql");
    expect(() => readMigrations(oneSided.path, "postgres")).toThrow(/0002 for postgres is missing/);
    using twice = folderOf("0001-a.sql", "0001-b.sql");
    expect(() => readMigrations(twice.path, "sqlite")).toThrow(/same number/);
    using odd = folderOf("0001-a.mysql.sql");
    expect(() => readMigrations(odd.path, "sqlite")).toThrow(/0001-a\.mysql\.sql/);
  });
});

describe("a bell", () => {
  test("remembers rings before the wait as one", async () => {
    const bells = new Bells();
    const { signal } = new AbortController();
    const bell = bells.add("t", signal);
    bells.ring(["t", "t"]);
    bells.ring(["t"]);
    expect(await bell.wait(1_000, signal)).toBe(true);
    expect(await bell.wait(1, signal)).toBe(false);
  });

  test("ends a wait with the reason of the signal, and is taken down", async () => {
    const bells = new Bells();
    const leaving = new AbortController();
    const bell = bells.add(["t", "u"], leaving.signal);
    const waiting = bell.wait(10_000, leaving.signal);
    expect(bells.size).toBe(2);
    leaving.abort(new Error("left"));
    await expect(waiting).rejects.toThrow("left");
    await expect(bell.wait(1, leaving.signal)).rejects.toThrow("left");
    expect(bells.size).toBe(0);
  });

  test("refuses a second waiter, and is whole after the first", async () => {
    const bells = new Bells();
    const { signal } = new AbortController();
    const bell = bells.add("t", signal);
    const waiting = bell.wait(10_000, signal);
    await expect(bell.wait(1, signal)).rejects.toThrow(MisuseError);
    bells.ringAll();
    expect(await waiting).toBe(true);
  });
});
