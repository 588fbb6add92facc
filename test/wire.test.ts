import { once } from "node:events";
import { type ClientHttp2Session, constants } from "node:http2";
import { brotliDecompressSync, gunzipSync } from "node:zlib";
import type { DescMethodUnary } from "@bufbuild/protobuf";
import {
  Code,
  ConnectError,
  createClient,
  createContextKey,
  createContextValues,
  type HandlerContext,
  type Interceptor,
  type Transport,
} from "@connectrpc/connect";
import { createConnectTransport, createGrpcTransport, createGrpcWebTransport } from "@connectrpc/connect-node";
import type { FastifyRequest } from "fastify";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { AgentRuntimeService } from "../gen/moltwire/agent/v1/agent_runtime_service_pb.ts";
import { AgentService } from "../gen/moltwire/bus/v1/agent_service_pb.ts";
import type { RawRequest } from "../src/rpc/answer.ts";
import { shortCall } from "../src/rpc/unary.ts";
import { callers, connectCode } from "./wire-fixtures/callers.ts";
import { connect2, connectRaw, envelope, request2 } from "./wire-fixtures/raw.ts";
import { startServer, task, until, type WireServer } from "./wire-fixtures/server.ts";

const prefix = `/${AgentRuntimeService.typeName}`;
let server: WireServer & { release: () => void };
let session: ClientHttp2Session;
beforeAll(async () => {
  server = await startServer();
  session = await connect2(server.port);
});
afterAll(async () => {
  session.destroy();
  await server.close();
});

const transports: Record<string, (url: string) => Transport> = {
  "Connect JSON over HTTP/1.1": (baseUrl) =>
    createConnectTransport({ baseUrl, httpVersion: "1.1", useBinaryFormat: false }),
  "Connect binary over HTTP/2": (baseUrl) =>
    createConnectTransport({ baseUrl, httpVersion: "2", useBinaryFormat: true }),
  "gRPC over HTTP/2": (baseUrl) => createGrpcTransport({ baseUrl }),
  "gRPC-Web over HTTP/1.1": (baseUrl) => createGrpcWebTransport({ baseUrl, httpVersion: "1.1" }),
};

describe.each(Object.keys(transports))("%s", (name) => {
  const client = () => createClient(AgentRuntimeService, transports[name]!(server.url));
  const failed = (call: Promise<unknown>) => call.then(() => undefined, ConnectError.from);
  async function drain(stream: AsyncIterable<unknown>) {
    for await (const _ of stream);
  }

  test("a unary call is answered", async () => {
    expect((await client().handleTask(task())).output?.kind).toEqual({ case: "stringValue", value: "hi" });
  });
  test("a stream comes in order", async () => {
    const seen: unknown[] = [];
    for await (const { event } of client().streamTask(task("echo", 3))) seen.push(event.value);
    expect(seen).toEqual(["1", "2", "3"]);
  });
  test("a handler's refusal keeps its code and metadata", async () => {
    const error = await failed(client().handleTask(task("refused")));
    expect([error?.code, error?.rawMessage, error?.metadata.get("x-why")]).toEqual([
      Code.PermissionDenied,
      "not you",
      "because",
    ]);
  });
  test("a bug is reported to the server and told to the client as internal, without its text", async () => {
    const before = server.failures.length;
    for (const call of [() => client().handleTask(task("bug")), () => drain(client().streamTask(task("bug", 1)))]) {
      const error = await failed(call());
      expect([error?.code, error?.rawMessage]).toEqual([Code.Internal, "internal error"]);
    }
    expect(server.failures.slice(before).map(({ error }) => (error as Error).message)).toEqual(["secret", "secret"]);
  });
  test("a refusal before the body is read arrives whole", async () => {
    const headers = { authorization: "Bearer wrong" };
    for (const call of [
      () => client().handleTask(task(), { headers }),
      () => drain(client().streamTask(task(), { headers })),
    ]) {
      const error = await failed(call());
      expect([error?.code, error?.rawMessage, error?.metadata.get("retry-after")]).toEqual([
        Code.Unauthenticated,
        "this key is wrong: schlüssel",
        "7",
      ]);
    }
  });
  test("an unknown method of a known service is unimplemented", async () => {
    const missing = { ...AgentRuntimeService.method.handleTask, name: "Missing" };
    const call = transports[name]!(server.url).unary(missing, undefined, undefined, undefined, task());
    expect((await failed(call))?.code).toBe(Code.Unimplemented);
  });
  test("a deadline ends a stream whose handler hears nothing", async () => {
    const error = await failed(drain(client().streamTask(task("deaf"), { timeoutMs: 50 })));
    expect(error?.code).toBe(Code.DeadlineExceeded);
  });
  test("a client that leaves ends its stream's handler", async () => {
    const asked = task("forever", 1);
    const leave = new AbortController();
    const stream = client().streamTask(asked, { signal: leave.signal })[Symbol.asyncIterator]();
    await stream.next();
    expect(server.running.has(asked.task.taskId)).toBe(true);
    leave.abort();
    await stream.next().catch(() => {});
    await until(() => !server.running.has(asked.task.taskId));
  });
  test.each(["forever", "deaf"])(
    "a shutdown ends a stream (%s) with unavailable, and no stream ends well",
    async (how) => {
      const own = await startServer();
      const stream = createClient(AgentRuntimeService, transports[name]!(own.url)).streamTask(task(how, 2));
      const seen: unknown[] = [];
      const error = await failed(
        (async () => {
          for await (const { event } of stream) if (seen.push(event.value) === 2) own.shutdown.abort();
        })(),
      );
      expect([seen, error?.code]).toEqual([["1", "2"], Code.Unavailable]);
      await own.close();
    },
  );
});

describe("uploads nobody wants", () => {
  /** Uploads for as long as it is let, over HTTP/1.1. */
  async function upload(port: number, headers: string): Promise<{ text: string; sent: number }> {
    const connection = await connectRaw(port);
    connection.socket.write(`POST ${prefix}/HandleTask HTTP/1.1\r\nhost: x\r\n${headers}\r\n\r\n`);
    const piece = Buffer.from(`10000\r\n${"x".repeat(65_536)}\r\n`);
    let sent = 0;
    while (!connection.isClosed() && sent < 1_000_000_000) {
      sent += piece.length;
      if (connection.socket.write(piece)) continue;
      await Promise.race([new Promise((resolve) => connection.socket.once("drain", resolve)), connection.closed]);
    }
    await connection.closed;
    return { text: connection.text(), sent };
  }

  test.each([
    ["refused by a hook", "authorization: Bearer wrong\r\ncontent-type: application/json", / 401 /],
    ["too large", "content-type: application/json", / 429 /],
    ["of an unknown type", "content-type: image/jpeg", / 415 /],
    ["of no valid type", "content-type: ;;;", / 415 /],
  ])("%s: the answer arrives and the upload is cut", async (_what, headers, status) => {
    const { text, sent } = await upload(server.port, `${headers}\r\ntransfer-encoding: chunked`);
    expect(text.split("\r\n", 1)[0]).toMatch(status);
    // Who is not told would use the connection for the next call.
    expect(text).toMatch(/^connection: close\r$/im);
    expect(sent).toBeLessThan(50_000_000);
  });

  test("a small refused body does not cost the connection", async () => {
    const connection = await connectRaw(server.port);
    const call = `POST ${prefix}/HandleTask HTTP/1.1\r\nhost: x\r\nauthorization: Bearer wrong\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}`;
    connection.socket.write(call);
    await until(() => connection.text().includes("schl"));
    connection.socket.write(call);
    await until(() => connection.text().split("HTTP/1.1 401").length === 3);
    connection.socket.destroy();
  });

  test("a message too many does not cost the connection its next call", async () => {
    const connection = await connectRaw(server.port);
    const head = (method: string, headers: string) =>
      `POST ${prefix}/${method} HTTP/1.1\r\nhost: x\r\n${headers}\r\n\r\n`;
    const two = Buffer.concat([envelope(Buffer.from("{}")), envelope(Buffer.from("{}"))]);
    connection.socket.write(head("StreamTask", "content-type: application/connect+json\r\ncontent-length: 15"));
    connection.socket.write(two);
    await until(() => connection.text().includes("unimplemented"));
    connection.socket.write("x");
    // Longer than the body that nobody took may stay.
    const sleep = JSON.stringify(task("sleep"));
    const headers = `content-type: application/json\r\nconnect-timeout-ms: 1400\r\ncontent-length: ${sleep.length}`;
    connection.socket.write(head("HandleTask", headers) + sleep);
    await until(() => connection.isClosed() || connection.text().includes("deadline_exceeded"));
    expect(connection.isClosed()).toBe(false);
    connection.socket.destroy();
  });

  test("over HTTP/2 a refusal waits for the rest of a small announced body, so that stopping short cannot cost its sender the answer", async () => {
    const body = Buffer.concat([envelope(Buffer.alloc(0), 0, 0x7f_ff_ff_ff), Buffer.alloc(100_000)]);
    const stream = session.request({
      ":method": "POST",
      ":path": `${prefix}/StreamTask`,
      "content-type": "application/grpc",
      "content-length": String(body.length),
    });
    const answered = Promise.withResolvers<boolean>();
    let grpcStatus: unknown;
    const closed = new Promise<number | undefined>((resolve) => stream.once("close", () => resolve(stream.rstCode)));
    stream.on("error", () => {});
    stream.once("response", () => {
      answered.resolve(true);
      stream.end();
    });
    stream.once("trailers", (trailers) => {
      grpcStatus = trailers["grpc-status"];
    });
    stream.resume().write(body.subarray(0, 50_000));
    const pause = setTimeout(() => answered.resolve(false), 100);
    const isEarly = await answered.promise;
    clearTimeout(pause);
    if (!isEarly) stream.end(body.subarray(50_000));
    expect([isEarly, await closed, grpcStatus]).toEqual([false, 0, "8"]);
  });

  test("over HTTP/2 the answer arrives and the stream is reset without an error", async () => {
    const headers = {
      ":path": `${prefix}/HandleTask`,
      "content-type": "application/grpc",
      authorization: "Bearer wrong",
    };
    const answer = await request2(session, headers, Buffer.alloc(10), { end: false });
    expect([answer.grpcStatus, answer.headers["x-set-by-a-hook"], await answer.reset]).toEqual(["16", "yes", 0]);
    // Strict clients, grpc-go among them, take nothing else for a status in the headers.
    expect(answer.isHeadersOnly).toBe(true);
  });
});

describe("paths and methods", () => {
  const ask = (headers: Record<string, string>, body?: Uint8Array) => request2(session, headers, body);

  test("an unknown RPC is unimplemented in every protocol", async () => {
    for (const [name, { type, wrap, code }] of Object.entries(callers)) {
      const answer = await ask(
        { ":path": "/no.such.v1.Service/Method", "content-type": type },
        wrap(Buffer.from("{}")),
      );
      expect([name, code(answer)]).toEqual([name, Code.Unimplemented]);
      if (code === connectCode) expect(answer.status).toBe(404);
    }
    const text = await ask({ ":path": "/no.such.v1.Service/Method", "content-type": "application/grpc-web-text" });
    expect(Buffer.from(text.body.toString(), "base64").toString()).toContain("grpc-status: 12");
  });
  test("another unknown path is a small JSON 404, whatever the body", async () => {
    for (const type of ["application/json", "text/html"]) {
      const answer = await ask({ ":path": "/index.php", "content-type": type }, Buffer.from("{{{"));
      expect([answer.status, answer.headers["content-type"], JSON.parse(answer.body.toString())]).toEqual([
        404,
        "application/json",
        { code: "not_found", message: "there is nothing here" },
      ]);
    }
  });
  test("a wrong HTTP method is 405 and says which are right; HEAD and GET too", async () => {
    for (const verb of ["PUT", "DELETE", "PATCH", "GET", "HEAD"]) {
      const answer = await ask({
        ":method": verb,
        ":path": `${prefix}/HandleTask`,
        "content-type": "application/json",
      });
      expect([verb, answer.status, answer.headers.allow]).toEqual([verb, 405, "POST"]);
    }
    const answer = await ask({ ":method": "PUT", ":path": `${prefix}/ReadTask`, "content-type": "application/json" });
    expect(answer.headers.allow).toBe("POST, GET");
  });
  test("a wrong content type is 415 and says which are right", async () => {
    for (const type of [
      "image/jpeg",
      "application/grpc+foo",
      "application/connect+json",
      "application/grpc-web-text",
    ]) {
      const answer = await ask({ ":path": `${prefix}/HandleTask`, "content-type": type });
      expect([type, answer.status]).toEqual([type, 415]);
      expect(answer.headers["accept-post"]).toContain("application/json, application/proto, application/grpc+json");
    }
  });
  test("Connect GET is answered, and its faults are the sender's", async () => {
    const get = (query: string) => ask({ ":method": "GET", ":path": `${prefix}/ReadTask?connect=v1&${query}` });
    const message = encodeURIComponent('{"task":{"input":"hi"}}');
    expect((await get(`encoding=json&message=${message}`)).body.toString()).toBe('{"output":"hi"}');
    for (const query of [
      "encoding=json&message=%7B",
      "encoding=proto&base64=1&message=a",
      "encoding=proto&base64=1&message=%25%25",
      "encoding=proto&message=%ff%ff",
      "encoding=json&compression=gzip&message=%7B%7D",
    ]) {
      const answer = await get(query);
      expect([query, answer.status, connectCode(answer)]).toEqual([query, 400, Code.InvalidArgument]);
    }
    expect((await get("encoding=xml&message=1")).status).toBe(415);
  });
  test("a request that names no host is the sender's fault", async () => {
    for (const head of ["HTTP/1.0\r\n", "HTTP/1.1\r\nhost: [\r\n", "HTTP/1.1\r\nhost: a b\r\n"]) {
      const connection = await connectRaw(server.port);
      const body = "content-type: application/json\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}";
      connection.socket.write(`POST ${prefix}/HandleTask ${head}${body}`);
      await connection.closed;
      expect(connection.text()).toMatch(/^HTTP\/1.1 400 /);
    }
  });
});

describe("what a call may do", () => {
  const headers = { ":path": `${prefix}/HandleTask`, "content-type": "application/json" };

  test("a call that is canceled while it waits at the gate is not carried out", async () => {
    const [reached, opened] = [Promise.withResolvers<void>(), Promise.withResolvers<void>()];
    const gone = Promise.withResolvers<void>();
    const gate = async ({ requestHeader, signal }: HandlerContext) => {
      if (requestHeader.get("x-gate") !== "slow") return;
      signal.addEventListener("abort", () => gone.resolve(), { once: true });
      reached.resolve();
      await opened.promise;
    };
    const own = await startServer({ mount: { gate } });
    const mine = await connect2(own.port);
    const stream = mine.request({
      ":method": "POST",
      ...headers,
      "content-type": "application/proto",
      "x-gate": "slow",
    });
    stream.on("error", () => {});
    stream.end(Buffer.from([0x0a, 0x00]));
    await reached.promise;
    stream.close(constants.NGHTTP2_CANCEL);
    await gone.promise;
    opened.resolve();
    expect((await request2(mine, headers, Buffer.from("{}"))).status).toBe(200);
    expect(own.asked()).toBe(1);
    mine.destroy();
    await own.close();
  });
  test("a handler that asks late hears that its caller has left", async () => {
    const [begun, goOn] = [Promise.withResolvers<void>(), Promise.withResolvers<void>()];
    const heard = Promise.withResolvers<boolean>();
    const late: Interceptor = (next) => async (request) => {
      begun.resolve();
      await goOn.promise;
      heard.resolve(request.signal.aborted);
      return next(request);
    };
    const own = await startServer({ interceptors: [late] });
    const mine = await connect2(own.port);
    const stream = mine.request({ ":method": "POST", ...headers });
    stream.on("error", () => {});
    const left = once(stream, "close");
    stream.end(Buffer.from("{}"));
    await begun.promise;
    stream.close(constants.NGHTTP2_CANCEL);
    await left;
    await new Promise((resolve, reject) => mine.ping((error) => (error ? reject(error) : resolve(undefined))));
    goOn.resolve();
    expect(await heard.promise).toBe(true);
    mine.destroy();
    await own.close();
  });
  test("a gate refuses before the body is read, lets the others in, and its bugs are the server's", async () => {
    const gate = ({ requestHeader }: HandlerContext) => {
      if (requestHeader.get("x-gate") === "shut") throw new ConnectError("shut", Code.PermissionDenied);
      if (requestHeader.get("x-gate") === "broken") throw new TypeError("secret");
    };
    const own = await startServer({ mount: { gate } });
    const mine = await connect2(own.port);
    const shut = await request2(mine, { ...headers, "x-gate": "shut" }, Buffer.from("{"), { end: false });
    expect(connectCode(shut)).toBe(Code.PermissionDenied);
    const broken = await request2(mine, { ...headers, "x-gate": "broken" }, Buffer.from("{"), { end: false });
    expect([connectCode(broken), broken.body.includes("secret")]).toEqual([Code.Internal, false]);
    expect(own.failures.map(({ error }) => (error as Error).message)).toEqual(["secret"]);
    expect((await request2(mine, headers, Buffer.from("{}"))).status).toBe(200);
    mine.destroy();
    await own.close();
  });

  test("interceptors see what a hook left on the request, and malformed bytes of a stream as the sender's fault", async () => {
    const key = createContextKey("nobody");
    const seen: unknown[] = [];
    const interceptor: Interceptor = (next) => async (request) => {
      seen.push(request.contextValues.get(key));
      return next(request).catch((error) => {
        seen.push((error as ConnectError).code);
        throw error;
      });
    };
    const contextValues = (request: FastifyRequest) => createContextValues().set(key, String(request.headers["x-who"]));
    const own = await startServer({ mount: { contextValues, interceptors: [interceptor] } });
    const mine = await connect2(own.port);
    await request2(mine, { ...headers, "x-who": "me" }, Buffer.from("{}"));
    const stream = { ...headers, ":path": `${prefix}/StreamTask`, "content-type": "application/grpc", "x-who": "you" };
    await request2(mine, stream, envelope(Buffer.from([0x07])));
    expect(seen).toEqual(["me", "you", Code.InvalidArgument]);
    mine.destroy();
    await own.close();
  });

  test("a handler that ends because its deadline passed answers so, and is no failure of the server", async () => {
    const before = server.failures.length;
    const body = Buffer.from('{"task":{"capability":"sleep"}}');
    const answer = await request2(session, { ...headers, "connect-timeout-ms": "50" }, body);
    expect([answer.status, connectCode(answer), server.failures.length]).toEqual([504, Code.DeadlineExceeded, before]);
  });

  test("clients that leave in the middle of a body are no failure of the server", async () => {
    const codes: Code[] = [];
    const interceptor: Interceptor = (next) => (request) =>
      next(request).catch((error) => {
        codes.push((error as ConnectError).code);
        throw error;
      });
    const own = await startServer({ interceptors: [interceptor] });
    const mine = await connect2(own.port);
    for (const type of ["application/json", "application/grpc"]) {
      const rpc = type === "application/grpc" ? "StreamTask" : "HandleTask";
      const stream = mine.request({ ":method": "POST", ":path": `${prefix}/${rpc}`, "content-type": type });
      stream.on("error", () => {}).write("{");
      const connection = await connectRaw(own.port);
      const head = `POST ${prefix}/${rpc} HTTP/1.1\r\nhost: x\r\ncontent-type: ${type}\r\ncontent-length: 9\r\n\r\n{`;
      connection.socket.write(head);
      await new Promise((resolve) => mine.ping(resolve));
      stream.close(8);
      connection.socket.resetAndDestroy();
    }
    await until(() => codes.length === 2);
    // Over HTTP/2 the body's end can come before the news of the reset, and then it is one that ended too early.
    expect(codes).toContain(Code.Canceled);
    expect(codes.filter((code) => code !== Code.Canceled && code !== Code.InvalidArgument)).toEqual([]);
    mine.destroy();
    await own.close();
    expect(own.failures).toEqual([]);
  });

  test("a reader that takes nothing is cut off, over HTTP/1.1 and HTTP/2", async () => {
    const own = await startServer({ mount: { stallTimeoutMs: 200 } });
    const flood = (id: string) => JSON.stringify({ task: { taskId: id, attempt: 2_000_000_000 } });
    const over1 = await connectRaw(own.port);
    over1.socket.pause();
    const body = envelope(Buffer.from(flood("one")));
    const type = "content-type: application/connect+json";
    over1.socket.write(
      `POST ${prefix}/StreamTask HTTP/1.1\r\nhost: x\r\n${type}\r\ncontent-length: ${body.length}\r\n\r\n`,
    );
    over1.socket.write(body);
    const over2 = await connect2(own.port);
    const stream = { ":method": "POST", ":path": `${prefix}/StreamTask`, "content-type": "application/connect+json" };
    const paused = over2.request(stream).on("error", () => {});
    paused.end(envelope(Buffer.from(flood("two"))));
    await until(() => own.running.size === 2);
    await until(() => own.running.size === 0);
    over2.destroy();
    over1.socket.destroy();
    await own.close();
  });
});

describe("the short way", () => {
  const { handleTask } = AgentRuntimeService.method;
  const request = (more: object, headers: Record<string, string> = {}) =>
    ({ method: "POST", url: "/x", stream: {}, ...more, headers: { host: "x", ...headers } }) as unknown as RawRequest;
  const short = (headers: Record<string, string>, more = {}, method: DescMethodUnary = handleTask) => {
    const call = shortCall(method, request(more, headers), 10_000);
    return call && [call.wire.name, call.isBinary, call.timeoutMs];
  };

  test("ordinary unary calls of every protocol go it, with their deadlines", () => {
    expect(short({ "content-type": "application/json" })).toEqual(["connect", false, undefined]);
    expect(short({ "content-type": "application/proto", "connect-timeout-ms": "20" })).toEqual(["connect", true, 20]);
    expect(short({ "content-type": "application/grpc", "grpc-timeout": "2S" })).toEqual(["grpc", true, 2_000]);
    expect(short({ "content-type": "application/grpc+json" })).toEqual(["grpc", false, undefined]);
    expect(short({ "content-type": "application/grpc-web+proto" }, { stream: undefined })?.[0]).toBe("grpc-web");
    const get = { method: "GET", url: "/x?connect=v1&encoding=json&message=%7B%7D" };
    expect(short({}, get, AgentService.method.getAgent)).toEqual(["connect", false, undefined]);
  });

  test.each([
    ["gzip", gunzipSync],
    ["br", brotliDecompressSync],
  ] as const)("a long answer comes packed by %s for who asks for that, whatever its length", async (name, unpack) => {
    for (const length of [2_000, 40_000]) {
      const body = Buffer.from(JSON.stringify({ task: { taskId: "x", input: "y".repeat(length) } }));
      const path = `${prefix}/HandleTask`;
      const json = { ":path": path, "content-type": "application/json", "accept-encoding": name };
      const plain = await request2(session, json, body);
      expect([plain.status, plain.headers["content-encoding"]]).toEqual([200, name]);
      expect(JSON.parse(unpack(plain.body).toString())).toEqual({ output: "y".repeat(length) });
      const grpc = { ":path": path, "content-type": "application/grpc+json", "grpc-accept-encoding": name };
      const enveloped = await request2(session, grpc, envelope(body));
      expect([enveloped.grpcStatus, enveloped.headers["grpc-encoding"], enveloped.body[0]]).toEqual(["0", name, 1]);
      expect(unpack(enveloped.body.subarray(5))).toEqual(unpack(plain.body));
    }
  });

  test("what is out of the ordinary goes to Connect's own handlers", () => {
    const grpc = { "content-type": "application/grpc" };
    for (const [headers, more] of [
      [{ ...grpc, "grpc-encoding": "gzip" }],
      [{ ...grpc, "grpc-timeout": "11S" }],
      [{ ...grpc, "grpc-timeout": "soon" }],
      [{ ...grpc, "content-digest": "sha-256=:x:" }],
      [{ "content-type": "application/grpc-web-text" }],
      [{ "content-type": "application/json; charset=utf-8" }],
      [{}, { method: "GET", url: "/x?encoding=json&message=%7B%7D" }],
    ] as const)
      expect([headers, short(headers, more)]).toEqual([headers, undefined]);
    const http1 = request({}, grpc);
    delete (http1 as { stream?: unknown }).stream;
    expect(shortCall(handleTask, http1, 10_000)).toBeUndefined();
  });
});
