import { inspect } from "node:util";
import pg from "pg";
import { describe, expect, test } from "vitest";
import {
  ClosedError,
  type Db,
  MisuseError,
  OutcomeUnknownError,
  OverloadedError,
  sql,
  UnavailableError,
} from "../src/db/db.ts";
import { type Migration, migrate } from "../src/db/migrate.ts";
import { openPostgres, type PostgresOptions } from "../src/db/postgres.ts";
import { packTopics } from "../src/db/postgres-bells.ts";
import { wireTo } from "./db-fixtures/wire.ts";
import { freshDatabase, postgresUrl } from "./engines.ts";
import { eventually } from "./harness.ts";

/** A fresh database, opened any number of times, and a plain connection beside it. */
async function setUp() {
  const { url, drop } = await freshDatabase();
  const admin = new pg.Client({ connectionString: url });
  admin.on("error", () => {});
  await admin.connect();
  const opened: Db[] = [];
  return {
    url,
    admin,
    async open(options?: PostgresOptions): Promise<Db> {
      const db = await openPostgres(url, options);
      opened.push(db);
      return db;
    },
    async [Symbol.asyncDispose]() {
      await Promise.all(opened.map((db) => db.close()));
      await admin.end();
      await drop();
    },
  };
}

/** Resolves once a session of this database is in this state of a statement like this; gives its process id. */
async function seen(admin: pg.Client, state: "active" | "idle in transaction", statement: string): Promise<number> {
  for (;;) {
    const { rows } = await admin.query(
      `select pid from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()
        and state = $1 and query like $2`,
      [state, statement],
    );
    if (rows.length > 0) return rows[0].pid;
  }
}

const terminate = (admin: pg.Client, pid: number) => admin.query("select pg_terminate_backend($1)", [pid]);

const createT = (db: Db) => db.tx((tx) => tx.script("create table t (id text primary key, n bigint default 0)"));
const add = (db: Db, id: string) => db.tx((tx) => tx.run(sql`insert into t (id) values (${id})`));
/** Calls until the database is no longer away. */
const whenBack = (call: () => Promise<unknown>): Promise<true> =>
  eventually(() =>
    call().then(
      () => true as const,
      (error) => {
        expect([UnavailableError, OverloadedError].some((kind) => error instanceof kind)).toBe(true);
        return false as const;
      },
    ),
  );
const ids = async (db: Db) =>
  (await db.query.all<{ id: string }>(sql`select id from t order by id`)).map(({ id }) => id);

describe.skipIf(!postgresUrl)("PostgreSQL", () => {
  test("ten racing processes migrate once", async () => {
    await using at = await setUp();
    const step = (version: number, text: string): Migration => ({ version, text, file: `000${version}-step.sql` });
    const migrations = [
      step(1, "create table t (id text); select pg_sleep(0.05)"),
      step(2, "insert into t values ('once')"),
    ];
    const starters = await Promise.all(Array.from({ length: 10 }, () => at.open({ maxConnections: 2 })));
    await Promise.all(starters.map((db) => migrate(db, migrations)));
    expect(await ids(starters[0]!)).toEqual(["once"]);
  });

  test("a migration, and the wait for another starter's, may take longer than a statement", async () => {
    await using at = await setUp();
    const [one, two] = [await at.open({ statementTimeoutMs: 2_000 }), await at.open({ statementTimeoutMs: 2_000 })];
    const slow = [{ version: 1, file: "0001-slow.sql", text: "create table t (id text); select pg_sleep(3)" }];
    await Promise.all([migrate(one, slow), migrate(two, slow)]);
    expect(await ids(one)).toEqual([]);
    await expect(one.query.all(sql`select pg_sleep(60)`)).rejects.toThrow(/statement timeout/);
  });

  test("a ring reaches the bells of other processes after the commit, and many rings take few notifications", async () => {
    await using at = await setUp();
    const [here, there] = [await at.open(), await at.open()];
    await createT(here);
    const { signal } = new AbortController();
    const bell = there.listen("topic 49", signal);
    let notifications = 0;
    const topics = new Set<string>();
    await at.admin.query("listen moltwire_bells");
    at.admin.on("notification", ({ payload = "" }) => {
      notifications++;
      for (const topic of JSON.parse(payload)) topics.add(topic);
    });
    await Promise.all(
      Array.from({ length: 200 }, (_, i) =>
        here.tx(async (tx) => {
          await tx.run(sql`insert into t (id) values (${`${i}`})`);
          tx.ring(`topic ${i % 50}`);
        }),
      ),
    );
    expect(await bell.wait(5_000, signal)).toBe(true);
    await here.close(); // sends what is waiting
    while (topics.size < 50) await at.admin.query("select 1");
    expect(notifications).toBeLessThan(100);
    expect(await there.query.one(sql`select count(*) as n from t`)).toEqual({ n: 200 });
  });

  test("after its connection was cut the listener returns, rings every bell, and rings reach others again", async () => {
    await using at = await setUp();
    const [here, there] = [await at.open(), await at.open()];
    const { signal } = new AbortController();
    const bells = [here.listen("a", signal), there.listen("b", signal)];
    await at.admin.query("select pg_terminate_backend(pid) from pg_stat_activity where query like 'listen moltwire%'");
    for (const bell of bells) expect(await bell.wait(10_000, signal)).toBe(true);
    await here.tx(async (tx) => tx.ring("b"));
    expect(await bells[1]!.wait(10_000, signal)).toBe(true);
  });

  test("a ring while the listener is away reaches others on its return", async () => {
    await using at = await setUp();
    const [here, there] = [await at.open({ maxConnections: 1 }), await at.open()];
    const { signal } = new AbortController();
    const bell = there.listen("topic", signal);
    await here.tx(async () => {}); // its writer is connected
    const { rows } = await at.admin.query(
      `select pid from pg_stat_activity where datname = current_database() and query like 'listen moltwire%'
        order by backend_start limit 1`,
    );
    await terminate(at.admin, rows[0].pid);
    await here.tx(async (tx) => tx.ring("topic"));
    expect(await bell.wait(10_000, signal)).toBe(true);
  });

  test("more topics at once than can be kept ring every bell of the others", async () => {
    await using at = await setUp();
    const [here, there] = [await at.open(), await at.open()];
    const { signal } = new AbortController();
    const bell = there.listen("any topic", signal);
    await here.tx(async (tx) => {
      for (let i = 0; i <= 10_000; i++) tx.ring(`${i}`);
    });
    expect(await bell.wait(10_000, signal)).toBe(true);
  });

  test("a body that ends its own transaction is refused", async () => {
    await using at = await setUp();
    const db = await at.open();
    await createT(db);
    await expect(db.tx((tx) => tx.script("rollback"))).rejects.toThrow(MisuseError);
    await add(db, "after");
    expect(await ids(db)).toEqual(["after"]);
  });

  test("topics are packed into few payloads that PostgreSQL takes", () => {
    const topics = Array.from({ length: 200 }, (_, i) => `${i}${"\u0001🦞".repeat(170)}`);
    const payloads = packTopics(topics);
    expect(payloads.flatMap((payload) => JSON.parse(payload))).toEqual(topics);
    const bytes = payloads.map((payload) => Buffer.byteLength(payload));
    expect(Math.max(...bytes)).toBeLessThan(8_000);
    expect(Math.min(...bytes.slice(0, -1))).toBeGreaterThan(8_000 - 2_100);
    expect(packTopics([])).toEqual([]);
  });

  test("deadlocks are retried", async () => {
    await using at = await setUp();
    const db = await at.open();
    await createT(db);
    await Promise.all([add(db, "a"), add(db, "b")]);
    let runs = 0;
    const both = Promise.withResolvers<void>();
    const bump = (order: string[]) =>
      db.tx(async (tx) => {
        await tx.run(sql`update t set n = n + 1 where id = ${order[0]!}`);
        if (++runs === 2) both.resolve();
        await both.promise; // each has one row and asks for the other's
        await tx.run(sql`update t set n = n + 1 where id = ${order[1]!}`);
      });
    await Promise.all([bump(["a", "b"]), bump(["b", "a"])]);
    expect(runs).toBeGreaterThanOrEqual(3); // on a slow machine the second try can lose again
    expect(await db.query.all(sql`select n from t`)).toEqual([{ n: 2 }, { n: 2 }]);
  });

  test("serialization failures are retried, but not for ever", async () => {
    await using at = await setUp();
    const db = await at.open();
    let runs = 0;
    const fail = "do $$ begin raise exception 'lost a race' using errcode = '40001'; end $$";
    const won = await db.tx(async (tx) => {
      if (++runs < 4) await tx.script(fail);
      return "won";
    });
    expect([won, runs]).toEqual(["won", 4]);
    await expect(db.tx((tx) => tx.script(fail))).rejects.toThrow("lost a race");
  });

  test("a body whose connection is cut, during a statement or between two, runs again on another", async () => {
    await using at = await setUp();
    const db = await at.open();
    await createT(db);
    let runs = 0;
    const cut = db.tx(async (tx) => {
      runs++;
      await tx.run(sql`insert into t (id) values ('cut')`);
      if (runs === 1) await tx.all(sql`select pg_sleep(60)`);
      if (runs === 2) await new Promise(() => {});
    });
    await terminate(at.admin, await seen(at.admin, "active", "select pg_sleep(60)%"));
    await terminate(at.admin, await seen(at.admin, "idle in transaction", "insert into t%"));
    await cut;
    expect(runs).toBe(3);
    await add(db, "after");
    expect(await ids(db)).toEqual(["after", "cut"]);
  });

  test("a connection cut during a commit leaves the outcome unknown, and says so", async () => {
    await using at = await setUp();
    const db = await at.open();
    await createT(db);
    await db.tx((tx) =>
      tx.script(`
        create function dawdle() returns trigger language plpgsql as $$ begin perform pg_sleep(60); return null; end $$;
        create constraint trigger slow after insert on t deferrable initially deferred
          for each row execute function dawdle()`),
    );
    const cut = expect(add(db, "a")).rejects.toThrow(OutcomeUnknownError);
    await terminate(at.admin, await seen(at.admin, "active", "commit%"));
    await cut;
  });

  test("after every idle connection was cut, reads and transactions go on", async () => {
    await using at = await setUp();
    const db = await at.open();
    await createT(db);
    await Promise.all(Array.from({ length: 30 }, (_, i) => Promise.all([add(db, `${i}`), ids(db)])));
    await at.admin.query(
      "select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()",
    );
    const after = Array.from({ length: 30 }, (_, i) => Promise.all([add(db, `after ${i}`), ids(db)]));
    await Promise.all(after);
    expect(await ids(db)).toHaveLength(60);
  });

  test("a database that refuses connections is unavailable, and goes on with all bells rung when it is back", async () => {
    await using at = await setUp();
    await using wire = await wireTo(at.url);
    const db = await openPostgres(wire.url);
    try {
      await createT(db);
      await Promise.all(["a", "b", "c"].map((id) => Promise.all([add(db, id), ids(db)])));
      const { signal } = new AbortController();
      const bell = db.listen("topic", signal);
      const underWay = db.tx((tx) => tx.all(sql`select pg_sleep(60)`));
      underWay.catch(() => {});
      await seen(at.admin, "active", "select pg_sleep(60)%");
      await wire.refuse();
      await expect(underWay).rejects.toThrow(UnavailableError);
      await Promise.all([add(db, "lost"), ids(db)].map((call) => expect(call).rejects.toThrow(UnavailableError)));
      await wire.mend();
      expect(await bell.wait(60_000, signal)).toBe(true);
      await whenBack(() => add(db, "d"));
      expect(await ids(db)).toEqual(["a", "b", "c", "d"]);
    } finally {
      await db.close();
    }
  });

  test("a database that falls silent is unavailable to whoever waits for it and to who comes; a commit under way is of unknown outcome", async () => {
    await using at = await setUp();
    await using wire = await wireTo(at.url);
    const db = await openPostgres(wire.url, { heartbeatMs: 2_000 });
    try {
      await createT(db);
      const inBody = Promise.withResolvers<void>();
      const silent = Promise.withResolvers<void>();
      const committing = db.tx(async (tx) => {
        await tx.run(sql`insert into t (id) values ('unknown') on conflict do nothing`);
        inBody.resolve();
        await silent.promise; // what a body must not do, for the commit to come after the silence
      });
      await inBody.promise;
      wire.silence();
      silent.resolve();
      await expect(committing).rejects.toThrow(OutcomeUnknownError);
      await Promise.all([add(db, "lost"), ids(db)].map((call) => expect(call).rejects.toThrow(UnavailableError)));
      await wire.mend();
      await whenBack(() => add(db, "after"));
      expect(await ids(db)).toEqual(["after"]);
    } finally {
      await db.close();
    }
  });

  test("a server that takes no writes any more, as one that another has taken the place of, is unavailable until there is one that does", async () => {
    await using at = await setUp();
    const db = await at.open({ maxConnections: 2 });
    await createT(db);
    await Promise.all([add(db, "a"), add(db, "b")]);
    const { rows } = await at.admin.query("select current_database() as name");
    const takesWrites = async (setting: "on" | "off") => {
      await at.admin.query(`alter database ${rows[0].name} set default_transaction_read_only = ${setting}`);
    };
    await takesWrites("on");
    await at.admin.query(
      "select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()",
    );
    await expect(add(db, "c")).rejects.toThrow(UnavailableError);
    await at.admin.query("set default_transaction_read_only = off");
    await takesWrites("off");
    await whenBack(() => add(db, "c"));
    expect(await ids(db)).toEqual(["a", "b", "c"]);
  });

  test("who waits too long for a row that another transaction holds, or works too long, is refused as one too many", async () => {
    await using at = await setUp();
    const db = await at.open({ maxWaitMs: 2_000, statementTimeoutMs: 10_000 });
    await createT(db);
    await add(db, "a");
    await at.admin.query("begin; update t set n = 1");
    const waiting = db.tx((tx) => tx.run(sql`update t set n = n + 1`));
    await expect(waiting).rejects.toThrow(OverloadedError);
    await expect(waiting).rejects.toThrow(/lock timeout/);
    await at.admin.query("commit");
    const hasty = await at.open({ statementTimeoutMs: 1_000 });
    await expect(hasty.query.all(sql`select pg_sleep(60)`)).rejects.toThrow(OverloadedError);
    expect(await db.tx((tx) => tx.all(sql`update t set n = n + 1 returning n`))).toEqual([{ n: 2 }]);
  });

  test("a statement prepared before a table was altered is prepared again", async () => {
    await using at = await setUp();
    const db = await at.open();
    await createT(db);
    await add(db, "a");
    const read = () => db.query.one(sql`select * from t`);
    const readInTx = () => db.tx((tx) => tx.one(sql`select * from t`));
    await Promise.all(Array.from({ length: 20 }, () => Promise.all([read(), readInTx()])));
    await at.admin.query("alter table t add column more bigint default 7");
    const row = { id: "a", n: 0, more: 7 };
    expect(await Promise.all([read(), readInTx()])).toEqual([row, row]);
    expect(await Promise.all(Array.from({ length: 20 }, read))).toEqual(Array(20).fill(row));
  });

  test("close drains running transactions, refuses new ones and leaves no connection", async () => {
    await using at = await setUp();
    const db = await at.open({ maxConnections: 2 });
    await createT(db);
    const slow = (id: string) =>
      db.tx(async (tx) => {
        await tx.all(sql`select pg_sleep(0.02)`);
        await tx.run(sql`insert into t (id) values (${id})`);
      });
    const running = ["a", "b", "c", "d", "e"].map(slow); // more than there are connections
    const closing = db.close();
    await expect(slow("late")).rejects.toThrow(ClosedError);
    await Promise.all(running);
    await closing;
    const { rows } = await at.admin.query("select id from t order by id");
    expect(rows.map(({ id }) => id)).toEqual(["a", "b", "c", "d", "e"]);
    // The server notices that a connection was closed a moment after it was.
    for (let connections = 1; connections > 0; ) {
      const text =
        "select count(*) as n from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()";
      const activity = await at.admin.query(`${text} and backend_type = 'client backend'`);
      connections = Number(activity.rows[0].n);
    }
  });

  test("beyond the limit of the queue a transaction is refused at once", async () => {
    await using at = await setUp();
    const db = await at.open({ maxConnections: 1, maxQueue: 2 });
    const bodies = Array.from({ length: 5 }, () => db.tx((tx) => tx.all(sql`select 1`)));
    const settled = await Promise.allSettled(bodies);
    expect(settled.map(({ status }) => status)).toEqual([...Array(3).fill("fulfilled"), ...Array(2).fill("rejected")]);
    expect(settled[4]).toMatchObject({ reason: expect.any(OverloadedError) });
  });

  test("settings in the address are kept, and do not make a query able to write", async () => {
    await using at = await setUp();
    const db = await openPostgres(`${at.url}?options=-c%20work_mem%3D7MB%20-c%20default_transaction_read_only%3Doff`);
    try {
      await createT(db);
      expect(await db.query.one(sql`select current_setting('work_mem') as v`)).toEqual({ v: "7MB" });
      await expect(db.query.one(sql`delete from t`)).rejects.toThrow(/read-only/);
    } finally {
      await db.close();
    }
  });

  test("a server that cannot be used is refused with its place and the reason", async () => {
    const missing = new URL(postgresUrl!);
    missing.pathname = "/nowhere";
    missing.password = "s3cret-word";
    const refused = await openPostgres(missing.href).catch((error: unknown) => error);
    expect(refused).toMatchObject({
      message: `PostgreSQL at ${missing.host}/nowhere: database "nowhere" does not exist`,
    });
    expect(inspect(refused, { depth: 9 })).not.toContain("s3cret-word");
  });
});

test("a PostgreSQL address that is wrong or leads nowhere is refused without showing the password", async () => {
  const addresses = {
    "postgres://user:s3cret@127.0.0.1:1/name": /PostgreSQL at 127\.0\.0\.1:1\/name: .*ECONNREFUSED/,
    "postgres://user:s3cret@localhost:1/name": /PostgreSQL at localhost:1\/name: .*ECONNREFUSED/,
    "postgres://user:s3cret@host:port/name": /must look like/,
    "mysql://user:s3cret@127.0.0.1/name": /must look like/,
    "postgres://user:12#s3cret@127.0.0.1/name": /percent-encoded/,
    "postgres://user:12/s3cret@127.0.0.1/name": /percent-encoded/,
    "postgres://user:12?s3cret@127.0.0.1/name": /percent-encoded/,
    s3cret: /must look like/,
  };
  for (const [address, reason] of Object.entries(addresses)) {
    const error = await openPostgres(address).catch((refused: unknown) => refused);
    expect(error, address).toMatchObject({ message: expect.stringMatching(reason) });
    expect(inspect(error, { depth: 9 }), address).not.toContain("s3cret");
  }
});
