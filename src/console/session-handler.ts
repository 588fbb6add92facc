import type { MessageInitShape } from "@bufbuild/protobuf";
import { timestampFromMs } from "@bufbuild/protobuf/wkt";
import type { HandlerContext, ServiceImpl } from "@connectrpc/connect";
import { Role } from "../../gen/moltwire/api/v1/access_pb.ts";
import type {
  SessionSchema,
  SessionService,
  SignInRequest,
  SignOutRequest,
} from "../../gen/moltwire/ops/v1/session_service_pb.ts";
import type { App } from "../app.ts";
import type { Queryable } from "../db/db.ts";
import { Fault } from "../errors.ts";
import { keyDigest } from "../federation/key-text.ts";
import { findOrganization } from "../federation/organization-store.ts";
import { writeAudit } from "../ops/audit-store.ts";
import { roleName } from "../rpc/access.ts";
import { authenticate } from "../rpc/auth.ts";
import { type Caller, traceOf } from "../rpc/caller.ts";
import { clientAddressKey } from "../rpc/client-address.ts";
import { command } from "../rpc/command.ts";
import { addressGroup, take } from "../rpc/limits.ts";
import { query } from "../rpc/query.ts";
import { browserKey, sessionCookie } from "./browser.ts";
import { digestOf, findPassword, isPassword } from "./password.ts";
import { passwordOperator, sessionMs, sessionTopic } from "./session.ts";
import { deleteBeyond, deleteSession, insertSession } from "./session-store.ts";

const tokenBytes = 32;
const keptSessions = 100;

export const sessionHandler = (app: App): ServiceImpl<typeof SessionService> => ({
  async signIn(req, context) {
    const { sameOrigin, secure } = context.values.get(browserKey);
    if (!sameOrigin)
      throw new Fault("FAILED_PRECONDITION", "sessions are for pages of this server; other programs send a key", {
        state: "OTHER_ORIGIN",
      });
    const { caller, credential } = await check(app, req, context);
    const token = Buffer.from(app.ids.bytes(tokenBytes)).toString("base64url");
    const tokenSha256 = digestOf(token);
    const now = app.clock.now();
    const expireMs = Math.min(now + sessionMs, caller.expireMs ?? Number.POSITIVE_INFINITY);
    const session = await app.db.tx(async (tx) => {
      await insertSession(tx, {
        token_sha256: tokenSha256,
        org_id: caller.orgId,
        key_id: caller.keyId,
        credential_sha256: credential,
        create_ms: now,
        expire_ms: expireMs,
      });
      for (const ended of await deleteBeyond(tx, caller.orgId, caller.keyId, keptSessions))
        tx.ring(sessionTopic(ended));
      // Not with the digest of the request: of a password that could be guessed from it.
      const act = { caller, orgId: caller.orgId, now, trace: traceOf(context), method: context.method, digest: "" };
      await writeAudit(tx, app, { ...act, request: {}, reply: {} });
      return toSession(tx, { ...caller, expireMs });
    });
    context.responseHeader.set("set-cookie", sessionCookie(secure, token, Math.ceil((expireMs - now) / 1_000)));
    return { session };
  },

  signOut: (req, context) => {
    const { token, sameOrigin, secure } = context.values.get(browserKey);
    return command<SignOutRequest, object>(app, async (_req, { tx }) => {
      if (token === undefined || !sameOrigin) return {};
      const tokenSha256 = digestOf(token);
      await deleteSession(tx, tokenSha256);
      tx.ring(sessionTopic(tokenSha256));
      context.responseHeader.set("set-cookie", sessionCookie(secure, "", 0));
      return {};
    })(req, context);
  },

  getSession: query(app, async (_req, { db, caller }) => {
    const passwordSet = (await findPassword(db)) !== undefined;
    return caller.session === undefined ? { passwordSet } : { passwordSet, session: await toSession(db, caller) };
  }),
});

/** Who signs in, and the digest of what they sign in with. */
async function check(
  app: App,
  { credential: { case: kind, value } }: SignInRequest,
  context: HandlerContext,
): Promise<{ readonly caller: Caller; readonly credential: string }> {
  if (kind === "password") return checkPassword(app, value, context);
  const key = value ?? "";
  const caller = await authenticate(app, key.trim(), context.values.get(clientAddressKey));
  if (caller.role < Role.ORG) {
    const metadata = { role: roleName(caller.role), required_role: roleName(Role.ORG) };
    throw new Fault("ROLE_REQUIRED", "the console is for administrators: this is the key of an agent", metadata);
  }
  return { caller, credential: keyDigest(key.trim()) };
}

async function checkPassword(app: App, password: string, { values, responseHeader }: HandlerContext) {
  // Before anything is looked up or computed.
  await take(app.limiters.passwords, "address", addressGroup(values.get(clientAddressKey)), responseHeader);
  const stored = await findPassword(app.db.query);
  if (stored === undefined)
    throw new Fault("FAILED_PRECONDITION", "no password is set: sign in with the operator's key, then set one", {
      state: "NO_PASSWORD",
    });
  if (!(await isPassword(password, stored))) throw new Fault("KEY_INVALID", "the password is wrong");
  return { caller: passwordOperator(app), credential: digestOf(stored) };
}

async function toSession(
  db: Queryable,
  { role, orgId, keyId, scopes, expireMs }: Caller,
): Promise<MessageInitShape<typeof SessionSchema>> {
  const organization = await findOrganization(db, orgId);
  const orgName = organization?.display_name || organization?.name || "";
  return { role, orgId, orgName, keyId, scopes: [...scopes], expireTime: timestampFromMs(expireMs!) };
}
