/** What a peer's organisation opens to this server is offered here, by the organisation that stands for it. */
import { setImmediate } from "node:timers/promises";
import type { JsonObject, MessageInitShape } from "@bufbuild/protobuf";
import { durationMs } from "@bufbuild/protobuf/wkt";
import type { HandlerContext } from "@connectrpc/connect";
import { TrustTier } from "../../../gen/moltwire/bus/v1/agent_pb.ts";
import type { PeerContract } from "../../../gen/moltwire/federation/v1/peer_envelope_pb.ts";
import type { SyncPeerRequest, SyncPeerResponseSchema } from "../../../gen/moltwire/federation/v1/peer_service_pb.ts";
import type { App } from "../../app.ts";
import { lockAgent, updateAgent } from "../../bus/agent-store.ts";
import {
  type ContractRow,
  countBroughtOver,
  countContracts,
  findContract,
  insertContract,
  maxContractsPerOrg,
} from "../../bus/contract-store.ts";
import { maxSchemaBytes } from "../../bus/schema/limits.ts";
import { checkSchema, schemaDigest } from "../../bus/schema/schema.ts";
import { parseVersion } from "../../bus/version.ts";
import { type Queryable, sql, type Tx } from "../../db/db.ts";
import { EgressError } from "../../egress/error.ts";
import { Fault, notFound } from "../../errors.ts";
import { traceOf } from "../../rpc/caller.ts";
import { command } from "../../rpc/command.ts";
import { traceparent } from "../../rpc/trace-context.ts";
import { lockOrganization } from "../organization-store.ts";
import { checkActive } from "./faults.ts";
import { contractsPerPage } from "./page.ts";
import { ask, BadReply, PeerGone, PeerRefusal } from "./send.ts";
import { findPeer, lockPeer, type PeerRow, shown } from "./store.ts";
import { endOffer, type Offered, offer, offeredFor } from "./withdraw.ts";

const askMs = 10_000;
/** For all pages together. */
const syncMs = 60_000;
const maxPages = 100;
/** Of all schemas that are brought over at once. */
const maxSchemasBytes = 8 * 1_048_576;
/** As many as an agent may have. */
const maxCapabilities = 50;
/** Contract versions of an organisation that were brought over, from whichever peers, offered still or not: half of what it may have, so that the other half is left for its own. */
const maxBroughtOver = maxContractsPerOrg / 2;
const maxTimeoutMs = 3_600_000;
const maxTokens = 1_000_000_000_000n;

type Reply = Extract<MessageInitShape<typeof SyncPeerResponseSchema>, { $typeName?: never }>;

/** What the peer offers, as contracts of the organisation that stands for it; and how many could not be read. */
type Found = { readonly rows: readonly ContractRow[]; readonly skipped: number };

/** Asks and judges schemas first, since a transaction waits for no network and holds nobody up; then brings over what was answered. */
export async function syncPeer(app: App, request: SyncPeerRequest, context: HandlerContext): Promise<Reply> {
  const peer = await usable(app.db.query, request.peerId);
  const found = await contractsOf(app, peer, traceparent(traceOf(context)));
  return command(app, async (req: SyncPeerRequest, { tx, now }): Promise<Reply> => {
    const row = await lockPeer(tx, req.peerId);
    if (!row) throw notFound("peer", req.peerId);
    checkActive(row);
    const counts = await bringOver(tx, row, found, now);
    return { peer: await shown(tx, row, now), ...counts };
  })(request, context);
}

async function usable(db: Queryable, peerId: string): Promise<PeerRow> {
  const peer = await findPeer(db, peerId);
  if (!peer) throw notFound("peer", peerId);
  checkActive(peer);
  if (!peer.remote_org_id)
    throw new Fault("FAILED_PRECONDITION", "the peer was added without an organisation over there", {
      field: "remote_org_id",
    });
  return peer;
}

/** All pages, as far as the limits of SyncPeer go. Throws AGENT_UNREACHABLE, ADAPTER_ERROR or AGENT_BAD_RESPONSE. */
async function contractsOf(app: App, peer: PeerRow, parent: string): Promise<Found> {
  const rows = new Map<string, ContractRow>();
  let [pageToken, skipped, bytes] = ["", 0, 0];
  const startMs = app.clock.now();
  try {
    for (let page = 0; page < maxPages && bytes <= maxSchemasBytes; page++) {
      const timeoutMs = Math.min(askMs, startMs + syncMs - app.clock.now());
      if (timeoutMs <= 0) throw new BadReply(`its list takes longer than ${syncMs} ms`);
      const body = { case: "listContracts", value: { orgId: peer.remote_org_id, pageToken } } as const;
      const answered = await ask(app, peer, { body, hops: 1, timeoutMs, traceparent: parent });
      if (answered.body.case !== "contracts") throw new BadReply("its reply is to something else");
      const { contracts, nextPageToken } = answered.body.value;
      if (contracts.length > contractsPerPage)
        throw new BadReply(`a page of its list has ${contracts.length} contracts, more than ${contractsPerPage}`);
      for (const one of contracts) {
        bytes += one.inputSchemaJson.byteLength + one.outputSchemaJson.byteLength;
        const row = bytes <= maxSchemasBytes ? toRow(peer, one, startMs) : undefined;
        if (row) rows.set(`${row.contract_id}@${row.version}`, row);
        else skipped++;
        await setImmediate(); // a schema can take a while to judge: others have their turn
      }
      pageToken = nextPageToken;
      if (!pageToken) break;
    }
  } catch (error) {
    throw told(error, peer);
  }
  return { rows: [...rows.values()], skipped };
}

function told(error: unknown, { peer_id, name }: PeerRow): unknown {
  if (error instanceof EgressError)
    return new Fault(
      "AGENT_UNREACHABLE",
      `${name} could not be reached: ${error.message}`,
      { peer_id },
      { cause: error },
    );
  if (error instanceof PeerRefusal) {
    const metadata = { peer_id, code: error.code, peer_reason: error.reason };
    return new Fault("ADAPTER_ERROR", `${name} answered ${error.reason || error.code}: ${error.message}`, metadata);
  }
  if (error instanceof PeerGone) return new Fault("FAILED_PRECONDITION", "the peer is removed", { state: "REMOVED" });
  if (error instanceof BadReply) return new Fault("AGENT_BAD_RESPONSE", `${name}: ${error.message}`, { peer_id });
  return error;
}

async function bringOver(tx: Tx, peer: PeerRow, found: Found, now: number) {
  const before = new Map((await offeredFor(tx, peer)).map((one) => [nameOf(one), one]));
  const capabilities = new Set<string>();
  const counts = { offered: 0, added: 0, withdrawn: 0, skipped: found.skipped };
  await lockOrganization(tx, peer.org_id); // so that they are counted one after another
  const ofAll = maxContractsPerOrg - (await countContracts(tx, peer.org_id, maxContractsPerOrg));
  const ofPeers = maxBroughtOver - (await countBroughtOver(tx, peer.org_id, maxBroughtOver));
  let room = Math.min(ofAll, ofPeers);
  for (const row of found.rows) {
    const fits = capabilities.has(row.capability) || capabilities.size < maxCapabilities;
    const taken = fits && (await take(tx, peer, row, before.has(nameOf(row)), room > 0));
    if (!taken) {
      counts.skipped++;
      continue;
    }
    if (taken === "inserted") room--;
    capabilities.add(row.capability);
    counts.offered++;
    if (!before.delete(nameOf(row))) counts.added++;
  }
  for (const gone of before.values()) {
    await endOffer(tx, peer, gone, now);
    counts.withdrawn++;
  }
  const agent = await lockAgent(tx, peer.org_id, peer.agent_id);
  const list = JSON.stringify([...capabilities].toSorted());
  if (agent && agent.capabilities !== list)
    await updateAgent(tx, { ...agent, capabilities: list, update_ms: now, revision: agent.revision + 1 });
  return counts;
}

const nameOf = ({ contract_id, version }: Offered): string => `${contract_id}@${version}`;

/**
 * The version is offered from now on; false when there is no room for it, or the organisation has another of this id and version: one of its own, of another server, or of other content. One
 * that this server offered before is taken back, also when it was another peer then.
 */
async function take(
  tx: Tx,
  peer: PeerRow,
  row: ContractRow,
  isOffered: boolean,
  hasRoom: boolean,
): Promise<"inserted" | boolean> {
  if (isOffered) return true;
  const there = await findContract(tx, row.org_id, row.contract_id, row.version);
  if (!there) {
    if (!hasRoom || (await insertContract(tx, row)) === 0) return false;
    await offer(tx, peer, row);
    return "inserted";
  }
  if (!isSame(there, row) || !(await isOfServer(tx, there.peer_id, peer))) return false;
  await tx.run(sql`
    update contract set deprecate_ms = null, peer_id = ${peer.peer_id}
    where org_id = ${row.org_id} and contract_id = ${row.contract_id} and version = ${row.version}`);
  await offer(tx, peer, row);
  return true;
}

/** Whether a peer, perhaps a former one, is the same server. */
const isOfServer = async (tx: Tx, peerId: string, { peer_id, audience }: PeerRow): Promise<boolean> =>
  peerId === peer_id || (peerId !== "" && (await findPeer(tx, peerId))?.audience === audience);

const isSame = (a: ContractRow, b: ContractRow): boolean =>
  a.capability === b.capability &&
  a.input_schema_sha256 === b.input_schema_sha256 &&
  a.output_schema_sha256 === b.output_schema_sha256;

/** The contract as it is kept here; undefined for one that cannot be used. How often it is tried is for the peer to say, so that here it is tried once. */
function toRow({ org_id, peer_id }: PeerRow, contract: PeerContract, now: number): ContractRow | undefined {
  const input = schemaOf(contract.inputSchemaJson);
  const output = schemaOf(contract.outputSchemaJson);
  const { contractId, version, capability, description, estimatedTokens, maxTokens: most } = contract;
  const timeoutMs = contract.timeout ? durationMs(contract.timeout) : 0;
  const isNamed =
    idForm.test(contractId) && contractId.length <= 128 && idForm.test(capability) && capability.length <= 128;
  const isCounted = estimatedTokens >= 0n && most >= 0n && estimatedTokens <= maxTokens && most <= maxTokens;
  if (!input || !output || !isNamed || !isCounted || !parseVersion(version) || version.length > 64) return undefined;
  if (!(timeoutMs > 0 && timeoutMs <= maxTimeoutMs)) return undefined;
  return {
    ...{
      org_id,
      contract_id: contractId,
      version,
      capability,
      description: description.replaceAll("\0", "").slice(0, maxDescription),
    },
    ...{ input_schema: JSON.stringify(input), output_schema: JSON.stringify(output) },
    ...{ input_schema_sha256: schemaDigest(input), output_schema_sha256: schemaDigest(output) },
    ...{ security_class: TrustTier.PUBLIC_VENDOR, required_tools: "[]", timeout_ms: timeoutMs },
    ...{ repeatable: contract.repeatable ? 1 : 0, max_retries: 0, backoff_ms: 200, max_backoff_ms: 30_000 },
    ...{ approval_required: 0, fallbacks: "[]", create_ms: now, deprecate_ms: null },
    ...{ estimated_tokens: Number(estimatedTokens), max_tokens: Number(most), partner_agent_ids: "[]", namespace: "" },
    peer_id,
  };
}

const idForm = /^[A-Za-z0-9][A-Za-z0-9._/-]*$/;
const maxDescription = 2_048;

function schemaOf(json: Uint8Array): JsonObject | undefined {
  if (json.byteLength > maxSchemaBytes) return undefined;
  try {
    const schema: unknown = JSON.parse(Buffer.from(json).toString());
    if (typeof schema !== "object" || schema === null || Array.isArray(schema)) return undefined;
    return checkSchema(schema as JsonObject) ? undefined : (schema as JsonObject);
  } catch {
    return undefined;
  }
}
