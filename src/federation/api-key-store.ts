import type { MessageInitShape } from "@bufbuild/protobuf";
import { timestampFromMs } from "@bufbuild/protobuf/wkt";
import type { Role } from "../../gen/moltwire/api/v1/access_pb.ts";
import type { TrustTier } from "../../gen/moltwire/bus/v1/agent_pb.ts";
import type { ApiKeySchema } from "../../gen/moltwire/federation/v1/api_key_pb.ts";
import { type Queryable, sql, type Tx } from "../db/db.ts";
import type { Position } from "../rpc/cursor.ts";

/** A key as it is stored; `role` is the number of moltwire.api.v1.Role. */
export type KeyRow = {
  readonly org_id: string;
  readonly key_id: string;
  readonly secret_sha256: string;
  readonly name: string;
  readonly role: number;
  readonly agent_id: string;
  readonly scopes: string;
  readonly create_ms: number;
  readonly expire_ms: number | null;
  readonly revoke_ms: number | null;
  readonly rotated_from: string | null;
  readonly last_used_ms: number | null;
  /** Addresses and CIDRs as JSON; none: anywhere. */
  readonly allowed_networks: string;
  /** 0: as many as whom it speaks for. */
  readonly requests_per_minute: number;
};

/** What each request reads of its key: no more, since every call pays for it. */
export type AuthRow = Pick<
  KeyRow,
  | "org_id"
  | "key_id"
  | "secret_sha256"
  | "role"
  | "agent_id"
  | "scopes"
  | "expire_ms"
  | "revoke_ms"
  | "allowed_networks"
  | "requests_per_minute"
> & {
  readonly org_disabled: number;
  /** Of the agent that the key is bound to. */
  readonly trust_tier: TrustTier | null;
};

const columns = sql`k.org_id, k.key_id, k.secret_sha256, k.name, k.role, k.agent_id, k.scopes, k.create_ms, k.expire_ms, k.revoke_ms, k.rotated_from, k.last_used_ms, k.allowed_networks, k.requests_per_minute`;

export type NewKey = {
  readonly orgId: string;
  readonly keyId: string;
  readonly digest: string;
  readonly name: string;
  readonly role: Role;
  readonly agentId: string;
  readonly scopes: readonly string[];
  readonly createMs: number;
  readonly expireMs: number | null;
  readonly rotatedFrom: string | null;
  /** None: anywhere. */
  readonly allowedNetworks?: readonly string[];
  /** None, or 0: as many as whom it speaks for. */
  readonly requestsPerMinute?: number;
};

/** By its id alone: this look-up is what tells the organisation of a request. The tier by the agent's key, which a key of the organisation has none of. */
export const findKey = (db: Queryable, keyId: string): Promise<AuthRow | undefined> =>
  db.one<AuthRow>(sql`
    select k.org_id, k.key_id, k.secret_sha256, k.role, k.agent_id, k.scopes, k.expire_ms, k.revoke_ms, k.allowed_networks, k.requests_per_minute, o.disabled as org_disabled,
      (select a.trust_tier from agent a where a.org_id = k.org_id and a.agent_id = k.agent_id) as trust_tier
    from api_key k join organization o on o.org_id = k.org_id where k.key_id = ${keyId}`);

/** One key of an organisation. */
export const findOrgKey = (db: Queryable, orgId: string, keyId: string): Promise<KeyRow | undefined> =>
  db.one<KeyRow>(sql`select ${columns} from api_key k where k.org_id = ${orgId} and k.key_id = ${keyId}`);

/** One key of an organisation, locked for a change. */
export const lockKey = (tx: Tx, orgId: string, keyId: string): Promise<KeyRow | undefined> =>
  tx.one<KeyRow>(
    sql`select ${columns} from api_key k where k.org_id = ${orgId} and k.key_id = ${keyId} ${tx.dialect.forUpdate}`,
  );

export const insertKey = (tx: Tx, key: NewKey): Promise<number> =>
  tx.run(sql`
    insert into api_key (org_id, key_id, secret_sha256, name, role, agent_id, scopes, create_ms, expire_ms, rotated_from, allowed_networks, requests_per_minute)
    values (${key.orgId}, ${key.keyId}, ${key.digest}, ${key.name}, ${key.role}, ${key.agentId}, ${JSON.stringify(key.scopes)}, ${key.createMs}, ${key.expireMs}, ${key.rotatedFrom},
      ${JSON.stringify(key.allowedNetworks ?? [])}, ${key.requestsPerMinute ?? 0})`);

/** How many keys of an organisation can still be used, counted up to a bound. */
export async function countLiveKeys(db: Queryable, orgId: string, now: number, bound: number): Promise<number> {
  const row = await db.one<{ n: number }>(sql`
    select count(*) as n from (select 1 as one from api_key where org_id = ${orgId} and revoke_ms is null and (expire_ms is null or expire_ms > ${now}) limit ${bound}) live`);
  return row?.n ?? 0;
}

/** Oldest first: ids sort by time. The ids that begin with a prefix are a range of the same indexes, none of them having a letter beyond `f`. */
export const listKeys = (
  db: Queryable,
  orgId: string,
  { agentId, prefix }: { readonly agentId: string; readonly prefix: string },
  after: Position | undefined,
  limit: number,
): Promise<KeyRow[]> => {
  const [afterId = ""] = (after ?? []) as string[];
  const ofAgent = agentId ? sql`and k.agent_id = ${agentId}` : sql``;
  const beginning = prefix ? sql`and k.key_id >= ${prefix} and k.key_id < ${`${prefix}g`}` : sql``;
  return db.all<KeyRow>(sql`
    select ${columns} from api_key k where k.org_id = ${orgId} and k.key_id > ${afterId} ${ofAgent} ${beginning} order by k.key_id limit ${limit}`);
};

/** Changes how a key may be used. */
export const updateKey = (tx: Tx, { org_id, key_id, allowed_networks, requests_per_minute }: KeyRow): Promise<number> =>
  tx.run(
    sql`update api_key set allowed_networks = ${allowed_networks}, requests_per_minute = ${requests_per_minute} where org_id = ${org_id} and key_id = ${key_id}`,
  );

/** Ends a key now, unless it has ended before. */
export const revokeKey = (tx: Tx, orgId: string, keyId: string, now: number): Promise<number> =>
  tx.run(
    sql`update api_key set revoke_ms = ${now} where org_id = ${orgId} and key_id = ${keyId} and revoke_ms is null`,
  );

/** Ends all keys of an agent; gives their ids. */
export const revokeAgentKeys = async (tx: Tx, orgId: string, agentId: string, now: number): Promise<string[]> => {
  const rows = await tx.all<{ key_id: string }>(sql`
    update api_key set revoke_ms = ${now} where org_id = ${orgId} and agent_id = ${agentId} and revoke_ms is null returning key_id`);
  return rows.map((row) => row.key_id);
};

/** Lets a key run out at a time, but never later than it would anyway. */
export const expireKey = (tx: Tx, orgId: string, keyId: string, expireMs: number): Promise<number> =>
  tx.run(sql`
    update api_key set expire_ms = ${expireMs} where org_id = ${orgId} and key_id = ${keyId} and (expire_ms is null or expire_ms > ${expireMs})`);

/** Notes when a key was last used; another replica may have noted a later use. */
export const touchKey = (tx: Tx, keyId: string, usedMs: number): Promise<number> =>
  tx.run(sql`
    update api_key set last_used_ms = ${usedMs} where key_id = ${keyId} and (last_used_ms is null or last_used_ms < ${usedMs})`);

export const toApiKey = (row: KeyRow): MessageInitShape<typeof ApiKeySchema> => ({
  orgId: row.org_id,
  keyId: row.key_id,
  name: row.name,
  role: row.role as Role,
  agentId: row.agent_id,
  scopes: JSON.parse(row.scopes) as string[],
  createTime: timestampFromMs(row.create_ms),
  ...(row.expire_ms !== null && { expireTime: timestampFromMs(row.expire_ms) }),
  ...(row.revoke_ms !== null && { revokeTime: timestampFromMs(row.revoke_ms) }),
  rotatedFromKeyId: row.rotated_from ?? "",
  ...(row.last_used_ms !== null && { lastUsedTime: timestampFromMs(row.last_used_ms) }),
  allowedNetworks: JSON.parse(row.allowed_networks) as string[],
  requestsPerMinute: row.requests_per_minute,
});
