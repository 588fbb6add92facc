import { randomBytes } from "node:crypto";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { Writable } from "node:stream";
import { setTimeout as sleep } from "node:timers/promises";
import { pino } from "pino";
import { describe, expect, test } from "vitest";
import { SealedTableState, type VaultStatus } from "../gen/moltwire/ops/v1/vault_pb.ts";
import type { Job } from "../gen/moltwire/queue/v1/job_pb.ts";
import type { App } from "../src/app.ts";
import { type Db, raw, sql } from "../src/db/db.ts";
import { type ScheduleRef, sealError } from "../src/queue/schedule/store.ts";
import { sealedTables } from "../src/sealed-columns.ts";
import { type MasterKey, parseMasterKey } from "../src/vault/master-key.ts";
import { settleMs } from "../src/vault/upkeep.ts";
import { backUp, restore } from "./backup-fixtures/backup.ts";
import { json as jsonOfValue, submit } from "./bus-fixtures/bus.ts";
import { type ServerProcess, serverProcess } from "./bus-fixtures/process.ts";
import { storage } from "./bus-fixtures/storage.ts";
import {
  type Clients,
  clientsAt,
  dialects,
  eventually,
  fakeClock,
  refusal,
  start,
  unique,
  type World,
} from "./harness.ts";
import { data, get, jsonOf, set } from "./memory-fixtures/memory.ts";
import {
  claim,
  get as getJob,
  jsonOf as jobJson,
  stateOf as jobState,
  json,
  leaseOf,
  submit as submitJob,
} from "./queue-fixtures/jobs.ts";
import { canaryAdapter, filesOf, found, foundInFiles, plant, readBack, tablesOf } from "./vault-fixtures/canaries.ts";

const newKey = (): string => randomBytes(32).toString("base64");
const newMaster = (): MasterKey => parseMasterKey(newKey());
const adapters = { canary: canaryAdapter };
/** Counts rows, so that whoever asks again and again leaves the server little time for its work. */
async function statusOf(by: Clients): Promise<VaultStatus> {
  const { status } = await by.maintenance.getVaultStatus({});
  await sleep(20);
  return status!;
}
const tableOf = (status: VaultStatus, name: string) => status.tables.find(({ table }) => table === name)!;
const complete = (world: World) =>
  eventually(async () => {
    const status = await statusOf(world.operator);
    return status.complete && status;
  });
/** Moves a fake clock until the vault has nothing left to do. */
const settled = (world: World, clock: ReturnType<typeof fakeClock>) =>
  eventually(async () => {
    clock.advance(1_000);
    const status = await statusOf(world.operator);
    return status.complete && status;
  });

/** A log that takes everything and can be read. */
function logToText() {
  const lines: string[] = [];
  const stream = new Writable({
    write: (chunk: Buffer, _encoding, done) => {
      lines.push(chunk.toString());
      done();
    },
  });
  return { log: pino({ level: "trace" }, stream), text: () => lines.join("") };
}

/** How the values of each sealed column are sealed: by the byte of their header that says so. */
async function algorithms(db: Db): Promise<Map<string, Set<number>>> {
  const seen = new Map<string, Set<number>>();
  for (const { table, columns } of sealedTables)
    for (const column of Object.keys(columns)) {
      const rows = await db.query.all<{ it: Uint8Array }>(
        sql`select ${raw(column)} as it from ${raw(table)} where ${raw(column)} is not null`,
      );
      seen.set(`${table}.${column}`, new Set(rows.map(({ it }) => it[1]!)));
    }
  return seen;
}

/** What a schedule says when its time makes no job, which would take a minute to see. */
const failSchedules = ({ db, vault }: App): Promise<void> =>
  db.tx(async (tx) => {
    for (const ref of await tx.all<ScheduleRef>(sql`select org_id, schedule_id from queue_schedule`)) {
      const error = sealError({ vault }, ref, { reason: "QUOTA_EXCEEDED", message: "too many", nominalMs: 1 });
      await tx.run(sql`update queue_schedule set last_error = ${error} where schedule_id = ${ref.schedule_id}`);
    }
  });

describe.each(dialects)("canaries on %s", (dialect) => {
  test.each([true, false])(
    "with a key (%s) none is found in the database, its log of writes, or the log; without, each is",
    async (encrypts) => {
      await using place = await storage(dialect);
      const { log, text } = logToText();
      const masterKeys = encrypts ? [newMaster()] : [];
      await using world = await start(dialect, { ...place.options, masterKeys, adapters, log });
      const org = await world.org();
      const canaries = await plant(org);
      const kinds = Object.keys(canaries);
      const { app } = world.server;
      const { db } = app;
      await failSchedules(app);
      // Makes the server's own key.
      await world.operator.peers.getIdentity({});

      const stored = dialect === "sqlite" ? filesOf(place.folder) : await tablesOf(db);
      expect(found(canaries, stored)).toEqual(encrypts ? [] : kinds);
      if (dialect === "postgres") {
        const inFiles = await foundInFiles(db, canaries);
        // What is long the engine compresses, so that of some kinds nothing can be seen there either way.
        const seen = encrypts
          ? []
          : expect.arrayContaining(["memoryValue", "jobPayload", "messagePayload", "webhookSecret"]);
        // The folder of a server that was given to the tests may be elsewhere.
        if (inFiles || !process.env.MOLTWIRE_TEST_DATABASE_URL) expect(inFiles).toEqual(seen);
      }
      expect(found(canaries, text())).toEqual([]);
      expect(text().length).toBeGreaterThan(1_000);

      const sealed = await algorithms(db);
      for (const [column, algorithm] of sealed) expect([column, ...algorithm]).toEqual([column, encrypts ? 1 : 0]);
      const back = await readBack(world, org);
      const hidden = ["storedReply", "adapterSecret", "webhookSecret", "memoryOverwritten", "sharedValue"];
      expect(found(canaries, back).filter((kind) => !hidden.includes(kind))).toEqual(
        kinds.filter((kind) => !hidden.includes(kind)),
      );

      const { details } = await world.operator.status.getStatus({});
      expect(details?.encryptionAtRest).toBe(encrypts);
      const status = await statusOf(world.operator);
      expect(status.encrypts).toBe(encrypts);
      if (encrypts) expect(status).toMatchObject({ complete: true, masterKeyId: masterKeys[0]!.id });
    },
  );
});

test("every column of bytes is sealed or known not to be", async () => {
  await using world = await start("sqlite");
  const columns = await world.server.app.db.query.all<{ t: string; c: string }>(sql`
    select m.name as t, p.name as c from pragma_table_list m join pragma_table_info(m.name) p
    where m.schema = 'main' and m.type = 'table' and upper(p.type) = 'BLOB'`);
  const sealed = new Set(sealedTables.flatMap(({ table, columns: of }) => Object.keys(of).map((c) => `${table}.${c}`)));
  const open = new Set(["setting.value", "vault.check_value", "vault_key.wrapped"]);
  const all = columns.map(({ t, c }) => `${t}.${c}`);
  expect(all.filter((column) => !sealed.has(column) && !open.has(column))).toEqual([]);
  expect([...sealed].filter((column) => !all.includes(column))).toEqual([]);
});

describe.each(dialects)("what is stored encrypted on %s", (dialect) => {
  const notAuthentic = { code: "DataLoss", reason: "DATA_NOT_AUTHENTIC" };

  test("a job that cannot be read any more ends as dead, with the reason, and those behind it are claimed", async () => {
    await using world = await start(dialect, { masterKeys: [newMaster()] });
    const { as } = await (await world.org()).agent();
    const { jobId } = await submitJob(as, { queue: "q", payload: json("first") });
    const next = await submitJob(as, { queue: "q", payload: json("second") });
    await world.server.app.db.tx(async (tx) => {
      const row = await tx.one<{ payload: Uint8Array }>(
        sql`select payload from queue_job_data where job_id = ${jobId} ${tx.dialect.forUpdate}`,
      );
      const changed = Buffer.concat([row!.payload, Buffer.from([0])]);
      await tx.run(sql`update queue_job_data set payload = ${changed} where job_id = ${jobId}`);
    });
    const { jobs } = await as.queues.claimJobs({ queues: ["q"], maxJobs: 2 });
    expect(jobs.map(({ job }) => job!.jobId)).toEqual([next.jobId]);
    const { jobs: dead } = await as.queues.listDeadJobs({ queue: "q" });
    expect(dead).toMatchObject([{ jobId, error: { code: "data_not_authentic" } }]);
    expect((await as.queues.claimJobs({ queues: ["q"] })).jobs).toEqual([]);
  });

  test("is refused, and nothing of it told, when it was changed, moved, cut, or replaced by something in the clear", async () => {
    await using world = await start(dialect, { masterKeys: [newMaster()] });
    const { db } = world.server.app;
    const one = await (await world.org()).agent();
    const other = await (await world.org()).agent();
    for (const { as } of [one, other]) for (const key of ["a", "b"]) await set(as, key, `secret ${key}`);
    const read = (agentId: string, key: string) =>
      db.query.one<{ value: Uint8Array }>(
        sql`select value from memory_entry where memory_id = ${agentId} and key = ${key}`,
      );
    const put = (agentId: string, key: string, value: Uint8Array) =>
      db.tx((tx) =>
        tx.run(sql`update memory_entry set value = ${value} where memory_id = ${agentId} and key = ${key}`),
      );
    const a = (await read(one.agentId, "a"))!.value;
    const flipped = (at: number) => Uint8Array.from(a, (byte, n) => (n === at ? byte ^ 1 : byte));
    const idBytes = a[2]!;
    const wrong: [string, Uint8Array, string][] = [
      ["the other entry's", (await read(one.agentId, "b"))!.value, "CHANGED"],
      ["another organisation's", (await read(other.agentId, "a"))!.value, "UNKNOWN_KEY"],
      ["a bit of the nonce", flipped(3 + idBytes), "CHANGED"],
      ["a bit of the ciphertext", flipped(3 + idBytes + 12), "CHANGED"],
      ["a bit of the tag", flipped(a.length - 1), "CHANGED"],
      ["a bit of the key id", flipped(3 + idBytes - 1), "UNKNOWN_KEY"],
      ["a bit of the version", flipped(0), "UNKNOWN_FORMAT"],
      ["a bit of the algorithm", flipped(1), "UNKNOWN_FORMAT"],
      ["cut", a.subarray(0, a.length - 1), "CHANGED"],
      ["cut to the header", a.subarray(0, 3 + idBytes), "CHANGED"],
      ["empty", new Uint8Array(), "UNKNOWN_FORMAT"],
      ["in the clear", Uint8Array.from([1, 0, 0, ...Buffer.from("secret")]), "NOT_ENCRYPTED"],
    ];
    for (const [what, bytes, cause] of wrong) {
      await put(one.agentId, "a", bytes);
      const refused = await refusal(get(one.as, "a"));
      expect([what, refused]).toMatchObject([what, { ...notAuthentic, metadata: { table: "memory_entry", cause } }]);
      expect(refused.error.message).not.toContain("secret");
    }
    await put(one.agentId, "a", a);
    expect(jsonOf((await get(one.as, "a")).value)).toBe("secret a");
  });

  test("is refused also in the place of another step of the same trace and kind", async () => {
    await using world = await start(dialect, { masterKeys: [newMaster()], adapters });
    const org = await world.org();
    const { db } = world.server.app;
    const trace = { traceparent: `00-${"a".repeat(32)}-${"b".repeat(16)}-01` };
    await org.admin.contracts.registerContract({ contractId: "echo", version: "1.0.0" });
    await org.agent({ capabilities: ["echo"], endpoint: { kind: { case: "echo", value: {} } } });
    for (let n = 0; n < 2; n++) await submit(org.admin, "echo", {}, { headers: trace });
    const rows = await db.query.all<{ seq: number; body: Uint8Array }>(
      sql`select seq, body from trace_event where org_id = ${org.orgId} and kind = 1 order by seq`,
    );
    expect(rows).toHaveLength(2);
    await db.tx(async (tx) => {
      for (const [n, { seq }] of rows.entries())
        await tx.run(sql`update trace_event set body = ${rows[1 - n]!.body} where seq = ${seq}`);
    });
    expect(await refusal(org.admin.traces.getTrace({ traceId: "a".repeat(32) }))).toMatchObject(notAuthentic);
  });
});

describe.each(dialects)("turned on over data in the clear, on %s", (dialect) => {
  test("what is there is sealed in the background, with its progress told; then what is in the clear is refused", async () => {
    await using place = await storage(dialect);
    const clock = fakeClock(Date.now());
    const options = { ...place.options, adapters, clock };
    const master = newMaster();
    let adminKey: string;
    let orgId: string;
    let agentKey: string;
    let canaries: Awaited<ReturnType<typeof plant>>;
    let operatorKey: string;
    {
      await using before = await start(dialect, { ...options, masterKeys: [] });
      operatorKey = before.operatorKey;
      const org = await before.org();
      ({ adminKey, orgId } = org);
      canaries = await plant(org);
      const agent = await org.agent();
      agentKey = agent.key;
      await Promise.all(Array.from({ length: 450 }, (_, n) => set(agent.as, `k${n}`, n)));
      // As they were before they had ids of their own.
      await before.server.app.db.tx((tx) => tx.run(sql`update trace_event set event_id = ''`));
      expect(await statusOf(before.operator)).toMatchObject({ encrypts: false, complete: false });
    }
    await using world = { ...(await start(dialect, { ...options, masterKeys: [master] })) };
    const operator = world.as(operatorKey);
    const admin = world.as(adminKey);
    const agent = world.as(agentKey);
    const first = await statusOf(operator);
    expect(first).toMatchObject({ encrypts: true, complete: false, masterKeyId: master.id });
    expect(tableOf(first, "memory_entry")).toMatchObject({
      state: SealedTableState.SEALING,
      enforced: false,
      rowsLeft: 453n,
    });
    // Before it is sealed it is read as it is; what is written is encrypted at once.
    expect(jsonOf((await get(agent, "k7")).value)).toBe(7);
    await set(agent, "new", "x");
    const at = { ...world, operator };
    const verifying = await eventually(async () => {
      clock.advance(200);
      const status = await statusOf(operator);
      return status.tables.every(({ state }) => state !== SealedTableState.SEALING) && status;
    });
    expect(verifying.tables.every(({ rowsLeft }) => rowsLeft === 0n)).toBe(true);
    expect(tableOf(verifying, "memory_entry")).toMatchObject({ rowsSealed: 453n, enforced: false });
    clock.advance(settleMs);
    const last = await settled(at, clock);
    expect(last.tables.every(({ state, enforced }) => state === SealedTableState.SEALED && enforced)).toBe(true);
    for (const [column, algorithm] of await algorithms(world.server.app.db))
      expect([column, [...algorithm].filter((it) => it !== 1)]).toEqual([column, []]);
    const back = await readBack(at, { admin, orgId } as Parameters<typeof readBack>[1]);
    expect(found(canaries, back)).toEqual(
      expect.arrayContaining(["memoryValue", "jobPayload", "taskOutput", "streamedPiece"]),
    );
    expect(jsonOf((await get(agent, "k449")).value)).toBe(449);

    const { db } = world.server.app;
    await db.tx((tx) =>
      tx.run(sql`update memory_entry set value = ${Uint8Array.from([1, 0, 0, 120])} where key = ${"k0"}`),
    );
    expect(await refusal(get(agent, "k0"))).toMatchObject({
      reason: "DATA_NOT_AUTHENTIC",
      metadata: { cause: "NOT_ENCRYPTED" },
    });
    await world[Symbol.asyncDispose]();
    // From now on it opens with this key alone.
    const without = await start(dialect, { ...options, masterKeys: [] }).then(() => "started", String);
    expect(without).toContain(`MOLTWIRE_MASTER_KEY: is missing, and this data is encrypted under ${master.id}`);
    const wrong = newMaster();
    const refused = await start(dialect, { ...options, masterKeys: [wrong] }).then(() => "started", String);
    expect(refused).toContain(
      `is not the key of this data, which was encrypted under ${master.id}; given: ${wrong.id}`,
    );
    await using again = await start(dialect, { ...options, masterKeys: [master] });
    expect(jsonOf((await get(again.as(agentKey), "k449")).value)).toBe(449);
  });

  test("what was replaced does not go on lying in the file, and what is restored of a backup holds nothing in the clear", async () => {
    await using place = await storage(dialect);
    await using other = await storage("sqlite");
    const clock = fakeClock(Date.now());
    const options = { ...place.options, adapters, clock };
    const [plain, backup] = [join(other.folder, "plain"), join(other.folder, "backup")];
    const data = join(other.folder, "restored");
    const before = await start(dialect, { ...options, masterKeys: [] });
    const canaries = await plant(await before.org());
    await backUp(before.operator, plain);
    await before[Symbol.asyncDispose]();
    // They can be seen in a backup where they are: none is compressed.
    expect(found(canaries, readFileSync(plain, "latin1"))).toEqual(Object.keys(canaries));
    const { log, text } = logToText();
    {
      await using world = await start(dialect, { ...options, masterKeys: [newMaster()], log });
      const operator = world.as(before.operatorKey);
      await settled({ ...world, operator }, clock);
      await backUp(operator, backup);
      if (dialect === "postgres") expect(found(canaries, await tablesOf(world.server.app.db))).toEqual([]);
    }
    expect([found(canaries, text()), text().length > 1_000]).toEqual([[], true]);
    await restore(backup, { data });
    expect([found(canaries, readFileSync(backup, "latin1")), found(canaries, filesOf(data))]).toEqual([[], []]);
    if (dialect === "postgres") return; // which leaves what was replaced where it was until it vacuums
    // Of others the engine may have moved rows before there was a key, and left some of them where they were.
    const once = ["sharedValue", "taskError", "channelPayload"];
    expect(found(canaries, filesOf(place.folder)).filter((kind) => once.includes(kind))).toEqual([]);
  });

  test("kill -9 while it is sealed loses nothing: the next start goes on", async () => {
    await using place = await storage(dialect);
    const key = newKey();
    const rows = 800;
    let agentKey: string;
    let operatorKey: string;
    {
      await using before = await start(dialect, { ...place.options, masterKeys: [] });
      operatorKey = before.operatorKey;
      const agent = await (await before.org()).agent();
      agentKey = agent.key;
      for (let from = 0; from < rows; from += 100)
        await agent.as.memory.batchSetEntries({
          changes: Array.from({ length: 100 }, (_, n) => ({
            change: { case: "set" as const, value: { key: `k${from + n}`, value: data(Buffer.from(`v${from + n}`)) } },
          })),
        });
    }
    const program = new URL("../src/main.ts", import.meta.url).pathname;
    const env = {
      MOLTWIRE_MASTER_KEY: key,
      MOLTWIRE_PORT: "0",
      MOLTWIRE_RATE_LIMIT: "0",
      ...("data" in place.options
        ? { MOLTWIRE_DATA: place.options.data }
        : { MOLTWIRE_DATABASE_URL: place.options.databaseUrl }),
    };
    let midway = 0;
    for (let kill = 0; kill < 2; kill++) {
      await using server: ServerProcess = await serverProcess(program, [], env);
      const by = clientsAt(server.url, operatorKey);
      // Killed when it has got further than the one before, or sooner if it was too quick to be caught.
      await eventually(async () => {
        const status = await statusOf(by);
        const sealed = tableOf(status, "memory_entry").rowsSealed;
        if (sealed > 0n && sealed < BigInt(rows)) midway++;
        return sealed > BigInt(kill * 300);
      });
      await server.kill();
    }
    await using after = await start(dialect, { ...place.options, masterKeys: [parseMasterKey(key)] });
    const operator = after.as(operatorKey);
    await eventually(async () => {
      const status = await statusOf(operator);
      return status.tables.every(({ state }) => state !== SealedTableState.SEALING);
    });
    const seen = await algorithms(after.server.app.db);
    expect([...seen.get("memory_entry.value")!]).toEqual([1]);
    expect([...seen.get("memory_change.body")!]).toEqual([1]);
    const as = after.as(agentKey);
    for (let from = 0; from < rows; from += 100) {
      const keys = Array.from({ length: 100 }, (_, n) => ({ key: `k${from + n}` }));
      const { results } = await as.memory.batchGetEntries({ keys });
      for (const [n, { entry }] of results.entries())
        expect(Buffer.from(entry?.value?.kind.value as Uint8Array).toString()).toBe(`v${from + n}`);
    }
    expect(midway).toBeGreaterThan(0);
  });
});

describe.each(dialects)("a rotation on %s", (dialect) => {
  test("fails no call under load, gives every organisation a new key, and seals what was there anew if it is asked to", async () => {
    await using place = await storage(dialect);
    const masters = [newMaster(), newMaster()] as const;
    let operatorKey: string;
    let orgId: string;
    let agentKey: string;
    let secondKey: string;
    {
      await using before = await start(dialect, { ...place.options, masterKeys: [masters[0]] });
      operatorKey = before.operatorKey;
      const org = await before.org();
      const { as, key } = await org.agent();
      [orgId, agentKey] = [org.orgId, key];
      const second = await before.org();
      secondKey = (await second.agent()).key;
      await second.admin.contracts.registerContract({ contractId: "echo", version: "1.0.0" });
      await second.agent({ capabilities: ["echo"], endpoint: { kind: { case: "echo", value: {} } } });
      await Promise.all(Array.from({ length: 120 }, (_, n) => set(as, `old${n}`, n)));
    }
    // The new master key beside the old one: it is in force only when somebody says so.
    const clock = fakeClock(Date.now());
    const world = await start(dialect, { ...place.options, clock, masterKeys: [masters[1], masters[0]] });
    const operator = world.as(operatorKey);
    const as = world.as(agentKey);
    const before = await statusOf(operator);
    expect(before).toMatchObject({ masterKeyId: masters[0].id, givenMasterKeyId: masters[1].id, complete: true });

    let over = false;
    let calls = 0;
    let rotating = true;
    // Beside memory: the whole life of jobs and tasks, in a second organisation, and a stream that was open before.
    const second = world.as(secondKey);
    const working = async () => {
      const queue = unique("load");
      for (let n = 0; rotating; n++) {
        await submitJob(second, { queue, payload: json(n) });
        const [leased] = await claim(second, { queues: [queue] });
        expect(jobJson(leased!.job!.payload)).toBe(n);
        await second.queues.heartbeatJob({ ...leaseOf(leased!), progress: { message: String(n) } });
        await second.queues.completeJob({ ...leaseOf(leased!), result: json(-n - 1) });
        expect(jobJson((await getJob(second, leased!.job!.jobId)).result)).toBe(-n - 1);
        expect(jsonOfValue((await submit(second, "echo", { input: n })).output)).toBe(n);
        calls += 6;
      }
    };
    const leave = new AbortController();
    const watched: number[] = [];
    const watching = (async () => {
      for await (const { event } of as.memory.watchEntries({ afterRevision: 120n }, { signal: leave.signal }))
        if (event.case === "change") watched.push(Number(event.value.revision));
    })().catch((error: unknown) => {
      if (!leave.signal.aborted) throw error;
    });
    const jobs = working();
    const load = Array.from({ length: 4 }, async (_, w) => {
      for (let n = 0; !over; n++) {
        await set(as, `load${w}-${n % 20}`, n);
        expect(jsonOf((await get(as, `load${w}-${n % 20}`)).value)).toBe(n);
        expect(jsonOf((await get(as, `old${n % 120}`)).value)).toBe(n % 120);
        calls += 3;
      }
    });
    const rotated: string[] = [];
    for (let n = 0; n < 3; n++) {
      rotated.push((await operator.maintenance.rotateVault({ reencrypt: true })).masterKeyId);
      const more = calls + 30;
      await Promise.race([eventually(() => calls > more), jobs, watching, ...load]);
    }
    expect(new Set(rotated)).toEqual(new Set([masters[1].id]));
    rotating = false;
    await jobs;
    clock.advance(settleMs);
    const status = await settled({ ...world, operator }, clock);
    over = true;
    await Promise.all(load);
    const { revision } = await as.memory.listEntries({ pageSize: 1 });
    await Promise.race([eventually(() => watched.at(-1) === Number(revision)), watching]);
    leave.abort();
    await watching;
    expect(watched).toEqual(Array.from({ length: Number(revision) - 120 }, (_, n) => 121 + n));
    expect(status.dataKeys).toMatchObject({ active: 2n, toRewrap: 0n, toReplace: 0n });
    expect(Number(status.dataKeys!.retired)).toBeGreaterThanOrEqual(4);
    const ids = await world.server.app.db.query.all<{ value: Uint8Array; key: string }>(
      sql`select key, value from memory_entry`,
    );
    const named = new Set(ids.map(({ value }) => Buffer.from(value.subarray(3, 3 + value[2]!)).toString()));
    const active = await world.server.app.db.query.all<{ key_id: string }>(
      sql`select key_id from vault_key where org_id = ${orgId} and state = 1`,
    );
    expect([...named]).toEqual(active.map(({ key_id }) => key_id));
    await world[Symbol.asyncDispose]();
    // The old master key is of no more use, and not needed.
    const old = await start(dialect, { ...place.options, masterKeys: [masters[0]] }).then(() => "started", String);
    expect(old).toContain("is not the key of this data");
    await using after = await start(dialect, { ...place.options, masterKeys: [masters[1]] });
    expect(jsonOf((await get(after.as(agentKey), "old119")).value)).toBe(119);
  });

  test("leaves old payloads under their keys if it is not asked to, and needs the old master key only until all are wrapped", async () => {
    await using place = await storage(dialect);
    const masters = [newMaster(), newMaster()] as const;
    const world = await start(dialect, { ...place.options, masterKeys: [masters[0]] });
    const { as, key } = await (await world.org()).agent();
    await set(as, "a", 1);
    await world[Symbol.asyncDispose]();
    const both = await start(dialect, { ...place.options, masterKeys: [masters[1], masters[0]] });
    const operator = both.as(world.operatorKey);
    await operator.maintenance.rotateVault({});
    await set(both.as(key), "b", 2);
    const status = await complete({ ...both, operator });
    expect(status.dataKeys).toMatchObject({ active: 1n, retired: 1n, toRewrap: 0n });
    const { auditEvents } = await operator.admin.listAuditEvents({});
    expect(auditEvents[0]!.method).toBe("moltwire.ops.v1.MaintenanceService/RotateVault");
    await both[Symbol.asyncDispose]();
    await using after = await start(dialect, { ...place.options, masterKeys: [masters[1]] });
    for (const [name, value] of [
      ["a", 1],
      ["b", 2],
    ] as const)
      expect(jsonOf((await get(after.as(key), name)).value)).toBe(value);
  });
});

describe.each(dialects)("dropping an organisation's keys on %s", (dialect) => {
  test("makes all it has stored unreadable, with a reason; it and others go on", async () => {
    await using world = await start(dialect, { masterKeys: [newMaster()], adapters });
    const { operator } = world;
    const org = await world.org();
    const other = await (await world.org()).agent();
    const agent = await org.agent();
    await set(other.as, "a", "stays");
    await set(agent.as, "a", "goes");
    await org.admin.contracts.registerContract({ contractId: "echo", version: "1.0.0" });
    await org.agent({ capabilities: ["echo"], endpoint: { kind: { case: "echo", value: {} } } });
    const task = await submit(agent.as, "echo", { input: "goes" });
    const queue = unique("q");
    const lost = await Promise.all([1, 2, 3].map(() => submitJob(agent.as, { queue, payload: json("goes") })));
    const [failing, held] = await claim(agent.as, { queues: [queue], maxJobs: 2, lease: { seconds: 3_600n } });
    await agent.as.queues.heartbeatJob({ ...leaseOf(failing!), progress: { message: "goes" } });
    await agent.as.queues.failJob({ ...leaseOf(failing!), error: { code: "goes", message: "goes" } });
    await agent.as.queues.heartbeatJob({ ...leaseOf(held!), progress: { message: "goes" } });
    await agent.as.relay.send({ to: { case: "toAgentId", value: agent.agentId }, payload: json("goes") });
    await agent.as.schedules.createSchedule({
      settings: { timing: { cron: "@yearly" }, job: { payload: json("goes") } },
    });
    const targetOrgId = org.orgId;
    expect(await refusal(operator.maintenance.dropOrganizationKeys({ targetOrgId }))).toMatchObject({
      code: "FailedPrecondition",
      reason: "FAILED_PRECONDITION",
    });
    expect(await refusal(operator.maintenance.dropOrganizationKeys({ targetOrgId: "org_none" }))).toMatchObject({
      reason: "NOT_FOUND",
    });
    const disable = (disabled: boolean) =>
      operator.organizations.updateOrganization({
        orgId: targetOrgId,
        change: { disabled },
        updateMask: { paths: ["disabled"] },
      });
    await disable(true);
    const headers = { "idempotency-key": unique("drop") };
    const dropped = await operator.maintenance.dropOrganizationKeys({ targetOrgId }, { headers });
    expect(dropped.keysDropped).toBe(1);
    const [act] = (await operator.admin.listAuditEvents({ pageSize: 1 })).auditEvents;
    expect(act).toMatchObject({
      method: "moltwire.ops.v1.MaintenanceService/DropOrganizationKeys",
      resource: { target_org_id: targetOrgId },
    });
    expect(await operator.maintenance.dropOrganizationKeys({ targetOrgId }, { headers })).toEqual(dropped);
    const keys = await world.server.app.db.query.all<{ wrapped: unknown; state: number }>(
      sql`select wrapped, state from vault_key where org_id = ${targetOrgId}`,
    );
    expect(keys).toEqual([{ wrapped: null, state: 3 }]);
    await disable(false);
    const gone = { code: "FailedPrecondition", reason: "KEY_DROPPED", metadata: { org_id: targetOrgId } };
    await eventually(async () => (await refusal(get(agent.as, "a"))).reason === "KEY_DROPPED");
    expect(await refusal(get(agent.as, "a"))).toMatchObject(gone);
    expect(await refusal(agent.as.memory.listEntries({ withValues: true }))).toMatchObject(gone);
    expect(await refusal(agent.as.bus.getTask({ taskId: task.taskId }))).toMatchObject(gone);
    expect(await refusal(org.admin.traces.getTrace({ traceId: task.traceId }))).toMatchObject(gone);
    await world.settled();
    expect(await refusal(org.admin.events.listEvents({}))).toMatchObject(gone);
    for (const { jobId } of lost) expect(await refusal(getJob(agent.as, jobId))).toMatchObject(gone);
    expect(await refusal(agent.as.relay.listInbox({}))).toMatchObject(gone);
    const [schedule] = (await agent.as.schedules.listSchedules({})).schedules;
    expect(await refusal(agent.as.schedules.getSchedule({ scheduleId: schedule!.scheduleId }))).toMatchObject(gone);
    // Lists and streams go on, and say of each job what cannot be read.
    const { jobs } = await agent.as.queues.listJobs({ queue, states: [2, 3, 5] });
    expect(jobs.map((job) => [jobState(job), job.progress?.message, job.error?.code])).toEqual([
      ["PENDING", undefined, undefined],
      ["LEASED", expect.stringContaining("dropped"), undefined],
      ["FAILED", expect.stringContaining("dropped"), "key_dropped"],
    ]);
    const dead = (await agent.as.queues.listDeadJobs({ queue })).jobs;
    expect(dead.map(({ error }) => error)).toMatchObject([{ code: "key_dropped", attempt: 1 }]);
    const changes: [string, string][] = [];
    for await (const { event } of agent.as.queues.watchJobs({ queue, fromStart: true })) {
      if (event.case !== "change") continue;
      changes.push([jobState({ state: event.value.state } as Job), event.value.error?.code ?? ""]);
      if (changes.length === 6) break;
    }
    expect(changes.at(-1)).toEqual(["FAILED", "key_dropped"]);
    // A job whose payload is lost ends as dead when it is claimed, and one that runs can be canceled and ended.
    expect(await claim(agent.as, { queues: [queue] })).toEqual([]);
    expect((await agent.as.queues.listDeadJobs({ queue })).jobs.map(({ error }) => error!.code)).toEqual([
      "key_dropped",
      "key_dropped",
    ]);
    await agent.as.queues.cancelJob({ jobId: held!.job!.jobId });
    await agent.as.queues.failJob(leaseOf(held!));
    expect((await agent.as.queues.listJobs({ queue, states: [6] })).jobs).toHaveLength(1);
    // What is written from now on has a new key, and the others never noticed.
    await set(agent.as, "a", "new");
    expect(jsonOf((await get(agent.as, "a")).value)).toBe("new");
    expect(jsonOfValue((await submit(agent.as, "echo", { input: "new" })).output)).toBe("new");
    expect(jsonOf((await get(other.as, "a")).value)).toBe("stays");
    expect((await statusOf(operator)).dataKeys).toMatchObject({ dropped: 1n });
  });
});

test("schedules of an organisation whose keys were dropped say so, and go on with what they are given anew", async () => {
  const clock = fakeClock(Date.now());
  await using world = await start("sqlite", { masterKeys: [newMaster()], clock });
  const { operator } = world;
  const { orgId, agent: newAgent } = await world.org();
  const { as } = await newAgent();
  const job = (it: string) => ({ payload: { kind: { case: "data", value: Buffer.from(it) } } }) as const;
  const { schedule } = await as.schedules.createSchedule({
    settings: { name: "minutely", timing: { cron: "* * * * *" }, job: job("old") },
  });
  const { scheduleId } = schedule!;
  const disable = (disabled: boolean) =>
    operator.organizations.updateOrganization({ orgId, change: { disabled }, updateMask: { paths: ["disabled"] } });
  await disable(true);
  await operator.maintenance.dropOrganizationKeys({ targetOrgId: orgId });
  await disable(false);
  await eventually(async () => (await refusal(as.schedules.getSchedule({ scheduleId }))).reason === "KEY_DROPPED");
  const listed = async () => (await as.schedules.listSchedules({})).schedules[0]!;
  const passed = (isThere: (now: Awaited<ReturnType<typeof listed>>) => boolean) =>
    eventually(async () => {
      clock.advance(1_000);
      return isThere(await listed());
    });
  await passed((now) => now.missedCount > 0n);
  const { lastError, runCount } = await listed();
  expect([lastError?.reason, runCount]).toEqual(["KEY_DROPPED", 0n]);
  await as.schedules.updateSchedule({
    scheduleId,
    change: { job: job("new") },
    updateMask: { paths: ["job.payload"] },
  });
  await passed((now) => now.runCount > 0n);
  expect((await listed()).lastError).toBeUndefined();
});

describe.runIf(dialects.includes("postgres"))("two servers on one PostgreSQL database", () => {
  test("make one key for an organisation however they race, and read what the other wrote at once, across rotations", async () => {
    await using place = await storage("postgres");
    const masterKeys = [newMaster()];
    await using one = await start("postgres", { ...place.options, masterKeys });
    await using two = await start("postgres", { ...place.options, masterKeys });
    const worlds = [one, two];
    for (let round = 0; round < 3; round++) {
      const org = await one.org();
      const agents = await Promise.all([org.agent(), org.agent(), org.agent(), org.agent()]);
      await Promise.all(
        agents.map(async ({ key }, n) => {
          const [here, there] = [worlds[n % 2]!.as(key), worlds[(n + 1) % 2]!.as(key)];
          await set(here, "a", n);
          expect(jsonOf((await get(there, "a")).value)).toBe(n);
          await set(there, "a", -n);
          expect(jsonOf((await get(here, "a")).value)).toBe(-n);
        }),
      );
      const keys = await one.server.app.db.query.all(
        sql`select key_id from vault_key where org_id = ${org.orgId} and state = 1`,
      );
      expect(keys).toHaveLength(1);
      await one.operator.maintenance.rotateVault({});
    }
  });

  test("one without a key stops writing once another has turned encryption on", async () => {
    await using place = await storage("postgres");
    await using plain = await start("postgres", { ...place.options, masterKeys: [] });
    const { as } = await (await plain.org()).agent();
    await set(as, "a", 1);
    await using sealing = await start("postgres", { ...place.options, masterKeys: [newMaster()] });
    expect(sealing.server.app.vault.encrypts).toBe(true);
    await eventually(() =>
      set(as, "b", 2).then(
        () => false,
        () => true,
      ),
    );
    expect(await refusal(set(as, "b", 2))).toMatchObject({ code: "Unavailable", reason: "SHUTTING_DOWN" });
  });
});

test("without a key the vault's methods say so", async () => {
  await using world = await start("sqlite", { masterKeys: [] });
  expect(await refusal(world.operator.maintenance.rotateVault({}))).toMatchObject({
    reason: "FAILED_PRECONDITION",
    metadata: { state: "NOT_ENCRYPTED" },
  });
});
