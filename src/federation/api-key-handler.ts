import { durationMs, timestampFromMs, timestampMs } from "@bufbuild/protobuf/wkt";
import type { ServiceImpl } from "@connectrpc/connect";
import { Role } from "../../gen/moltwire/api/v1/access_pb.ts";
import type { ApiKeyService } from "../../gen/moltwire/federation/v1/api_key_service_pb.ts";
import type { App } from "../app.ts";
import { lockAgent } from "../bus/agent-store.ts";
import type { Tx } from "../db/db.ts";
import { badField, Fault, notFound } from "../errors.ts";
import { holdsScope, roleName } from "../rpc/access.ts";
import type { Caller } from "../rpc/caller.ts";
import { maskedFields } from "../rpc/change.ts";
import { command } from "../rpc/command.ts";
import { keyTopic } from "../rpc/feed.ts";
import { readPage } from "../rpc/page.ts";
import { query } from "../rpc/query.ts";
import { covered, readNetwork } from "./allowed-networks.ts";
import {
  countLiveKeys,
  expireKey,
  findOrgKey,
  type KeyRow,
  listKeys,
  lockKey,
  revokeKey,
  toApiKey,
  updateKey,
} from "./api-key-store.ts";
import { issueKey } from "./issue-key.ts";
import { lockOrganization } from "./organization-store.ts";

const maxKeysPerOrg = 10_000;
const defaultOverlapMs = 24 * 3_600_000;
const changeable = ["allowed_networks", "requests_per_minute"] as const;

export const apiKeyHandler = (app: App): ServiceImpl<typeof ApiKeyService> => ({
  createApiKey: command(app, async (req, { tx, caller, orgId, now }) => {
    const role = req.role || (req.agentId ? Role.AGENT : Role.ORG);
    checkRole(caller, role);
    checkScopes(caller, req.scopes);
    checkNetworks(caller, req.allowedNetworks, "allowed_networks");
    checkRate(caller, req.requestsPerMinute, "requests_per_minute");
    if ((role === Role.AGENT) !== (req.agentId !== ""))
      throw badField("agent_id", "an AGENT key names its agent, and no other key does");
    await lockOrganization(tx, orgId); // so that keys are counted one after another
    // Locked, or a DeleteAgent beside this would revoke the agent's keys without seeing the new one.
    if (req.agentId && !(await lockAgent(tx, orgId, req.agentId))) throw notFound("agent", req.agentId);
    const expireMs = req.expireTime ? timestampMs(req.expireTime) : null;
    if (expireMs !== null && expireMs <= now) throw badField("expire_time", "must be in the future");
    await checkQuota(tx, orgId, now);
    const { keyId, text } = await issueKey(tx, app.ids, {
      orgId,
      name: req.name,
      role,
      agentId: req.agentId,
      scopes: req.scopes,
      createMs: now,
      expireMs,
      rotatedFrom: null,
      allowedNetworks: req.allowedNetworks,
      requestsPerMinute: req.requestsPerMinute,
    });
    return { apiKey: toApiKey((await lockKey(tx, orgId, keyId))!), secret: text };
  }),

  getApiKey: query(app, async (req, { db, orgId }) => {
    const key = await findOrgKey(db, orgId, req.keyId);
    if (!key) throw notFound("api key", req.keyId);
    return { apiKey: toApiKey(key) };
  }),

  listApiKeys: query(app, async (req, { db, orgId }) => {
    const prefix = req.prefix.replace(/^mw_/, "key_");
    const scope = ["ListApiKeys", orgId, req.agentId, prefix];
    const page = await readPage(
      app.cursors,
      scope,
      req,
      (after, limit) => listKeys(db, orgId, { agentId: req.agentId, prefix }, after, limit),
      (row) => [row.key_id],
    );
    return { apiKeys: page.rows.map(toApiKey), nextPageToken: page.nextPageToken };
  }),

  updateApiKey: command(app, async (req, { tx, caller, orgId, now }) => {
    const mask = maskedFields(req.updateMask, changeable);
    const key = await lockKey(tx, orgId, req.keyId);
    if (!key) throw notFound("api key", req.keyId);
    checkRole(caller, key.role);
    checkScopes(caller, JSON.parse(key.scopes) as string[]);
    checkLive(key, now);
    checkNetworks(caller, JSON.parse(key.allowed_networks) as string[], "key_id");
    const change = req.change!;
    if (mask.has("requests_per_minute")) checkRate(caller, change.requestsPerMinute, "change.requests_per_minute");
    if (mask.has("allowed_networks")) checkNetworks(caller, change.allowedNetworks, "change.allowed_networks");
    const next: KeyRow = {
      ...key,
      ...(mask.has("allowed_networks") && { allowed_networks: JSON.stringify(change.allowedNetworks) }),
      ...(mask.has("requests_per_minute") && { requests_per_minute: change.requestsPerMinute }),
    };
    await updateKey(tx, next);
    return { apiKey: toApiKey(next) };
  }),

  rotateApiKey: command(app, async (req, { tx, caller, orgId, now }) => {
    await lockOrganization(tx, orgId); // so that keys are counted one after another
    const seen = await findOrgKey(tx, orgId, req.keyId);
    // As in createApiKey; before the key, as in DeleteAgent, so that neither waits for the other.
    if (seen?.agent_id) await lockAgent(tx, orgId, seen.agent_id);
    const old = seen && (await lockKey(tx, orgId, req.keyId));
    if (!old) throw notFound("api key", req.keyId);
    const scopes = JSON.parse(old.scopes) as string[];
    checkRole(caller, old.role);
    checkScopes(caller, scopes);
    const allowedNetworks = JSON.parse(old.allowed_networks) as string[];
    checkNetworks(caller, allowedNetworks, "key_id");
    checkRate(caller, old.requests_per_minute, "key_id");
    checkLive(old, now);
    const oldEndsMs = Math.min(
      now + (req.overlap ? durationMs(req.overlap) : defaultOverlapMs),
      old.expire_ms ?? Infinity,
    );
    await checkQuota(tx, orgId, now);
    const { keyId, text } = await issueKey(tx, app.ids, {
      orgId,
      name: old.name,
      role: old.role as Role,
      agentId: old.agent_id,
      scopes,
      createMs: now,
      expireMs: old.expire_ms,
      rotatedFrom: old.key_id,
      allowedNetworks,
      requestsPerMinute: old.requests_per_minute,
    });
    await expireKey(tx, orgId, old.key_id, oldEndsMs);
    tx.ring(keyTopic(old.key_id));
    return {
      apiKey: toApiKey((await lockKey(tx, orgId, keyId))!),
      secret: text,
      oldKeyExpireTime: timestampFromMs(oldEndsMs),
    };
  }),

  revokeApiKey: command(app, async (req, { tx, caller, orgId, now }) => {
    const key = await lockKey(tx, orgId, req.keyId);
    if (!key) throw notFound("api key", req.keyId);
    checkRole(caller, key.role);
    await revokeKey(tx, orgId, req.keyId, now);
    tx.ring(keyTopic(req.keyId));
    return { apiKey: toApiKey((await lockKey(tx, orgId, req.keyId))!) };
  }),
});

async function checkQuota(tx: Tx, orgId: string, now: number): Promise<void> {
  if ((await countLiveKeys(tx, orgId, now, maxKeysPerOrg)) < maxKeysPerOrg) return;
  const metadata = { resource: "api_keys", limit: String(maxKeysPerOrg) };
  throw new Fault("QUOTA_EXCEEDED", `an organisation has at most ${maxKeysPerOrg} live keys: revoke some`, metadata);
}

function checkLive({ revoke_ms, expire_ms }: KeyRow, now: number): void {
  if (revoke_ms === null && (expire_ms === null || expire_ms > now)) return;
  const state = revoke_ms === null ? "EXPIRED" : "REVOKED";
  throw new Fault("FAILED_PRECONDITION", "the key has ended: create a new one", { state });
}

/** A key that may make so many requests a minute makes none that may make more. */
function checkRate({ requestsPerMinute: most }: Caller, wanted: number, field: string): void {
  if (most === undefined || (wanted > 0 && wanted <= most)) return;
  throw badField(field, `your own key has a limit: from 1 to ${most} requests a minute`);
}

/** Nobody makes, replaces or ends a key of a higher role. */
function checkRole(caller: Caller, role: number): void {
  if (role <= caller.role) return;
  const metadata = { role: roleName(caller.role), required_role: roleName(role as Role) };
  throw new Fault(
    "ROLE_REQUIRED",
    `a key of role ${metadata.required_role} needs one of that role to make or end it`,
    metadata,
  );
}

/** A key with scopes makes only keys that hold no others: no scopes would be all of them. */
function checkScopes(caller: Caller, scopes: readonly string[]): void {
  if (caller.scopes.length === 0) return;
  const beyond = scopes.length === 0 ? "*:*" : scopes.find((scope) => !holdsScope(caller.scopes, scope));
  if (beyond)
    throw new Fault("SCOPE_REQUIRED", `your key lacks the scope ${beyond}: name only scopes that it holds`, {
      required_scope: beyond,
    });
}

/** Every text names a network; a key that is bound to networks makes only keys that are bound within them. */
function checkNetworks(caller: Caller, networks: readonly string[], field: string): void {
  const { networks: own = [], keyId } = caller;
  const read = networks.map((text, i) => {
    const network = readNetwork(text);
    if (typeof network === "string") throw badField(`${field}[${i}]`, network);
    return network;
  });
  if (own.length === 0) return;
  const beyond = read.length === 0 ? "any" : networks[read.findIndex((network) => !covered(own, network))];
  if (beyond === undefined) return;
  throw new Fault("KEY_NETWORK_REFUSED", "your key is bound to networks, and this would be used from others as well", {
    key_id: keyId,
    network: beyond,
  });
}
