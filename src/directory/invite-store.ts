import { createHash } from "node:crypto";
import { type Queryable, sql, type Tx } from "../db/db.ts";
import type { Ids } from "../ids.ts";

export type NewInvite = {
  readonly orgId: string;
  readonly inviteId: string;
  readonly digest: string;
  readonly tier: number;
  readonly maxUses: number;
  readonly createMs: number;
  readonly expireMs: number;
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
    insert into invite (secret_sha256, org_id, invite_id, trust_tier, max_uses, uses, create_ms, expire_ms)
    values (${invite.digest}, ${invite.orgId}, ${invite.inviteId}, ${invite.tier}, ${invite.maxUses}, ${0}, ${invite.createMs}, ${invite.expireMs})`);

/** Uses an invite once, if it still can be: one statement, so that of many who use the last one at once one does. */
export const useInvite = (
  tx: Tx,
  text: string,
  now: number,
): Promise<{ readonly org_id: string; readonly trust_tier: number } | undefined> =>
  tx.one(sql`
    update invite set uses = uses + 1 where secret_sha256 = ${inviteDigest(text)} and uses < max_uses and expire_ms > ${now}
    returning org_id, trust_tier`);

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
