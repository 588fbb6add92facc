import { createHash } from "node:crypto";
import { timestampFromMs } from "@bufbuild/protobuf/wkt";
import type { Interceptor } from "@connectrpc/connect";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { Role } from "../gen/moltwire/api/v1/access_pb.ts";
import { sweepSessions } from "../src/console/session.ts";
import { insertSession, type SessionRow } from "../src/console/session-store.ts";
import { sql } from "../src/db/db.ts";
import { dialects, eventually, fakeClock, refusal, start, unique, type World } from "./harness.ts";
import { addContract } from "./rpc-fixtures/contract.ts";

const fromPage = { "sec-fetch-site": "same-origin" };
const password = "correct horse battery staple";

type Answer = {
  readonly status: number;
  readonly reason: string;
  readonly state: string;
  readonly setCookie: string | null;
  /** The cookie as a browser sends it back. */
  readonly cookie: string;
  readonly json: Record<string, never>;
};

/** Calls a method as a browser does. */
async function call(world: World, path: string, body: object, headers: Record<string, string>): Promise<Answer> {
  const answer = await fetch(`${world.url}/moltwire.${path}`, {
    method: "POST",
    headers: { "content-type": "application/json", ...headers },
    body: JSON.stringify(body),
  });
  const json = (await answer.json()) as Record<string, never>;
  const { reason = "", metadata = {} } = (json as { details?: { debug: never }[] }).details?.[0]?.debug ?? {};
  const setCookie = answer.headers.get("set-cookie");
  return {
    status: answer.status,
    reason,
    state: (metadata as Record<string, string>).state ?? "",
    setCookie,
    cookie: setCookie?.split(";")[0] ?? "",
    json,
  };
}

const signIn = (world: World, credential: object, headers: Record<string, string> = fromPage): Promise<Answer> =>
  call(world, "ops.v1.SessionService/SignIn", credential, headers);

/** Clients that send the cookie as a page of the server does. */
const inBrowser = (world: World, cookie: string) => {
  const asPage: Interceptor = (next) => (request) => {
    request.header.set("cookie", cookie);
    request.header.set("sec-fetch-site", "same-origin");
    return next(request);
  };
  return world.as(undefined, "connect", [asPage]);
};

const digest = (text: string): string => createHash("sha256").update(text).digest("hex");

describe.each(dialects)("%s", (dialect) => {
  let world: World;
  const clock = fakeClock();
  beforeAll(async () => {
    world = await start(dialect, { clock, trustedProxies: ["127.0.0.1"] });
  });
  afterAll(() => world[Symbol.asyncDispose]());
  const sessions = () =>
    world.server.app.db.query.all<Record<string, unknown>>(sql`select * from console_session order by create_ms`);

  describe("a session", () => {
    test("is bound to the networks of its key: from elsewhere nobody signs in, and nobody is signed in", async () => {
      const { admin } = await world.org();
      const { secret } = await admin.keys.createApiKey({ allowedNetworks: ["203.0.113.0/24"] });
      const at = (address: string) => ({ ...fromPage, "x-forwarded-for": address });
      const [here, elsewhere] = [at("203.0.113.7"), at("203.0.114.7")];
      expect(await signIn(world, { apiKey: secret }, elsewhere)).toMatchObject({
        ...{ status: 403, reason: "KEY_NETWORK_REFUSED", setCookie: null },
      });
      const { cookie } = await signIn(world, { apiKey: secret }, here);
      const list = (headers: object) => call(world, "bus.v1.AgentService/ListAgents", {}, { ...headers, cookie });
      expect((await list(here)).status).toBe(200);
      expect(await list(elsewhere)).toMatchObject({ status: 403, reason: "KEY_NETWORK_REFUSED" });
      // There one may still sign in by another key, or out.
      expect((await call(world, "ops.v1.SessionService/GetSession", {}, { ...elsewhere, cookie })).json).toEqual({});
      const { secret: free } = await admin.keys.createApiKey({});
      expect((await signIn(world, { apiKey: free }, { ...elsewhere, cookie })).status).toBe(200);
      expect((await call(world, "ops.v1.SessionService/SignOut", {}, { ...elsewhere, cookie })).status).toBe(200);
      expect(await list(here)).toMatchObject({ status: 401, reason: "KEY_MISSING" });
    });

    test("is a cookie that scripts cannot read, other sites do not send and the server keeps no copy of", async () => {
      const { adminKey } = await world.org();
      const { status, setCookie, cookie, json } = await signIn(world, { apiKey: adminKey });
      expect(status).toBe(200);
      expect(setCookie).toMatch(/^moltwire_session=[\w-]{43}; Path=\/; Max-Age=86400; HttpOnly; SameSite=Strict$/);
      const token = cookie.split("=")[1]!;
      expect(JSON.stringify(json)).not.toContain(token);
      const rows = await sessions();
      expect(rows.map((row) => row.token_sha256)).toContain(digest(token));
      expect(JSON.stringify(rows)).not.toContain(token);
      expect(JSON.stringify(rows)).not.toContain(adminKey);
    });

    test("over TLS belongs to this host alone, and a cookie of plain HTTP is none there", async () => {
      const { adminKey } = await world.org();
      const tls = { ...fromPage, "x-forwarded-for": "192.0.2.1", "x-forwarded-proto": "https" };
      const { setCookie, cookie } = await signIn(world, { apiKey: adminKey }, tls);
      expect(setCookie).toMatch(/^__Host-moltwire_session=[\w-]{43}; Path=\/; .*; SameSite=Strict; Secure$/);
      const list = (headers: Record<string, string>) => call(world, "bus.v1.AgentService/ListAgents", {}, headers);
      expect((await list({ ...tls, cookie })).status).toBe(200);
      expect((await list({ ...tls, cookie: cookie.replace("__Host-", "") })).reason).toBe("KEY_MISSING");
    });

    test("may do what its key may, and no more: same role, same scopes, same organisation", async () => {
      const [mine, other] = [await world.org(), await world.org()];
      const contractId = unique("contract");
      await addContract(world, other.orgId, { contractId });
      const { cookie, json } = await signIn(world, { apiKey: mine.adminKey });
      expect(json).toMatchObject({ session: { role: "ROLE_ORG", orgId: mine.orgId } });
      const page = inBrowser(world, cookie);
      const { agent } = await page.agents.registerAgent({ name: "by-hand" });
      expect(agent?.orgId).toBe(mine.orgId);
      expect((await page.agents.listAgents({})).agents.map(({ name }) => name)).toEqual(["by-hand"]);
      expect((await refusal(page.organizations.createOrganization({ name: "more" }))).reason).toBe("ROLE_REQUIRED");
      expect((await refusal(page.agents.listAgents({ orgId: other.orgId }))).reason).toBe("NOT_FOUND");
      expect((await refusal(page.contracts.getContract({ contractId }))).reason).toBe("CONTRACT_NOT_FOUND");
      expect((await page.admin.listAuditEvents({ pageSize: 1 })).auditEvents[0]).toMatchObject({
        method: "moltwire.bus.v1.AgentService/RegisterAgent",
        keyId: (json as unknown as { session: { keyId: string } }).session.keyId,
      });
      const { secret } = await mine.admin.keys.createApiKey({ role: Role.ORG, scopes: ["traces:read"] });
      const narrow = inBrowser(world, (await signIn(world, { apiKey: secret })).cookie);
      await narrow.traces.listTraces({});
      expect((await refusal(narrow.agents.listAgents({}))).reason).toBe("SCOPE_REQUIRED");
    });

    test("is for administrators: the key of an agent makes none, nor one that is wrong, revoked or over", async () => {
      const { admin, ...org } = await world.org();
      const { key } = await org.agent();
      expect(await signIn(world, { apiKey: key })).toMatchObject({ reason: "ROLE_REQUIRED", setCookie: null });
      expect(await signIn(world, { apiKey: `${org.adminKey.slice(0, -1)}x` })).toMatchObject({ reason: "KEY_INVALID" });
      const expireTime = timestampFromMs(clock.now() + 1_000);
      const { secret: short } = await admin.keys.createApiKey({ expireTime });
      const { secret: revoked, apiKey } = await admin.keys.createApiKey({});
      await admin.keys.revokeApiKey({ keyId: apiKey!.keyId });
      clock.advance(1_000);
      expect(await signIn(world, { apiKey: short })).toMatchObject({ reason: "KEY_EXPIRED", setCookie: null });
      expect(await signIn(world, { apiKey: revoked })).toMatchObject({ reason: "KEY_REVOKED", setCookie: null });
    });

    test.each([
      ["another site", { "sec-fetch-site": "cross-site" }],
      ["another host of the domain", { "sec-fetch-site": "same-site" }],
      ["the address bar", { "sec-fetch-site": "none" }],
      ["another origin, said by an old browser", { origin: "https://elsewhere.example" }],
      ["no page", {}],
    ])("does not count for a call from %s, and none is made for it", async (_from, headers) => {
      const { adminKey } = await world.org();
      const { cookie } = await signIn(world, { apiKey: adminKey });
      const register = { name: unique("forged") };
      const forged = await call(world, "bus.v1.AgentService/RegisterAgent", register, { ...headers, cookie });
      expect([forged.status, forged.reason]).toEqual([401, "KEY_MISSING"]);
      const made = await signIn(world, { apiKey: adminKey }, headers);
      expect([made.reason, made.state, made.setCookie]).toEqual(["FAILED_PRECONDITION", "OTHER_ORIGIN", null]);
      const left = await call(world, "ops.v1.SessionService/SignOut", {}, { ...headers, cookie });
      expect(left.setCookie).toBeNull();
      const old = { origin: world.url, cookie };
      expect((await call(world, "bus.v1.AgentService/RegisterAgent", register, old)).status).toBe(200);
    });

    test("ends with its key, at once when that is revoked, and its streams with it", async () => {
      const { admin } = await world.org();
      const { secret, apiKey } = await admin.keys.createApiKey({});
      const page = inBrowser(world, (await signIn(world, { apiKey: secret })).cookie);
      const stream = page.events.watchEvents({})[Symbol.asyncIterator]();
      expect((await stream.next()).value?.item.case).toBe("checkpoint");
      const ended = refusal(stream.next());
      await admin.keys.revokeApiKey({ keyId: apiKey!.keyId });
      expect((await ended).reason).toBe("KEY_REVOKED");
      expect((await refusal(page.agents.listAgents({}))).reason).toBe("KEY_MISSING");
    });

    test("ends with its key's time, and after a day at the latest", async () => {
      const { admin, adminKey } = await world.org();
      const { secret } = await admin.keys.createApiKey({ expireTime: timestampFromMs(clock.now() + 60_000) });
      const short = await signIn(world, { apiKey: secret });
      expect(short.setCookie).toContain("Max-Age=60;");
      const long = inBrowser(world, (await signIn(world, { apiKey: adminKey })).cookie);
      clock.advance(59_999);
      await inBrowser(world, short.cookie).agents.listAgents({});
      clock.advance(1);
      expect((await refusal(inBrowser(world, short.cookie).agents.listAgents({}))).reason).toBe("KEY_MISSING");
      clock.advance(24 * 3_600_000 - 60_001);
      await long.agents.listAgents({});
      clock.advance(1);
      expect((await refusal(long.agents.listAgents({}))).reason).toBe("KEY_MISSING");
      await eventually(async () => {
        await sweepSessions(world.server.app);
        return (await sessions()).length === 0;
      });
    });

    test("ends by signing out, its streams with it, and the others of the same key go on", async () => {
      const { adminKey } = await world.org();
      const [one, two] = [await signIn(world, { apiKey: adminKey }), await signIn(world, { apiKey: adminKey })];
      const stream = inBrowser(world, one.cookie).events.watchEvents({})[Symbol.asyncIterator]();
      await stream.next();
      const ended = refusal(stream.next());
      const out = await call(world, "ops.v1.SessionService/SignOut", {}, { ...fromPage, cookie: one.cookie });
      expect(out.setCookie).toMatch(/^moltwire_session=; Path=\/; Max-Age=0; HttpOnly; SameSite=Strict$/);
      expect((await ended).reason).toBe("KEY_EXPIRED");
      expect((await refusal(inBrowser(world, one.cookie).agents.listAgents({}))).reason).toBe("KEY_MISSING");
      await inBrowser(world, two.cookie).agents.listAgents({});
    });

    test("ends when its organisation is disabled", async () => {
      const { orgId, adminKey } = await world.org();
      const page = inBrowser(world, (await signIn(world, { apiKey: adminKey })).cookie);
      const change = { orgId, change: { disabled: true }, updateMask: { paths: ["disabled"] } };
      await world.operator.organizations.updateOrganization(change);
      expect((await refusal(page.agents.listAgents({}))).reason).toBe("KEY_MISSING");
    });

    test("that is over is no hindrance to signing in again, and a key that is sent wins over it", async () => {
      const [mine, other] = [await world.org(), await world.org()];
      const over = { ...fromPage, cookie: `moltwire_session=${"x".repeat(43)}` };
      const { cookie } = await signIn(world, { apiKey: mine.adminKey }, over);
      const both = { ...fromPage, cookie, authorization: `Bearer ${other.adminKey}` };
      await other.admin.agents.registerAgent({ name: "theirs" });
      const { json } = await call(world, "bus.v1.AgentService/ListAgents", {}, both);
      expect(json).toMatchObject({ agents: [{ name: "theirs" }] });
    });

    test("of one key is one of at most a hundred: the oldest go", async () => {
      const { orgId, adminKey } = await world.org();
      for (let n = 0; n < 103; n++) {
        clock.advance(1);
        await signIn(world, { apiKey: adminKey });
      }
      const own = (await sessions()).filter((row) => row.org_id === orgId);
      expect(own).toHaveLength(100);
      expect(own.at(-1)?.create_ms).toBe(clock.now());
    });
  });

  describe("the operator's password", () => {
    test("is nobody's before it is set, by the operator alone, and is stored as argon2id", async () => {
      clock.advance(60_000);
      expect(await signIn(world, { password })).toMatchObject({ reason: "FAILED_PRECONDITION", state: "NO_PASSWORD" });
      const { admin } = await world.org();
      expect((await refusal(admin.maintenance.setAdminPassword({ password }))).reason).toBe("ROLE_REQUIRED");
      const { secret } = await world.operator.keys.createApiKey({ role: Role.OPERATOR, scopes: ["maintenance:write"] });
      expect((await refusal(world.as(secret).maintenance.setAdminPassword({ password }))).reason).toBe(
        "SCOPE_REQUIRED",
      );
      expect((await refusal(world.operator.maintenance.setAdminPassword({ password: "short" }))).metadata.field).toBe(
        "password",
      );
      expect((await call(world, "ops.v1.SessionService/GetSession", {}, fromPage)).json).toEqual({});
      await world.operator.maintenance.setAdminPassword({ password });
      expect((await call(world, "ops.v1.SessionService/GetSession", {}, fromPage)).json).toEqual({ passwordSet: true });
      const row = await world.server.app.db.query.one<{ value: Uint8Array }>(
        sql`select value from setting where name = 'admin_password'`,
      );
      const stored = Buffer.from(row!.value).toString();
      expect(stored).toMatch(/^\$argon2id\$v=19\$m=19456,t=2,p=1\$[\w+/]{22}\$[\w+/]{43}$/);
      const { auditEvents } = await world.operator.admin.listAuditEvents({ pageSize: 1 });
      expect(auditEvents[0]?.method).toBe("moltwire.ops.v1.MaintenanceService/SetAdminPassword");
      // Field 1, a string: a digest of that could be tried as fast as a machine hashes.
      const message = Buffer.concat([Buffer.from([10, password.length]), Buffer.from(password)]);
      expect(auditEvents[0]?.requestSha256).not.toBe(createHash("sha256").update(message).digest("hex"));
    });

    test("makes the session of an operator, and letters count however they were composed", async () => {
      await world.operator.maintenance.setAdminPassword({ password: "caf\u00e9 au lait, s\u2019il vous pla\u00eet" });
      const { orgId } = await world.org();
      const { cookie, json } = await signIn(world, { password: "cafe\u0301 au lait, s\u2019il vous plai\u0302t" });
      expect(json).toMatchObject({
        session: { role: "ROLE_OPERATOR", orgId: world.server.homeOrgId, keyId: "key_password" },
      });
      const page = inBrowser(world, cookie);
      expect((await page.agents.listAgents({ orgId })).agents).toEqual([]);
      const { auditEvents } = await world.operator.admin.listAuditEvents({ pageSize: 1 });
      expect(auditEvents[0]).toMatchObject({
        method: "moltwire.ops.v1.SessionService/SignIn",
        role: Role.OPERATOR,
        keyId: "key_password",
        requestSha256: "",
      });
    });

    test("can be tried ten times a minute from an address, even where calls are not limited", async () => {
      await world.operator.maintenance.setAdminPassword({ password });
      clock.advance(60_000);
      const from = (address: string) => ({ ...fromPage, "x-forwarded-for": address });
      const wrong = { password: "incorrect horse battery" };
      for (let n = 0; n < 10; n++)
        expect(await signIn(world, wrong, from("192.0.2.7"))).toMatchObject({ status: 401, reason: "KEY_INVALID" });
      expect(await signIn(world, { password }, from("192.0.2.7"))).toMatchObject({ status: 429, setCookie: null });
      expect(await signIn(world, { password }, from("192.0.2.8"))).toMatchObject({ status: 200 });
      clock.advance(60_000);
      expect(await signIn(world, { password }, from("192.0.2.7"))).toMatchObject({ status: 200 });
    });

    test("ends the sessions that were made with the one before, and their streams; not those of keys", async () => {
      await world.operator.maintenance.setAdminPassword({ password });
      clock.advance(60_000);
      const page = inBrowser(world, (await signIn(world, { password })).cookie);
      const byKey = inBrowser(world, (await signIn(world, { apiKey: world.operatorKey })).cookie);
      const stream = page.events.watchEvents({})[Symbol.asyncIterator]();
      await stream.next();
      const ended = refusal(stream.next());
      const { endedSessions } = await world.operator.maintenance.setAdminPassword({ password: `${password}!` });
      expect(endedSessions).toBeGreaterThan(0);
      expect((await ended).reason).toBe("KEY_EXPIRED");
      expect((await refusal(page.organizations.listOrganizations({}))).reason).toBe("KEY_MISSING");
      await byKey.organizations.listOrganizations({});
      expect(await signIn(world, { password })).toMatchObject({ reason: "KEY_INVALID" });
    });

    test("makes no session that outlives it, not even one that was being made while it was changed", async () => {
      await world.operator.maintenance.setAdminPassword({ password });
      clock.advance(60_000);
      const { cookie } = await signIn(world, { password });
      const made = (await sessions()).find((row) => row.token_sha256 === digest(cookie.split("=")[1]!))!;
      await world.operator.maintenance.setAdminPassword({ password: `${password}!` });
      // As a sign-in that has checked the old one just before.
      await world.server.app.db.tx((tx) => insertSession(tx, made as SessionRow));
      expect((await refusal(inBrowser(world, cookie).organizations.listOrganizations({}))).reason).toBe("KEY_MISSING");
    });

    test("of a flood few are tried at once, and the rest is told to come again", async () => {
      clock.advance(60_000);
      const tries = Array.from({ length: 40 }, (_, n) =>
        signIn(world, { password: "a wrong password" }, { ...fromPage, "x-forwarded-for": `192.0.2.${n}` }),
      );
      const reasons = new Set((await Promise.all(tries)).map(({ reason }) => reason));
      expect([...reasons].toSorted()).toEqual(["KEY_INVALID", "OVERLOADED"]);
    });
  });

  test("the operator's key of the configuration makes a session that a start with another key ends", async () => {
    await using given = await start(dialect, { operatorKeyDigest: digest("first-key-of-the-configuration") });
    const { cookie } = await signIn(given, { apiKey: "first-key-of-the-configuration" });
    await inBrowser(given, cookie).organizations.listOrganizations({});
    (given.server.app.config as { operatorKeyDigest: string }).operatorKeyDigest = digest("another");
    expect((await refusal(inBrowser(given, cookie).organizations.listOrganizations({}))).reason).toBe("KEY_MISSING");
  });

  test("the overview counts what an organisation has and did, and nothing of others", async () => {
    const own = await world.org();
    const contractId = unique("contract");
    await addContract(world, own.orgId, { contractId });
    const worker = await own.agent({ capabilities: [contractId], endpoint: { kind: { case: "echo", value: {} } } });
    await own.admin.bus.submitTask({ contractId });
    await worker.as.queues.submitJob({ job: { queue: "mail" } });
    const found = await eventually(async () => {
      const overview = await own.admin.admin.getOverview({});
      return overview.openTasks === 0n && overview;
    });
    expect(found).toMatchObject({
      agents: 1n,
      contractVersions: 1n,
      pendingJobs: 1n,
      deadJobs: 0n,
      pendingApprovals: 0n,
    });
    expect(found.hours).toHaveLength(24);
    expect(found.hours.at(-1)).toMatchObject({ traces: 1n, allowed: 1n, denied: 0n, failedTasks: 0n });
    expect(found.hours.slice(0, -1).every(({ traces, allowed }) => traces === 0n && allowed === 0n)).toBe(true);
    expect(found.days).toHaveLength(30);
    const { admin } = await world.org();
    expect(await admin.admin.getOverview({})).toMatchObject({ agents: 0n, contractVersions: 0n, pendingJobs: 0n });
  });

  test("events come newest first when that is asked for, page by page", async () => {
    const own = await world.org();
    const contractId = unique("contract");
    await addContract(world, own.orgId, { contractId });
    await own.agent({ capabilities: [contractId], endpoint: { kind: { case: "echo", value: {} } } });
    for (let n = 0; n < 3; n++) await own.admin.bus.submitTask({ contractId });
    await world.settled();
    const { events: oldestFirst } = await own.admin.events.listEvents({});
    expect(oldestFirst).toHaveLength(3);
    const seen: string[] = [];
    for (let pageToken = ""; ; ) {
      const page = await own.admin.events.listEvents({ newestFirst: true, pageSize: 2, pageToken });
      seen.push(...page.events.map(({ eventId }) => eventId));
      if (!(pageToken = page.nextPageToken)) break;
    }
    expect(seen).toEqual(oldestFirst.map(({ eventId }) => eventId).toReversed());
    const { nextPageToken } = await own.admin.events.listEvents({ newestFirst: true, pageSize: 2 });
    expect((await refusal(own.admin.events.listEvents({ pageToken: nextPageToken }))).reason).toBe(
      "INVALID_PAGE_TOKEN",
    );
  });
});
