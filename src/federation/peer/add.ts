/** Another server becomes a peer, with an organisation and an agent that stand for it. */
import { create, toJsonString } from "@bufbuild/protobuf";
import { EndpointSchema, TrustTier } from "../../../gen/moltwire/bus/v1/agent_pb.ts";
import { PeerState } from "../../../gen/moltwire/federation/v1/peer_pb.ts";
import type { AddPeerRequest } from "../../../gen/moltwire/federation/v1/peer_service_pb.ts";
import type { App } from "../../app.ts";
import { checkAgentQuota, insertAgent } from "../../bus/agent-store.ts";
import type { Tx } from "../../db/db.ts";
import { badField, Fault } from "../../errors.ts";
import { grantStartingCredits } from "../../exchange/ledger/wallet.ts";
import { insertOrganization, lockOrganization } from "../organization-store.ts";
import { checkKey, keyTaken } from "./faults.ts";
import { audienceOf } from "./identity.ts";
import { countPeers, insertPeer, insertPeerKey, isAudienceTaken, type PeerRow } from "./store.ts";

const maxPeers = 1_000;

const taken = (resource: string, id: string, field: string): Fault =>
  new Fault("ALREADY_EXISTS", `${field}: ${id} is taken`, { resource, id, field });

/** Adds a peer. `orgId`: the organisation that was named, which there is; undefined: a new one. */
export async function addPeer(
  tx: Tx,
  app: App,
  req: AddPeerRequest,
  orgId: string | undefined,
  now: number,
): Promise<PeerRow> {
  if (req.audience === audienceOf(app)) throw badField("audience", "is this server's own");
  for (const [n, key] of req.publicKeys.entries()) await checkKey(tx, app, key, `public_keys[${n}]`);
  if (orgId === app.homeOrgId)
    throw badField("org_id", "the operator's own organisation cannot stand for another server");
  // Peers are counted one after another.
  await lockOrganization(tx, app.homeOrgId);
  if ((await countPeers(tx, maxPeers)) >= maxPeers) {
    const message = `at most ${maxPeers} peers: remove some`;
    throw new Fault("QUOTA_EXCEEDED", message, { resource: "peers", limit: String(maxPeers) });
  }
  if (await isAudienceTaken(tx, req.audience)) throw taken("peer", req.audience, "audience");
  const org = orgId ?? (await newOrganization(tx, app, req.name, now));
  await checkAgentQuota(tx, org);
  const row: PeerRow = {
    org_id: org,
    peer_id: app.ids.next("per"),
    name: req.name,
    base_url: new URL(req.baseUrl).origin,
    audience: req.audience,
    remote_org_id: req.remoteOrgId,
    agent_id: app.ids.next("agt"),
    state: PeerState.ACTIVE,
    create_ms: now,
    update_ms: now,
  };
  if ((await insertPeer(tx, row)) === 0) throw taken("peer", orgId ? `${req.name} or ${orgId}` : req.name, "name");
  for (const [n, key] of req.publicKeys.entries())
    if ((await insertPeerKey(tx, row, key, now)) === 0) throw keyTaken(`public_keys[${n}]`);
  await newAgent(tx, row, now);
  return row;
}

async function newOrganization(tx: Tx, app: App, name: string, now: number): Promise<string> {
  const orgId = app.ids.next("org");
  const row = {
    ...{ org_id: orgId, name, display_name: name, metadata: "{}", disabled: 0 },
    ...{ create_ms: now, update_ms: now, revision: 1, auto_accept_grants: 0 },
  };
  if ((await insertOrganization(tx, row)) === 0) throw taken("organization", name, "name");
  await grantStartingCredits(tx, app.homeOrgId, orgId, now);
  return orgId;
}

/** The agent that asks the peer, and in whose name the peer asks: of the lower of the internal tiers, so that its organisation lets it ask under grants. */
async function newAgent(tx: Tx, { org_id, agent_id, peer_id, name }: PeerRow, now: number): Promise<void> {
  const endpoint = create(EndpointSchema, { kind: { case: "peer", value: { peerId: peer_id } } });
  const row = {
    ...{ org_id, agent_id, name, description: "another server, made by AddPeer" },
    trust_tier: TrustTier.INTERNAL_RESTRICTED,
    ...{ capabilities: "[]", allowed_tools: "[]", endpoint: toJsonString(EndpointSchema, endpoint), metadata: "{}" },
    ...{ disabled: 0, create_ms: now, update_ms: now, revision: 1, weight: 1, breaker: "", namespace: "" },
  };
  if ((await insertAgent(tx, row)) === 1) return;
  // The organisation has one of this name, perhaps of a peer that was removed.
  const other = `${name}-${peer_id.slice(-12)}`;
  if ((await insertAgent(tx, { ...row, name: other })) === 0) throw taken("agent", other, "name");
}
