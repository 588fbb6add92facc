import { create } from "@bufbuild/protobuf";
import { timestampFromMs, timestampMs, ValueSchema } from "@bufbuild/protobuf/wkt";
import { Code, ConnectError } from "@connectrpc/connect";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { ErrorReason } from "../gen/moltwire/api/v1/error_reason_pb.ts";
import { type DeadLetter, DeadLetterState } from "../gen/moltwire/bus/v1/dead_letter_pb.ts";
import type { Task } from "../gen/moltwire/bus/v1/task_pb.ts";
import { sql } from "../src/db/db.ts";
import {
  contract,
  eventsOf,
  json,
  kindsOf,
  nameOf,
  reasonOf,
  stateOf,
  submit,
  value,
  whenEnded,
  worker,
} from "./bus-fixtures/bus.ts";
import { echo, failing, type HttpAgent, httpAgent, silent } from "./bus-fixtures/http-agent.ts";
import { storage } from "./bus-fixtures/storage.ts";
import {
  type Clients,
  dialects,
  eventually,
  fakeClock,
  type Org,
  type OrgAgent,
  refusal,
  start,
  type World,
} from "./harness.ts";

const failed = failing("internal");
const letterState = (letter: DeadLetter | undefined) => nameOf(DeadLetterState, letter?.state);
const letterOf = async (by: Clients, taskId: string, orgId = ""): Promise<DeadLetter> => {
  const { deadLetters } = await by.deadLetters.listDeadLetters({ orgId, taskId });
  expect(deadLetters).toHaveLength(1);
  return deadLetters[0]!;
};
const read = async (by: Clients, deadLetterId: string) =>
  (await by.deadLetters.getDeadLetter({ deadLetterId })).deadLetter!;

describe.each(dialects)("%s", (dialect) => {
  let world: World;
  let bad: HttpAgent;
  beforeAll(async () => {
    world = await start(dialect);
    bad = await httpAgent(failed);
  });
  afterAll(async () => {
    await world[Symbol.asyncDispose]();
    await bad[Symbol.asyncDispose]();
  });

  /** A contract whose only agent fails and is called all the same, and a caller. */
  async function broken(init: Parameters<typeof contract>[1] = {}, at: HttpAgent = bad) {
    const org = await world.org();
    const contractId = await contract(org, init);
    const target = await worker(org, contractId, at, { breaker: { disabled: true } });
    return { org, contractId, target, caller: await org.agent() };
  }

  /** A task of the caller that has failed. */
  async function fail(by: OrgAgent, contractId: string, wish: Parameters<typeof submit>[2] = {}): Promise<Task> {
    const task = await submit(by.as, contractId, wish);
    expect(stateOf(task)).toBe("FAILED");
    return task;
  }

  test("a task that failed is kept with what was asked for and every attempt, and an event tells of it", async () => {
    const { org, contractId, target, caller } = await broken({ retries: 1 });
    const labels = { from: "a test" };
    const task = await fail(caller, contractId, { input: { n: 1 }, labels, contractVersion: "^1" });
    const listed = await letterOf(caller.as, task.taskId);
    expect(listed).toMatchObject({
      orgId: org.orgId,
      state: DeadLetterState.OPEN,
      traceId: task.traceId,
      callerAgentId: caller.agentId,
      targetAgentId: target.agentId,
      contractId,
      contractVersion: "1.0.0",
      error: task.error,
      attemptCount: 2,
      createTime: task.endTime,
      retryTaskIds: [],
    });
    expect([listed.envelope, listed.attempts]).toEqual([undefined, []]);
    expect(listed.deadLetterId).toMatch(/^dlq_[0-9a-f]{32}$/);
    const { envelope, attempts } = await read(caller.as, listed.deadLetterId);
    expect(json(envelope?.input)).toEqual({ n: 1 });
    expect(envelope).toMatchObject({
      requestedVersion: "^1",
      labels,
      origin: "bus",
      spanId: task.spanId,
      parentSpanId: task.parentSpanId,
      submitTime: task.createTime,
    });
    expect(envelope?.callerKeyId).toMatch(/^key_/);
    expect(attempts.map(({ attempt, agentId, error }) => [attempt, agentId, error?.reason])).toEqual([
      [1, target.agentId, ErrorReason.ADAPTER_ERROR],
      [2, target.agentId, ErrorReason.ADAPTER_ERROR],
    ]);
    const event = await eventually(async () =>
      (await caller.as.events.listEvents({})).events.find(({ type }) => type === "deadletter.created"),
    );
    expect(event).toMatchObject({ agentId: caller.agentId, traceId: task.traceId });
    expect(event.payload).toMatchObject({ dead_letter_id: listed.deadLetterId, task_id: task.taskId });
    expect(event.payload?.reason).toBe("ADAPTER_ERROR");
  });

  test("its attempts tell when they were, whose, under which contract, why they failed, and the tokens they took", async () => {
    const clock = fakeClock();
    await using aged = await start(dialect, { clock });
    await using agent = await httpAgent(({ task }) => {
      clock.advance(2_000);
      return { output: "no number", usage: { inputTokens: 10 * task.attempt!, outputTokens: 1, model: "m" } };
    });
    const org = await aged.org();
    const contractId = await contract(org, {
      ...{ outputSchema: { type: "number" }, repeatable: true, retries: 2, backoffMs: 0 },
      timeoutMs: 60_000,
    });
    const { agentId } = await worker(org, contractId, agent, { breaker: { disabled: true } });
    const beganMs = clock.now();
    const { taskId } = await submit(org.admin, contractId);
    const { deadLetterId } = await letterOf(org.admin, taskId);
    const { attempts } = await read(org.admin, deadLetterId);
    const afterMs = (time: Parameters<typeof timestampMs>[0] | undefined) => timestampMs(time!) - beganMs;
    expect(attempts).toMatchObject(
      [1, 2, 3].map((attempt) => ({
        ...{ attempt, agentId, contractId, contractVersion: "1.0.0" },
        error: { reason: ErrorReason.CONTRACT_VIOLATION },
        usage: { inputTokens: BigInt(10 * attempt), outputTokens: 1n, model: "m" },
      })),
    );
    expect(attempts.map(({ startTime, endTime }) => [afterMs(startTime), afterMs(endTime)])).toEqual([
      [0, 2_000],
      [2_000, 4_000],
      [4_000, 6_000],
    ]);
  });

  test("a task that was canceled, completed or refused leaves none", async () => {
    await using agent = await httpAgent(silent);
    const { org, contractId, caller } = await broken({}, agent);
    const { taskId } = await submit(caller.as, contractId, { returnImmediately: true });
    await agent.call(0);
    await caller.as.bus.cancelTask({ taskId });
    agent.handle = echo;
    await submit(caller.as, contractId);
    await refusal(submit(caller.as, contractId, { contractVersion: "9.0.0" }));
    expect((await org.admin.deadLetters.listDeadLetters({})).deadLetters).toEqual([]);
  });

  test("an agent sees, settles and retries what it asked for, and nothing else; an administrator all", async () => {
    const { org, contractId, target, caller } = await broken();
    const mine = await letterOf(caller.as, (await fail(caller, contractId)).taskId);
    const own = await submit(org.admin, contractId);
    const others = await org.admin.deadLetters.listDeadLetters({});
    expect(others.deadLetters.map(({ taskId }) => taskId)).toEqual([own.taskId, mine.taskId]);
    expect((await target.as.deadLetters.listDeadLetters({})).deadLetters).toEqual([]);
    expect((await target.as.deadLetters.listDeadLetters({ callerAgentId: caller.agentId })).deadLetters).toEqual([]);
    expect((await caller.as.deadLetters.listDeadLetters({})).deadLetters).toHaveLength(1);
    const other = await world.org();
    const { deadLetterId } = mine;
    for (const by of [target.as, other.admin]) {
      const nowhere = { deadLetterId: `dlq_${"0".repeat(32)}` };
      for (const call of [
        (letter: { deadLetterId: string }) => by.deadLetters.getDeadLetter(letter),
        (letter: { deadLetterId: string }) => by.deadLetters.resolveDeadLetter({ ...letter, note: "n" }),
        (letter: { deadLetterId: string }) => by.deadLetters.retryDeadLetter(letter),
      ]) {
        const [one, two] = [await refusal(call({ deadLetterId })), await refusal(call(nowhere))];
        expect([one.code, one.reason, one.error.rawMessage]).toEqual([two.code, two.reason, two.error.rawMessage]);
        expect(one.reason).toBe("NOT_FOUND");
      }
    }
    expect(letterState(await read(caller.as, deadLetterId))).toBe("OPEN");
  });

  test("lists filter by everything a dead letter says, and page without gap or repeat, newest first", async () => {
    const { org, contractId, target, caller } = await broken();
    const second = await org.agent();
    const strict = await contract(org, { outputSchema: { type: "number" } });
    await using texts = await httpAgent(() => ({ output: "text" }));
    const wrong = await worker(org, strict, texts);
    const tasks: Task[] = [];
    for (let n = 0; n < 3; n++) tasks.push(await fail(caller, contractId), await fail(second, strict));
    const ids = tasks.map(({ taskId }) => taskId).toReversed();
    const list = async (filter: Parameters<Clients["deadLetters"]["listDeadLetters"]>[0]) =>
      (await org.admin.deadLetters.listDeadLetters(filter)).deadLetters.map(({ taskId }) => taskId);
    const [ofStrict, ofFailing] = [ids.filter((_, n) => n % 2 === 0), ids.filter((_, n) => n % 2 === 1)];
    const first = await letterOf(org.admin, ids.at(-1)!);
    await org.admin.deadLetters.resolveDeadLetter({ deadLetterId: first.deadLetterId, note: "done" });
    expect(await list({})).toEqual(ids);
    expect(await list({ contractId })).toEqual(ofFailing);
    expect(await list({ contractId, contractVersion: "2.0.0" })).toEqual([]);
    expect(await list({ contractVersion: "1.0.0" })).toEqual(ids);
    expect(await list({ callerAgentId: second.agentId })).toEqual(ofStrict);
    expect(await list({ targetAgentId: target.agentId })).toEqual(ofFailing);
    expect(await list({ targetAgentId: wrong.agentId, callerAgentId: caller.agentId })).toEqual([]);
    expect(await list({ reason: ErrorReason.CONTRACT_VIOLATION })).toEqual(ofStrict);
    expect(await list({ traceId: tasks[2]!.traceId })).toEqual([tasks[2]!.taskId]);
    expect(await list({ state: DeadLetterState.RESOLVED })).toEqual([ids.at(-1)]);
    expect(await list({ state: DeadLetterState.OPEN, contractId })).toEqual(ofFailing.slice(0, -1));
    const times = tasks.map(({ endTime }) => timestampMs(endTime!));
    const since = (ms: number) =>
      tasks
        .filter((_, n) => times[n]! >= ms)
        .map(({ taskId }) => taskId)
        .toReversed();
    expect(await list({ startTime: timestampFromMs(times[3]!) })).toEqual(since(times[3]!));
    const before = ids.filter((id) => !since(times[3]!).includes(id));
    expect(await list({ endTime: timestampFromMs(times[3]!) })).toEqual(before);
    const nothing = { startTime: timestampFromMs(times[3]!), endTime: timestampFromMs(times[3]!) };
    expect((await refusal(list(nothing))).metadata.field).toBe("end_time");
    const paged: string[] = [];
    for (let pageToken = ""; ; ) {
      const page = await org.admin.deadLetters.listDeadLetters({ pageSize: 2, pageToken });
      expect(page.deadLetters.length).toBeLessThanOrEqual(2);
      paged.push(...page.deadLetters.map(({ taskId }) => taskId));
      pageToken = page.nextPageToken;
      if (!pageToken) break;
    }
    expect(paged).toEqual(ids);
  });

  test("lists page without gap or repeat also through those that failed in one millisecond", async () => {
    await using still = await start(dialect, { clock: fakeClock(Date.now()) });
    const org = await still.org();
    await contractWith(org, "once", bad);
    const made = [];
    for (let n = 0; n < 5; n++) made.push((await submit(org.admin, "once")).taskId);
    const paged: string[] = [];
    for (let pageToken = ""; ; ) {
      const page = await org.admin.deadLetters.listDeadLetters({ pageSize: 2, pageToken });
      paged.push(...page.deadLetters.map(({ taskId }) => taskId));
      pageToken = page.nextPageToken;
      if (!pageToken) break;
    }
    expect(paged).toEqual(made.toReversed());
  });

  test("is resolved with a note once, by whom and when; the same note again changes nothing, another is refused", async () => {
    const { contractId, caller } = await broken();
    const { deadLetterId } = await letterOf(caller.as, (await fail(caller, contractId)).taskId);
    const resolve = (note: string) => caller.as.deadLetters.resolveDeadLetter({ deadLetterId, note });
    const { deadLetter } = await resolve("paid by hand");
    expect(deadLetter).toMatchObject({ resolvedBy: caller.agentId, resolveNote: "paid by hand" });
    expect([letterState(deadLetter), deadLetter?.resolveTime === undefined]).toEqual(["RESOLVED", false]);
    expect((await resolve("paid by hand")).deadLetter).toEqual(deadLetter);
    const again = await refusal(resolve("or not"));
    expect([again.reason, again.metadata.state]).toEqual(["FAILED_PRECONDITION", "RESOLVED"]);
    expect(await read(caller.as, deadLetterId)).toEqual(deadLetter);
  });

  describe("a retry", () => {
    test("is the same task again, for the first one's caller, in its trace below its span", async () => {
      await using agent = await httpAgent(failed);
      const { org, contractId, target, caller } = await broken({}, agent);
      const wish = { input: { n: 7 }, labels: { a: "b" }, targetAgentId: target.agentId };
      const task = await submit(caller.as, contractId, wish, { timeoutMs: 20_000 });
      const { deadLetterId } = await letterOf(org.admin, task.taskId);
      agent.handle = echo;
      const reply = await org.admin.deadLetters.retryDeadLetter({ deadLetterId });
      expect(letterState(reply.deadLetter)).toBe("RETRIED");
      expect(reply.deadLetter?.retryTaskIds).toEqual([reply.taskId]);
      const retry = await whenEnded(caller.as, reply.taskId);
      expect([stateOf(retry), json(retry.output)]).toEqual(["COMPLETED", { n: 7 }]);
      expect(retry).toMatchObject({
        callerAgentId: caller.agentId,
        targetAgentId: target.agentId,
        traceId: task.traceId,
        spanId: reply.spanId,
        parentSpanId: task.spanId,
        labels: { a: "b" },
        attempts: 1,
        retryOfDeadLetterId: deadLetterId,
      });
      expect([task.deadlineTime === undefined, retry.deadlineTime]).toEqual([false, undefined]);
      expect(new Set((await eventsOf(caller.as, task.traceId)).map(({ spanId }) => spanId))).toEqual(
        new Set([task.spanId, reply.spanId]),
      );
      const [given] = agent.calls.slice(-1);
      expect([given!.task.attempt, given!.headers.traceparent]).toEqual([1, `00-${task.traceId}-${reply.spanId}-01`]);
    });

    test("may have another input, agent or version, each checked as with any task", async () => {
      const { org, contractId, caller } = await broken({ inputSchema: { type: "object" } });
      const task = await fail(caller, contractId);
      const { deadLetterId } = await letterOf(caller.as, task.taskId);
      const retry = (change: object) => caller.as.deadLetters.retryDeadLetter({ deadLetterId, ...change });
      for (const [change, reason] of [
        [{ input: value("text") }, "CONTRACT_VIOLATION"],
        [{ input: create(ValueSchema, { kind: { case: "nullValue", value: 0 } }) }, "CONTRACT_VIOLATION"],
        [{ targetAgentId: "agt_nobody" }, "NOT_FOUND"],
        [{ contractVersion: "^2" }, "CONTRACT_VERSION_NOT_FOUND"],
      ] as const) {
        const refused = await refusal(retry(change));
        expect([refused.reason, refused.metadata.trace_id]).toEqual([reason, task.traceId]);
        expect(letterState(await read(caller.as, deadLetterId))).toBe("OPEN");
      }
      const refusals = kindsOf(await eventsOf(caller.as, task.traceId)).filter((kind) => kind === "REFUSED");
      expect(refusals).toHaveLength(4);
      await using good = await httpAgent();
      const other = await worker(org, contractId, good);
      await org.admin.contracts.registerContract({ contractId, version: "1.1.0" });
      const { taskId } = await retry({
        input: value({ now: true }),
        targetAgentId: other.agentId,
        contractVersion: "^1.1",
      });
      const retried = await whenEnded(caller.as, taskId);
      expect([stateOf(retried), json(retried.output)]).toEqual(["COMPLETED", { now: true }]);
      expect(retried).toMatchObject({ contractVersion: "1.1.0", targetAgentId: other.agentId });
    });

    test("without another version is of the version that failed, though there is a newer one", async () => {
      const { org, contractId, caller } = await broken();
      const task = await fail(caller, contractId);
      await org.admin.contracts.registerContract({ contractId, version: "1.1.0" });
      const { deadLetterId } = await letterOf(caller.as, task.taskId);
      const { taskId } = await caller.as.deadLetters.retryDeadLetter({ deadLetterId });
      expect((await whenEnded(caller.as, taskId)).contractVersion).toBe("1.0.0");
    });

    test("that fails is a dead letter of its own, and the first one can be tried again; one that stands forbids another", async () => {
      await using agent = await httpAgent(failed);
      const { contractId, caller } = await broken({}, agent);
      const task = await fail(caller, contractId);
      const { deadLetterId } = await letterOf(caller.as, task.taskId);
      const retry = () => caller.as.deadLetters.retryDeadLetter({ deadLetterId });
      const first = (await retry()).taskId;
      expect(stateOf(await whenEnded(caller.as, first))).toBe("FAILED");
      expect((await letterOf(caller.as, first)).retryOfDeadLetterId).toBe(deadLetterId);
      agent.handle = silent;
      const second = (await retry()).taskId;
      const call = await agent.call(2);
      const meanwhile = await refusal(retry());
      expect([meanwhile.reason, meanwhile.metadata]).toMatchObject([
        "FAILED_PRECONDITION",
        { state: "WORKING", task_id: second },
      ]);
      call.answer({ output: 1 });
      await whenEnded(caller.as, second);
      expect((await refusal(retry())).metadata).toMatchObject({ state: "COMPLETED", task_id: second });
      expect((await letterOf(caller.as, task.taskId)).retryTaskIds).toEqual([first, second]);
      const note = "done at last";
      const resolved = await caller.as.deadLetters.resolveDeadLetter({ deadLetterId, note });
      expect(letterState(resolved.deadLetter)).toBe("RESOLVED");
    });

    test("of one that is resolved is a retry, and leaves how it was resolved", async () => {
      const { contractId, caller } = await broken();
      const { deadLetterId } = await letterOf(caller.as, (await fail(caller, contractId)).taskId);
      await caller.as.deadLetters.resolveDeadLetter({ deadLetterId, note: "enough" });
      const { deadLetter, taskId } = await caller.as.deadLetters.retryDeadLetter({ deadLetterId });
      expect([letterState(deadLetter), deadLetter?.resolveNote]).toEqual(["RETRIED", "enough"]);
      expect(stateOf(await whenEnded(caller.as, taskId))).toBe("FAILED");
    });

    test("of fifty at once one is accepted", async () => {
      await using agent = await httpAgent(failed);
      const { org, contractId, caller } = await broken({}, agent);
      const { deadLetterId } = await letterOf(caller.as, (await fail(caller, contractId)).taskId);
      agent.handle = silent;
      const by = [caller.as, org.admin];
      const outcomes = await Promise.allSettled(
        Array.from({ length: 50 }, (_, n) => by[n % 2]!.deadLetters.retryDeadLetter({ deadLetterId })),
      );
      const accepted = outcomes.flatMap((one) => (one.status === "fulfilled" ? [one.value.taskId] : []));
      const codes = outcomes.flatMap((one) => (one.status === "rejected" ? [ConnectError.from(one.reason).code] : []));
      expect(accepted).toHaveLength(1);
      expect(codes).toEqual(Array.from({ length: 49 }, () => Code.FailedPrecondition));
      (await agent.call(1)).answer({ output: 1 });
      await whenEnded(caller.as, accepted[0]!);
      expect((await read(caller.as, deadLetterId)).retryTaskIds).toEqual(accepted);
      expect(agent.calls).toHaveLength(2);
    });

    test("repeated with its idempotency key is the same retry", async () => {
      await using agent = await httpAgent(failed);
      const { contractId, caller } = await broken({}, agent);
      const { deadLetterId } = await letterOf(caller.as, (await fail(caller, contractId)).taskId);
      const options = { headers: { "idempotency-key": "again-1" } };
      const [one, two] = [
        await caller.as.deadLetters.retryDeadLetter({ deadLetterId }, options),
        await caller.as.deadLetters.retryDeadLetter({ deadLetterId }, options),
      ];
      expect(two.taskId).toBe(one.taskId);
      await whenEnded(caller.as, one.taskId);
      expect(agent.calls).toHaveLength(2);
    });

    test("is refused beyond a hundred", async () => {
      const { contractId, caller } = await broken();
      const { deadLetterId } = await letterOf(caller.as, (await fail(caller, contractId)).taskId);
      const retry = () => caller.as.deadLetters.retryDeadLetter({ deadLetterId });
      for (let n = 0; n < 100; n++) await whenEnded(caller.as, (await retry()).taskId);
      const refused = await refusal(retry());
      expect([refused.code, refused.reason, refused.metadata.limit]).toEqual([
        "ResourceExhausted",
        "QUOTA_EXCEEDED",
        "100",
      ]);
      expect((await read(caller.as, deadLetterId)).retryTaskIds).toHaveLength(100);
    });

    test("is refused when its caller is no longer there", async () => {
      const { org, contractId, caller } = await broken();
      const { deadLetterId } = await letterOf(org.admin, (await fail(caller, contractId)).taskId);
      await org.admin.agents.deleteAgent({ agentId: caller.agentId });
      expect((await refusal(org.admin.deadLetters.retryDeadLetter({ deadLetterId }))).reason).toBe("NOT_FOUND");
      expect(letterState(await read(org.admin, deadLetterId))).toBe("OPEN");
    });
  });

  test("the payload of a task is not copied: a dead letter shows that of its task", async () => {
    const { contractId, caller, org } = await broken();
    await fail(caller, contractId, { input: { secret: "hunter2-canary" } });
    const [row] = await world.server.app.db.query.all<Record<string, unknown>>(
      sql`select * from dead_letter where org_id = ${org.orgId}`,
    );
    expect(JSON.stringify(row)).not.toContain("hunter2");
    expect(Object.values(row!).some((column) => column instanceof Uint8Array)).toBe(false);
  });
});

describe.each(dialects)("%s, across a restart", (dialect) => {
  test("each task that failed, in the run or by the recovery, has exactly one dead letter", async () => {
    await using place = await storage(dialect);
    await using agent = await httpAgent(failed);
    let adminKey: string;
    const made: Task[] = [];
    {
      await using before = await start(dialect, { ...place.options, drainMs: 0 });
      const org: Org = await before.org();
      adminKey = org.adminKey;
      await contractWith(org, "once", agent);
      for (let n = 0; n < 3; n++) made.push(await submit(org.admin, "once"));
      agent.handle = silent;
      for (let n = 0; n < 3; n++) made.push(await submit(org.admin, "once", { returnImmediately: true }));
      await agent.call(5);
    }
    await using after = await start(dialect, place.options);
    const by = after.as(adminKey);
    const ended = await Promise.all(made.map(({ taskId }) => whenEnded(by, taskId)));
    expect(ended.map(reasonOf)).toEqual([
      ...Array.from({ length: 3 }, () => "ADAPTER_ERROR"),
      ...Array.from({ length: 3 }, () => "OUTCOME_UNKNOWN"),
    ]);
    const { deadLetters } = await by.deadLetters.listDeadLetters({});
    expect(deadLetters.map(({ taskId }) => taskId).toSorted()).toEqual(made.map(({ taskId }) => taskId).toSorted());
    const recovered = await read(by, deadLetters.find(({ taskId }) => taskId === made[5]!.taskId)!.deadLetterId);
    expect(recovered.attempts.map(({ error }) => error?.reason)).toEqual([ErrorReason.OUTCOME_UNKNOWN]);
  });
});

async function contractWith(org: Org, contractId: string, agent: HttpAgent): Promise<void> {
  await contract(org, { contractId, timeoutMs: 60_000 });
  await worker(org, contractId, agent, { breaker: { disabled: true } });
}
