import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { pino } from "pino";
import { describe, expect, test } from "vitest";
import { type Task, TaskState } from "../gen/moltwire/bus/v1/task_pb.ts";
import { type TraceEvent, TraceEventKind } from "../gen/moltwire/bus/v1/trace_pb.ts";
import { maxPerPlace } from "../src/bus/dispatch.ts";
import { findTask, InFlight, takeTask } from "../src/bus/task-store.ts";
import { sql } from "../src/db/db.ts";
import { openSqlite } from "../src/db/sqlite.ts";
import { createServer } from "../src/server.ts";
import {
  contract,
  eventsOf,
  json,
  kindsOf,
  reasonOf,
  stateOf,
  submit,
  terminalKinds,
  whenEnded,
  worker,
} from "./bus-fixtures/bus.ts";
import { failing, httpAgent, silent } from "./bus-fixtures/http-agent.ts";
import { serverProcess } from "./bus-fixtures/process.ts";
import { storage } from "./bus-fixtures/storage.ts";
import {
  type Clients,
  clientsAt,
  dialects,
  eventually,
  fakeClock,
  type Org,
  refusal,
  start,
  unique,
} from "./harness.ts";

const main = fileURLToPath(new URL("../src/main.ts", import.meta.url));
const fixture = fileURLToPath(new URL("bus-fixtures/server.ts", import.meta.url));
const operatorKey = "kR7w2Qz9XvB4nT6mLp3sYf8hJd5gCa1e";
const leaseMs = 6_000;

describe("kill -9 of the server in the middle of its work, on a data folder", () => {
  test("each task ends as promised after the restart: dispatched, repeated under the same id, or OUTCOME_UNKNOWN", async () => {
    await using place = await storage("sqlite");
    await using agent = await httpAgent(silent);
    await using broken = await httpAgent(failing("internal"));
    const args = ["--data", place.folder, "--port", "0", "--rate-limit", "0", "--log-level", "silent"];
    const env = { MOLTWIRE_OPERATOR_KEY: operatorKey, MOLTWIRE_EGRESS_ALLOW: "127.0.0.1" };
    const tasks: Record<string, Task> = {};
    {
      await using victim = await serverProcess(main, args, env);
      const by = clientsAt(victim.url, operatorKey);
      const org = homeOrg(by);
      const onlyTo = async (init: Parameters<typeof contract>[1], at: typeof agent) => {
        const contractId = await contract(org, init);
        await worker(org, contractId, at);
        return contractId;
      };
      const repeatable = await onlyTo({ repeatable: true, timeoutMs: 60_000 }, agent);
      const once = await onlyTo({ timeoutMs: 60_000 }, agent);
      const retrying = await onlyTo({ retries: 10, backoffMs: 60_000 }, broken);
      // The fallback of a contract decides by itself whether its work may be done twice.
      const fallen = await onlyTo({ repeatable: true, fallbacks: [{ contractId: once }] }, broken);
      const later = await onlyTo({ timeoutMs: 60_000 }, agent);
      const go = (contractId: string) => submit(by, contractId, { input: { n: 1 }, returnImmediately: true });
      tasks.repeatable = await go(repeatable);
      tasks.once = await go(once);
      tasks.fallen = await go(fallen);
      await agent.call(2);
      tasks.retrying = await go(retrying);
      const { traceId } = tasks.retrying;
      await eventually(async () => kindsOf(await eventsOf(by, traceId)).at(-1) === "ATTEMPT_FAILED");
      for (let n = 3; n < maxPerPlace; n++) await go(later);
      await agent.call(maxPerPlace - 1);
      tasks.waiting = await go(later); // its agent has all it takes
      expect(stateOf((await by.bus.getTask({ taskId: tasks.waiting.taskId })).task)).toBe("SUBMITTED");
      await victim.kill();
    }
    const tried = broken.calls.filter(({ task }) => task.taskId === tasks.retrying!.taskId).length;
    agent.handle = broken.handle = ({ task }) => ({ output: task.attempt! });
    await using revived = await serverProcess(main, args, env);
    const by = clientsAt(revived.url, operatorKey);
    const ended: Record<string, Task> = {};
    for (const [name, { taskId }] of Object.entries(tasks)) ended[name] = await whenEnded(by, taskId);
    const outcome = (task: Task) => [stateOf(task), task.error ? reasonOf(task) : json(task.output)];
    expect(Object.fromEntries(Object.entries(ended).map(([name, task]) => [name, outcome(task)]))).toEqual({
      repeatable: ["COMPLETED", 2],
      once: ["FAILED", "OUTCOME_UNKNOWN"],
      fallen: ["FAILED", "OUTCOME_UNKNOWN"],
      retrying: ["COMPLETED", tried + 1],
      waiting: ["COMPLETED", 1],
    });
    expect(ended.once!.error?.metadata).toMatchObject({ cause: "SERVER_STOPPED" });
    const actions: Record<string, unknown> = {};
    for (const [name, { traceId }] of Object.entries(tasks)) {
      const steps = await eventsOf(by, traceId);
      actions[name] = recovered(steps).map(({ details }) => details?.action);
      expect(kindsOf(steps).filter((kind) => terminalKinds.includes(kind))).toEqual([stateOf(ended[name])]);
    }
    expect(actions).toEqual({
      repeatable: ["repeat"],
      once: ["fail"],
      fallen: ["fail"],
      retrying: ["dispatch"],
      waiting: ["dispatch"],
    });
    const ids = agent.calls.filter(({ task }) => task.taskId === tasks.repeatable!.taskId);
    expect(ids.map(({ task }) => task.attempt)).toEqual([1, 2]);
    const { tasks: open } = await by.bus.listTasks({ pageSize: 250 });
    for (const { taskId } of open) await whenEnded(by, taskId);
    expect(await revived.stop()).toBe(0);
  });

  test("a task whose deadline passed while the server was down is not given to an agent any more", async () => {
    await using place = await storage("sqlite");
    await using agent = await httpAgent();
    let adminKey: string;
    let taskId: string;
    {
      await using before = await start("sqlite", place.options);
      const org = await before.org();
      adminKey = org.adminKey;
      const contractId = await contract(org);
      await worker(org, contractId, agent);
      ({ taskId } = await submit(org.admin, contractId, {}, { timeoutMs: 60_000 }));
    }
    const db = openSqlite({ file: join(place.folder, "moltwire.db") });
    await db.tx(async (tx) => {
      await tx.run(
        sql`update task set state = ${TaskState.SUBMITTED}, deadline_ms = ${Date.now() - 1}, attempts = 0 where task_id = ${taskId}`,
      );
    });
    await db.close();
    await using after = await start("sqlite", place.options);
    const task = await whenEnded(after.as(adminKey), taskId);
    expect([stateOf(task), reasonOf(task), task.attempts]).toEqual(["FAILED", "DEADLINE_EXCEEDED", 0]);
    expect(agent.calls).toHaveLength(1);
  });
});

test("a start that fails because its port is taken has begun nobody's work", async () => {
  await using place = await storage("sqlite");
  await using agent = await httpAgent(silent);
  {
    await using first = await start("sqlite", { ...place.options, drainMs: 0 });
    const org = await first.org();
    const contractId = await contract(org, { repeatable: true });
    await worker(org, contractId, agent);
    for (let n = 0; n < 3; n++) await submit(org.admin, contractId, { returnImmediately: true });
    await agent.call(2);
  }
  await using other = await start("sqlite");
  const port = Number(new URL(other.url).port);
  const second = await createServer({
    ...place.options,
    port,
    egressAllow: ["127.0.0.1"],
    log: pino({ level: "silent" }),
  });
  await expect(second.listen()).rejects.toThrow(/EADDRINUSE/);
  await second.close();
  expect(agent.calls).toHaveLength(3);
});

describe.runIf(dialects.includes("postgres"))("replicas on one PostgreSQL database", () => {
  test("when one is killed the others take its tasks after its lease, none twice, each ending once", async () => {
    await using place = await storage("postgres");
    await using agent = await httpAgent(silent);
    await using one = await start("postgres", { ...place.options, leaseMs });
    await using two = await start("postgres", { ...place.options, leaseMs });
    const org = await one.org();
    const repeatable = await contract(org, { repeatable: true, timeoutMs: 60_000 });
    const once = await contract(org, { timeoutMs: 60_000 });
    for (const contractId of [repeatable, once]) await worker(org, contractId, agent);
    const made: Task[] = [];
    {
      await using victim = await serverProcess(fixture, [JSON.stringify({ ...place.options, leaseMs })]);
      const by = clientsAt(victim.url, org.adminKey);
      for (let n = 0; n < maxPerPlace + 14; n++)
        made.push(await submit(by, n % 2 ? once : repeatable, { returnImmediately: true }));
      await agent.call(maxPerPlace - 1);
      await victim.kill();
    }
    const hadThem = new Map(agent.calls.map(({ task }) => [task.taskId!, task.contractId]));
    agent.handle = ({ task }) => ({ output: task.attempt! });
    const ended = await Promise.all(
      made.map(({ taskId }, n) => whenEnded(n % 2 ? two.as(org.adminKey) : org.admin, taskId)),
    );
    for (const task of ended) {
      const had = hadThem.has(task.taskId);
      const unknown = had && task.contractId === once;
      expect([stateOf(task), task.error ? reasonOf(task) : json(task.output)]).toEqual(
        unknown ? ["FAILED", "OUTCOME_UNKNOWN"] : ["COMPLETED", had ? 2 : 1],
      );
      const steps = await eventsOf(org.admin, task.traceId);
      expect(recovered(steps).map(({ details }) => details?.action)).toEqual([
        unknown ? "fail" : had ? "repeat" : "dispatch",
      ]);
      expect(kindsOf(steps).filter((kind) => terminalKinds.includes(kind))).toHaveLength(1);
    }
    const counts = Object.values(Object.groupBy(agent.calls, ({ task }) => task.taskId!)).map((calls) => calls!.length);
    expect(Math.max(...counts)).toBe(2);
  });

  test("a task that was taken over ignores what its former holder brings, and the call of that one is hung up on", async () => {
    await using place = await storage("postgres");
    await using agent = await httpAgent(silent);
    await using one = await start("postgres", place.options);
    const org = await one.org();
    const contractId = await contract(org, { repeatable: true, timeoutMs: 60_000 });
    await worker(org, contractId, agent);
    const { taskId, traceId } = await submit(org.admin, contractId, { returnImmediately: true });
    const stale = await agent.call(0);
    // To the others it is as gone as if it had been stopped for the time of its lease.
    await one.server.app.db.tx(async (tx) => void (await tx.run(sql`update lease set until_ms = 0`)));
    await using two = await start("postgres", place.options);
    const fresh = await agent.call(1);
    expect([fresh.task.taskId, fresh.task.attempt]).toEqual([taskId, 2]);
    const { db } = one.server.app;
    const { tx } = db;
    const settled: unknown[] = [];
    db.tx = async (body) => {
      const result = await tx(body);
      settled.push(result);
      return result;
    };
    stale.answer({ output: "stale" });
    await eventually(() => settled.includes(false)); // it tried, and was told that the task is not its own
    fresh.answer({ output: "fresh" });
    const task = await whenEnded(two.as(org.adminKey), taskId);
    expect(json(task.output)).toBe("fresh");
    expect(kindsOf(await eventsOf(org.admin, traceId)).filter((kind) => kind === "ANSWERED")).toHaveLength(1);
  });

  test("a task is canceled through another replica than the one that works on it", async () => {
    await using place = await storage("postgres");
    await using agent = await httpAgent(silent);
    await using one = await start("postgres", place.options);
    await using two = await start("postgres", place.options);
    const org = await one.org();
    const contractId = await contract(org);
    await worker(org, contractId, agent);
    const blocked = submit(org.admin, contractId);
    const { task, hungUp } = await agent.call(0);
    await two.as(org.adminKey).bus.cancelTask({ taskId: task.taskId! });
    await hungUp;
    expect(stateOf(await blocked)).toBe("CANCELED");
  });

  test("connections that the database drops again and again leave no task open", async () => {
    await using place = await storage("postgres");
    await using agent = await httpAgent();
    await using world = await start("postgres", place.options);
    await using witness = await start("postgres");
    const org = await world.org();
    const contractId = await contract(org, { repeatable: true, retries: 3 });
    await worker(org, contractId, agent);
    const name = new URL(place.options.databaseUrl!).pathname.slice(1);
    const drop = () =>
      witness.server.app.db.query.all(
        sql`select pg_terminate_backend(pid) from pg_stat_activity where datname = ${name}`,
      );
    let going = true;
    const submitting = Promise.all(
      Array.from({ length: 8 }, async () => {
        while (going) await submit(org.admin, contractId, { returnImmediately: true }).catch(() => {});
      }),
    );
    for (let n = 0; n < 4; n++) {
      const seen = agent.calls.length;
      await eventually(() => agent.calls.length > seen + 20);
      await drop();
    }
    going = false;
    await submitting;
    await eventually(async () => {
      const open = await Promise.all(
        [TaskState.SUBMITTED, TaskState.WORKING].map((state) =>
          org.admin.bus.listTasks({ state }).catch(() => undefined),
        ),
      );
      return open.every((page) => page?.tasks.length === 0);
    });
    const { tasks } = await org.admin.bus.listTasks({ pageSize: 250 });
    expect(tasks.map(stateOf).filter((state) => state !== "COMPLETED")).toEqual([]);
  });
});

test.each(dialects)(
  "a task that was given to an agent since it was found is not taken over as one that nobody has (%s)",
  async (dialect) => {
    await using world = await start(dialect);
    const org = await world.org();
    await using agent = await httpAgent(silent);
    const contractId = await contract(org, { timeoutMs: 60_000 });
    await worker(org, contractId, agent);
    const { taskId } = await submit(org.admin, contractId, { returnImmediately: true });
    await agent.call(0);
    const { db } = world.server.app;
    const now = (await findTask(db.query, org.orgId, taskId))!;
    const found = { ...now, attempts: 0, in_flight: InFlight.none, state: TaskState.SUBMITTED };
    expect(await db.tx((tx) => takeTask(tx, found, "another"))).toBeUndefined();
    expect(await db.tx((tx) => takeTask(tx, now, "another"))).toMatchObject({ taskId, token: now.lease_token + 1 });
  },
);

test.each(dialects)("a task that its own server has lost sight of is taken up again (%s)", async (dialect) => {
  const clock = fakeClock(Date.now());
  await using world = await start(dialect, { clock, leaseMs: 3_600_000 }); // a lease that no jump of the clock outruns
  const org = await world.org();
  await using agent = await httpAgent();
  const contractId = await contract(org);
  await worker(org, contractId, agent);
  const { taskId, traceId } = await submit(org.admin, contractId);
  // As after a commit that was done and whose word was lost: accepted, the server's own, and nobody works on it.
  await world.server.app.db.tx(async (tx) => {
    await tx.run(
      sql`update task set state = ${TaskState.SUBMITTED}, output = null, end_ms = null where task_id = ${taskId}`,
    );
  });
  await eventually(async () => {
    clock.advance(61_000);
    return recovered(await eventsOf(org.admin, traceId)).length > 0;
  });
  await eventually(async () => (await org.admin.bus.getTask({ taskId })).task?.state === TaskState.COMPLETED);
  expect(recovered(await eventsOf(org.admin, traceId)).map(({ details }) => details?.action)).toEqual(["dispatch"]);
  expect(agent.calls.map(({ task }) => task.attempt)).toEqual([1, 2]);
});

describe.each(dialects)("a graceful stop on %s", (dialect) => {
  test("answers who still waits when the grace is over, ends streams with their cursor, and the tasks go on after the restart", async () => {
    await using place = await storage(dialect);
    await using agent = await httpAgent(silent);
    const before = await start(dialect, { ...place.options, drainMs: 200 });
    const org = await before.org();
    const contractId = await contract(org, { repeatable: true, timeoutMs: 60_000 });
    await worker(org, contractId, agent);
    const waiting = refusal(submit(org.admin, contractId));
    const { task } = await agent.call(0);
    const taskId = task.taskId!;
    const seen: string[] = [];
    const stream = org.admin.bus.watchTask({ taskId })[Symbol.asyncIterator]();
    let cursor = "";
    while (seen.at(-1) !== "DISPATCHED") {
      const { value: message } = await stream.next();
      cursor = message.cursor;
      if (message.event.case === "step") seen.push(...kindsOf([message.event.value]));
    }
    const streamEnd = refusal(stream.next());
    await before[Symbol.asyncDispose]();
    expect(await waiting).toMatchObject({ code: "Unavailable", reason: "SHUTTING_DOWN" });
    expect(await streamEnd).toMatchObject({ code: "Unavailable", reason: "SHUTTING_DOWN", metadata: { cursor } });
    agent.handle = () => ({ output: "after" });
    await using after = await start(dialect, place.options);
    const by = after.as(org.adminKey);
    const rest: string[] = [];
    for await (const { event } of by.bus.watchTask({ taskId, afterCursor: cursor }))
      if (event.case === "step") rest.push(...kindsOf([event.value]));
    expect(rest).toEqual(["RECOVERED", "POLICY_DECIDED", "DISPATCHED", "ANSWERED", "OUTPUT_CHECKED", "COMPLETED"]);
  });

  test("lets tasks under way end within the grace, and their callers have the answer", async () => {
    await using place = await storage(dialect);
    await using agent = await httpAgent(silent);
    const world = await start(dialect, { ...place.options, drainMs: 20_000 });
    const org = await world.org();
    const contractId = await contract(org);
    await worker(org, contractId, agent);
    const waiting = submit(org.admin, contractId);
    const call = await agent.call(0);
    const closed = world[Symbol.asyncDispose]();
    expect(await refusal(submit(world.as(org.adminKey), contractId))).toMatchObject({ code: "Unavailable" });
    call.answer({ output: 1 });
    expect(stateOf(await waiting)).toBe("COMPLETED");
    await closed;
  });

  test("a SIGTERM with a task under way and an open stream exits 0", async () => {
    await using place = await storage(dialect);
    await using agent = await httpAgent(silent);
    const database = "databaseUrl" in place.options ? ["--database-url", place.options.databaseUrl] : [];
    const args = ["--data", place.folder, "--port", "0", "--log-level", "silent", ...database];
    const env = { MOLTWIRE_OPERATOR_KEY: operatorKey, MOLTWIRE_EGRESS_ALLOW: "127.0.0.1" };
    await using child = await serverProcess(main, args, env);
    const by = clientsAt(child.url, operatorKey);
    const contractId = await contract(homeOrg(by));
    await worker(homeOrg(by), contractId, agent);
    const waiting = submit(by, contractId);
    const call = await agent.call(0);
    const stream = by.traces.tailTraces({})[Symbol.asyncIterator]();
    await stream.next();
    const streamEnd = refusal(stream.next());
    const stopped = child.stop();
    expect(await streamEnd).toMatchObject({ code: "Unavailable", reason: "SHUTTING_DOWN" });
    call.answer({ output: 1 });
    expect(stateOf(await waiting)).toBe("COMPLETED");
    expect(await stopped).toBe(0);
  });
});

/** The operator's own organisation, whose agents need no keys here. */
const homeOrg = (by: Clients): Org => ({
  orgId: "",
  adminKey: operatorKey,
  admin: by,
  async agent(init = {}) {
    const { agent } = await by.agents.registerAgent({ name: unique("agent"), ...init });
    return { agentId: agent!.agentId, key: "", as: by };
  },
});

const recovered = (steps: readonly TraceEvent[]) => steps.filter(({ kind }) => kind === TraceEventKind.RECOVERED);
