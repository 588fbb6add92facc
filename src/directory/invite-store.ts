import { createHash } from "node:crypto";
import type { MessageInitShape } from "@bufbuild/protobuf";
import { timestampFromMs } from "@bufbuild/protobuf/wkt";
import type { TrustTier } from "../../gen/moltwire/bus/v1/agent_pb.ts";
import type { InviteSchema } from "../../gen/moltwire/directory/v1/directory_service_pb.ts";
import { type Queryable, sql, type Tx } from "../db/db.ts";
import type { Ids } from "../ids.ts";
import type { Position } from "../rpc/cursor.ts";

export type NewInvite = {
  readonly orgId: string;
  readonly inviteId: string;
  readonly digest: string;
  readonly tier: number;
  readonly maxUses: number;
  readonly createMs: number;
  readonly expireMs: number;
  /** Where keys that are made with it may be used from; none: anywhere. */
  readonly allowedNetworks: readonly string[];
};

const secretBytes = 32;

/** What an invite looks like: `mwi_` and 256 random bits; and the digest that is stored of it. */
export function newInviteText(ids: Ids): { readonly text: string; readonly digest: string } {
  const text = `mwi_${Buffer.from(ids.bytes(secretBytes)).toString("base64url")}`;
  return { text, digest: inviteDigest(text) };
}

const inviteDigest = (text: string): string => createHash("sha256").update(text).digest("hex");

export const insertInvite = (tx: Tx, invite: NewInvite): Promise<number> =>
  tx.run(sql`
    insert into invite (secret_sha256, org_id, invite_id, trust_tier, max_uses, uses, create_ms, expire_ms, allowed_networks)
    values (${invite.digest}, ${invite.orgId}, ${invite.inviteId}, ${invite.tier}, ${invite.maxUses}, ${0}, ${invite.createMs}, ${invite.expireMs},
      ${JSON.stringify(invite.allowedNetworks)})`);

/** Uses an invite once, if it still can be: one statement, so that of many who use the last one at once one does. */
export const useInvite = (
  tx: Tx,
  text: string,
  now: number,
): Promise<{ readonly org_id: string; readonly trust_tier: number; readonly allowed_networks: string } | undefined> =>
  tx.one(sql`
    update invite set uses = uses + 1 where secret_sha256 = ${inviteDigest(text)} and uses < max_uses and expire_ms > ${now}
    returning org_id, trust_tier, allowed_networks`);

/** An invite as it is stored, without its secret. */
export type InviteRow = {
  readonly invite_id: string;
  readonly org_id: string;
  readonly trust_tier: number;
  readonly max_uses: number;
  readonly uses: number;
  readonly create_ms: number;
  readonly expire_ms: number;
  readonly allowed_networks: string;
};

/** Newest first, backwards along the index on ids: those that are not past their time, used up or not. */
export const listInvites = (
  db: Queryable,
  orgId: string,
  now: number,
  after: Position | undefined,
  limit: number,
): Promise<InviteRow[]> =>
  db.all<InviteRow>(sql`
    select invite_id, org_id, trust_tier, max_uses, uses, create_ms, expire_ms, allowed_networks from invite
    where org_id = ${orgId} ${after ? sql`and invite_id < ${after[0]!}` : sql``} and expire_ms + 0 > ${now} order by invite_id desc limit ${limit}`);

/** Takes an invite back; 0 when there is none, or it is past its time. Who joined by it stays. */
export const deleteInvite = (tx: Tx, orgId: string, inviteId: string, now: number): Promise<number> =>
  tx.run(sql`delete from invite where org_id = ${orgId} and invite_id = ${inviteId} and expire_ms + 0 > ${now}`);

export const toInvite = (row: InviteRow): MessageInitShape<typeof InviteSchema> => ({
  inviteId: row.invite_id,
  orgId: row.org_id,
  maxUses: row.max_uses,
  uses: row.uses,
  trustTier: row.trust_tier as TrustTier,
  createTime: timestampFromMs(row.create_ms),
  expireTime: timestampFromMs(row.expire_ms),
  allowedNetworks: JSON.parse(row.allowed_networks) as string[],
});

/** How many invites of an organisation can still be used, counted up to a bound; by their index. */
export async function countLiveInvites(db: Queryable, orgId: string, now: number, bound: number): Promise<number> {
  const row = await db.one<{ n: number }>(sql`
    select count(*) as n from (select 1 as one from invite where org_id = ${orgId} and expire_ms > ${now} and uses < max_uses limit ${bound}) live`);
  return row!.n;
}

/** Removes a bounded number of invites that are past their time; gives how many. */
export const deleteOldInvites = (tx: Tx, now: number, limit: number): Promise<number> =>
  tx.run(sql`
    delete from invite where secret_sha256 in (select secret_sha256 from invite where expire_ms <= ${now} order by expire_ms limit ${limit})`);
