import { mkdtempSync, rmSync } from "node:fs";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { create, type JsonValue } from "@bufbuild/protobuf";
import { timestampMs, ValueSchema } from "@bufbuild/protobuf/wkt";
import { Code, ConnectError } from "@connectrpc/connect";
import { connectNodeAdapter } from "@connectrpc/connect-node";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { BadRequestSchema } from "../gen/google/rpc/error_details_pb.ts";
import { AgentRuntimeService } from "../gen/moltwire/agent/v1/agent_runtime_service_pb.ts";
import { TrustTier } from "../gen/moltwire/bus/v1/agent_pb.ts";
import { TaskState } from "../gen/moltwire/bus/v1/task_pb.ts";
import { type TraceEvent, TraceEventKind } from "../gen/moltwire/bus/v1/trace_pb.ts";
import { maxPerPlace } from "../src/bus/dispatch.ts";
import {
  contract,
  echoEndpoint,
  eventsOf,
  httpEndpoint,
  json,
  kindsOf,
  reasonOf,
  stateOf,
  submit,
  value,
  whenEnded,
  worker,
} from "./bus-fixtures/bus.ts";
import { deadUrl, echo, failing, type Handle, httpAgent, silent } from "./bus-fixtures/http-agent.ts";
import { migratedDatabase } from "./engines.ts";
import { dialects, refusal, start, unique, type World } from "./harness.ts";

const completed = [
  "SUBMITTED",
  "INPUT_CHECKED",
  "ROUTED",
  "POLICY_DECIDED",
  "ACCEPTED",
  "DISPATCHED",
  "ANSWERED",
  "OUTPUT_CHECKED",
  "COMPLETED",
];
const query = {
  type: "object",
  properties: { query: { type: "string", minLength: 3 }, limit: { type: "integer" } },
  required: ["query"],
  additionalProperties: false,
};

describe.each(dialects)("%s", (dialect) => {
  let world: World;
  beforeAll(async () => {
    world = await start(dialect);
  });
  afterAll(() => world[Symbol.asyncDispose]());

  describe("a task done by an HTTP agent", () => {
    test("comes back with its output, its usage and every step in its trace", async () => {
      const org = await world.org();
      await using agent = await httpAgent(({ task }) => ({
        output: { heard: task.input ?? null },
        usage: { inputTokens: 7, outputTokens: "11", model: "m-1" },
      }));
      const contractId = await contract(org, { inputSchema: query });
      const { agentId } = await worker(org, contractId, agent);
      const caller = await org.agent();
      const task = await submit(caller.as, contractId, { input: { query: "bees" }, labels: { job: "7" } });
      expect(stateOf(task)).toBe("COMPLETED");
      expect(json(task.output)).toEqual({ heard: { query: "bees" } });
      expect(json(task.input)).toEqual({ query: "bees" });
      expect(task).toMatchObject({
        callerAgentId: caller.agentId,
        targetAgentId: agentId,
        contractVersion: "1.0.0",
        attempts: 1,
        labels: { job: "7" },
        usage: { inputTokens: 7n, outputTokens: 11n, model: "m-1" },
      });
      expect(timestampMs(task.endTime!)).toBeGreaterThanOrEqual(timestampMs(task.createTime!));
      const events = await eventsOf(caller.as, task.traceId);
      expect(kindsOf(events)).toEqual(completed);
      expect(new Set(events.map(({ spanId }) => spanId))).toEqual(new Set([task.spanId]));
      expect(detailsOf(events, "ANSWERED")).toMatchObject({ input_tokens: 7, output_tokens: 11, attempt: 1 });
    });

    test("reaches the agent with its deadline, its trace and its id, and never with the caller's key", async () => {
      const org = await world.org();
      await using agent = await httpAgent();
      const contractId = await contract(org, { timeoutMs: 4_000 });
      await worker(org, contractId, agent);
      const caller = await org.agent();
      const traceId = "0af7651916cd43dd8448eb211c80319c";
      const headers = { traceparent: `00-${traceId}-b7ad6b7169203331-01`, "x-api-key": caller.key };
      const task = await submit(caller.as, contractId, {}, { headers });
      const { headers: received, task: assignment, path } = await agent.call(0);
      expect(path).toBe("/moltwire.agent.v1.AgentRuntimeService/HandleTask");
      expect(received).toMatchObject({
        "connect-protocol-version": "1",
        "content-type": "application/json",
        "idempotency-key": task.taskId,
      });
      const timeoutMs = Number(received["connect-timeout-ms"]);
      expect(timeoutMs).toBe(4_000);
      expect(received.traceparent).toBe(`00-${traceId}-${task.spanId}-01`);
      expect(task).toMatchObject({ traceId, parentSpanId: "b7ad6b7169203331" });
      expect(assignment).toMatchObject({ taskId: task.taskId, attempt: 1, contractId, contractVersion: "1.0.0" });
      expect(assignment.traceparent).toBe(received.traceparent);
      expect(Date.parse(assignment.deadlineTime!)).toBeLessThanOrEqual(Date.now() + 4_000);
      const everything = JSON.stringify([received, assignment]);
      expect(everything).not.toContain(caller.key);
      expect(everything).not.toContain("mw_");
      expect(received.authorization).toBeUndefined();
    });

    test("may have any JSON as input and output, and a URL with a path is called as it is", async () => {
      const org = await world.org();
      await using agent = await httpAgent();
      const contractId = await contract(org);
      await worker(org, contractId, `${agent.url}/my/agent?v=1`);
      const inputs: JsonValue[] = [
        null,
        0,
        -1.5,
        "",
        "\u0000\ud83d\udc1d",
        false,
        [],
        {},
        [[null]],
        { "": { a: [1] } },
        nested(32),
      ];
      for (const input of inputs) {
        const task = await submit(org.admin, contractId, { input });
        expect([stateOf(task), json(task.output)]).toEqual(["COMPLETED", input]);
      }
      expect(agent.calls[0]!.path).toBe("/my/agent?v=1");
    });

    test("may be done by a Connect server that knows nothing of Moltwire but its proto", async () => {
      const org = await world.org();
      const routes = connectNodeAdapter({
        routes: (router) =>
          router.service(AgentRuntimeService, {
            handleTask: ({ task }, { timeoutMs }) => {
              if (timeoutMs() === undefined) throw new ConnectError("no deadline came", Code.FailedPrecondition);
              if (json(task?.input) === "fail") throw new ConnectError("cannot", Code.OutOfRange);
              return { output: value(`done ${String(json(task?.input))}`), usage: { inputTokens: 3n } };
            },
          }),
      });
      const server = createServer(routes).listen(0, "127.0.0.1");
      try {
        const contractId = await contract(org);
        await worker(org, contractId, `http://127.0.0.1:${(server.address() as AddressInfo).port}`);
        const task = await submit(org.admin, contractId, { input: "it" });
        expect([json(task.output), task.usage?.inputTokens]).toEqual(["done it", 3n]);
        const failed = await submit(org.admin, contractId, { input: "fail" });
        expect(reasonOf(failed)).toBe("ADAPTER_ERROR");
        expect(failed.error?.message).toContain("cannot");
        expect(failed.error?.metadata).toMatchObject({ code: "out_of_range", status: "400", attempts: "1" });
      } finally {
        server.close();
      }
    });

    test("waits its turn when the agent has all it takes at once: none of many fails for that", async () => {
      const org = await world.org();
      await using agent = await httpAgent(silent);
      const contractId = await contract(org, { timeoutMs: 25_000 });
      await worker(org, contractId, agent);
      const count = 300;
      const tasks = await Promise.all(
        Array.from({ length: count }, () => submit(org.admin, contractId, { returnImmediately: true })),
      );
      await agent.call(maxPerPlace - 1);
      expect(agent.calls).toHaveLength(maxPerPlace);
      agent.handle = echo;
      for (const call of agent.calls) call.answer({ output: {} });
      await agent.call(count - 1);
      const ended = await Promise.all(tasks.map(({ taskId }) => whenEnded(org.admin, taskId)));
      expect(new Set(ended.map(stateOf))).toEqual(new Set(["COMPLETED"]));
      expect(new Set(agent.calls.map(({ task }) => task.taskId)).size).toBe(count);
    });

    test("has its whole time once it is its turn: to wait for others is no part of it", async () => {
      const org = await world.org();
      await using agent = await httpAgent(({ task }) => (task.input === "last" ? { output: 1 } : undefined));
      const contractId = await contract(org, { timeoutMs: 2_000 });
      await worker(org, contractId, agent, { breaker: { disabled: true } });
      for (let n = 0; n < maxPerPlace; n++) await submit(org.admin, contractId, { returnImmediately: true });
      await agent.call(maxPerPlace - 1);
      const last = await submit(org.admin, contractId, { input: "last" });
      expect([stateOf(last), agent.calls[maxPerPlace]!.headers["connect-timeout-ms"]]).toEqual(["COMPLETED", "2000"]);
    });
  });

  describe("a refused submit", () => {
    /** What it is refused with; and that a trace keeps it and no task is counted. */
    async function refused(name: string, call: Parameters<typeof submit>) {
      const { code, reason, metadata, error } = await refusal(submit(...call));
      const by = call[0];
      const { trace, events } = await by.traces.getTrace({ traceId: metadata.trace_id! });
      expect(trace, name).toMatchObject({ tasks: 0, openTasks: 0, failedTasks: 0, contractId: call[1] });
      const last = events.at(-1)!;
      expect(kindsOf([last]), name).toEqual(["REFUSED"]);
      expect(last.details, name).toMatchObject({ reason, message: error.rawMessage });
      expect(last.taskId).toBe("");
      const tasks = await by.bus.listTasks({ traceId: metadata.trace_id! });
      expect(tasks.tasks).toEqual([]);
      return { code, reason, field: metadata.field, metadata, error };
    }

    test("names an unknown contract, a version nobody registered, one that is no version, and a deprecated one", async () => {
      const org = await world.org();
      const contractId = await contract(org);
      const by = org.admin;
      expect(await refused("unknown", [by, "nobody/knows"])).toMatchObject({
        ...{ code: "NotFound", reason: "CONTRACT_NOT_FOUND", field: "contract_id" },
        metadata: { contract_id: "nobody/knows" },
      });
      expect(await refused("version", [by, contractId, { contractVersion: "^2" }])).toMatchObject({
        ...{ code: "NotFound", reason: "CONTRACT_VERSION_NOT_FOUND", field: "contract_version" },
        metadata: { requested: "^2", available: "1.0.0" },
      });
      expect(await refused("no version", [by, contractId, { contractVersion: "newest!" }])).toMatchObject({
        ...{ code: "InvalidArgument", reason: "INVALID_REQUEST", field: "contract_version" },
      });
      await by.contracts.deprecateContract({ contractId, version: "1.0.0" });
      expect(await refused("deprecated", [by, contractId, { contractVersion: "1.0.0" }])).toMatchObject({
        ...{ code: "FailedPrecondition", reason: "CONTRACT_DEPRECATED", field: "contract_version" },
        metadata: { contract_id: contractId, contract_version: "1.0.0" },
      });
    });

    test("names every field of the input that breaks the contract", async () => {
      const org = await world.org();
      const contractId = await contract(org, { inputSchema: query });
      await worker(org, contractId, "http://127.0.0.1:9");
      const found = await refused("input", [org.admin, contractId, { input: { query: "a", limit: 1.5, more: 1 } }]);
      expect(found).toMatchObject({
        ...{ code: "InvalidArgument", reason: "CONTRACT_VIOLATION" },
        metadata: { direction: "input", contract_id: contractId, contract_version: "1.0.0" },
      });
      const [badRequest] = found.error.findDetails(BadRequestSchema);
      const fields = badRequest!.fieldViolations.map(({ field, reason }) => [field, reason]).sort();
      expect(fields).toEqual([
        ["input.limit", "type"],
        ["input.more", "additionalProperties"],
        ["input.query", "minLength"],
      ]);
      expect(fields.map(([field]) => field)).toContain(found.field);
    });

    test("says when the input is too large or too deep, with the limit", async () => {
      const org = await world.org();
      const contractId = await contract(org);
      const large = await refused("large", [org.admin, contractId, { input: "x".repeat(1_048_576) }]);
      expect(large).toMatchObject({
        ...{ code: "InvalidArgument", reason: "PAYLOAD_TOO_LARGE", field: "input" },
        metadata: { limit: "1048576", actual: "1048578" },
      });
      const deep = await refused("deep", [world.as(org.adminKey, "connect-json"), contractId, { input: nested(33) }]);
      expect(deep).toMatchObject({ reason: "PAYLOAD_TOO_LARGE", field: "input", metadata: { limit: "32" } });
    });

    test("says when nobody has the capability, and why those that have it may not", async () => {
      const org = await world.org();
      const by = org.admin;
      const contractId = await contract(org, { securityClass: TrustTier.INTERNAL_RESTRICTED, requiredTools: ["web"] });
      const nobody = await refused("nobody", [by, contractId]);
      expect(nobody).toMatchObject({
        ...{ code: "FailedPrecondition", reason: "NO_CAPABLE_AGENT", field: "contract_id" },
        metadata: { capability: contractId, considered: "0" },
      });
      const capabilities = [contractId];
      const endpoint = echoEndpoint;
      const allowedTools = ["web"];
      await org.agent({ name: "below", capabilities, endpoint, allowedTools, trustTier: TrustTier.PUBLIC_VENDOR });
      await org.agent({ name: "toolless", capabilities, endpoint, allowedTools: ["shell"] });
      await org.agent({ name: "mute", capabilities, allowedTools });
      const { agentId } = await org.agent({ name: "off", capabilities, endpoint, allowedTools });
      await by.agents.updateAgent({ agentId, change: { disabled: true }, updateMask: { paths: ["disabled"] } });
      const found = await refused("all unfit", [by, contractId]);
      expect(found).toMatchObject({ reason: "NO_CAPABLE_AGENT", metadata: { considered: "4" } });
      const { message } = found.error;
      expect(message).toContain("below its tier PUBLIC_VENDOR is below INTERNAL_RESTRICTED");
      expect(message).toContain("toolless may not use the tool web");
      expect(message).toContain("mute has no endpoint");
      expect(message).toContain("off disabled");
      await org.agent({ name: "fit", capabilities, endpoint, allowedTools });
      expect(stateOf(await submit(by, contractId))).toBe("COMPLETED");
    });

    test("says when the agent it insists on is unknown, another organisation's, or cannot do it", async () => {
      const org = await world.org();
      const other = await world.org();
      const contractId = await contract(org);
      await worker(org, contractId, "http://127.0.0.1:9");
      const stranger = await other.agent({ capabilities: [contractId], endpoint: echoEndpoint });
      for (const targetAgentId of ["agt_nobody", stranger.agentId]) {
        const found = await refused("unknown target", [org.admin, contractId, { targetAgentId }]);
        expect(found).toMatchObject({ code: "NotFound", reason: "NOT_FOUND" });
        expect(found.metadata).toMatchObject({ resource: "agent", id: targetAgentId });
      }
      const { agentId } = await org.agent({ endpoint: echoEndpoint });
      const unable = await refused("unable", [org.admin, contractId, { targetAgentId: agentId }]);
      expect(unable).toMatchObject({ reason: "NO_CAPABLE_AGENT", field: "target_agent_id" });
    });

    test("falls back to no contract that needs approvals", async () => {
      const org = await world.org();
      await using agent = await httpAgent();
      const guarded = await contract(org, { approvalRequired: true, capability: "guarded" });
      await worker(org, "guarded", agent);
      const open = await contract(org, { fallbacks: [{ contractId: guarded }] });
      await worker(org, open, await deadUrl());
      expect(reasonOf(await submit(org.admin, open))).toBe("AGENT_UNREACHABLE");
      expect(agent.calls).toHaveLength(0);
    });
  });

  describe("hostile requests", () => {
    test("numbers that JSON has not, and values that are none, are the caller's fault", async () => {
      const org = await world.org();
      const contractId = await contract(org);
      await worker(org, contractId, "http://127.0.0.1:9");
      const bad = [
        create(ValueSchema, { kind: { case: "numberValue", value: Number.NaN } }),
        create(ValueSchema, { kind: { case: "numberValue", value: Number.POSITIVE_INFINITY } }),
        create(ValueSchema, { kind: { case: "listValue", value: { values: [create(ValueSchema)] } } }),
      ];
      for (const input of bad) {
        const found = await refusal(org.admin.bus.submitTask({ contractId, input }));
        expect(found).toMatchObject({ code: "InvalidArgument", metadata: { field: "input" } });
      }
    });

    test.each(["connect", "grpc"] as const)(
      "nesting beyond any limit is refused, not crashed on, over %s",
      async (protocol) => {
        const org = await world.org();
        const contractId = await contract(org);
        await org.agent({ capabilities: [contractId], endpoint: echoEndpoint });
        const by = world.as(org.adminKey, protocol);
        const task = await submit(by, contractId, { input: nested(32) });
        expect(stateOf(task)).toBe("COMPLETED");
        const found = await refusal(submit(by, contractId, { input: nested(33) }));
        expect(found).toMatchObject({ code: "InvalidArgument", reason: "PAYLOAD_TOO_LARGE" });
      },
    );
  });

  test.each([33, 200, 100_000])("JSON nested %i levels deep is refused, not crashed on", async (depth) => {
    const org = await world.org();
    const input = `${'{"a":'.repeat(depth - 1)}{}${"}".repeat(depth - 1)}`;
    const response = await fetch(`${world.url}/moltwire.bus.v1.BusService/SubmitTask`, {
      method: "POST",
      headers: { "content-type": "application/json", authorization: `Bearer ${org.adminKey}` },
      body: `{"contractId":"any","input":${input}}`,
    });
    expect([response.status, await response.json()]).toEqual([
      400,
      expect.objectContaining({ code: "invalid_argument" }),
    ]);
  });

  describe("an agent that fails", () => {
    type Outcome = { readonly reason: string; readonly metadata?: Record<string, unknown>; readonly message?: string };
    const badResponse = (detail: string): Outcome => ({
      reason: "AGENT_BAD_RESPONSE",
      metadata: { detail: expect.stringContaining(detail) },
    });
    const raw =
      (status: number, body: string | Buffer, headers: Record<string, string> = {}): Handle =>
      ({ response }) =>
        void response.writeHead(status, { "content-type": "application/json", ...headers }).end(body);

    test.each<[string, Handle, Outcome]>([
      ["not JSON", raw(200, "<html>hello</html>", { "content-type": "text/html" }), badResponse("<html>hello</html>")],
      ["JSON of another shape", raw(200, '{"output":1,"usage":"much"}'), badResponse("no HandleTaskResponse")],
      ["a JSON array", raw(200, "[1]"), badResponse("no HandleTaskResponse")],
      ["an empty body", raw(200, ""), badResponse("empty")],
      ["no output", raw(200, "{}"), badResponse('no "output"')],
      ["usage below zero", raw(200, '{"output":1,"usage":{"inputTokens":-1}}'), badResponse("breaks the protocol")],
      ["a model name that cannot be kept", raw(200, '{"output":1,"usage":{"model":"a\\u0000"}}'), badResponse("model")],
      ["more than 2 MiB", raw(200, `{"output":"${"x".repeat(2_200_000)}"}`), badResponse("too large")],
      ["an output beyond 1 MiB", raw(200, `{"output":"${"x".repeat(1_048_577)}"}`), badResponse("1048576")],
      [
        "an output nested too deep",
        raw(200, `{"output":${"[".repeat(70)}${"]".repeat(70)}}`),
        badResponse("32 levels"),
      ],
      ["an output nested beyond reason", raw(200, `{"output":${"[".repeat(500_000)}`), badResponse("")],
      ["a bomb", raw(200, "garbage", { "content-encoding": "gzip" }), badResponse("")],
      ["a redirect", raw(302, "", { location: "http://127.0.0.1:1/" }), badResponse("redirect")],
      [
        "a 500 with text",
        raw(500, "Traceback (most recent call last)"),
        {
          ...{ reason: "ADAPTER_ERROR", message: "Traceback" },
          metadata: { status: "500", attempts: "1" },
        },
      ],
      [
        "a Connect error",
        failing("out_of_range", 400, "beyond me"),
        {
          ...{ reason: "ADAPTER_ERROR", message: "beyond me" },
          metadata: { status: "400", code: "out_of_range" },
        },
      ],
      [
        "a cut connection",
        ({ response }) => void response.destroy(),
        {
          reason: "OUTCOME_UNKNOWN",
          metadata: { cause: "AGENT_UNREACHABLE" },
        },
      ],
      [
        "a gateway that lost the agent",
        raw(502, "Bad Gateway"),
        {
          reason: "OUTCOME_UNKNOWN",
          metadata: { cause: "ADAPTER_ERROR", status: "502" },
        },
      ],
    ])(
      "by answering %s ends the task with the reason",
      async (_what, handle, { reason, metadata = {}, message = "" }) => {
        const org = await world.org();
        await using agent = await httpAgent(handle);
        const contractId = await contract(org);
        const { agentId } = await worker(org, contractId, agent);
        const task = await submit(org.admin, contractId);
        expect([stateOf(task), reasonOf(task)]).toEqual(["FAILED", reason]);
        expect(task.error?.metadata).toMatchObject({ agent_id: agentId, ...metadata });
        expect(task.error?.message).toContain(message);
        const events = await eventsOf(org.admin, task.traceId);
        expect(kindsOf(events)).toEqual([...completed.slice(0, 6), "ATTEMPT_FAILED", "FAILED"]);
        expect(detailsOf(events, "FAILED")).toMatchObject({ reason });
        expect(detailsOf(events, "ATTEMPT_FAILED")).toMatchObject({ next: "fail", attempt: 1 });
      },
    );

    test("by an output that breaks the contract ends the task naming the field, and what it consumed is kept", async () => {
      const org = await world.org();
      await using agent = await httpAgent(() => ({ output: { sources: [1] }, usage: { inputTokens: 5 } }));
      const outputSchema = { properties: { sources: { type: "array", items: { type: "string" } } } };
      const contractId = await contract(org, { outputSchema });
      await worker(org, contractId, agent);
      const task = await submit(org.admin, contractId);
      expect([stateOf(task), reasonOf(task)]).toEqual(["FAILED", "CONTRACT_VIOLATION"]);
      expect(task.error?.metadata).toMatchObject({ direction: "output", field: "output.sources[0]", keyword: "type" });
      expect(task.output).toBeUndefined();
      expect(task.usage?.inputTokens).toBe(5n);
    });

    test("by being dead: AGENT_UNREACHABLE", async () => {
      const org = await world.org();
      const contractId = await contract(org);
      const { agentId } = await worker(org, contractId, await deadUrl());
      const task = await submit(org.admin, contractId);
      expect([stateOf(task), reasonOf(task)]).toEqual(["FAILED", "AGENT_UNREACHABLE"]);
      expect(task.error?.metadata).toMatchObject({ agent_id: agentId, attempts: "1" });
    });

    test.each([
      [true, "AGENT_TIMEOUT", { timeout_ms: "60" }],
      [false, "OUTCOME_UNKNOWN", { cause: "AGENT_TIMEOUT" }],
    ])("by being slow (repeatable: %s): %s, and its call is hung up on", async (repeatable, reason, metadata) => {
      const org = await world.org();
      await using agent = await httpAgent(silent);
      const contractId = await contract(org, { timeoutMs: 60, repeatable });
      await worker(org, contractId, agent);
      const task = await submit(org.admin, contractId);
      expect([stateOf(task), reasonOf(task)]).toEqual(["FAILED", reason]);
      expect(task.error?.metadata).toMatchObject(metadata);
      await (await agent.call(0)).hungUp;
    });
  });

  describe("an endpoint at a private address", () => {
    test.each([
      "http://10.1.2.3/",
      "http://169.254.169.254/latest/meta-data",
      "http://[::1]:80/",
      "http://2130706434/",
      "ftp://example.com/",
      "not a url",
    ])("%s is refused when the agent is registered, and when it is changed", async (url) => {
      const org = await world.org();
      const registered = await refusal(org.agent({ endpoint: httpEndpoint(url) }));
      expect(registered).toMatchObject({ code: "InvalidArgument", reason: "ENDPOINT_REFUSED" });
      expect(registered.metadata.field).toBe("endpoint.http.url");
      const { agentId } = await org.agent();
      const change = { agentId, change: { endpoint: httpEndpoint(url) }, updateMask: { paths: ["endpoint"] } };
      const changed = await refusal(org.admin.agents.updateAgent(change));
      expect(changed).toMatchObject({ reason: "ENDPOINT_REFUSED", metadata: { field: "change.endpoint.http.url" } });
    });

    test("is refused at the dispatch too: what was allowed may be allowed no more", async () => {
      const folder = mkdtempSync(join(tmpdir(), "moltwire-test-"));
      const database = dialect === "postgres" ? await migratedDatabase() : undefined;
      const storage = database ? { databaseUrl: database.url } : { data: folder };
      try {
        await using agent = await httpAgent();
        let adminKey: string;
        {
          await using before = await start(dialect, storage);
          const org = await before.org();
          await contract(org, { contractId: "c" });
          await worker(org, "c", agent);
          adminKey = org.adminKey;
          expect(stateOf(await submit(org.admin, "c"))).toBe("COMPLETED");
        }
        await using after = await start(dialect, { ...storage, egressAllow: [] });
        const task = await submit(after.as(adminKey), "c");
        expect([stateOf(task), reasonOf(task)]).toEqual(["FAILED", "ENDPOINT_REFUSED"]);
        expect(agent.calls).toHaveLength(1);
      } finally {
        rmSync(folder, { recursive: true });
        await database?.drop();
      }
    });
  });

  test("validate_only answers the whole decision path and changes nothing, whether it would be accepted or refused", async () => {
    const org = await world.org();
    await using agent = await httpAgent();
    const contractId = await contract(org, { inputSchema: query });
    const { agentId } = await worker(org, contractId, agent);
    const fits = { contractId, input: value({ query: "bees" }), validateOnly: true };
    const { task, decisionPath } = await org.admin.bus.submitTask(fits);
    expect(task).toBeUndefined();
    expect(kindsOf(decisionPath)).toEqual(completed.slice(0, 4));
    expect(decisionPath.at(-1)).toMatchObject({ targetAgentId: agentId, cursor: "", taskId: "", contractId });
    const broken = await org.admin.bus.submitTask({ ...fits, input: value({}) });
    expect(kindsOf(broken.decisionPath)).toEqual(["SUBMITTED", "INPUT_CHECKED", "REFUSED"]);
    expect(broken.decisionPath.at(-1)!.details).toMatchObject({ reason: "CONTRACT_VIOLATION", field: "input.query" });
    expect(await org.admin.bus.listTasks({})).toMatchObject({ tasks: [] });
    expect(await org.admin.traces.listTraces({})).toMatchObject({ traces: [] });
    expect(agent.calls).toHaveLength(0);
  });

  test("return_immediately answers an accepted task; WatchTask and GetTask tell the rest", async () => {
    const org = await world.org();
    await using agent = await httpAgent(silent);
    const contractId = await contract(org);
    await worker(org, contractId, agent);
    const caller = await org.agent();
    const accepted = await submit(caller.as, contractId, { returnImmediately: true }, { timeoutMs: 60_000 });
    expect(stateOf(accepted)).toBe("SUBMITTED");
    expect(accepted.deadlineTime, "a call that does not wait sets no deadline").toBeUndefined();
    const call = await agent.call(0);
    const working = await caller.as.bus.getTask({ taskId: accepted.taskId });
    expect(stateOf(working.task)).toBe("WORKING");
    const ended = whenEnded(caller.as, accepted.taskId);
    call.answer({ output: 42 });
    expect(json((await ended).output)).toBe(42);
    const { task } = await caller.as.bus.getTask({ taskId: accepted.taskId });
    expect([stateOf(task), json(task?.output)]).toEqual(["COMPLETED", 42]);
  });

  test("a repeated call with its idempotency key joins the task that the first one began", async () => {
    const org = await world.org();
    await using agent = await httpAgent(silent);
    const contractId = await contract(org);
    await worker(org, contractId, agent);
    const options = { headers: { "idempotency-key": "k-1" } };
    const first = submit(org.admin, contractId, { input: 1 }, options);
    const call = await agent.call(0);
    const second = submit(org.admin, contractId, { input: 1 }, options);
    expect((await refusal(submit(org.admin, contractId, { input: 2 }, options))).reason).toBe("IDEMPOTENCY_KEY_REUSED");
    call.answer({ output: "once" });
    const tasks = await Promise.all([first, second]);
    expect(tasks.map((task) => [task.taskId, json(task.output)])).toEqual([
      [tasks[0]!.taskId, "once"],
      [tasks[0]!.taskId, "once"],
    ]);
    expect(agent.calls).toHaveLength(1);
  });

  test("a submit that was refused may be tried again with its idempotency key", async () => {
    const org = await world.org();
    const contractId = await contract(org);
    const options = { headers: { "idempotency-key": "k-2" } };
    expect((await refusal(submit(org.admin, contractId, {}, options))).reason).toBe("NO_CAPABLE_AGENT");
    await org.agent({ capabilities: [contractId], endpoint: echoEndpoint });
    expect(stateOf(await submit(org.admin, contractId, {}, options))).toBe("COMPLETED");
  });

  describe("who sees and does what", () => {
    test("lists filter by state, agent, contract and trace, page without gap or repeat, and hold no payloads", async () => {
      const org = await world.org();
      const [a, b] = [await contract(org), await contract(org)];
      const doer = await org.agent({ capabilities: [a, b], endpoint: echoEndpoint });
      const [one, two] = [await org.agent(), await org.agent()];
      const made = [];
      for (let n = 0; n < 7; n++) made.push(await submit((n % 2 ? one : two).as, n % 3 ? a : b, { input: n }));
      const ids = (tasks: readonly { taskId: string }[]) => tasks.map(({ taskId }) => taskId);
      const newestFirst = made.toReversed();
      const pages: string[] = [];
      for (let pageToken = ""; ; ) {
        const page = await org.admin.bus.listTasks({ pageSize: 3, pageToken });
        pages.push(...ids(page.tasks));
        expect(page.tasks.every(({ input, output }) => !input && !output)).toBe(true);
        pageToken = page.nextPageToken;
        if (!pageToken) break;
      }
      expect(pages).toEqual(ids(newestFirst));
      const list = async (by: typeof org.admin, filter: object) => ids((await by.bus.listTasks(filter)).tasks);
      expect(await list(org.admin, { contractId: b })).toEqual(ids(newestFirst.filter((t) => t.contractId === b)));
      expect(await list(org.admin, { traceId: made[2]!.traceId })).toEqual([made[2]!.taskId]);
      expect(await list(org.admin, { state: TaskState.FAILED })).toEqual([]);
      expect(await list(org.admin, { state: TaskState.COMPLETED, agentId: one.agentId })).toHaveLength(3);
      expect(await list(one.as, {})).toEqual(ids(newestFirst.filter((t) => t.callerAgentId === one.agentId)));
      expect(await list(one.as, { agentId: two.agentId })).toEqual([]);
      expect(await list(doer.as, {})).toEqual(ids(newestFirst));
      expect(await list(doer.as, { pageSize: 2 })).toHaveLength(2);
      const { nextPageToken } = await org.admin.bus.listTasks({ pageSize: 3 });
      const elsewhere = await refusal(
        org.admin.bus.listTasks({ pageSize: 3, pageToken: nextPageToken, contractId: a }),
      );
      expect(elsewhere).toMatchObject({ reason: "INVALID_PAGE_TOKEN", metadata: { field: "page_token" } });
    });

    test("an agent reads the tasks it asked for and was given; to others they are not there", async () => {
      const org = await world.org();
      const contractId = await contract(org);
      const doer = await org.agent({ capabilities: [contractId], endpoint: echoEndpoint });
      const [caller, bystander] = [await org.agent(), await org.agent()];
      const { taskId } = await submit(caller.as, contractId);
      for (const agent of [caller, doer]) expect((await agent.as.bus.getTask({ taskId })).task?.taskId).toBe(taskId);
      const other = await world.org();
      for (const by of [bystander.as, other.admin, (await other.agent()).as]) {
        const hidden = await refusal(by.bus.getTask({ taskId }));
        const unknown = await refusal(by.bus.getTask({ taskId: "tsk_0" }));
        expect(hidden).toMatchObject({ code: "NotFound", reason: "NOT_FOUND" });
        expect(hidden.error.rawMessage).toBe(unknown.error.rawMessage);
      }
    });

    test("an administrator acts for an agent it names; an agent for itself only", async () => {
      const org = await world.org();
      const contractId = await contract(org);
      await org.agent({ capabilities: [contractId], endpoint: echoEndpoint });
      const [one, two] = [await org.agent(), await org.agent()];
      const named = await submit(org.admin, contractId, { agentId: one.agentId });
      expect(named.callerAgentId).toBe(one.agentId);
      expect((await one.as.bus.getTask({ taskId: named.taskId })).task?.taskId).toBe(named.taskId);
      const byOperator = await submit(world.operator, contractId, { orgId: org.orgId, agentId: two.agentId });
      expect(byOperator).toMatchObject({ orgId: org.orgId, callerAgentId: two.agentId });
      expect((await submit(org.admin, contractId)).callerAgentId).toBe("");
      expect((await submit(one.as, contractId, { agentId: one.agentId })).callerAgentId).toBe(one.agentId);
      const stranger = await (await world.org()).agent();
      const tries: [typeof org.admin, string][] = [
        [one.as, two.agentId],
        [one.as, "agt_0"],
        [org.admin, stranger.agentId],
      ];
      for (const [by, agentId] of tries)
        expect(await refusal(submit(by, contractId, { agentId }))).toMatchObject({ reason: "NOT_FOUND" });
    });

    test("the agent it insists on does it, however many have the capability", async () => {
      const org = await world.org();
      const contractId = await contract(org);
      await using first = await httpAgent();
      await using second = await httpAgent();
      await worker(org, contractId, first);
      const { agentId: targetAgentId } = await worker(org, contractId, second);
      for (let n = 0; n < 4; n++)
        expect((await submit(org.admin, contractId, { targetAgentId })).targetAgentId).toBe(targetAgentId);
      expect([first.calls.length, second.calls.length]).toEqual([0, 4]);
    });
  });

  test("tasks submitted with the traceparent they were given make one trace, parent above child", async () => {
    const org = await world.org();
    const [outer, inner] = [await contract(org), await contract(org)];
    await org.agent({ name: unique("leaf"), capabilities: [inner], endpoint: echoEndpoint });
    await using agent = await httpAgent(async ({ task }) => {
      const child = await submit(
        planner.as,
        inner,
        { input: "child" },
        { headers: { traceparent: task.traceparent! } },
      );
      return { output: child.taskId };
    });
    const planner = await worker(org, outer, agent);
    const caller = await org.agent();
    const parent = await submit(caller.as, outer);
    const child = (await planner.as.bus.getTask({ taskId: String(json(parent.output)) })).task!;
    expect(child).toMatchObject({
      traceId: parent.traceId,
      parentSpanId: parent.spanId,
      callerAgentId: planner.agentId,
    });
    const { trace } = await caller.as.traces.getTrace({ traceId: parent.traceId });
    expect(trace).toMatchObject({ tasks: 2, openTasks: 0, failedTasks: 0, openerAgentId: caller.agentId });
    expect(await eventsOf(caller.as, parent.traceId)).toHaveLength(2 * completed.length);
    const seen = await eventsOf(planner.as, parent.traceId);
    expect(seen.every((event) => [event.callerAgentId, event.targetAgentId].includes(planner.agentId))).toBe(true);
  });
});

const detailsOf = (events: readonly TraceEvent[], kind: keyof typeof TraceEventKind) =>
  events.find((event) => event.kind === TraceEventKind[kind])?.details;

/** Objects in one another: `nested(2)` is `{ a: {} }`. */
const nested = (levels: number): JsonValue => {
  let inner: JsonValue = {};
  for (let level = 1; level < levels; level++) inner = { a: inner };
  return inner;
};
