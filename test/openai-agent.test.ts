import type { ServerResponse } from "node:http";
import { Readable } from "node:stream";
import { pipeline } from "node:stream/promises";
import { setTimeout as delay } from "node:timers/promises";
import type { MessageInitShape } from "@bufbuild/protobuf";
import OpenAI from "openai";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { chatServer, tokensOf } from "../clients/demo/chat.ts";
import { reviewerModel } from "../clients/demo/reviewer.ts";
import type { OpenAiEndpointSchema } from "../gen/moltwire/bus/v1/agent_pb.ts";
import { parseAdapterKeys } from "../src/bus/adapter-keys.ts";
import { callUrl } from "../src/bus/adapters/openai.ts";
import { eventData } from "../src/bus/adapters/sse.ts";
import { contract, json, reasonOf, stateOf, submit } from "./bus-fixtures/bus.ts";
import {
  type ChatAgent,
  chatAgent,
  delta,
  doneEvent,
  event,
  finish,
  listening,
  says,
  streams,
  usageEvent,
  writes,
} from "./bus-fixtures/chat-agent.ts";
import { chunksOf, told, watched } from "./bus-fixtures/watch.ts";
import { dialects, type Org, refusal, start, unique, type World } from "./harness.ts";

type Init = Partial<Extract<MessageInitShape<typeof OpenAiEndpointSchema>, { $typeName?: never }>>;
const endpoint = (url: string, init: Init = {}) =>
  ({ kind: { case: "openai", value: { baseUrl: `${url}/v1`, model: "asked-1", ...init } } }) as const;

/** A contract that a server of the API does. */
async function at(org: Org, url: string, init: Init = {}, of: Parameters<typeof contract>[1] = {}): Promise<string> {
  const contractId = await contract(org, of);
  await org.agent({ capabilities: [contractId], endpoint: endpoint(url, init) });
  return contractId;
}

async function collect<T>(from: AsyncIterable<T>): Promise<T[]> {
  const all: T[] = [];
  for await (const each of from) all.push(each);
  return all;
}

const text = "The bus carries tasks. A task ends once. Agents do the work of tasks on the bus. Tea is a drink.";
const findings = { question: "Does a task end?", quotes: [{ text: "A task ends once." }] };

describe("the stand-in, seen by the official client", () => {
  const key = "sk-stand-in-key";
  let server: Awaited<ReturnType<typeof listening>>;
  let client: OpenAI;
  beforeAll(async () => {
    server = await listening(chatServer("extract-1", reviewerModel, key));
    client = new OpenAI({ apiKey: key, baseURL: `${server.url}/v1`, maxRetries: 0 });
  });
  afterAll(() => server[Symbol.asyncDispose]());
  const ask = { model: "extract-1", messages: [{ role: "user" as const, content: text }] };

  test("writes a summary in the text's own sentences, with counted tokens", async () => {
    const completion = await client.chat.completions.create(ask);
    const { message, finish_reason } = completion.choices[0]!;
    expect(finish_reason).toBe("stop");
    for (const sentence of message.content!.split(/(?<=\.) /)) expect(text).toContain(sentence);
    expect(message.content).not.toContain("Tea");
    const [read, written] = [tokensOf(text).length, tokensOf(message.content!).length];
    expect(completion.usage).toEqual({ prompt_tokens: read, completion_tokens: written, total_tokens: read + written });
  });

  test("streams the same, token by token, with the usage at the end if it is asked for", async () => {
    const whole = await client.chat.completions.create(ask);
    const stream = await client.chat.completions.create({
      ...ask,
      stream: true,
      stream_options: { include_usage: true },
    });
    const chunks = await collect(stream);
    expect(chunks.map(({ choices }) => choices[0]?.delta.content ?? "").join("")).toBe(
      whole.choices[0]!.message.content,
    );
    expect(chunks.length).toBeGreaterThan(10);
    expect(chunks.at(-1)).toMatchObject({ choices: [], usage: whole.usage });
    const plain = await collect(await client.chat.completions.create({ ...ask, stream: true }));
    expect(plain.some((chunk) => "usage" in chunk)).toBe(false);
    const final = await client.chat.completions.stream(ask).finalContent();
    expect(final).toBe(whole.choices[0]!.message.content);
  });

  test("reviews findings as JSON, stops at the limit of tokens, lists its model", async () => {
    const messages = [{ role: "user" as const, content: JSON.stringify(findings) }];
    const asJson = { type: "json_schema" as const, json_schema: { name: "review", schema: {} } };
    const { choices } = await client.chat.completions.create({ ...ask, messages, response_format: asJson });
    expect(JSON.parse(choices[0]!.message.content!)).toMatchObject({ verdict: "answered", missing: [] });
    const cut = await client.chat.completions.create({ ...ask, max_tokens: 3 });
    expect([cut.choices[0]!.finish_reason, cut.usage?.completion_tokens]).toEqual(["length", 3]);
    expect((await client.models.list()).data.map(({ id }) => id)).toEqual(["extract-1"]);
  });

  test("answers errors as the API does", async () => {
    const stranger = new OpenAI({ apiKey: "sk-another", baseURL: `${server.url}/v1`, maxRetries: 0 });
    await expect(stranger.chat.completions.create(ask)).rejects.toBeInstanceOf(OpenAI.AuthenticationError);
    await expect(client.chat.completions.create({ ...ask, model: "gpt" })).rejects.toBeInstanceOf(OpenAI.NotFoundError);
    await expect(client.chat.completions.create({ ...ask, n: 2 })).rejects.toBeInstanceOf(OpenAI.BadRequestError);
    await expect(client.chat.completions.create({ ...ask, messages: [] })).rejects.toThrow("no user message");
  });
});

describe("the adapter", () => {
  let world: World;
  let org: Org;
  beforeAll(async () => {
    world = await start();
    org = await world.org();
  });
  afterAll(() => world[Symbol.asyncDispose]());

  test.each([false, true])("has a task done by the stand-in, with tokens and model (stream: %s)", async (stream) => {
    await using server = await listening(chatServer("extract-1", reviewerModel, "sk-12345678"));
    const init: Init = { model: "extract-1", stream, credential: { case: "apiKey", value: "sk-12345678" } };
    const task = await submit(org.admin, await at(org, server.url, init), { input: text });
    expect(stateOf(task)).toBe("COMPLETED");
    const { text: written } = json(task.output) as { text: string };
    expect(task.usage).toMatchObject({
      inputTokens: BigInt(tokensOf(text).length),
      outputTokens: BigInt(tokensOf(written).length),
      model: "extract-1",
    });
    expect(chunksOf(await watched(org.admin, task.taskId)).join("")).toBe(stream ? written : "");
    const review = await at(
      org,
      server.url,
      { ...init, jsonOutput: true },
      { outputSchema: { type: "object", required: ["verdict"] } },
    );
    expect(json((await submit(org.admin, review, { input: findings })).output)).toMatchObject({ verdict: "answered" });
  });

  test("asks as the endpoint, the contract and the input say", async () => {
    await using server = await chatAgent(writes('{"n": 1}'));
    const outputSchema = { type: "object", properties: { n: { type: "integer" } } };
    const contractId = await at(
      org,
      server.url,
      { systemPrompt: "Be brief.", temperature: 0, maxOutputTokens: 500, jsonOutput: true, stream: true },
      { outputSchema, maxTokens: 300n },
    );
    const task = await submit(org.admin, contractId, { input: { b: [1] } });
    expect(json(task.output)).toEqual({ n: 1 });
    expect(task.usage).toMatchObject({ inputTokens: 7n, outputTokens: 11n, model: "scripted-1" });
    const [call] = server.calls;
    expect(call?.path).toBe("/v1/chat/completions");
    expect(call?.headers).toMatchObject({
      "idempotency-key": task.taskId,
      traceparent: `00-${task.traceId}-${task.spanId}-01`,
    });
    expect(call?.headers).not.toHaveProperty("authorization");
    expect(call?.body).toEqual({
      model: "asked-1",
      messages: [
        { role: "system", content: "Be brief." },
        { role: "user", content: '{"b":[1]}' },
      ],
      temperature: 0,
      max_tokens: 300,
      stream: true,
      stream_options: { include_usage: true },
      response_format: { type: "json_schema", json_schema: { name: contractId, schema: outputSchema } },
    });
    const plain = await at(org, server.url);
    const messages = [{ role: "user", content: "hi" }];
    await submit(org.admin, plain, { input: { messages } });
    await submit(org.admin, plain, { input: "as it is" });
    expect(server.calls.slice(1).map(({ body }) => body)).toEqual([
      { model: "asked-1", messages },
      { model: "asked-1", messages: [{ role: "user", content: "as it is" }] },
    ]);
  });

  const error = (message: string) => ({ error: { message, type: "x", code: null } });
  test.each<[string, (response: ServerResponse) => unknown, Init, string, string]>([
    [
      "a key that is refused",
      says(error("bad key"), 401),
      {},
      "ADAPTER_ERROR",
      "the server refused the key (401): bad key",
    ],
    ["too many requests", says(error("slow down"), 429), {}, "ADAPTER_ERROR", "the server answered 429: slow down"],
    [
      "a model that is not there",
      says(error("no such model"), 404),
      {},
      "ADAPTER_ERROR",
      "the server answered 404: no such model",
    ],
    ["a fault of the server", says({ error: "oops" }, 500), {}, "ADAPTER_ERROR", "the server answered 500: oops"],
    [
      "a gateway's page",
      (r) => r.writeHead(502).end("<html>bad gateway"),
      {},
      "OUTCOME_UNKNOWN",
      "the server answered 502: <html>bad gateway",
    ],
    ["a redirect", (r) => r.writeHead(307, { location: "/elsewhere" }).end(), {}, "AGENT_BAD_RESPONSE", "redirect"],
    [
      "a refusal",
      says({ choices: [{ message: { content: null, refusal: "I will not" }, finish_reason: "stop" }] }),
      {},
      "ADAPTER_ERROR",
      "the model refused: I will not",
    ],
    [
      "a refusal in a stream",
      streams(
        event({ choices: [{ delta: { refusal: "I will" } }] }),
        event({ choices: [{ delta: { refusal: " not" } }] }),
        finish(),
        doneEvent,
      ),
      { stream: true },
      "ADAPTER_ERROR",
      "the model refused: I will not",
    ],
    ["the limit of tokens", writes("half a", { finish_reason: "length" }), {}, "AGENT_BAD_RESPONSE", "limit of tokens"],
    ["a content filter", writes("", { finish_reason: "content_filter" }), {}, "ADAPTER_ERROR", "content filter"],
    ["a wish for tools", writes("", { finish_reason: "tool_calls" }), {}, "AGENT_BAD_RESPONSE", "call tools"],
    [
      "text where JSON was asked for",
      writes("Sure! Here it is"),
      { jsonOutput: true },
      "AGENT_BAD_RESPONSE",
      "no JSON object: Sure! Here it is",
    ],
    ["what is no JSON at all", (r) => r.end("hello"), {}, "AGENT_BAD_RESPONSE", "no JSON object"],
    ["no choices", says({ choices: [] }), {}, "AGENT_BAD_RESPONSE", "no finish_reason"],
    ["an answer of more than 2 MiB", (r) => r.end("x".repeat(2 ** 21 + 1)), {}, "AGENT_BAD_RESPONSE", "too large"],
    [
      "a stream of more than 1 MiB of text",
      streams(...Array.from({ length: 20 }, () => delta("x".repeat(60_000))), finish(), doneEvent),
      { stream: true },
      "AGENT_BAD_RESPONSE",
      "more than 1048576 bytes",
    ],
    [
      "an event without an end",
      streams(`data: ${"x".repeat(1_100_000)}`),
      { stream: true },
      "AGENT_BAD_RESPONSE",
      "more than 1048576 characters",
    ],
    [
      "an event that is no JSON",
      streams(delta("a"), "data: {oops\n\n", finish(), doneEvent),
      { stream: true },
      "AGENT_BAD_RESPONSE",
      "no JSON: {oops",
    ],
    ["an event that is no object", streams("data: 3\n\n"), { stream: true }, "AGENT_BAD_RESPONSE", "no JSON object"],
    ["a stream that ends too early", streams(delta("a")), { stream: true }, "AGENT_BAD_RESPONSE", "no finish_reason"],
    [
      "an error in the middle of a stream",
      streams(delta("a"), event(error("out of memory"))),
      { stream: true },
      "ADAPTER_ERROR",
      "in the middle of the answer: out of memory",
    ],
    [
      "a connection that is cut in the middle of a stream",
      async (r) => {
        r.writeHead(200, { "content-type": "text/event-stream" });
        r.write(delta("a"));
        await delay(50);
        r.destroy();
      },
      { stream: true },
      "OUTCOME_UNKNOWN",
      "in the middle of the answer",
    ],
    [
      "a compressed stream",
      (r) => r.writeHead(200, { "content-type": "text/event-stream", "content-encoding": "gzip" }).end("x"),
      { stream: true },
      "AGENT_BAD_RESPONSE",
      "compressed",
    ],
  ])("%s", async (_title, answer, init, reason, message) => {
    await using server = await chatAgent(answer);
    const task = await submit(org.admin, await at(org, server.url, init), { input: "go" });
    expect([reasonOf(task), task.error?.message]).toEqual([reason, expect.stringContaining(message)]);
  });

  test.each([
    [401, 3],
    [429, 3],
    [500, 3],
    [503, 1],
  ])(
    "a contract with 2 retries that is not repeatable has a task that is answered %i tried %i times",
    async (status, attempts) => {
      await using server = await chatAgent(says(error("no"), status));
      expect(await submit(org.admin, await at(org, server.url, {}, { retries: 2 }))).toMatchObject({ attempts });
    },
  );

  test("tokens of an answer that cannot be used are counted all the same", async () => {
    await using server = await chatAgent(writes("half", { finish_reason: "length" }));
    const task = await submit(org.admin, await at(org, server.url));
    expect(task.usage).toMatchObject({ inputTokens: 7n, outputTokens: 11n });
  });

  test("a stream arrives while it is written, however its bytes are cut, and is left at the deadline", async () => {
    const go = Promise.withResolvers<void>();
    await using server = await chatAgent(async (response) => {
      response.writeHead(200, { "content-type": "text/event-stream; charset=utf-8" });
      const bytes = Buffer.from(`: hello\r\nevent: x\r\n${delta("Grüße 👋")}`);
      for (const byte of bytes) response.write(Buffer.from([byte]));
      await go.promise;
      response.end(`${delta("!")}${finish()}${usageEvent}${doneEvent}`);
    });
    const { taskId } = await submit(org.admin, await at(org, server.url, { stream: true }), {
      returnImmediately: true,
    });
    const seen: string[] = [];
    for await (const message of org.admin.bus.watchTask({ taskId })) {
      seen.push(told(message));
      if (chunksOf([message]).join("").includes("👋")) go.resolve();
    }
    expect(seen.filter((each) => each.startsWith("chunk"))).toEqual(["chunk Grüße 👋", "chunk !"]);
    await using slow = await chatAgent((response) => {
      response.writeHead(200, { "content-type": "text/event-stream" });
      response.write(delta("so far"));
    });
    const late = await submit(
      org.admin,
      await at(org, slow.url, { stream: true }, { timeoutMs: 3_000, repeatable: true }),
    );
    expect(reasonOf(late)).toBe("AGENT_TIMEOUT");
    expect(chunksOf(await watched(org.admin, late.taskId))).toEqual(["so far"]);
  });

  test("a canceled task hangs up on the server", async () => {
    const hungUp = Promise.withResolvers<void>();
    await using server = await chatAgent((response) => {
      response.on("close", () => hungUp.resolve());
      response.writeHead(200, { "content-type": "text/event-stream" });
      response.write(delta("a"));
    });
    const { taskId } = await submit(org.admin, await at(org, server.url, { stream: true }), {
      returnImmediately: true,
    });
    for await (const message of org.admin.bus.watchTask({ taskId })) if (told(message) === "chunk a") break;
    await org.admin.bus.cancelTask({ taskId });
    await hungUp.promise;
  });

  test("a server that sends faster than it is written down is slowed", async () => {
    let sent = 0;
    await using server = await chatAgent(async (response) => {
      response.writeHead(200, { "content-type": "text/event-stream" });
      const filler = `: ${"x".repeat(65_536)}\n\n`;
      async function* events() {
        for (; sent < 600; sent++) yield filler;
        yield `${finish()}${doneEvent}`;
      }
      await pipeline(Readable.from(events()), response);
    });
    expect(stateOf(await submit(org.admin, await at(org, server.url, { stream: true }, { timeoutMs: 30_000 })))).toBe(
      "COMPLETED",
    );
    expect(sent).toBe(600);
  });
});

describe.each(dialects)("the key of an endpoint on %s", (dialect) => {
  const key = "sk-CANARY-4f1d8a/b7e9";
  const envKey = "sk-ENV-CANARY-91c3d5aa";
  const envName = "TEST_CANARY_API_KEY";
  let world: World;
  let org: Org;
  let server: ChatAgent;
  const logged: string[] = [];
  /** Repeats what it was sent, as some servers do in their errors. */
  let answer: (response: ServerResponse, call: ChatAgent["calls"][number]) => unknown;

  beforeAll(async () => {
    process.env[envName] = envKey;
    server = await chatAgent((response, call) => answer(response, call));
    const { pino } = await import("pino");
    const log = pino({ level: "trace" }, { write: (line: string) => void logged.push(line) });
    world = await start(dialect, { log, adapterKeys: parseAdapterKeys(`${envName}@${server.url}`) });
    org = await world.org();
  });
  afterAll(async () => {
    delete process.env[envName];
    await world[Symbol.asyncDispose]();
    await server[Symbol.asyncDispose]();
  });

  const register = (credential: Init["credential"], capability: string, url = server.url) =>
    org.admin.agents.registerAgent(
      {
        name: unique("agent"),
        capabilities: [capability],
        endpoint: endpoint(url, { ...(credential && { credential }) }),
        breaker: { disabled: true }, // it fails on purpose
      },
      { headers: { "idempotency-key": unique("key") } },
    );
  const update = (agentId: string, next: ReturnType<typeof endpoint> | undefined) =>
    org.admin.agents.updateAgent(
      { agentId, change: { ...(next && { endpoint: next }) }, updateMask: { paths: ["endpoint"] } },
      { headers: { "idempotency-key": unique("key") } },
    );
  const sentKey = async (contractId: string): Promise<string | undefined> => {
    answer = writes("ok");
    const before = server.calls.length;
    await submit(org.admin, contractId);
    return server.calls.length > before ? (server.calls.at(-1)!.headers.authorization ?? "none") : undefined;
  };

  test("is never seen again, wherever one looks: answers, traces, errors, logs, audit, stored replies", async () => {
    const seen: string[] = [];
    const see = (...values: unknown[]) =>
      seen.push(JSON.stringify(values, (_, value) => (typeof value === "bigint" ? String(value) : value)));
    const repeating =
      (status: number) =>
      (response: ServerResponse, { headers }: ChatAgent["calls"][number]) =>
        says(
          { error: { message: `you sent ${headers.authorization}, ${JSON.stringify(headers.authorization)}` } },
          status,
        )(response);
    for (const credential of [
      { case: "apiKey", value: key },
      { case: "apiKeyEnv", value: envName },
    ] as const) {
      const contractId = await contract(org, { retries: 1 });
      const { agent } = await register(credential, contractId);
      const stream = { ...endpoint(server.url, { credential, stream: true }) };
      const next = await update(agent!.agentId, stream);
      for (const behave of [
        repeating(401),
        repeating(500),
        (response: ServerResponse, { headers }: ChatAgent["calls"][number]) =>
          response.end(`no JSON ${headers.authorization}`),
        (response: ServerResponse, { headers }: ChatAgent["calls"][number]) =>
          streams(`data: {no JSON ${headers.authorization}\n\n`)(response),
        (response: ServerResponse, { headers }: ChatAgent["calls"][number]) =>
          writes(`I got ${headers.authorization}`)(response),
        (response: ServerResponse) => response.destroy(),
      ]) {
        answer = behave;
        const task = await submit(org.admin, contractId);
        see(task, await watched(org.admin, task.taskId), await org.admin.traces.getTrace({ traceId: task.traceId }));
      }
      see(
        agent,
        next,
        await org.admin.agents.getAgent({ agentId: agent!.agentId }),
        await org.admin.agents.listAgents({}),
      );
      expect(server.calls.at(-1)!.headers.authorization).toBe(`Bearer ${credential.case === "apiKey" ? key : envKey}`);
    }
    see(await org.admin.admin.listAuditEvents({}).catch((error: unknown) => String(error)));
    see(logged);
    // Everything that is stored, but the sealed keys themselves.
    const { query } = world.server.app.db;
    const { sql } = await import("../src/db/db.ts");
    const stored = [
      ...(await query.all<object>(sql`select * from agent`)),
      ...(await query.all<object>(sql`select * from idempotency`)),
      ...(await query.all<object>(sql`select * from audit_event`)),
      ...(await query.all<object>(sql`select * from trace_event`)),
      ...(await query.all<object>(sql`select * from task`)),
      ...(await query.all<object>(sql`select * from task_attempt`)),
      ...(await query.all<object>(sql`select * from outbox`)),
    ];
    expect(stored.length).toBeGreaterThan(50);
    for (const row of stored)
      see(
        Object.values(row).map((field: unknown) =>
          field instanceof Uint8Array ? Buffer.from(field).toString("latin1") : field,
        ),
      );
    const all = seen.join("\n");
    expect(all.includes("[key]")).toBe(true);
    for (const canary of ["CANARY-4f1d8a", "CANARY-91c3d5aa"]) expect(all.includes(canary)).toBe(false);
    expect(await query.all(sql`select 1 as one from agent_secret`)).toHaveLength(1);
  });

  test("is kept in a change of the endpoint at the same origin, and only there; it goes with the endpoint and with the agent", async () => {
    const contractId = await contract(org);
    const { agent } = await register({ case: "apiKey", value: key }, contractId);
    const { agentId } = agent!;
    const kept = { credential: { case: "apiKeyStored", value: true } } as const;
    expect(agent?.endpoint?.kind.value).toMatchObject(kept);
    expect(await sentKey(contractId)).toBe(`Bearer ${key}`);
    await update(agentId, endpoint(server.url, { ...kept, model: "another" }));
    expect(await sentKey(contractId)).toBe(`Bearer ${key}`);
    await org.admin.agents.updateAgent({
      agentId,
      change: { description: "x" },
      updateMask: { paths: ["description"] },
    });
    expect(await sentKey(contractId)).toBe(`Bearer ${key}`);
    await using elsewhere = await chatAgent(writes("stolen"));
    expect(await refusal(update(agentId, endpoint(elsewhere.url, kept)))).toMatchObject({
      reason: "INVALID_REQUEST",
      metadata: { field: "change.endpoint.openai.api_key_stored" },
    });
    await update(agentId, endpoint(server.url));
    expect(await sentKey(contractId)).toBe("none");
    expect(await refusal(update(agentId, endpoint(server.url, kept)))).toMatchObject({ reason: "INVALID_REQUEST" });
    await update(agentId, endpoint(server.url, { credential: { case: "apiKey", value: "sk-second-key" } }));
    expect(await sentKey(contractId)).toBe("Bearer sk-second-key");
    expect(await rows(agentId)).toBe(1);
    await org.admin.agents.deleteAgent({ agentId });
    expect(await rows(agentId)).toBe(0);
    expect(elsewhere.calls).toEqual([]);
  });

  test("that a new agent says to have stored is refused", async () => {
    expect(await refusal(register({ case: "apiKeyStored", value: true }, "none"))).toMatchObject({
      metadata: { field: "endpoint.openai.api_key_stored" },
    });
  });

  test("from the environment is used only where the operator gave it to", async () => {
    const contractId = await contract(org);
    await register({ case: "apiKeyEnv", value: envName }, contractId);
    expect(await sentKey(contractId)).toBe(`Bearer ${envKey}`);
    await using elsewhere = await chatAgent(writes("stolen"));
    for (const [name, url] of [
      [envName, elsewhere.url],
      ["PATH", server.url],
      ["MOLTWIRE_OPERATOR_KEY", server.url],
    ] as const) {
      expect(await refusal(register({ case: "apiKeyEnv", value: name }, "none", url))).toMatchObject({
        reason: "ENDPOINT_REFUSED",
        metadata: { field: "endpoint.openai.api_key_env" },
      });
    }
    delete process.env[envName];
    const { message } = (await submit(org.admin, contractId)).error!;
    expect(message).toBe(`the endpoint cannot be called: the variable ${envName} is not set on the server`);
    process.env[envName] = envKey;
    expect(elsewhere.calls).toEqual([]);
  });

  const rows = async (agentId: string) => {
    const { sql } = await import("../src/db/db.ts");
    return (
      await world.server.app.db.query.all(
        sql`select 1 as one from agent_secret where org_id = ${org.orgId} and agent_id = ${agentId}`,
      )
    ).length;
  };
});

describe("small things", () => {
  test("a base URL keeps its path and its query", () => {
    expect(callUrl("https://a.example/v1")).toBe("https://a.example/v1/chat/completions");
    expect(callUrl("https://a.example/v1/")).toBe("https://a.example/v1/chat/completions");
    expect(callUrl("https://a.example")).toBe("https://a.example/chat/completions");
    expect(callUrl("https://a.example/d/x?api-version=1#y")).toBe(
      "https://a.example/d/x/chat/completions?api-version=1",
    );
  });

  test.each([
    "OPENAI_API_KEY",
    "A@b",
    "A@https://a/b",
    "A@https://a/",
    "A@https://u@a",
    "MOLTWIRE_X@https://a",
    "1@https://a",
    "A@ftp://a",
  ])("%s gives no variable to an origin", (list) => expect(() => parseAdapterKeys(list)).toThrow(/"/));

  test("a list of variables is read with its blanks", () => {
    expect(parseAdapterKeys(" A@https://a , B_2@http://b:8080,,")).toEqual([
      { name: "A", origin: "https://a" },
      { name: "B_2", origin: "http://b:8080" },
    ]);
  });

  test("events are told with any line end, in any cut, and comments are left out", async () => {
    const stream =
      "data: one\n\n: comment\ndata:two\r\ndata: lines\r\n\r\nid: 3\ndata: three\rdata: more\r\r\ndata: cut off";
    for (const size of [1, 2, 3, 1_000]) {
      const bytes = Buffer.from(stream);
      async function* cut() {
        for (let from = 0; from < bytes.length; from += size) yield bytes.subarray(from, from + size);
      }
      expect(await collect(eventData(cut(), 1_000))).toEqual(["one", "two\nlines", "three\nmore"]);
    }
  });
});
