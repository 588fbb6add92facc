import type { JsonObject, MessageInitShape } from "@bufbuild/protobuf";
import { durationFromMs, timestampFromMs } from "@bufbuild/protobuf/wkt";
import type { TrustTier } from "../../gen/moltwire/bus/v1/agent_pb.ts";
import type { ContractSchema } from "../../gen/moltwire/bus/v1/contract_pb.ts";
import { type Queryable, sql, type Tx } from "../db/db.ts";
import type { Position } from "../rpc/cursor.ts";

/** Which version of a contract will do: exact, a range, or empty for the latest. */
export type ContractRef = { readonly contractId: string; readonly version: string };

/** A contract version as it is stored: schemas and lists are JSON; `security_class` is the number of TrustTier. Nothing but `deprecate_ms`, and `peer_id` of one that a peer offers, ever changes. */
export type ContractRow = {
  readonly org_id: string;
  readonly contract_id: string;
  readonly version: string;
  readonly capability: string;
  readonly description: string;
  readonly input_schema: string;
  readonly output_schema: string;
  readonly input_schema_sha256: string;
  readonly output_schema_sha256: string;
  readonly security_class: number;
  readonly required_tools: string;
  readonly timeout_ms: number;
  readonly repeatable: number;
  readonly max_retries: number;
  readonly backoff_ms: number;
  readonly max_backoff_ms: number;
  readonly approval_required: number;
  readonly fallbacks: string;
  readonly create_ms: number;
  readonly deprecate_ms: number | null;
  readonly estimated_tokens: number;
  readonly max_tokens: number;
  readonly partner_agent_ids: string;
  /** Empty: none. */
  readonly namespace: string;
  /** The peer that it was brought over from; empty: the organisation registered it. */
  readonly peer_id: string;
};

/** Versions that an organisation has at most. */
export const maxContractsPerOrg = 10_000;

const columns = sql`org_id, contract_id, version, capability, description, input_schema, output_schema, input_schema_sha256, output_schema_sha256,
  security_class, required_tools, timeout_ms, repeatable, max_retries, backoff_ms, max_backoff_ms, approval_required, fallbacks, create_ms, deprecate_ms,
  estimated_tokens, max_tokens, partner_agent_ids, namespace, peer_id`;

/** Adds a version; 0 when it exists. */
export const insertContract = (tx: Tx, row: ContractRow): Promise<number> =>
  tx.run(sql`
    insert into contract (${columns})
    values (${row.org_id}, ${row.contract_id}, ${row.version}, ${row.capability}, ${row.description}, ${row.input_schema}, ${row.output_schema},
      ${row.input_schema_sha256}, ${row.output_schema_sha256}, ${row.security_class}, ${row.required_tools}, ${row.timeout_ms}, ${row.repeatable},
      ${row.max_retries}, ${row.backoff_ms}, ${row.max_backoff_ms}, ${row.approval_required}, ${row.fallbacks}, ${row.create_ms}, ${row.deprecate_ms},
      ${row.estimated_tokens}, ${row.max_tokens}, ${row.partner_agent_ids}, ${row.namespace}, ${row.peer_id})
    on conflict do nothing`);

export const findContract = (
  db: Queryable,
  orgId: string,
  contractId: string,
  version: string,
): Promise<ContractRow | undefined> =>
  db.one<ContractRow>(
    sql`select ${columns} from contract where org_id = ${orgId} and contract_id = ${contractId} and version = ${version}`,
  );

/** All versions of a contract, without their content: at most as many as an organisation may register, 10,000. */
export const versionsOf = async (
  db: Queryable,
  orgId: string,
  contractId: string,
): Promise<{ version: string; deprecated: boolean }[]> => {
  const rows = await db.all<{ version: string; deprecate_ms: number | null }>(sql`
    select version, deprecate_ms from contract where org_id = ${orgId} and contract_id = ${contractId}`);
  return rows.map((row) => ({ version: row.version, deprecated: row.deprecate_ms !== null }));
};

/** How many contract versions an organisation has, counted up to a bound. */
export async function countContracts(db: Queryable, orgId: string, bound: number): Promise<number> {
  const row = await db.one<{ n: number }>(
    sql`select count(*) as n from (select 1 as one from contract where org_id = ${orgId} limit ${bound}) counted`,
  );
  return row?.n ?? 0;
}

/** How many of them were brought over from other servers, counted up to a bound; along the primary key. */
export async function countBroughtOver(db: Queryable, orgId: string, bound: number): Promise<number> {
  const row = await db.one<{ n: number }>(
    sql`select count(*) as n from (select 1 as one from contract where org_id = ${orgId} and peer_id <> '' limit ${bound}) counted`,
  );
  return row?.n ?? 0;
}

export const deprecateContract = (
  tx: Tx,
  orgId: string,
  contractId: string,
  version: string,
  now: number,
): Promise<number> =>
  tx.run(sql`
    update contract set deprecate_ms = ${now} where org_id = ${orgId} and contract_id = ${contractId} and version = ${version} and deprecate_ms is null`);

export type ContractFilter = { readonly contractId: string; readonly capability: string; readonly namespace: string };

/** By id, then oldest first; by the index on (org, contract, create time, version), or the same of a namespace. */
export function listContracts(
  db: Queryable,
  orgId: string,
  filter: ContractFilter,
  after: Position | undefined,
  limit: number,
): Promise<ContractRow[]> {
  const from = after ? sql`and (contract_id, create_ms, version) > (${after[0]!}, ${after[1]!}, ${after[2]!})` : sql``;
  const ofContract = filter.contractId ? sql`and contract_id = ${filter.contractId}` : sql``;
  const ofNamespace = filter.namespace ? sql`and namespace = ${filter.namespace}` : sql``;
  const ofCapability = filter.capability ? sql`and capability = ${filter.capability}` : sql``;
  return db.all<ContractRow>(sql`
    select ${columns} from contract where org_id = ${orgId} ${ofNamespace} ${ofContract} ${ofCapability} ${from} order by contract_id, create_ms, version limit ${limit}`);
}

/** What a list of contracts is narrowed to: a contract in all its versions, those that ask for a capability, those of a namespace. */
export type ContractSubject = { readonly kind: "capability" | "contractId" | "namespace"; readonly subject: string };

/**
 * Versions that are not deprecated, by id, then oldest first; along the index that the subject has. A capability to sift by is written as an expression, so that the engine
 * does not walk along it.
 */
export function usableContracts(
  db: Queryable,
  orgId: string,
  { kind, subject }: ContractSubject,
  capability: string,
  after: Position | undefined,
  limit: number,
): Promise<ContractRow[]> {
  const from = after ? sql`and (contract_id, create_ms, version) > (${after[0]!}, ${after[1]!}, ${after[2]!})` : sql``;
  const walked = { capability: sql`capability`, contractId: sql`contract_id`, namespace: sql`namespace` }[kind];
  const sifted = capability ? sql`and capability || '' = ${capability}` : sql``;
  return db.all<ContractRow>(sql`
    select ${columns} from contract where org_id = ${orgId} and ${walked} = ${subject} ${sifted} and deprecate_ms is null ${from}
    order by contract_id, create_ms, version limit ${limit}`);
}

export const toContract = (row: ContractRow): MessageInitShape<typeof ContractSchema> => ({
  orgId: row.org_id,
  contractId: row.contract_id,
  version: row.version,
  capability: row.capability,
  description: row.description,
  inputSchema: JSON.parse(row.input_schema) as JsonObject,
  outputSchema: JSON.parse(row.output_schema) as JsonObject,
  securityClass: row.security_class as TrustTier,
  requiredTools: JSON.parse(row.required_tools) as string[],
  timeout: durationFromMs(row.timeout_ms),
  repeatable: row.repeatable !== 0,
  retryPolicy: {
    maxRetries: row.max_retries,
    backoff: durationFromMs(row.backoff_ms),
    maxBackoff: durationFromMs(row.max_backoff_ms),
  },
  approvalRequired: row.approval_required !== 0,
  fallbacks: JSON.parse(row.fallbacks) as ContractRef[],
  deprecated: row.deprecate_ms !== null,
  createTime: timestampFromMs(row.create_ms),
  estimatedTokens: BigInt(row.estimated_tokens),
  maxTokens: BigInt(row.max_tokens),
  partnerAgentIds: JSON.parse(row.partner_agent_ids) as string[],
  namespace: row.namespace,
  ...(row.deprecate_ms !== null && { deprecateTime: timestampFromMs(row.deprecate_ms) }),
});
