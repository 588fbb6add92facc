/** What leaves the server as OpenTelemetry, seen by a collector on the loopback. */
import { execFile } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Writable } from "node:stream";
import { promisify } from "node:util";
import { pino } from "pino";
import { describe, expect, test } from "vitest";
import { hasWaiting } from "../src/bus/serve/pulled-store.ts";
import { ConfigError, readConfig } from "../src/config.ts";
import type { ServerOptions } from "../src/server.ts";
import { type Delivery, openExporter, type SpanResult } from "../src/telemetry/exporter.ts";
import type { FinishedSpan } from "../src/telemetry/span.ts";
import { contract, reasonOf, stateOf, submit, whenEnded, worker } from "./bus-fixtures/bus.ts";
import { failing, httpAgent, silent } from "./bus-fixtures/http-agent.ts";
import { puller, respond, serving } from "./bus-fixtures/instance.ts";
import { migratedDatabase } from "./engines.ts";
import { dialects, eventually, fakeClock, refusal, start, type World } from "./harness.ts";
import { type Collector, collector, partialSuccess, type ReceivedSpan } from "./telemetry-fixtures/collector.ts";

const exporting = ({ url }: Collector): ServerOptions => ({ otlpEndpoint: `${url}/v1/traces` });

/** All spans, once the server has stopped and so sent them. */
async function spansAfterStop(world: World, to: Collector): Promise<readonly ReceivedSpan[]> {
  await world.server.close();
  return to.spans();
}

const ofName = (spans: readonly ReceivedSpan[], name: string): ReceivedSpan[] =>
  spans.filter((span) => span.name.endsWith(name));

describe.each(dialects)("spans on %s", (dialect) => {
  test("a task has a span below its call's, and each attempt one below the task's", async () => {
    await using to = await collector();
    await using world = await start(dialect, exporting(to));
    await using agent = await httpAgent((call) =>
      call.task.attempt === 1
        ? failing("internal")(call)
        : { output: { fine: true }, usage: { inputTokens: 12, outputTokens: 34, model: "some-model" } },
    );
    const org = await world.org();
    const contractId = await contract(org, { retries: 1 });
    const { agentId } = await worker(org, contractId, agent);
    const traceId = "0af7651916cd43dd8448eb211c80319c";
    const caller = await org.agent();
    const task = await submit(
      caller.as,
      contractId,
      { input: { secret: "swordfish" } },
      { headers: { traceparent: `00-${traceId}-b7ad6b7169203331-01` } },
    );
    expect(stateOf(task)).toBe("COMPLETED");
    const spans = (await spansAfterStop(world, to)).filter((span) => span.traceId === traceId);

    const [call] = ofName(spans, "SubmitTask");
    expect(call).toMatchObject({
      name: "moltwire.bus.v1.BusService/SubmitTask",
      kind: 2,
      spanId: task.spanId,
      parentSpanId: "b7ad6b7169203331",
      status: 0,
      attributes: {
        "rpc.system": "connect_rpc",
        "rpc.service": "moltwire.bus.v1.BusService",
        "rpc.method": "moltwire.bus.v1.BusService/SubmitTask",
        "rpc.status_code": "ok",
        "moltwire.org_id": org.orgId,
        "moltwire.agent_id": caller.agentId,
      },
    });
    const [ofTask] = ofName(spans, "task");
    expect(ofTask).toMatchObject({
      kind: 1,
      parentSpanId: call!.spanId,
      status: 0,
      attributes: {
        "moltwire.task_id": task.taskId,
        "moltwire.contract_id": contractId,
        "moltwire.task_state": "COMPLETED",
        "moltwire.org_id": org.orgId,
        "moltwire.caller_agent_id": caller.agentId,
      },
    });
    const attempts = ofName(spans, "invoke_agent").toSorted((a, b) => a.startMs - b.startMs);
    expect(attempts).toMatchObject([
      {
        kind: 3,
        parentSpanId: ofTask!.spanId,
        status: 2,
        attributes: { "moltwire.attempt": 1, "error.type": "ADAPTER_ERROR", "gen_ai.agent.id": agentId },
      },
      {
        kind: 3,
        parentSpanId: ofTask!.spanId,
        status: 0,
        attributes: {
          "moltwire.attempt": 2,
          "moltwire.contract_id": contractId,
          "moltwire.contract_version": "1.0.0",
          "gen_ai.agent.id": agentId,
          "gen_ai.operation.name": "invoke_agent",
          "gen_ai.usage.input_tokens": 12,
          "gen_ai.usage.output_tokens": 34,
        },
      },
    ]);
    expect(spans).toHaveLength(4);
    expect(new Set(spans.map(({ spanId }) => spanId)).size).toBe(4);
    expect(Math.round(ofTask!.endMs - ofTask!.startMs)).toBe(
      Number(task.endTime!.seconds - task.createTime!.seconds) * 1_000 +
        (task.endTime!.nanos - task.createTime!.nanos) / 1e6,
    );
    for (const { body } of to.requests) expect(body.includes("swordfish")).toBe(false);
    const [{ path, headers, resource }] = to.requests as [(typeof to.requests)[0]];
    expect([path, headers["content-type"]]).toEqual(["/v1/traces", "application/x-protobuf"]);
    expect(resource).toMatchObject({ "service.name": "moltwire", "service.instance.id": world.server.app.serverId });
  });

  test("a task that is canceled ends its span, and that of the attempt under way", async () => {
    await using to = await collector();
    await using world = await start(dialect, exporting(to));
    await using agent = await httpAgent(silent);
    const org = await world.org();
    const contractId = await contract(org);
    await worker(org, contractId, agent);
    const { taskId } = await submit(org.admin, contractId, { returnImmediately: true });
    await agent.call(0);
    await org.admin.bus.cancelTask({ taskId, note: "no longer wanted" });
    expect(reasonOf(await whenEnded(org.admin, taskId))).toBe("TASK_CANCELED");
    const spans = await spansAfterStop(world, to);
    expect(ofName(spans, "task")).toMatchObject([
      { status: 0, attributes: { "moltwire.task_state": "CANCELED", "error.type": "TASK_CANCELED" } },
    ]);
    expect(ofName(spans, "invoke_agent")).toMatchObject([{ attributes: { "error.type": "TASK_CANCELED" } }]);
    for (const { body } of to.requests) expect(body.includes("no longer wanted")).toBe(false);
  });

  test("an attempt of an agent that pulls begins when it is delivered, and has its number", async () => {
    await using to = await collector();
    const clock = fakeClock(Date.now());
    await using world = await start(dialect, { ...exporting(to), clock });
    const org = await world.org();
    const contractId = await contract(org);
    const agent = await puller(org, contractId);
    const { taskId } = await submit(org.admin, contractId, { returnImmediately: true });
    await eventually(() => hasWaiting(world.server.app.db.query, { ...org, agentId: agent.agentId }, clock.now()));
    clock.advance(5_000);
    await using instance = serving(agent.as);
    const delivery = await instance.delivery(0);
    clock.advance(1_000);
    await respond(agent.as, delivery);
    await whenEnded(org.admin, taskId);
    const spans = await spansAfterStop(world, to);
    const [attempt, ...others] = ofName(spans, "invoke_agent");
    expect(others).toEqual([]);
    expect(attempt!.attributes).toMatchObject({ "moltwire.attempt": 1, "moltwire.adapter": "pull" });
    expect(attempt!.endMs - attempt!.startMs).toBe(1_000);
  });

  test("a task that outlives its server has one span, of whoever ends it, below the call that submitted it", async () => {
    await using to = await collector();
    const database = dialect === "postgres" ? await migratedDatabase() : undefined;
    const data = mkdtempSync(join(tmpdir(), "moltwire-spans-"));
    const options = { ...exporting(to), data, drainMs: 1, ...(database && { databaseUrl: database.url }) };
    try {
      await using agent = await httpAgent(silent);
      const first = await start(dialect, options);
      const org = await first.org();
      const contractId = await contract(org);
      await worker(org, contractId, agent);
      const task = await submit(org.admin, contractId, { returnImmediately: true });
      await agent.call(0);
      await first.server.close();
      expect(ofName(to.spans(), "task")).toEqual([]);
      await using second = await start(dialect, options);
      expect(reasonOf(await whenEnded(second.as(org.adminKey), task.taskId))).toBe("OUTCOME_UNKNOWN");
      await second.server.close();
      const spans = to.spans().filter(({ traceId }) => traceId === task.traceId);
      const [call] = ofName(spans, "SubmitTask");
      expect(ofName(spans, "task")).toMatchObject([
        { parentSpanId: call!.spanId, status: 2, attributes: { "error.type": "OUTCOME_UNKNOWN" } },
      ]);
    } finally {
      rmSync(data, { recursive: true });
      await database?.drop();
    }
  });

  test("calls that are refused have a span with their code and reason, below their caller's", async () => {
    await using to = await collector();
    await using world = await start(dialect, exporting(to));
    const traceparent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    await refusal(world.as(undefined, "grpc").agents.listAgents({}, { headers: { traceparent } }));
    await refusal(world.operator.agents.getAgent({ agentId: "agt_none" }, { headers: { traceparent } }));
    const spans = (await spansAfterStop(world, to)).filter(({ traceId }) => traceId.startsWith("4bf9"));
    expect(spans).toMatchObject([
      {
        name: "moltwire.bus.v1.AgentService/ListAgents",
        parentSpanId: "00f067aa0ba902b7",
        attributes: { "rpc.system.name": "grpc", "rpc.status_code": "UNAUTHENTICATED", "error.type": "KEY_MISSING" },
      },
      {
        name: "moltwire.bus.v1.AgentService/GetAgent",
        parentSpanId: "00f067aa0ba902b7",
        attributes: { "rpc.status_code": "not_found", "error.type": "NOT_FOUND" },
      },
    ]);
    expect(spans[0]!.attributes).not.toHaveProperty("moltwire.org_id");
  });
});

describe("the export", () => {
  test("sends the operator's headers, and logs none of them, nor lets agents reach the collector", async () => {
    await using to = await collector();
    to.reply = () => ({ status: 401 });
    const lines: string[] = [];
    const sink = new Writable({ write: (chunk, _encoding, done) => done(void lines.push(String(chunk))) });
    const { otlpEndpoint, otlpHeaders } = readConfig([], {
      MOLTWIRE_OTLP_ENDPOINT: to.url,
      MOLTWIRE_OTLP_HEADERS: "Authorization=Bearer%20tok%2Cen, x-tenant = team a",
    });
    const log = pino({ level: "trace" }, sink);
    await using world = await start("sqlite", { otlpEndpoint, otlpHeaders: otlpHeaders!, log, egressAllow: [] });
    await world.operator.status.getStatus({});
    await expect(world.server.app.egress.check(`${to.url}/v1/traces`)).rejects.toThrow("may not reach");
    await world.server.close();
    expect(to.requests[0]!.path).toBe("/v1/traces");
    expect(to.requests[0]!.headers).toMatchObject({ authorization: "Bearer tok,en", "x-tenant": "team a" });
    const all = lines.join("");
    expect(all).toContain("spans could not be exported");
    expect(all).not.toMatch(/tok,en|tok%2C|team a/);
  });

  test("a collector that hangs delays no call, and the stop no longer than it may", async () => {
    await using to = await collector();
    to.reply = () => undefined;
    await using world = await start("sqlite", { ...exporting(to), drainMs: 300 });
    for (let n = 0; n < 600; n++) await world.operator.status.getStatus({});
    await eventually(() => to.requests.length > 0);
    const began = performance.now();
    await world.operator.status.getStatus({});
    expect(performance.now() - began).toBeLessThan(5_000);
    const stopping = performance.now();
    await world.server.close();
    expect(performance.now() - stopping).toBeLessThan(5_000);
  });

  test("without an endpoint nothing of OpenTelemetry is loaded but its API, which the metrics' own library has in it", async () => {
    const program = `
      import { registerHooks } from "node:module";
      const loaded = [];
      registerHooks({ load: (url, context, next) => { loaded.push(url); return next(url, context); } });
      const { createServer } = await import("./src/server.ts");
      const server = await createServer({ data: ":memory:", port: 0, logLevel: "silent", ...JSON.parse(process.argv[1]) });
      await server.listen();
      await server.close();
      console.log(loaded.length, loaded.filter((url) => /@opentelemetry.(?!api)/.test(url)).length);`;
    const counts = async (options: object) => {
      const args = ["--input-type=module", "-e", program, JSON.stringify(options)];
      const { stdout } = await promisify(execFile)(process.execPath, args, { cwd: new URL("..", import.meta.url) });
      return stdout.trim().split(" ").map(Number) as [number, number];
    };
    const [without, with_] = await Promise.all([counts({}), counts({ otlpEndpoint: "http://127.0.0.1:9/v1/traces" })]);
    expect(without[0]).toBeGreaterThan(100);
    expect(without[1]).toBe(0);
    expect(with_[1]).toBeGreaterThan(0);
  });
});

describe("the queue of spans", () => {
  const span = (name: string): FinishedSpan => ({
    traceId: "0".repeat(31).concat("1"),
    spanId: "0".repeat(15).concat("1"),
    parentSpanId: "",
    name,
    kind: "internal",
    startMs: 0,
    endMs: 1,
    attributes: {},
    failed: false,
  });

  /** An exporter whose sends the test answers, one by one. */
  function exporter(limits: { maxQueue?: number; maxBatch?: number } = {}) {
    const clock = fakeClock();
    const waits: number[] = [];
    const counts: Record<SpanResult, number> = { sent: 0, rejected: 0, failed: 0, dropped: 0 };
    const sends: { readonly names: string[]; answer(delivery: Delivery): void }[] = [];
    const made = openExporter({
      clock: {
        ...clock,
        sleep(ms, signal) {
          waits.push(ms);
          return clock.sleep(ms, signal);
        },
      },
      chance: () => 1,
      log: pino({ level: "silent" }),
      count: (result, spans) => void (counts[result] += spans),
      send: (batch) => {
        const { promise, resolve } = Promise.withResolvers<Delivery>();
        sends.push({ names: batch.map(({ name }) => name), answer: resolve });
        return promise;
      },
      ...limits,
    });
    const send = (n: number) => eventually(() => sends[n]);
    const end = (...names: string[]) => {
      for (const name of names) made.ended(span(name));
    };
    return { ...made, clock, waits, counts, sends, send, end };
  }
  const taken: Delivery = { outcome: "taken", rejected: 0 };
  const later: Delivery = { outcome: "later", why: "busy" };

  test("spans wait two seconds for company, and a whole batch for nothing", async () => {
    const { clock, sends, send, end, counts } = exporter({ maxBatch: 3 });
    end("a", "b");
    clock.advance(1_999);
    await new Promise((resolve) => setImmediate(resolve));
    expect(sends).toEqual([]);
    clock.advance(1);
    (await send(0)).answer(taken);
    await eventually(() => counts.sent === 2);
    end("c", "d", "e");
    expect((await send(1)).names).toEqual(["c", "d", "e"]);
  });

  test("what finds no room is dropped and counted, and what waits goes out in its order", async () => {
    const { counts, send, end, waiting } = exporter({ maxBatch: 2, maxQueue: 3 });
    end("a", "b");
    await send(0);
    end("c", "d", "e", "f", "g");
    expect([waiting(), counts.dropped]).toEqual([3, 2]);
    (await send(0)).answer(taken);
    expect((await send(1)).names).toEqual(["c", "d"]);
  });

  test("a batch is sent again, later each time or when the collector says, and given up after six attempts", async () => {
    const { clock, waits, counts, sends, send, end } = exporter({ maxBatch: 1 });
    end("a");
    (await send(0)).answer({ ...later, afterMs: 7_000 });
    for (const [n, waitMs] of [7_000, 2_000, 4_000, 8_000, 16_000].entries()) {
      await eventually(() => waits.length === n + 1);
      clock.advance(waitMs - 1);
      await new Promise((resolve) => setTimeout(resolve, 5));
      expect(sends).toHaveLength(n + 1);
      clock.advance(1);
      (await send(n + 1)).answer(later);
    }
    await eventually(() => counts.failed === 1);
    end("b");
    (await send(6)).answer({ outcome: "refused", why: "400" });
    await eventually(() => counts.failed === 2);
    expect(sends.map(({ names }) => names[0])).toEqual(["a", "a", "a", "a", "a", "a", "b"]);
  });

  test("the close sends what is left, each batch once, and takes nothing more", async () => {
    const { close, counts, send, end } = exporter({ maxBatch: 2 });
    end("a", "b");
    (await send(0)).answer(later);
    end("c", "d", "e");
    await new Promise((resolve) => setImmediate(resolve)); // by now the first batch waits for its second attempt
    const closed = close(5_000);
    end("f");
    expect((await send(1)).names).toEqual(["a", "b"]);
    (await send(1)).answer(later);
    (await send(2)).answer(taken);
    (await send(3)).answer({ outcome: "taken", rejected: 1 });
    await closed;
    expect(counts).toEqual({ sent: 2, rejected: 1, failed: 2, dropped: 1 });
  });
});

describe("a collector's answer", () => {
  test("that takes only some spans is believed, and each is counted once", async () => {
    await using to = await collector();
    to.reply = ({ spans }) => partialSuccess(spans.length);
    await using world = await start("sqlite", exporting(to));
    await world.operator.status.getStatus({});
    await world.server.close();
    const text = await world.server.app.metrics.text();
    expect(text).toMatch(/^moltwire_otlp_spans_total\{result="rejected"\} [1-9]\d*$/m);
    expect(text).toMatch(/^moltwire_otlp_spans_total\{result="sent"\} 0$/m);
  });

  test.each([429, 503])("%i is tried again, and then taken", async (status) => {
    await using to = await collector();
    to.reply = () => (to.requests.length === 1 ? { status, headers: { "retry-after": "0" } } : { status: 200 });
    await using world = await start("sqlite", exporting(to));
    for (let n = 0; n < 256; n++) await world.operator.status.getStatus({});
    await eventually(() => to.spans().length > 0);
    expect(to.requests[1]!.body.equals(to.requests[0]!.body)).toBe(true);
  });
});

describe("the settings", () => {
  test("an endpoint without a path gets the usual one, and one with a path keeps it", () => {
    const read = (text: string) => readConfig([], { MOLTWIRE_OTLP_ENDPOINT: text }).otlpEndpoint;
    expect(read("http://localhost:4318")).toBe("http://localhost:4318/v1/traces");
    expect(read("https://[::1]:4318/")).toBe("https://[::1]:4318/v1/traces");
    expect(read("https://otlp.example.com/otlp/v1/traces?k=v")).toBe("https://otlp.example.com/otlp/v1/traces?k=v");
  });

  test.each([
    [{ MOLTWIRE_OTLP_ENDPOINT: "collector:4318" }, "MOLTWIRE_OTLP_ENDPOINT"],
    [{ MOLTWIRE_OTLP_ENDPOINT: "http://me:hush@collector" }, "credentials in a URL"],
    [{ MOLTWIRE_OTLP_HEADERS: "a=hush" }, "MOLTWIRE_OTLP_ENDPOINT"],
    [{ MOLTWIRE_OTLP_HEADERS: "hush" }, "entry 1"],
    [{ MOLTWIRE_OTLP_HEADERS: "a=1,A=hush" }, "names a twice"],
    [{ MOLTWIRE_OTLP_HEADERS: "a=hush%0a" }, "the value of a"],
    [{ MOLTWIRE_OTLP_HEADERS: "a=hush%zz" }, "the value of a"],
    [{ MOLTWIRE_OTLP_HEADERS: "content-type=hush" }, "content-type"],
  ])("%j is refused with what is wrong, and without its value", (env, what) => {
    const read = () => readConfig([], env);
    expect(read).toThrow(ConfigError);
    expect(read).toThrow(what);
    expect(read).not.toThrow("hush");
  });
});
