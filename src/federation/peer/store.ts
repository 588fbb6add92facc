/** Peers and their keys. */
import type { MessageInitShape } from "@bufbuild/protobuf";
import { timestampFromMs } from "@bufbuild/protobuf/wkt";
import { type PeerSchema, PeerState } from "../../../gen/moltwire/federation/v1/peer_pb.ts";
import { type Queryable, sql, type Tx } from "../../db/db.ts";
import type { Position } from "../../rpc/cursor.ts";
import { keyBytes, keyIdOf, keyText } from "./key.ts";

/** `state` is the number of PeerState. */
export type PeerRow = {
  readonly org_id: string;
  readonly peer_id: string;
  readonly name: string;
  readonly base_url: string;
  readonly audience: string;
  readonly remote_org_id: string;
  readonly agent_id: string;
  readonly state: number;
  readonly create_ms: number;
  readonly update_ms: number;
};

export type PeerKeyRow = {
  readonly org_id: string;
  readonly peer_id: string;
  readonly key_id: string;
  readonly public_key: string;
  readonly create_ms: number;
  readonly expire_ms: number | null;
};

const columns = sql`p.org_id, p.peer_id, p.name, p.base_url, p.audience, p.remote_org_id, p.agent_id, p.state, p.create_ms, p.update_ms`;
const keyColumns = sql`k.org_id, k.peer_id, k.key_id, k.public_key, k.create_ms, k.expire_ms`;

/** Adds a peer; 0 when its name or organisation is another's. */
export const insertPeer = (tx: Tx, row: PeerRow): Promise<number> =>
  tx.run(sql`
    insert into federation_peer (org_id, peer_id, name, base_url, audience, remote_org_id, agent_id, state, create_ms, update_ms)
    values (${row.org_id}, ${row.peer_id}, ${row.name}, ${row.base_url}, ${row.audience}, ${row.remote_org_id}, ${row.agent_id}, ${row.state},
      ${row.create_ms}, ${row.update_ms})
    on conflict do nothing`);

export const findPeer = (db: Queryable, peerId: string): Promise<PeerRow | undefined> =>
  db.one<PeerRow>(sql`select ${columns} from federation_peer p where p.peer_id = ${peerId}`);

/** Whether a peer has this audience; by its index. */
export const isAudienceTaken = async (db: Queryable, audience: string): Promise<boolean> =>
  (await db.one(sql`select 1 as one from federation_peer p where p.state = 1 and p.audience = ${audience}`)) !==
  undefined;

export const lockPeer = (tx: Tx, peerId: string): Promise<PeerRow | undefined> =>
  tx.one<PeerRow>(sql`select ${columns} from federation_peer p where p.peer_id = ${peerId} ${tx.dialect.forUpdate}`);

type KeyOfPage = Pick<PeerKeyRow, "public_key" | "expire_ms"> & { readonly key_create_ms: number };

/** Oldest first: ids sort by time. With their keys, newest first: in one statement, so that they belong together. Each has a few. */
export async function listPeers(
  db: Queryable,
  includeRemoved: boolean,
  after: Position | undefined,
  limit: number,
): Promise<(PeerRow & { readonly keys: readonly PeerKeyRow[] })[]> {
  const only = includeRemoved ? sql`` : sql`and p.state = 1`;
  const found = await db.all<PeerRow & KeyOfPage & { readonly key_id: string | null }>(sql`
    select walk.*, k.key_id, k.public_key, k.create_ms as key_create_ms, k.expire_ms
    from (select ${columns} from federation_peer p where p.peer_id > ${after?.[0] ?? ""} ${only} order by p.peer_id limit ${limit}) walk
    left join federation_peer_key k on k.org_id = walk.org_id and k.peer_id = walk.peer_id
    order by walk.peer_id, k.create_ms desc, k.key_id`);
  return [...Map.groupBy(found, ({ peer_id }) => peer_id).values()].map((rows) => ({
    ...rows[0]!,
    keys: rows.flatMap(({ key_id, key_create_ms, ...row }) =>
      key_id === null ? [] : [{ ...row, key_id, create_ms: key_create_ms }],
    ),
  }));
}

/** How many are not removed, counted up to a bound. */
export const countPeers = async (db: Queryable, bound: number): Promise<number> =>
  (await db.one<{ n: number }>(
    sql`select count(*) as n from (select 1 as one from federation_peer p where p.state = 1 limit ${bound}) counted`,
  ))!.n;

/** A peer is removed: its keys open nothing any more, and what is under way with it is to be ended. */
export async function removePeer(tx: Tx, { org_id, peer_id }: PeerRow, now: number): Promise<void> {
  await tx.run(
    sql`update federation_peer set state = ${PeerState.REMOVED}, unsettled = 1, update_ms = ${now} where org_id = ${org_id} and peer_id = ${peer_id}`,
  );
  await tx.run(sql`delete from federation_peer_key where org_id = ${org_id} and peer_id = ${peer_id}`);
}

/** Adds a key; 0 when a peer has it. */
export const insertPeerKey = (
  tx: Tx,
  { org_id, peer_id }: PeerRow,
  publicKey: Uint8Array,
  now: number,
): Promise<number> =>
  tx.run(sql`
    insert into federation_peer_key (org_id, peer_id, key_id, public_key, create_ms, expire_ms)
    values (${org_id}, ${peer_id}, ${keyIdOf(publicKey)}, ${keyText(publicKey)}, ${now}, null) on conflict do nothing`);

/** The keys that a peer has now are good until a time at most; those that are over are forgotten. The caller has locked the peer. */
export async function endPeerKeys(tx: Tx, { org_id, peer_id }: PeerRow, expireMs: number, now: number): Promise<void> {
  const of = sql`org_id = ${org_id} and peer_id = ${peer_id}`;
  await tx.run(sql`delete from federation_peer_key where ${of} and (expire_ms <= ${now} or ${expireMs} <= ${now})`);
  await tx.run(sql`update federation_peer set update_ms = ${now} where ${of}`);
  await tx.run(
    sql`update federation_peer_key set expire_ms = ${expireMs} where ${of} and (expire_ms is null or expire_ms > ${expireMs})`,
  );
}

/** The keys of a peer, newest first: few. */
export const keysOf = (db: Queryable, { org_id, peer_id }: PeerRow): Promise<PeerKeyRow[]> =>
  db.all<PeerKeyRow>(sql`
    select ${keyColumns} from federation_peer_key k where k.org_id = ${org_id} and k.peer_id = ${peer_id} order by k.create_ms desc, k.key_id`);

/** The peer whose key it is, and the key; by the key's id. Nothing for a key that is over, and when the organisation that stands for the peer is disabled. */
export const findByKey = (
  db: Queryable,
  keyId: string,
  now: number,
): Promise<(PeerRow & { readonly public_key: string }) | undefined> =>
  db.one(sql`
    select ${columns}, k.public_key from federation_peer_key k
      join federation_peer p on p.org_id = k.org_id and p.peer_id = k.peer_id and p.state = 1
      join organization o on o.org_id = p.org_id and o.disabled = 0
    where k.key_id = ${keyId} and (k.expire_ms is null or k.expire_ms > ${now})`);

export const toPeer = (
  row: PeerRow,
  keys: readonly PeerKeyRow[],
  now: number,
): MessageInitShape<typeof PeerSchema> => ({
  peerId: row.peer_id,
  name: row.name,
  orgId: row.org_id,
  agentId: row.agent_id,
  baseUrl: row.base_url,
  audience: row.audience,
  remoteOrgId: row.remote_org_id,
  state: row.state as PeerState,
  keys: keys
    .filter(({ expire_ms }) => (expire_ms ?? Infinity) > now)
    .map((key) => ({
      keyId: key.key_id,
      publicKey: keyBytes(key.public_key),
      activeTime: timestampFromMs(key.create_ms),
      ...(key.expire_ms !== null && { expireTime: timestampFromMs(key.expire_ms) }),
    })),
  createTime: timestampFromMs(row.create_ms),
  updateTime: timestampFromMs(row.update_ms),
});

/** A peer with its keys, as it is answered. */
export const shown = async (db: Queryable, row: PeerRow, now: number): Promise<MessageInitShape<typeof PeerSchema>> =>
  toPeer(row, await keysOf(db, row), now);
