import { execFile } from "node:child_process";
import { promisify } from "node:util";
import { fromBinary } from "@bufbuild/protobuf";
import { FileDescriptorProtoSchema } from "@bufbuild/protobuf/wkt";
import { Code, ConnectError, createClient } from "@connectrpc/connect";
import { createConnectTransport, createGrpcTransport } from "@connectrpc/connect-node";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { Health, HealthCheckResponse_ServingStatus as Status } from "../gen/grpc/health/v1/health_pb.ts";
import { ServerReflection as V1 } from "../gen/grpc/reflection/v1/reflection_pb.ts";
import { ServerReflection as V1Alpha } from "../gen/grpc/reflection/v1alpha/reflection_pb.ts";
import { AgentRuntimeService } from "../gen/moltwire/agent/v1/agent_runtime_service_pb.ts";
import { startServer, until, type WireServer } from "./wire-fixtures/server.ts";

let server: WireServer;
beforeEach(async () => {
  server = await startServer();
});
afterEach(() => server.close());
const grpc = () => createGrpcTransport({ baseUrl: server.url });

describe.each([
  ["v1", V1],
  ["v1alpha", V1Alpha],
] as const)("reflection %s", (_version, service) => {
  type Question = Parameters<typeof asked>[0];
  async function asked(question: { case: string; value: unknown }) {
    const client = createClient(service as typeof V1, grpc());
    const one = (async function* () {
      yield { host: "h", messageRequest: question as never };
    })();
    for await (const { messageResponse, originalRequest } of client.serverReflectionInfo(one)) {
      expect(originalRequest?.messageRequest).toMatchObject(question as object);
      return messageResponse;
    }
    throw new Error("no answer");
  }
  async function filesFor(question: Question): Promise<string[]> {
    const answer = await asked(question);
    if (answer.case !== "fileDescriptorResponse") throw new Error(`answered ${answer.case}`);
    return answer.value.fileDescriptorProto.map((bytes) => fromBinary(FileDescriptorProtoSchema, bytes).name);
  }

  test("lists the services it was given, and itself", async () => {
    const answer = await asked({ case: "listServices", value: "" });
    expect(answer.case === "listServicesResponse" && answer.value.service.map(({ name }) => name)).toEqual([
      AgentRuntimeService.typeName,
      V1.typeName,
      V1Alpha.typeName,
    ]);
  });
  test.each([
    ["fileByFilename", "moltwire/agent/v1/agent_runtime_service.proto"],
    ["fileContainingSymbol", "moltwire.agent.v1.AgentRuntimeService"],
    ["fileContainingSymbol", "moltwire.agent.v1.AgentRuntimeService.HandleTask"],
    ["fileContainingSymbol", "moltwire.agent.v1.HandleTaskRequest.task"],
  ])("answers %s %s with the file and all it imports", async (kind, value) => {
    const names = await filesFor({ case: kind, value });
    expect(names[0]).toBe("moltwire/agent/v1/agent_runtime_service.proto");
    expect(names).toContain("google/protobuf/struct.proto");
    expect(names).toContain("buf/validate/validate.proto");
    expect(new Set(names).size).toBe(names.length);
  });
  test("knows enum values, oneofs, messages of imports and extensions", async () => {
    expect((await filesFor({ case: "fileContainingSymbol", value: "moltwire.api.v1.ROLE_AGENT" }))[0]).toBe(
      "moltwire/api/v1/access.proto",
    );
    expect((await filesFor({ case: "fileContainingSymbol", value: "google.protobuf.Value.kind" }))[0]).toBe(
      "google/protobuf/struct.proto",
    );
    const extension = { containingType: "google.protobuf.MethodOptions", extensionNumber: 50_658 };
    expect((await filesFor({ case: "fileContainingExtension", value: extension }))[0]).toBe(
      "moltwire/api/v1/access.proto",
    );
    const numbers = await asked({ case: "allExtensionNumbersOfType", value: "google.protobuf.MethodOptions" });
    expect(numbers.case === "allExtensionNumbersResponse" && numbers.value.extensionNumber).toContain(50_658);
  });
  test("says not found for what is not there, and goes on", async () => {
    for (const question of [
      { case: "fileByFilename", value: "etc/passwd" },
      { case: "fileContainingSymbol", value: "no.such.Thing" },
      { case: "allExtensionNumbersOfType", value: "no.such.Thing" },
      { case: "fileContainingExtension", value: { containingType: "no.such.Thing", extensionNumber: 1 } },
    ]) {
      const answer = await asked(question);
      expect(answer.case === "errorResponse" && answer.value.errorCode).toBe(Code.NotFound);
    }
  });
});

test("reflection answers a thousand questions in a stream and no more", async () => {
  let answers = 0;
  const questions = (async function* () {
    for (let i = 0; i < 1_500; i++) yield { messageRequest: { case: "listServices" as const, value: "" } };
  })();
  const all = async () => {
    for await (const _ of createClient(V1, grpc()).serverReflectionInfo(questions)) answers += 1;
  };
  const error = await all().catch(ConnectError.from);
  expect([answers, (error as ConnectError).code]).toEqual([1_000, Code.ResourceExhausted]);
});

describe("tools that know nothing of this code", () => {
  const run = promisify(execFile);

  test.each(["grpc", "grpcweb", "connect"])("buf curl over %s finds the methods and calls one", async (protocol) => {
    const base = ["curl", "--http2-prior-knowledge", "--protocol", protocol];
    const listed = await run("node_modules/.bin/buf", [...base, "--list-methods", server.url]);
    expect(listed.stdout).toContain("moltwire.agent.v1.AgentRuntimeService/HandleTask");
    const data = JSON.stringify({ task: { input: { a: [1, "b"] } } });
    const method = `${server.url}/moltwire.agent.v1.AgentRuntimeService/HandleTask`;
    const called = await run("node_modules/.bin/buf", [...base, "-d", data, method]);
    expect(JSON.parse(called.stdout)).toEqual({ output: { a: [1, "b"] } });
  });

  test("grpcurl lists, describes with options, and calls", async (context) => {
    const grpcurl = process.env.GRPCURL ?? "grpcurl";
    if (
      await run(grpcurl, ["-version"]).then(
        () => false,
        () => true,
      )
    )
      context.skip("grpcurl is not on this machine's PATH");
    const target = `127.0.0.1:${server.port}`;
    expect((await run(grpcurl, ["-plaintext", target, "list"])).stdout).toContain(AgentRuntimeService.typeName);
    const described = await run(grpcurl, ["-plaintext", target, "describe", AgentRuntimeService.typeName]);
    expect(described.stdout).toContain("role: ROLE_PUBLIC");
    const data = JSON.stringify({ task: { attempt: 2 } });
    const called = await run(grpcurl, ["-plaintext", "-d", data, target, `${AgentRuntimeService.typeName}/StreamTask`]);
    expect(called.stdout.match(/chunk/g)).toHaveLength(2);
    const wrongKey = ["-plaintext", "-H", "authorization: Bearer wrong", "-d", data];
    const proto = ["-import-path", "proto", "-import-path", "third_party/proto"];
    const files = ["-proto", "moltwire/agent/v1/agent_runtime_service.proto"];
    const call = [...wrongKey, ...proto, ...files, target, `${AgentRuntimeService.typeName}/HandleTask`];
    const refused = await run(grpcurl, call).catch((error: { stderr: string }) => error);
    expect(refused.stderr).toContain("Code: Unauthenticated");
    expect(refused.stderr).toContain("this key is wrong");
  });
});

describe("health", () => {
  const client = () => createClient(Health, grpc());
  const name = AgentRuntimeService.typeName;

  test("Check and List tell the statuses; an unknown service is not found", async () => {
    server.health.set(name, Status.NOT_SERVING);
    expect((await client().check({})).status).toBe(Status.SERVING);
    expect((await client().check({ service: name })).status).toBe(Status.NOT_SERVING);
    const { statuses } = await client().list({});
    expect(Object.entries(statuses).map(([service, { status }]) => [service, status])).toEqual([
      ["", Status.SERVING],
      [name, Status.NOT_SERVING],
    ]);
    const error = await client().check({ service: "no.such" }).catch(ConnectError.from);
    expect((error as ConnectError).code).toBe(Code.NotFound);
  });

  test("Watch tells the status at once, each change, and no change twice", async () => {
    const stream = client().watch({ service: "later" })[Symbol.asyncIterator]();
    expect((await stream.next()).value?.status).toBe(Status.SERVICE_UNKNOWN);
    server.health.set("later", Status.SERVING);
    expect((await stream.next()).value?.status).toBe(Status.SERVING);
    // Each of these wakes the watcher before the next is made.
    server.health.set("later", Status.SERVING);
    await client().check({});
    server.health.set("other", Status.NOT_SERVING);
    await client().check({});
    server.health.set("later", Status.NOT_SERVING);
    expect((await stream.next()).value?.status).toBe(Status.NOT_SERVING);
  });

  test.each(["gRPC", "Connect over HTTP/1.1"])("watchers by %s that vanish leave nothing behind", async (how) => {
    const transport = how === "gRPC" ? grpc() : createConnectTransport({ baseUrl: server.url, httpVersion: "1.1" });
    const leave = new AbortController();
    const streams = Array.from({ length: 50 }, () =>
      createClient(Health, transport).watch({}, { signal: leave.signal })[Symbol.asyncIterator](),
    );
    await Promise.all(streams.map((stream) => stream.next()));
    await until(() => server.health.watchers() === 50);
    const ended = Promise.allSettled(streams.map((stream) => stream.next()));
    leave.abort();
    await ended;
    await until(() => server.health.watchers() === 0);
  });

  test("a shutdown tells watchers NOT_SERVING, ends them with unavailable, and refuses new calls so", async () => {
    const seen: (Status | undefined)[] = [];
    const all = async () => {
      for await (const { status } of client().watch({})) {
        seen.push(status);
        if (seen.length > 1) continue;
        server.health.shutDown();
        server.shutdown.abort();
      }
    };
    const error = await all().catch(ConnectError.from);
    expect([seen, (error as ConnectError).code]).toEqual([[Status.SERVING, Status.NOT_SERVING], Code.Unavailable]);
    expect(server.health.watchers()).toBe(0);
    server.health.set("", Status.SERVING);
    expect(server.health.get("")).toBe(Status.NOT_SERVING);
    const refused = await client().check({}).catch(ConnectError.from);
    expect((refused as ConnectError).code).toBe(Code.Unavailable);
  });
});
