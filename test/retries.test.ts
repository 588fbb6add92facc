import { durationMs, timestampMs } from "@bufbuild/protobuf/wkt";
import { Code, ConnectError } from "@connectrpc/connect";
import fc from "fast-check";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import type { Task } from "../gen/moltwire/bus/v1/task_pb.ts";
import { type TraceEvent, TraceEventKind } from "../gen/moltwire/bus/v1/trace_pb.ts";
import { maxPerPlace } from "../src/bus/dispatch.ts";
import { backoffMs, mayRepeat } from "../src/bus/retry.ts";
import {
  contract,
  endedAsTimePasses,
  eventsOf,
  json,
  kindsOf,
  reasonOf,
  stateOf,
  submit,
  whenEnded,
  worker,
} from "./bus-fixtures/bus.ts";
import { deadUrl, echo, failing, type Handle, httpAgent, silent } from "./bus-fixtures/http-agent.ts";
import { dialects, eventually, fakeClock, refusal, start, type World } from "./harness.ts";

/** A task ends a quarter of a second before its call does: a machine that stands still for so long lets the call end first, and it is made once more. */
async function heardInTime(call: () => Promise<Task>): Promise<{ task: Task; tries: number }> {
  for (let tries = 1; ; tries++) {
    try {
      return { task: await call(), tries };
    } catch (error) {
      if (tries === 10 || ConnectError.from(error).code !== Code.DeadlineExceeded) throw error;
    }
  }
}

describe("the wait before a repetition", () => {
  const policy = fc.record({
    backoff_ms: fc.integer({ min: 0, max: 60_000 }),
    max_backoff_ms: fc.integer({ min: 0, max: 300_000 }),
  });
  const retry = fc.integer({ min: 1, max: 10 });

  test("is at random between nothing and an exponential bound, and never beyond the policy's", () => {
    fc.assert(
      fc.property(policy, retry, fc.double({ min: 0, max: 1, noNaN: true }), (given, n, chance) => {
        const waitMs = backoffMs(n, given, chance);
        const bound = Math.min(given.max_backoff_ms, given.backoff_ms * 2 ** (n - 1));
        expect(Number.isInteger(waitMs)).toBe(true);
        expect(Math.abs(waitMs - chance * bound)).toBeLessThanOrEqual(0.5);
      }),
    );
  });

  test("spreads over the whole bound: no two thirds of many waits fall into half of it", () => {
    const waits = Array.from({ length: 999 }, (_, n) =>
      backoffMs(3, { backoff_ms: 100, max_backoff_ms: 1_000 }, n / 999),
    );
    expect(waits.filter((ms) => ms < 200).length).toBeLessThan(666);
    expect(Math.max(...waits)).toBeGreaterThan(390);
  });

  test("a lost or unusable answer lets only repeatable work be begun again", () => {
    const outcome = fc.constantFrom("not-begun", "failed", "unusable", "lost" as const);
    fc.assert(
      fc.property(outcome, fc.boolean(), (aftermath, repeatable) => {
        const harmless = aftermath === "not-begun" || aftermath === "failed";
        expect(mayRepeat(aftermath, { repeatable: Number(repeatable) })).toBe(harmless || repeatable);
      }),
    );
  });
});

describe.each(dialects)("%s", (dialect) => {
  let world: World;
  beforeAll(async () => {
    world = await start(dialect);
  });
  afterAll(() => world[Symbol.asyncDispose]());

  const lost: Handle = ({ response }) => void response.destroy();
  const garbage: Handle = ({ response }) => void response.end("garbage");
  const failed = failing("internal");
  const busy = failing("unavailable", 503);

  describe("how often an agent is called", () => {
    test.each<[string, Handle, boolean, number, number, string]>([
      ["an error, with two repetitions", failed, false, 2, 3, "ADAPTER_ERROR"],
      ["an error, with none", failed, true, 0, 1, "ADAPTER_ERROR"],
      ["a lost answer of repeatable work", lost, true, 2, 3, "AGENT_UNREACHABLE"],
      ["a lost answer of other work", lost, false, 2, 1, "OUTCOME_UNKNOWN"],
      ["garbage for repeatable work", garbage, true, 1, 2, "AGENT_BAD_RESPONSE"],
      ["garbage for other work", garbage, false, 3, 1, "AGENT_BAD_RESPONSE"],
      ["that it did not begin", busy, false, 2, 3, "ADAPTER_ERROR"],
    ])("when it answers %s", async (_what, handle, repeatable, retries, calls, reason) => {
      const org = await world.org();
      await using agent = await httpAgent(handle);
      const contractId = await contract(org, { repeatable, retries });
      await worker(org, contractId, agent);
      const task = await submit(org.admin, contractId);
      expect([stateOf(task), reasonOf(task), task.attempts]).toEqual(["FAILED", reason, calls]);
      expect(agent.calls.map(({ task: given }) => given.attempt)).toEqual(
        Array.from({ length: calls }, (_, n) => n + 1),
      );
      expect(new Set(agent.calls.map(({ headers }) => headers["idempotency-key"]))).toEqual(new Set([task.taskId]));
      const steps = await eventsOf(org.admin, task.traceId);
      expect(steps.filter(({ kind }) => kind === TraceEventKind.DISPATCHED)).toHaveLength(calls);
      const next = detailsOf(steps, "ATTEMPT_FAILED").map((details) => details?.next);
      expect(next).toEqual([...Array.from({ length: calls - 1 }, () => "retry"), "fail"]);
    });

    test("after a failure that passes the task completes, and what all attempts consumed is summed", async () => {
      const org = await world.org();
      const usage = { inputTokens: 10, outputTokens: 1 };
      await using agent = await httpAgent(({ task }) =>
        task.attempt === 3 ? { output: 1, usage } : { output: "not a number", usage },
      );
      const contractId = await contract(org, { repeatable: true, retries: 5, outputSchema: { type: "number" } });
      await worker(org, contractId, agent);
      const task = await submit(org.admin, contractId);
      expect(task).toMatchObject({ attempts: 3, usage: { inputTokens: 30n, outputTokens: 3n } });
      expect(stateOf(task)).toBe("COMPLETED");
    });

    test("it is waited for as the trace says before it is called again", async () => {
      const org = await world.org();
      await using agent = await httpAgent(({ task, answer }) =>
        task.attempt === 4 ? { output: 1 } : failed({ answer } as never),
      );
      const contractId = await contract(org, { retries: 3, backoffMs: 60 });
      await worker(org, contractId, agent);
      const task = await submit(org.admin, contractId);
      const waits = detailsOf(await eventsOf(org.admin, task.traceId), "ATTEMPT_FAILED").map((d) => Number(d?.wait_ms));
      expect(waits).toHaveLength(3);
      for (const [n, waitMs] of waits.entries()) {
        expect(waitMs).toBeLessThanOrEqual(60);
        expect(agent.calls[n + 1]!.atMs - agent.calls[n]!.atMs).toBeGreaterThanOrEqual(waitMs - 1);
      }
    });
  });

  describe("several agents", () => {
    test("take turns, also when two contracts are submitted by turns, and a dry run takes nobody's turn", async () => {
      const org = await world.org();
      await using one = await httpAgent();
      await using two = await httpAgent();
      const [a, b] = [await contract(org), await contract(org)];
      for (const agent of [one, two]) await worker(org, a, agent, { capabilities: [a, b] });
      const targets: string[] = [];
      for (let n = 0; n < 8; n++) {
        const contractId = n % 2 ? a : b;
        const dry = await org.admin.bus.submitTask({ contractId, validateOnly: true });
        const task = await submit(org.admin, contractId);
        expect(task.targetAgentId).toBe(dry.decisionPath.at(-1)!.targetAgentId);
        targets.push(`${contractId} ${task.targetAgentId}`);
      }
      const counts = Object.values(Object.groupBy(targets, (target) => target)).map((same) => same!.length);
      expect(counts).toEqual([2, 2, 2, 2]);
      expect([one.calls.length, two.calls.length]).toEqual([4, 4]);
    });

    test.each([
      ["refuses the connection", undefined],
      ["says that it is unavailable", busy],
      ["answers 429", ((call) => void call.response.writeHead(429).end("later")) satisfies Handle],
      ["is overloaded", failing("resource_exhausted", 429)],
    ])(
      "one that %s gives way at once to the next, though the work is not repeatable and is not retried",
      async (_what, handle) => {
        const org = await world.org();
        await using good = await httpAgent();
        await using bad = await httpAgent(handle);
        const contractId = await contract(org, { backoffMs: 60_000 });
        await worker(org, contractId, handle ? bad : await deadUrl());
        const { agentId } = await worker(org, contractId, good);
        for (let n = 0; n < 2; n++) {
          const task = await submit(org.admin, contractId);
          expect([stateOf(task), task.targetAgentId]).toEqual(["COMPLETED", agentId]);
        }
        expect(good.calls.map(({ task }) => task.attempt).toSorted()).toEqual([1, 2]);
      },
    );

    test("one that has answered an error does not: that is a retry, and takes the policy's", async () => {
      const org = await world.org();
      await using bad = await httpAgent(failed);
      const contractId = await contract(org);
      for (let n = 0; n < 2; n++) await worker(org, contractId, bad);
      expect(await submit(org.admin, contractId)).toMatchObject({ attempts: 1 });
      const retried = await contract(org, { capability: contractId, retries: 1 });
      const task = await submit(org.admin, retried);
      const targets = (await eventsOf(org.admin, task.traceId)).filter(
        ({ kind }) => kind === TraceEventKind.DISPATCHED,
      );
      expect(new Set(targets.map(({ targetAgentId }) => targetAgentId)).size).toBe(2);
    });

    test("a bare 503, which a gateway also answers when the agent dies at work, counts as a lost answer", async () => {
      const org = await world.org();
      await using good = await httpAgent();
      await using bad = await httpAgent((call) => void call.response.writeHead(503).end("upstream reset"));
      const contractId = await contract(org, { retries: 2 });
      await worker(org, contractId, bad);
      await worker(org, contractId, good);
      expect(reasonOf(await submit(org.admin, contractId))).toBe("OUTCOME_UNKNOWN");
      expect([bad.calls.length, good.calls.length]).toEqual([1, 0]);
    });

    test("one that is deleted while a retry is waited for gets nothing more", async () => {
      const clock = fakeClock(Date.now());
      await using steady = await start(dialect, { clock, ids: { ...world.server.app.ids, chance: () => 1 } });
      const org = await steady.org();
      await using bad = await httpAgent(failed);
      const contractId = await contract(org, { retries: 3, backoffMs: 60_000 });
      const { agentId } = await worker(org, contractId, bad);
      const { taskId, traceId } = await submit(org.admin, contractId, { returnImmediately: true });
      await eventually(async () => kindsOf(await eventsOf(org.admin, traceId)).at(-1) === "ATTEMPT_FAILED");
      await org.admin.agents.deleteAgent({ agentId });
      clock.advance(60_000);
      const task = await endedAsTimePasses(clock, org.admin, taskId);
      expect([stateOf(task), reasonOf(task), bad.calls.length]).toEqual(["FAILED", "NO_CAPABLE_AGENT", 1]);
    });

    test("a target the caller insists on is kept by the fallbacks too", async () => {
      const org = await world.org();
      await using good = await httpAgent();
      await using bad = await httpAgent(failed);
      const other = await contract(org);
      const first = await contract(org, { fallbacks: [{ contractId: other }] });
      const { agentId } = await worker(org, first, bad);
      await worker(org, other, good);
      const task = await submit(org.admin, first, { targetAgentId: agentId });
      expect([reasonOf(task), good.calls.length]).toEqual(["ADAPTER_ERROR", 0]);
    });

    test("a target the caller insists on is not given up for another", async () => {
      const org = await world.org();
      await using good = await httpAgent();
      const contractId = await contract(org);
      await worker(org, contractId, good);
      const { agentId: targetAgentId } = await worker(org, contractId, await deadUrl());
      expect(reasonOf(await submit(org.admin, contractId, { targetAgentId }))).toBe("AGENT_UNREACHABLE");
      expect(good.calls).toHaveLength(0);
    });
  });

  describe("fallback contracts", () => {
    test("are tried in turn, each checked by its own schemas, under the same task", async () => {
      const org = await world.org();
      await using agent = await httpAgent(({ task }) =>
        task.contractId === numeric ? { output: "no number", usage: { inputTokens: 5 } } : { output: "text" },
      );
      await using bad = await httpAgent(failing("internal"));
      const strict = await contract(org, { inputSchema: { required: ["key"] } });
      const numeric = await contract(org, { outputSchema: { type: "number" }, repeatable: true });
      const textual = await contract(org, { outputSchema: { type: "string" } });
      const unstaffed = await contract(org);
      const fallbacks = [strict, unstaffed, numeric, textual].map((contractId) => ({ contractId }));
      const first = await contract(org, { fallbacks, outputSchema: { type: "boolean" } });
      for (const capability of [strict, numeric, textual]) await worker(org, capability, agent);
      await worker(org, first, bad);
      const task = await submit(org.admin, first);
      expect([stateOf(task), json(task.output)]).toEqual(["COMPLETED", "text"]);
      expect(task).toMatchObject({ contractId: first, attempts: 3, usage: { inputTokens: 5n } });
      expect(agent.calls.map(({ task: given }) => [given.contractId, given.attempt, given.taskId])).toEqual([
        [numeric, 2, task.taskId],
        [textual, 3, task.taskId],
      ]);
      const steps = await eventsOf(org.admin, task.traceId);
      const failedStep = ["DISPATCHED", "ATTEMPT_FAILED", "FALLBACK"];
      const again = ["POLICY_DECIDED"]; // policies spoke of the first contract only
      const done = ["DISPATCHED", "ANSWERED", "OUTPUT_CHECKED", "COMPLETED"];
      expect(kindsOf(steps).slice(5)).toEqual([...failedStep, ...again, ...failedStep, ...again, ...done]);
      expect(detailsOf(steps, "ATTEMPT_FAILED").map((d) => d?.next)).toEqual(["fallback", "fallback"]);
      expect(detailsOf(steps, "FALLBACK").map((d) => d?.contract_id)).toEqual([numeric, textual]);
    });

    test("that cannot be used end the task with what was tried, and the trace does not say otherwise", async () => {
      const org = await world.org();
      const old = await contract(org);
      const first = await contract(org, { fallbacks: [{ contractId: old }] });
      await org.admin.contracts.deprecateContract({ contractId: old, version: "1.0.0" });
      await using bad = await httpAgent(failed);
      await worker(org, first, bad);
      await worker(org, old, bad);
      const task = await submit(org.admin, first);
      expect([reasonOf(task), bad.calls.length]).toEqual(["ADAPTER_ERROR", 1]);
      const steps = await eventsOf(org.admin, task.traceId);
      expect(detailsOf(steps, "ATTEMPT_FAILED").map((d) => d?.next)).toEqual(["fail"]);
    });

    test("are not used when the answer was lost and the work may be done", async () => {
      const org = await world.org();
      await using good = await httpAgent();
      await using bad = await httpAgent(lost);
      const other = await contract(org);
      const first = await contract(org, { fallbacks: [{ contractId: other }] });
      await worker(org, first, bad);
      await worker(org, other, good);
      expect(reasonOf(await submit(org.admin, first))).toBe("OUTCOME_UNKNOWN");
      expect(good.calls).toHaveLength(0);
    });
  });

  describe("the caller's deadline", () => {
    test("becomes the task's, and the agent's", async () => {
      const org = await world.org();
      await using agent = await httpAgent();
      const contractId = await contract(org, { timeoutMs: 600_000 });
      await worker(org, contractId, agent);
      const task = await submit(org.admin, contractId, {}, { timeoutMs: 60_000 });
      const { headers, task: given } = await agent.call(0);
      const leftMs = timestampMs(task.deadlineTime!) - timestampMs(task.createTime!);
      expect(leftMs).toBeGreaterThan(0);
      expect(leftMs).toBeLessThanOrEqual(60_000);
      expect(Number(headers["connect-timeout-ms"])).toBeLessThanOrEqual(60_000);
      expect(Date.parse(given.deadlineTime!)).toBeLessThanOrEqual(timestampMs(task.deadlineTime!) + 50);
    });

    test.each([
      ["while the agent works", silent, true, 0, "DEADLINE_EXCEEDED"],
      ["while the agent works on what cannot be repeated", silent, false, 0, "OUTCOME_UNKNOWN"],
      ["while a retry is waited for", failed, true, 60_000, "DEADLINE_EXCEEDED"],
    ])(
      "ends the task when it passes %s, and the caller still hears of it",
      async (_what, handle, repeatable, backoff, reason) => {
        await using steady = await start(dialect, { ids: { ...world.server.app.ids, chance: () => 1 } });
        const org = await steady.org();
        await using agent = await httpAgent(handle);
        const contractId = await contract(org, { repeatable, retries: 3, backoffMs: backoff });
        await worker(org, contractId, agent);
        const { task, tries } = await heardInTime(() => submit(org.admin, contractId, {}, { timeoutMs: 1_000 }));
        expect([stateOf(task), reasonOf(task)]).toEqual(["FAILED", reason]);
        expect(task.error?.metadata).toMatchObject(
          reason === "OUTCOME_UNKNOWN"
            ? { cause: "DEADLINE_EXCEEDED" }
            : { deadline_time: expect.stringContaining("T") },
        );
        expect(agent.calls).toHaveLength(tries);
        expect(timestampMs(task.endTime!) - timestampMs(task.deadlineTime!)).toBeLessThan(30_000);
      },
    );

    test("ends a task that never got its turn, and no agent hears of it", async () => {
      const org = await world.org();
      await using agent = await httpAgent(silent);
      const contractId = await contract(org);
      await worker(org, contractId, agent);
      const full = Array.from({ length: maxPerPlace }, () =>
        submit(org.admin, contractId, { returnImmediately: true }),
      );
      await Promise.all(full);
      await agent.call(maxPerPlace - 1);
      const { task: late } = await heardInTime(() => submit(org.admin, contractId, {}, { timeoutMs: 1_000 }));
      expect([stateOf(late), reasonOf(late), late.attempts]).toEqual(["FAILED", "DEADLINE_EXCEEDED", 0]);
      expect(agent.calls).toHaveLength(maxPerPlace);
    });
  });

  test("a caller that disconnects cancels nothing", async () => {
    const org = await world.org();
    await using agent = await httpAgent(silent);
    const contractId = await contract(org);
    await worker(org, contractId, agent);
    const leaving = new AbortController();
    const left = refusal(submit(org.admin, contractId, {}, { signal: leaving.signal }));
    const call = await agent.call(0);
    leaving.abort();
    expect((await left).code).toBe("Canceled");
    const hungUp = call.hungUp.then(() => "hung up");
    const ended = whenEnded(org.admin, call.task.taskId!);
    call.answer({ output: "done" });
    expect(await Promise.race([ended.then(stateOf), hungUp])).toBe("COMPLETED");
  });

  test("the steps of retries say how long each took", async () => {
    const org = await world.org();
    await using agent = await httpAgent(async ({ task, answer }) => {
      await new Promise((resolve) => setTimeout(resolve, 20));
      return task.attempt === 2 ? { output: 1 } : answer({ code: "internal" }, 500);
    });
    const contractId = await contract(org, { retries: 1 });
    await worker(org, contractId, agent);
    const steps = await eventsOf(org.admin, (await submit(org.admin, contractId)).traceId);
    const timed = steps.filter(
      ({ kind }) => kind === TraceEventKind.ATTEMPT_FAILED || kind === TraceEventKind.ANSWERED,
    );
    expect(timed).toHaveLength(2);
    for (const { duration } of timed) expect(durationMs(duration!)).toBeGreaterThanOrEqual(19);
    expect(timed.map(({ time }) => timestampMs(time!)).toSorted()).toEqual(timed.map(({ time }) => timestampMs(time!)));
    agent.handle = echo;
  });
});

const detailsOf = (events: readonly TraceEvent[], kind: keyof typeof TraceEventKind) =>
  events.filter((event) => event.kind === TraceEventKind[kind]).map(({ details }) => details);
