import { type Queryable, sql, type Tx } from "../db/db.ts";

/** A session as it is stored. */
export type SessionRow = {
  readonly token_sha256: string;
  readonly org_id: string;
  readonly key_id: string;
  readonly credential_sha256: string;
  readonly create_ms: number;
  readonly expire_ms: number;
};

/** By the digest of its token alone: this look-up is what tells the organisation of a request. */
export const findSession = (db: Queryable, tokenSha256: string): Promise<SessionRow | undefined> =>
  db.one<SessionRow>(sql`
    select token_sha256, org_id, key_id, credential_sha256, create_ms, expire_ms from console_session where token_sha256 = ${tokenSha256}`);

export const insertSession = (tx: Tx, row: SessionRow): Promise<number> =>
  tx.run(sql`
    insert into console_session (token_sha256, org_id, key_id, credential_sha256, create_ms, expire_ms)
    values (${row.token_sha256}, ${row.org_id}, ${row.key_id}, ${row.credential_sha256}, ${row.create_ms}, ${row.expire_ms})`);

export const deleteSession = (tx: Tx, tokenSha256: string): Promise<number> =>
  tx.run(sql`delete from console_session where token_sha256 = ${tokenSha256}`);

/** Ends all sessions made from a key, or from the password; gives the digests of their tokens. */
export const deleteSessionsOf = async (tx: Tx, orgId: string, keyId: string): Promise<string[]> =>
  (
    await tx.all<{ token_sha256: string }>(
      sql`delete from console_session where org_id = ${orgId} and key_id = ${keyId} returning token_sha256`,
    )
  ).map((row) => row.token_sha256);

/** Ends the sessions of a key beyond the newest ones, a bounded number at once: one more is made at a time; gives the digests of their tokens. */
export const deleteBeyond = async (tx: Tx, orgId: string, keyId: string, kept: number): Promise<string[]> =>
  (
    await tx.all<{ token_sha256: string }>(sql`
      delete from console_session where token_sha256 in (
        select token_sha256 from console_session where org_id = ${orgId} and key_id = ${keyId} order by create_ms desc limit ${10} offset ${kept})
      returning token_sha256`)
  ).map((row) => row.token_sha256);

/** Removes a bounded number of sessions that are over; gives how many. */
export const deleteOverSessions = (tx: Tx, now: number, limit: number): Promise<number> =>
  tx.run(sql`
    delete from console_session where token_sha256 in (
      select token_sha256 from console_session where expire_ms <= ${now} order by expire_ms limit ${limit})`);
