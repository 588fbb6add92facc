import type { JsonObject } from "@bufbuild/protobuf";
import { create, fromJsonString, type MessageInitShape, toJsonString } from "@bufbuild/protobuf";
import { timestampFromMs } from "@bufbuild/protobuf/wkt";
import {
  type AgentSchema,
  type BreakerSettings,
  BreakerSettingsSchema,
  type CircuitSchema,
  type Endpoint,
  EndpointSchema,
  PullEndpointSchema,
  type TrustTier,
} from "../../gen/moltwire/bus/v1/agent_pb.ts";
import { Visibility } from "../../gen/moltwire/directory/v1/profile_pb.ts";
import { type Queryable, type Sql, sql, type Tx } from "../db/db.ts";
import { indexProfile } from "../directory/index-store.ts";
import { addProfile, dropProfile } from "../directory/profile-store.ts";
import { Fault } from "../errors.ts";
import { lockOrganization } from "../federation/organization-store.ts";
import type { Position } from "../rpc/cursor.ts";
import type { CircuitRow } from "./circuit/circuit-store.ts";

/** An agent as it is stored: lists, endpoint and metadata are JSON; `trust_tier` is the number of TrustTier. */
export type AgentRow = {
  readonly org_id: string;
  readonly agent_id: string;
  readonly name: string;
  readonly description: string;
  readonly trust_tier: number;
  readonly capabilities: string;
  readonly allowed_tools: string;
  readonly endpoint: string | null;
  readonly metadata: string;
  readonly disabled: number;
  readonly create_ms: number;
  readonly update_ms: number;
  readonly revision: number;
  /** At least 1. */
  readonly weight: number;
  /** BreakerSettings as JSON, or empty for the defaults. */
  readonly breaker: string;
  /** Empty: none. */
  readonly namespace: string;
  /** Where routing read it: 1 if its profile is private, and whether it shows itself to the caller of the task. */
  readonly private?: number;
  readonly hidden?: boolean | undefined;
};

const columns = sql`org_id, agent_id, name, description, trust_tier, capabilities, allowed_tools, endpoint, metadata, disabled, create_ms, update_ms, revision, weight, breaker, namespace`;
/** The columns of an {@link AgentRow}, of `agent a`. */
export const agentColumns = sql`a.org_id, a.agent_id, a.name, a.description, a.trust_tier, a.capabilities, a.allowed_tools, a.endpoint, a.metadata, a.disabled, a.create_ms, a.update_ms, a.revision, a.weight, a.breaker, a.namespace`;

/** Adds an agent; 0 when its name is taken. */
export async function insertAgent(tx: Tx, row: AgentRow): Promise<number> {
  const added = await tx.run(sql`
    insert into agent (${columns})
    values (${row.org_id}, ${row.agent_id}, ${row.name}, ${row.description}, ${row.trust_tier}, ${row.capabilities}, ${row.allowed_tools}, ${row.endpoint},
      ${row.metadata}, ${row.disabled}, ${row.create_ms}, ${row.update_ms}, ${row.revision}, ${row.weight}, ${row.breaker}, ${row.namespace})
    on conflict do nothing`);
  if (added === 1) {
    await putCapabilities(tx, row);
    await addProfile(tx, row.org_id, row.agent_id);
  }
  return added;
}

/** Replaces what is stored of an agent; rejects when another has the name (see unlessTaken). */
export async function updateAgent(tx: Tx, row: AgentRow): Promise<void> {
  await tx.run(sql`
    update agent set name = ${row.name}, description = ${row.description}, trust_tier = ${row.trust_tier}, capabilities = ${row.capabilities},
      allowed_tools = ${row.allowed_tools}, endpoint = ${row.endpoint}, metadata = ${row.metadata}, disabled = ${row.disabled},
      update_ms = ${row.update_ms}, revision = ${row.revision}, weight = ${row.weight}, breaker = ${row.breaker}, namespace = ${row.namespace}
    where org_id = ${row.org_id} and agent_id = ${row.agent_id}`);
  await tx.run(sql`delete from agent_capability where org_id = ${row.org_id} and agent_id = ${row.agent_id}`);
  await putCapabilities(tx, row);
  await indexProfile(tx, row.org_id, row.agent_id);
}

/** One row a capability, so that routing finds its candidates by an index. */
async function putCapabilities(tx: Tx, row: AgentRow): Promise<void> {
  for (const capability of JSON.parse(row.capabilities) as string[]) {
    await tx.run(
      sql`insert into agent_capability (org_id, capability, agent_id) values (${row.org_id}, ${capability}, ${row.agent_id}) on conflict do nothing`,
    );
  }
}

/** Its circuit, secret and waiting tasks are the caller's to remove. */
export async function deleteAgent(tx: Tx, orgId: string, agentId: string): Promise<number> {
  // The agent first, as everything that changes one locks it first.
  const deleted = await tx.run(sql`delete from agent where org_id = ${orgId} and agent_id = ${agentId}`);
  await tx.run(sql`delete from agent_capability where org_id = ${orgId} and agent_id = ${agentId}`);
  await dropProfile(tx, orgId, agentId);
  return deleted;
}

export const findAgent = (db: Queryable, orgId: string, agentId: string): Promise<AgentRow | undefined> =>
  db.one<AgentRow>(sql`select ${columns} from agent where org_id = ${orgId} and agent_id = ${agentId}`);

export const lockAgent = (tx: Tx, orgId: string, agentId: string): Promise<AgentRow | undefined> =>
  tx.one<AgentRow>(
    sql`select ${columns} from agent where org_id = ${orgId} and agent_id = ${agentId} ${tx.dialect.forUpdate}`,
  );

/** How many agents an organisation has, counted up to a bound. */
async function countAgents(db: Queryable, orgId: string, bound: number): Promise<number> {
  const row = await db.one<{ n: number }>(
    sql`select count(*) as n from (select 1 as one from agent where org_id = ${orgId} limit ${bound}) counted`,
  );
  return row?.n ?? 0;
}

const maxAgentsPerOrg = 10_000;

/** Throws QUOTA_EXCEEDED when an organisation has as many agents as it may. Holds the organisation, so that those that are added at once are all counted. */
export async function checkAgentQuota(tx: Tx, orgId: string): Promise<void> {
  await lockOrganization(tx, orgId);
  if ((await countAgents(tx, orgId, maxAgentsPerOrg)) < maxAgentsPerOrg) return;
  throw new Fault("QUOTA_EXCEEDED", `an organisation has at most ${maxAgentsPerOrg} agents`, {
    resource: "agents",
    limit: String(maxAgentsPerOrg),
  });
}

/** Which agents of a capability: all or only one, and of them those that take tasks and are trusted at least as `tier`, or the others. */
export type Wanted = {
  readonly capability: string;
  readonly onlyAgentId: string;
  readonly tier: number;
  readonly fit: boolean;
};

/** An agent with its circuit, unless that is closed: then its columns are null. `serving_until_ms`: see {@link servingName}; null for one that does not pull. */
export type CandidateRow = AgentRow & { readonly serving_until_ms: number | null } & (
    | CircuitRow
    | { readonly [Column in keyof CircuitRow]: null }
  );

/** The lease of an instance's open stream: as long as one of an agent runs, the agent is there. The name may hold anything. */
export const servingName = (orgId: string, agentId: string, instance: string): string =>
  `serving:${orgId}:${agentId}:${instance}`;

/**
 * In the order of their ids; by the index on (org, capability). Their circuits come along by their key, and whether those that pull are there by the names
 * of leases (`;` follows `:`): a statement of its own would cost every task a round trip.
 */
export function agentsWithCapability(
  db: Queryable,
  orgId: string,
  wanted: Wanted,
  limit: number,
): Promise<CandidateRow[]> {
  const only = wanted.onlyAgentId ? sql`and c.agent_id = ${wanted.onlyAgentId}` : sql``;
  const takesTasks = sql`(a.disabled = 0 and a.endpoint is not null and a.trust_tier <= ${wanted.tier})`;
  return db.all<CandidateRow>(sql`
    select ${agentColumns}, case when exists (
        select 1 from directory_profile p where p.org_id = a.org_id and p.agent_id = a.agent_id and p.visibility > ${Visibility.PRIVATE}) then 0 else 1 end as private,
      ci.state, ci.failures, ci.open_ms, ci.retry_ms, ci.probe_task_id, ci.probe_attempt, ci.probe_until_ms,
      case when a.endpoint = ${pullEndpoint} then (
        select max(l.until_ms) from lease l
        where l.name > 'serving:' || a.org_id || ':' || a.agent_id || ':' and l.name < 'serving:' || a.org_id || ':' || a.agent_id || ';') end as serving_until_ms
    from agent_capability c join agent a on a.org_id = c.org_id and a.agent_id = c.agent_id
      left join agent_circuit ci on ci.org_id = a.org_id and ci.agent_id = a.agent_id and ci.state <> 1
    where c.org_id = ${orgId} and c.capability = ${wanted.capability} ${only} and ${wanted.fit ? takesTasks : sql`not ${takesTasks}`}
    order by c.agent_id limit ${limit}`);
}

export type AgentFilter = {
  readonly capability: string;
  readonly name: string;
  /** Empty: any, and none. */
  readonly namespace: string;
  /** The agent that looks: others whose profile is private are not there for it. Undefined: an administrator, for whom all are. */
  readonly asAgentId?: string | undefined;
};

/** Whether an agent shows itself to another one of its organisation. */
const showsTo = (asAgentId: string): Sql =>
  sql`(a.agent_id = ${asAgentId} or exists (
    select 1 from directory_profile p where p.org_id = a.org_id and p.agent_id = a.agent_id and p.visibility > ${Visibility.PRIVATE}))`;

/** An agent as another one of its organisation may see it; see {@link AgentFilter}. */
export const findShownAgent = (
  db: Queryable,
  orgId: string,
  agentId: string,
  asAgentId: string | undefined,
): Promise<AgentRow | undefined> =>
  asAgentId === undefined
    ? findAgent(db, orgId, agentId)
    : db.one<AgentRow>(
        sql`select ${agentColumns} from agent a where a.org_id = ${orgId} and a.agent_id = ${agentId} and ${showsTo(asAgentId)}`,
      );

/** Oldest first: ids sort by time. With a capability the walk is along its index, else with a namespace along that one's. */
export function listAgents(
  db: Queryable,
  orgId: string,
  filter: AgentFilter,
  after: Position | undefined,
  limit: number,
): Promise<AgentRow[]> {
  const [afterId = ""] = (after ?? []) as string[];
  const shown = filter.asAgentId === undefined ? sql`` : sql`and ${showsTo(filter.asAgentId)}`;
  const named = filter.name ? sql`and a.name = ${filter.name} ${shown}` : shown;
  if (filter.capability) {
    // An expression, so that the engine does not walk along the namespace.
    const inNamespace = filter.namespace ? sql`and a.namespace || '' = ${filter.namespace}` : sql``;
    return db.all<AgentRow>(sql`
      select ${agentColumns} from agent_capability c join agent a on a.org_id = c.org_id and a.agent_id = c.agent_id
      where c.org_id = ${orgId} and c.capability = ${filter.capability} and c.agent_id > ${afterId} ${named} ${inNamespace} order by c.agent_id limit ${limit}`);
  }
  const inNamespace = filter.namespace ? sql`and a.namespace = ${filter.namespace}` : sql``;
  return db.all<AgentRow>(sql`
    select ${agentColumns} from agent a where a.org_id = ${orgId} and a.agent_id > ${afterId} ${named} ${inNamespace} order by a.agent_id limit ${limit}`);
}

export const endpointText = (endpoint: Endpoint | undefined): string | null =>
  endpoint ? toJsonString(EndpointSchema, endpoint) : null;

export const endpointOf = (row: AgentRow): Endpoint | undefined =>
  row.endpoint === null ? undefined : fromJsonString(EndpointSchema, row.endpoint);

/** Where the endpoint's server is, and the field that says so; undefined for endpoints that are nowhere. */
export function urlOf({ kind }: Endpoint): { readonly field: string; readonly url: string } | undefined {
  if (kind.case === "http" || kind.case === "grpc") return { field: `${kind.case}.url`, url: kind.value.url };
  return kind.case === "openai" ? { field: "openai.base_url", url: kind.value.baseUrl } : undefined;
}

/** The endpoint of those that pull, as it is stored. */
const pullEndpoint = toJsonString(
  EndpointSchema,
  create(EndpointSchema, { kind: { case: "pull", value: create(PullEndpointSchema) } }),
);

/** Whether tasks wait for the agent to pull them. */
export const pulls = (row: AgentRow): boolean => row.endpoint === pullEndpoint;

/** The peer that the agent asks; undefined for every other agent. As all agents are asked this, only those with such an endpoint are read. */
export function peerIdOf(row: Pick<AgentRow, "endpoint">): string | undefined {
  if (!row.endpoint?.startsWith('{"peer"')) return undefined;
  const { kind } = fromJsonString(EndpointSchema, row.endpoint);
  return kind.case === "peer" ? kind.value.peerId : undefined;
}

export const breakerText = (settings: BreakerSettings | undefined): string =>
  settings ? toJsonString(BreakerSettingsSchema, settings) : "";

/** What the agent's circuit breaker is set to; undefined for the defaults. */
export const breakerOf = (row: AgentRow): BreakerSettings | undefined =>
  row.breaker === "" ? undefined : fromJsonString(BreakerSettingsSchema, row.breaker);

/** An agent as clients read it; with its circuit where that is asked for. */
export const toAgent = (
  row: AgentRow,
  circuit?: MessageInitShape<typeof CircuitSchema>,
): MessageInitShape<typeof AgentSchema> => {
  const endpoint = endpointOf(row);
  const breaker = breakerOf(row);
  return {
    orgId: row.org_id,
    agentId: row.agent_id,
    name: row.name,
    description: row.description,
    trustTier: row.trust_tier as TrustTier,
    capabilities: JSON.parse(row.capabilities) as string[],
    allowedTools: JSON.parse(row.allowed_tools) as string[],
    ...(endpoint && { endpoint }),
    metadata: JSON.parse(row.metadata) as JsonObject,
    disabled: row.disabled !== 0,
    createTime: timestampFromMs(row.create_ms),
    updateTime: timestampFromMs(row.update_ms),
    revision: BigInt(row.revision),
    weight: row.weight,
    namespace: row.namespace,
    ...(breaker && { breaker }),
    ...(circuit && { circuit }),
  };
};
