import { randomBytes } from "node:crypto";
import {
  create,
  type DescMessage,
  type DescMethodUnary,
  fromBinary,
  fromJson,
  type JsonObject,
  type MessageInitShape,
  type MessageShape,
  toBinary,
  toJson,
} from "@bufbuild/protobuf";
import { ValueSchema } from "@bufbuild/protobuf/wkt";
import { codeToString } from "@connectrpc/connect/protocol-connect";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { RetryInfoSchema } from "../gen/google/rpc/error_details_pb.ts";
import type { BatchCallSchema, BatchResult } from "../gen/moltwire/batch/v1/batch_service_pb.ts";
import { BusService } from "../gen/moltwire/bus/v1/bus_service_pb.ts";
import { MemoryService } from "../gen/moltwire/memory/v1/memory_service_pb.ts";
import { StatusService } from "../gen/moltwire/ops/v1/status_service_pb.ts";
import { QueueService } from "../gen/moltwire/queue/v1/queue_service_pb.ts";
import { accessOf } from "../src/rpc/access.ts";
import { services } from "../src/services.ts";
import {
  type Clients,
  dialects,
  fakeClock,
  type Org,
  type OrgAgent,
  type Protocol,
  refusal,
  start,
  type World,
} from "./harness.ts";
import { jsonOf, set, write } from "./memory-fixtures/memory.ts";
import { addContract } from "./rpc-fixtures/contract.ts";

const { setEntry, getEntry } = MemoryService.method;

const nameOf = (method: { readonly parent: { readonly typeName: string }; readonly name: string }) =>
  `${method.parent.typeName}/${method.name}`;

/** A call of a method, as a part of a batch. */
const call = <I extends DescMessage>(
  method: DescMethodUnary<I, DescMessage>,
  request: MessageInitShape<I>,
  more: { readonly idempotencyKey?: string; readonly traceparent?: string } = {},
) => ({
  method: nameOf(method),
  request: { case: "message", value: toBinary(method.input, create(method.input, request)) } as const,
  ...more,
});

const execute = async (as: Clients, calls: MessageInitShape<typeof BatchCallSchema>[]) =>
  (await as.batch.execute({ calls })).results;

function answerOf<O extends DescMessage>(
  method: DescMethodUnary<DescMessage, O>,
  { outcome }: BatchResult,
): MessageShape<O> {
  if (outcome.case !== "message") throw new Error(`answered with ${JSON.stringify(outcome.value)}`);
  return fromBinary(method.output, outcome.value);
}

const errorOf = ({ outcome }: BatchResult) => (outcome.case === "error" ? outcome.value : undefined);
const reasons = (results: readonly BatchResult[]) => results.map((result) => errorOf(result)?.reason ?? "done");
const value = (n: number) => ({ write: write(`k${n}`, n) });

test("every method whose request may ask to wait says so", () => {
  const all = services.flatMap(({ methods }) => methods).filter(({ methodKind }) => methodKind === "unary");
  const asking = all.flatMap((method) =>
    method.input.fields
      .filter(({ name }) => ["wait", "return_immediately"].includes(name))
      .map(({ name }) => [method, name] as const),
  );
  expect(asking.length).toBeGreaterThanOrEqual(5);
  for (const [method, name] of asking) expect([nameOf(method), accessOf(method).waits]).toEqual([nameOf(method), name]);
});

describe.each(dialects)("batches on %s", (dialect) => {
  const clock = fakeClock(Date.now());
  let world: World;
  let org: Org;
  let ann: OrgAgent;
  beforeAll(async () => {
    world = await start(dialect, { clock, rateLimit: 1_000 });
    org = await world.org();
    ann = await org.agent();
  });
  afterAll(() => world[Symbol.asyncDispose]());

  test.each<Protocol>(["connect", "connect-json", "grpc", "grpc-web"])(
    "over %s: 500 calls are answered each in its place, and one that fails undoes no other",
    async (protocol) => {
      const agent = await org.agent();
      const as = world.as(agent.key, protocol);
      const calls = Array.from({ length: 500 }, (_, n) =>
        n % 10 === 7 ? call(setEntry, { write: { ...write(`k${n}`, n), ifRevision: 5n } }) : call(setEntry, value(n)),
      );
      const results = await execute(as, calls);
      expect(reasons(results)).toEqual(calls.map((_, n) => (n % 10 === 7 ? "FAILED_PRECONDITION" : "done")));
      const read = await execute(agent.as, calls.map((_, n) => call(getEntry, { key: `k${n}` })).slice(0, 20));
      expect(
        read.map((result) =>
          errorOf(result) ? errorOf(result)!.reason : jsonOf(answerOf(getEntry, result).entry!.value),
        ),
      ).toEqual(calls.slice(0, 20).map((_, n) => (n % 10 === 7 ? "NOT_FOUND" : n)));
    },
  );

  test("a call fails as it would by itself: code, message, reason, metadata and details", async () => {
    const requests = [{ key: "nowhere" }, { key: "x".repeat(300) }, { key: "k", agentId: `agt_${"0".repeat(32)}` }];
    const results = await execute(
      ann.as,
      requests.map((request) => call(getEntry, request)),
    );
    for (const [n, request] of requests.entries()) {
      const alone = await refusal(ann.as.memory.getEntry(request));
      const { code, message, reason, metadata, details } = errorOf(results[n]!)!;
      const { trace_id: traceId, ...rest } = alone.metadata;
      expect(traceId).toMatch(/^[0-9a-f]{32}$/);
      expect([code, message, reason, metadata]).toEqual([
        codeToString(alone.error.code),
        alone.error.rawMessage,
        alone.reason,
        { ...rest, trace_id: results[n]!.traceId },
      ]);
      const types = alone.error.details.map((detail) => ("type" in detail ? detail.type : detail.desc.typeName));
      expect(details.map(({ type }) => type)).toEqual(types);
    }
  });

  test("each call is let in by itself: by the role and the scopes of the batch's key, or by none", async () => {
    const { secret } = await org.admin.keys.createApiKey({ agentId: ann.agentId, scopes: ["memory:read"] });
    const calls = [
      call(getEntry, { key: "nowhere" }),
      call(setEntry, value(1)),
      call(StatusService.method.getStatus, {}),
      { method: "moltwire.federation.v1.OrganizationService/CreateOrganization" },
    ];
    expect(reasons(await execute(world.as(secret), calls))).toEqual([
      "NOT_FOUND",
      "SCOPE_REQUIRED",
      "done",
      "ROLE_REQUIRED",
    ]);
    expect(reasons(await execute(world.as(undefined), calls))).toEqual([
      "KEY_MISSING",
      "KEY_MISSING",
      "done",
      "KEY_MISSING",
    ]);
    expect((await refusal(execute(world.as("mw_wrong"), calls))).reason).toBe("KEY_INVALID");
  });

  test("a batch that is repeated with its idempotency keys has one effect, and says which answers are old", async () => {
    const { as } = await org.agent();
    const calls = (n: number) =>
      Array.from({ length: 5 }, (_, i) =>
        call(QueueService.method.submitJobs, { jobs: [{ queue: `q${n}` }] }, { idempotencyKey: `job-${i}` }),
      );
    const first = await execute(as, calls(1));
    const second = await execute(as, [...calls(1), ...calls(2).slice(0, 1)]);
    expect(first.map(({ idempotencyReplayed }) => idempotencyReplayed)).toEqual(Array(5).fill(false));
    expect(second.slice(0, 5).map(({ outcome, idempotencyReplayed }) => [outcome, idempotencyReplayed])).toEqual(
      first.map(({ outcome }) => [outcome, true]),
    );
    expect(errorOf(second[5]!)?.reason).toBe("IDEMPOTENCY_KEY_REUSED");
    expect((await as.queues.listJobs({ queue: "q1" })).jobs).toHaveLength(5);
  });

  test("calls that wait, sessions, streams, batches and methods that there are not are refused in their places", async () => {
    const contractId = "batched";
    await addContract(world, org.orgId, { contractId, capability: contractId });
    const submit = BusService.method.submitTask;
    const input = fromJson(ValueSchema, "x");
    const claim = QueueService.method.claimJobs;
    const apart = services
      .flatMap(({ methods }) => methods)
      .filter((method) => method.methodKind !== "unary" || accessOf(method).alone)
      .map((method) => ({ method: nameOf(method) }));
    expect(apart.map(({ method }) => method)).toContain("moltwire.batch.v1.BatchService/Execute");
    const results = await execute(ann.as, [
      ...apart,
      call(submit, { contractId, input }),
      call(claim, { queues: ["q"], wait: { seconds: 1n } }),
      { method: "moltwire.memory.v1.MemoryService/Nothing" },
      { method: "../etc" },
      call(claim, { queues: ["q"], wait: {} }),
      call(submit, { contractId, input, returnImmediately: true }),
      call(setEntry, value(1)),
    ]);
    const wanted = [
      ...apart.map(() => "INVALID_REQUEST"),
      "INVALID_REQUEST",
      "INVALID_REQUEST",
      "UNIMPLEMENTED",
      "UNIMPLEMENTED",
    ];
    expect(reasons(results)).toEqual([...wanted, "done", "NO_CAPABLE_AGENT", "done"]);
    expect(errorOf(results[apart.length]!)?.metadata.field).toBe(`calls[${apart.length}].message.return_immediately`);
  });

  test("each call counts as a request, and those beyond the limit are refused in their places and told when to come again; the batch says how many are left", async () => {
    await using tight = await start(dialect, { clock, rateLimit: 8 });
    const { as } = await (await tight.org()).agent();
    const executed = async (count: number) => {
      let left: (string | null)[] = [];
      const onHeader = (header: Headers) =>
        void (left = ["ratelimit-limit", "ratelimit-remaining"].map((name) => header.get(name)));
      const calls = Array.from({ length: count }, (_, n) => call(setEntry, value(n)));
      return { results: (await as.batch.execute({ calls }, { onHeader })).results, left };
    };
    expect((await executed(3)).left).toEqual(["8", "5"]);
    const { results, left } = await executed(8);
    expect(left).toEqual(["8", "0"]);
    expect(reasons(results)).toEqual([...Array(5).fill("done"), ...Array(3).fill("RATE_LIMITED")]);
    const detail = errorOf(results[7]!)!.details.find(({ type }) => type === RetryInfoSchema.typeName)!;
    expect(fromBinary(RetryInfoSchema, detail.value).retryDelay?.seconds).toBe(60n);
    expect((await refusal(execute(as, [call(setEntry, value(9))]))).reason).toBe("RATE_LIMITED");
    clock.advance(60_000);
    expect((await as.memory.listEntries({})).entries).toHaveLength(5);
  });

  test("each call has a span of its own in the trace of the batch, or in that which it names", async () => {
    const headers = { traceparent: `00-${"a".repeat(32)}-${"b".repeat(16)}-01` };
    const traceparent = `00-${"c".repeat(32)}-${"d".repeat(16)}-01`;
    const calls = [call(getEntry, { key: "k" }), call(getEntry, { key: "k" }, { traceparent })];
    const { results } = await ann.as.batch.execute({ calls }, { headers });
    expect(results.map(({ traceId }) => traceId)).toEqual(["a".repeat(32), "c".repeat(32)]);
  });

  test("a message that is none is refused in its place, and a batch that is none as a whole", async () => {
    const message = (bytes: Uint8Array) => ({
      method: nameOf(setEntry),
      request: { case: "message", value: bytes } as const,
    });
    const results = await execute(ann.as, [
      message(Uint8Array.of(255, 255, 255)),
      { method: nameOf(setEntry), request: { case: "json", value: fromJson(ValueSchema, { write: 5 }) } },
      { method: nameOf(setEntry) },
      call(setEntry, value(1)),
    ]);
    expect(reasons(results)).toEqual(["INVALID_REQUEST", "INVALID_REQUEST", "INVALID_REQUEST", "done"]);
    expect(errorOf(results[1]!)?.message).toMatch(
      /^calls\[1\]\.json: this is no moltwire\.memory\.v1\.SetEntryRequest/,
    );
    const one = call(getEntry, { key: "k" });
    for (const calls of [[], Array(501).fill(one), [{ ...one, idempotencyKey: "a b" }], [{ ...one, method: "" }]])
      expect((await refusal(execute(ann.as, calls as never))).reason).toBe("INVALID_REQUEST");
  });

  test("JSON is answered with JSON", async () => {
    const method = nameOf(setEntry);
    const calls: JsonObject[] = [
      { method, json: { write: { key: "step", value: { json: { n: 3 } } } } },
      { method: nameOf(getEntry), json: { key: "step" } },
      { method: nameOf(getEntry), json: { key: "missing" } },
    ];
    // One after the other: calls of one batch run side by side.
    const answers: JsonObject[] = [];
    for (const one of calls) {
      const answer = await fetch(`${world.url}/moltwire.batch.v1.BatchService/Execute`, {
        method: "POST",
        headers: { "content-type": "application/json", authorization: `Bearer ${ann.key}` },
        body: JSON.stringify({ calls: [one] }),
      });
      answers.push(((await answer.json()) as { results: JsonObject[] }).results[0]!);
    }
    expect(answers).toMatchObject([
      { json: { entry: { key: "step" } } },
      { json: { entry: { key: "step", value: { json: { n: 3 } } } } },
      { error: { code: "not_found", reason: "NOT_FOUND" } },
    ]);
  });

  test("answers for which there is no room are left out, and whether their calls were carried out is said", async () => {
    const agent = await org.agent();
    const text = randomBytes(18_000).toString("hex");
    await set(agent.as, "large", text);
    const { entry } = await agent.as.memory.getEntry({ key: "large" });
    expect(toJson(ValueSchema, (entry!.value!.kind as { value: MessageShape<typeof ValueSchema> }).value)).toBe(text);
    const results = await execute(agent.as, Array(500).fill(call(getEntry, { key: "large" })));
    const told = results.map((result) => errorOf(result)?.metadata.carried_out ?? "done");
    const done = told.filter((word) => word === "done").length;
    expect(done).toBeGreaterThan(250);
    expect(told).toContain("true");
    expect(told).toContain("false");
    expect(new Set(reasons(results))).toEqual(new Set(["done", "PAYLOAD_TOO_LARGE"]));
  });
});
