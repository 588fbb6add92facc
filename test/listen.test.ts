import http from "node:http";
import http2, { type ClientHttp2Session } from "node:http2";
import { createClient } from "@connectrpc/connect";
import { createGrpcTransport } from "@connectrpc/connect-node";
import { afterEach, describe, expect, test } from "vitest";
import { AgentRuntimeService } from "../gen/moltwire/agent/v1/agent_runtime_service_pb.ts";
import type { ListenLimits } from "../src/listen.ts";
import { connect2, connectRaw, envelope, frame, preface, type RawConnection, request2 } from "./wire-fixtures/raw.ts";
import { neverMs, startServer, task, until, type WireServer } from "./wire-fixtures/server.ts";

const method = "/moltwire.agent.v1.AgentRuntimeService/HandleTask";
const json = { ":path": method, "content-type": "application/json" };
const opened: { close(): unknown }[] = [];
afterEach(async () => {
  for (const each of opened.splice(0).reverse()) await each.close();
});

async function start(limits: Partial<ListenLimits> = {}) {
  const server = await startServer({ limits });
  opened.push(server);
  return server;
}
async function raw(server: WireServer) {
  const connection = await connectRaw(server.port);
  opened.push({ close: () => connection.socket.destroy() });
  return connection;
}
async function session2(server: WireServer, options?: http2.ClientSessionOptions): Promise<ClientHttp2Session> {
  const session = await connect2(server.port, options);
  opened.push({ close: () => session.destroy() });
  return session;
}
function get1(
  port: number,
  agent?: http.Agent,
): Promise<{ status: number | undefined; connection: string | undefined }> {
  return new Promise((resolve, reject) => {
    const options = { port, host: "127.0.0.1", path: "/plain", ...(agent === undefined ? {} : { agent }) };
    const request = http.get(options, (response) => {
      response.resume();
      response.once("end", () => resolve({ status: response.statusCode, connection: response.headers.connection }));
    });
    request.once("error", reject);
  });
}

describe("telling the protocols apart", () => {
  test("one port answers HTTP/1.1 and HTTP/2", async () => {
    const server = await start();
    expect((await get1(server.port)).status).toBe(200);
    expect((await request2(await session2(server), { ":method": "GET", ":path": "/plain" })).status).toBe(200);
  });

  test("a preface that comes byte by byte is HTTP/2, and waiting for it costs no processor time", async () => {
    const server = await start();
    const connection = await raw(server);
    connection.socket.setNoDelay(true);
    for (const byte of preface.subarray(0, 3)) {
      connection.socket.write(Buffer.from([byte]));
      await new Promise((resolve) => setTimeout(resolve, 5));
    }
    // A stretch of real time is what is measured here.
    const [before, begunMs] = [process.threadCpuUsage(), performance.now()];
    await new Promise((resolve) => setTimeout(resolve, 300));
    const { user, system } = process.threadCpuUsage(before);
    expect((user + system) / 1_000).toBeLessThan((performance.now() - begunMs) / 2);
    for (const byte of Buffer.concat([preface.subarray(3), frame(4, 0, 0)])) {
      connection.socket.write(Buffer.from([byte]));
      await new Promise((resolve) => setImmediate(resolve));
    }
    await until(() => connection.received().length >= 9);
    expect(connection.received()[3]).toBe(4);
  });

  test("what begins like the preface and is something else is HTTP/1.1", async () => {
    const server = await start();
    const connection = await raw(server);
    connection.socket.write("PR");
    await new Promise((resolve) => setTimeout(resolve, 20));
    connection.socket.write("OPFIND /plain HTTP/1.1\r\nhost: x\r\n\r\n");
    await until(() => connection.text().includes("\r\n\r\n"));
    expect(connection.text()).toMatch(/^HTTP\/1.1 404 /);
  });

  test.each(["", "P", "PRI", "PRI * HTTP/2.0\r\n"])(
    "a client that sends %j and stops is closed in time",
    async (sent) => {
      const server = await start({ firstBytesTimeoutMs: 200 });
      const connection = await raw(server);
      connection.socket.write(sent);
      await connection.closed;
      expect((await get1(server.port)).status).toBe(200);
    },
  );

  test("a client that ends before it is known what it speaks is closed at once", async () => {
    const connection = await raw(await start({ firstBytesTimeoutMs: neverMs }));
    connection.socket.end("PRI");
    await connection.closed;
  });

  test("dripping the preface does not put off the deadline", async () => {
    const server = await start({ firstBytesTimeoutMs: 200 });
    const connection = await raw(server);
    let sent = 0;
    const drip = setInterval(() => connection.socket.write(preface.subarray(sent, ++sent)), 50);
    await connection.closed;
    clearInterval(drip);
    expect(sent).toBeLessThan(12);
  });
});

describe("slow HTTP/1.1 clients", () => {
  const limits = { headersTimeoutMs: 300, requestTimeoutMs: 600, timeoutCheckMs: 50, keepAliveTimeoutMs: 200 };

  test("headers that do not end are answered 408 and closed", async () => {
    const connection = await raw(await start({ ...limits, requestTimeoutMs: 60_000 }));
    connection.socket.write(`POST ${method} HTTP/1.1\r\nhost: x\r\n`);
    await connection.closed;
    expect(connection.text()).toMatch(/^HTTP\/1.1 408 /);
  });

  test("a body that does not end is answered 408 and closed", async () => {
    const connection = await raw(await start(limits));
    connection.socket.write(
      `POST ${method} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 99\r\n\r\n{`,
    );
    await connection.closed;
    expect(connection.text()).toMatch(/^HTTP\/1.1 408 /);
  });

  test("a response may take longer than the request's timeout", async () => {
    const server = await start(limits);
    const connection = await raw(server);
    const body = '{"task":{"taskId":"long","capability":"wait"}}';
    connection.socket.write(
      `POST ${method} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: ${body.length}\r\n\r\n${body}`,
    );
    await until(() => server.running.has("long"));
    // Three timeouts of real time.
    await new Promise((resolve) => setTimeout(resolve, 3 * limits.requestTimeoutMs));
    expect(connection.text()).toBe("");
    server.release();
    await until(() => connection.text().includes("200 OK"));
  });

  test("a connection without a next request is closed", async () => {
    const server = await start(limits);
    const connection = await raw(server);
    connection.socket.write("GET /plain HTTP/1.1\r\nhost: x\r\n\r\n");
    await connection.closed;
    expect(connection.text()).toMatch(/^HTTP\/1.1 200 /);
  });

  test("too large headers are answered 431, and nonsense 400", async () => {
    const server = await start({ maxHeaderBytes: 2_048 });
    const large = await raw(server);
    large.socket.write(`GET /plain HTTP/1.1\r\nhost: x\r\nx: ${"y".repeat(3_000)}\r\n\r\n`);
    await large.closed;
    expect(large.text()).toMatch(/^HTTP\/1.1 431 /);
    const nonsense = await raw(server);
    nonsense.socket.write("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03");
    await nonsense.closed;
    expect(nonsense.text()).toMatch(/^HTTP\/1.1 400 /);
  });
});

describe("a connection above the limit", () => {
  const get = "GET /plain HTTP/1.1\r\nhost: x\r\n\r\n";
  const ask = async (connection: RawConnection) => {
    connection.socket.write(get);
    await until(() => connection.text().startsWith("HTTP/1.1 200"));
  };
  const wait = (connection: RawConnection, id: string) => {
    const body = `{"task":{"taskId":"${id}","capability":"wait"}}`;
    const head = `POST ${method} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: ${body.length}\r\n\r\n`;
    connection.socket.write(head + body);
  };

  test("takes the place of the one that has been silent longest, before that of one that is idle", async () => {
    const server = await start({ maxConnections: 3 });
    const [idle, silent, later] = [await raw(server), await raw(server), await raw(server)];
    await ask(idle);
    const first = await raw(server);
    await silent.closed;
    await ask(first);
    const second = await raw(server);
    await later.closed;
    expect([idle.isClosed(), first.isClosed()]).toEqual([false, false]);
    await ask(second);
    await ask(await raw(server));
    await idle.closed;
    expect([first.isClosed(), second.isClosed()]).toEqual([false, false]);
  });

  test("is closed at once while all others are being served, by HTTP/1.1 or HTTP/2, and not after", async () => {
    const server = await start({ maxConnections: 2 });
    wait(await raw(server), "h1");
    const over2 = request2(await session2(server), json, Buffer.from('{"task":{"taskId":"h2","capability":"wait"}}'));
    await until(() => server.running.has("h1") && server.running.has("h2"));
    await (await raw(server)).closed;
    server.release();
    expect((await over2).status).toBe(200);
    await ask(await raw(server));
  });
});

test("a connection with more requests under way than a session may have streams is closed, and its requests end", async () => {
  const server = await start();
  const pipelined = await raw(server);
  const body = '{"task":{"taskId":"many","capability":"wait"}}';
  const head = `POST ${method} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: ${body.length}\r\n\r\n`;
  pipelined.socket.write((head + body).repeat(251));
  await pipelined.closed;
  const within = await raw(server);
  within.socket.write("GET /plain HTTP/1.1\r\nhost: x\r\n\r\n".repeat(250));
  await until(() => within.text().split("HTTP/1.1 200").length === 251);
});

describe("HTTP/2 sessions", () => {
  const waitingTask = (id: string) => Buffer.from(JSON.stringify({ task: { taskId: id, capability: "wait" } }));

  // Two clients that do not honour what the server announces.
  const headers = hpack({ ":method": "POST", ":scheme": "http", ":authority": "x", ...json });
  const openStreams = (count: number) =>
    Buffer.concat(Array.from({ length: count }, (_, i) => frame(1, 4, 2 * i + 1, headers)));

  test("the 251st stream of a client that has not heard of the limit yet is refused, and that one only", async () => {
    const connection = await raw(await start());
    connection.socket.write(Buffer.concat([preface, frame(4, 0, 0), openStreams(251)]));
    const resets = () => framesOf(connection.received()).filter(({ type }) => type === 3);
    await until(() => resets().length > 0);
    expect(resets().map(({ stream, payload }) => [stream, payload.readUInt32BE(0)])).toEqual([
      [501, http2.constants.NGHTTP2_REFUSED_STREAM],
    ]);
    expect(connection.isClosed()).toBe(false);
  });

  test("the 251st stream of a client that acknowledged the limit ends its session", async () => {
    const server = await start();
    const connection = await raw(server);
    connection.socket.write(Buffer.concat([preface, frame(4, 0, 0)]));
    await until(() => framesOf(connection.received()).some(({ type }) => type === 4));
    connection.socket.write(Buffer.concat([frame(4, 1, 0), openStreams(251)]));
    await connection.closed;
    expect(framesOf(connection.received()).at(-1)?.type).toBe(7);
    expect((await get1(server.port)).status).toBe(200);
  });

  test("250 streams at once are all answered", async () => {
    const server = await start();
    const session = await session2(server);
    const answers = Array.from({ length: 250 }, (_, i) => request2(session, json, waitingTask(String(i))));
    await until(() => server.running.size === 250);
    server.release();
    expect((await Promise.all(answers)).every(({ status }) => status === 200)).toBe(true);
  });

  test("a flood of resets closes the session, and a client that cancels now and then keeps its own", async () => {
    const server = await start({ streamResetBurst: 20, streamResetsPerSecond: 1 });
    const flood = await raw(server);
    flood.socket.write(Buffer.concat([preface, frame(4, 0, 0)]));
    const cancel = Buffer.from([0, 0, 0, 8]);
    for (let i = 0; i < 200 && !flood.isClosed(); i++) {
      flood.socket.write(Buffer.concat([frame(1, 4, 2 * i + 1, headers), frame(3, 0, 2 * i + 1, cancel)]));
    }
    await flood.closed;
    const session = await session2(server);
    for (let i = 0; i < 10; i++) session.request({ ":method": "POST", ...json }).close(http2.constants.NGHTTP2_CANCEL);
    expect((await request2(session, json, Buffer.from("{}"))).status).toBe(200);
  });

  test("calls that are canceled in the packet that begins them run nothing", async () => {
    const server = await start();
    const connection = await raw(server);
    const begin = hpack({ ":method": "POST", ":scheme": "http", ":authority": "x", ...json });
    const body = Buffer.from('{"task":{"taskId":"reset","capability":"wait"}}');
    const cancel = (id: number) => frame(3, 0, id, Buffer.from([0, 0, 0, 8]));
    const seen: string[] = [];
    const calls = Array.from({ length: 50 }, (_, i) => 2 * i + 1).map((id) =>
      Buffer.concat([frame(1, 4, id, begin), frame(0, 1, id, body), cancel(id)]),
    );
    connection.socket.write(Buffer.concat([preface, frame(4, 0, 0), ...calls, frame(6, 0, 0, Buffer.alloc(8))]));
    await until(() => framesOf(connection.received()).some(({ type, stream }) => type === 6 && stream === 0));
    for (let i = 0; i < 10; i++) {
      await new Promise((resolve) => setImmediate(resolve));
      seen.push(...server.running);
    }
    expect([seen, server.asked()]).toEqual([[], 0]);
  });

  test.each([
    ["PING", 2_000_000, frame(6, 0, 0, Buffer.alloc(8))],
    ["SETTINGS", 2_000_000, frame(4, 0, 0)],
    ["empty CONTINUATION", 100_000, frame(9, 0, 1)],
  ])("a flood of %s frames ends with its session, and nobody else's", async (name, count, flooding) => {
    const server = await start();
    const connection = await raw(server);
    connection.socket.write(Buffer.concat([preface, frame(4, 0, 0)]));
    if (name === "empty CONTINUATION") connection.socket.write(frame(1, 0, 1, hpack({ ":method": "GET" })));
    // Answers are never read, as a flooder would not.
    connection.socket.pause();
    const block = Buffer.concat(Array.from({ length: 1_000 }, () => flooding));
    for (let i = 0; i < count / 1_000 && !connection.isClosed(); i++) {
      if (!connection.socket.write(block)) {
        await Promise.race([new Promise((resolve) => connection.socket.once("drain", resolve)), connection.closed]);
      }
    }
    connection.socket.resume();
    await connection.closed;
    expect((await get1(server.port)).status).toBe(200);
  });

  test("a client that closes its connection without a word ends its streams", async () => {
    const server = await start();
    const connection = await raw(server);
    connection.socket.write(Buffer.concat([preface, frame(4, 0, 0)]));
    const stream = {
      ...json,
      ":path": method.replace("HandleTask", "StreamTask"),
      "content-type": "application/grpc+json",
    };
    const body = envelope(Buffer.from('{"task":{"taskId":"left","capability":"forever"}}'));
    const head = hpack({ ":method": "POST", ":scheme": "http", ":authority": "x", ...stream });
    connection.socket.write(Buffer.concat([frame(1, 4, 1, head), frame(0, 1, 1, body)]));
    await until(() => server.running.has("left"));
    connection.socket.end();
    await until(() => !server.running.has("left"));
  });

  test("a session without streams is told to go away and closed; one with a stream is left", async () => {
    const server = await start({ idleSessionTimeoutMs: 150 });
    const busy = await session2(server);
    const answer = request2(busy, json, waitingTask("slow"));
    await until(() => server.running.has("slow"));
    const idle = await session2(server);
    await until(() => idle.closed);
    expect(busy.closed).toBe(false);
    server.release();
    expect((await answer).status).toBe(200);
  });

  test("a session that never gets past its preface is closed", async () => {
    const server = await start({ idleSessionTimeoutMs: 150 });
    const connection = await raw(server);
    connection.socket.write(preface);
    await connection.closed;
  });

  test("too many headers reset the stream and not the session", async () => {
    const server = await start({ maxHeaders: 50 });
    const session = await session2(server);
    const many = Object.fromEntries(Array.from({ length: 60 }, (_, i) => [`x-${i}`, "y"]));
    await expect(request2(session, { ...json, ...many })).rejects.toThrow();
    expect((await request2(session, json, Buffer.from("{}"))).status).toBe(200);
  });
});

describe("closing", () => {
  /** With these a close that waits for a limit does not come to its end. */
  const patient = { firstBytesTimeoutMs: neverMs, drainTimeoutMs: neverMs, lingerTimeoutMs: neverMs };

  test("waits for no silent sockets, idle connections, idle sessions and half a preface", async () => {
    const server = await start(patient);
    await raw(server);
    (await raw(server)).socket.write("PRI");
    const agent = new http.Agent({ keepAlive: true });
    await get1(server.port, agent);
    await session2(server);
    await server.close();
    agent.destroy();
  });

  test("lets a unary call finish, over HTTP/1.1 and HTTP/2, and waits for nothing after it", async () => {
    const server = await start(patient);
    const over2 = request2(await session2(server), json, Buffer.from('{"task":{"taskId":"h2","capability":"wait"}}'));
    const agent = new http.Agent({ keepAlive: true });
    const over1 = new Promise<number | undefined>((resolve, reject) => {
      const headers = { "content-type": "application/json" };
      const request = http.request({
        port: server.port,
        host: "127.0.0.1",
        path: method,
        method: "POST",
        headers,
        agent,
      });
      request.once("response", (response) => resolve(response.resume().statusCode)).once("error", reject);
      request.end('{"task":{"taskId":"h1","capability":"wait"}}');
    });
    await until(() => server.running.has("h1") && server.running.has("h2"));
    server.shutdown.abort();
    const closed = server.fastify.close();
    await until(() => !server.fastify.server.listening);
    server.release();
    expect((await over2).status).toBe(200);
    expect(await over1).toBe(200);
    await closed;
    agent.destroy();
  });

  test("ends open streams", async () => {
    const server = await start(patient);
    const client = createClient(AgentRuntimeService, createGrpcTransport({ baseUrl: server.url }));
    const stream = client.streamTask(task("forever", 1))[Symbol.asyncIterator]();
    await stream.next();
    const ended = expect(stream.next()).rejects.toThrow("unavailable");
    await server.close();
    await ended;
  });

  test("gives a client that has its answers and leaves its half open no more than the time to linger", async () => {
    const server = await start({ ...patient, lingerTimeoutMs: 50 });
    const [asked, idle] = [await raw(server), await raw(server)];
    for (const { socket, received } of [asked, idle]) {
      socket.write(Buffer.concat([preface, frame(4, 0, 0)]));
      await until(() => framesOf(received()).some(({ type }) => type === 4));
    }
    const head = hpack({ ":method": "POST", ":scheme": "http", ":authority": "x", ...json });
    asked.socket.write(
      Buffer.concat([
        frame(1, 4, 1, head),
        frame(0, 1, 1, Buffer.from('{"task":{"taskId":"answered","capability":"wait"}}')),
      ]),
    );
    await until(() => server.running.has("answered"));
    // From here on neither hears that the server has ended its half.
    for (const { socket } of [asked, idle]) socket.pause();
    await server.close();
  });

  test("cuts what has not ended after the drain's timeout", async () => {
    const server = await start({ drainTimeoutMs: 100 });
    const answer = request2(await session2(server), json, Buffer.from('{"task":{"taskId":"x","capability":"wait"}}'));
    const cut = expect(answer).rejects.toThrow();
    await until(() => server.running.has("x"));
    await server.fastify.close();
    await cut;
  });
});

/** Headers as literals without indexing and without Huffman coding: RFC 7541, section 6.2.2. Each text is shorter than 127 bytes. */
function hpack(headers: Record<string, string>): Buffer {
  const text = (value: string) => Buffer.concat([Buffer.from([value.length]), Buffer.from(value)]);
  return Buffer.concat(Object.entries(headers).flatMap(([name, value]) => [Buffer.from([0]), text(name), text(value)]));
}

function framesOf(bytes: Buffer): { type: number; stream: number; payload: Buffer }[] {
  const frames = [];
  for (let at = 0; at + 9 <= bytes.length; ) {
    const length = bytes.readUIntBE(at, 3);
    const payload = bytes.subarray(at + 9, at + 9 + length);
    frames.push({ type: bytes[at + 3] ?? 0, stream: bytes.readUInt32BE(at + 5), payload });
    at += 9 + length;
  }
  return frames;
}
