import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { create, fromJson, toBinary, toJson } from "@bufbuild/protobuf";
import { ValueSchema } from "@bufbuild/protobuf/wkt";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { RegisterAgentRequestSchema } from "../gen/moltwire/bus/v1/agent_service_pb.ts";
import { SubmitTaskRequestSchema } from "../gen/moltwire/bus/v1/bus_service_pb.ts";
import { TaskState } from "../gen/moltwire/bus/v1/task_pb.ts";
import type { Adapter } from "../src/bus/adapter.ts";
import { sql } from "../src/db/db.ts";
import { idempotencyKeptMs, requestDigest } from "../src/rpc/idempotency.ts";
import { dialects, eventually, fakeClock, type Org, refusal, start, unique, type World } from "./harness.ts";
import { addContract } from "./rpc-fixtures/contract.ts";

const repeats = 50;
const input = fromJson(ValueSchema, { hello: "world" });

/** Options of a call with an idempotency key, which also tell whether the reply was a stored one. */
function keyed(key = unique("idem")) {
  const replayed: boolean[] = [];
  const onHeader = (headers: Headers) => void replayed.push(headers.get("idempotency-replayed") === "true");
  return { headers: { "idempotency-key": key }, onHeader, replayed };
}

describe.each(dialects)("%s", (dialect) => {
  const clock = fakeClock(Date.now());
  /** How often an agent was called, by task; and what it waits for. */
  const calls: string[] = [];
  let gate = Promise.resolve();
  const echo: Adapter = async (_endpoint, assignment) => {
    calls.push(assignment.taskId);
    await gate;
    return { output: assignment.input, usage: { inputTokens: 0, outputTokens: 0, model: "" } };
  };
  let world: World;
  let org: Org;
  let contractId: string;
  beforeAll(async () => {
    world = await start(dialect, { adapters: { echo }, clock });
    org = await world.org();
    contractId = await addContract(world, org.orgId, { contractId: unique("contract"), capability: "work" });
    await org.agent({ capabilities: ["work"], endpoint: { kind: { case: "echo", value: {} } } });
  });
  afterAll(() => world[Symbol.asyncDispose]());

  const agentsNamed = async (name: string) => (await org.admin.agents.listAgents({ name })).agents;
  const stored = async (key: string) =>
    (await world.server.app.db.query.one<{ n: number }>(sql`select count(*) as n from idempotency where key = ${key}`))!
      .n;

  test("a repeated command answers what the first one answered and has no second effect", async () => {
    const options = keyed();
    const name = unique("once");
    const first = await org.admin.agents.registerAgent({ name, metadata: { a: 1 } }, options);
    await org.admin.agents.updateAgent({
      agentId: first.agent!.agentId,
      change: { description: "changed" },
      updateMask: { paths: ["description"] },
    });
    const again = await org.admin.agents.registerAgent({ name, metadata: { a: 1 } }, options);
    expect(again).toEqual(first);
    expect(options.replayed).toEqual([false, true]);
    expect(await agentsNamed(name)).toHaveLength(1);
  });

  test(`of ${repeats} repeats at once one has an effect, and all answer the same`, async () => {
    const options = keyed();
    const name = unique("race");
    const replies = await Promise.all(
      Array.from({ length: repeats }, () => org.admin.agents.registerAgent({ name }, options)),
    );
    expect(new Set(replies.map(({ agent }) => agent?.agentId)).size).toBe(1);
    expect(options.replayed.filter((replayed) => !replayed)).toHaveLength(1);
    expect(await agentsNamed(name)).toHaveLength(1);
    const { auditEvents } = await org.admin.admin.listAuditEvents({ pageSize: 250 });
    const [agent] = await agentsNamed(name);
    expect(auditEvents.filter(({ resource }) => resource.agent_id === agent!.agentId)).toHaveLength(1);
  });

  test("without a key every call is its own", async () => {
    const made = await Promise.all([org.admin.keys.createApiKey({}), org.admin.keys.createApiKey({})]);
    expect(new Set(made.map(({ apiKey }) => apiKey?.keyId)).size).toBe(2);
  });

  test("another request with the key is refused and has no effect; the first one is still answered", async () => {
    const options = keyed();
    const name = unique("first");
    const first = await org.admin.agents.registerAgent({ name }, options);
    const { reason, code, metadata } = await refusal(
      org.admin.agents.registerAgent({ name: `${name}-other` }, options),
    );
    expect([reason, code, metadata.idempotency_key]).toEqual([
      "IDEMPOTENCY_KEY_REUSED",
      "InvalidArgument",
      options.headers["idempotency-key"],
    ]);
    expect(await agentsNamed(`${name}-other`)).toEqual([]);
    expect(await org.admin.agents.registerAgent({ name }, options)).toEqual(first);
  });

  test("a request is the same whatever the order of its maps, and another one when anything in it differs", () => {
    const bytes = (init: object) => requestDigest(SubmitTaskRequestSchema, create(SubmitTaskRequestSchema, init));
    const request = {
      contractId: "c",
      labels: { a: "1", b: "2" },
      input: fromJson(ValueSchema, { x: [{ p: 1, q: 2 }], y: null }),
    };
    const turned = {
      contractId: "c",
      labels: { b: "2", a: "1" },
      input: fromJson(ValueSchema, { y: null, x: [{ q: 2, p: 1 }] }),
    };
    expect(toBinary(SubmitTaskRequestSchema, create(SubmitTaskRequestSchema, turned))).not.toEqual(
      toBinary(SubmitTaskRequestSchema, create(SubmitTaskRequestSchema, request)),
    );
    expect(bytes(turned)).toBe(bytes(request));
    for (const other of [
      { labels: { a: "2", b: "1" } },
      { input: fromJson(ValueSchema, { x: [{ p: 1, q: 2 }], y: 0 }) },
      { labels: {} },
      { returnImmediately: true },
    ])
      expect(bytes({ ...request, ...other })).not.toBe(bytes(request));
    const metadata = (of: object) =>
      requestDigest(
        RegisterAgentRequestSchema,
        create(RegisterAgentRequestSchema, { name: "a", metadata: of as never }),
      );
    expect(metadata({ b: { d: 1, c: 2 }, a: 1 })).toBe(metadata({ a: 1, b: { c: 2, d: 1 } }));
    expect(metadata({ b: [1, 2] })).not.toBe(metadata({ b: [2, 1] }));
    expect(metadata(JSON.parse('{"__proto__":1}'))).not.toBe(metadata({}));
  });

  test("a repeat that turned its maps round is a repeat", async () => {
    const options = keyed();
    const name = unique("maps");
    const first = await org.admin.agents.registerAgent({ name, metadata: { a: 1, b: 2 } }, options);
    const again = await org.admin.agents.registerAgent({ name, metadata: { b: 2, a: 1 } }, options);
    expect(again.agent?.agentId).toBe(first.agent?.agentId);
  });

  test("a repeated reply that held a secret has all but the secret, and the secret is not stored", async () => {
    const options = keyed();
    const first = await org.admin.keys.createApiKey({ name: "secret" }, options);
    const again = await org.admin.keys.createApiKey({ name: "secret" }, options);
    expect(first.secret).toMatch(/^mw_/);
    expect(again).toEqual({ ...first, secret: "" });
    const rotation = keyed();
    const rotated = await org.admin.keys.rotateApiKey({ keyId: first.apiKey!.keyId }, rotation);
    expect(await org.admin.keys.rotateApiKey({ keyId: first.apiKey!.keyId }, rotation)).toEqual({
      ...rotated,
      secret: "",
    });
    const rows = await world.server.app.db.query.all<{ reply: Uint8Array }>(sql`select reply from idempotency`);
    for (const { reply } of rows)
      for (const { secret } of [first, rotated])
        expect(Buffer.from(reply).toString("latin1")).not.toContain(secret.slice(35));
  });

  test("a key is its caller's, its method's and its organisation's own", async () => {
    const options = keyed("the-same-for-all");
    const { agent } = await org.admin.agents.registerAgent({ name: unique("a") }, options);
    const second = world.as((await org.admin.keys.createApiKey({})).secret);
    const byOther = await second.agents.registerAgent({ name: unique("b") }, options);
    const other = await world.org();
    const elsewhere = await other.admin.agents.registerAgent({ name: unique("c") }, options);
    const { apiKey } = await org.admin.keys.createApiKey({ agentId: agent!.agentId }, options);
    const byOperator = await Promise.all(
      [org, other].map(({ orgId }) => world.operator.agents.registerAgent({ orgId, name: unique("d") }, options)),
    );
    expect(apiKey?.agentId).toBe(agent?.agentId);
    expect(
      new Set(
        [agent, byOther.agent, elsewhere.agent, ...byOperator.map((reply) => reply.agent)].map((one) => one?.agentId),
      ).size,
    ).toBe(5);
    expect(options.replayed).not.toContain(true);
  });

  test("a refused command gives the key back: what it wrote is kept, and the repeat may succeed", async () => {
    const options = keyed();
    const capability = unique("later");
    const later = await addContract(world, org.orgId, { contractId: unique("contract"), capability });
    const submit = () => org.admin.bus.submitTask({ contractId: later, contractVersion: "1.0.0", input }, options);
    const { reason, metadata } = await refusal(submit());
    expect(reason).toBe("NO_CAPABLE_AGENT");
    expect((await org.admin.traces.getTrace({ traceId: metadata.trace_id! })).events.length).toBeGreaterThan(1);
    expect(await stored(options.headers["idempotency-key"])).toBe(0);
    await org.agent({ capabilities: [capability], endpoint: { kind: { case: "echo", value: {} } } });
    expect((await submit()).task?.state).toBe(TaskState.COMPLETED);
    expect((await submit()).task?.state).toBe(TaskState.COMPLETED);
    expect(options.replayed.at(-1)).toBe(true);
  });

  test("a command that fails leaves no key behind", async () => {
    const options = keyed();
    const name = unique("taken");
    const { agent } = await org.admin.agents.registerAgent({ name });
    expect((await refusal(org.admin.agents.registerAgent({ name }, options))).reason).toBe("ALREADY_EXISTS");
    expect(await stored(options.headers["idempotency-key"])).toBe(0);
    await org.admin.agents.deleteAgent({ agentId: agent!.agentId });
    expect((await org.admin.agents.registerAgent({ name }, options)).agent?.agentId).not.toBe(agent?.agentId);
  });

  test.each(["", "two words", "ключ", "x".repeat(256), "a, b", "tab\tbed"])(
    "the key %j is refused, naming the header",
    async (key) => {
      const answer = await fetch(`${world.url}/moltwire.bus.v1.AgentService/RegisterAgent`, {
        method: "POST",
        headers: [
          ["authorization", `Bearer ${org.adminKey}`],
          ["content-type", "application/json"],
          ["idempotency-key", Buffer.from(key).toString("latin1")],
        ],
        body: JSON.stringify({ name: "malformed" }),
      });
      expect([answer.status, await answer.text()]).toEqual([
        400,
        expect.stringContaining("idempotency-key: 1 to 255 printable ASCII"),
      ]);
      expect(await agentsNamed("malformed")).toEqual([]);
    },
  );

  test.each(["x", "!~", "x".repeat(255)])("the key %j is taken", async (key) => {
    await org.admin.keys.createApiKey({}, keyed(key));
    expect(await stored(key)).toBe(1);
  });

  test("queries take no notice of the header", async () => {
    const options = keyed("not for queries");
    await org.admin.agents.listAgents({}, options);
    await org.admin.agents.listAgents({ pageSize: 1 }, options);
  });

  const submitted = () => ({ contractId, contractVersion: "1.0.0", input });

  test(`of ${repeats} submits at once with one key one task is made, done once, and answered to all`, async () => {
    const options = keyed();
    calls.length = 0;
    const replies = await Promise.all(
      Array.from({ length: repeats }, () => org.admin.bus.submitTask(submitted(), options)),
    );
    expect(new Set(replies.map(({ task }) => task?.taskId)).size).toBe(1);
    expect(replies.map(({ task }) => task?.state)).toEqual(Array.from({ length: repeats }, () => TaskState.COMPLETED));
    expect(toJson(ValueSchema, replies.at(-1)!.task!.output!)).toEqual({ hello: "world" });
    expect(calls).toHaveLength(1);
  });

  test("a repeat joins the task that still runs, and its caller may leave without harm", async () => {
    const options = keyed();
    calls.length = 0;
    const { promise, resolve } = Promise.withResolvers<void>();
    gate = promise;
    const leave = new AbortController();
    const first = org.admin.bus.submitTask(submitted(), { ...options, signal: leave.signal });
    await eventually(() => calls.length > 0);
    const second = org.admin.bus.submitTask(submitted(), options);
    leave.abort();
    await expect(first).rejects.toThrow(/abort|cancel/i);
    resolve();
    expect((await second).task).toMatchObject({ taskId: calls[0], state: TaskState.COMPLETED });
    expect((await org.admin.bus.submitTask(submitted(), options)).task?.taskId).toBe(calls[0]);
    expect(calls).toHaveLength(1);
  });

  test("a reply is kept for a day at least, and then forgotten", async () => {
    const options = keyed();
    const create = () => org.admin.keys.createApiKey({}, options);
    const first = await create();
    clock.advance(24 * 3_600_000);
    expect((await create()).apiKey?.keyId).toBe(first.apiKey?.keyId);
    clock.advance(idempotencyKeptMs);
    const key = options.headers["idempotency-key"];
    await eventually(async () => {
      clock.advance(60_000); // to the next sweep
      return (await stored(key)) === 0;
    });
    expect((await create()).apiKey?.keyId).not.toBe(first.apiKey?.keyId);
  });

  test.runIf(dialect === "sqlite")("a reply outlives a restart", async () => {
    const data = mkdtempSync(join(tmpdir(), "moltwire-idempotency-"));
    try {
      const first = await start(dialect, { data });
      const key = first.operatorKey;
      const options = keyed();
      const agent = await first.operator.agents.registerAgent({ name: "survivor" }, options);
      const { task } = await first.operator.bus.submitTask(
        { contractId: "echo", contractVersion: "1.0.0", input },
        options,
      );
      await first[Symbol.asyncDispose]();
      const again = await start(dialect, { data });
      const operator = again.as(key);
      expect(await operator.agents.registerAgent({ name: "survivor" }, options)).toEqual(agent);
      const repeated = await operator.bus.submitTask({ contractId: "echo", contractVersion: "1.0.0", input }, options);
      expect(repeated.task).toEqual(task);
      await again[Symbol.asyncDispose]();
    } finally {
      rmSync(data, { recursive: true });
    }
  });
});
