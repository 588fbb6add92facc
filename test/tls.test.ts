import { type ChildProcess, spawn } from "node:child_process";
import { X509Certificate } from "node:crypto";
import { mkdirSync, renameSync, symlinkSync } from "node:fs";
import http2 from "node:http2";
import https from "node:https";
import type net from "node:net";
import { join } from "node:path";
import tls, { type ConnectionOptions, type TLSSocket } from "node:tls";
import { fromJson, toJson } from "@bufbuild/protobuf";
import { ValueSchema } from "@bufbuild/protobuf/wkt";
import { createClient, type Transport } from "@connectrpc/connect";
import { createConnectTransport, createGrpcTransport, createGrpcWebTransport } from "@connectrpc/connect-node";
import { pino } from "pino";
import { afterEach, describe, expect, test } from "vitest";
import { BusService } from "../gen/moltwire/bus/v1/bus_service_pb.ts";
import { TaskState } from "../gen/moltwire/bus/v1/task_pb.ts";
import type { ListenLimits } from "../src/listen.ts";
import { createServer, type ServerOptions } from "../src/server.ts";
import { tlsServer } from "../src/tls-port.ts";
import { eventually, start } from "./harness.ts";
import { folder, makePair, type Pair, place, put } from "./tls-fixtures/certificates.ts";
import { connectRaw, envelope, request2 } from "./wire-fixtures/raw.ts";
import { neverMs, startServer, until } from "./wire-fixtures/server.ts";

const pair = makePair();
const other = makePair({ name: "renewed" });
const method = "/moltwire.agent.v1.AgentRuntimeService/HandleTask";
const json = { ":path": method, "content-type": "application/json" };
const opened: { close(): unknown }[] = [];
afterEach(async () => {
  for (const each of opened.splice(0).reverse()) await each.close();
});

/** The pieces of the port with an agent that echoes. */
async function port(limits: Partial<ListenLimits> = {}) {
  const server = await startServer({ edge: tlsServer({ context: pair, clientCertificates: false }, limits) });
  opened.push(server);
  return server;
}

/** The whole server, with a log that can be read. */
async function whole(given: ServerOptions) {
  const lines: string[] = [];
  const log = pino({ level: "debug" }, { write: (line: string) => void lines.push(line) });
  const world = await start("sqlite", { log, ...given });
  opened.push({ close: () => world[Symbol.asyncDispose]() });
  const number = Number(new URL(world.url).port);
  return { world, port: number, logged: (text: string) => lines.some((line) => line.includes(text)) };
}

const trusting: ConnectionOptions = { ca: [pair.cert, other.cert] };

/** Shakes hands; rejects with the reason when the port ends the connection first, also just after. */
function handshake(to: number, options: ConnectionOptions = {}): Promise<TLSSocket> {
  return new Promise((resolve, reject) => {
    const socket = tls.connect({ port: to, host: "127.0.0.1", ...trusting, ...options }, () => resolve(socket));
    opened.push({ close: () => socket.destroy() });
    socket.on("error", reject);
    socket.on("close", () => reject(new Error("closed")));
  });
}
const fingerprintAt = async (to: number) => {
  const socket = await handshake(to);
  const { fingerprint256 } = socket.getPeerCertificate();
  socket.destroy();
  return fingerprint256;
};
const fingerprint = ({ cert }: Pair) => new X509Certificate(cert).fingerprint256;
const closing = (socket: net.Socket) => {
  socket.on("error", () => {});
  socket.resume();
  return new Promise<void>((resolve) => (socket.destroyed ? resolve() : socket.once("close", () => resolve())));
};

async function session(to: number, options: http2.SecureClientSessionOptions = {}): Promise<http2.ClientHttp2Session> {
  const connected = http2.connect(`https://127.0.0.1:${to}`, { ...trusting, ...options });
  opened.push({ close: () => connected.destroy() });
  connected.on("error", () => {});
  await new Promise((resolve) => connected.once("remoteSettings", resolve));
  return connected;
}
function get1(to: number, options: https.RequestOptions = {}): Promise<number | undefined> {
  return new Promise((resolve, reject) => {
    https
      .get({ port: to, host: "127.0.0.1", path: "/plain", ...trusting, ...options }, (response) => {
        response.resume().once("end", () => resolve(response.statusCode));
      })
      .once("error", reject);
  });
}

const transports: Record<string, (baseUrl: string, nodeOptions: ConnectionOptions) => Transport> = {
  "Connect over HTTP/2": (baseUrl, nodeOptions) => createConnectTransport({ baseUrl, httpVersion: "2", nodeOptions }),
  "Connect over HTTP/1.1": (baseUrl, nodeOptions) =>
    createConnectTransport({ baseUrl, httpVersion: "1.1", nodeOptions }),
  gRPC: (baseUrl, nodeOptions) => createGrpcTransport({ baseUrl, nodeOptions }),
  "gRPC-Web over HTTP/1.1": (baseUrl, nodeOptions) =>
    createGrpcWebTransport({ baseUrl, httpVersion: "1.1", nodeOptions }),
};

async function echo(transport: Transport, key: string): Promise<unknown> {
  const headers = { authorization: `Bearer ${key}` };
  const { task } = await createClient(BusService, transport).submitTask(
    { contractId: "echo", contractVersion: "1.0.0", input: fromJson(ValueSchema, { hello: "world" }) },
    { headers, timeoutMs: 10_000 },
  );
  if (task?.state !== TaskState.COMPLETED) throw new Error(`the task is ${task?.state}`);
  return toJson(ValueSchema, task.output!);
}

describe("one port", () => {
  test.each(Object.entries(transports))("serves %s", async (_name, transport) => {
    using at = folder();
    const { world } = await whole(place(at.path, pair));
    expect(world.url).toMatch(/^https:/);
    expect(await echo(transport(world.url, trusting), world.operatorKey)).toEqual({ hello: "world" });
  });

  test.each([
    [["h2", "http/1.1"], "h2"],
    [["http/1.1", "h2"], "h2"],
    [["http/1.1"], "http/1.1"],
    [undefined, false],
  ])("chooses by ALPN: of %j it takes %j", async (offered, taken) => {
    const server = await port();
    const socket = await handshake(server.port, offered ? { ALPNProtocols: offered } : {});
    expect(socket.alpnProtocol).toBe(taken);
    if (taken === "h2") return;
    socket.write("GET /plain HTTP/1.1\r\nhost: x\r\n\r\n");
    const [first] = await new Promise<Buffer[]>((resolve) => socket.once("data", (chunk) => resolve([chunk])));
    expect(String(first)).toMatch(/^HTTP\/1.1 200 /);
  });

  test("refuses a client that offers only what it does not speak", async () => {
    const server = await port();
    await expect(handshake(server.port, { ALPNProtocols: ["spdy/3"] })).rejects.toThrow(/no application protocol/i);
  });

  test("takes TLS 1.2, and nothing older", async () => {
    const server = await port();
    const upTo = (maxVersion: "TLSv1.1" | "TLSv1.2") =>
      handshake(server.port, { minVersion: "TLSv1", maxVersion, ciphers: "DEFAULT@SECLEVEL=0" });
    expect((await upTo("TLSv1.2")).getProtocol()).toBe("TLSv1.2");
    await expect(upTo("TLSv1.1")).rejects.toThrow(/protocol version/i);
  });
});

describe("the limits of the cleartext port hold", () => {
  test.each(["", "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"])(
    "a client that sends %j and no more of its handshake is closed in time",
    async (sent) => {
      const server = await port({ firstBytesTimeoutMs: 200 });
      const connection = await connectRaw(server.port);
      connection.socket.write(Buffer.from(sent, "latin1"));
      await connection.closed;
      expect(await get1(server.port)).toBe(200);
    },
  );

  test.each(["h2", "http/1.1"])("a client that shakes hands for %s and is silent is closed in time", async (name) => {
    const server = await port({ firstBytesTimeoutMs: 200 });
    const socket = await handshake(server.port, { ALPNProtocols: [name] });
    await closing(socket);
  });

  test.each(["GET /plain HTTP/1.1\r\nhost: x\r\n\r\n", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"])(
    "cleartext %j is closed at once",
    async (sent) => {
      const server = await port({ firstBytesTimeoutMs: neverMs });
      const connection = await connectRaw(server.port);
      connection.socket.write(sent);
      await connection.closed;
      expect(connection.text()).not.toContain("HTTP/1.1");
      expect(await get1(server.port)).toBe(200);
    },
  );

  test("one connection too many takes the place of one that says nothing, and those that ask are served on", async () => {
    const server = await port({ maxConnections: 2 });
    const first = await handshake(server.port);
    const ask = async (socket: typeof first) => {
      socket.write("GET /plain HTTP/1.1\r\nhost: x\r\n\r\n");
      await new Promise((resolve) => socket.once("data", resolve));
    };
    await ask(first);
    const silent = await handshake(server.port);
    const closed = new Promise((resolve) => silent.once("close", resolve));
    await ask(await handshake(server.port));
    await closed;
    await ask(first);
  });

  test("headers that do not end are answered 408, and too large ones 431", async () => {
    const server = await port({ headersTimeoutMs: 200, timeoutCheckMs: 50, maxHeaderBytes: 2_048 });
    for (const [sent, status] of [
      ["GET /plain HTTP/1.1\r\nhost: x\r\n", "408"],
      [`GET /plain HTTP/1.1\r\nhost: x\r\nx: ${"y".repeat(3_000)}\r\n\r\n`, "431"],
    ] as const) {
      const socket = await handshake(server.port);
      let text = "";
      socket.on("data", (chunk) => (text += chunk));
      socket.write(sent);
      await closing(socket);
      expect(text).toMatch(new RegExp(`^HTTP/1.1 ${status} `));
    }
  });

  test("a session has 250 streams, and is closed for a flood of resets", async () => {
    const server = await port({ streamResetBurst: 20, streamResetsPerSecond: 1 });
    const flood = await session(server.port);
    expect(flood.remoteSettings.maxConcurrentStreams).toBe(250);
    const closed = new Promise((resolve) => flood.once("close", resolve));
    const kept = await session(server.port);
    for (let i = 0; i < 200 && !flood.destroyed; i++) {
      const stream = flood.request({ ":method": "POST", ...json });
      stream.on("error", () => {});
      stream.close(http2.constants.NGHTTP2_CANCEL);
    }
    await closed;
    expect((await request2(kept, json, Buffer.from("{}"))).status).toBe(200);
  });

  test("a session without streams is told to go away", async () => {
    const server = await port({ idleSessionTimeoutMs: 150 });
    const idle = await session(server.port);
    await until(() => idle.closed);
  });

  test("a client that ends its half of the connection ends its streams", async () => {
    const server = await port();
    const socket = await handshake(server.port, { ALPNProtocols: ["h2"] });
    socket.on("error", () => {});
    const leaving = await session(server.port, { createConnection: () => socket });
    const stream = leaving.request({
      ":method": "POST",
      ":path": method.replace("HandleTask", "StreamTask"),
      "content-type": "application/grpc+json",
    });
    stream.on("error", () => {});
    stream.end(envelope(Buffer.from('{"task":{"taskId":"left","capability":"forever"}}')));
    await until(() => server.running.has("left"));
    socket.end();
    await until(() => !server.running.has("left"));
  });
});

describe("closing", () => {
  test("waits for no half handshakes, silent clients, idle connections and idle sessions", async () => {
    const server = await port({ firstBytesTimeoutMs: neverMs, drainTimeoutMs: neverMs, lingerTimeoutMs: neverMs });
    await connectRaw(server.port);
    (await connectRaw(server.port)).socket.write("\x16\x03\x01");
    await handshake(server.port, { ALPNProtocols: ["h2"] });
    await handshake(server.port);
    const agent = new https.Agent({ keepAlive: true });
    await get1(server.port, { agent });
    await session(server.port);
    await server.close();
    agent.destroy();
  });

  test("lets a call finish", async () => {
    const server = await port();
    const answer = request2(
      await session(server.port),
      json,
      Buffer.from('{"task":{"taskId":"x","capability":"wait"}}'),
    );
    await until(() => server.running.has("x"));
    server.shutdown.abort();
    const closed = server.fastify.close();
    await until(() => !server.fastify.server.listening);
    server.release();
    expect((await answer).status).toBe(200);
    await closed;
  });
});

describe("a renewed certificate", () => {
  test("is shown to new connections without a failed request, and old connections go on", async () => {
    using at = folder();
    const { world, port } = await whole(place(at.path, pair));
    const old = await session(port);
    let over = false;
    let served = 0;
    const load = Object.values(transports).flatMap((transport) => [
      // One keeps its connection, one makes a new one for each request.
      (async () => {
        const kept = transport(world.url, trusting);
        for (; !over; served++) await echo(kept, world.operatorKey);
      })(),
      (async () => {
        for (; !over; served++) {
          const status = await get1(port, { agent: false, path: "/" });
          if (status !== 200) throw new Error(`answered ${status}`);
        }
      })(),
    ]);
    const all = Promise.all(load);
    all.catch(() => {});
    for (const next of [other, pair, other]) {
      const before = served;
      place(at.path, next);
      await eventually(async () => (await fingerprintAt(port)) === fingerprint(next));
      await eventually(() => served > before + 20);
    }
    over = true;
    await all;
    expect(old.closed).toBe(false);
    expect((await request2(old, { ":method": "GET", ":path": "/" })).status).toBe(200);
  });

  test("is found behind links that change", async () => {
    using at = folder();
    const version = (name: string, of: Pair) => {
      mkdirSync(join(at.path, name));
      place(join(at.path, name), of);
      symlinkSync(name, join(at.path, "next"));
      renameSync(join(at.path, "next"), join(at.path, "current"));
    };
    version("v1", pair);
    for (const name of ["cert.pem", "key.pem"]) symlinkSync(join("current", name), join(at.path, name));
    const { port } = await whole({ tlsCert: join(at.path, "cert.pem"), tlsKey: join(at.path, "key.pem") });
    version("v2", other);
    await eventually(async () => (await fingerprintAt(port)) === fingerprint(other));
  });

  test.each([
    ["is no certificate", { ...pair, cert: "nonsense" }, "has no certificate"],
    ["has another's key", { ...other, key: pair.key }, "is not the key"],
    ["is expired", makePair({ to: "20210101000000Z" }), "expired on 2021-01-01"],
  ])("that %s is refused in the log, and the port keeps the old one until a good one comes", async (_how, bad, why) => {
    using at = folder();
    const { port, logged } = await whole(place(at.path, pair));
    place(at.path, bad);
    await eventually(() => logged(why));
    expect(await fingerprintAt(port)).toBe(fingerprint(pair));
    place(at.path, other);
    await eventually(async () => (await fingerprintAt(port)) === fingerprint(other));
  });

  test("is read on SIGHUP, and the first start shows what to copy", async () => {
    using at = folder();
    const { tlsCert, tlsKey } = place(at.path, pair);
    const child = run("--tls-cert", tlsCert, "--tls-key", tlsKey, "--data", ":memory:", "--port", "0");
    await eventually(() => child.err().includes("listening on https://127.0.0.1:"));
    expect(child.out()).toContain(`curl --cacert ${tlsCert} https://127.0.0.1:`);
    expect(child.out()).toContain(`grpcurl -cacert ${tlsCert} -H`);
    child.process.kill("SIGHUP");
    await eventually(() => child.err().includes("the port has the certificate that was read"));
    child.process.kill("SIGTERM");
    await eventually(() => child.process.exitCode !== null);
    expect(child.process.exitCode).toBe(0);
  });
});

describe("a start", () => {
  const wrong: [string, (at: string) => ServerOptions, RegExp][] = [
    [
      "a certificate without its key",
      (at) => ({ tlsCert: put(at, "c", pair.cert) }),
      /^MOLTWIRE_TLS_KEY .*both or neither/,
    ],
    [
      "a key without its certificate",
      (at) => ({ tlsKey: put(at, "k", pair.key) }),
      /^MOLTWIRE_TLS_CERT .*both or neither/,
    ],
    [
      "client authorities without a certificate",
      (at) => ({ tlsClientCa: put(at, "a", pair.cert) }),
      /^MOLTWIRE_TLS_CLIENT_CA /,
    ],
    [
      "a missing file",
      (at) => ({ ...place(at, pair), tlsCert: `${at}/none` }),
      /^MOLTWIRE_TLS_CERT: .*none cannot be read/,
    ],
    ["a folder for a file", (at) => ({ ...place(at, pair), tlsKey: at }), /^MOLTWIRE_TLS_KEY: .*not a file/],
    ["no PEM", (at) => place(at, { ...pair, cert: "x" }), /^MOLTWIRE_TLS_CERT: .*has no certificate/],
    ["a key that is none", (at) => place(at, { ...pair, key: "x" }), /^MOLTWIRE_TLS_KEY: .*no private key/],
    ["another's key", (at) => place(at, { ...pair, key: other.key }), /^MOLTWIRE_TLS_KEY: .*is not the key/],
    [
      "an expired certificate",
      (at) => place(at, makePair({ to: "20210101000000Z" })),
      /^MOLTWIRE_TLS_CERT: .*expired on 2021-01-01.*renew/,
    ],
    [
      "a certificate of the future",
      (at) => place(at, makePair({ from: "20390101000000Z" })),
      /^MOLTWIRE_TLS_CERT: .*not valid before 2039/,
    ],
    [
      "a question for certificates of nobody",
      (at) => ({ ...place(at, pair), tlsClientAuth: "request" }),
      /^MOLTWIRE_TLS_CLIENT_AUTH .*MOLTWIRE_TLS_CLIENT_CA/,
    ],
    [
      "no client authority",
      (at) => ({ ...place(at, pair), tlsClientCa: put(at, "a", "") }),
      /^MOLTWIRE_TLS_CLIENT_CA: .*has no certificate/,
    ],
  ];
  test.each(wrong)("with %s stops, and says which setting and why", async (_what, options, message) => {
    using at = folder();
    const started = createServer({ data: ":memory:", port: 0, logLevel: "silent", ...options(at.path) });
    await expect(started).rejects.toMatchObject({ name: "ConfigError", message: expect.stringMatching(message) });
  });
});

describe("client certificates", () => {
  const authority = makePair({ name: "authority" });
  const client = makePair({ name: "client", issuer: authority });
  const stranger = makePair({ name: "stranger" });

  async function mutual(at: string, given: ServerOptions = {}) {
    return await whole({ ...place(at, pair), tlsClientCa: put(at, "ca.pem", authority.cert), ...given });
  }

  test.each(Object.entries(transports))("are required of %s, and the key with them", async (_name, transport) => {
    using at = folder();
    const { world, logged } = await mutual(at.path);
    const call = (own: Partial<Pair>, key = world.operatorKey) =>
      echo(transport(world.url, { ...trusting, ...own }), key);
    expect(await call(client)).toEqual({ hello: "world" });
    await expect(call(client, "mw_wrong")).rejects.toThrow(/unauthenticated/);
    await expect(call({})).rejects.toThrow();
    await expect(call(stranger)).rejects.toThrow();
    await eventually(() => logged("a TLS handshake failed"));
  });

  test.each(Object.entries(transports))(
    "are asked of %s where so set: none is needed, and a stranger's is refused",
    async (_name, transport) => {
      using at = folder();
      const { world, logged } = await mutual(at.path, { tlsClientAuth: "request" });
      const call = (own: Partial<Pair>) => echo(transport(world.url, { ...trusting, ...own }), world.operatorKey);
      expect(await call({})).toEqual({ hello: "world" });
      expect(await call(client)).toEqual({ hello: "world" });
      expect(logged("a TLS handshake failed")).toBe(false);
      await expect(call(stranger)).rejects.toThrow();
      await eventually(() => logged("a TLS handshake failed"));
    },
  );

  test("of an authority that was replaced are refused from then on", async () => {
    using at = folder();
    const { port } = await mutual(at.path);
    const status = (own: Pair) => get1(port, { ...own, agent: false, path: "/" }).catch(() => "refused");
    expect(await status(client)).toBe(200);
    put(at.path, "ca.pem", stranger.cert);
    await eventually(async () => (await status(client)) === "refused");
    expect(await status(stranger)).toBe(200);
  });
});

function run(...args: string[]): { process: ChildProcess; out: () => string; err: () => string } {
  const child = spawn(process.execPath, [join(import.meta.dirname, "../src/main.ts"), ...args], {
    stdio: ["ignore", "pipe", "pipe"],
    env: { PATH: process.env.PATH },
  });
  opened.push({ close: () => child.kill("SIGKILL") });
  const texts = { out: "", err: "" };
  child.stdout.on("data", (chunk) => (texts.out += chunk));
  child.stderr.on("data", (chunk) => (texts.err += chunk));
  return { process: child, out: () => texts.out, err: () => texts.err };
}
