import { connect as connectHttp2 } from "node:http2";
import { fileURLToPath } from "node:url";
import { timestampMs } from "@bufbuild/protobuf/wkt";
import fc from "fast-check";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { TaskState } from "../gen/moltwire/bus/v1/task_pb.ts";
import { TraceEventKind } from "../gen/moltwire/bus/v1/trace_pb.ts";
import { followUp, maxLostLeases, nothingTried, type Tried } from "../src/bus/retry.ts";
import { claimTasks } from "../src/bus/serve/claim.ts";
import { duePulled, hasWaiting, heldBy, lockWaiting } from "../src/bus/serve/pulled-store.ts";
import { orphanedTasks } from "../src/bus/task-store.ts";
import { type Queryable, type Sql, sql, type Tx } from "../src/db/db.ts";
import { deleteOldLeases } from "../src/lease.ts";

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
import { failing, httpAgent } from "./bus-fixtures/http-agent.ts";
import { failTask, heartbeat, pullEndpoint, puller, respond, serving } from "./bus-fixtures/instance.ts";
import { serverProcess } from "./bus-fixtures/process.ts";
import { storage } from "./bus-fixtures/storage.ts";
import {
  clientsAt,
  dialects,
  eventually,
  fakeClock,
  type Org,
  type OrgAgent,
  refusal,
  start,
  type World,
} from "./harness.ts";

const fixture = fileURLToPath(new URL("bus-fixtures/server.ts", import.meta.url));
const hourMs = 3_600_000;
const soon = { returnImmediately: true } as const;

/** An organisation with a contract and an agent that pulls its tasks. */
async function pulling(world: World, init: Parameters<typeof contract>[1] = {}) {
  const org = await world.org();
  const contractId = await contract(org, init);
  const agent = await puller(org, contractId);
  return { org, contractId, agent, go: (wish = {}) => submit(org.admin, contractId, { ...soon, ...wish }) };
}

/** The steps of a task from the acceptance on, but what policies say to each agent anew. */
async function story(org: Org, traceId: string): Promise<string[]> {
  const kinds = kindsOf(await eventsOf(org.admin, traceId));
  return kinds.slice(kinds.indexOf("ACCEPTED") + 1).filter((kind) => kind !== "POLICY_DECIDED");
}

/** Moves the clock step by step until something is so: the periodic work is awaited between its rounds. */
const passing = <T>(
  clock: { advance(ms: number): void },
  ms: number,
  look: () => Promise<T | undefined | false> | T | undefined | false,
) => {
  let left = ms;
  return eventually(async () => {
    // A round of the server's that was under way at the last step has set its timer after it: time goes on, slowly.
    const step = left > 0 ? Math.min(left, 1_000) : 20;
    left -= step;
    clock.advance(step);
    return look();
  });
};

describe.each(dialects)("an agent that pulls, on %s", (dialect) => {
  let world: World;
  beforeAll(async () => {
    world = await start(dialect);
  });
  afterAll(() => world[Symbol.asyncDispose]());

  test("nothing is handed to an agent that lost what the work asks for just as the task began to wait for it", async () => {
    const { org, agent, go } = await pulling(world, { requiredTools: ["web_search"] });
    const { db } = world.server.app;
    const allow = (tools: string[]) =>
      db.tx(
        (tx) =>
          tx.run(sql`update agent set allowed_tools = ${JSON.stringify(tools)} where agent_id = ${agent.agentId}`), // as an update that came too early to have the task looked at again
      );
    await allow(["web_search"]);
    const { taskId } = await go();
    await eventually(() => hasWaiting(db.query, { ...org, agentId: agent.agentId }, Date.now()));
    await allow([]);
    await using instance = serving(agent.as);
    const ended = await whenEnded(org.admin, taskId);
    expect([stateOf(ended), reasonOf(ended)]).toEqual(["FAILED", "NO_CAPABLE_AGENT"]);
    expect(instance.deliveries).toHaveLength(0);
  });

  test("a name has one stream also when old leases were deleted between the two", async () => {
    const { agent, go } = await pulling(world);
    const { app } = world.server;
    await using older = serving(agent.as, { instance: "one" });
    const taken = () =>
      app.db.query.one(sql`select 1 as found from lease where name like ${`serve:%:${agent.agentId}:one`}`);
    await eventually(taken);
    await app.db.tx((tx) => deleteOldLeases(tx, app.clock.now() + hourMs));
    await using newer = serving(agent.as, { instance: "one" });
    expect(await older.ended).toMatchObject({ rawMessage: expect.stringContaining("another stream") });
    await go();
    await newer.delivery(0);
    expect(older.deliveries).toHaveLength(0);
  });

  test("has its tasks delivered, answers them, and its caller has the answer", async () => {
    const { org, contractId, agent } = await pulling(world, { timeoutMs: 60_000 });
    const blocked = submit(org.admin, contractId, { input: { n: 1 } });
    await using one = serving(agent.as, { leaseMs: 20_000 });
    const delivery = await one.delivery(0);
    expect(delivery.task).toMatchObject({ attempt: 1, contractId, contractVersion: "1.0.0", capability: contractId });
    expect(json(delivery.task!.input)).toEqual({ n: 1 });
    expect(delivery.lease?.seconds).toBe(20n);
    const usage = { inputTokens: 3n, outputTokens: 5n, model: "m" };
    const { taskId } = delivery.task!;
    const outcome = { case: "output", value: { kind: { case: "numberValue", value: 2 } } } as const;
    const answered = await agent.as.bus.respondTask({ taskId, leaseToken: delivery.leaseToken, outcome, usage });
    expect(answered.state).toBe(TaskState.COMPLETED);
    const task = await blocked;
    expect([stateOf(task), json(task.output), task.attempts]).toEqual(["COMPLETED", 2, 1]);
    expect(task.usage).toMatchObject(usage);
    expect(task.targetAgentId).toBe(agent.agentId);
    expect(await story(org, task.traceId)).toEqual([
      "DISPATCHED",
      "DELIVERED",
      "ANSWERED",
      "OUTPUT_CHECKED",
      "COMPLETED",
    ]);
    expect(one.revoked).toEqual([]);
  });

  test("a task is SUBMITTED until it is delivered, WORKING then, and tasks come oldest first", async () => {
    const { org, agent, go } = await pulling(world);
    const made = [];
    for (let n = 0; n < 5; n++) made.push((await go()).taskId);
    const stateNow = async (taskId: string) => stateOf((await org.admin.bus.getTask({ taskId })).task);
    expect(await stateNow(made[0]!)).toBe("SUBMITTED");
    await using one = serving(agent.as);
    for (const [n, taskId] of made.entries()) {
      const delivery = await one.delivery(n);
      expect(delivery.task?.taskId).toBe(taskId);
      expect(await stateNow(taskId)).toBe("WORKING");
      expect(await stateNow(made.at(-1)!)).toBe(n === made.length - 1 ? "WORKING" : "SUBMITTED");
      await respond(agent.as, delivery);
    }
  });

  const total = process.env.FULL ? 1_000 : 200;
  test(`two instances share ${total} tasks with no more than their capacity each; none is lost and none done twice`, async () => {
    const { org, agent, go } = await pulling(world, { timeoutMs: 60_000 });
    const capacity = 20;
    const done = new Map<string, number>();
    const most: number[] = [];
    const count = () => {
      let has = 0;
      const n = most.push(0) - 1;
      return serving(agent.as, {
        capacity,
        onDelivery: (delivery) => {
          most[n] = Math.max(most[n]!, ++has);
          const { taskId } = delivery.task!;
          done.set(taskId, (done.get(taskId) ?? 0) + 1);
          setTimeout(() => {
            has--;
            void respond(agent.as, delivery, n).catch((error: unknown) => errors.push(error));
          }, Math.random() * 20);
        },
      });
    };
    const errors: unknown[] = [];
    const made: string[] = [];
    const submitHalf = () =>
      Promise.all(
        Array.from({ length: 20 }, async () => {
          for (let n = 0; n < total / 40; n++) made.push((await go()).taskId);
        }),
      );
    await submitHalf(); // so that there is more than the instances have room for
    await using one = count();
    await using two = count();
    await submitHalf();
    await eventually(
      async () =>
        (await org.admin.bus.listTasks({ state: TaskState.WORKING })).tasks.length === 0 && done.size === total,
      100_000,
    );
    expect(errors).toEqual([]);
    expect([...done.values()].filter((times) => times !== 1)).toEqual([]);
    expect([...done.keys()].toSorted()).toEqual(made.toSorted());
    expect(Math.max(...most)).toBeLessThanOrEqual(capacity);
    expect(Math.min(one.deliveries.length, two.deliveries.length)).toBeGreaterThan(total / 10);
    const states = new Set<string>();
    for (let pageToken = ""; ; ) {
      const page = await org.admin.bus.listTasks({ pageSize: 250, pageToken });
      for (const task of page.tasks) states.add(`${stateOf(task)} ${task.attempts}`);
      pageToken = page.nextPageToken;
      if (!pageToken) break;
    }
    expect([...states]).toEqual(["COMPLETED 1"]);
  });

  test("an instance has as many tasks as its capacity and not one more, however many wait", async () => {
    const { org, agent, go } = await pulling(world, { timeoutMs: 60_000 });
    const made = await Promise.all(Array.from({ length: 50 }, () => go()));
    for (const { traceId } of made) await eventually(async () => (await story(org, traceId)).includes("DISPATCHED"));
    await using one = serving(agent.as, { capacity: 20 });
    await one.delivery(19);
    await go(); // which rings for it
    await using two = serving(agent.as, { capacity: 3 });
    await respond(agent.as, await two.delivery(0));
    await two.delivery(3);
    await respond(agent.as, one.deliveries[0]!);
    await one.delivery(20);
    await two.leave();
    expect([one.deliveries.length, two.deliveries.length]).toEqual([21, 4]);
  });

  test("instances that claim in the same moment get different tasks", async () => {
    const { org, agent, go } = await pulling(world, { timeoutMs: 60_000 });
    const made = await Promise.all(Array.from({ length: 80 }, () => go()));
    for (const { traceId } of made) await eventually(async () => (await story(org, traceId)).includes("DISPATCHED"));
    const instance = { orgId: org.orgId, agentId: agent.agentId, capacity: 16, leaseMs: 60_000 };
    const claimed: string[] = [];
    for (let round = 0; round < 4; round++) {
      const claims = Array.from({ length: 5 }, (_, n) =>
        claimTasks(world.server.app, { ...instance, name: `${round} ${n}` }, async () => {}),
      );
      for (const some of await Promise.all(claims)) claimed.push(...some.map(({ row }) => row.task_id));
    }
    expect(claimed.toSorted()).toEqual(made.map(({ taskId }) => taskId).toSorted());
  });

  test("an output that breaks the contract is refused as CONTRACT_VIOLATION and ends the attempt as unusable", async () => {
    const { org, agent, go } = await pulling(world, { outputSchema: { type: "string" }, retries: 1, repeatable: true });
    await using one = serving(agent.as);
    const { taskId, traceId } = await go();
    const first = await one.delivery(0);
    expect(await refusal(respond(agent.as, first, 7))).toMatchObject({
      code: "InvalidArgument",
      reason: "CONTRACT_VIOLATION",
      metadata: { direction: "output", field: "output" },
    });
    expect(await refusal(respond(agent.as, first, "late"))).toMatchObject({
      code: "FailedPrecondition",
      reason: "LEASE_LOST",
    });
    const second = await one.delivery(1);
    expect(second.task).toMatchObject({ taskId, attempt: 2 });
    expect(await refusal(respond(agent.as, second, "x".repeat(1_048_577)))).toMatchObject({
      reason: "PAYLOAD_TOO_LARGE",
    });
    const task = await whenEnded(org.admin, taskId);
    expect([stateOf(task), reasonOf(task), task.error?.metadata.attempts]).toEqual([
      "FAILED",
      "AGENT_BAD_RESPONSE",
      "2",
    ]);
    const failed = (await eventsOf(org.admin, traceId)).filter(({ details }) => details?.aftermath);
    expect(failed.map(({ details }) => [details!.reason, details!.aftermath, details!.next])).toEqual([
      ["CONTRACT_VIOLATION", "unusable", "retry"],
      ["AGENT_BAD_RESPONSE", "unusable", "fail"],
    ]);
    expect(one.revoked).toEqual([]);
  });

  test("an unusable output of a contract that is not repeatable ends the task", async () => {
    const { org, agent, go } = await pulling(world, { outputSchema: { type: "string" }, retries: 3 });
    await using one = serving(agent.as);
    const { taskId } = await go();
    await refusal(respond(agent.as, await one.delivery(0), 7));
    const task = await whenEnded(org.admin, taskId);
    expect([stateOf(task), reasonOf(task), task.attempts]).toEqual(["FAILED", "CONTRACT_VIOLATION", 1]);
  });

  test("a failure is retried as often as the contract says, unless the agent says that it does not help", async () => {
    const { org, agent, go } = await pulling(world, { retries: 2 });
    await using one = serving(agent.as);
    const { taskId, traceId } = await go();
    for (let n = 0; n < 3; n++) {
      const delivery = await one.delivery(n);
      expect(delivery.task?.attempt).toBe(n + 1);
      expect((await failTask(agent.as, delivery)).state).toBe(n < 2 ? TaskState.WORKING : TaskState.FAILED);
    }
    const task = await whenEnded(org.admin, taskId);
    expect([stateOf(task), reasonOf(task), task.attempts]).toEqual(["FAILED", "ADAPTER_ERROR", 3]);
    const again = ["DISPATCHED", "DELIVERED", "ATTEMPT_FAILED"];
    expect(await story(org, traceId)).toEqual([...again, ...again, ...again, "FAILED"]);
    const hopeless = await go();
    expect((await failTask(agent.as, await one.delivery(3), false)).state).toBe(TaskState.FAILED);
    expect((await whenEnded(org.admin, hopeless.taskId)).attempts).toBe(1);
    expect(one.revoked).toEqual([]);
  });

  test("fallbacks follow: from one that pulls to one that is called, and the other way round", async () => {
    const org = await world.org();
    await using http = await httpAgent();
    await using broken = await httpAgent(failing("internal"));
    const called = await contract(org, {});
    await worker(org, called, http);
    const pulled = await contract(org, { fallbacks: [{ contractId: called }] });
    const agent = await puller(org, pulled);
    const first = await contract(org, { fallbacks: [{ contractId: pulled }, { contractId: called }] });
    await worker(org, first, broken);
    await using one = serving(agent.as);
    const there = await submit(org.admin, pulled, soon);
    await failTask(agent.as, await one.delivery(0));
    const done = await whenEnded(org.admin, there.taskId);
    expect([stateOf(done), done.attempts, http.calls.length]).toEqual(["COMPLETED", 2, 1]);
    const through = await submit(org.admin, first, soon);
    const delivery = await one.delivery(1);
    expect(delivery.task).toMatchObject({ attempt: 2, contractId: pulled });
    await failTask(agent.as, delivery, false);
    const last = await whenEnded(org.admin, through.taskId);
    expect([stateOf(last), last.attempts, http.calls.length]).toEqual(["COMPLETED", 3, 2]);
    expect(await story(org, through.traceId)).toEqual([
      ...["DISPATCHED", "ATTEMPT_FAILED", "FALLBACK"],
      ...["DISPATCHED", "DELIVERED", "ATTEMPT_FAILED", "FALLBACK"],
      ...["DISPATCHED", "ANSWERED", "OUTPUT_CHECKED", "COMPLETED"],
    ]);
  });

  test("the second answer to a delivery is LEASE_LOST, but with the same idempotency key it is the first one's", async () => {
    const { agent, go } = await pulling(world);
    await using one = serving(agent.as);
    await go();
    const delivery = await one.delivery(0);
    const { taskId } = delivery.task!;
    const answer = {
      taskId,
      leaseToken: delivery.leaseToken,
      outcome: { case: "output", value: { kind: { case: "boolValue", value: true } } },
    } as const;
    const options = { headers: { "idempotency-key": "k1" } };
    expect((await agent.as.bus.respondTask(answer, options)).state).toBe(TaskState.COMPLETED);
    expect((await agent.as.bus.respondTask(answer, options)).state).toBe(TaskState.COMPLETED);
    expect(await refusal(agent.as.bus.respondTask(answer))).toMatchObject({
      code: "FailedPrecondition",
      reason: "LEASE_LOST",
    });
    expect(await refusal(heartbeat(agent.as, delivery))).toMatchObject({ reason: "LEASE_LOST" });
  });

  test("of many answers to one delivery that race with a cancel, one thing happens", async () => {
    const { org, agent, go } = await pulling(world);
    await using one = serving(agent.as, { capacity: 20 });
    for (let n = 0; n < 20; n++) {
      const { taskId, traceId } = await go();
      const delivery = await one.delivery(n);
      const calls = [
        ...Array.from({ length: 4 }, (_, nth) => respond(agent.as, delivery, nth)),
        org.admin.bus.cancelTask({ taskId }),
        failTask(agent.as, delivery),
      ];
      const results = await Promise.allSettled(calls);
      expect(results.filter(({ status }) => status === "fulfilled")).toHaveLength(1);
      const ends = kindsOf(await eventsOf(org.admin, traceId)).filter((kind) => terminalKinds.includes(kind));
      expect(ends).toEqual([stateOf(await whenEnded(org.admin, taskId))]);
    }
  });

  test("what a heartbeat tells of progress reaches those who watch the task", async () => {
    const { org, agent, go } = await pulling(world);
    const { taskId } = await go();
    await using one = serving(agent.as);
    const delivery = await one.delivery(0);
    const progress = { fraction: 0.5, message: "half of it" };
    await agent.as.bus.heartbeatTask({ taskId, leaseToken: delivery.leaseToken, progress });
    await respond(agent.as, delivery);
    const told = [];
    for await (const { event } of org.admin.bus.watchTask({ taskId }))
      if (event.case === "progress") told.push({ fraction: event.value.fraction, message: event.value.message });
    expect(told).toEqual([progress]);
  });

  test("a cancel is told on the stream and to the heartbeat, and frees the place", async () => {
    const { org, agent, go } = await pulling(world);
    await using one = serving(agent.as);
    const { taskId } = await go();
    const delivery = await one.delivery(0);
    const next = await go();
    expect((await heartbeat(agent.as, delivery)).cancelRequested).toBe(false);
    await org.admin.bus.cancelTask({ taskId });
    await eventually(() => one.revoked.length === 1);
    expect(one.revoked).toEqual([taskId]);
    expect((await heartbeat(agent.as, delivery)).cancelRequested).toBe(true);
    expect(await refusal(respond(agent.as, delivery))).toMatchObject({ reason: "LEASE_LOST" });
    expect((await one.delivery(1)).task?.taskId).toBe(next.taskId);
    expect(stateOf(await whenEnded(org.admin, taskId))).toBe("CANCELED");
  });

  test("a task that is canceled while it waits is never delivered", async () => {
    const { org, agent, go } = await pulling(world);
    const { taskId } = await go();
    await eventually(async () =>
      (await story(org, (await org.admin.bus.getTask({ taskId })).task!.traceId)).includes("DISPATCHED"),
    );
    await org.admin.bus.cancelTask({ taskId });
    const next = await go();
    await using one = serving(agent.as);
    expect((await one.delivery(0)).task?.taskId).toBe(next.taskId);
  });

  test("only the agent itself or an administrator who names it serves, and only one that pulls", async () => {
    const { org, contractId, agent, go } = await pulling(world);
    const other = await puller(org, contractId);
    const caller = await org.agent();
    const stranger = await (await world.org()).agent({ endpoint: pullEndpoint });
    const open = async (by: OrgAgent["as"], agentId = "") =>
      serving(by, { agentId }).ended.then((error) => refusal(Promise.reject(error)));
    expect(await open(other.as, agent.agentId)).toMatchObject({ code: "NotFound", reason: "NOT_FOUND" });
    expect(await open(stranger.as, agent.agentId)).toMatchObject({ code: "NotFound", reason: "NOT_FOUND" });
    expect(await open(caller.as)).toMatchObject({ reason: "FAILED_PRECONDITION" });
    expect(await open(org.admin)).toMatchObject({ reason: "INVALID_REQUEST", metadata: { field: "agent_id" } });
    await using named = serving(org.admin, { agentId: agent.agentId });
    await submit(org.admin, contractId, { ...soon, targetAgentId: agent.agentId });
    const delivery = await named.delivery(0);
    for (const by of [other.as, stranger.as, caller.as])
      expect(await refusal(respond(by, delivery))).toMatchObject({ reason: "LEASE_LOST" });
    const forged = {
      ...delivery,
      leaseToken: `${delivery.leaseToken.slice(0, -1)}${delivery.leaseToken.endsWith("A") ? "B" : "A"}`,
    };
    expect(await refusal(respond(agent.as, forged as typeof delivery))).toMatchObject({ reason: "LEASE_LOST" });
    expect((await respond(org.admin, delivery)).state).toBe(TaskState.COMPLETED);
    await go();
  });

  test("a key that ends ends the stream", async () => {
    const { org, agent } = await pulling(world);
    await using one = serving(agent.as);
    await using two = serving(org.admin, { agentId: agent.agentId });
    const { apiKeys } = await org.admin.keys.listApiKeys({ agentId: agent.agentId });
    await org.admin.keys.revokeApiKey({ keyId: apiKeys[0]!.keyId });
    expect(await refusal(Promise.reject(await one.ended))).toMatchObject({ reason: "KEY_REVOKED" });
    await org.admin.agents.deleteAgent({ agentId: agent.agentId });
    await two.leave();
  });

  test("an agent that is disabled gets nothing more, and what waits for it goes to another", async () => {
    const { org, contractId, agent, go } = await pulling(world);
    await using one = serving(agent.as);
    await go();
    const delivery = await one.delivery(0);
    const waiting = await go();
    await eventually(async () => (await story(org, waiting.traceId)).includes("DISPATCHED"));
    await using http = await httpAgent();
    await worker(org, contractId, http);
    await org.admin.agents.updateAgent({
      agentId: agent.agentId,
      change: { disabled: true },
      updateMask: { paths: ["disabled"] },
    });
    expect(stateOf(await whenEnded(org.admin, waiting.taskId))).toBe("COMPLETED");
    expect(http.calls).toHaveLength(1);
    expect((await respond(agent.as, delivery)).state).toBe(TaskState.COMPLETED);
    expect(one.deliveries).toHaveLength(1);
  });

  test("what was claimed for a stream and did not leave the server waits again at once when the stream ends", async () => {
    const { org, agent, go } = await pulling(world, { timeoutMs: 60_000 });
    const total = 10;
    const made = [];
    for (let n = 0; n < total; n++) made.push(await go({ input: "x".repeat(400_000) }));
    for (const { traceId } of made) await eventually(async () => (await story(org, traceId)).includes("DISPATCHED"));
    const session = connectHttp2(world.url);
    const request = session.request({
      ":method": "POST",
      ":path": "/moltwire.bus.v1.BusService/Serve",
      "content-type": "application/connect+json",
      authorization: `Bearer ${agent.key}`,
    });
    request.on("error", () => {});
    session.on("error", () => {});
    const body = Buffer.from(`{"capacity":${total},"lease":"3600s"}`);
    request.end(Buffer.concat([Buffer.from([0, 0, 0, 0, body.length]), body])); // and reads nothing
    const delivered = async () => (await org.admin.bus.listTasks({ state: TaskState.WORKING })).tasks.length;
    await eventually(async () => (await delivered()) === total);
    session.destroy();
    await using other = serving(agent.as, { capacity: total });
    const last = await eventually(() => other.deliveries.length >= total / 2 && other.deliveries[0]);
    expect(last.task).toMatchObject({ attempt: 2 });
    const { taskId, traceId } = made.find((task) => task.taskId === last.task!.taskId)!;
    await respond(agent.as, last);
    expect((await whenEnded(org.admin, taskId)).attempts).toBe(2);
    expect(await story(org, traceId)).toEqual([
      "DISPATCHED",
      "DELIVERED",
      "ATTEMPT_FAILED",
      "DELIVERED",
      "ANSWERED",
      "OUTPUT_CHECKED",
      "COMPLETED",
    ]);
  });

  test("an instance that opens its stream anew has its tasks still, within its capacity, and the older stream ends", async () => {
    const { org, agent, go } = await pulling(world);
    await go();
    await go();
    await using before = serving(agent.as, { instance: "a" });
    const delivery = await before.delivery(0);
    await using after = serving(agent.as, { instance: "a" });
    expect(await refusal(Promise.reject(await before.ended))).toMatchObject({ reason: "LEASE_LOST" });
    await using probe = serving(agent.as, { instance: "b" });
    const other = await probe.delivery(0);
    expect(after.deliveries).toEqual([]); // it has one already
    await org.admin.bus.cancelTask({ taskId: delivery.task!.taskId });
    await eventually(() => after.revoked.length === 1);
    const third = await go();
    expect((await after.delivery(0)).task?.taskId).toBe(third.taskId);
    await respond(agent.as, other);
  });
});

describe.each(dialects)("leases by a clock that is moved, on %s", (dialect) => {
  const clockedWorld = async () => {
    const clock = fakeClock();
    return { clock, world: await start(dialect, { clock }) };
  };

  test("a lease that runs out takes the task to another instance as a new attempt, and the old holder's answer changes nothing", async () => {
    const { clock, world } = await clockedWorld();
    await using _ = world;
    const { org, agent, go } = await pulling(world, { repeatable: true, timeoutMs: hourMs });
    await using one = serving(agent.as, { leaseMs: 10_000 });
    const { taskId, traceId } = await go();
    const stale = await one.delivery(0);
    await using two = serving(agent.as, { leaseMs: 10_000 });
    await passing(clock, 11_000, () => two.deliveries.length + one.deliveries.length === 2);
    const fresh = one.deliveries[1] ?? two.deliveries[0]!;
    expect(fresh.task).toMatchObject({ taskId, attempt: 2 });
    await eventually(() => one.revoked.length === 1);
    expect(one.revoked).toEqual([taskId]);
    const calls = [
      () => respond(agent.as, stale, "stale"),
      () => failTask(agent.as, stale),
      () => heartbeat(agent.as, stale),
    ];
    for (const call of calls)
      expect(await refusal(call())).toMatchObject({ code: "FailedPrecondition", reason: "LEASE_LOST" });
    await respond(agent.as, fresh, "fresh");
    const task = await whenEnded(org.admin, taskId);
    expect([json(task.output), task.attempts]).toEqual(["fresh", 2]);
    expect(await story(org, traceId)).toEqual([
      ...["DISPATCHED", "DELIVERED", "ATTEMPT_FAILED"],
      ...["DISPATCHED", "DELIVERED", "ANSWERED", "OUTPUT_CHECKED", "COMPLETED"],
    ]);
  });

  test("a lease that runs out under a contract that is not repeatable ends the task as OUTCOME_UNKNOWN", async () => {
    const { clock, world } = await clockedWorld();
    await using _ = world;
    const { org, agent, go } = await pulling(world, { timeoutMs: hourMs, retries: 3 });
    await using one = serving(agent.as, { leaseMs: 10_000 });
    const { taskId } = await go();
    const delivery = await one.delivery(0);
    await passing(clock, 11_000, () => one.revoked.length === 1);
    const task = await whenEnded(org.admin, taskId);
    expect([stateOf(task), reasonOf(task), task.attempts]).toEqual(["FAILED", "OUTCOME_UNKNOWN", 1]);
    expect(task.error?.metadata).toMatchObject({ cause: "AGENT_UNREACHABLE", agent_id: agent.agentId });
    expect(await refusal(respond(agent.as, delivery))).toMatchObject({ reason: "LEASE_LOST" });
  });

  test("a task that outlives every instance comes to an end", async () => {
    const { clock, world } = await clockedWorld();
    await using _ = world;
    const { org, agent, go } = await pulling(world, { repeatable: true, timeoutMs: hourMs });
    await using one = serving(agent.as, { leaseMs: 1_000 });
    const { taskId } = await go();
    await passing(clock, 60_000, async () => stateOf((await org.admin.bus.getTask({ taskId })).task) === "FAILED");
    const task = await whenEnded(org.admin, taskId);
    expect([reasonOf(task), task.attempts]).toEqual(["AGENT_UNREACHABLE", maxLostLeases + 1]);
    expect(one.revoked).toHaveLength(maxLostLeases + 1);
  });

  test("heartbeats keep a task beyond its first lease, never shorten it, and never pass the contract's timeout", async () => {
    const { clock, world } = await clockedWorld();
    await using _ = world;
    const { org, agent, go } = await pulling(world, { timeoutMs: 60_000 });
    await using one = serving(agent.as, { leaseMs: 25_000 });
    const { taskId } = await go();
    const delivery = await one.delivery(0);
    const beganMs = clock.now();
    const untilMs = async () => timestampMs((await heartbeat(agent.as, delivery)).leaseExpireTime!) - beganMs;
    expect(timestampMs(delivery.leaseExpireTime!) - beganMs).toBe(25_000);
    clock.advance(20_000);
    expect(await untilMs()).toBe(45_000);
    clock.advance(-10_000); // another replica's clock
    expect(await untilMs()).toBe(45_000);
    clock.advance(30_000);
    expect(await untilMs()).toBe(60_000);
    clock.advance(15_000);
    expect(await untilMs()).toBe(60_000);
    await passing(clock, 6_000, () => one.revoked.length === 1);
    const task = await whenEnded(org.admin, taskId);
    expect([reasonOf(task), task.error?.metadata.cause]).toEqual(["OUTCOME_UNKNOWN", "AGENT_TIMEOUT"]);
    expect(await refusal(heartbeat(agent.as, delivery))).toMatchObject({ reason: "LEASE_LOST" });
  });

  test("an answer after the lease ran out is taken as long as nobody else has the task, and not after its time", async () => {
    const { clock, world } = await clockedWorld();
    await using _ = world;
    const { agent, go } = await pulling(world, { timeoutMs: 60_000 });
    const { app } = world.server;
    await using one = serving(agent.as, { leaseMs: 10_000, capacity: 2 });
    await go();
    await go();
    const [late, tooLate] = [await one.delivery(0), await one.delivery(1)];
    // The sweep is kept from coming first.
    const sweepless = async (ms: number) => {
      const { after } = app.clock;
      clock.advance(0);
      await app.db.tx(
        async (tx) => void (await tx.run(sql`update pulled_task set due_ms = ${app.clock.now() + 10 * hourMs}`)),
      );
      clock.advance(ms);
      return after;
    };
    await sweepless(30_000);
    expect((await respond(agent.as, late)).state).toBe(TaskState.COMPLETED);
    await sweepless(30_000);
    expect(await refusal(respond(agent.as, tooLate))).toMatchObject({ reason: "LEASE_LOST" });
  });

  test("a task that nobody fetches waits a day and fails as AGENT_UNREACHABLE, never begun; with a fallback that takes over", async () => {
    const { clock, world } = await clockedWorld();
    await using _ = world;
    await using http = await httpAgent();
    const { org, contractId, go } = await pulling(world);
    const called = await contract(org);
    await worker(org, called, http);
    const second = await contract(org, { capability: contractId, fallbacks: [{ contractId: called }] });
    const [alone, falling] = [await go(), await submit(org.admin, second, soon)];
    for (const { traceId } of [alone, falling])
      await eventually(async () => (await story(org, traceId)).includes("DISPATCHED"));
    clock.advance(23 * hourMs);
    await passing(
      clock,
      5_000,
      async () => stateOf((await org.admin.bus.getTask({ taskId: alone.taskId })).task) === "SUBMITTED",
    );
    clock.advance(hourMs);
    await passing(
      clock,
      5_000,
      async () => stateOf((await org.admin.bus.getTask({ taskId: alone.taskId })).task) === "FAILED",
    );
    const task = await whenEnded(org.admin, alone.taskId);
    expect([reasonOf(task), task.attempts]).toEqual(["AGENT_UNREACHABLE", 0]);
    expect(await story(org, alone.traceId)).toEqual(["DISPATCHED", "FAILED"]);
    expect(stateOf(await whenEnded(org.admin, falling.taskId))).toBe("COMPLETED");
    expect(await story(org, falling.traceId)).toEqual([
      "DISPATCHED",
      "FALLBACK",
      "DISPATCHED",
      "ANSWERED",
      "OUTPUT_CHECKED",
      "COMPLETED",
    ]);
  });

  test("a task that an agent did not fetch in its day goes to the one that came meanwhile, and not to the same again", async () => {
    const { clock, world } = await clockedWorld();
    await using _ = world;
    const { org, contractId, agent } = await pulling(world);
    const other = await puller(org, contractId);
    const third = await puller(org, contractId);
    const { taskId, traceId } = await submit(org.admin, contractId, soon);
    const waitsFor = async () => {
      const steps = await eventsOf(org.admin, traceId);
      return steps.filter(({ kind }) => kind === TraceEventKind.DISPATCHED).map(({ targetAgentId }) => targetAgentId);
    };
    await eventually(async () => (await waitsFor()).length === 1);
    expect(await waitsFor()).toEqual([agent.agentId]);
    clock.advance(24 * hourMs - 10_000);
    await using one = serving(third.as, { leaseMs: hourMs, capacity: 100 });
    // Until it is there.
    await eventually(async () => {
      await submit(org.admin, contractId, soon);
      return one.deliveries.length > 0;
    });
    await passing(clock, 12_000, async () => (await waitsFor()).length === 2);
    expect(await waitsFor()).toEqual([agent.agentId, third.agentId]);
    const delivery = await eventually(() => {
      clock.advance(20);
      return one.deliveries.find(({ task }) => task!.taskId === taskId);
    });
    await respond(third.as, delivery);
    expect(stateOf(await whenEnded(org.admin, taskId))).toBe("COMPLETED");
    expect(other.agentId).not.toBe(third.agentId);
  });

  test("a deadline ends a task that waits, and one that is delivered", async () => {
    const { clock, world } = await clockedWorld();
    await using _ = world;
    const { org, contractId, agent } = await pulling(world, { repeatable: true, timeoutMs: hourMs, retries: 3 });
    const deadline = async () => {
      const blocked = submit(org.admin, contractId, {}, { timeoutMs: 100_000 });
      blocked.catch(() => {});
      return blocked;
    };
    const waiting = deadline();
    await eventually(async () => (await org.admin.bus.listTasks({})).tasks.length === 1);
    clock.advance(99_000);
    await passing(
      clock,
      3_000,
      async () => (await org.admin.bus.listTasks({ state: TaskState.FAILED })).tasks.length === 1,
    );
    expect([reasonOf(await waiting), (await waiting).attempts]).toEqual(["DEADLINE_EXCEEDED", 0]);
    await using one = serving(agent.as, { leaseMs: 200_000 });
    const held = deadline();
    const { task, leaseExpireTime } = await one.delivery(0);
    expect(leaseExpireTime).toEqual(task!.deadlineTime);
    clock.advance(99_000);
    await passing(clock, 3_000, () => one.revoked.length === 1);
    expect([reasonOf(await held), (await held).attempts]).toEqual(["DEADLINE_EXCEEDED", 1]);
  });
});

describe.each(dialects)("across a restart, on %s", (dialect) => {
  test("an agent keeps its lease over a restart of the server and answers after it; recovery leaves pulled tasks alone", async () => {
    await using place = await storage(dialect);
    const before = await start(dialect, place.options);
    const { org, agent, go } = await pulling(before, { timeoutMs: 60_000 });
    const stream = serving(agent.as, { instance: "a", capacity: 1 });
    const made = [await go(), await go()];
    const delivery = await stream.delivery(0);
    await before[Symbol.asyncDispose]();
    expect(await refusal(Promise.reject(await stream.ended))).toMatchObject({
      code: "Unavailable",
      reason: "SHUTTING_DOWN",
    });
    await using after = await start(dialect, place.options);
    const by = after.as(agent.key);
    await using again = serving(by, { instance: "a", capacity: 1 });
    expect((await heartbeat(by, delivery)).cancelRequested).toBe(false);
    expect(again.deliveries).toEqual([]);
    await respond(by, delivery, 1);
    await respond(by, await again.delivery(0), 2);
    const admin = after.as(org.adminKey);
    for (const { taskId, traceId } of made) {
      const task = await whenEnded(admin, taskId);
      expect([stateOf(task), task.attempts]).toEqual(["COMPLETED", 1]);
      expect(kindsOf(await eventsOf(admin, traceId))).not.toContain("RECOVERED");
    }
  });

  test("kill -9 of the server between delivery and answer costs nothing", async () => {
    await using place = await storage(dialect);
    let held: { agentKey: string; adminKey: string; taskId: string };
    let delivery: Awaited<ReturnType<ReturnType<typeof serving>["delivery"]>>;
    {
      await using setup = await start(dialect, place.options);
      const { org, contractId, agent } = await pulling(setup, { timeoutMs: 60_000 });
      held = { agentKey: agent.key, adminKey: org.adminKey, taskId: contractId };
    }
    {
      await using victim = await serverProcess(fixture, [JSON.stringify(place.options)]);
      const by = clientsAt(victim.url, held.agentKey);
      const { taskId } = await submit(clientsAt(victim.url, held.adminKey), held.taskId, soon);
      held = { ...held, taskId };
      await using stream = serving(by);
      delivery = await stream.delivery(0);
      await victim.kill();
    }
    await using revived = await serverProcess(fixture, [JSON.stringify(place.options)]);
    const by = clientsAt(revived.url, held.agentKey);
    expect((await respond(by, delivery, "after")).state).toBe(TaskState.COMPLETED);
    const task = await whenEnded(clientsAt(revived.url, held.adminKey), held.taskId);
    expect([json(task.output), task.attempts]).toEqual(["after", 1]);
  });

  test("an instance that vanishes in the middle of a task leaves it to another after its lease", async () => {
    await using world = await start(dialect);
    const { org, agent, go } = await pulling(world, { repeatable: true, timeoutMs: 60_000 });
    const { taskId } = await go();
    const gone = serving(agent.as, { leaseMs: 1_000 });
    await gone.delivery(0);
    await gone.leave();
    await using other = serving(agent.as);
    const delivery = await other.delivery(0);
    expect(delivery.task).toMatchObject({ taskId, attempt: 2 });
    await respond(agent.as, delivery);
    expect((await whenEnded(org.admin, taskId)).attempts).toBe(2);
  });
});

describe.runIf(dialects.includes("postgres"))("two servers on one PostgreSQL database", () => {
  test("a task accepted by one is served by the other and answered through either; a cancel through one is told by the other", async () => {
    await using place = await storage("postgres");
    await using one = await start("postgres", place.options);
    await using two = await start("postgres", place.options);
    const { org, agent, go } = await pulling(one, { timeoutMs: 60_000 });
    const onTwo = two.as(agent.key);
    await using stream = serving(onTwo, { capacity: 2 });
    const blocked = submit(org.admin, (await org.admin.contracts.listContracts({})).contracts[0]!.contractId);
    await respond(agent.as, await stream.delivery(0), "through one");
    expect(json((await blocked).output)).toBe("through one");
    const { taskId } = await go();
    await stream.delivery(1);
    await org.admin.bus.cancelTask({ taskId });
    await eventually(() => stream.revoked.length === 1);
    expect(stream.revoked).toEqual([taskId]);
  });

  test("instances at both share 200 tasks, none twice, though their servers sweep and claim at once", async () => {
    await using place = await storage("postgres");
    await using one = await start("postgres", place.options);
    await using two = await start("postgres", place.options);
    const { org, agent, go } = await pulling(one, { timeoutMs: 60_000 });
    const times = new Map<string, number>();
    const errors: unknown[] = [];
    await Promise.all(
      Array.from({ length: 10 }, async () => {
        for (let n = 0; n < 20; n++) await go();
      }),
    );
    const streams = [one.as(agent.key), two.as(agent.key), two.as(agent.key)].map((by) =>
      serving(by, {
        capacity: 8,
        onDelivery: (delivery) => {
          times.set(delivery.task!.taskId, (times.get(delivery.task!.taskId) ?? 0) + 1);
          void respond(by, delivery).catch((error: unknown) => errors.push(error));
        },
      }),
    );
    await eventually(
      async () =>
        times.size === 200 && (await org.admin.bus.listTasks({ state: TaskState.WORKING })).tasks.length === 0,
      100_000,
    );
    for (const stream of streams) await stream.leave();
    expect(errors).toEqual([]);
    expect([...times.values()].every((count) => count === 1)).toBe(true);
    expect((await org.admin.bus.listTasks({ state: TaskState.COMPLETED, pageSize: 250 })).tasks).toHaveLength(200);
  });
});

describe.each(dialects)("what waits to be pulled, on %s", (dialect) => {
  test("is in the table and not in the dispatcher: a stop waits for none of it", async () => {
    await using place = await storage(dialect);
    const world = await start(dialect, { ...place.options, drainMs: 3_600_000 });
    const { org, go } = await pulling(world);
    const made = await Promise.all(Array.from({ length: 50 }, () => go()));
    for (const { traceId } of made) await eventually(async () => (await story(org, traceId)).includes("DISPATCHED"));
    await world[Symbol.asyncDispose]();
  });

  test("is claimed, looked for and swept along an index, and not along 20,000 waiting tasks", async () => {
    const waiting = 20_000;
    await using world = await start(dialect);
    const { org, agent, go } = await pulling(world);
    const { db } = world.server.app;
    const { taskId, traceId } = await go();
    await eventually(async () => (await story(org, traceId)).includes("DISPATCHED"));
    const names = ({ all }: Queryable, table: string) =>
      all<{ name: string }>(
        dialect === "sqlite"
          ? sql`select name from pragma_table_info(${table})`
          : sql`select column_name as name from information_schema.columns where table_name = ${table} and table_schema = 'public' order by ordinal_position`,
      );
    const id = dialect === "sqlite" ? "printf('tsk_x%032d', n)" : "'tsk_x' || lpad(n::text, 32, '0')";
    for (const table of ["task", "pulled_task"]) {
      const columns = (await names(db.query, table)).map(({ name }) => name);
      const values = columns.map((name) => (name === "task_id" ? id : name)).join(", ");
      await db.tx((tx) =>
        tx.script(`
          insert into ${table} (${columns.join(", ")}) with recursive counted (n) as (select 1 union all select n + 1 from counted where n < ${waiting})
          select ${values} from ${table}, counted where task_id = '${taskId}'`),
      );
      if (dialect === "postgres") await db.tx((tx) => tx.script(`analyze ${table}`));
    }
    const of = { orgId: org.orgId, agentId: agent.agentId, name: "a" };
    const now = Date.now();
    const reads: ((db: Queryable) => Promise<unknown>)[] = [
      (on) => lockWaiting(on as Tx, of, now, 16),
      (on) => hasWaiting(on, of, now),
      (on) => heldBy(on, of),
      (on) => duePulled(on, now, 100),
      (on) => duePulled(on, now, 100, of),
      (on) => orphanedTasks(on, now, 100),
    ];
    for (const read of reads)
      expect(await planOf(db.query, read)).toMatch(/pulled_task_instance|pulled_task_due|task_open/);
    await using one = serving(agent.as, { capacity: 16 });
    expect((await one.delivery(0)).task?.taskId).toBe(taskId);
  });
});

/** What the engine does for a query; fails when it looks at a whole table. */
async function planOf(db: Queryable, read: (db: Queryable) => Promise<unknown>): Promise<string> {
  const asked: Sql[] = [];
  const note = async (query: Sql) => {
    asked.push(query);
    return [];
  };
  await read({ dialect: db.dialect, all: note, one: async (query) => void (await note(query)) } as Queryable);
  const sqlite = db.dialect.name === "sqlite";
  const plan = await db.all<Record<string, string>>(
    sqlite ? sql`explain query plan ${asked[0]!}` : sql`explain ${asked[0]!}`,
  );
  const lines = plan.map((line) => (sqlite ? line.detail : line["QUERY PLAN"])!);
  expect(
    lines.filter((line) => /^SCAN (?!lease|task USING INDEX task_open)|Seq Scan on (?!lease)|TEMP B-TREE/.test(line)),
  ).toEqual([]);
  return lines.join("\n");
}

const failures = fc.record({
  aftermath: fc.constantFrom("not-begun" as const, "failed" as const, "unusable" as const, "lost" as const),
  late: fc.boolean(),
  leaseLost: fc.boolean(),
  hopeless: fc.boolean(),
});

test("whatever fails in whatever order, the attempts under a contract come to an end, and nothing that may be done is begun again unless it may be", () => {
  const contracts = fc.record({
    repeatable: fc.constantFrom(0, 1),
    max_retries: fc.nat(10),
    backoff_ms: fc.nat(1_000),
    max_backoff_ms: fc.nat(1_000),
  });
  fc.assert(
    fc.property(
      contracts,
      fc.integer({ min: 1, max: 5 }),
      fc.array(failures, { minLength: 30, maxLength: 30 }),
      (given, agents, all) => {
        let tried: Tried = nothingTried(0, 0);
        let attempts = 0;
        for (const failure of all) {
          attempts++;
          const next = followUp({ ...failure, contract: given, tried, agents, chance: () => 1 });
          if (failure.late) expect(next.kind).toBe("end");
          const mayBeDone = failure.aftermath === "lost" || failure.aftermath === "unusable";
          if (mayBeDone && given.repeatable === 0) expect(next.kind).toBe("end");
          if (next.kind !== "again") return;
          expect(next.waitMs).toBeLessThanOrEqual(given.max_backoff_ms);
          tried = next.tried;
        }
        expect(attempts).toBeLessThanOrEqual(1 + given.max_retries + maxLostLeases + agents);
      },
    ),
  );
});
