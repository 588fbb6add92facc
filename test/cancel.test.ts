import fc from "fast-check";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { TaskState } from "../gen/moltwire/bus/v1/task_pb.ts";
import { TraceEventKind } from "../gen/moltwire/bus/v1/trace_pb.ts";
import { maxPerPlace } from "../src/bus/dispatch.ts";
import {
  contract,
  echoEndpoint,
  eventsOf,
  kindsOf,
  reasonOf,
  stateOf,
  submit,
  terminalKinds,
  whenEnded,
  worker,
} from "./bus-fixtures/bus.ts";
import { failing, httpAgent, silent } from "./bus-fixtures/http-agent.ts";
import { type Clients, dialects, eventually, type Org, refusal, start, type World } from "./harness.ts";

/** Every event that the caller sees. Another one is made behind them: once it is there, all before it are. */
async function outbox(org: Org, by: Clients) {
  const contractId = await contract(org);
  await org.agent({ capabilities: [contractId], endpoint: echoEndpoint });
  const last = await submit(by, contractId);
  return eventually(async () => {
    const events = [];
    let pageToken = "";
    do {
      const page = await by.events.listEvents({ pageToken, pageSize: 250 });
      events.push(...page.events);
      pageToken = page.nextPageToken;
    } while (pageToken);
    return events.at(-1)?.payload?.task_id === last.taskId && events.slice(0, -1);
  });
}

describe.each(dialects)("%s", (dialect) => {
  let world: World;
  beforeAll(async () => {
    world = await start(dialect);
  });
  afterAll(() => world[Symbol.asyncDispose]());

  /** A task in the hands of an agent that says nothing. */
  async function working(agent: Awaited<ReturnType<typeof httpAgent>>) {
    const org = await world.org();
    const contractId = await contract(org, { repeatable: true, retries: 3 });
    const doer = await worker(org, contractId, agent);
    const caller = await org.agent();
    const blocked = submit(caller.as, contractId);
    const call = await agent.call(0);
    return { org, contractId, doer, caller, blocked, call, taskId: call.task.taskId! };
  }

  test("CancelTask ends the task, wakes its caller, stops the outgoing call, and is not retried", async () => {
    await using agent = await httpAgent(silent);
    const { org, caller, blocked, call, taskId } = await working(agent);
    const { task } = await caller.as.bus.cancelTask({ taskId, note: "not needed" });
    await call.hungUp;
    expect([stateOf(task), reasonOf(task), task?.error?.message]).toEqual(["CANCELED", "TASK_CANCELED", "not needed"]);
    expect(task?.error?.metadata).toEqual({ canceled_by: caller.agentId });
    expect(await blocked).toEqual(task);
    const steps = await eventsOf(caller.as, task!.traceId);
    expect(kindsOf(steps).slice(-2)).toEqual(["DISPATCHED", "CANCELED"]);
    expect(steps.at(-1)!.details).toEqual({ note: "not needed" });
    expect(agent.calls).toHaveLength(1);
    expect(await outbox(org, caller.as)).toMatchObject([
      {
        type: "task.failed",
        agentId: caller.agentId,
        payload: { task_id: taskId, state: "CANCELED", reason: "TASK_CANCELED" },
      },
    ]);
  });

  test("cancels once: again it answers the task as it is, and an answer that comes later changes nothing", async () => {
    await using agent = await httpAgent(silent);
    const { org, caller, call, blocked, taskId } = await working(agent);
    const first = await caller.as.bus.cancelTask({ taskId, note: "one" });
    expect(await caller.as.bus.cancelTask({ taskId, note: "two" })).toEqual(first);
    call.answer({ output: "too late" });
    await blocked;
    expect((await caller.as.bus.getTask({ taskId })).task).toEqual(first.task);
    expect((await outbox(org, caller.as)).length).toBe(1);
  });

  test("a task that has ended otherwise cannot be canceled, and says how it ended", async () => {
    const org = await world.org();
    const contractId = await contract(org);
    await org.agent({ capabilities: [contractId], endpoint: echoEndpoint });
    const { taskId } = await submit(org.admin, contractId);
    expect(await refusal(org.admin.bus.cancelTask({ taskId }))).toMatchObject({
      ...{ code: "FailedPrecondition", reason: "FAILED_PRECONDITION" },
      metadata: { state: "COMPLETED" },
    });
  });

  test("only who asked for it, an administrator or the operator may; to others it is not there", async () => {
    await using agent = await httpAgent(silent);
    const { org, caller, doer, taskId, blocked } = await working(agent);
    const other = await world.org();
    for (const by of [doer.as, (await org.agent()).as, other.admin, (await other.agent()).as]) {
      expect(await refusal(by.bus.cancelTask({ taskId }))).toMatchObject({ code: "NotFound", reason: "NOT_FOUND" });
    }
    expect(stateOf((await caller.as.bus.getTask({ taskId })).task)).toBe("WORKING");
    const { task } = await world.operator.bus.cancelTask({ orgId: org.orgId, taskId });
    expect(stateOf(task)).toBe("CANCELED");
    expect(task?.error?.metadata.canceled_by).toMatch(/^key_/);
    expect(stateOf(await blocked)).toBe("CANCELED");
  });

  test("between two attempts it ends the task at once, and no other attempt follows", async () => {
    const org = await world.org();
    await using agent = await httpAgent(failing("internal"));
    const contractId = await contract(org, { retries: 10, backoffMs: 60_000 });
    await worker(org, contractId, agent);
    const { taskId } = await submit(org.admin, contractId, { returnImmediately: true });
    const stepsOf = async (traceId: string) => kindsOf(await eventsOf(org.admin, traceId));
    const { task } = await org.admin.bus.getTask({ taskId });
    await eventually(async () => (await stepsOf(task!.traceId)).at(-1) === "ATTEMPT_FAILED");
    const calls = agent.calls.length;
    await org.admin.bus.cancelTask({ taskId });
    await eventually(() => world.server.app.metrics.openStreams() === 0);
    expect((await stepsOf(task!.traceId)).at(-1)).toBe("CANCELED");
    expect(agent.calls).toHaveLength(calls);
  });

  test("while it waits for its turn it ends, and no agent hears of it", async () => {
    const org = await world.org();
    await using agent = await httpAgent(silent);
    const contractId = await contract(org);
    await worker(org, contractId, agent);
    const made = await Promise.all(
      Array.from({ length: maxPerPlace + 1 }, () => submit(org.admin, contractId, { returnImmediately: true })),
    );
    await agent.call(maxPerPlace - 1);
    const taken = new Set(agent.calls.map(({ task }) => task.taskId));
    const waiting = made.find(({ taskId }) => !taken.has(taskId))!;
    const { task } = await org.admin.bus.cancelTask({ taskId: waiting.taskId });
    expect([stateOf(task), task?.attempts]).toEqual(["CANCELED", 0]);
    for (const call of agent.calls) call.answer({ output: 1 });
    for (const { taskId } of made) await whenEnded(org.admin, taskId);
    expect(agent.calls).toHaveLength(maxPerPlace);
  });

  test("a ring for no reason, as after a lost connection, lets no task go", async () => {
    await using agent = await httpAgent(silent);
    const { blocked, call, taskId } = await working(agent);
    await world.server.app.db.tx(async (tx) => tx.ring(`cancel:${taskId}`));
    await world.server.app.db.tx(async (tx) => tx.ring(`cancel:${taskId}`));
    call.answer({ output: 1 });
    expect(stateOf(await blocked)).toBe("COMPLETED");
  });

  test("a hundred tasks that are canceled as they complete each end once: one state, one last step, one event", async () => {
    const org = await world.org();
    await using stack = new AsyncDisposableStack();
    const contractId = await contract(org, { retries: 2 });
    const agents = await Promise.all(Array.from({ length: 7 }, () => httpAgent(silent)));
    for (const agent of agents) await worker(org, contractId, stack.use(agent));
    const tasks = await Promise.all(
      Array.from({ length: 100 }, () => submit(org.admin, contractId, { returnImmediately: true })),
    );
    const calls = await eventually(() => {
      const all = agents.flatMap((agent) => agent.calls);
      return all.length === tasks.length && all;
    });
    // Whichever comes first, by a shuffle that a failure prints.
    const [{ order }] = fc.sample(
      fc.record({ order: fc.shuffledSubarray([...tasks.keys()], { minLength: 100 }) }),
      1,
    ) as [{ order: number[] }];
    const byTask = new Map(calls.map((call) => [call.task.taskId, call]));
    const cancels = order.map(async (n) => {
      const { taskId } = tasks[n]!;
      byTask.get(taskId)!.answer({ output: 1 });
      return org.admin.bus.cancelTask({ taskId }).then(
        ({ task }) => stateOf(task),
        (error: unknown) => refusal(Promise.reject(error)).then(({ metadata }) => metadata.state),
      );
    });
    const told = await Promise.all(cancels);
    const ended = await Promise.all(order.map((n) => whenEnded(org.admin, tasks[n]!.taskId)));
    expect(ended.map(stateOf), String(order)).toEqual(told);
    const events = await outbox(org, org.admin);
    expect(new Set(events.map(({ payload }) => payload?.task_id)).size).toBe(100);
    expect(events).toHaveLength(100);
    for (const task of ended) {
      const kinds = kindsOf(await eventsOf(org.admin, task.traceId));
      expect(kinds.filter((kind) => terminalKinds.includes(kind))).toEqual([stateOf(task)]);
      expect(kinds.at(-1)).toBe(stateOf(task));
      const event = events.find(({ payload }) => payload?.task_id === task.taskId)!;
      expect([event.type, event.payload?.state]).toEqual([
        task.state === TaskState.COMPLETED ? "task.completed" : "task.failed",
        stateOf(task),
      ]);
    }
  });

  test("tasks that are canceled as they fall back have no step after their last", async () => {
    const org = await world.org();
    await using agent = await httpAgent(failing("unavailable", 503));
    const other = await contract(org);
    const contractId = await contract(org, { fallbacks: [{ contractId: other }] });
    await worker(org, contractId, agent);
    await worker(org, other, agent);
    const tasks = await Promise.all(
      Array.from({ length: 40 }, () => submit(org.admin, contractId, { returnImmediately: true })),
    );
    await Promise.allSettled(tasks.map(({ taskId }) => org.admin.bus.cancelTask({ taskId })));
    for (const { taskId, traceId } of tasks) {
      await whenEnded(org.admin, taskId);
      const steps = await eventsOf(org.admin, traceId);
      const last = steps.findIndex(({ kind }) => terminalKinds.includes(kindNames[kind]!));
      expect(kindsOf(steps.slice(last + 1))).toEqual([]);
    }
  });
});

const kindNames = Object.fromEntries(Object.entries(TraceEventKind).map(([name, number]) => [number, name]));
