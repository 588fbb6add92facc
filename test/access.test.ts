import { once } from "node:events";
import { connect as connectHttp2 } from "node:http2";
import { connect as connectTcp } from "node:net";
import type { DescMethod, DescService } from "@bufbuild/protobuf";
import { getOption, hasOption } from "@bufbuild/protobuf";
import { MethodOptions_IdempotencyLevel as Idempotency, timestampFromMs } from "@bufbuild/protobuf/wkt";
import { Code, ConnectError, type ConnectRouter, createClient, type Transport } from "@connectrpc/connect";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { ErrorInfoSchema } from "../gen/google/rpc/error_details_pb.ts";
import { Health } from "../gen/grpc/health/v1/health_pb.ts";
import { ServerReflection } from "../gen/grpc/reflection/v1/reflection_pb.ts";
import { ServerReflection as ServerReflectionAlpha } from "../gen/grpc/reflection/v1alpha/reflection_pb.ts";
import { access, Kind, Role } from "../gen/moltwire/api/v1/access_pb.ts";
import { newKeyText } from "../src/federation/key-text.ts";
import { randomIds } from "../src/ids.ts";
import { roleName } from "../src/rpc/access.ts";
import { services } from "../src/services.ts";
import { ConformanceService } from "./conformance/gen/connectrpc/conformance/v1/service_pb.ts";
import { dialects, fakeClock, type Protocol, start, transport, type World } from "./harness.ts";
import { minimalRequest } from "./rpc-fixtures/requests.ts";

const foreign: readonly DescService[] = [Health, ServerReflection, ServerReflectionAlpha];
const methodsOf = (of: readonly DescService[]) =>
  of.flatMap((service) => service.methods.map((method) => ({ name: `${service.typeName}/${method.name}`, method })));
const own = methodsOf(services);

describe("every method of moltwire declares", () => {
  test.each(own)("$name: role, scope and kind, fitting its shape", ({ method }) => {
    expect(hasOption(method, access)).toBe(true);
    const { role, scope, kind, audited, items } = getOption(method, access);
    if (items) expect(method.input.fields.find(({ name }) => name === items)?.fieldKind).toBe("list");
    expect(role).not.toBe(Role.UNSPECIFIED);
    expect(scope).toMatch(/^[a-z_]+:[a-z]+$/);
    const readsOnly = method.idempotency === Idempotency.NO_SIDE_EFFECTS;
    const shape = {
      unary: readsOnly ? [Kind.QUERY] : [Kind.COMMAND, Kind.BATCH],
      server_streaming: [Kind.FEED, Kind.DOWNLOAD],
      bidi_streaming: [Kind.CONVERSATION],
    };
    expect({ ...shape, client_streaming: [] }[method.methodKind]).toContain(kind);
    if (kind !== Kind.COMMAND && kind !== Kind.DOWNLOAD) expect(audited).toBe(false);
    if (kind === Kind.COMMAND) expect(scope).not.toMatch(/:read$/);
    if (kind === Kind.QUERY) expect(scope).toMatch(/:read$/);
  });
});

/** The reasons by which access is refused. */
const refusals = [
  "KEY_MISSING",
  "KEY_INVALID",
  "KEY_EXPIRED",
  "KEY_REVOKED",
  "ROLE_REQUIRED",
  "SCOPE_REQUIRED",
] as const;
type Verdict = (typeof refusals)[number] | "let in";

/** Somebody who calls: with which key, and what is known of it. */
type Somebody = {
  readonly who: string;
  readonly key: string | undefined;
  /** A key that is no good, and why. */
  readonly bad?: Verdict;
  readonly role: Role;
  readonly scopes?: readonly string[];
};

/** What the options alone say about a call. A bad key is refused everywhere, also where none is needed. */
function expected(method: DescMethod, { bad, role, scopes }: Somebody): Verdict {
  if (bad) return bad;
  const asked = hasOption(method, access) ? getOption(method, access) : { role: Role.PUBLIC, scope: "" };
  if (asked.role === Role.PUBLIC) return "let in";
  if (role === Role.PUBLIC) return "KEY_MISSING";
  if (role < asked.role) return "ROLE_REQUIRED";
  if (scopes && !scopes.includes(asked.scope)) return "SCOPE_REQUIRED";
  return role === Role.AGENT && onlyOfItself.has(`${method.parent.typeName}/${method.name}`)
    ? "ROLE_REQUIRED"
    : "let in";
}

/** Methods that an agent may ask only about itself, which these requests do not. */
const onlyOfItself: ReadonlySet<string> = new Set(["moltwire.bus.v1.PolicyService/TestPolicy"]);

/** A key for one scope is tried where its area is asked for; that it opens no other, a few keys show everywhere. */
function concerns({ scopes: [scope] = [] }: Somebody, method: DescMethod): boolean {
  const asked = hasOption(method, access) ? getOption(method, access).scope : "";
  return scope === undefined || scope === "nothing:here" || scope.split(":")[0] === asked.split(":")[0];
}

/** Requests of methods that look at scopes themselves. */
const ownRequests: Readonly<Record<string, Record<string, unknown>>> = {
  "moltwire.federation.v1.ApiKeyService/CreateApiKey": { scopes: ["keys:write"] },
};

/** Calls the method over gRPC and tells how it was let in or refused. */
async function verdict(over: Transport, name: string, method: DescMethod): Promise<Verdict> {
  const call = (createClient(method.parent, over) as Record<string, unknown>)[method.localName] as (
    request: unknown,
    options: { signal: AbortSignal },
  ) => Promise<unknown> & AsyncIterable<unknown>;
  const leave = new AbortController();
  const request = minimalRequest(method.input, ownRequests[name]);
  try {
    if (method.methodKind === "unary") await call(request, { signal: leave.signal });
    else
      for await (const _ of call(method.methodKind === "bidi_streaming" ? only(request) : request, {
        signal: leave.signal,
      }))
        break;
    return "let in";
  } catch (error) {
    const failure = ConnectError.from(error);
    const reason = failure.findDetails(ErrorInfoSchema)[0]?.reason;
    if (failure.code === Code.Unimplemented && reason !== "UNIMPLEMENTED")
      throw new Error(`${name} is not served: ${failure.message}`);
    return refusals.find((refusal) => refusal === reason) ?? "let in";
  } finally {
    leave.abort();
  }
}

async function* only<T>(item: T): AsyncGenerator<T> {
  yield item;
}

const flip = (text: string, at: number): string =>
  text.slice(0, at) + (text[at] === "a" ? "b" : "a") + text.slice(at + 1);

async function everybody(world: World, advance: (ms: number) => void): Promise<Somebody[]> {
  const { operator } = world;
  const [mine, other, disabled] = [await world.org(), await world.org(), await world.org()];
  const [agent, sibling, stranger] = [await mine.agent(), await mine.agent(), await other.agent()];
  const expireTime = timestampFromMs(world.server.app.clock.now() + 1_000);
  const { secret: expired } = await mine.admin.keys.createApiKey({ role: Role.ORG, expireTime });
  advance(2_000);
  const { secret: revoked, apiKey } = await mine.admin.keys.createApiKey({ role: Role.ORG });
  await mine.admin.keys.revokeApiKey({ keyId: apiKey!.keyId });
  const change = { orgId: disabled.orgId, change: { disabled: true }, updateMask: { paths: ["disabled"] } };
  await operator.organizations.updateOrganization(change);

  const scoped = async (role: Role, scopes: string[]): Promise<Somebody> => {
    const home = role === Role.OPERATOR ? {} : { orgId: mine.orgId };
    const ofAgent = role === Role.AGENT ? { agentId: agent.agentId } : {};
    const { secret } = await operator.keys.createApiKey({ ...home, ...ofAgent, role, scopes });
    return { who: `a key of role ${roleName(role)} with the scopes ${scopes}`, key: secret, role, scopes };
  };
  const pairs = new Map(
    own.map(({ method }) => getOption(method, access)).map(({ role, scope }) => [`${role} ${scope}`, { role, scope }]),
  );
  const exact = [...pairs.values()]
    .filter(({ role }) => role > Role.PUBLIC)
    .map(({ role, scope }) => scoped(role, [scope]));
  return [
    { who: "nobody", key: undefined, role: Role.PUBLIC },
    { who: "garbage", key: "garbage", bad: "KEY_INVALID", role: Role.PUBLIC },
    { who: "a key with a typo in its id", key: flip(agent.key, 10), bad: "KEY_INVALID", role: Role.AGENT },
    { who: "a key with a typo in its secret", key: flip(agent.key, 40), bad: "KEY_INVALID", role: Role.AGENT },
    { who: "a key of another server", key: await keyOfAnotherServer(), bad: "KEY_INVALID", role: Role.OPERATOR },
    { who: "a key with the id of another's", key: forged(mine.adminKey), bad: "KEY_INVALID", role: Role.ORG },
    { who: "a revoked key with a wrong secret", key: forged(revoked), bad: "KEY_INVALID", role: Role.ORG },
    { who: "a revoked key", key: revoked, bad: "KEY_REVOKED", role: Role.ORG },
    { who: "an expired key", key: expired, bad: "KEY_EXPIRED", role: Role.ORG },
    { who: "a key of a disabled organisation", key: disabled.adminKey, bad: "KEY_REVOKED", role: Role.ORG },
    { who: "another organisation's administrator", key: other.adminKey, role: Role.ORG },
    { who: "another organisation's agent", key: stranger.key, role: Role.AGENT },
    { who: "a sibling agent", key: sibling.key, role: Role.AGENT },
    { who: "an agent", key: agent.key, role: Role.AGENT },
    { who: "an administrator", key: mine.adminKey, role: Role.ORG },
    { who: "the operator", key: world.operatorKey, role: Role.OPERATOR },
    await scoped(Role.AGENT, ["nothing:here"]),
    await scoped(Role.ORG, ["nothing:here"]),
    await scoped(Role.OPERATOR, ["nothing:here"]),
    ...(await Promise.all(exact)),
  ];
}

/** The id of a key that there is, another secret, and the checksum that fits. */
const forged = (key: string): string => newKeyText(`key_${key.slice(3, 35)}`, randomIds()).text;

/** Of the right form and checksum, and unknown here. */
async function keyOfAnotherServer(): Promise<string> {
  await using another = await start("sqlite");
  return another.operatorKey;
}

describe.each(dialects)("%s", (dialect) => {
  const clock = fakeClock(Date.now());
  let world: World;
  let people: Somebody[];
  beforeAll(async () => {
    world = await start(dialect, { clock });
    people = await everybody(world, clock.advance);
  });
  afterAll(() => world[Symbol.asyncDispose]());
  const person = (who: string): Somebody => people.find((one) => one.who === who)!;

  test("each method lets in and refuses whom its options say, and nobody else", async () => {
    const wrong: string[] = [];
    const seen = new Set<Verdict>();
    for (const somebody of people) {
      const over = transport(world.url, somebody.key, "grpc");
      const check = async ({ name, method }: (typeof own)[number]) => {
        const got = await verdict(over, name, method);
        seen.add(got);
        const right = expected(method, somebody);
        if (got !== right) wrong.push(`${somebody.who} at ${name}: ${got}, not ${right}`);
      };
      const asked = [...own, ...methodsOf(foreign)].filter((one) => concerns(somebody, one.method));
      // Fewer than the calls that a connection may have open at once: more are cut off, which would look like being let in.
      for (let from = 0; from < asked.length; from += 50) await Promise.all(asked.slice(from, from + 50).map(check));
    }
    expect(wrong).toEqual([]);
    expect([...seen].sort()).toEqual([...refusals, "let in"].sort());
  }, 240_000);

  test.each(["connect", "connect-json", "grpc", "grpc-web"] satisfies Protocol[])(
    "refusals name their reason over %s, of calls and of streams",
    async (protocol) => {
      const samples = own.filter(({ name }) =>
        /(RegisterAgent|ListAgents|CreateOrganization|TailTraces|PutPolicy|Serve|GetStatus)$/.test(name),
      );
      expect(samples).toHaveLength(9);
      for (const somebody of people.filter(({ who }) => !who.includes("scopes"))) {
        const over = transport(world.url, somebody.key, protocol);
        for (const { name, method } of samples)
          expect([somebody.who, name, await verdict(over, name, method)]).toEqual([
            somebody.who,
            name,
            expected(method, somebody),
          ]);
      }
    },
  );

  test("a service that a program adds to its server is behind the same gate: what declares no access is nobody's", async () => {
    const routes = (router: ConnectRouter) => void router.service(ConformanceService, { unary: () => ({}) });
    await using other = await start("sqlite", { routes });
    const { unary } = ConformanceService.method;
    const name = `${ConformanceService.typeName}/${unary.name}`;
    expect(await verdict(transport(other.url, other.operatorKey, "grpc"), name, unary)).toBe("ROLE_REQUIRED");
    expect(await verdict(transport(other.url, undefined, "grpc"), name, unary)).toBe("KEY_MISSING");
  });

  test("a key is taken from x-api-key too, and authorization goes before it", async () => {
    const list = (headers: Record<string, string>) =>
      fetch(`${world.url}/moltwire.bus.v1.AgentService/ListAgents?encoding=json&message=%7B%7D`, { headers }).then(
        (answer) => answer.status,
      );
    const key = person("an agent").key!;
    expect(await list({ "x-api-key": key })).toBe(200);
    expect(await list({ authorization: `Bearer ${key}` })).toBe(200);
    expect(await list({ authorization: "Bearer garbage", "x-api-key": key })).toBe(401);
    expect(await list({ authorization: key })).toBe(401);
    expect(await list({ authorization: `Basic ${btoa(`:${key}`)}` })).toBe(401);
    expect(await list({})).toBe(401);
  });

  test("a key in the URL opens nothing", async () => {
    const key = person("an agent").key!;
    const answer = await fetch(
      `${world.url}/moltwire.bus.v1.AgentService/ListAgents?encoding=json&message=%7B%7D&authorization=Bearer%20${key}&x-api-key=${key}`,
    );
    expect(answer.status).toBe(401);
  });

  test.each(["tasks:*", "*:read", "*:*"])("the scope %s stands for all that it covers and no more", async (scope) => {
    const { secret } = await world.operator.keys.createApiKey({ role: Role.OPERATOR, scopes: [scope] });
    const over = transport(world.url, secret, "grpc");
    const [area, verb] = scope.split(":");
    for (const { name, method } of own.filter(
      ({ method }) => method.methodKind === "unary" && !/Create|Update/.test(method.name),
    )) {
      const asked = getOption(method, access);
      const [wantedArea, wantedVerb] = asked.scope.split(":");
      const covers =
        asked.role === Role.PUBLIC || ((area === "*" || area === wantedArea) && (verb === "*" || verb === wantedVerb));
      expect([name, await verdict(over, name, method)]).toEqual([name, covers ? "let in" : "SCOPE_REQUIRED"]);
    }
  });

  test("over HTTP/1.1 a refusal comes before the body", async () => {
    const { port } = new URL(world.url);
    const socket = connectTcp(Number(port), "127.0.0.1");
    socket.write(
      "POST /moltwire.bus.v1.BusService/SubmitTask HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 1000000\r\nauthorization: Bearer garbage\r\n\r\n",
    );
    const [answer] = (await once(socket, "data")) as [Buffer];
    socket.destroy();
    expect(answer.toString()).toMatch(/^HTTP\/1\.1 401 [\s\S]*KEY_INVALID/);
  });

  test.each(["application/grpc", "application/connect+proto", "application/proto"])(
    "over HTTP/2 a refusal of %s comes before the body",
    async (contentType) => {
      const session = connectHttp2(world.url);
      const method = contentType === "application/proto" ? "GetTask" : "WatchTask";
      const stream = session.request({
        ":method": "POST",
        ":path": `/moltwire.bus.v1.BusService/${method}`,
        "content-type": contentType,
        authorization: `Bearer ${person("a revoked key").key}`,
      }); // and it is not ended: the body is still to come
      let told = "";
      const hear = (headers: object) => (told += JSON.stringify(headers));
      stream.on("response", hear).on("trailers", hear);
      stream.setEncoding("utf8").on("data", (chunk: string) => (told += chunk));
      await once(stream, "end");
      session.destroy();
      expect(told).toMatch(/revoked/);
    },
  );

  test("a Connect GET is refused as a POST is, and no command takes one", async () => {
    const get = (method: string, key: string) =>
      fetch(`${world.url}/${method}?encoding=json&message=%7B%7D`, { headers: { authorization: `Bearer ${key}` } });
    const refused = await get("moltwire.ops.v1.AdminService/ListAuditEvents", person("an agent").key!);
    expect([refused.status, await refused.text()]).toEqual([403, expect.stringContaining("ROLE_REQUIRED")]);
    for (const { name, method } of own.filter((one) => one.method.idempotency !== Idempotency.NO_SIDE_EFFECTS)) {
      const answer = await get(name, world.operatorKey);
      await answer.arrayBuffer();
      // A stream both ways is nothing for HTTP/1.1, whatever the verb.
      const status = method.methodKind === "bidi_streaming" ? 505 : 405;
      expect([name, method.methodKind, answer.status]).toEqual([name, method.methodKind, status]);
    }
  });
});
