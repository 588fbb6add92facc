import { randomBytes } from "node:crypto";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, test } from "vitest";
import { sql } from "../src/db/db.ts";
import { parseMasterKey } from "../src/vault/master-key.ts";
import { backUp, restore } from "./backup-fixtures/backup.ts";
import { echoEndpoint, submit } from "./bus-fixtures/bus.ts";
import { emptyStorage, storage } from "./bus-fixtures/storage.ts";
import { dialects, eventually, fakeClock, start, unique, type World } from "./harness.ts";
import { data, get } from "./memory-fixtures/memory.ts";

const folder = mkdtempSync(join(tmpdir(), "moltwire-backup-vault-"));
afterAll(() => rmSync(folder, { recursive: true }));

const newMaster = () => parseMasterKey(randomBytes(32).toString("base64"));
const rows = 800;
const trace = "a".repeat(32);

const algorithmsOf = async ({ server }: World, read: ReturnType<typeof sql>): Promise<number[]> => {
  const found = await server.app.db.query.all<{ it: Uint8Array }>(read);
  return [...new Set(found.map(({ it }) => it[1]!))];
};
const statusOf = async (by: World["operator"]) => (await by.maintenance.getVaultStatus({})).status!;

describe.each(dialects)("%s", (dialect) => {
  test.each(dialects)(
    "restored into %s while what was in the clear is being encrypted: all is there, and the rest is encrypted",
    async (into) => {
      await using from = await storage(dialect);
      await using to = await emptyStorage(into);
      const clock = fakeClock(Date.now());
      const masterKeys = [newMaster()];
      const path = join(folder, unique("backup"));
      let keys: { operator: string; admin: string; agent: string };
      {
        await using world = await start(dialect, { ...from.options, clock, masterKeys: [] });
        const org = await world.org();
        const agent = await org.agent();
        keys = { operator: world.operatorKey, admin: org.adminKey, agent: agent.key };
        for (let at = 0; at < rows; at += 100)
          await agent.as.memory.batchSetEntries({
            changes: Array.from({ length: 100 }, (_, n) => ({
              change: { case: "set" as const, value: { key: `k${at + n}`, value: data(Buffer.from(`v${at + n}`)) } },
            })),
          });
        await org.admin.contracts.registerContract({ contractId: "echo", version: "1.0.0" });
        await org.agent({ capabilities: ["echo"], endpoint: echoEndpoint });
        // The first is gone, so that the numbers of the others change where they are counted anew.
        await submit(org.admin, "echo", { input: "first" });
        await world.server.app.db.tx((tx) => tx.run(sql`delete from trace_event where trace_id <> ${trace}`));
        await submit(
          org.admin,
          "echo",
          { input: "it" },
          { headers: { traceparent: `00-${trace}-${"b".repeat(16)}-01` } },
        );
        // As they were before they had ids of their own.
        await world.server.app.db.tx((tx) => tx.run(sql`update trace_event set event_id = ''`));
      }
      {
        await using world = await start(dialect, { ...from.options, clock, masterKeys });
        const operator = world.as(keys.operator);
        await eventually(async () => {
          clock.advance(200);
          return (await algorithmsOf(world, sql`select body as it from trace_event`)).every((one) => one === 1);
        });
        // As if the walk were still on its way.
        await world.server.app.db.tx(async (tx) => {
          const { seq, xid, org_id } = (await tx.one<{ seq: number; xid: number; org_id: string }>(
            sql`select org_id, xid, seq from trace_event order by seq desc limit 1`,
          ))!;
          const at = JSON.stringify(dialect === "sqlite" ? [seq] : [org_id, xid, seq]);
          await tx.run(
            sql`update vault_walk set after_key = ${at}, done_ms = ${null}, strict_ms = ${null} where table_name = 'trace_event'`,
          );
        });
        await backUp(operator, path);
      }
      await restore(path, into === "sqlite" ? { data: to.folder } : { databaseUrl: to.options.databaseUrl! });
      await using world = await start(into, { ...to.options, clock, masterKeys });
      const operator = world.as(keys.operator);
      await eventually(async () => {
        clock.advance(1_000);
        return (await statusOf(operator)).complete;
      });
      expect(await algorithmsOf(world, sql`select value as it from memory_entry`)).toEqual([1]);
      const { events } = await world.as(keys.admin).traces.getTrace({ traceId: trace });
      expect(events.length).toBeGreaterThan(2);
      const { value } = await get(world.as(keys.agent), `k${rows - 1}`);
      expect(Buffer.from(value!.kind.value as Uint8Array).toString()).toBe(`v${rows - 1}`);
    },
  );
});
