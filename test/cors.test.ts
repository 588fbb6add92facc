import { createClient, type Transport } from "@connectrpc/connect";
import { createConnectTransport, createGrpcWebTransport } from "@connectrpc/connect-web";
import { afterEach, beforeEach, describe, expect, test, vi } from "vitest";
import { AgentService } from "../gen/moltwire/bus/v1/agent_service_pb.ts";
import { TraceService } from "../gen/moltwire/bus/v1/trace_service_pb.ts";
import { readConfig } from "../src/config.ts";
import { start, type World } from "./harness.ts";

const origin = "https://app.example.com";
const list = "moltwire.bus.v1.AgentService/ListAgents";
let world: World;
beforeEach(async () => {
  world = await start("sqlite", { corsOrigins: [origin, "http://localhost:5173"], rateLimit: 3 });
});
afterEach(() => world[Symbol.asyncDispose]());

const preflight = (path: string, from: string, headers: Record<string, string> = {}) =>
  fetch(`${world.url}/${path}`, {
    method: "OPTIONS",
    headers: { origin: from, "access-control-request-method": "POST", ...headers },
  });
const names = (response: Response, header: string) =>
  (response.headers.get(header) ?? "").split(",").map((name) => name.trim().toLowerCase());
const corsHeaders = (response: Response) => [...response.headers.keys()].filter((name) => name.startsWith("access-"));

/** Fetches as a page of the origin does: asks first, sends what is allowed, and hands on only what the page may read. */
function browser(from: string): { fetch: typeof globalThis.fetch; preflights: () => number } {
  let preflights = 0;
  const simple = ["accept", "accept-language", "content-language"];
  return {
    preflights: () => preflights,
    async fetch(input, init) {
      const request = new Request(input, init);
      const asked = [...request.headers.keys()].filter((name) => !simple.includes(name)).toSorted();
      if (asked.length > 0 || request.method !== "GET") {
        preflights++;
        const allowed = await fetch(request.url, {
          method: "OPTIONS",
          headers: {
            origin: from,
            "access-control-request-method": request.method,
            "access-control-request-headers": asked.join(","),
          },
        });
        if (!allowed.ok || allowed.headers.get("access-control-allow-origin") !== from)
          throw new TypeError("blocked: the preflight allows no such origin");
        if (!names(allowed, "access-control-allow-methods").includes(request.method.toLowerCase()))
          throw new TypeError(`blocked: ${request.method}`);
        const missing = asked.find((name) => !names(allowed, "access-control-allow-headers").includes(name));
        if (missing) throw new TypeError(`blocked: the header ${missing} is not allowed`);
      }
      const headers = new Headers(request.headers);
      headers.set("origin", from);
      const body = request.body === null ? null : await request.arrayBuffer();
      const response = await fetch(request.url, { method: request.method, headers, body, signal: request.signal });
      if (response.headers.get("access-control-allow-origin") !== from)
        throw new TypeError("blocked: the answer is not for this origin");
      const readable = ["content-type", "content-length", ...names(response, "access-control-expose-headers")];
      const seen = [...response.headers].filter(([name]) => readable.includes(name));
      return new Response(response.body, { status: response.status, headers: seen });
    },
  };
}

const transports: Record<string, (options: { baseUrl: string; fetch: typeof fetch }) => Transport> = {
  Connect: createConnectTransport,
  "Connect with GET": (options) => createConnectTransport({ ...options, useHttpGet: true, useBinaryFormat: true }),
  "gRPC-Web": createGrpcWebTransport,
};

describe.each(Object.entries(transports))("a page that speaks %s", (_name, transport) => {
  const call = (from: string, headers: Record<string, string>, seen: (headers: Headers) => void = () => {}) =>
    createClient(AgentService, transport({ baseUrl: world.url, fetch: browser(from).fetch })).listAgents(
      {},
      { headers, timeoutMs: 60_000, onHeader: seen },
    );

  test("of an origin of the list calls, and sees its trace and what is left of its limit", async () => {
    const { key } = await (await world.org()).agent();
    const traceparent = `00-${"a".repeat(32)}-${"b".repeat(16)}-01`;
    let headers = new Headers();
    await call(origin, { authorization: `Bearer ${key}`, traceparent, "idempotency-key": "once" }, (seen) => {
      headers = seen;
    });
    expect(headers.get("x-trace-id")).toBe("a".repeat(32));
    expect(headers.get("ratelimit-limit")).toBe("3");
    expect(headers.get("ratelimit-remaining")).toBe("2");
  });

  test("reads why it was refused, and when to try again", async () => {
    const { key } = await (await world.org()).agent();
    await expect(call(origin, { "x-api-key": "mw_wrong" })).rejects.toThrow(/unauthenticated/);
    for (let i = 0; i < 3; i++) await call(origin, { "x-api-key": key });
    const limited = await call(origin, { "x-api-key": key }).then(
      () => undefined,
      (error) => error,
    );
    expect(String(limited)).toMatch(/resource_exhausted/);
    expect(Number(limited.metadata.get("retry-after"))).toBeGreaterThan(0);
  });

  test("of another origin is blocked", async () => {
    await expect(call("https://evil.example.com", { "x-api-key": world.operatorKey })).rejects.toThrow(/blocked/);
  });

  test("reads a stream", async () => {
    const { key } = await (await world.org()).agent();
    const over = transport({ baseUrl: world.url, fetch: browser("http://localhost:5173").fetch });
    const stop = new AbortController();
    const onHeader = vi.fn(() => stop.abort());
    const options = { headers: { "x-api-key": key }, signal: stop.signal, onHeader };
    const stream = createClient(TraceService, over).tailTraces({}, options);
    await expect(stream[Symbol.asyncIterator]().next()).rejects.toThrow(/canceled|aborted/);
    expect(onHeader).toHaveBeenCalledOnce();
  });
});

describe("a preflight", () => {
  test("is answered for methods, also those there are not, without cookies, and may be kept", async () => {
    for (const path of [list, "moltwire.bus.v1.AgentService/NoSuchMethod"]) {
      const response = await preflight(path, origin);
      expect(response.status).toBe(204);
      expect(response.headers.get("access-control-allow-origin")).toBe(origin);
      expect(response.headers.get("vary")).toBe("origin");
      expect(Number(response.headers.get("access-control-max-age"))).toBeGreaterThan(0);
      expect(response.headers.has("access-control-allow-credentials")).toBe(false);
    }
  });

  test.each([
    "https://evil.example.com",
    "https://app.example.com.evil.com",
    "http://app.example.com",
    "https://app.example.com:8443",
    "https://APP.example.com",
    "null",
    "*",
    "",
  ])("from %j gets no word of CORS", async (from) => {
    const response = await preflight(list, from);
    expect(corsHeaders(response)).toEqual([]);
    expect(response.status).not.toBe(204);
    expect(response.headers.get("vary")).toBe("origin");
  });

  test("for pages is not answered: scripts of others have no business there", async () => {
    for (const path of ["metrics", "", "a/b/c"]) expect(corsHeaders(await preflight(path, origin))).toEqual([]);
  });
});

test("every answer of a method says that it depends on the origin", async () => {
  const post = (headers: Record<string, string>) =>
    fetch(`${world.url}/${list}`, {
      method: "POST",
      headers: { "content-type": "application/json", ...headers },
      body: "{}",
    });
  for (const headers of [
    {},
    { origin },
    { origin: "https://evil.example.com" },
    { "x-api-key": world.operatorKey },
  ] as Record<string, string>[]) {
    const response = await post(headers);
    expect(response.headers.get("vary")).toBe("origin");
    expect(corsHeaders(response).length > 0).toBe(headers.origin === origin);
  }
});

test("an answer names the headers that scripts may read, in every protocol", async () => {
  const response = await fetch(`${world.url}/${list}`, { method: "POST", headers: { origin }, body: "{}" });
  expect(names(response, "access-control-expose-headers")).toEqual(
    expect.arrayContaining([
      ...["grpc-status", "grpc-message", "grpc-status-details-bin"],
      ...["x-trace-id", "ratelimit-limit", "ratelimit-remaining", "retry-after", "idempotency-replayed"],
    ]),
  );
});

test("without a list there is no CORS at all", async () => {
  await using plain = await start();
  const response = await fetch(`${plain.url}/${list}`, {
    method: "OPTIONS",
    headers: { origin, "access-control-request-method": "POST" },
  });
  expect(corsHeaders(response)).toEqual([]);
  expect(response.headers.has("vary")).toBe(false);
});

describe("the list of origins", () => {
  const read = (text: string) => readConfig([], { MOLTWIRE_CORS_ORIGINS: text }).corsOrigins;

  test("has exact origins with commas between", () => {
    expect(read(" https://a.example , http://localhost:5173,")).toEqual(["https://a.example", "http://localhost:5173"]);
    expect(read("")).toEqual([]);
  });

  test.each([
    ["*", /name each origin/],
    ["https://*.example.com", /name each origin/],
    ["null", /not an origin/],
    ["app.example.com", /not an origin/],
    ["file:///x", /not an origin/],
    ["https://a.example/", /write https:\/\/a\.example\b/],
    ["https://A.example", /write https:\/\/a\.example\b/],
    ["https://a.example:443", /write https:\/\/a\.example\b/],
  ])("refuses %j", (text, why) => {
    expect(() => read(text)).toThrow(/^MOLTWIRE_CORS_ORIGINS \(--cors-origins\): /);
    expect(() => read(text)).toThrow(why);
  });
});
