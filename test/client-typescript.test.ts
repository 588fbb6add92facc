import { AsyncLocalStorage } from "node:async_hooks";
import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { Code, ConnectError } from "@connectrpc/connect";
import { type Context, context, propagation, ROOT_CONTEXT } from "@opentelemetry/api";
import { afterAll, beforeAll, describe, expect, expectTypeOf, test } from "vitest";
import { reasonErrorsOf } from "../clients/typescript/generate-errors.ts";
import {
  BudgetExceeded,
  CircuitOpen,
  ContractViolation,
  connect,
  contentOf,
  DeadlineExceeded,
  InvalidRequest,
  KeyInvalid,
  type Moltwire,
  MoltwireError,
  NotFound,
  PolicyDenied,
  QuotaExceeded,
  RateLimited,
  TaskError,
  Unreachable,
} from "../clients/typescript/index.ts";
import { reasonErrors } from "../clients/typescript/reason-errors.ts";
import { placeOf } from "../clients/typescript/resume.ts";
import { kindOf } from "../clients/typescript/retry.ts";
import { testServer } from "../clients/typescript/testing.ts";
import { reasonError } from "../clients/typescript/typed-errors.ts";
import { Kind } from "../gen/moltwire/api/v1/access_pb.ts";
import { ErrorReason } from "../gen/moltwire/api/v1/error_reason_pb.ts";
import { BusService } from "../gen/moltwire/bus/v1/bus_service_pb.ts";
import { PeerGatewayService } from "../gen/moltwire/federation/v1/peer_gateway_service_pb.ts";
import { QueueService } from "../gen/moltwire/queue/v1/queue_service_pb.ts";
import { sql } from "../src/db/db.ts";
import { Fault, toConnectError } from "../src/errors.ts";
import { createServer } from "../src/server.ts";
import { services } from "../src/services.ts";
import { contract, echoEndpoint, worker } from "./bus-fixtures/bus.ts";
import { failing, httpAgent, silent } from "./bus-fixtures/http-agent.ts";
import { pullEndpoint } from "./bus-fixtures/instance.ts";
import { asTold, begin, limit, metered } from "./bus-fixtures/metered.ts";
import { faultyServer } from "./client-fixtures/faulty.ts";
import { wireTo } from "./client-fixtures/proxy.ts";
import { dialects, eventually, start, unique, type World } from "./harness.ts";

/** What a call was refused with. Fails the test when it was not. */
const thrown = (call: Promise<unknown>): Promise<unknown> =>
  call.then(
    () => {
      throw new Error("the call was expected to fail, and succeeded");
    },
    (error: unknown) => error,
  );

const first = async <T>(items: AsyncIterable<T>): Promise<T> => {
  for await (const item of items) return item;
  throw new Error("nothing came");
};

describe.each(dialects)("the client for TypeScript, of a server on %s", (dialect) => {
  let world: World;
  beforeAll(async () => {
    world = await start(dialect, { memoryMaxBytes: 2_000 });
  });
  afterAll(() => world[Symbol.asyncDispose]());

  async function agentOf(init = {}) {
    const org = await world.org();
    const agent = await org.agent(init);
    const mw = connect({ url: world.url, apiKey: agent.key });
    return { org, agent, mw, admin: connect({ url: world.url, apiKey: org.adminKey }) };
  }

  test("memory: what is set is read, listed, watched and deleted, JSON and bytes", async () => {
    const { mw } = await agentOf();
    const { revision } = await mw.memory.set("plan", { step: 1 }, { ttlMs: 60_000, tags: ["a"] });
    await mw.memory.set("picture", new Uint8Array([1, 2, 3]), { contentType: "image/png", namespace: "art" });
    expect(await mw.memory.get("plan")).toEqual({ step: 1 });
    expect(await mw.memory.get("picture", { namespace: "art" })).toEqual(new Uint8Array([1, 2, 3]));
    expect(await mw.memory.get("nothing")).toBeUndefined();
    const keys: string[] = [];
    for (let n = 0; n < 5; n++) await mw.memory.set(`list/${n}`, n);
    for await (const { key } of mw.memory.list({ prefix: "list/", pageSize: 2 })) keys.push(key);
    expect(keys).toEqual(["list/0", "list/1", "list/2", "list/3", "list/4"]);
    const change = await first(mw.memory.watch({ afterRevision: revision - 1n }));
    expect([change.revision, change.entry?.key]).toEqual([revision, "plan"]);
    expect([await mw.memory.delete("plan"), await mw.memory.delete("plan")]).toEqual([true, false]);
    expect((await mw.memory.rpc.listEntries({ prefix: "list/" })).entries.length).toBe(5);
  });

  test("queue: a worker does the jobs, says how far it is, and what it throws is tried again or not", async () => {
    const { mw } = await agentOf();
    const queue = unique("queue");
    const stop = new AbortController();
    const done: unknown[] = [];
    const jobs = [
      await mw.queue.submit(queue, { n: 1 }, { backoff: { initial: { seconds: 0n, nanos: 1_000_000 } } }),
      await mw.queue.submit(queue, { n: 2 }),
      await mw.queue.submit(queue, new Uint8Array([7])),
    ];
    const working = mw.queue.work(
      ({ payload, attempt, progress, traceparent }) => {
        done.push([payload, attempt]);
        progress(0.5, "half");
        expect(traceparent).toMatch(/^00-[0-9a-f]{32}-[0-9a-f]{16}-01$/);
        if (payload instanceof Uint8Array) return payload;
        if ((payload as { n: number }).n === 2) throw new TaskError("never", { retryable: false });
        if (attempt === 1) throw new Error("not yet");
        return { attempt };
      },
      { queues: [queue], capacity: 2, signal: stop.signal },
    );
    const ended = await Promise.all(
      jobs.map(({ jobId }) =>
        eventually(async () => {
          const { job } = await mw.queue.getJob({ jobId });
          return job?.endTime && job;
        }, 15_000),
      ),
    );
    stop.abort();
    await working;
    expect(ended.map(({ attempts, result, error }) => [attempts, contentOf(result), error?.message])).toEqual([
      [2, { attempt: 2 }, "not yet"],
      [1, undefined, "never"],
      [1, new Uint8Array([7]), undefined],
    ]);
    expect(done.length).toBe(4);
    const { change } = await first(mw.queue.watch({ jobId: jobs[0]!.jobId, fromStart: true }));
    expect(change.jobId).toBe(jobs[0]!.jobId);
  });

  test("bus: an agent serves, its caller has the output, and what fails is thrown as its reason", async () => {
    const { org, mw, admin } = await agentOf();
    const contractId = await contract(org);
    const agent = await org.agent({ capabilities: [contractId], endpoint: pullEndpoint });
    const stop = new AbortController();
    const serving = connect({ url: world.url, apiKey: agent.key }).bus.serve(
      ({ input }) => {
        if (input === null) throw new TaskError("nothing to do", { retryable: false });
        return { said: input };
      },
      { signal: stop.signal },
    );
    expect(await admin.bus.call(contractId, "hello")).toEqual({ said: "hello" });
    const failed = await thrown(admin.bus.call(contractId, null));
    expect([(failed as MoltwireError).reason, (failed as Error).message]).toEqual([
      "ADAPTER_ERROR",
      "[aborted] the agent says that it failed: nothing to do",
    ]);
    const { taskId } = await admin.bus.submit(contractId, 1);
    const seen: (string | undefined)[] = [];
    for await (const { event } of admin.bus.watch(taskId)) seen.push(event.case);
    expect([seen[0], seen.at(-1)]).toEqual(["task", "task"]);
    const { step } = await first(admin.traces.tail({ fromStart: true, contractId }));
    expect(step.contractId).toBe(contractId);
    expect(await thrown(mw.bus.getTask({ taskId: "tsk_none" }))).toBeInstanceOf(NotFound);
    stop.abort();
    await serving;
  });

  test("relay and events: what is sent is told, and a signal ends the loop without an error", async () => {
    const { mw, agent } = await agentOf();
    for (const n of [1, 2, 3]) await mw.relay.send({ agentId: agent.agentId }, { n }, { label: "count" });
    const stop = new AbortController();
    const heard: unknown[] = [];
    for await (const { payload, sequence } of mw.relay.subscribe({ afterSequence: 1n }, { signal: stop.signal })) {
      heard.push([sequence, contentOf(payload)]);
      if (heard.length === 2) stop.abort();
    }
    expect(heard).toEqual([
      [2n, { n: 2 }],
      [3n, { n: 3 }],
    ]);
    const { event } = await first(mw.events.watch({ fromStart: true, types: ["message.*"] }));
    expect(event.type).toBe("message.received");
  });

  test("a subscription says what its inbox has let go of unread, and begins with what is kept", async () => {
    const { org, agent, mw } = await agentOf();
    await world.server.app.db.tx((tx) =>
      tx.run(sql`
        insert into relay_log (org_id, log_id, head, floor, messages, bytes, unread_gone) values (${org.orgId}, ${agent.agentId}, 9, 9, 0, 0, 7)`),
    );
    await mw.relay.send({ agentId: agent.agentId }, "kept");
    const gone: bigint[] = [];
    const { sequence } = await first(mw.relay.subscribe({}, { onUnreadGone: (at) => gone.push(at) }));
    expect([sequence, gone]).toEqual([10n, [7n]]);
  });

  test("an answer that was lost on its way comes with the next attempt, and the command was carried out once", async () => {
    const { agent, mw: direct } = await agentOf();
    await using wire = await wireTo(world.url);
    const problems: unknown[] = [];
    const mw = connect({ url: wire.url, apiKey: agent.key, onProblem: (error) => problems.push(error) });
    const queue = unique("queue");
    await mw.queue.listJobs({ queue });
    wire.hold();
    const submitting = mw.queue.submit(queue, { once: true });
    await eventually(async () => (await direct.queue.listJobs({ queue })).jobs.length === 1);
    wire.cut();
    const { jobId } = await submitting;
    expect((await direct.queue.listJobs({ queue })).jobs.map((job) => job.jobId)).toEqual([jobId]);
    expect(problems.length).toBeGreaterThan(0);
    for (const problem of problems) expect(problem).toBeInstanceOf(Unreachable);
  });

  test("a budget, a circuit, a policy, a quota, a wrong field, a wrong key: each error is of its class and knows its values", async () => {
    const { org, mw, admin } = await agentOf();
    await using slow = await httpAgent(silent);
    const { contractId: costly } = await metered(org, slow, 80);
    await limit(org.admin, 100);
    await begin(org.admin, costly);
    const budget = await thrown(admin.bus.call(costly, {}));
    if (!(budget instanceof BudgetExceeded)) throw budget;
    expectTypeOf(budget.limit).toEqualTypeOf<number | undefined>();
    expect(budget).toMatchObject({ reason: "BUDGET_EXCEEDED", limit: 100, usage: 80, spent: 0, unit: "tokens" });
    expect([budget.traceId?.length, budget.code, budget instanceof ConnectError]).toEqual([
      32,
      Code.ResourceExhausted,
      true,
    ]);
    expect([budget instanceof MoltwireError, budget instanceof CircuitOpen]).toEqual([true, false]);

    const other = await agentOf();
    await using broken = await httpAgent(failing("internal"));
    const fragile = await contract(other.org);
    const { agentId } = await worker(other.org, fragile, broken, {
      breaker: { failureThreshold: 1, window: { seconds: 60n }, openDuration: { seconds: 30n } } as never,
    });
    await thrown(other.admin.bus.call(fragile, {}));
    const circuit = await thrown(other.admin.bus.call(fragile, {}));
    if (!(circuit instanceof CircuitOpen)) throw circuit;
    expect(circuit).toMatchObject({ agentId, failureCount: 1 });
    expect(circuit.retryAt!.getTime()).toBeGreaterThan(Date.now());

    const policyId = unique("policy");
    await other.org.admin.policies.putPolicy({ policyId, cedarText: "forbid (principal, action, resource);" });
    await using echo = await httpAgent(asTold);
    const forbidden = await contract(other.org);
    await worker(other.org, forbidden, echo);
    const policy = await thrown(other.mw.bus.call(forbidden, {}));
    if (!(policy instanceof PolicyDenied)) throw policy;
    expect(policy).toMatchObject({ policyIds: policyId, action: "invoke" });

    const quota = await thrown(mw.memory.set("much", "x".repeat(5_000)));
    if (!(quota instanceof QuotaExceeded)) throw quota;
    expect(quota).toMatchObject({ resource: "memory_bytes", limit: 2_000, used: 0 });

    const wrong = await thrown(mw.memory.set("", 1));
    if (!(wrong instanceof InvalidRequest)) throw wrong;
    expect(wrong.fields[0]?.field).toBe("write.key");
    expect(await thrown(connect({ url: world.url, apiKey: "mw_wrong" }).memory.get("a"))).toBeInstanceOf(KeyInvalid);
    const violation = await thrown(admin.bus.call(await contract(org, { inputSchema: { type: "number" } }), "text"));
    expect(violation).toBeInstanceOf(ContractViolation);
  });

  test("a deadline ends a call that waits, whoever set it, and a task goes on without one", async () => {
    const { org, mw, agent, admin } = await agentOf();
    const queues = [unique("queue")];
    const wait = { queues, wait: { seconds: 30n } };
    // A wait that no deadline ends is answered with no jobs, and fails nothing.
    expect(await thrown(mw.queue.claimJobs(wait, { timeoutMs: 300 }))).toBeInstanceOf(DeadlineExceeded);
    const hasty = connect({ url: world.url, apiKey: agent.key, timeoutMs: 300 });
    expect(await thrown(hasty.queue.claimJobs(wait))).toBeInstanceOf(DeadlineExceeded);
    const contractId = await contract(org);
    await org.agent({ capabilities: [contractId], endpoint: echoEndpoint });
    const { task } = await admin.bus.submitTask({ contractId });
    expect(task?.deadlineTime).toBeUndefined();
  });
});

describe("calls that are sent again", () => {
  const fault = (reason: string, retryAfterMs?: number) => () =>
    toConnectError(
      new Fault(reason as never, "as told", { trace_id: "t" }, retryAfterMs === undefined ? {} : { retryAfterMs }),
    );
  const lost = () => new ConnectError("gone", Code.Unavailable);

  test.each([
    ["OVERLOADED, which says when", fault("OVERLOADED", 20), 2],
    ["RATE_LIMITED, which says when", fault("RATE_LIMITED", 20), 2],
    ["RATE_LIMITED for a minute", fault("RATE_LIMITED", 60_000), 1],
    ["STILL_RUNNING", fault("STILL_RUNNING"), 2],
    ["SHUTTING_DOWN", fault("SHUTTING_DOWN"), 2],
    ["OUTCOME_UNKNOWN", fault("OUTCOME_UNKNOWN"), 2],
    ["a lost connection", lost, 2],
    ["NOT_FOUND", fault("NOT_FOUND"), 1],
    ["FAILED_PRECONDITION", fault("FAILED_PRECONDITION"), 1],
    ["BUDGET_EXCEEDED until tomorrow", fault("BUDGET_EXCEEDED", 3_600_000), 1],
    ["CIRCUIT_OPEN without a time", fault("CIRCUIT_OPEN"), 1],
    ["INTERNAL", fault("INTERNAL"), 1],
    ["an error that nobody explains", () => new ConnectError("what", Code.Unimplemented), 1],
  ])("%s", async (_, failure, attempts) => {
    await using server = await faultyServer();
    server.failures.push(failure());
    const { queue } = connect({ url: server.url, apiKey: "k" });
    const answer = queue.cancelJob({ jobId: "job_1" });
    if (attempts === 2) await answer;
    else expect(await thrown(answer)).toBeInstanceOf(ConnectError);
    expect(server.asked.length).toBe(attempts);
    // One key for all attempts, so that none has an effect of its own.
    expect(new Set(server.asked.map(({ key }) => key)).size).toBe(1);
    expect(server.asked[0]!.key).toMatch(/^[0-9a-f]{32}$/);
  });

  test("are sent as often as was said, and end with the last error; queries have no key, and another call another key", async () => {
    await using server = await faultyServer();
    server.failures.push(...Array.from({ length: 9 }, fault("SHUTTING_DOWN")));
    const heard: unknown[] = [];
    const mw = connect({ url: server.url, maxAttempts: 3, onProblem: (error) => heard.push(error) });
    expect(await thrown(mw.queue.getJob({ jobId: "job_1" }))).toMatchObject({ reason: "SHUTTING_DOWN" });
    expect([server.asked.map(({ key }) => key), heard.length]).toEqual([[null, null, null], 2]);
    server.failures.length = 0;
    for (const _ of [1, 2]) await mw.queue.cancelJob({ jobId: "job_1" });
    await mw.queue.cancelJob({ jobId: "job_1" }, { headers: { "idempotency-key": "mine" } });
    const keys = server.asked.slice(3).map(({ key }) => key);
    expect([new Set(keys).size, keys[2]]).toEqual([3, "mine"]);
  });

  test("end with the call's deadline, and nobody there is Unreachable", async () => {
    await using server = await faultyServer();
    server.failures.push(...Array.from({ length: 99 }, fault("OVERLOADED", 200)));
    const mw = connect({ url: server.url, maxAttempts: 99 });
    expect(await thrown(mw.queue.getJob({ jobId: "job_1" }, { timeoutMs: 500 }))).toBeInstanceOf(DeadlineExceeded);
    expect(server.asked.length).toBeLessThan(5);
    const nobody = connect({ url: "http://127.0.0.1:1", maxAttempts: 2 });
    expect(await thrown(nobody.memory.get("a"))).toBeInstanceOf(Unreachable);
    expect(await thrown(first(nobody.memory.watch()))).toBeInstanceOf(Unreachable);
  });

  test("a rate limit tells when the next call is let in", async () => {
    await using world = await start("sqlite", { rateLimit: 2 });
    const { key } = await (await world.org()).agent();
    const mw = connect({ url: world.url, apiKey: key });
    const error = await thrown(Promise.all(Array.from({ length: 9 }, () => mw.memory.get("a"))));
    if (!(error instanceof RateLimited)) throw error;
    expectTypeOf(error).toEqualTypeOf<RateLimited>();
    expect([error.limit, error.retryAt! > new Date()]).toEqual([2, true]);
  });
});

describe("the trace of a call", () => {
  const given = `00-${"a".repeat(32)}-${"b".repeat(16)}-01`;

  test("is the one that is given, or that of the call", async () => {
    await using server = await faultyServer();
    const call = (mw: Moltwire, traceparent?: string) =>
      mw.queue.getJob({ jobId: "j" }, traceparent ? { headers: { traceparent } } : {});
    await call(connect({ url: server.url, traceparent: given }));
    await call(connect({ url: server.url, traceparent: () => given }));
    await call(connect({ url: server.url, traceparent: "not this" }), given);
    await call(connect({ url: server.url }));
    expect(server.asked.map(({ traceparent }) => traceparent)).toEqual([given, given, given, null]);
  });

  test("is that of the active span, where OpenTelemetry is set up", async () => {
    await using server = await faultyServer();
    const storage = new AsyncLocalStorage<Context>();
    const key = Symbol.for("span of this test");
    context.setGlobalContextManager({
      active: () => storage.getStore() ?? ROOT_CONTEXT,
      with: (active, run, self, ...args) => storage.run(active, () => run.apply(self as never, args)),
      bind: (_, target) => target,
      enable: () => undefined as never,
      disable: () => undefined as never,
    });
    propagation.setGlobalPropagator({
      inject: (active, carrier, { set }) => {
        if (active.getValue(key)) set(carrier, "traceparent", String(active.getValue(key)));
        set(carrier, "baggage", "of no use to the server");
      },
      extract: (active) => active,
      fields: () => ["traceparent"],
    });
    try {
      const { queue } = connect({ url: server.url });
      await context.with(ROOT_CONTEXT.setValue(key, given), () => queue.getJob({ jobId: "j" }));
      await queue.getJob({ jobId: "j" });
      expect(server.asked.map(({ traceparent }) => traceparent)).toEqual([given, null]);
    } finally {
      context.disable();
      propagation.disable();
    }
  });
});

describe("what the protos say", () => {
  const mw = connect({ url: "http://127.0.0.1:1", apiKey: "k" });

  test("every method of every service of the server can be called", () => {
    const clients = Object.values(mw).map((client) => ("rpc" in client ? client.rpc : client) as object);
    const callable = (service: (typeof services)[number]) =>
      clients.some((client) => service.methods.every(({ localName }) => localName in client));
    // Servers call it, with a signature.
    const missing = services.filter((service) => service !== PeerGatewayService && !callable(service));
    expect(missing.map(({ typeName }) => typeName)).toEqual([]);
  });

  test("every feed has a place after which it resumes, but for those that hand out work", () => {
    const feeds = services.flatMap(({ methods }) => methods).filter((method) => kindOf(method) === Kind.FEED);
    expect(feeds.length).toBeGreaterThan(5);
    expect(feeds.filter((method) => !placeOf(method))).toEqual([BusService.method.serve, QueueService.method.work]);
  });

  test("every reason has a class, which is what the proto's comments say", () => {
    const proto = fileURLToPath(new URL("../proto/moltwire/api/v1/error_reason.proto", import.meta.url));
    const written = readFileSync(new URL("../clients/typescript/reason-errors.ts", import.meta.url), "utf8");
    const classOf = (text: string) => text.replace(/\s+/g, " ");
    expect(classOf(written)).toBe(classOf(reasonErrorsOf(readFileSync(proto, "utf8"))));
    const names = Object.keys(ErrorReason).filter((name) => name !== "UNSPECIFIED");
    expect(Object.keys(reasonErrors).sort()).toEqual(names.sort());
    const newer = reasonError({ reason: "OF_TOMORROW", message: "", code: Code.Unknown, about: {} });
    expect([newer.constructor, newer.reason]).toEqual([MoltwireError, "OF_TOMORROW"]);
  });
});

test("a test of a program has a server of its own in one line", async () => {
  await using server = await testServer(createServer);
  const { agent, admin, orgId } = await server.org();
  const { as, agentId } = await agent();
  await as.memory.set("answer", 42);
  expect(await as.memory.get("answer")).toBe(42);
  expect((await admin.agents.listAgents({})).agents.map((one) => one.agentId)).toEqual([agentId]);
  expect((await server.operator.organizations.getOrganization({ orgId })).organization?.orgId).toBe(orgId);
});
