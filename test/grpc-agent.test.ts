import { readFileSync } from "node:fs";
import { constants } from "node:http2";
import { createServer } from "node:net";
import { create, toBinary } from "@bufbuild/protobuf";
import { Code, ConnectError } from "@connectrpc/connect";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import {
  HandleTaskResponseSchema,
  StreamTaskResponseSchema,
} from "../gen/moltwire/agent/v1/agent_runtime_service_pb.ts";
import { frame, grpcTimeout, statusOf, unframe } from "../src/bus/adapters/grpc-wire.ts";
import { openEgress } from "../src/egress/egress.ts";
import { contract, json, reasonOf, stateOf, submit, value } from "./bus-fixtures/bus.ts";
import { type GrpcAgent, grpcAgent, rawGrpcAgent } from "./bus-fixtures/grpc-agent.ts";
import { deadUrl, httpAgent } from "./bus-fixtures/http-agent.ts";
import { pythonAgent, pythonWithGrpc } from "./bus-fixtures/python-agent.ts";
import { chunksOf, told, watched } from "./bus-fixtures/watch.ts";
import { dialects, type Org, type OrgAgent, refusal, start, unique, type World } from "./harness.ts";

const found = await pythonWithGrpc();
if ("missing" in found) console.warn(`The tests with an agent in Python are skipped: ${found.missing}`);

let world: World;
let org: Org;
beforeAll(async () => {
  world = await start();
  org = await world.org();
});
afterAll(() => world[Symbol.asyncDispose]());

const endpoint = (url: string, stream = false) => ({ kind: { case: "grpc", value: { url, stream } } }) as const;

/** A contract that the agent at the URL does. */
async function at(url: string, stream = false, init: Parameters<typeof contract>[1] = {}, of = org): Promise<string> {
  const contractId = await contract(of, init);
  await of.agent({ capabilities: [contractId], endpoint: endpoint(url, stream) });
  return contractId;
}

const ok = { "content-type": "application/grpc", ":status": 200 };
const result = (output: unknown) =>
  toBinary(HandleTaskResponseSchema, create(HandleTaskResponseSchema, { output: value(output as never) }));
const piece = (chunk: string) =>
  frame(
    toBinary(StreamTaskResponseSchema, create(StreamTaskResponseSchema, { event: { case: "chunk", value: chunk } })),
  );

describe.skipIf("missing" in found)("an agent in Python, written from the protos alone", () => {
  let agent: Awaited<ReturnType<typeof pythonAgent>>;
  beforeAll(async () => {
    agent = await pythonAgent((found as { python: string }).python);
  });
  afterAll(() => agent?.[Symbol.asyncDispose]());

  test("gets the task with its deadline, its key and its trace, and its answer and usage come back", async () => {
    const contractId = await at(agent.url, false, { maxTokens: 900n });
    const task = await submit(org.admin, contractId, { input: { do: "echo", deep: [1, { a: null }] } });
    expect(stateOf(task)).toBe("COMPLETED");
    expect(task.usage).toMatchObject({ inputTokens: 1n, model: "python-1" });
    const said = json(task.output) as Record<string, never>;
    expect(said).toMatchObject({
      wish: { do: "echo", deep: [1, { a: null }] },
      task_id: task.taskId,
      attempt: 1,
      contract: `${contractId}@1.0.0`,
      max_tokens: 900,
      metadata: { "idempotency-key": task.taskId, traceparent: `00-${task.traceId}-${task.spanId}-01` },
    });
    expect(said.seconds_left).toBeGreaterThan(5);
    expect(said.seconds_left).toBeLessThanOrEqual(10);
  });

  test("streams progress and output", async () => {
    const contractId = await at(agent.url, true);
    const task = await submit(org.admin, contractId, { input: { do: "stream", text: "one two three" } });
    expect(json(task.output)).toEqual({ words: 3 });
    expect(task.usage?.outputTokens).toBe(3n);
    const messages = await watched(org.admin, task.taskId);
    expect(chunksOf(messages).join("")).toBe("one two three ");
    expect(messages.map(told).filter((each) => each.startsWith("progress")).length).toBeGreaterThan(0);
  });

  test("that fails in the middle of its stream fails the attempt, and what it streamed stays with it", async () => {
    const contractId = await at(agent.url, true);
    const task = await submit(org.admin, contractId, { input: { do: "stream", text: "one two three", fail_after: 1 } });
    expect([reasonOf(task), task.error?.message]).toEqual([
      "ADAPTER_ERROR",
      "the agent answered internal: in the middle",
    ]);
    expect(chunksOf(await watched(org.admin, task.taskId)).join("")).toBe("one two ");
  });

  test.each([
    ["UNAVAILABLE", 3, "ADAPTER_ERROR"],
    ["RESOURCE_EXHAUSTED", 3, "ADAPTER_ERROR"],
    ["INTERNAL", 3, "ADAPTER_ERROR"],
    ["DEADLINE_EXCEEDED", 1, "OUTCOME_UNKNOWN"],
  ])(
    "that answers %s is called %i times by a contract with 2 retries that is not repeatable: %s",
    async (code, attempts, reason) => {
      const task = await submit(org.admin, await at(agent.url, false, { retries: 2 }), { input: { do: "fail", code } });
      expect([task.attempts, reasonOf(task)]).toEqual([attempts, reason]);
      if (attempts === 3) expect(task.error?.message).toBe(`the agent answered ${code.toLowerCase()}: as töld`);
    },
  );

  test.each([false, true])("that does not answer is left at the deadline (stream: %s)", async (stream) => {
    const contractId = await at(agent.url, stream, { timeoutMs: 400, repeatable: true });
    expect(reasonOf(await submit(org.admin, contractId, { input: { do: "wait" } }))).toBe("AGENT_TIMEOUT");
  });

  test("that is killed at work leaves the outcome unknown", async () => {
    await using victim = await pythonAgent((found as { python: string }).python);
    const { taskId } = await submit(org.admin, await at(victim.url), {
      input: { do: "wait" },
      returnImmediately: true,
    });
    for await (const message of org.admin.bus.watchTask({ taskId })) if (told(message) === "step DISPATCHED") break;
    await victim.kill();
    const last = (await watched(org.admin, taskId)).at(-1)!;
    expect(last.event.case === "task" && reasonOf(last.event.value)).toBe("OUTCOME_UNKNOWN");
  });
});

describe("an agent with Connect's gRPC server", () => {
  test("takes its tasks on one connection after another's end, and many at once", async () => {
    await using agent = await grpcAgent({ handleTask: ({ task }) => ({ output: task!.input! }) });
    const contractId = await at(agent.url);
    for (let n = 0; n < 3; n++) expect(json((await submit(org.admin, contractId, { input: n })).output)).toBe(n);
    expect(agent.connections()).toBe(1);
    agent.drop();
    expect(stateOf(await submit(org.admin, contractId))).toBe("COMPLETED");
    const many = await Promise.all(Array.from({ length: 30 }, (_, n) => submit(org.admin, contractId, { input: n })));
    expect(many.map(({ output }) => json(output))).toEqual(Array.from({ length: 30 }, (_, n) => n));
  });

  test("is called over TLS when its certificate is good, and not at all when it is not", async () => {
    const read = (name: string) => readFileSync(new URL(`./egress-fixtures/${name}`, import.meta.url), "utf8");
    const tls = { key: read("endpoint.key.pem"), cert: read("endpoint.cert.pem") };
    await using agent = await grpcAgent({ handleTask: ({ task }) => ({ output: task!.input! }) }, tls);
    expect(reasonOf(await submit(org.admin, await at(agent.url)))).toBe("AGENT_UNREACHABLE");
    const { port } = new URL(agent.url);
    const egress = openEgress({ allow: ["endpoint.test"], ca: tls.cert, resolve: async () => ["127.0.0.1"] });
    const request = {
      protocol: "h2",
      url: `https://endpoint.test:${port}/x`,
      method: "POST",
      headers: {},
      timeoutMs: 60_000,
      maxResponseBytes: 1_000,
    } as const;
    expect(await egress.stream(request, async ({ status }) => status)).toBe(404);
    await egress.close();
  });

  test("fails in its words, with a message of any length and script", async () => {
    await using agent = await grpcAgent({
      handleTask: () => {
        throw new ConnectError(`schlecht ✗ ${"x".repeat(2_000)}`, Code.FailedPrecondition);
      },
    });
    const task = await submit(org.admin, await at(agent.url));
    expect(task.error?.message).toMatch(/^the agent answered failed_precondition: schlecht ✗ x{200,300}…$/);
  });
});

describe("what is no answer", () => {
  const framed = (bytes: Uint8Array) => frame(bytes);
  test.each<[string, boolean, (stream: import("node:http2").ServerHttp2Stream) => void, string, string]>([
    [
      "a message that is no HandleTaskResponse",
      false,
      (s) => end(s, framed(Buffer.from("nonsense"))),
      "AGENT_BAD_RESPONSE",
      "no HandleTaskResponse",
    ],
    [
      "two messages for one task",
      false,
      (s) => end(s, framed(result(1)), framed(result(2))),
      "AGENT_BAD_RESPONSE",
      "more than one",
    ],
    ["a message without output", false, (s) => end(s, framed(new Uint8Array())), "AGENT_BAD_RESPONSE", 'no "output"'],
    ["no message, and OK", false, (s) => end(s), "AGENT_BAD_RESPONSE", "no message"],
    [
      "a message that is cut short",
      false,
      (s) => end(s, framed(result(1)).subarray(0, 7)),
      "AGENT_BAD_RESPONSE",
      "cut short",
    ],
    [
      "a compressed message",
      false,
      (s) => end(s, Buffer.concat([Buffer.from([1]), framed(result(1)).subarray(1)])),
      "AGENT_BAD_RESPONSE",
      "compressed",
    ],
    [
      "a message that says to be of 4 GB",
      false,
      (s) => end(s, Buffer.from([0, 255, 255, 255, 255])),
      "AGENT_BAD_RESPONSE",
      "4294967295 bytes",
    ],
    [
      "a body of more than 2 MiB",
      false,
      (s) => end(s, framed(new Uint8Array(2 ** 21)), Buffer.alloc(2 ** 21)),
      "AGENT_BAD_RESPONSE",
      "",
    ],
    [
      "an answer without a status",
      false,
      (s) => {
        s.respond(ok);
        s.end(framed(result(1)));
      },
      "AGENT_BAD_RESPONSE",
      "grpc-status",
    ],
    [
      "trailers of more than 16 KiB",
      false,
      (s) => {
        s.respond(ok, { waitForTrailers: true });
        s.on("wantTrailers", () => s.sendTrailers({ "grpc-status": "3", "grpc-message": "x".repeat(20_000) }));
        s.end(framed(result(1)));
      },
      "AGENT_BAD_RESPONSE",
      "headers are too large",
    ],
    [
      "an answer of another type",
      false,
      (s) => {
        s.respond({ ":status": 200, "content-type": "text/html" });
        s.end("<html>");
      },
      "AGENT_BAD_RESPONSE",
      "content-type",
    ],
    [
      "a redirect",
      false,
      (s) => {
        s.respond({ ":status": 302, location: "http://127.0.0.1/" });
        s.end();
      },
      "AGENT_BAD_RESPONSE",
      "redirect",
    ],
    [
      "a page of a gateway",
      false,
      (s) => {
        s.respond({ ":status": 404 });
        s.end("nothing here");
      },
      "ADAPTER_ERROR",
      "404",
    ],
    ["a stream without a result", true, (s) => end(s, piece("a")), "AGENT_BAD_RESPONSE", "without a result"],
    ["a piece of more than 64 KiB", true, (s) => end(s, piece("x".repeat(65_537))), "AGENT_BAD_RESPONSE", "protocol"],
    [
      "a stream that is cut in the middle",
      true,
      (s) => {
        s.respond(ok);
        s.write(piece("half"));
        setTimeout(() => s.session?.destroy(), 50);
      },
      "OUTCOME_UNKNOWN",
      "lost",
    ],
    [
      "a bare 503",
      false,
      (s) => {
        s.respond({ ":status": 503 }, { endStream: true });
      },
      "OUTCOME_UNKNOWN",
      "503",
    ],
  ])("%s", async (_title, stream, answer, reason, message) => {
    await using agent = await rawGrpcAgent(answer);
    const task = await submit(org.admin, await at(agent.url, stream));
    expect([reasonOf(task), task.error?.message]).toEqual([reason, expect.stringContaining(message)]);
  });

  test("a request that the other side refuses unseen is repeated, whatever the contract says", async () => {
    let calls = 0;
    await using agent = await rawGrpcAgent((stream) => {
      if (++calls === 1) stream.close(constants.NGHTTP2_REFUSED_STREAM);
      else end(stream, frame(result("second")));
    });
    const task = await submit(org.admin, await at(agent.url, false, { retries: 1 }));
    expect([json(task.output), calls]).toEqual(["second", 2]);
  });

  test("a server that speaks HTTP/1.1, one that says nothing, and one that is not there", async () => {
    await using http1 = await httpAgent();
    const task = await submit(org.admin, await at(http1.url));
    expect(["AGENT_BAD_RESPONSE", "OUTCOME_UNKNOWN"]).toContain(reasonOf(task));
    expect(reasonOf(await submit(org.admin, await at(await deadUrl())))).toBe("AGENT_UNREACHABLE");
    const mute = createServer(() => {}).listen(0, "127.0.0.1");
    await new Promise((resolve) => mute.once("listening", resolve));
    const { port } = mute.address() as import("node:net").AddressInfo;
    const silent = await submit(
      org.admin,
      await at(`http://127.0.0.1:${port}`, false, { timeoutMs: 300, repeatable: true }),
    );
    expect(reasonOf(silent)).toBe("AGENT_TIMEOUT");
    mute.close();
  });

  /** Answers OK with these bytes. */
  function end(stream: import("node:http2").ServerHttp2Stream, ...bodies: Uint8Array[]): void {
    stream.respond(ok, { waitForTrailers: true });
    stream.on("wantTrailers", () => stream.sendTrailers({ "grpc-status": "0" }));
    stream.end(Buffer.concat(bodies));
  }
});

test("an endless stream is read no faster than it is written down, and ends at its limit", async () => {
  await using agent = await rawGrpcAgent((stream) => {
    stream.respond(ok);
    const big = piece("x".repeat(60_000));
    const write = () => {
      while (!stream.destroyed && stream.write(big));
      if (!stream.destroyed) stream.once("drain", write);
    };
    write();
  });
  const task = await submit(org.admin, await at(agent.url, true, { timeoutMs: 20_000 }));
  expect([reasonOf(task), task.error?.message]).toEqual(["AGENT_BAD_RESPONSE", expect.stringContaining("too large")]);
});

describe.each(dialects)("%s", (dialect) => {
  test("an agent that dies in the middle of its stream is tried again, and both attempts' pieces are told in order", async () => {
    await using other = await start(dialect);
    const home = await other.org();
    let agent: GrpcAgent;
    let calls = 0;
    await using dying = await grpcAgent({
      async *streamTask() {
        const call = ++calls;
        yield { event: { case: "chunk", value: `call ${call}` } };
        if (call === 1) {
          // Once it has been told, so that it was there before the end.
          for await (const message of home.admin.bus.watchTask({ taskId })) if (told(message) === "chunk call 1") break;
          agent.drop();
        }
        yield { event: { case: "result", value: { output: value("done") } } };
      },
    });
    agent = dying;
    const contractId = await at(dying.url, true, { retries: 1, repeatable: true }, home);
    const accepted = await submit(home.admin, contractId, { returnImmediately: true });
    const taskId = accepted.taskId;
    const all = (await watched(home.admin, taskId)).map(told);
    expect(all.slice(all.indexOf("step DISPATCHED"))).toEqual([
      "step DISPATCHED",
      "chunk call 1",
      "step ATTEMPT_FAILED",
      "step POLICY_DECIDED",
      "step DISPATCHED",
      "chunk call 2",
      "step ANSWERED",
      "step OUTPUT_CHECKED",
      "step COMPLETED",
      "task COMPLETED",
    ]);
  });
});

describe("endpoints", () => {
  const register = (url: string): Promise<OrgAgent> => org.agent({ name: unique("agent"), endpoint: endpoint(url) });

  test.each(["http://10.0.0.1:1", "ftp://example.com", "http://[::1]:9000", "nonsense"])(
    "%s is refused",
    async (url) => {
      expect(await refusal(register(url))).toMatchObject({
        reason: "ENDPOINT_REFUSED",
        metadata: { field: "endpoint.grpc.url" },
      });
    },
  );

  test.each(["http://127.0.0.1:1/path", "http://127.0.0.1:1/?a=b"])("%s has a path, and is refused", async (url) => {
    expect(await refusal(register(url))).toMatchObject({
      reason: "INVALID_REQUEST",
      metadata: { field: "endpoint.grpc.url" },
    });
  });

  test("what was allowed once and leads to a private address now is not called", async () => {
    await using agent = await grpcAgent({ handleTask: () => ({ output: value(1) }) });
    const egress = openEgress({ allow: [] });
    const request = {
      protocol: "h2",
      url: agent.url,
      method: "POST",
      headers: {},
      timeoutMs: 60_000,
      maxResponseBytes: 1_000,
    } as const;
    await expect(egress.stream(request, async () => 1)).rejects.toMatchObject({ kind: "denied", sent: false });
    expect(agent.connections()).toBe(0);
    await egress.close();
  });
});

describe("the framing", () => {
  test("messages come out as they went in, however the bytes are cut", async () => {
    const messages = [Buffer.from("one"), Buffer.alloc(0), Buffer.alloc(5_000, 7)];
    const bytes = Buffer.concat(messages.map(frame));
    for (const size of [1, 2, 5, 7, 4_096, 100_000]) {
      async function* cut() {
        for (let at = 0; at < bytes.length; at += size) yield bytes.subarray(at, at + size);
      }
      const got: Buffer[] = [];
      for await (const message of unframe(cut(), 10_000)) got.push(Buffer.from(message));
      expect(got).toEqual(messages);
    }
  });

  test("times have at most 8 digits; a status without a number is none", () => {
    expect([grpcTimeout(0.2), grpcTimeout(99_999_999), grpcTimeout(100_000_000)]).toEqual([
      "1m",
      "99999999m",
      "100000S",
    ]);
    expect(statusOf({ "grpc-status": "14", "grpc-message": "a%20b" })).toEqual({ code: "unavailable", message: "a b" });
    expect(statusOf({ "grpc-status": "0" })).toEqual({ code: undefined, message: "" });
    expect(statusOf({ "grpc-status": "99", "grpc-message": "%zz" })).toEqual({ code: "unknown", message: "%zz" });
    expect(statusOf({ "grpc-status": "x" })).toBeUndefined();
  });
});
