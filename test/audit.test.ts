import { randomBytes } from "node:crypto";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, test } from "vitest";
import { type Broken, checkChain, type Expected, type Unbroken } from "../clients/cli/audit-chain.ts";
import { exportLines } from "../clients/cli/audit-export.ts";
import { Role } from "../gen/moltwire/api/v1/access_pb.ts";
import { type AuditEvent, AuditKind } from "../gen/moltwire/ops/v1/admin_service_pb.ts";
import { sql } from "../src/db/db.ts";
import { auditSealer, sealBatch, sealMs } from "../src/ops/audit-seal.ts";
import { insertAudit } from "../src/ops/audit-store.ts";
import { parseMasterKey } from "../src/vault/master-key.ts";
import { backUp, restore } from "./backup-fixtures/backup.ts";
import { emptyStorage, storage } from "./bus-fixtures/storage.ts";
import { type Clients, dialects, eventually, fakeClock, refusal, start, unique, type World } from "./harness.ts";

const folder = mkdtempSync(join(tmpdir(), "moltwire-audit-test-"));
afterAll(() => rmSync(folder, { recursive: true }));

const entry = (orgId: string, nth: number) => ({
  ...{ orgId, kind: AuditKind.DECISION, timeMs: 1_767_225_600_000 + nth, method: "moltwire.test/Decide" },
  ...{ role: Role.AGENT, keyId: "", agentId: "agt_a", resource: { nth: String(nth), verdict: "DENY" } },
  ...{ requestSha256: "0".repeat(64), traceId: "1".repeat(32) },
});

/** Writes so many rows, some in each transaction. */
async function write({ server }: World, orgId: string, count: number, together = 100): Promise<void> {
  const { db } = server.app;
  for (let from = 0; from < count; from += together)
    await db.tx(async (tx) => {
      for (let nth = from; nth < Math.min(count, from + together); nth++)
        await insertAudit(tx, server.app, entry(orgId, nth));
    });
}

const silent = { sealed: () => {} };
const sealerOf = ({ server }: World, more: object = {}) => auditSealer({ ...server.app, ...more }, silent);

/** Chains all that is there, as the server's own sealer does in its time. */
async function sealAll(world: World): Promise<void> {
  await world.settled();
  const seal = sealerOf(world, { serverId: world.server.app.serverId });
  for (let rounds = 0; rounds < 100; rounds++) if ((await seal()) === sealMs) return;
  throw new Error("it is never done");
}

/** The export of an organisation, as `moltwire audit export` writes it. */
async function exportOf(as: Clients, orgId = "", afterNumber = 0n): Promise<{ lines: string[]; events: AuditEvent[] }> {
  const lines: string[] = [];
  const events: AuditEvent[] = [];
  const write = exportLines();
  for await (const message of as.admin.exportAuditEvents({ orgId, afterNumber })) {
    expect(message.auditEvents.length).toBeLessThanOrEqual(250);
    events.push(...message.auditEvents);
    lines.push(...write(message));
  }
  return { lines, events };
}

function check(lines: readonly string[], expected: Expected = {}): Broken | Unbroken {
  const chain = checkChain(expected);
  for (const line of lines) {
    const broken = chain.line(Buffer.from(line));
    if (broken) return broken;
  }
  return chain.end(0);
}

const headOf = async (as: Clients, orgId = "") => {
  const { head, unsealed } = await as.admin.getAuditHead({ orgId });
  return { number: Number(head!.number), hash: head!.hash, unsealed };
};
const unbroken = { file: expect.objectContaining({ afterNumber: 0 }) as object };

describe.each(dialects)("%s", (dialect) => {
  const clock = () => fakeClock(Date.parse("2026-01-01T00:00:00Z"));

  test("a row can be read at once, and is chained soon after by the server itself", async () => {
    const time = clock();
    await using world = await start(dialect, { clock: time });
    const org = await world.org();
    for (const name of ["a", "b", "c"]) await org.admin.keys.createApiKey({ name });
    const written = (await org.admin.admin.listAuditEvents({})).auditEvents;
    expect(written.map(({ number, hash, kind }) => ({ number, hash, kind }))).toEqual(
      written.map(() => ({ number: 0n, hash: "", kind: AuditKind.CHANGE })),
    );
    expect(await headOf(org.admin)).toEqual({ number: 0, hash: "0".repeat(64), unsealed: written.length });
    expect((await exportOf(org.admin)).events).toEqual([]);
    await world.settled();
    time.advance(sealMs);
    const head = await eventually(async () => {
      const now = await headOf(org.admin);
      return now.unsealed === 0 && now;
    });
    expect(head.number).toBe(written.length);
    expect((await org.admin.admin.getAuditHead({})).head!.sealTime!.seconds).toBe(BigInt(time.now() / 1_000));
    const { lines, events } = await exportOf(org.admin);
    expect(check(lines, { head })).toEqual(unbroken);
    expect(events.map(({ auditId }) => auditId)).toEqual(written.map(({ auditId }) => auditId).toReversed());
    const now = (await org.admin.admin.listAuditEvents({})).auditEvents;
    expect(now).toEqual(events.toReversed());
  });

  test("each organisation has a chain of its own; the operator reads all, others none but theirs", async () => {
    await using world = await start(dialect, { clock: clock() });
    const [one, other] = [await world.org(), await world.org()];
    await one.admin.keys.createApiKey({});
    await sealAll(world);
    const { lines, events } = await exportOf(one.admin);
    expect(check(lines)).toEqual(unbroken);
    expect(events.map(({ number }) => number)).toEqual([1n, 2n]);
    expect((await exportOf(world.operator, one.orgId)).lines).toEqual(lines);
    expect((await exportOf(other.admin)).events.map(({ number, orgId }) => [number, orgId])).toEqual([
      [1n, other.orgId],
    ]);
    for (const call of [() => exportOf(other.admin, one.orgId), () => headOf(other.admin, one.orgId)])
      expect(await refusal(call())).toMatchObject({ reason: "NOT_FOUND" });
    const agent = await one.agent();
    for (const call of [() => exportOf(agent.as), () => headOf(agent.as)])
      expect(await refusal(call())).toMatchObject({ reason: "ROLE_REQUIRED" });
  });

  test("a decision is a row like others, in the transaction of the decision", async () => {
    await using world = await start(dialect, { clock: clock() });
    const org = await world.org();
    const { app } = world.server;
    const undone = app.db.tx(async (tx) => {
      await insertAudit(tx, app, entry(org.orgId, 1));
      throw new Error("undone");
    });
    await expect(undone).rejects.toThrow("undone");
    await app.db.tx((tx) => insertAudit(tx, app, entry(org.orgId, 2)));
    await sealAll(world);
    const { lines, events } = await exportOf(org.admin);
    expect(check(lines)).toEqual(unbroken);
    expect(events.filter(({ kind }) => kind === AuditKind.DECISION).map(({ resource }) => resource)).toEqual([
      { nth: "2", verdict: "DENY" },
    ]);
  });

  test("an export goes on after any row, in pieces, and not behind the head", async () => {
    await using world = await start(dialect, { clock: clock() });
    const org = await world.org();
    await write(world, org.orgId, 700);
    await sealAll(world);
    const { lines, events } = await exportOf(org.admin);
    expect(events).toHaveLength(701);
    expect(check(lines)).toEqual(unbroken);
    const head = await headOf(org.admin);
    for (const after of [1, 250, 251, 700]) {
      const rest = await exportOf(org.admin, "", BigInt(after));
      expect(rest.events).toEqual(events.slice(after));
      expect(check(rest.lines, { after: { number: after, hash: events[after - 1]!.hash }, head })).toEqual({
        file: expect.objectContaining({ afterNumber: after, headNumber: 701 }) as object,
      });
    }
    expect((await exportOf(org.admin, "", 701n)).lines).toHaveLength(1);
    expect(await refusal(exportOf(org.admin, "", 702n))).toMatchObject({
      reason: "INVALID_REQUEST",
      metadata: { field: "after_number" },
    });
  });

  test("a sealer that dies between two batches, or in one, leaves the rest to the next", async () => {
    await using world = await start(dialect, { clock: clock() });
    const org = await world.org();
    await write(world, org.orgId, 600);
    await world.settled();
    const { app } = world.server;
    expect(await app.db.tx((tx) => sealBatch(tx, org.orgId, 1))).toEqual({ rows: 256, sealed: 256 });
    const before = await headOf(org.admin);
    expect(before).toMatchObject({ number: 256, unsealed: 345 });
    const killed = app.db.tx(async (tx) => {
      await sealBatch(tx, org.orgId, 2);
      throw new Error("killed");
    });
    await expect(killed).rejects.toThrow("killed");
    expect(await headOf(org.admin)).toEqual(before);
    await sealAll(world);
    const { lines } = await exportOf(org.admin);
    expect(check(lines, { head: before })).toEqual(unbroken);
    expect(await headOf(org.admin)).toMatchObject({ number: 601, unsealed: 0 });
  });

  test("sealers that race beside writers make one chain, which no row is missing from", async () => {
    await using world = await start(dialect, { clock: clock() });
    const org = await world.org();
    const { app } = world.server;
    let writing = true;
    const racing = Array.from({ length: 4 }, async () => {
      while (writing) await app.db.tx((tx) => sealBatch(tx, org.orgId, 1));
    });
    const written = Promise.all(Array.from({ length: 6 }, () => write(world, org.orgId, 150, 3)));
    await Promise.all([written.finally(() => (writing = false)), ...racing]);
    await sealAll(world);
    const { lines, events } = await exportOf(org.admin);
    expect(check(lines)).toEqual(unbroken);
    expect(events).toHaveLength(901);
    const log = await app.db.query.all<{ audit_id: string }>(
      sql`select audit_id from audit_event where org_id = ${org.orgId} order by xid, seq`,
    );
    expect(events.map(({ auditId }) => auditId)).toEqual(log.map(({ audit_id }) => audit_id));
  });

  test("the database itself refuses a fork: no two rows with one number", async () => {
    await using world = await start(dialect, { clock: clock() });
    const org = await world.org();
    await write(world, org.orgId, 2);
    await sealAll(world);
    const fork = world.server.app.db.tx((tx) =>
      tx.run(sql`update audit_event set number = ${1} where org_id = ${org.orgId} and number = ${2}`),
    );
    await expect(fork).rejects.toThrow(/unique/i);
    // As a sealer would do that believes in an older head.
    await world.server.app.db.tx((tx) =>
      tx.run(sql`update audit_head set number = ${0}, hash = ${"0".repeat(64)} where org_id = ${org.orgId}`),
    );
    await write(world, org.orgId, 1);
    await world.settled();
    const stale = world.server.app.db.tx((tx) => sealBatch(tx, org.orgId, 1));
    await expect(stale).rejects.toThrow(/unique/i);
  });

  test("one server seals at a time; another goes on once that one's lease has run out", async () => {
    const time = clock();
    await using world = await start(dialect, { clock: time });
    const org = await world.org();
    const [one, other] = [sealerOf(world, { serverId: "srv_one" }), sealerOf(world, { serverId: "srv_other" })];
    await world.settled();
    await one();
    const first = await headOf(org.admin);
    expect(first).toMatchObject({ number: 1, unsealed: 0 });
    await write(world, org.orgId, 1);
    await world.settled();
    expect(await other()).toBe(sealMs);
    expect(await headOf(org.admin)).toMatchObject({ number: 1, unsealed: 1 });
    await world.server.app.db.tx((tx) =>
      tx.run(sql`update lease set until_ms = ${time.now()} where name = ${"audit"}`),
    );
    await other();
    expect(await headOf(org.admin)).toMatchObject({ number: 2, unsealed: 0 });
  });

  test("a long log does not delay those of other organisations", async () => {
    await using world = await start(dialect, { clock: clock() });
    const long = await world.org();
    const short = await world.org();
    await write(world, long.orgId, 2_000);
    await world.settled();
    const seal = sealerOf(world);
    for (let round = 0; round < 3; round++) await seal();
    expect(await headOf(short.admin)).toMatchObject({ number: 1, unsealed: 0 });
    expect((await headOf(long.admin)).unsealed).toBeGreaterThan(1_000);
    await sealAll(world);
    expect(check((await exportOf(long.admin)).lines)).toEqual(unbroken);
  });

  test("a log that cannot be chained does not keep others from it", async () => {
    await using world = await start(dialect, { clock: clock() });
    const broken = await world.org();
    const fine = await world.org();
    await sealAll(world);
    const { db } = world.server.app;
    await db.tx((tx) => tx.run(sql`update audit_head set number = ${0} where org_id = ${broken.orgId}`));
    await write(world, broken.orgId, 1);
    await write(world, fine.orgId, 1);
    await sealAll(world);
    expect(await headOf(fine.admin)).toMatchObject({ number: 2, unsealed: 0 });
    expect(await headOf(broken.admin)).toMatchObject({ number: 0, unsealed: 1 });
  });

  test("what somebody does to the rows in the database is in the export, and named", async () => {
    await using world = await start(dialect, { clock: clock() });
    const org = await world.org();
    await write(world, org.orgId, 9);
    await sealAll(world);
    const head = await headOf(org.admin);
    const { db } = world.server.app;
    const where = (number: number) => sql`where org_id = ${org.orgId} and number = ${number}`;
    const found = async () => check((await exportOf(org.admin)).lines, { head });
    await db.tx((tx) => tx.run(sql`update audit_event set key_id = ${"key_other"} ${where(7)}`));
    expect(await found()).toMatchObject({ reason: "AUDIT_CHANGED", number: 7 });
    await db.tx((tx) => tx.run(sql`delete from audit_event ${where(5)}`));
    expect(await found()).toMatchObject({ reason: "AUDIT_REMOVED", number: 5 });
    expect(await refusal(exportOf(org.admin, "", 5n))).toMatchObject({ reason: "DATA_NOT_AUTHENTIC" });
    await db.tx((tx) => tx.run(sql`delete from audit_event where org_id = ${org.orgId} and number > ${3}`));
    expect(await found()).toMatchObject({ reason: "AUDIT_CUT", number: 4 });
  });

  test("tells how old the oldest row is that is not chained, and counts those that are", async () => {
    const time = clock();
    await using world = await start(dialect, { clock: time });
    const value = async (name: string) => {
      const headers = { authorization: `Bearer ${world.operatorKey}` };
      const text = await (await fetch(`${world.url}/metrics`, { headers })).text();
      return Number(new RegExp(`^${name} (\\S+)$`, "m").exec(text)![1]);
    };
    await sealAll(world);
    expect(await value("moltwire_audit_unsealed_seconds")).toBe(0);
    const org = await world.org(); // which is done in the operator's organisation
    const before = await value("moltwire_audit_sealed_total");
    time.advance(sealMs / 2);
    expect(await value("moltwire_audit_unsealed_seconds")).toBe(sealMs / 2_000);
    await world.settled();
    time.advance(sealMs / 2);
    await eventually(async () => (await headOf(org.admin)).number === 1);
    await eventually(async () => (await value("moltwire_audit_sealed_total")) === before + 2);
    expect(await value("moltwire_audit_unsealed_seconds")).toBe(0);
  });

  test("other keys of the vault, and none at all, leave the chain as it is", async () => {
    const newMaster = () => parseMasterKey(randomBytes(32).toString("base64"));
    await using place = await storage(dialect);
    const masters = [newMaster(), newMaster()] as const;
    let operatorKey: string;
    let orgId: string;
    let before: string[];
    {
      await using world = await start(dialect, { ...place.options, masterKeys: [masters[0]] });
      ({ operatorKey } = world);
      const org = await world.org();
      ({ orgId } = org);
      await (await org.agent()).as.memory.setEntry({
        write: { key: "a", value: { kind: { case: "data", value: Buffer.from("a") } } },
      });
      await eventually(async () => (await headOf(org.admin)).unsealed === 0);
      before = (await exportOf(org.admin)).lines;
    }
    await using world = await start(dialect, { ...place.options, masterKeys: [masters[1], masters[0]] });
    const operator = world.as(operatorKey);
    await operator.maintenance.rotateVault({ reencrypt: true });
    await eventually(async () => {
      const { status } = await operator.maintenance.getVaultStatus({});
      return status!.dataKeys!.toRewrap === 0n && status!.tables.every(({ rowsLeft }) => rowsLeft === 0n);
    });
    expect((await exportOf(operator, orgId)).lines).toEqual(before);
    const change = { orgId, change: { disabled: true }, updateMask: { paths: ["disabled"] } };
    await operator.organizations.updateOrganization(change);
    await operator.maintenance.dropOrganizationKeys({ targetOrgId: orgId });
    // As if ten seconds were over: so long the server before would have had the chains to itself.
    await world.server.app.db.tx((tx) => tx.run(sql`update lease set until_ms = 0 where name = 'audit'`));
    await eventually(async () => (await headOf(operator, orgId)).number === before.length);
    const { lines } = await exportOf(operator, orgId);
    expect(check(lines)).toEqual(unbroken);
    expect(lines.slice(1, before.length)).toEqual(before.slice(1));
  });

  test.each(dialects)("restored into %s a chain is the same, and goes on where it was", async (into) => {
    await using from = await storage(dialect);
    await using to = await emptyStorage(into);
    const path = join(folder, unique("backup"));
    let operatorKey: string;
    let adminKey: string;
    let orgId: string;
    let before: string[];
    {
      await using world = await start(dialect, { ...from.options, clock: clock() });
      ({ operatorKey } = world);
      const org = await world.org();
      ({ adminKey, orgId } = org);
      // Others' rows between them, so that places in the log are others after the restore.
      await world.org();
      await write(world, orgId, 600);
      await sealAll(world);
      before = (await exportOf(org.admin)).lines;
      await write(world, orgId, 5);
      await backUp(world.operator, path);
    }
    await restore(path, into === "sqlite" ? { data: to.folder } : { databaseUrl: to.options.databaseUrl! });
    // The lease of the one that was sealing is in the backup too.
    const later = fakeClock(Date.parse("2026-01-01T00:01:00Z"));
    await using world = await start(into, { ...to.options, clock: later });
    const admin = world.as(adminKey);
    expect((await exportOf(admin)).lines).toEqual(before);
    await admin.keys.createApiKey({});
    await write(world, orgId, 3);
    await sealAll(world);
    const { lines, events } = await exportOf(admin);
    const noted = JSON.parse(before[0]!) as { head_number: number; head_hash: string };
    expect(check(lines, { head: { number: noted.head_number, hash: noted.head_hash } })).toEqual(unbroken);
    expect(lines.slice(1, before.length)).toEqual(before.slice(1));
    expect(events).toHaveLength(before.length - 1 + 5 + 1 + 3);
    expect(await headOf(admin)).toMatchObject({ number: events.length, unsealed: 0 });
    expect(check((await exportOf(world.as(operatorKey))).lines)).toEqual(unbroken);
  });
});
