/** Who a session speaks for: exactly whom its key, or the password, speaks for now. */
import { Role } from "../../gen/moltwire/api/v1/access_pb.ts";
import type { App } from "../app.ts";
import { Fault } from "../errors.ts";
import { findKey } from "../federation/api-key-store.ts";
import { callerFrom, checkNetwork, configuredKeyId, configuredOperator } from "../rpc/auth.ts";
import { type Caller, publicCaller } from "../rpc/caller.ts";
import type { Browser } from "./browser.ts";
import { digestOf, findPassword, passwordKeyId } from "./password.ts";
import { deleteOverSessions, findSession, type SessionRow } from "./session-store.ts";

/** How long a session lasts. */
export const sessionMs = 24 * 3_600_000;

/** Rung when a session was ended before its time. */
export const sessionTopic = (tokenSha256: string): string => `session:${tokenSha256}`;

/**
 * Who calls from a browser: who is signed in there. Nobody in particular without a session, with one that is over, from where its key may not be used (which is told where somebody is needed: here one signs in
 * by another key), and from a page of another origin, which could otherwise act for who looks at it.
 */
export async function signedIn(app: App, { token, sameOrigin }: Browser, address: string): Promise<Caller> {
  if (token === undefined || !sameOrigin) return publicCaller;
  try {
    const caller = await callerOfSession(app, digestOf(token));
    checkNetwork(caller, address);
    app.keyUse.seen(caller.keyId, app.clock.now());
    return caller;
  } catch (error) {
    if (!(error instanceof Fault && error.reason.startsWith("KEY_"))) throw error;
    return error.reason === "KEY_NETWORK_REFUSED" ? { ...publicCaller, refused: error } : publicCaller;
  }
}

/** Who a session speaks for now. Throws KEY_EXPIRED when it is over, and KEY_REVOKED or KEY_EXPIRED when its key is. */
export async function callerOfSession(app: App, tokenSha256: string): Promise<Caller> {
  const now = app.clock.now();
  const row = await findSession(app.db.query, tokenSha256);
  if (!row || row.expire_ms <= now) throw over();
  const caller = await callerOfCredential(app, row, now);
  return { ...caller, session: tokenSha256, expireMs: Math.min(row.expire_ms, caller.expireMs ?? row.expire_ms) };
}

async function callerOfCredential(app: App, row: SessionRow, now: number): Promise<Caller> {
  if (row.key_id === passwordKeyId) {
    const stored = await findPassword(app.db.query);
    if (stored === undefined || digestOf(stored) !== row.credential_sha256) throw over();
    return passwordOperator(app);
  }
  if (row.key_id === configuredKeyId) {
    if (app.config.operatorKeyDigest !== row.credential_sha256) throw over();
    return configuredOperator(app);
  }
  const key = await findKey(app.db.query, row.key_id);
  if (!key || key.secret_sha256 !== row.credential_sha256) throw over();
  return callerFrom(key, now);
}

const over = () => new Fault("KEY_EXPIRED", "the session is over: sign in again");

/** Whoever knows the password is the operator. */
export const passwordOperator = (app: App): Caller => ({
  role: Role.OPERATOR,
  orgId: app.homeOrgId,
  agentId: "",
  keyId: passwordKeyId,
  scopes: [],
});

const sweepBatch = 1_000;

/** Removes sessions that are over, a bounded number at a time. */
export async function sweepSessions({ db, clock }: Pick<App, "db" | "clock">): Promise<void> {
  while ((await db.tx((tx) => deleteOverSessions(tx, clock.now(), sweepBatch))) === sweepBatch);
}
