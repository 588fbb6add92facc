/** The organisation of one run: made in the transaction that begins the run, and gone with all that is in it when the run has ended. */
import { Role } from "../../gen/moltwire/api/v1/access_pb.ts";
import { TrustTier } from "../../gen/moltwire/bus/v1/agent_pb.ts";
import { PolicyEffect } from "../../gen/moltwire/bus/v1/policy_pb.ts";
import type { App } from "../app.ts";
import { type AgentRow, insertAgent } from "../bus/agent-store.ts";
import { checkPolicy } from "../bus/policy/check.ts";
import { lockPolicySet, setPolicySet, upsertPolicy } from "../bus/policy/policy-store.ts";
import { type Db, type Queryable, raw, sql, type Tx } from "../db/db.ts";
import { issueKey } from "../federation/issue-key.ts";
import { insertOrganization } from "../federation/organization-store.ts";
import { numbers } from "./plan.ts";
import type { RunRef } from "./store.ts";

/** Somebody of a sandbox. The keys are nowhere else. */
export type Resident = { readonly agentId: string; readonly key: string };

/** An organisation with an administrator, the agent whose memory all share, and the agents that play. */
export type Sandbox = {
  readonly orgId: string;
  readonly adminKey: string;
  readonly registryId: string;
  readonly agents: readonly Resident[];
};

/** A sandbox that is not gone yet. */
export type SandboxRow = {
  readonly org_id: string;
  readonly scenario_id: string;
  readonly run: number;
  readonly sandbox_org_id: string;
  readonly server_id: string;
};

/** The agents of a sandbox share all memories in it. */
const sharedMemory = `permit (
  principal is Agent,
  action in [Action::"read_memory", Action::"write_memory"],
  resource is Namespace
)
when { principal.org == resource.org };`;

/** How much longer than its run a key of a sandbox is good, should nobody be left to remove it. */
const graceMs = 60_000;
const maxPasses = 5;

type Needs = Pick<App, "ids" | "policies" | "serverId">;

/** Makes the sandbox of a run. */
export async function makeSandbox(
  tx: Tx,
  app: Needs,
  ref: RunRef,
  { agents, timeoutMs }: { readonly agents: number; readonly timeoutMs: number },
  now: number,
): Promise<Sandbox> {
  const orgId = app.ids.next("org");
  const name = orgId.replace("_", "-");
  const expireMs = now + timeoutMs + graceMs;
  await tx.run(sql`
    insert into lab_sandbox (org_id, scenario_id, run, sandbox_org_id, server_id, create_ms)
    values (${ref.orgId}, ${ref.scenarioId}, ${ref.run}, ${orgId}, ${app.serverId}, ${now})`);
  const times = { create_ms: now, update_ms: now, revision: 1 };
  const display_name = `Run ${ref.run} of ${ref.scenarioId}`;
  await insertOrganization(tx, {
    org_id: orgId,
    name,
    display_name,
    metadata: "{}",
    disabled: 0,
    auto_accept_grants: 0,
    ...times,
  });
  await putSharedMemory(tx, app, orgId, now);
  const keyOf = async (role: Role, agentId: string) => {
    const key = { orgId, name: "", role, agentId, scopes: [], createMs: now, expireMs, rotatedFrom: null };
    return (await issueKey(tx, app.ids, key)).text;
  };
  const addAgent = async (agentName: string) => {
    const agentId = app.ids.next("agt");
    await insertAgent(tx, newcomer(orgId, agentId, agentName, now));
    return agentId;
  };
  const registryId = await addAgent("registry");
  const players: Resident[] = [];
  for (const agent of numbers(agents)) {
    const agentId = await addAgent(`agent-${agent}`);
    players.push({ agentId, key: await keyOf(Role.AGENT, agentId) });
  }
  return { orgId, adminKey: await keyOf(Role.ORG, ""), registryId, agents: players };
}

async function putSharedMemory(tx: Tx, app: Needs, orgId: string, now: number): Promise<void> {
  const { cedar, vocabulary } = app.policies;
  const checked = checkPolicy(cedar, vocabulary, sharedMemory);
  if (checked.faults) throw new Error(`the policy of sandboxes is wrong: ${checked.faults[0]?.message}`);
  const set = await lockPolicySet(tx, orgId);
  await upsertPolicy(tx, {
    org_id: orgId,
    policy_id: "lab/shared-memory",
    cedar_text: sharedMemory,
    description: "The agents of a run share the memory of its registry.",
    effect: PolicyEffect.PERMIT,
    disabled: 0,
    facts: JSON.stringify(checked.facts),
    create_ms: now,
    update_ms: now,
    revision: 1,
  });
  const text_bytes = Buffer.byteLength(sharedMemory);
  await setPolicySet(tx, orgId, { revision: set.revision + 1, policies: 1, text_bytes });
}

const newcomer = (orgId: string, agentId: string, name: string, now: number): AgentRow => ({
  ...{ org_id: orgId, agent_id: agentId, name, description: "", trust_tier: TrustTier.INTERNAL_RESTRICTED },
  ...{ capabilities: "[]", allowed_tools: "[]", endpoint: null, metadata: "{}", disabled: 0 },
  ...{ create_ms: now, update_ms: now, revision: 1, weight: 1, breaker: "", namespace: "" },
});

/** Sandboxes of servers that are gone, and those of this server; few, as they are gone soon after their run. */
export const sandboxesToRemove = (db: Queryable, serverId: string, now: number, limit: number): Promise<SandboxRow[]> =>
  db.all<SandboxRow>(sql`
    select org_id, scenario_id, run, sandbox_org_id, server_id from lab_sandbox b
    where b.server_id = ${serverId} or not exists (select 1 from lease l where l.name = 'server:' || b.server_id and l.until_ms > ${now})
    order by org_id, scenario_id, run limit ${limit}`);

/** The books and the chained audit log stay as they are for ever; a run writes neither. */
const isForEver = (table: string): boolean => table.startsWith("ledger_") || table.startsWith("audit_");

/**
 * Removes all rows of a sandbox: keys first, so that nobody comes in any more, the organisation last. Each table is a transaction of its own, so that this never holds
 * much; what a crash leaves is removed by the next who tries. Every table that has an `org_id` is told by the engine's own catalogue: a table that is new is not
 * forgotten.
 */
export async function removeSandbox(
  db: Db,
  row: Pick<SandboxRow, "org_id" | "scenario_id" | "run" | "sandbox_org_id">,
): Promise<void> {
  const { sandbox_org_id: orgId } = row;
  await db.tx((tx) => tx.run(sql`delete from api_key where org_id = ${orgId}`));
  const tables = (await tablesOfOrganizations(db.query)).filter(
    (table) => !isForEver(table) && table !== "organization",
  );
  // A sweep that was at one of its jobs or entries may have written once more.
  for (let pass = 0; pass < maxPasses; pass++) if (!(await removeRows(db, tables, orgId))) break;
  await db.tx(async (tx) => {
    await tx.run(sql`delete from organization where org_id = ${orgId}`);
    await tx.run(
      sql`delete from lab_sandbox where org_id = ${row.org_id} and scenario_id = ${row.scenario_id} and run = ${row.run} and sandbox_org_id = ${orgId}`,
    );
  });
}

/** Whether there were any. */
async function removeRows(db: Db, tables: readonly string[], orgId: string): Promise<boolean> {
  let found = false;
  for (const table of tables) {
    const rows = sql`from ${raw(table)} where org_id = ${orgId}`;
    if (!(await db.query.one(sql`select 1 as found ${rows} limit 1`))) continue;
    await db.tx((tx) => tx.run(sql`delete ${rows}`));
    found = true;
  }
  return found;
}

/** The tables with rows of organisations, by name. */
export async function tablesOfOrganizations(db: Queryable): Promise<readonly string[]> {
  const rows = await db.all<{ name: string }>(
    db.dialect.name === "sqlite"
      ? sql`select t.name as name from pragma_table_list t join pragma_table_info(t.name) c on c.name = 'org_id' where t.schema = 'main' and t.type = 'table' order by t.name`
      : sql`select c.table_name as name from information_schema.columns c join information_schema.tables t on t.table_schema = c.table_schema and t.table_name = c.table_name
          where c.table_schema = current_schema() and c.column_name = 'org_id' and t.table_type = 'BASE TABLE' order by c.table_name`,
  );
  return rows.map(({ name }) => name);
}
