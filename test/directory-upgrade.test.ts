import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { expect, test } from "vitest";
import { sql } from "../src/db/db.ts";
import { migrate, readMigrations } from "../src/db/migrate.ts";
import { openPostgres } from "../src/db/postgres.ts";
import { openSqlite } from "../src/db/sqlite.ts";
import { freshDatabase } from "./engines.ts";
import { dialects, start } from "./harness.ts";

const folder = fileURLToPath(new URL("../src/db/migrations", import.meta.url));
/** The last schema without a directory. */
const before = 14;

test.each(dialects)("agents of a database from before the directory are found in it, on %s", async (dialect) => {
  const database = dialect === "postgres" ? await freshDatabase() : undefined;
  const data = mkdtempSync(join(tmpdir(), "upgrade-"));
  try {
    const db = database ? await openPostgres(database.url) : openSqlite({ file: join(data, "moltwire.db") });
    await migrate(db, readMigrations(folder, dialect).slice(0, before));
    const [orgId, agentId] = ["org_0123456789abcdef", "agt_0123456789abcdef"];
    await db.tx(async (tx) => {
      await tx.run(sql`
        insert into organization (org_id, name, display_name, metadata, disabled, create_ms, update_ms, revision)
        values (${orgId}, ${"old"}, ${"Old"}, ${"{}"}, ${0}, ${1}, ${1}, ${1})`);
      await tx.run(sql`
        insert into agent (org_id, agent_id, name, description, trust_tier, capabilities, allowed_tools, metadata, disabled, create_ms, update_ms, revision, weight, breaker)
        values (${orgId}, ${agentId}, ${"Map-Reader"}, ${""}, ${2}, ${'["maps/read"]'}, ${"[]"}, ${"{}"}, ${0}, ${1}, ${1}, ${1}, ${1}, ${""})`);
      await tx.run(
        sql`insert into agent_capability (org_id, capability, agent_id) values (${orgId}, ${"maps/read"}, ${agentId})`,
      );
    });
    await db.close();
    await using world = await start(dialect, { data, ...(database && { databaseUrl: database.url }) });
    const { directory, agents } = world.operator;
    for (const search of [
      {},
      { text: "reader" },
      { text: "maps" },
      { capabilities: ["maps/read"] },
      { capabilityPrefix: "maps" },
    ]) {
      const { profiles } = await directory.searchAgents({ orgId, ...search });
      expect(profiles.map((one) => one.agentId)).toEqual([agentId]);
    }
    await agents.updateAgent({ orgId, agentId, change: { name: "reader-two" }, updateMask: { paths: ["name"] } });
    expect((await directory.searchAgents({ orgId, text: "two" })).profiles).toHaveLength(1);
    expect((await directory.searchAgents({ orgId, text: "map" })).profiles).toHaveLength(1);
    await agents.deleteAgent({ orgId, agentId });
    expect((await directory.searchAgents({ orgId })).profiles).toEqual([]);
  } finally {
    rmSync(data, { recursive: true, force: true });
    await database?.drop();
  }
});
