import type { ClientHttp2Session } from "node:http2";
import { gzipSync } from "node:zlib";
import { Code } from "@connectrpc/connect";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { AgentRuntimeService } from "../gen/moltwire/agent/v1/agent_runtime_service_pb.ts";
import { limitHeld } from "../src/rpc/held.ts";
import { bombs } from "./wire-fixtures/bombs.ts";
import {
  binaryCallers,
  type CallerName,
  callers,
  connectCode,
  encodingHeader,
  grpcCode,
  jsonCallers,
  sendAs,
} from "./wire-fixtures/callers.ts";
import { connect2, connectRaw, envelope, request2 } from "./wire-fixtures/raw.ts";
import { neverMs, startServer, until, type WireServer } from "./wire-fixtures/server.ts";

const prefix = `/${AgentRuntimeService.typeName}`;
let server: WireServer & { release: () => void };
let session: ClientHttp2Session;
beforeAll(async () => {
  server = await startServer();
  // The test's own client must not be what gives way first.
  session = await connect2(server.port, { maxSessionMemory: 200 });
});
afterAll(async () => {
  session.destroy();
  await server.close();
});

const send = (name: CallerName, bytes: Buffer, headers: Record<string, string> = {}, end = true) =>
  sendAs(session, name, bytes, headers, end);

/** A task whose input is a list in a list in a list. */
function nestedBinary(depth: number): Buffer {
  const heads: Buffer[] = [];
  let length = 0;
  const wrap = (tag: number) => {
    const bytes = [tag];
    for (let rest = length; ; rest >>>= 7) {
      bytes.push(rest > 127 ? (rest & 127) | 128 : rest);
      if (rest <= 127) break;
    }
    length += bytes.length;
    heads.push(Buffer.from(bytes));
  };
  for (let i = 0; i < depth; i++) {
    // ListValue.values, in Value.list_value.
    wrap(0x0a);
    wrap(0x32);
  }
  // TaskAssignment.input, in HandleTaskRequest.task.
  wrap(0x32);
  wrap(0x0a);
  return Buffer.concat(heads.reverse());
}

describe.each(binaryCallers)("malformed bytes by %s", (name) => {
  const { wrap } = callers[name];
  test.each([
    ["an illegal tag", Buffer.from([0x07])],
    ["a length beyond the end", Buffer.from([0x0a, 0x20, 0x01])],
    ["a number without an end", Buffer.alloc(12, 0xff)],
    ["text that is not UTF-8", Buffer.from([0x0a, 0x04, 0x0a, 0x02, 0xc3, 0x28])],
    ["nesting 10,000 deep", nestedBinary(10_000)],
  ])("%s is the sender's fault", async (_what, bytes) => {
    expect(await send(name, wrap(bytes))).toBe(Code.InvalidArgument);
  });
});

describe.each(jsonCallers)("malformed JSON by %s", (name) => {
  const { wrap } = callers[name];
  test.each([
    ["half a document", '{"task":{"taskId":"x"'],
    ["nothing like JSON", "\u0000\u0001<xml/>"],
    ["a list for an object", "[]"],
    ["a number for a text", '{"task":{"taskId":1}}'],
    ["a text for a message", '{"task":"x"}'],
    ["a fraction for a whole number", '{"task":{"attempt":1.5}}'],
    ["a number out of range", '{"task":{"attempt":3000000000}}'],
    ["half a surrogate pair, which no error message may repeat", '{"task":{"attempt":"\\ud800"}}'],
    ["a time that is none", '{"task":{"deadlineTime":"yesterday"}}'],
    ["a struct 10,000 deep", `{"task":{"input":${"[".repeat(10_000)}${"]".repeat(10_000)}}}`],
    ["an unknown field 10,000 deep", `{"other":${'{"a":'.repeat(10_000)}1${"}".repeat(10_001)}`],
  ])("%s is the sender's fault or ignored", async (what, text) => {
    const code = await send(name, wrap(Buffer.from(text)));
    expect(code).toBe(what.startsWith("an unknown field") ? 0 : Code.InvalidArgument);
  });
});

describe("sizes", () => {
  test.each(Object.keys(callers) as CallerName[])(
    "a message over the limit is resource_exhausted by %s",
    async (name) => {
      expect(await send(name, callers[name].wrap(Buffer.alloc(1_048_577, 0x20)))).toBe(Code.ResourceExhausted);
    },
  );
  test.each((Object.keys(callers) as CallerName[]).filter((name) => callers[name].wrap === envelope))(
    "a prefix that announces 4 GiB is answered at once by %s, the body unread",
    async (name) => {
      expect(await send(name, envelope(Buffer.from([1]), 0, 0xffffffff), {}, false)).toBe(Code.ResourceExhausted);
    },
  );
  test("a body left open after its answer is reset without an error, and its stream is free again", async () => {
    const headers = { ":path": `${prefix}/HandleTask`, "content-type": "application/grpc" };
    const answer = await request2(session, headers, envelope(Buffer.from([1]), 0, 0xffffffff), { end: false });
    expect([answer.grpcStatus, await answer.reset]).toEqual(["8", 0]);
  });
  test("a truncated envelope is the sender's fault", async () => {
    for (const name of ["connect stream", "grpc", "grpc stream", "grpc-web"] as const) {
      expect(await send(name, envelope(Buffer.from([1]), 0, 9))).toBe(Code.InvalidArgument);
    }
  });
  test.each(Object.keys(callers) as CallerName[])("a bomb of gzip or brotli does not go off by %s", async (name) => {
    const header = encodingHeader(name);
    const flag = header === "content-encoding" ? {} : { flags: 1 };
    const wrap = (bytes: Buffer) => ("flags" in flag ? envelope(bytes, flag.flags) : bytes);
    for (const { says, encoding, packed } of bombs) {
      expect([says, await send(name, wrap(packed), { [header]: encoding })]).toEqual([says, Code.ResourceExhausted]);
    }
    const cut = gzipSync(Buffer.from("{}")).subarray(0, 15);
    for (const broken of [Buffer.from("not gzip"), cut]) {
      expect(await send(name, wrap(broken), { [header]: "gzip" })).toBe(Code.InvalidArgument);
    }
    expect(await send(name, wrap(Buffer.from("x")), { [header]: "zip" })).toBe(Code.Unimplemented);
  });
  test("50 bombs at once take little memory", async () => {
    // One that has to be unpacked to be found out.
    const bomb = bombs.find(({ says }) => says === "100 bytes")!.packed;
    const before = process.memoryUsage().rss;
    let most = before;
    const watch = setInterval(() => {
      most = Math.max(most, process.memoryUsage().rss);
    }, 2);
    const codes = await Promise.all(
      Array.from({ length: 50 }, () => send("connect+json", bomb, { "content-encoding": "gzip" })),
    );
    clearInterval(watch);
    expect(new Set(codes)).toEqual(new Set([Code.ResourceExhausted]));
    expect(most - before).toBeLessThan(150_000_000);
  });
  test("a body in 100,000 pieces of one byte costs little more than in one", async () => {
    const text = Buffer.from(JSON.stringify({ task: { input: "x".repeat(100_000) } }));
    const stream = session.request({
      ":method": "POST",
      ":path": `${prefix}/StreamTask`,
      "content-type": "application/connect+json",
    });
    const answered = new Promise<void>((resolve) => stream.resume().once("end", resolve));
    const before = process.threadCpuUsage();
    for (const byte of envelope(text)) stream.write(Buffer.from([byte]));
    stream.end();
    await answered;
    const { user, system } = process.threadCpuUsage(before);
    expect((user + system) / 1_000).toBeLessThan(10_000);
  });
  test("a body that comes too slowly is deadline_exceeded, also over HTTP/2", async () => {
    const own = await startServer({ mount: { bodyTimeoutMs: 100 } });
    const slow = await connect2(own.port);
    const headers = { ":path": `${prefix}/HandleTask`, "content-type": "application/json" };
    const answer = await request2(slow, headers, Buffer.from("{"), { end: false });
    expect([answer.status, connectCode(answer)]).toEqual([504, Code.DeadlineExceeded]);
    const grpc = await request2(slow, { ...headers, "content-type": "application/grpc" }, Buffer.from([0]), {
      end: false,
    });
    expect(grpcCode(grpc)).toBe(Code.DeadlineExceeded);
    slow.destroy();
    await own.close();
  });
  test("an envelope marked compressed without a compression is internal, as the protocols have it", async () => {
    for (const name of ["grpc", "grpc stream", "connect stream", "grpc-web"] as const) {
      expect(await send(name, envelope(Buffer.from([1]), 1))).toBe(Code.Internal);
    }
  });
});

test("beyond the limit of what is held, the longest held is cut, and the newest never", () => {
  const hold = limitHeld(10);
  const cut: string[] = [];
  const name = (id: string) => () => cut.push(id);
  const releaseA = hold(4, name("a"));
  hold(4, name("b"));
  expect(cut).toEqual([]);
  hold(4, name("c"));
  expect(cut).toEqual(["a"]);
  releaseA();
  hold(2, name("d"));
  expect(cut).toEqual(["a"]);
  hold(100, name("e"));
  expect(cut).toEqual(["a", "b", "c", "d"]);
});

test("answers that nobody takes are bounded in all, and others are answered", async () => {
  const size = 900_000;
  const body = Buffer.from(JSON.stringify({ task: { taskId: "x", input: "x".repeat(size) } }));
  const headers = { ":path": `${prefix}/HandleTask`, "content-type": "application/json" };
  // Its answers are cut for nothing else, however long all that takes to arrive.
  const own = await startServer({ mount: { bodyTimeoutMs: neverMs, stallTimeoutMs: neverMs } });
  const deaf = await connect2(own.port, { maxSessionMemory: 1_000, settings: { initialWindowSize: 0 } });
  const ends = Array.from({ length: 80 }, () =>
    request2(deaf, headers, body).then(
      (answer) => (answer.body.length < size ? "cut" : "answered"),
      () => "cut",
    ),
  );
  let cut = 0;
  for (const end of ends) void end.then((how) => (cut += how === "cut" ? 1 : 0));
  await until(() => cut > 0, 110_000);
  expect(await send("connect+json", Buffer.from("{}"))).toBe(0);
  expect(deaf.closed).toBe(false);
  deaf.destroy();
  await own.close();
});

describe("2,000 malformed requests from a seed", () => {
  /** mulberry32, so that a failure can be replayed. */
  function chance(seed: number): (below: number) => number {
    let state = seed;
    return (below) => {
      state = (state + 0x6d2b79f5) | 0;
      let t = Math.imul(state ^ (state >>> 15), 1 | state);
      t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
      return ((t ^ (t >>> 14)) >>> 0) % below;
    };
  }
  const seed = Number(process.env.WIRE_SEED ?? 20_260_801);

  test(`none is internal, none crashes anything, and the server still answers (WIRE_SEED=${seed})`, async () => {
    const below = chance(seed);
    const names = Object.keys(callers) as CallerName[];
    const valid = Buffer.from([
      0x0a, 0x0d, 0x0a, 0x01, 0x78, 0x10, 0x01, 0x1a, 0x01, 0x63, 0x32, 0x03, 0x1a, 0x01, 0x79,
    ]);
    const json = Buffer.from('{"task":{"taskId":"x","attempt":1,"contractId":"c","input":{"a":[1,{"b":null}]}}}');
    const codes = new Map<number, number>();
    const one = async () => {
      const name = names[below(names.length)]!;
      const isJson = callers[name].type.includes("json");
      let bytes = Buffer.from(isJson ? json : valid);
      for (let i = below(4); i >= 0 && bytes.length > 0; i--) bytes[below(bytes.length)] = below(256);
      if (below(3) === 0) bytes = bytes.subarray(0, below(bytes.length + 1));
      if (below(5) === 0) bytes = Buffer.from(Array.from({ length: below(300) }, () => below(256)));
      const announced = below(4) === 0 ? below(0xffffffff) : bytes.length;
      // A compressed flag without a compression is the one thing that the protocols want to be internal.
      const flags = below(8) === 0 ? below(256) & 0xfe : 0;
      const wrapped = callers[name].wrap === envelope ? envelope(bytes, flags, announced) : bytes;
      const headers = below(10) === 0 ? { [encodingHeader(name)]: ["gzip", "br", "zip"][below(3)]! } : {};
      const code = await send(name, wrapped, headers);
      codes.set(code, (codes.get(code) ?? 0) + 1);
      expect([0, Code.InvalidArgument, Code.ResourceExhausted, Code.Unimplemented], name).toContain(code);
    };
    for (let i = 0; i < 40; i++) await Promise.all(Array.from({ length: 50 }, one));
    expect(codes.get(Code.InvalidArgument)).toBeGreaterThan(500);
    expect(server.failures).toEqual([]);
    expect(await send("connect+json", json)).toBe(0);
  });

  test("nor do random bytes on the socket", async () => {
    const below = chance(seed + 1);
    const starts = [
      "",
      "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
      "POST /x HTTP/1.1\r\n",
      "GET /plain HTTP/1.1\r\nhost: x\r\n\r\n",
    ];
    for (let i = 0; i < 200; i++) {
      const connection = await connectRaw(server.port);
      connection.socket.write(starts[below(starts.length)]!);
      connection.socket.end(Buffer.from(Array.from({ length: below(500) }, () => below(256))));
      await connection.closed;
      expect(connection.text()).not.toMatch(/^HTTP\/1.1 5/);
    }
    expect(await send("connect+json", Buffer.from("{}"))).toBe(0);
  });
});
