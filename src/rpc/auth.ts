import { timingSafeEqual } from "node:crypto";
import { Role } from "../../gen/moltwire/api/v1/access_pb.ts";
import type { App } from "../app.ts";
import { Fault } from "../errors.ts";
import { isWithin } from "../federation/allowed-networks.ts";
import { type AuthRow, findKey } from "../federation/api-key-store.ts";
import { keyDigest, keyIdOf } from "../federation/key-text.ts";
import { type Caller, publicCaller } from "./caller.ts";

/** The id of the operator key that is given by configuration and not stored. */
export const configuredKeyId = "key_configured";

const wrongKey = () => new Fault("KEY_INVALID", "this is no key of this server: check that it was copied whole");

/** What a request's headers hold of a key: `authorization: Bearer mw_…`, or `x-api-key`. */
export function keyInHeaders(authorization: string | undefined, xApiKey: string | undefined): string | undefined {
  if (authorization === undefined) return xApiKey;
  const [, key] = /^Bearer +(\S+) *$/i.exec(authorization) ?? [];
  if (!key) throw new Fault("KEY_INVALID", "the header `authorization` must be `Bearer mw_…`");
  return key;
}

/**
 * Who has sent this key from this address. Throws KEY_INVALID, KEY_EXPIRED, KEY_REVOKED or KEY_NETWORK_REFUSED. A typo fails without a look-up.
 */
export async function authenticate(app: App, key: string | undefined, address: string): Promise<Caller> {
  if (key === undefined) return publicCaller;
  const digest = keyDigest(key);
  if (app.config.operatorKeyDigest && same(digest, app.config.operatorKeyDigest)) return configuredOperator(app);
  const keyId = keyIdOf(key);
  const row = keyId && (await findKey(app.db.query, keyId));
  if (!row || !same(digest, row.secret_sha256)) throw wrongKey();
  const now = app.clock.now();
  const caller = callerFrom(row, now);
  checkNetwork(caller, address);
  app.keyUse.seen(row.key_id, now);
  if (row.agent_id !== "") app.activity.seen(row.org_id, row.agent_id, now);
  return caller;
}

/** KEY_NETWORK_REFUSED unless the caller's key may be used from the address, as `clientAddress` gives it. */
export function checkNetwork({ keyId, networks = [] }: Caller, address: string): void {
  if (networks.length === 0 || isWithin(networks, address)) return;
  const message = `this key may not be used from ${address || "an address that is not known"}: it is bound to networks`;
  throw new Fault("KEY_NETWORK_REFUSED", message, { key_id: keyId, address });
}

/** KEY_NETWORK_REFUSED for a caller whose own key is bound to networks: what it would make could be used from everywhere. */
export function checkUnbound({ keyId, networks = [] }: Caller, what: string): void {
  if (networks.length === 0) return;
  const message = `your key is bound to networks, and ${what} could be used from others as well: use a key that is not bound`;
  throw new Fault("KEY_NETWORK_REFUSED", message, { key_id: keyId, network: "any" });
}

/** Who a key that was good speaks for now. Throws as {@link authenticate}, but not by the address: a stream goes on where it began. */
export async function authenticateAgain(app: App, keyId: string): Promise<Caller> {
  if (keyId === "") return publicCaller;
  if (keyId === configuredKeyId) return configuredOperator(app);
  const row = await findKey(app.db.query, keyId);
  if (!row) throw wrongKey();
  return callerFrom(row, app.clock.now());
}

/** Whom a stored key speaks for. Throws KEY_REVOKED or KEY_EXPIRED. */
export function callerFrom(row: AuthRow, now: number): Caller {
  if (row.revoke_ms !== null) throw new Fault("KEY_REVOKED", "this key was revoked", { key_id: row.key_id });
  if (row.org_disabled)
    throw new Fault("KEY_REVOKED", "the organisation of this key is disabled", { key_id: row.key_id });
  if (row.expire_ms !== null && row.expire_ms <= now)
    throw new Fault("KEY_EXPIRED", "this key has expired", { key_id: row.key_id });
  return {
    role: row.role as Role,
    orgId: row.org_id,
    agentId: row.agent_id,
    trustTier: row.trust_tier ?? undefined,
    keyId: row.key_id,
    scopes: JSON.parse(row.scopes) as string[],
    ...(row.allowed_networks !== "[]" && { networks: JSON.parse(row.allowed_networks) as string[] }),
    ...(row.requests_per_minute > 0 && { requestsPerMinute: row.requests_per_minute }),
    expireMs: row.expire_ms ?? undefined,
  };
}

/** Whoever has the key of the configuration. */
export const configuredOperator = (app: App): Caller => ({
  role: Role.OPERATOR,
  orgId: app.homeOrgId,
  agentId: "",
  keyId: configuredKeyId,
  scopes: [],
});

const same = (a: string, b: string): boolean => timingSafeEqual(Buffer.from(a), Buffer.from(b));
