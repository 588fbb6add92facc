import type { JsonObject } from "@bufbuild/protobuf";
import { durationMs } from "@bufbuild/protobuf/wkt";
import type { ServiceImpl } from "@connectrpc/connect";
import { TrustTier } from "../../gen/moltwire/bus/v1/agent_pb.ts";
import type { ContractService, RegisterContractRequest } from "../../gen/moltwire/bus/v1/contract_service_pb.ts";
import type { App } from "../app.ts";
import type { Tx } from "../db/db.ts";
import { badField, Fault } from "../errors.ts";
import { checkNamespace } from "../federation/namespace-store.ts";
import { lockOrganization } from "../federation/organization-store.ts";
import { command } from "../rpc/command.ts";
import { readPage } from "../rpc/page.ts";
import { query } from "../rpc/query.ts";
import {
  type ContractRow,
  countContracts,
  deprecateContract,
  findContract,
  insertContract,
  listContracts,
  maxContractsPerOrg,
  toContract,
  versionsOf,
} from "./contract-store.ts";
import { resolveContract, versionNotFound } from "./resolve.ts";
import { compareSchemas, suggestVersion } from "./schema/compatibility.ts";
import { checkSchema, schemaDigest } from "./schema/schema.ts";
import { parseVersion } from "./version.ts";

const defaultTimeoutMs = 30_000;
const defaultBackoffMs = 200;
const defaultMaxBackoffMs = 30_000;
const getFields = { contract: "contract_id", version: "version" };

export const contractHandler = (app: App): ServiceImpl<typeof ContractService> => ({
  registerContract: command(app, async (req, { tx, orgId, now }) => {
    const row = toRow(req, orgId, now);
    const known = await registered(tx, row);
    if (known) return { contract: toContract(known) };
    await checkNamespace(tx, orgId, req.namespace);
    for (const [index, ref] of req.fallbacks.entries()) {
      if (ref.contractId === req.contractId)
        throw badField(`fallbacks[${index}].contract_id`, "a contract cannot fall back to itself");
      await resolveContract(tx, orgId, ref, {
        contract: `fallbacks[${index}].contract_id`,
        version: `fallbacks[${index}].version`,
      });
    }
    await lockOrganization(tx, orgId); // so that they are counted one after another
    if ((await countContracts(tx, orgId, maxContractsPerOrg)) >= maxContractsPerOrg) {
      throw new Fault("QUOTA_EXCEEDED", `an organisation has at most ${maxContractsPerOrg} contract versions`, {
        resource: "contracts",
        limit: String(maxContractsPerOrg),
      });
    }
    if ((await insertContract(tx, row)) === 1) return { contract: toContract(row) };
    return { contract: toContract((await registered(tx, row))!) }; // by somebody else, a moment ago
  }),

  getContract: query(app, async (req, { db, orgId }) => ({
    contract: toContract(await resolveContract(db, orgId, req, getFields)),
  })),

  listContracts: query(app, async (req, { db, orgId }) => {
    const scope = ["ListContracts", orgId, req.contractId, req.capability, req.namespace];
    const read = (after: Parameters<typeof listContracts>[3], limit: number) =>
      listContracts(db, orgId, req, after, limit);
    const page = await readPage(app.cursors, scope, req, read, (row) => [row.contract_id, row.create_ms, row.version]);
    return { contracts: page.rows.map(withoutSchemas), nextPageToken: page.nextPageToken };
  }),

  deprecateContract: command(app, async (req, { tx, orgId, now }) => {
    if (!parseVersion(req.version)) throw badField("version", "the exact version, such as 1.0.0, and no range");
    await deprecateContract(tx, orgId, req.contractId, req.version, now);
    const row = await findContract(tx, orgId, req.contractId, req.version);
    if (!row) throw versionNotFound(req, await versionsOf(tx, orgId, req.contractId), getFields);
    return { contract: toContract(row) };
  }),

  checkContract: query(app, async (req, { db, orgId }) => {
    refuseBadSchema("input_schema", req.inputSchema);
    refuseBadSchema("output_schema", req.outputSchema);
    const before = await resolveContract(
      db,
      orgId,
      { contractId: req.contractId, version: req.againstVersion },
      { contract: "contract_id", version: "against_version" },
    );
    const changes = [
      ...compareSchemas("input", JSON.parse(before.input_schema) as JsonObject, req.inputSchema ?? {}),
      ...compareSchemas("output", JSON.parse(before.output_schema) as JsonObject, req.outputSchema ?? {}),
    ].toSorted((a, b) => Number(b.breaking) - Number(a.breaking));
    return {
      compatible: !changes.some(({ breaking }) => breaking),
      againstVersion: before.version,
      changes: changes.slice(0, 200),
      suggestedVersion: suggestVersion(before.version, changes),
    };
  }),
});

function toRow(req: RegisterContractRequest, orgId: string, now: number): ContractRow {
  if (!parseVersion(req.version))
    throw badField("version", `"${req.version}" is no version: write it as semver 2.0.0, such as 1.0.0`);
  refuseBadSchema("input_schema", req.inputSchema);
  refuseBadSchema("output_schema", req.outputSchema);
  const inputSchema = req.inputSchema ?? {};
  const outputSchema = req.outputSchema ?? {};
  const { retryPolicy } = req;
  if (req.maxTokens > 0n && req.maxTokens < req.estimatedTokens)
    throw badField("max_tokens", `${req.maxTokens} is below estimated_tokens, which is ${req.estimatedTokens}`);
  return {
    org_id: orgId,
    contract_id: req.contractId,
    version: req.version,
    capability: req.capability || req.contractId,
    description: req.description,
    input_schema: JSON.stringify(inputSchema),
    output_schema: JSON.stringify(outputSchema),
    input_schema_sha256: schemaDigest(inputSchema),
    output_schema_sha256: schemaDigest(outputSchema),
    security_class: req.securityClass || TrustTier.PUBLIC_VENDOR,
    required_tools: JSON.stringify(req.requiredTools),
    timeout_ms: req.timeout ? durationMs(req.timeout) : defaultTimeoutMs,
    repeatable: req.repeatable ? 1 : 0,
    max_retries: retryPolicy?.maxRetries ?? 0,
    backoff_ms: retryPolicy?.backoff ? durationMs(retryPolicy.backoff) : defaultBackoffMs,
    max_backoff_ms: retryPolicy?.maxBackoff ? durationMs(retryPolicy.maxBackoff) : defaultMaxBackoffMs,
    approval_required: req.approvalRequired ? 1 : 0,
    fallbacks: JSON.stringify(req.fallbacks.map(({ contractId, version }) => ({ contractId, version }))),
    create_ms: now,
    deprecate_ms: null,
    estimated_tokens: Number(req.estimatedTokens),
    max_tokens: Number(req.maxTokens),
    partner_agent_ids: JSON.stringify(req.partnerAgentIds),
    peer_id: "",
    namespace: req.namespace,
  };
}

/** The version as it was registered before, if it was; ALREADY_EXISTS when it says something else. */
async function registered(tx: Tx, row: ContractRow): Promise<ContractRow | undefined> {
  const there = await findContract(tx, row.org_id, row.contract_id, row.version);
  if (!there || sameContent(there, row)) return there;
  const id = `${row.contract_id}@${row.version}`;
  throw new Fault("ALREADY_EXISTS", `${id} exists with other content; a version never changes: register a new one`, {
    resource: "contract",
    id,
    field: "version",
  });
}

function refuseBadSchema(field: string, schema: JsonObject | undefined): void {
  const fault = schema && checkSchema(schema);
  if (!fault) return;
  const message = `${field}${fault.path}: ${fault.message}`;
  throw new Fault(
    "INVALID_SCHEMA",
    message,
    { field, path: fault.path },
    { fields: [{ field: `${field}${fault.path}`, description: fault.message }] },
  );
}

/** Whether two registrations say the same: all but the times, schemas by what they say and not by the order of their keys. */
function sameContent(a: ContractRow, b: ContractRow): boolean {
  const content = ({ create_ms, deprecate_ms, input_schema, output_schema, ...rest }: ContractRow) =>
    JSON.stringify(Object.entries(rest).sort());
  return content(a) === content(b);
}

const withoutSchemas = (row: ContractRow) => {
  const { inputSchema, outputSchema, ...rest } = toContract(row);
  return rest;
};
