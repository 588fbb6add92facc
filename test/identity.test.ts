import { createHash } from "node:crypto";
import { mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Writable } from "node:stream";
import { durationFromMs, timestampFromMs, timestampMs } from "@bufbuild/protobuf/wkt";
import type { Interceptor } from "@connectrpc/connect";
import { pino } from "pino";
import { raw } from "sql-template-tag";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { BadRequestSchema } from "../gen/google/rpc/error_details_pb.ts";
import { Role } from "../gen/moltwire/api/v1/access_pb.ts";
import { CircuitState, TrustTier } from "../gen/moltwire/bus/v1/agent_pb.ts";
import { ConfigError, readConfig } from "../src/config.ts";
import { sql } from "../src/db/db.ts";
import { newKeyText } from "../src/federation/key-text.ts";
import { randomIds } from "../src/ids.ts";
import {
  type Clients,
  dialects,
  eventually,
  fakeClock,
  type Org,
  type Protocol,
  refusal,
  start,
  unique,
  type World,
} from "./harness.ts";

const hour = 3_600_000;
const reasonOf = async (call: Promise<unknown>) => (await refusal(call)).reason;
const won = (results: PromiseSettledResult<unknown>[]) => results.filter(({ status }) => status === "fulfilled");
const reasonsOf = (results: PromiseSettledResult<unknown>[]) =>
  Promise.all(
    results.flatMap((result) => (result.status === "rejected" ? [reasonOf(Promise.reject(result.reason))] : [])),
  );

/** Opens a feed and gives, once it is open, how it ends. */
async function openTail(as: Clients): Promise<{ readonly end: Promise<{ reason: string; code: string }> }> {
  const stream = as.traces.tailTraces({})[Symbol.asyncIterator]();
  await stream.next();
  return {
    end: refusal(
      (async () => {
        while (!(await stream.next()).done);
      })(),
    ),
  };
}

/** Clients whose calls a trusted proxy forwards from an address. */
const from = (world: World, address: string, key: string, protocol?: Protocol): Clients => {
  const forwarded: Interceptor = (next) => (request) => {
    request.header.set("x-forwarded-for", address);
    return next(request);
  };
  return world.as(key, protocol, [forwarded]);
};

const within = <T>(ms: number, promise: Promise<T>): Promise<T> =>
  Promise.race([
    promise,
    new Promise<never>((_, reject) => setTimeout(() => reject(new Error(`not within ${ms} ms`)), ms).unref()),
  ]);

describe.each(dialects)("%s", (dialect) => {
  const clock = fakeClock(Date.now());
  const logged: string[] = [];
  let world: World;
  let org: Org;
  beforeAll(async () => {
    const to = new Writable({ write: (chunk, _encoding, done) => void done(void logged.push(String(chunk))) });
    world = await start(dialect, { clock, trustedProxies: ["127.0.0.1"], log: pino({ level: "trace" }, to) });
    org = await world.org();
  });
  afterAll(() => world[Symbol.asyncDispose]());

  /** Every row of every table, as text. */
  async function everyTable(): Promise<string> {
    const { db } = world.server.app;
    const names = await db.query.all<{ name: string }>(
      dialect === "sqlite"
        ? sql`select name from sqlite_master where type = 'table'`
        : sql`select table_name as name from information_schema.tables where table_schema = 'public'`,
    );
    expect(names.length).toBeGreaterThan(10);
    const tables = await Promise.all(names.map(({ name }) => db.query.all<object>(sql`select * from ${raw(name)}`)));
    return JSON.stringify(tables, (_key, value: unknown) =>
      value instanceof Uint8Array
        ? Buffer.from(value).toString("latin1")
        : typeof value === "bigint"
          ? String(value)
          : value,
    );
  }

  describe("organisations", () => {
    test("one is created with its defaults, read by its administrator, and listed to the operator with all others", async () => {
      const name = unique("acme");
      const { organization } = await world.operator.organizations.createOrganization({
        name,
        metadata: { plan: "x", n: [1, null] },
      });
      expect(organization).toMatchObject({
        name,
        displayName: name,
        disabled: false,
        revision: 1n,
        metadata: { plan: "x", n: [1, null] },
      });
      expect(organization!.orgId).toMatch(/^org_[0-9a-f]{32}$/);
      expect(timestampMs(organization!.createTime!)).toBe(clock.now());
      const { organization: own } = await org.admin.organizations.getOrganization({});
      expect(own?.orgId).toBe(org.orgId);
      const mine = await org.admin.organizations.listOrganizations({});
      expect(mine.organizations.map(({ orgId }) => orgId)).toEqual([org.orgId]);
      const all = await world.operator.organizations.listOrganizations({});
      expect(all.organizations.map(({ orgId }) => orgId)).toEqual(
        expect.arrayContaining([org.orgId, organization!.orgId, world.server.homeOrgId]),
      );
    });

    test("an update changes what its mask names and nothing else; what is named and not given is emptied", async () => {
      const { admin } = await world.org();
      const before = (
        await admin.organizations.updateOrganization({
          change: { displayName: "A", metadata: { a: 1 } },
          updateMask: { paths: ["display_name", "metadata"] },
        })
      ).organization!;
      expect(before).toMatchObject({ displayName: "A", metadata: { a: 1 }, revision: 2n });
      const renamed = (
        await admin.organizations.updateOrganization({
          change: { displayName: "B", metadata: { b: 1 } },
          updateMask: { paths: ["display_name"] },
        })
      ).organization!;
      expect(renamed).toMatchObject({ displayName: "B", metadata: { a: 1 }, name: before.name, revision: 3n });
      const emptied = (
        await admin.organizations.updateOrganization({ change: {}, updateMask: { paths: ["metadata"] } })
      ).organization!;
      expect(emptied).toMatchObject({ displayName: "B", metadata: {} });
      expect((await admin.organizations.getOrganization({})).organization).toEqual(emptied);
    });

    test.each([
      [[], "update_mask"],
      [["plan"], "update_mask"],
      [["org_id"], "update_mask"],
      [["display_name", "revision"], "update_mask"],
      [["name"], "change.name"],
    ])("the mask %j with nothing given is refused, naming %s", async (paths, field) => {
      const { reason, metadata } = await refusal(
        org.admin.organizations.updateOrganization({ change: {}, updateMask: { paths } }),
      );
      expect([reason, metadata.field]).toEqual(["INVALID_REQUEST", field]);
    });

    test("an error does not repeat a path of a megabyte", async () => {
      const call = org.admin.organizations.updateOrganization({
        change: {},
        updateMask: { paths: ["x".repeat(1_000_000)] },
      });
      expect((await refusal(call)).error.message.length).toBeLessThan(500);
    });

    test("a lost update is refused, and of twenty that saw one revision one wins", async () => {
      const { admin } = await world.org();
      const update = (displayName: string) =>
        admin.organizations.updateOrganization({
          change: { displayName },
          updateMask: { paths: ["display_name"] },
          ifRevision: 1n,
        });
      const results = await Promise.allSettled(Array.from({ length: 20 }, (_, i) => update(String(i))));
      expect(won(results)).toHaveLength(1);
      expect(new Set(await reasonsOf(results))).toEqual(new Set(["FAILED_PRECONDITION"]));
      expect((await refusal(update("late"))).metadata).toMatchObject({ field: "if_revision", revision: "2" });
    });

    test("of twenty that are created under one name one is, and the others are told that it is taken", async () => {
      const name = unique("same");
      const results = await Promise.allSettled(
        Array.from({ length: 20 }, () => world.operator.organizations.createOrganization({ name })),
      );
      expect(won(results)).toHaveLength(1);
      expect(new Set(await reasonsOf(results))).toEqual(new Set(["ALREADY_EXISTS"]));
    });

    test("of twenty that are renamed to one name one is, while others are created under it", async () => {
      const name = unique("wanted");
      const orgs = await Promise.all(Array.from({ length: 20 }, () => world.org()));
      const rename = ({ admin }: Org) =>
        admin.organizations.updateOrganization({ change: { name }, updateMask: { paths: ["name"] } });
      const results = await Promise.allSettled([
        ...orgs.map(rename),
        world.operator.organizations.createOrganization({ name }),
      ]);
      expect(won(results)).toHaveLength(1);
      expect(new Set(await reasonsOf(results))).toEqual(new Set(["ALREADY_EXISTS"]));
    });

    test("only the operator disables one, and never its own", async () => {
      const change = { change: { disabled: true }, updateMask: { paths: ["disabled"] } };
      expect(await reasonOf(org.admin.organizations.updateOrganization(change))).toBe("ROLE_REQUIRED");
      const { reason, metadata } = await refusal(world.operator.organizations.updateOrganization(change));
      expect([reason, metadata.field]).toEqual(["INVALID_REQUEST", "change.disabled"]);
    });

    test("disabling one refuses its keys and ends its streams within a second; enabling it gives them back", async () => {
      const { orgId, admin, ...one } = await world.org();
      const agent = await one.agent();
      const { end } = await openTail(agent.as);
      const set = (disabled: boolean) =>
        world.operator.organizations.updateOrganization({
          orgId,
          change: { disabled },
          updateMask: { paths: ["disabled"] },
        });
      await set(true);
      expect((await within(1_000, end)).reason).toBe("KEY_REVOKED");
      expect(await reasonOf(agent.as.agents.listAgents({}))).toBe("KEY_REVOKED");
      await set(false);
      expect((await admin.organizations.getOrganization({})).organization?.disabled).toBe(false);
    });
  });

  describe("agents", () => {
    test("one is registered with its defaults and found by its id, its name and each of its capabilities", async () => {
      const { admin } = await world.org();
      const init = {
        name: "team/researcher.v2",
        description: "finds",
        capabilities: ["research", "cite"],
        allowedTools: ["web"],
        metadata: { k: "v" },
      };
      const { agent } = await admin.agents.registerAgent(init);
      expect(agent).toMatchObject({ ...init, trustTier: TrustTier.INTERNAL_RESTRICTED, disabled: false, revision: 1n });
      expect(agent!.endpoint).toBeUndefined();
      const { agent: read } = await admin.agents.getAgent({ agentId: agent!.agentId });
      expect({ ...read, circuit: undefined }).toEqual({ ...agent, circuit: undefined });
      expect(read!.circuit).toMatchObject({ state: CircuitState.CLOSED, failureCount: 0 });
      for (const filter of [
        { name: init.name },
        { capability: "research" },
        { capability: "cite" },
        { capability: "cite", name: init.name },
      ])
        expect((await admin.agents.listAgents(filter)).agents).toEqual([agent]);
      for (const filter of [
        { name: "TEAM/researcher.v2" },
        { capability: "resear" },
        { capability: "cite", name: "x" },
      ])
        expect((await admin.agents.listAgents(filter)).agents).toEqual([]);
    });

    test("an update changes what its mask names, routing included, and nothing else", async () => {
      const { admin } = await world.org();
      const endpoint = { kind: { case: "echo", value: {} } } as const;
      const { agent } = await admin.agents.registerAgent({
        name: "a",
        description: "d",
        capabilities: ["old"],
        endpoint,
        metadata: { a: 1 },
      });
      const { agentId } = agent!;
      const change = { capabilities: ["new"], trustTier: TrustTier.EXTERNAL_PARTNER, description: "other" };
      const { agent: next } = await admin.agents.updateAgent({
        agentId,
        change,
        updateMask: { paths: ["capabilities", "trust_tier"] },
      });
      expect(next).toEqual({
        ...agent,
        capabilities: ["new"],
        trustTier: TrustTier.EXTERNAL_PARTNER,
        revision: 2n,
        updateTime: next!.updateTime,
      });
      expect((await admin.agents.listAgents({ capability: "old" })).agents).toEqual([]);
      expect((await admin.agents.listAgents({ capability: "new" })).agents).toEqual([next]);
      const { agent: without } = await admin.agents.updateAgent({
        agentId,
        change: {},
        updateMask: { paths: ["endpoint", "capabilities", "description"] },
      });
      expect([without?.endpoint, without?.capabilities, without?.description, without?.metadata]).toEqual([
        undefined,
        [],
        "",
        { a: 1 },
      ]);
      for (const [paths, field] of [
        [["agent_id"], "update_mask"],
        [[], "update_mask"],
        [["name"], "change.name"],
        [["trust_tier"], "change.trust_tier"],
      ] as const) {
        const { reason, metadata } = await refusal(
          admin.agents.updateAgent({ agentId, change: {}, updateMask: { paths: [...paths] } }),
        );
        expect([reason, metadata.field]).toEqual(["INVALID_REQUEST", field]);
      }
      const stale = admin.agents.updateAgent({
        agentId,
        change: {},
        updateMask: { paths: ["metadata"] },
        ifRevision: 1n,
      });
      expect((await refusal(stale)).metadata).toMatchObject({ field: "if_revision", revision: "3" });
    });

    test("an endpoint that may not be called is refused when it is to be set, and only then", async () => {
      const { admin } = await world.org();
      const bad = (url: string) => ({ kind: { case: "http", value: { url } } }) as const;
      for (const url of ["http://169.254.169.254/", "ftp://example.com/", "http://[::ffff:10.0.0.1]/", "nonsense"]) {
        const { reason, metadata } = await refusal(admin.agents.registerAgent({ name: "bad", endpoint: bad(url) }));
        expect([url, reason, metadata.field]).toEqual([url, "ENDPOINT_REFUSED", "endpoint.http.url"]);
      }
      const { agent } = await admin.agents.registerAgent({ name: "good" });
      const update = (paths: string[]) =>
        admin.agents.updateAgent({
          agentId: agent!.agentId,
          change: { description: "d", endpoint: bad("http://10.0.0.1/") },
          updateMask: { paths },
        });
      expect((await refusal(update(["endpoint"]))).metadata.field).toBe("change.endpoint.http.url");
      expect((await update(["description"])).agent?.endpoint).toBeUndefined();
    });

    test("of twenty that register under one name one does, and the others are told that it is taken", async () => {
      const { admin } = await world.org();
      const results = await Promise.allSettled(
        Array.from({ length: 20 }, () => admin.agents.registerAgent({ name: "same" })),
      );
      expect(won(results)).toHaveLength(1);
      expect(new Set(await reasonsOf(results))).toEqual(new Set(["ALREADY_EXISTS"]));
      expect((await admin.agents.listAgents({})).agents).toHaveLength(1);
    });

    test("of twenty that are renamed to one name one is, while others register under it", async () => {
      const { admin } = await world.org();
      const ids = await Promise.all(
        Array.from(
          { length: 20 },
          async () => (await admin.agents.registerAgent({ name: unique("a") })).agent!.agentId,
        ),
      );
      const rename = (agentId: string) =>
        admin.agents.updateAgent({ agentId, change: { name: "wanted" }, updateMask: { paths: ["name"] } });
      const results = await Promise.allSettled([...ids.map(rename), admin.agents.registerAgent({ name: "wanted" })]);
      expect(won(results)).toHaveLength(1);
      expect(new Set(await reasonsOf(results))).toEqual(new Set(["ALREADY_EXISTS"]));
      expect((await admin.agents.listAgents({ name: "wanted" })).agents).toHaveLength(1);
    });

    test("deleting one revokes its keys, ends their streams, frees its name and keeps its tasks", async () => {
      const own = await world.org();
      const agent = await own.agent({ name: "gone" });
      const second = await own.admin.keys.createApiKey({ agentId: agent.agentId });
      const { end } = await openTail(agent.as);
      const bystander = await own.agent();
      // Asked what would go, it tells that, removes nothing, and leaves no audit row.
      const rows = async () => (await own.admin.admin.listAuditEvents({ pageSize: 250 })).auditEvents.length;
      const before = await rows();
      const asked = await own.admin.agents.deleteAgent({ agentId: agent.agentId, validateOnly: true });
      expect(asked.revokedApiKeys).toBe(2);
      expect((await own.admin.agents.getAgent({ agentId: agent.agentId })).agent?.agentId).toBe(agent.agentId);
      expect(await rows()).toBe(before);
      expect(await own.admin.agents.deleteAgent({ agentId: agent.agentId })).toEqual(asked);
      expect((await within(1_000, end)).reason).toBe("KEY_REVOKED");
      expect(await reasonOf(agent.as.agents.listAgents({}))).toBe("KEY_REVOKED");
      expect(await reasonOf(world.as(second.secret).agents.listAgents({}))).toBe("KEY_REVOKED");
      expect(await reasonOf(own.admin.agents.getAgent({ agentId: agent.agentId }))).toBe("NOT_FOUND");
      expect(await reasonOf(own.admin.agents.deleteAgent({ agentId: agent.agentId }))).toBe("NOT_FOUND");
      expect(await reasonOf(own.admin.keys.createApiKey({ agentId: agent.agentId }))).toBe("NOT_FOUND");
      await bystander.as.agents.listAgents({});
      await own.agent({ name: "gone" });
    });

    test.each(["made", "rotated"])(
      "no key outlives its agent when it is %s while the agent is deleted",
      async (how) => {
        const own = await world.org();
        for (let round = 0; round < 12; round++) {
          const { agentId } = await own.agent();
          const make = () => own.admin.keys.createApiKey({ agentId });
          const old = await Promise.all(how === "rotated" ? [make(), make(), make(), make()] : []);
          const rotate = (keyId: string) => own.admin.keys.rotateApiKey({ keyId });
          const [, ...made] = await Promise.allSettled([
            own.admin.agents.deleteAgent({ agentId }),
            ...(how === "rotated" ? old.map(({ apiKey }) => rotate(apiKey!.keyId)) : [make(), make(), make(), make()]),
          ]);
          for (const result of made) {
            if (result.status === "rejected")
              expect(["NOT_FOUND", "FAILED_PRECONDITION"]).toContain(await reasonOf(Promise.reject(result.reason)));
            else expect(await reasonOf(world.as(result.value.secret).agents.listAgents({}))).toBe("KEY_REVOKED");
          }
        }
      },
    );
  });

  describe("pages", () => {
    let pages: Org;
    beforeAll(async () => {
      pages = await world.org();
      for (let i = 0; i < 25; i++)
        await pages.admin.agents.registerAgent({ name: `agent-${i}`, capabilities: [i % 2 ? "odd" : "even"] });
      for (let i = 0; i < 4; i++) await pages.admin.keys.createApiKey({ name: `key-${i}` });
    });

    test("walking them sees everything once, oldest first, also what a filter lets through", async () => {
      const walk = async (filter: object, pageSize: number) => {
        const names: string[] = [];
        for (let pageToken = ""; ; ) {
          const page = await pages.admin.agents.listAgents({ ...filter, pageSize, pageToken });
          expect(page.agents.length).toBeLessThanOrEqual(pageSize);
          names.push(...page.agents.map(({ name }) => name));
          pageToken = page.nextPageToken;
          if (!pageToken) return names;
        }
      };
      const all = Array.from({ length: 25 }, (_, i) => `agent-${i}`);
      for (const size of [1, 7, 24, 25, 26, 250]) expect(await walk({}, size)).toEqual(all);
      expect(await walk({ capability: "odd" }, 5)).toEqual(all.filter((_, i) => i % 2));
      expect((await pages.admin.agents.listAgents({})).agents).toHaveLength(25);
    });

    test("a token that was touched anywhere, or is of another method or filter, is refused", async () => {
      const { nextPageToken: token } = await pages.admin.agents.listAgents({ pageSize: 2 });
      const { nextPageToken: ofKeys } = await pages.admin.keys.listApiKeys({ pageSize: 2 });
      const { nextPageToken: ofOdd } = await pages.admin.agents.listAgents({ pageSize: 2, capability: "odd" });
      const letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
      const touched = [...token].map(
        (letter, i) => token.slice(0, i) + letters[letters.indexOf(letter) ^ 1] + token.slice(i + 1),
      );
      const wrong = [
        ...touched,
        token.slice(1),
        token.slice(0, -1),
        `${token}A`,
        `${token}=`,
        ` ${token}`,
        `${token}\n`,
        "A",
        "%",
        ofKeys,
        ofOdd,
      ];
      const results = await Promise.all(
        wrong.map((pageToken) => refusal(pages.admin.agents.listAgents({ pageSize: 2, pageToken }))),
      );
      expect(new Set(results.map(({ reason, metadata }) => `${reason} ${metadata.field}`))).toEqual(
        new Set(["INVALID_PAGE_TOKEN page_token"]),
      );
      expect(await reasonOf(pages.admin.agents.listAgents({ capability: "odd", pageToken: token }))).toBe(
        "INVALID_PAGE_TOKEN",
      );
      expect(await reasonOf(pages.admin.keys.listApiKeys({ pageToken: token }))).toBe("INVALID_PAGE_TOKEN");
      expect((await pages.admin.agents.listAgents({ pageSize: 3, pageToken: token })).agents).toHaveLength(3);
    });

    test.each([-1, 251])("a page size of %d is refused, naming the field", async (pageSize) => {
      expect((await refusal(pages.admin.agents.listAgents({ pageSize }))).metadata.field).toBe("page_size");
    });
  });

  describe("keys", () => {
    test("the secret is shown once, holds the id of its key and is in no list", async () => {
      const { secret, apiKey } = await org.admin.keys.createApiKey({ name: "once", scopes: ["tasks:read"] });
      expect(secret).toMatch(/^mw_[0-9a-f]{32}[0-9A-Za-z]{38}$/);
      expect(secret).toContain(apiKey!.keyId.slice(4));
      expect(apiKey).toMatchObject({
        name: "once",
        role: Role.ORG,
        scopes: ["tasks:read"],
        orgId: org.orgId,
        agentId: "",
      });
      const { apiKeys } = await org.admin.keys.listApiKeys({ pageSize: 250 });
      expect(apiKeys).toContainEqual(apiKey);
      expect(JSON.stringify(apiKeys.map((key) => Object.values(key).map(String)))).not.toContain(secret.slice(35));
    });

    test("keys are found by how they begin, as they are shown and as they are written, also page by page", async () => {
      const own = await world.org();
      const made = [];
      for (let i = 0; i < 5; i++) {
        made.push(await own.admin.keys.createApiKey({}));
        clock.advance(1_000); // so that what their ids begin with differs
      }
      const { secret, apiKey } = made[3]!;
      const list = async (prefix: string) =>
        (await own.admin.keys.listApiKeys({ prefix })).apiKeys.map(({ keyId }) => keyId);
      for (const length of [4, 14, 20, 36]) {
        const prefix = apiKey!.keyId.slice(0, length);
        const all = await list("");
        expect(await list(prefix)).toEqual(all.filter((keyId) => keyId.startsWith(prefix)));
        expect(await list(prefix.replace("key_", "mw_"))).toEqual(await list(prefix));
      }
      expect(await list(apiKey!.keyId)).toEqual([apiKey!.keyId]);
      expect(await list("key_f")).toEqual([]);
      const prefix = "mw_0";
      const first = await own.admin.keys.listApiKeys({ prefix, pageSize: 4 });
      const second = await own.admin.keys.listApiKeys({ prefix, pageSize: 4, pageToken: first.nextPageToken });
      expect([...first.apiKeys, ...second.apiKeys]).toHaveLength(6);
      expect(await reasonOf(own.admin.keys.listApiKeys({ pageToken: first.nextPageToken }))).toBe("INVALID_PAGE_TOKEN");
      const { metadata, error } = await refusal(own.admin.keys.listApiKeys({ prefix: secret }));
      expect([metadata.field, error.message.includes(secret.slice(35))]).toEqual(["prefix", false]);
      for (const bad of ["0a", "mw_G", "key_%"]) expect((await refusal(list(bad))).metadata.field).toBe("prefix");
    });

    test("a rotated key and its follower both work during the overlap, then only the follower does", async () => {
      const { secret: old, apiKey } = await org.admin.keys.createApiKey({ name: "r", scopes: ["agents:read"] });
      const {
        apiKey: next,
        secret,
        oldKeyExpireTime,
      } = await org.admin.keys.rotateApiKey({ keyId: apiKey!.keyId, overlap: durationFromMs(hour) });
      expect(next).toMatchObject({
        name: "r",
        scopes: ["agents:read"],
        role: Role.ORG,
        rotatedFromKeyId: apiKey!.keyId,
      });
      expect(timestampMs(oldKeyExpireTime!)).toBe(clock.now() + hour);
      const use = (key: string) => world.as(key).agents.listAgents({});
      clock.advance(hour - 1);
      await Promise.all([use(old), use(secret)]);
      clock.advance(1);
      expect(await reasonOf(use(old))).toBe("KEY_EXPIRED");
      await use(secret);
      expect(await reasonOf(org.admin.keys.rotateApiKey({ keyId: apiKey!.keyId }))).toBe("FAILED_PRECONDITION");
    });

    test("the overlap is a day unless it is told, may be nothing, and never makes a key live longer", async () => {
      const make = async (init = {}) => (await org.admin.keys.createApiKey(init)).apiKey!.keyId;
      const ends = async (keyId: string, overlap?: number) =>
        timestampMs(
          (
            await org.admin.keys.rotateApiKey({
              keyId,
              ...(overlap !== undefined && { overlap: durationFromMs(overlap) }),
            })
          ).oldKeyExpireTime!,
        ) - clock.now();
      expect(await ends(await make())).toBe(24 * hour);
      expect(await ends(await make(), 0)).toBe(0);
      expect(await ends(await make({ expireTime: timestampFromMs(clock.now() + 1_000) }), hour)).toBe(1_000);
      const tooLong = org.admin.keys.rotateApiKey({ keyId: await make(), overlap: durationFromMs(31 * 24 * hour) });
      expect((await refusal(tooLong)).metadata.field).toBe("overlap");
    });

    test("an expired key is refused from its instant on", async () => {
      const { secret } = await org.admin.keys.createApiKey({ expireTime: timestampFromMs(clock.now() + 1_000) });
      await world.as(secret).agents.listAgents({});
      clock.advance(999);
      await world.as(secret).agents.listAgents({});
      clock.advance(1);
      expect(await reasonOf(world.as(secret).agents.listAgents({}))).toBe("KEY_EXPIRED");
    });

    test.each([
      ["now", () => timestampFromMs(clock.now())],
      ["the year 10000", () => ({ seconds: 253_402_300_800n })],
      ["seconds beyond all clocks", () => ({ seconds: 10n ** 18n })],
      ["nanos of more than a second", () => ({ seconds: 4_000_000_000n, nanos: 2_000_000_000 })],
    ])("an expiry at %s is refused, naming the field", async (_what, expireTime) => {
      const { reason, metadata } = await refusal(org.admin.keys.createApiKey({ expireTime: expireTime() }));
      expect([reason, metadata.field]).toEqual(["INVALID_REQUEST", "expire_time"]);
    });

    test("revoking one ends its open stream within a second, and revoking it again changes nothing", async () => {
      const agent = await org.agent();
      const { apiKeys } = await org.admin.keys.listApiKeys({ agentId: agent.agentId });
      const { end } = await openTail(agent.as);
      const { apiKey } = await org.admin.keys.revokeApiKey({ keyId: apiKeys[0]!.keyId });
      expect(await within(1_000, end)).toMatchObject({ reason: "KEY_REVOKED", code: "Unauthenticated" });
      expect(await reasonOf(agent.as.agents.listAgents({}))).toBe("KEY_REVOKED");
      clock.advance(5_000);
      expect((await org.admin.keys.revokeApiKey({ keyId: apiKeys[0]!.keyId })).apiKey).toEqual(apiKey);
    });

    test("a stream ends when its key expires, also when a rotation brings that forward", async () => {
      const expiring = await org.admin.keys.createApiKey({ expireTime: timestampFromMs(clock.now() + 100) });
      const rotated = await org.admin.keys.createApiKey({});
      const [one, other] = [await openTail(world.as(expiring.secret)), await openTail(world.as(rotated.secret))];
      await org.admin.keys.rotateApiKey({ keyId: rotated.apiKey!.keyId, overlap: durationFromMs(0) });
      expect((await within(1_000, other.end)).reason).toBe("KEY_EXPIRED");
      clock.advance(100);
      expect((await within(1_000, one.end)).reason).toBe("KEY_EXPIRED");
    });

    test("a key makes no key of a higher role, and neither rotates nor revokes one", async () => {
      expect(await reasonOf(org.admin.keys.createApiKey({ role: Role.OPERATOR }))).toBe("ROLE_REQUIRED");
      const { apiKey } = await world.operator.keys.createApiKey({ orgId: org.orgId, role: Role.OPERATOR });
      expect(await reasonOf(org.admin.keys.rotateApiKey({ keyId: apiKey!.keyId }))).toBe("ROLE_REQUIRED");
      expect(await reasonOf(org.admin.keys.revokeApiKey({ keyId: apiKey!.keyId }))).toBe("ROLE_REQUIRED");
      await world.operator.keys.revokeApiKey({ orgId: org.orgId, keyId: apiKey!.keyId });
    });

    test("a scoped key makes and rotates only keys that hold no other scope", async () => {
      const { secret } = await org.admin.keys.createApiKey({ scopes: ["keys:write", "tasks:*"] });
      const { keys } = world.as(secret);
      for (const scopes of [[], ["*:*"], ["keys:*"], ["agents:read"], ["tasks:read", "agents:read"], ["*:write"]])
        expect([scopes, await reasonOf(keys.createApiKey({ scopes }))]).toEqual([scopes, "SCOPE_REQUIRED"]);
      for (const scopes of [["keys:write"], ["tasks:*"], ["tasks:read", "tasks:serve"]])
        expect((await keys.createApiKey({ scopes })).apiKey?.scopes).toEqual(scopes);
      const { apiKey: whole } = await org.admin.keys.createApiKey({});
      expect(await reasonOf(keys.rotateApiKey({ keyId: whole!.keyId }))).toBe("SCOPE_REQUIRED");
    });

    test("a key that is bound to networks is refused from elsewhere over every protocol, which only who holds all of it learns", async () => {
      const allowedNetworks = ["203.0.113.0/24", "198.51.100.7", "2001:db8::/32"];
      const { secret, apiKey } = await org.admin.keys.createApiKey({ allowedNetworks });
      const { keyId } = apiKey!;
      expect((await org.admin.keys.getApiKey({ keyId })).apiKey?.allowedNetworks).toEqual(allowedNetworks);
      const wrong = newKeyText(keyId, randomIds()).text;
      for (const protocol of ["connect", "connect-json", "grpc", "grpc-web"] as const) {
        for (const address of [
          "203.0.113.7",
          "::ffff:203.0.113.255",
          "::ffff:cb00:7107",
          "198.51.100.7",
          "2001:db8::7",
        ])
          await from(world, address, secret, protocol).agents.listAgents({});
        for (const address of ["203.0.114.1", "198.51.100.8", "2001:db9::7", "::203.0.113.7"]) {
          const { code, reason, metadata } = await refusal(
            from(world, address, secret, protocol).agents.listAgents({}),
          );
          expect([protocol, code, reason, metadata.key_id]).toEqual([
            ...[protocol, "PermissionDenied", "KEY_NETWORK_REFUSED", keyId],
          ]);
          expect(metadata.address).toBe(address);
          const stream = from(world, address, secret, protocol).traces.tailTraces({})[Symbol.asyncIterator]();
          expect(await reasonOf(stream.next())).toBe("KEY_NETWORK_REFUSED");
          expect(await reasonOf(from(world, address, wrong, protocol).agents.listAgents({}))).toBe("KEY_INVALID");
        }
      }
    });

    test("the page of metrics is bound as all else is", async () => {
      const { secret } = await world.operator.keys.createApiKey({
        ...{ role: Role.OPERATOR, allowedNetworks: ["203.0.113.0/24"] },
      });
      const status = async (address: string) => {
        const headers = { "x-forwarded-for": address, "x-api-key": secret };
        const answer = await fetch(`${world.url}/metrics`, { headers });
        await answer.text();
        return answer.status;
      };
      expect([await status("203.0.113.7"), await status("203.0.114.7")]).toEqual([200, 403]);
    });

    test("the next call is bound by the list as it was changed; a stream that is open goes on until the key ends", async () => {
      const bind = (allowedNetworks: string[]) =>
        org.admin.keys.updateApiKey({
          ...{ keyId, change: { allowedNetworks }, updateMask: { paths: ["allowed_networks"] } },
        });
      const { secret, apiKey } = await org.admin.keys.createApiKey({ allowedNetworks: ["203.0.113.7"] });
      const { keyId } = apiKey!;
      const one = from(world, "203.0.113.7", secret);
      const { end } = await openTail(one);
      expect((await bind(["198.51.100.0/24"])).apiKey?.allowedNetworks).toEqual(["198.51.100.0/24"]);
      expect(await reasonOf(one.agents.listAgents({}))).toBe("KEY_NETWORK_REFUSED");
      await from(world, "198.51.100.1", secret).agents.listAgents({});
      // Its key is looked at again.
      const next = await org.admin.keys.rotateApiKey({ keyId });
      expect(next.apiKey?.allowedNetworks).toEqual(["198.51.100.0/24"]);
      expect(await reasonOf(world.as(next.secret).agents.listAgents({}))).toBe("KEY_NETWORK_REFUSED");
      await bind([]);
      await one.agents.listAgents({});
      await org.admin.keys.revokeApiKey({ keyId });
      expect((await end).reason).toBe("KEY_REVOKED");
      expect(await reasonOf(bind([]))).toBe("FAILED_PRECONDITION");
    });

    test("a key that is bound to networks gives nobody a key that is not bound within them", async () => {
      const { secret } = await org.admin.keys.createApiKey({ allowedNetworks: ["203.0.113.0/24", "2001:db8::/32"] });
      const { keys } = from(world, "203.0.113.7", secret);
      const within = ["203.0.113.128/25", "2001:db8:1::/48", "::ffff:203.0.113.0/120"];
      const { apiKey } = await keys.createApiKey({ allowedNetworks: within });
      const { keyId } = apiKey!;
      const { apiKey: free } = await org.admin.keys.createApiKey({});
      expect(await reasonOf(keys.rotateApiKey({ keyId: free!.keyId }))).toBe("KEY_NETWORK_REFUSED");
      expect((await keys.rotateApiKey({ keyId })).apiKey?.allowedNetworks).toEqual(within);
      for (const wider of [[], ["0.0.0.0/0"], ["203.0.112.0/23"], ["203.0.113.7", "::/0"]]) {
        const change = { allowedNetworks: wider };
        expect(await reasonOf(keys.createApiKey(change))).toBe("KEY_NETWORK_REFUSED");
        const updateMask = { paths: ["allowed_networks"] };
        expect(await reasonOf(keys.updateApiKey({ keyId, change, updateMask }))).toBe("KEY_NETWORK_REFUSED");
      }
    });

    test("a key that is bound to networks lets nobody in from elsewhere by an invite or the password", async () => {
      const allowedNetworks = ["203.0.113.0/24"];
      const { secret } = await org.admin.keys.createApiKey({ allowedNetworks });
      const { directory } = from(world, "203.0.113.7", secret);
      const { invite, secret: invitation } = await directory.createInvite({});
      expect(invite!.allowedNetworks).toEqual(allowedNetworks);
      expect((await org.admin.directory.listInvites({})).invites[0]).toEqual(invite);
      const joined = await world.as(undefined).directory.register({ name: unique("guest"), invite: invitation });
      expect(await reasonOf(from(world, "203.0.114.7", joined.apiKey).directory.listAgents({}))).toBe(
        "KEY_NETWORK_REFUSED",
      );
      await from(world, "203.0.113.8", joined.apiKey).directory.listAgents({});
      const bound = await world.operator.keys.createApiKey({ role: Role.OPERATOR, allowedNetworks });
      const { maintenance } = from(world, "203.0.113.7", bound.secret);
      const password = "a long enough password";
      expect(await reasonOf(maintenance.setAdminPassword({ password }))).toBe("KEY_NETWORK_REFUSED");
    });

    test.each([
      [["10.0.0.0/8", "10.0.0.1/8"], "allowed_networks[1]"],
      [["::ffff:10.0.0.0/95"], "allowed_networks[0]"],
      [["10.0.0.0/33"], "allowed_networks[0]"],
      [["2001:db8::/129"], "allowed_networks[0]"],
      [["example.com"], "allowed_networks[0]"],
      [["fe80::1%eth0"], "allowed_networks[0]"],
      [["10.0.0.1", "10.0.0.1"], "allowed_networks"],
      [Array.from({ length: 33 }, (_, i) => `10.0.0.${i}`), "allowed_networks"],
    ])("the networks %j are refused, naming %s", async (allowedNetworks, field) => {
      const { reason, metadata } = await refusal(org.admin.keys.createApiKey({ allowedNetworks }));
      expect([reason, metadata.field]).toEqual(["INVALID_REQUEST", field]);
    });

    test.each([
      [{ role: Role.AGENT }, "agent_id"],
      [{ role: Role.PUBLIC }, "role"],
      [{ role: 9 as Role }, "role"],
      [{ scopes: ["tasks:read", "Tasks:read"] }, "scopes[1]"],
      [{ scopes: ["a:b", "a:b"] }, "scopes"],
      [{ name: "x".repeat(129) }, "name"],
    ])("the key %j is refused, naming %s", async (init, field) => {
      const { reason, metadata } = await refusal(org.admin.keys.createApiKey(init));
      expect([reason, metadata.field]).toEqual(["INVALID_REQUEST", field]);
    });

    test("an administrator's key is bound to no agent", async () => {
      const { agentId } = await org.agent();
      expect((await refusal(org.admin.keys.createApiKey({ role: Role.ORG, agentId }))).metadata.field).toBe("agent_id");
    });

    test("the last use is told once it is written down, and a refused key is not used", async () => {
      const { secret, apiKey } = await org.admin.keys.createApiKey({});
      const lastUse = async () => {
        await world.server.app.keyUse.flush();
        const { apiKeys } = await org.admin.keys.listApiKeys({ pageSize: 250 });
        return apiKeys.find(({ keyId }) => keyId === apiKey!.keyId)!.lastUsedTime;
      };
      expect(await lastUse()).toBeUndefined();
      const usedMs = clock.now();
      await world.as(secret).agents.listAgents({});
      await org.admin.keys.revokeApiKey({ keyId: apiKey!.keyId });
      clock.advance(hour);
      expect(await reasonOf(world.as(secret).agents.listAgents({}))).toBe("KEY_REVOKED");
      expect(timestampMs(await eventually(lastUse))).toBe(usedMs); // a flush of the server's own may be under way
    });

    test("what is stored of a key is its SHA-256, and no log line holds a secret", async () => {
      const agent = await org.agent();
      await agent.as.agents.listAgents({});
      const headers = { "idempotency-key": unique("secret") };
      const { secret, apiKey } = await org.admin.keys.createApiKey({}, { headers });
      const rotated = await org.admin.keys.rotateApiKey({ keyId: apiKey!.keyId }, { headers });
      await refusal(world.as(`${agent.key.slice(0, -1)}!`).agents.listAgents({}));
      await refusal(agent.as.admin.listAuditEvents({}));
      const secrets = [agent.key, secret, rotated.secret, org.adminKey, world.operatorKey];
      const tables = await everyTable();
      expect(logged.join("")).toContain("AgentService/ListAgents");
      for (const one of secrets) {
        expect(tables).toContain(createHash("sha256").update(one).digest("hex"));
        for (const place of [tables, logged.join("")]) expect(place).not.toContain(one.slice(35, 67));
      }
    });
  });

  describe("limits", () => {
    const deep = (levels: number): object => (levels === 0 ? {} : { a: deep(levels - 1) });
    test.each([
      ["an empty name", { name: "" }, "name"],
      ["a name of 129 letters", { name: "n".repeat(129) }, "name"],
      ["a name with a space", { name: "a b" }, "name"],
      ["a description of 513 letters", { description: "d".repeat(513) }, "description"],
      ["a NUL character", { description: "a\0b" }, "description"],
      ["a NUL character in a list", { allowedTools: ["a", "b\0"] }, "allowed_tools[1]"],
      [
        "a NUL character in a message",
        { endpoint: { kind: { case: "http" as const, value: { url: "http://a\0" } } } },
        "endpoint.url",
      ],
      ["51 capabilities", { capabilities: Array.from({ length: 51 }, (_, i) => `c${i}`) }, "capabilities"],
      ["a capability twice", { capabilities: ["a", "a"] }, "capabilities"],
      ["a bad capability", { capabilities: ["a", "b c"] }, "capabilities[1]"],
      ["a trust tier that is none", { trustTier: 9 as TrustTier }, "trust_tier"],
      ["an endpoint of no kind", { endpoint: {} }, "endpoint.kind"],
      ["metadata of more than 16 KiB", { metadata: { a: "x".repeat(16_384) } }, "metadata"],
      ["metadata with NaN", { metadata: { a: [Number.NaN] } }, "metadata"],
      ["metadata of 25 levels", { metadata: deep(25) as never }, "metadata"],
    ])("%s is refused, naming the field", async (_what, init, field) => {
      const { reason, metadata, error } = await refusal(org.admin.agents.registerAgent({ name: "limited", ...init }));
      const [bad] = error.findDetails(BadRequestSchema);
      expect([reason, metadata.field, bad?.fieldViolations[0]?.field]).toEqual([
        "INVALID_REQUEST",
        field.replace("endpoint.url", "endpoint.http.url"),
        field.replace("endpoint.url", "endpoint.http.url"),
      ]);
    });

    test("every wrong field is named, not only the first", async () => {
      const { error } = await refusal(
        org.admin.agents.registerAgent({ name: "", description: "d".repeat(600), capabilities: [""] }),
      );
      const [bad] = error.findDetails(BadRequestSchema);
      expect(new Set(bad!.fieldViolations.map(({ field }) => field))).toEqual(
        new Set(["name", "description", "capabilities[0]"]),
      );
    });

    test("metadata of 24 levels, of any keys and with NUL characters is kept as it is, for every protocol", async () => {
      const metadata = { deep: deep(22), __proto__: undefined, nul: "\0", "\0": 1, emoji: "🦀", "": [] } as never;
      const { agent } = await org.admin.agents.registerAgent({ name: unique("m"), metadata });
      for (const protocol of ["connect", "connect-json", "grpc", "grpc-web"] as const) {
        const got = await world.as(org.adminKey, protocol).agents.getAgent({ agentId: agent!.agentId });
        expect(got.agent?.metadata).toEqual(agent!.metadata);
      }
    });

    test("input that JSON cannot say is refused by SubmitTask, naming the field", async () => {
      const number = { kind: { case: "numberValue" as const, value: Number.POSITIVE_INFINITY } };
      const list = { kind: { case: "listValue" as const, value: { values: [{ kind: { case: undefined } }] } } };
      const struct = { kind: { case: "structValue" as const, value: { fields: { a: number } } } };
      for (const input of [number, list, struct]) {
        const { reason, metadata } = await refusal(
          world.operator.bus.submitTask({ contractId: "echo", contractVersion: "1.0.0", input }),
        );
        expect([reason, metadata.field]).toEqual(["INVALID_REQUEST", "input"]);
      }
    });

    test.each([
      [
        "bytes that are no UTF-8",
        "application/proto",
        Uint8Array.of(0x12, 1, 0x61, 0x1a, 2, 0xff, 0xfe),
        "invalid_argument",
      ],
      ["half a surrogate pair in a field", "application/json", '{"name":"a","description":"\\ud800"}', "description"],
      [
        "half a surrogate pair in metadata",
        "application/json",
        '{"name":"a","metadata":{"a":["\\ud800"]}}',
        "metadata: ",
      ],
      [
        "half a surrogate pair in a key of metadata",
        "application/json",
        '{"name":"a","metadata":{"a":{"\\ud800":1}}}',
        "metadata: ",
      ],
    ])("%s: refused", async (_what, contentType, body, told) => {
      const answer = await fetch(`${world.url}/moltwire.bus.v1.AgentService/RegisterAgent`, {
        method: "POST",
        headers: { authorization: `Bearer ${org.adminKey}`, "content-type": contentType },
        body,
      });
      expect([answer.status, await answer.text()]).toEqual([400, expect.stringContaining(told)]);
    });
  });

  describe("the operator's key", () => {
    const given = "Correct-Horse/Battery+Staple_9876543210";
    test("one that is given works, and none is made beside it", async () => {
      const { operatorKeyDigest } = readConfig([], { MOLTWIRE_OPERATOR_KEY: given });
      await using other = await start(dialect, { operatorKeyDigest });
      expect(other.server.operatorKey).toBeUndefined();
      const operator = other.as(given);
      expect((await operator.status.getStatus({})).details?.organizations).toBe(1n);
      expect((await operator.keys.listApiKeys({})).apiKeys).toEqual([]);
      expect(await reasonOf(other.as(`${given}x`).organizations.listOrganizations({}))).toBe("KEY_INVALID");
      const { organization } = await operator.organizations.createOrganization({ name: "made" });
      const { auditEvents } = await operator.admin.listAuditEvents({});
      expect(auditEvents[0]).toMatchObject({ keyId: "key_configured", resource: { org_id: organization!.orgId } });
    });

    test("one that is made is told at the first start of a database and never again", async () => {
      if (dialect !== "sqlite") return;
      const data = mkdtempSync(join(tmpdir(), "moltwire-identity-"));
      try {
        const first = await start(dialect, { data });
        const key = first.server.operatorKey!;
        await first.operator.organizations.createOrganization({ name: "kept" });
        await first[Symbol.asyncDispose]();
        const again = await start(dialect, { data });
        expect(again.server.operatorKey).toBeUndefined();
        const { organizations } = await again.as(key).organizations.listOrganizations({});
        expect(organizations.map(({ name }) => name)).toEqual(["home", "kept"]);
        await again[Symbol.asyncDispose]();
        const files = readdirSync(data).map((file) => readFileSync(join(data, file), "latin1"));
        expect(files.some((bytes) => bytes.includes(createHash("sha256").update(key).digest("hex")))).toBe(true);
        for (const bytes of files) expect(bytes).not.toContain(key.slice(35));
      } finally {
        rmSync(data, { recursive: true });
      }
    });
  });
});

describe("a setting that is wrong stops the start with its name, its fault and the fix", () => {
  test.each([
    [{ MOLTWIRE_OPERATOR_KEY: "short" }, /MOLTWIRE_OPERATOR_KEY.*weak.*openssl rand -hex 32/],
    [{ MOLTWIRE_OPERATOR_KEY: "a".repeat(64) }, /MOLTWIRE_OPERATOR_KEY.*weak.*openssl rand -hex 32/],
    [{ MOLTWIRE_OPERATOR_KEY: `${"abcdefghijklmnop".repeat(2)} x` }, /MOLTWIRE_OPERATOR_KEY.*without spaces/],
    [{ MOLTWIRE_PORT: "http" }, /MOLTWIRE_PORT \(--port\).*0 to 65535/],
    [{ MOLTWIRE_PORT: "65536" }, /MOLTWIRE_PORT \(--port\).*0 to 65535/],
    [{ MOLTWIRE_PORT: "1e3" }, /MOLTWIRE_PORT \(--port\).*whole number/],
    [{ MOLTWIRE_RATE_LIMIT: "-1" }, /MOLTWIRE_RATE_LIMIT.*0 to 100000/],
    [
      { MOLTWIRE_RATE_LIMIT_TIERS: "PUBLIC_VENDOR=60,GOLD=5" },
      /MOLTWIRE_RATE_LIMIT_TIERS.*"GOLD=5" names no tier.*INTERNAL_TRUSTED/,
    ],
    [{ MOLTWIRE_RATE_LIMIT_TIERS: "public_vendor" }, /MOLTWIRE_RATE_LIMIT_TIERS.*"public_vendor" names no tier/],
    [{ MOLTWIRE_RATE_LIMIT_TIERS: "UNSPECIFIED=5" }, /MOLTWIRE_RATE_LIMIT_TIERS.*"UNSPECIFIED=5" names no tier/],
    [
      { MOLTWIRE_RATE_LIMIT_TIERS: "PUBLIC_VENDOR=6e1" },
      /MOLTWIRE_RATE_LIMIT_TIERS.*"PUBLIC_VENDOR=6e1" has no limit.*0 to 100000/,
    ],
    [
      { MOLTWIRE_RATE_LIMIT_TIERS: "PUBLIC_VENDOR=100001" },
      /MOLTWIRE_RATE_LIMIT_TIERS.*"PUBLIC_VENDOR=100001" has no limit/,
    ],
    [
      { MOLTWIRE_RATE_LIMIT_TIERS: "PUBLIC_VENDOR=0, public_vendor=5" },
      /MOLTWIRE_RATE_LIMIT_TIERS.*"public_vendor=5" names its tier again/,
    ],
    [{ MOLTWIRE_LOG_LEVEL: "loud" }, /MOLTWIRE_LOG_LEVEL.*fatal, error, warn/],
    [{ MOLTWIRE_DATABASE_URL: "mysql://x" }, /MOLTWIRE_DATABASE_URL.*postgres:\/\/user:password@host:port\/database/],
    [{ MOLTWIRE_EGRESS_ALLOW: "10.0.0.0/99" }, /MOLTWIRE_EGRESS_ALLOW/],
    [{ MOLTWIRE_PROT: "1" }, /MOLTWIRE_PROT.*no such setting[\s\S]*--help/],
  ])("%j", (env, message) => {
    expect(() => readConfig([], env)).toThrow(ConfigError);
    expect(() => readConfig([], env)).toThrow(message);
  });

  test("the limit of requests is 120, and tiers have others only where they are given", () => {
    expect(readConfig([], {})).toMatchObject({ rateLimit: 120, rateLimitTiers: {} });
    const { rateLimit, rateLimitTiers } = readConfig([], {
      MOLTWIRE_RATE_LIMIT_TIERS: "internal_trusted=600, PUBLIC_VENDOR = 0,",
    });
    expect(rateLimit).toBe(120);
    expect(rateLimitTiers).toEqual({ [TrustTier.INTERNAL_TRUSTED]: 600, [TrustTier.PUBLIC_VENDOR]: 0 });
  });

  test("as flags too, which win over variables; an empty one is not set", () => {
    expect(() => readConfig(["--port", "x"], {})).toThrow(/MOLTWIRE_PORT \(--port\)/);
    expect(() => readConfig(["--prot", "1"], {})).toThrow(/--prot/);
    expect(readConfig(["--port", "1"], { MOLTWIRE_PORT: "2" }).port).toBe(1);
    expect(readConfig([], { MOLTWIRE_PORT: "", OTHER: "x", MOLTWIRE_URL: "http://x" }).port).toBe(6658);
  });

  test("a wrong secret is not repeated", () => {
    const secret = "hunter2-hunter2";
    for (const env of [{ MOLTWIRE_OPERATOR_KEY: secret }, { MOLTWIRE_DATABASE_URL: `mysql://u:${secret}@h` }])
      expect(() => readConfig([], env)).toThrow(
        expect.objectContaining({ message: expect.not.stringContaining(secret) }),
      );
  });
});
