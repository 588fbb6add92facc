/** What Prometheus is told, over HTTP. */
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { durationFromMs, timestampFromMs } from "@bufbuild/protobuf/wkt";
import { pino } from "pino";
import { describe, expect, test } from "vitest";
import { Misfire } from "../gen/moltwire/queue/v1/schedule_pb.ts";
import { Bell, sql } from "../src/db/db.ts";
import { createMetrics, reasons } from "../src/ops/metrics.ts";
import { openTasksByState } from "../src/ops/task-metrics.ts";
import { methodName } from "../src/rpc/access.ts";
import { services } from "../src/services.ts";
import { contract, submit, whenEnded, worker } from "./bus-fixtures/bus.ts";
import { failing, httpAgent, silent } from "./bus-fixtures/http-agent.ts";
import { dialects, eventually, fakeClock, refusal, start, type World } from "./harness.ts";

type Sample = { readonly name: string; readonly labels: Readonly<Record<string, string>>; readonly value: number };
type Scrape = {
  /** Type by name. */
  readonly types: ReadonlyMap<string, string>;
  readonly samples: readonly Sample[];
  /** The sum of the samples of this name that have all these labels. */
  value(name: string, labels?: Record<string, string>): number;
};

async function scrape({ url, operatorKey }: World): Promise<Scrape> {
  const answer = await fetch(`${url}/metrics`, { headers: { authorization: `Bearer ${operatorKey}` } });
  return parse(await answer.text());
}

function parse(text: string): Scrape {
  const lines = text.split("\n");
  const types = lines.flatMap((line): [string, string][] => {
    const [, name, type] = /^# TYPE (\S+) (\S+)$/.exec(line) ?? [];
    return name && type ? [[name, type]] : [];
  });
  const samples = lines.flatMap((line): Sample[] => {
    const [, name, labels = "", value] = /^([a-z_0-9]+)(?:\{(.*)\})? (\S+)$/.exec(line) ?? [];
    if (!name) return [];
    const pairs = [...labels.matchAll(/(\w+)="([^"]*)"/g)].map(([, label, of]): [string, string] => [label!, of!]);
    return [{ name, labels: Object.fromEntries(pairs), value: Number(value) }];
  });
  return {
    types: new Map(types),
    samples,
    value: (name, labels = {}) =>
      samples
        .filter((sample) => sample.name === name)
        .filter((sample) => Object.entries(labels).every(([label, of]) => sample.labels[label] === of))
        .reduce((sum, { value }) => sum + value, 0),
  };
}

/** The rows of METRICS.md. */
const documented = readFileSync(new URL("../src/ops/METRICS.md", import.meta.url), "utf8")
  .split("\n")
  .filter((line) => /^\| `(moltwire|nodejs|process)_/.test(line))
  .map((line) => {
    const [, name, type, labels, on, meaning, alert] = line.split(/(?<!\\)\|/).map((cell) => cell.trim());
    const labelNames = [...labels!.matchAll(/`(\w+)`/g)].map(([, label]) => label!);
    return { name: name!.replaceAll("`", ""), type, labels: labelNames, on, meaning, alert: alert ?? "" };
  });

const serviceOf = (world: World, service: string, init: RequestInit = {}) =>
  fetch(`${world.url}/${service}`, { method: "POST", ...init });

describe.each(dialects)("metrics on %s", (dialect) => {
  test("tell how queues stand, and what became of the times of schedules", async () => {
    const clock = fakeClock(Date.parse("2026-06-01T00:00:30Z"));
    await using world = await start(dialect, { clock });
    const org = await world.org();
    const { as } = await org.agent();
    const timing = { cron: "* * * * *" };
    await as.schedules.createSchedule({ settings: { timing, misfire: Misfire.SKIP } });
    const fired = async () => (await scrape(world)).value("moltwire_schedule_times_total", { result: "fired" });
    clock.advance(30_000);
    await eventually(async () => (await fired()) === 1);
    clock.advance(150_000); // the last of the times is 30 s late
    await eventually(async () => (await fired()) === 2);
    await as.queues.submitJob({ job: { runAt: timestampFromMs(clock.now() + 60_000) } });
    await as.queues.claimJobs({});
    const { value } = await scrape(world);
    expect(value("moltwire_schedule_times_total", { result: "missed" })).toBe(1);
    expect(value("moltwire_schedule_lateness_seconds_sum")).toBe(30);
    const jobs = (state: string) => value("moltwire_queue_jobs", { state });
    expect([jobs("SCHEDULED"), jobs("PENDING"), jobs("LEASED"), jobs("FAILED")]).toEqual([1, 1, 1, 0]);
    expect(value("moltwire_queue_oldest_seconds")).toBe(0);
    clock.advance(20_000);
    expect((await scrape(world)).value("moltwire_queue_oldest_seconds")).toBe(20);
    expect((await scrape(world)).value("moltwire_schedules_due")).toBe(0);
  });

  test("are those of METRICS.md, each of its type and with its labels", async () => {
    await using world = await start(dialect);
    await using agent = await httpAgent();
    const org = await world.org();
    const contractId = await contract(org);
    await worker(org, contractId, agent);
    await submit(org.admin, contractId);
    await refusal(submit(org.admin, "no/such"));
    const { types, samples } = await scrape(world);
    const expected = documented.filter(({ on }) => on === "" || on === dialect);
    for (const { name, type, labels, meaning } of expected) {
      expect([name, types.get(name)]).toEqual([name, type]);
      expect(meaning).not.toBe("");
      const seen = samples.filter((sample) => sample.name === (type === "histogram" ? `${name}_count` : name));
      expect([name, seen.length > 0]).toEqual([name, true]);
      for (const sample of seen) expect([name, ...Object.keys(sample.labels)]).toEqual([name, ...labels]);
    }
    const own = [...types.keys()].filter((name) => name.startsWith("moltwire_"));
    expect(own.toSorted()).toEqual(
      expected
        .map(({ name }) => name)
        .filter((name) => name.startsWith("moltwire_"))
        .toSorted(),
    );
  });

  test("count every call once by its code, wherever it was refused, and its reason", async () => {
    await using world = await start(dialect, { rateLimit: 2 });
    const org = await world.org();
    const { as, key } = await org.agent();
    const method = "moltwire.bus.v1.AgentService/ListAgents";
    await as.agents.listAgents({});
    await as.agents.listAgents({});
    const json = { "content-type": "application/json" };
    const before = await scrape(world);
    await refusal(as.agents.listAgents({}));
    await refusal(world.as(undefined, "grpc").agents.listAgents({}));
    await refusal(world.as("garbage", "grpc-web").agents.listAgents({}));
    await refusal(world.operator.agents.listAgents({ pageSize: -1 }));
    const operator = { ...json, authorization: `Bearer ${world.operatorKey}` };
    await serviceOf(world, method, { headers: operator, body: "{" });
    await serviceOf(world, method, { headers: { ...operator, "content-type": "text/plain" }, body: "x" });
    await serviceOf(world, "moltwire.bus.v1.AgentService/Nothing", { headers: json, body: "{}" });
    await serviceOf(world, "favicon.ico");
    await serviceOf(world, `moltwire.bus.v1.${"x".repeat(50)}/Y`, { headers: json, body: key });
    const after = await scrape(world);
    const more = (name: string, labels: Record<string, string>) =>
      after.value(name, labels) - before.value(name, labels);
    const calls = (code: string, of = method) => more("moltwire_rpc_seconds_count", { method: of, code });
    expect({
      limited: calls("resource_exhausted"),
      unauthenticated: calls("unauthenticated"),
      invalid: calls("invalid_argument"),
      noCall: calls("http_415"),
      noMethod: calls("unimplemented", "unknown"),
      nothing: calls("not_found", "unknown"),
    }).toEqual({ limited: 1, unauthenticated: 2, invalid: 2, noCall: 1, noMethod: 2, nothing: 1 });
    const errors = (reason: string) => more("moltwire_rpc_errors_total", { reason });
    expect(["RATE_LIMITED", "KEY_MISSING", "KEY_INVALID", "INVALID_REQUEST", "MALFORMED_REQUEST"].map(errors)).toEqual([
      1, 1, 1, 1, 1,
    ]);
    expect(calls("ok")).toBe(0);
    const methods = new Set(after.samples.map(({ labels }) => labels.method).filter((name) => name !== undefined));
    expect([...methods].filter((name) => name.includes("xxx") || name.includes("favicon"))).toEqual([]);
  });

  test("count tasks by how they ended, and tell which are open and how many run", async () => {
    await using world = await start(dialect);
    await using agent = await httpAgent();
    const org = await world.org();
    const contractId = await contract(org);
    await worker(org, contractId, agent);
    await submit(org.admin, contractId);
    agent.handle = failing("internal");
    await submit(org.admin, contractId);
    agent.handle = silent;
    const running = await submit(org.admin, contractId, { returnImmediately: true });
    await agent.call(2);
    await refusal(submit(org.admin, "no/such"));
    const during = await scrape(world);
    const ended = (of: Scrape, state: string, reason: string) =>
      of.value("moltwire_tasks_ended_total", { state, reason });
    expect([
      during.value("moltwire_tasks_accepted_total"),
      during.value("moltwire_tasks_refused_total", { reason: "CONTRACT_NOT_FOUND" }),
      ended(during, "COMPLETED", "NONE"),
      ended(during, "FAILED", "ADAPTER_ERROR"),
      during.value("moltwire_attempts_total", { reason: "NONE" }),
      during.value("moltwire_attempts_total", { reason: "ADAPTER_ERROR" }),
      during.value("moltwire_egress_calls_total", { result: "2xx" }),
      during.value("moltwire_egress_calls_total", { result: "5xx" }),
      during.value("moltwire_open_tasks", { state: "WORKING" }),
      during.value("moltwire_open_tasks"),
      during.value("moltwire_running_tasks"),
      during.value("moltwire_task_seconds_count"),
    ]).toEqual([3, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 2]);
    expect(during.value("moltwire_running_bytes")).toBeGreaterThan(0);
    await org.admin.bus.cancelTask({ taskId: running.taskId });
    await whenEnded(org.admin, running.taskId);
    const after = await eventually(async () => {
      const now = await scrape(world);
      return now.value("moltwire_running_tasks") === 0 && now;
    });
    expect([ended(after, "CANCELED", "TASK_CANCELED"), after.value("moltwire_open_tasks")]).toEqual([1, 0]);
    expect(after.value("moltwire_egress_calls_total", { result: "aborted" })).toBe(1);
  });

  test("tell how many circuits are not closed, and how many tasks wait for somebody's approval", async () => {
    const clock = fakeClock();
    await using world = await start(dialect, { clock });
    await using agent = await httpAgent(failing("internal"));
    const [org, other] = [await world.org(), await world.org()];
    const told = async () => {
      const { value } = await scrape(world);
      const circuits = (state: string) => value("moltwire_circuits", { state });
      return [circuits("OPEN"), circuits("HALF_OPEN"), value("moltwire_pending_approvals")];
    };
    expect(await told()).toEqual([0, 0, 0]);
    const contractId = await contract(org);
    const breaker = { failureThreshold: 1, window: durationFromMs(60_000), openDuration: durationFromMs(30_000) };
    await worker(org, contractId, agent, { breaker });
    await submit(org.admin, contractId);
    expect(await told()).toEqual([1, 0, 0]);
    clock.advance(30_001);
    agent.handle = silent;
    const { taskId } = await submit(org.admin, contractId, { returnImmediately: true });
    await agent.call(1);
    expect(await told()).toEqual([0, 1, 0]);
    await org.admin.bus.cancelTask({ taskId });
    await whenEnded(org.admin, taskId);
    const guarded = await contract(other, { approvalRequired: true });
    await worker(other, guarded, agent);
    const { approvalId } = await submit((await other.agent()).as, guarded);
    expect((await told())[2]).toBe(1);
    await other.admin.approvals.deny({ approvalId });
    expect((await told())[2]).toBe(0);
  });

  test("tell how far feeds are behind what is committed", async () => {
    await using world = await start(dialect);
    const org = await world.org();
    const contractId = await contract(org);
    await org.agent({ capabilities: [contractId], endpoint: { kind: { case: "echo", value: {} } } });
    const leave = new AbortController();
    const feed = org.admin.events.watchEvents({}, { signal: leave.signal })[Symbol.asyncIterator]();
    await feed.next(); // the checkpoint
    expect((await scrape(world)).value("moltwire_feed_lag_seconds_count")).toBe(0);
    // PostgreSQL's rows may be found by polling before their bell is heard; not all of them are.
    const after = await eventually(async () => {
      await submit(org.admin, contractId);
      expect((await feed.next()).value?.item.case).toBe("event");
      const now = await scrape(world);
      return now.value("moltwire_feed_lag_seconds_count") > 0 && now;
    });
    expect(after.value("moltwire_feed_lag_seconds_sum")).toBeGreaterThan(0);
    expect(after.value("moltwire_feed_lag_seconds_sum")).toBeLessThan(5);
    expect(after.value("moltwire_open_streams")).toBe(1);
    leave.abort();
    await feed.next().catch(() => {});
  });
});

test("the alerts of METRICS.md ask for metrics, reasons and methods that there are", () => {
  const names = new Set(documented.map(({ name }) => name));
  const alerts = documented.flatMap(({ alert }) => [...alert.matchAll(/`([^`]+)`/g)].map(([, text]) => text!));
  expect(alerts.length).toBeGreaterThan(20);
  const methods = services.flatMap((service) => service.methods.map(methodName));
  for (const alert of alerts) {
    const asked = [...alert.matchAll(/\b(?:moltwire|nodejs|process)_\w+/g)].map(([name]) =>
      name.replace(/_bucket$/, ""),
    );
    const unknown = asked.filter((name) => !names.has(name) && name !== "process_max_fds");
    expect([alert, asked.length > 0, ...unknown]).toEqual([alert, true]);
    for (const [, list] of alert.matchAll(/reason=~?"([^"]+)"/g)) expect(reasons).toContain(list!.split("\\|")[0]);
    for (const [, method] of alert.matchAll(/method="([^"]+)"/g)) expect(methods).toContain(method);
    expect(alert.split("(").length).toBe(alert.split(")").length);
  }
});

test("open tasks are counted along the index of open ones, however many tasks there are", async () => {
  await using world = await start("sqlite");
  const plan = await world.server.app.db.query.all<{ detail: string }>(sql`explain query plan ${openTasksByState}`);
  expect(plan.map(({ detail }) => detail).join("; ")).toContain("USING INDEX task_open");
});

test("a bell tells when it was rung first, of the rings that a wait heard", async () => {
  const { signal } = new AbortController();
  const bell = new Bell();
  expect([await bell.wait(1, signal), bell.rungMs]).toEqual([false, undefined]);
  const before = performance.now();
  bell.ring();
  const after = performance.now();
  while (performance.now() - after < 2);
  bell.ring();
  expect(await bell.wait(1, signal)).toBe(true);
  expect(bell.rungMs).toBeGreaterThanOrEqual(before);
  expect(bell.rungMs).toBeLessThanOrEqual(after);
});

test("storage on a disk is measured: its file, its log, and the room that is left", async () => {
  const data = mkdtempSync(join(tmpdir(), "moltwire-metrics-"));
  try {
    await using world = await start("sqlite", { data });
    const { value } = await scrape(world);
    expect(
      value("moltwire_database_bytes", { file: "data" }) + value("moltwire_database_bytes", { file: "wal" }),
    ).toBeGreaterThan(10_000);
    expect(value("moltwire_disk_free_bytes")).toBeGreaterThan(0);
    expect(value("moltwire_commit_transactions_count")).toBeGreaterThan(0);
  } finally {
    rmSync(data, { recursive: true });
  }
});

test("a metric that cannot be read is left out, and costs no other its place", async () => {
  const metrics = createMetrics(pino({ level: "silent" }));
  const broken = () => Promise.reject(new Error("storage is away"));
  metrics.gauge({ name: "moltwire_broken", help: "broken", read: broken });
  metrics.gauge({ name: "moltwire_broken_too", help: "broken", label: "state", read: broken });
  metrics.gauge({ name: "moltwire_hung", help: "hung", read: () => new Promise<number>(() => {}) });
  let depth = 3;
  metrics.gauge({ name: "moltwire_depths", help: "depths", label: "queue", read: () => ({ a: depth, b: 0 }) });
  const first = parse(await metrics.text());
  expect(first.value("moltwire_depths", { queue: "a" })).toBe(3);
  expect(first.samples.filter(({ name }) => /broken|hung/.test(name))).toEqual([]);
  depth = 4;
  expect(parse(await metrics.text()).value("moltwire_depths", { queue: "a" })).toBe(4);
});
