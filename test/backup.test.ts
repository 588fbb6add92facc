import { mkdtempSync, readdirSync, readFileSync, readlinkSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import fc from "fast-check";
import { afterAll, describe, expect, test } from "vitest";
import { Role } from "../gen/moltwire/api/v1/access_pb.ts";
import { insertSession } from "../src/console/session-store.ts";
import { sql } from "../src/db/db.ts";
import { makeBackup } from "../src/ops/backup.ts";
import { type BackupHead, type BackupTable, backupWriter, type Cell, checkBackup } from "../src/ops/backup-format.ts";
import { backUp, restore } from "./backup-fixtures/backup.ts";
import { contract, echoEndpoint, stateOf, value } from "./bus-fixtures/bus.ts";
import { emptyStorage, storage } from "./bus-fixtures/storage.ts";
import { freshDatabase } from "./engines.ts";
import { dialects, eventually, type OrgAgent, refusal, start, unique, type World } from "./harness.ts";
import { get, jsonOf, write } from "./memory-fixtures/memory.ts";
import { claim, leaseOf, submit } from "./queue-fixtures/jobs.ts";

const folder = mkdtempSync(join(tmpdir(), "moltwire-backup-test-"));
afterAll(() => rmSync(folder, { recursive: true }));
const newPath = () => join(folder, unique("backup"));

const writers = 16;
const keys = ["left", "right"] as const;

/** Writes a number under two keys in one transaction, then the next, until told to stop. `acked` is the last that was answered. */
function startWriter(by: OrgAgent) {
  let stopped = false;
  const writer = { acked: 0, stop: async () => {} };
  const run = async () => {
    for (let n = 1; !stopped; n++) {
      const changes = keys.map((key) => ({ change: { case: "set", value: write(key, n) } as const }));
      await by.as.memory.batchSetEntries({ changes, atomic: true });
      writer.acked = n;
    }
  };
  const running = run();
  writer.stop = async () => {
    stopped = true;
    await running;
  };
  return writer;
}

/** The descriptors of this process whose file is a backup being made. */
const openSpools = (): string[] =>
  readdirSync("/proc/self/fd")
    .map((fd) => {
      try {
        return readlinkSync(`/proc/self/fd/${fd}`);
      } catch {
        return ""; // the one by which the folder was read
      }
    })
    .filter((target) => /\/backup-[0-9a-f]{16}/.test(target));

describe.each(dialects)("%s", (dialect) => {
  test.each(dialects)(
    "restored into %s: all that was acknowledged before the backup began, no transaction in part, though 16 writers never stopped",
    async (into) => {
      await using from = await storage(dialect);
      await using to = await emptyStorage(into);
      const path = newPath();
      let orgId: string;
      let agents: OrgAgent[];
      let acked: number[];
      let operatorKey: string;
      let taskId: string;
      let repeater: string;
      let pageToken: string;
      {
        await using world = await start(dialect, from.options);
        operatorKey = world.operatorKey;
        const org = await world.org();
        orgId = org.orgId;
        agents = await Promise.all(Array.from({ length: writers }, () => org.agent()));
        const [first] = agents as [OrgAgent, ...OrgAgent[]];
        await submit(first.as, { queue: "work", tags: { with: "umlaut ü, 🦞 and a quote '" } });
        repeater = (await org.agent({ capabilities: ["repeat"], endpoint: echoEndpoint })).agentId;
        await contract(org, { contractId: "repeat" });
        const { task } = await first.as.bus.submitTask({ contractId: "repeat", input: value({ text: "hello" }) });
        taskId = task!.taskId;
        ({ nextPageToken: pageToken } = await org.admin.admin.listAuditEvents({ pageSize: 1 }));
        expect(pageToken).not.toBe("");
        const running = agents.map(startWriter);
        await eventually(() => running.every((writer) => writer.acked >= 20));
        acked = running.map((writer) => writer.acked);
        const manifest = await backUp(world.operator, path);
        expect(manifest).toMatchObject({ formatVersion: 1, engine: dialect });
        await Promise.all(running.map((writer) => writer.stop()));
        expect(running.every((writer, nth) => writer.acked > acked[nth]!)).toBe(true);
      }
      const place = into === "sqlite" ? { data: to.folder } : { databaseUrl: to.options.databaseUrl! };
      await restore(path, place);
      await using world = await start(into, to.options);
      expect(world.operatorKey).toBe("");
      for (const [nth, { key }] of agents.entries()) {
        const as = world.as(key);
        const [left, right] = await Promise.all(keys.map((one) => get(as, one)));
        expect(jsonOf(left!.value)).toBe(jsonOf(right!.value));
        // The head is a row of another table, written in the same transaction.
        const { revision: head } = await as.memory.listEntries({});
        expect([left!.revision, right!.revision]).toEqual([head - 1n, head]);
        expect(jsonOf(left!.value)).toBeGreaterThanOrEqual(acked[nth]!);
      }
      const by = world.as(agents[0]!.key);
      const [leased] = await claim(by, { queues: ["work"] });
      expect(leased!.job!.tags).toEqual({ with: "umlaut ü, 🦞 and a quote '" });
      await by.queues.completeJob(leaseOf(leased!));
      expect(stateOf((await by.bus.getTask({ taskId })).task)).toBe("COMPLETED");
      const again = await by.bus.submitTask({ contractId: "repeat", input: value({ text: "again" }) });
      expect(stateOf(again.task)).toBe("COMPLETED");
      // What searches go by is made anew.
      const found = await by.directory.searchAgents({ text: "repeat" });
      expect(found.profiles.map(({ agentId }) => agentId)).toEqual([repeater]);
      const operator = world.as(operatorKey);
      // On PostgreSQL rows of a log with another server's transaction numbers would stay hidden.
      await world.settled();
      const { events } = await operator.events.listEvents({ orgId, pageSize: 250 });
      expect(events.length).toBeGreaterThanOrEqual(1);
      const steps = await by.traces.getTrace({ traceId: again.task!.traceId });
      expect(steps.events.length).toBeGreaterThan(5);
      const { auditEvents } = await operator.admin.listAuditEvents({ pageSize: 250 });
      expect(auditEvents.map(({ method }) => method)).toContain("moltwire.ops.v1.MaintenanceService/Backup");
      const log = await world.server.app.db.query.all(
        sql`select xid, seq from audit_event where method <> ${""} order by xid, seq limit 3`,
      );
      expect(log).toEqual([1, 2, 3].map((seq) => ({ xid: 0, seq })));
      expect((await refusal(operator.admin.listAuditEvents({ orgId, pageToken }))).reason).toBe("INVALID_PAGE_TOKEN");
    },
  );

  test("nobody is signed in to what was restored who was when the backup was made", async () => {
    await using from = await storage(dialect);
    await using to = await emptyStorage(dialect);
    const path = newPath();
    const sessions = ({ server: { app } }: World) => app.db.query.all(sql`select token_sha256 from console_session`);
    {
      await using world = await start(dialect, from.options);
      const session = { token_sha256: "0".repeat(64), org_id: world.server.homeOrgId, key_id: "key_a" };
      const times = { credential_sha256: "", create_ms: 0, expire_ms: 2 ** 45 };
      await world.server.app.db.tx((tx) => insertSession(tx, { ...session, ...times }));
      await backUp(world.operator, path);
      expect(await sessions(world)).toHaveLength(1);
    }
    await restore(path, dialect === "sqlite" ? { data: to.folder } : { databaseUrl: to.options.databaseUrl! });
    await using world = await start(dialect, to.options);
    expect(await sessions(world)).toEqual([]);
  });

  test("numbers of a queue that were given are not given again, also where their rows are gone", async () => {
    await using from = await storage(dialect);
    await using to = await emptyStorage(dialect);
    const path = newPath();
    const lastOf = async ({ server }: World) =>
      (await server.app.db.query.one<{ last: number }>(sql`select coalesce(max(seq), 0) as last from queue_job`))!.last;
    let agent: OrgAgent;
    let last: number;
    {
      await using world = await start(dialect, from.options);
      agent = await (await world.org()).agent();
      await submit(agent.as);
      await submit(agent.as);
      last = await lastOf(world);
      await world.server.app.db.tx((tx) => tx.run(sql`delete from queue_job`));
      await backUp(world.operator, path);
    }
    await restore(path, dialect === "sqlite" ? { data: to.folder } : { databaseUrl: to.options.databaseUrl! });
    await using world = await start(dialect, to.options);
    expect(await lastOf(world)).toBe(0);
    await submit(world.as(agent.key));
    expect(await lastOf(world)).toBe(last + 1);
  });

  test("a backup that is left half way leaves no file, no thread and no transaction, and the next one may begin", async () => {
    await using from = await storage(dialect);
    await using world = await start(dialect, from.options);
    const agent = await (await world.org()).agent();
    for (let n = 0; n < 40; n++)
      await submit(agent.as, { payload: { kind: { case: "data", value: new Uint8Array(90_000) } } });
    const files = readdirSync(from.folder);
    // The file goes a moment before the next backup may begin.
    const another = () => eventually(() => backUp(world.operator, newPath()).catch(() => undefined));
    for (const kind of ["manifest", "chunk"]) {
      const leave = new AbortController();
      for await (const { event } of world.operator.maintenance.backup({}, { signal: leave.signal })) {
        expect(openSpools()).toHaveLength(1);
        if (event.case === kind) break;
      }
      leave.abort();
      await eventually(() => openSpools().length === 0);
      await another();
    }
    const leave = new AbortController();
    const call = world.operator.maintenance.backup({}, { signal: leave.signal })[Symbol.asyncIterator]().next();
    await eventually(() => openSpools().length === 1);
    leave.abort();
    await call.catch(() => {});
    await eventually(() => openSpools().length === 0);
    expect(readdirSync(from.folder)).toEqual(files);
    await another();
  });

  test("of two backups at once one is refused, and told when to come again", async () => {
    await using world = await start(dialect);
    const both = [newPath(), newPath()].map((path) => backUp(world.operator, path));
    const ends = await Promise.allSettled(both);
    expect(ends.map(({ status }) => status).sort()).toEqual(["fulfilled", "rejected"]);
    const refused = both[ends.findIndex(({ status }) => status === "rejected")]!;
    const { reason, error } = await refusal(refused);
    expect([reason, error.metadata.get("retry-after")]).toEqual(["OVERLOADED", "5"]);
  });

  test("a disk with too little room refuses the backup, and tells how much there is", async () => {
    await using world = await start(dialect);
    const { app } = world.server;
    const messages = makeBackup(app, new AbortController().signal, { reserveBytes: 2 ** 60 });
    const failure = (async () => {
      for await (const _ of messages);
    })();
    await expect(failure).rejects.toMatchObject({
      reason: "FAILED_PRECONDITION",
      metadata: { resource: "disk", reserve_bytes: String(2 ** 60), free_bytes: expect.stringMatching(/^\d+$/) },
    });
    expect(openSpools()).toEqual([]);
  });

  test("only the operator may: an administrator is refused", async () => {
    await using world = await start(dialect);
    const org = await world.org();
    const { secret } = await world.operator.keys.createApiKey({ role: Role.OPERATOR, scopes: ["status:read"] });
    for (const [as, reason] of [
      [org.admin, "ROLE_REQUIRED"],
      [world.as(secret), "SCOPE_REQUIRED"],
    ] as const)
      expect((await refusal(backUp(as, newPath()))).reason).toBe(reason);
  });
});

test.runIf(dialects.includes("postgres"))(
  "large rows behind small ones on PostgreSQL are not read all at once",
  async () => {
    await using world = await start("postgres");
    const { app } = world.server;
    const put = (name: string, rows: number, size: number) =>
      app.db.tx((tx) =>
        tx.run(sql`
        insert into queue_job_data (org_id, job_id, payload)
        select ${name}, 'job_' || n, decode(repeat('00', cast(${size} as integer)), 'hex') from generate_series(1, ${rows}) as n`),
      );
    await put("org_a", 3_000, 10);
    await put("org_b", 300, 1_000_000);
    const begunMiB = process.memoryUsage.rss() / 2 ** 20;
    let mostMiB = 0;
    const timer = setInterval(() => {
      mostMiB = Math.max(mostMiB, process.memoryUsage.rss() / 2 ** 20 - begunMiB);
    }, 5);
    for await (const { event } of makeBackup(app, new AbortController().signal)) if (event?.case === "manifest") break;
    clearInterval(timer);
    console.log(`${Math.round(mostMiB)} MiB more`);
    expect(mostMiB).toBeLessThan(300);
  },
);

describe("restoring", () => {
  const whole = newPath();
  let place = "";

  test("refuses each file that is cut off, altered or of another form, and touches nothing", async () => {
    {
      await using from = await storage("sqlite");
      await using world = await start("sqlite", from.options);
      await backUp(world.operator, whole);
    }
    place = newPath();
    const bytes = readFileSync(whole);
    const damaged = newPath();
    const attempt = async (content: Uint8Array) => {
      writeFileSync(damaged, content);
      await restore(damaged, { data: place });
    };
    for (let nth = 0; nth < 64; nth++) {
      const cut = Math.trunc((bytes.length * nth) / 64);
      await expect(attempt(bytes.subarray(0, cut)), `cut at ${cut}`).rejects.toThrow(
        /is cut off|is no Moltwire backup/,
      );
      const at = Math.min(bytes.length - 1, cut + nth);
      const altered = Buffer.from(bytes);
      altered[at]! ^= 1 << (nth % 8);
      await expect(attempt(altered), `altered at ${at}`).rejects.toMatchObject({ name: "BadBackupError" });
    }
    await expect(attempt(Buffer.concat([bytes, Buffer.from("x")]))).rejects.toMatchObject({ name: "BadBackupError" });
    await expect(
      attempt(Buffer.from(bytes.toString("latin1").replace('"format":1', '"format":2'), "latin1")),
    ).rejects.toThrow("has the form 2, and this program reads 1");
    expect(readdirSync(folder).map((name) => join(folder, name))).not.toContain(place);
  });

  test("keeps each database that it puts aside, also of two in one second", async () => {
    const data = newPath();
    await restore(whole, { data });
    const olds: Buffer[] = [];
    const kept: string[] = [];
    for (let nth = 0; nth < 3; nth++) {
      olds.push(readFileSync(join(data, "moltwire.db")));
      kept.push((await restore(whole, { data }, true))!);
    }
    expect(kept.map((name) => readFileSync(join(data, name)).equals(olds[kept.indexOf(name)]!))).toEqual(
      kept.map(() => true),
    );
    expect(new Set(kept).size).toBe(3);
  });

  /** A whole backup that is not what this program would write. */
  function forged(head: Partial<BackupHead>, tables: readonly BackupTable[]): string {
    const parts: Buffer[] = [];
    const out = backupWriter((bytes) => void parts.push(Buffer.from(bytes)));
    out.head({ format: 1, schema: 1, server: "9.9.9", engine: "sqlite", timeMs: 0, counters: {}, ...head });
    for (const table of tables) out.table(table);
    out.end();
    const path = newPath();
    writeFileSync(path, Buffer.concat(parts));
    return path;
  }

  test.each(dialects)("into %s refuses what it cannot hold whole, and leaves it as it was", async (dialect) => {
    const database = dialect === "postgres" ? await freshDatabase() : undefined;
    const data = newPath();
    const to = database ? { databaseUrl: database.url } : { data };
    const setting = { name: "setting", columns: ["name", "value"] };
    for (const [path, words] of [
      [forged({ schema: 9_999 }, []), "has schema 9999 of Moltwire 9.9.9, and this program knows only"],
      [forged({}, [setting]), "it lacks the table "],
      [forged({}, [{ ...setting, columns: ["name", "other"] }]), "the table setting has other columns there"],
      [forged({}, [{ ...setting, name: "stranger" }]), "the table stranger has other columns there"],
    ] as const)
      await expect(restore(path, to)).rejects.toThrow(words);
    if (!database) return expect(readdirSync(folder)).not.toContain(data.slice(folder.length + 1));
    await restore(whole, to);
    await expect(restore(whole, to)).rejects.toThrow("is not empty");
    await database.drop();
  });

  test("each cell comes back as it was written", () => {
    const cell = fc.oneof(
      fc.constant(null),
      fc.bigInt({ min: -(2n ** 63n), max: 2n ** 63n - 1n }),
      fc.double({ noNaN: true }),
      fc.string({ unit: "grapheme", maxLength: 300 }),
      fc.uint8Array({ maxLength: 300 }),
    );
    const rows = fc.array(fc.array(cell, { minLength: 3, maxLength: 3 }), { maxLength: 50 });
    const path = newPath();
    const table = { name: "t", columns: ["a", "b", "c"] };
    fc.assert(
      fc.property(rows, fc.nat(400_000), (some, length) => {
        const given = [...some, ["x".repeat(length), new Uint8Array(length), 0n]];
        const parts: Buffer[] = [];
        const out = backupWriter((bytes) => void parts.push(Buffer.from(bytes)));
        out.head({ format: 1, schema: 1, server: "", engine: "", timeMs: 0, counters: {} });
        out.table(table);
        for (const row of given) out.row(row);
        expect(out.end()).toMatchObject({ rows: given.length, bytes: Buffer.concat(parts).length });
        writeFileSync(path, Buffer.concat(parts));
        const read = [...checkBackup(path).frames()].flatMap((frame) => ("rows" in frame ? frame.rows : []));
        const plain = (value: Cell) => (value instanceof Uint8Array ? Buffer.from(value).toString("hex") : value);
        expect(read.map((row) => row.map(plain))).toEqual(given.map((row) => row.map(plain)));
      }),
      { numRuns: 60, seed: 6658 },
    );
  });
});
