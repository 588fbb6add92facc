import fc from "fast-check";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import type { Piece } from "../src/bus/piece-store.ts";
import { maxPieceBytes, maxTaskBytes, newMeter, openPieces, waitMs } from "../src/bus/pieces.ts";
import { type Adapter, type Assignment, AttemptFault } from "../src/server.ts";
import { contract, eventsOf, kindsOf, reasonOf, stateOf, submit } from "./bus-fixtures/bus.ts";
import { chunksOf, told, watched } from "./bus-fixtures/watch.ts";
import { dialects, eventually, fakeClock, type Org, refusal, start, unique, type World } from "./harness.ts";

const usage = { inputTokens: 3, outputTokens: 5, model: "test-model" };
const done = { output: { ok: true }, usage };

describe.each(dialects)("%s", (dialect) => {
  let world: World;
  let org: Org;
  /** What the custom adapter does with the next attempts. */
  let work: (assignment: Assignment, signal: AbortSignal) => Promise<typeof done> = async () => done;
  const scripted: Adapter = async (_endpoint, assignment, signal) => work(assignment, signal);

  beforeAll(async () => {
    world = await start(dialect, { adapters: { scripted } });
    org = await world.org();
  });
  afterAll(() => world[Symbol.asyncDispose]());

  /** A contract that an agent with the scripted adapter does. */
  async function does(init: Parameters<typeof contract>[1] = {}): Promise<string> {
    const contractId = await contract(org, init);
    await org.agent({
      capabilities: [contractId],
      endpoint: { kind: { case: "custom", value: { adapter: "scripted", config: { a: 1 } } } },
    });
    return contractId;
  }

  test("progress and pieces of output reach WatchTask between DISPATCHED and ANSWERED, and no other reader of the trace", async () => {
    work = async ({ progress, chunk }) => {
      await progress(0.25, "reading");
      await chunk("Hel");
      await chunk("lo");
      await progress(0.5, "half");
      await progress(0.75, "most");
      await chunk(" world");
      return done;
    };
    const task = await submit(org.admin, await does());
    expect(stateOf(task)).toBe("COMPLETED");
    expect(task.usage).toMatchObject({ inputTokens: 3n, outputTokens: 5n, model: "test-model" });
    const all = (await watched(org.admin, task.taskId)).map(told);
    expect(all.slice(all.indexOf("step DISPATCHED"))).toEqual([
      "step DISPATCHED",
      "progress 0.25 reading",
      "chunk Hello",
      "progress 0.75 most",
      "chunk  world",
      "step ANSWERED",
      "step OUTPUT_CHECKED",
      "step COMPLETED",
      "task COMPLETED",
    ]);
    const steps = all.filter((each) => each.startsWith("step ")).map((each) => each.slice(5));
    expect(kindsOf(await eventsOf(org.admin, task.traceId))).toEqual(steps);
    const tailed: string[] = [];
    for await (const { event } of org.admin.traces.tailTraces({ fromStart: true, traceId: task.traceId })) {
      if (event.case === "traceEvent") tailed.push(...kindsOf([event.value]));
      if (tailed.at(-1) === "COMPLETED") break;
    }
    expect(tailed).toEqual(steps);
  });

  test("a watch that resumes at any cursor, also in the middle of a stream, tells what followed: nothing missed, nothing repeated", async () => {
    const seen = Promise.withResolvers<void>();
    work = async ({ progress, chunk }) => {
      for (let n = 0; n < 20; n++) {
        await chunk(`${n},`);
        if (n % 5 === 0) await progress(n / 20, `at ${n}`);
        if (n === 10) await seen.promise;
      }
      return done;
    };
    const { taskId } = await submit(org.admin, await does(), { returnImmediately: true });
    // Live, from the beginning: the first half comes while the agent still works.
    const live = [];
    for await (const message of org.admin.bus.watchTask({ taskId })) {
      if (message.event.case !== "checkpoint") live.push(message);
      if (chunksOf(live).join("").includes("10,")) seen.resolve();
    }
    expect(chunksOf(live).join("")).toBe(Array.from({ length: 20 }, (_, n) => `${n},`).join(""));
    const [, ...whole] = await watched(org.admin, taskId);
    expect(live.slice(1).map(told)).toEqual(whole.map(told));
    for (const [at, { cursor }] of whole.entries()) {
      const [first, ...rest] = await watched(org.admin, taskId, cursor);
      expect(told(first!)).toBe("task COMPLETED");
      const expected = whole.slice(at + 1).map(told);
      // After the last step comes the task as it ended, also for who saw it already.
      expect(rest.map(told)).toEqual(expected.length === 0 ? ["task COMPLETED"] : expected);
    }
  });

  test("the pieces of an attempt that failed stand between its DISPATCHED and ATTEMPT_FAILED", async () => {
    work = async ({ attempt, chunk }) => {
      await chunk(`try ${attempt}`);
      if (attempt === 1) throw new AttemptFault("AGENT_UNREACHABLE", "not-begun", "cut");
      return done;
    };
    const { taskId } = await submit(org.admin, await does({ retries: 1 }));
    const all = (await watched(org.admin, taskId)).map(told);
    const first = all.indexOf("step DISPATCHED");
    expect(all.slice(first, first + 6)).toEqual([
      "step DISPATCHED",
      "chunk try 1",
      "step ATTEMPT_FAILED",
      "step POLICY_DECIDED",
      "step DISPATCHED",
      "chunk try 2",
    ]);
  });

  test("4 MiB of a task are kept, in rows of at most 64 KiB; then a step says that the rest is left out, and the task goes on", async () => {
    const text = "äb".repeat(50_000);
    work = async ({ chunk }) => {
      for (let n = 0; n < 40; n++) await chunk(text);
      return done;
    };
    const { taskId, state } = await submit(org.admin, await does());
    expect(state).toBe(4);
    const messages = await watched(org.admin, taskId);
    const kept = chunksOf(messages);
    expect(Math.max(...kept.map((piece) => Buffer.byteLength(piece)))).toBeLessThanOrEqual(maxPieceBytes);
    const joined = kept.join("");
    expect(Buffer.byteLength(joined)).toBeLessThanOrEqual(maxTaskBytes);
    expect(Buffer.byteLength(joined)).toBeGreaterThan(maxTaskBytes - maxPieceBytes);
    expect(text.repeat(40).startsWith(joined)).toBe(true);
    const all = messages.map((message) => told(message).slice(0, 20));
    expect(all.filter((each) => each === "step STREAM_CUT")).toHaveLength(1);
    expect(all.lastIndexOf("step STREAM_CUT")).toBe(all.findLastIndex((each) => each.startsWith("chunk")) + 1);
  });

  test("two tasks of one trace are each watched with their own pieces", async () => {
    work = async ({ input, chunk }) => {
      for (let n = 0; n < 3; n++) await chunk(`${JSON.stringify(input)} ${n};`);
      return done;
    };
    const contractId = await does();
    const headers = { traceparent: `00-${"5".repeat(32)}-${"6".repeat(16)}-01` };
    const tasks = await Promise.all([1, 2].map((input) => submit(org.admin, contractId, { input }, { headers })));
    expect(new Set(tasks.map(({ traceId }) => traceId)).size).toBe(1);
    const texts = await Promise.all(
      tasks.map(async ({ taskId }) => chunksOf(await watched(org.admin, taskId)).join("")),
    );
    expect(texts).toEqual(["1 0;1 1;1 2;", "2 0;2 1;2 2;"]);
  });

  test("a canceled task takes no more pieces, and its adapter is told to stop", async () => {
    const stopped = Promise.withResolvers<void>();
    work = ({ chunk }, signal) =>
      new Promise((_, reject) => {
        void chunk("before");
        signal.addEventListener("abort", () => {
          void chunk("after");
          stopped.resolve();
          reject(signal.reason);
        });
      });
    const { taskId } = await submit(org.admin, await does(), { returnImmediately: true });
    await eventually(async () => {
      for await (const message of org.admin.bus.watchTask({ taskId }))
        if (told(message) === "chunk before") return true;
      return false;
    });
    await org.admin.bus.cancelTask({ taskId });
    await stopped.promise;
    const all = (await watched(org.admin, taskId)).map(told);
    expect(all).toContain("chunk before");
    expect(all).not.toContain("chunk after");
    expect(all.slice(-2)).toEqual(["step CANCELED", "task CANCELED"]);
  });

  describe("custom adapters", () => {
    test("get the endpoint's configuration and what the contract says", async () => {
      let got: Assignment | undefined;
      work = async (assignment) => {
        got = assignment;
        return done;
      };
      const outputSchema = { type: "object", required: ["ok"] };
      await submit(org.admin, await does({ outputSchema, maxTokens: 77n }), { input: { a: 1 } });
      expect(got).toMatchObject({ attempt: 1, orgId: org.orgId, outputSchema, maxTokens: 77, input: { a: 1 } });
    });

    test.each([
      [
        "an error of its own fails the attempt in its words",
        async () => Promise.reject(new Error("no luck")),
        "ADAPTER_ERROR",
      ],
      ["an output that is no JSON cannot be used", async () => ({ output: undefined, usage }), "AGENT_BAD_RESPONSE"],
      [
        "an output beyond the limit cannot be used",
        async () => ({ output: "x".repeat(2 ** 20), usage }),
        "AGENT_BAD_RESPONSE",
      ],
      [
        "a usage that is no number cannot be used",
        async () => ({ output: 1, usage: { ...usage, inputTokens: -1 } }),
        "AGENT_BAD_RESPONSE",
      ],
    ])("%s", async (_title, behave, reason) => {
      work = behave as never;
      expect(reasonOf(await submit(org.admin, await does()))).toBe(reason);
    });

    test("one that never answers is ended with the contract's time", async () => {
      const aborted = Promise.withResolvers<void>();
      work = (_, signal) => {
        signal.addEventListener("abort", () => aborted.resolve());
        return new Promise(() => {});
      };
      const task = await submit(org.admin, await does({ timeoutMs: 300, repeatable: true }));
      expect(reasonOf(task)).toBe("AGENT_TIMEOUT");
      await aborted.promise;
    });

    test.each(["nobody", "http", "openai", "constructor"])("an endpoint that names %s is refused", async (adapter) => {
      const call = org.admin.agents.registerAgent({
        name: unique("agent"),
        endpoint: { kind: { case: "custom", value: { adapter } } },
      });
      expect(await refusal(call)).toMatchObject({
        reason: "ENDPOINT_REFUSED",
        metadata: { field: "endpoint.custom.adapter" },
      });
    });

    test("a name of a built-in kind takes its place, and a name that no endpoint can have stops the start", async () => {
      const echo: Adapter = async ({ kind }) => ({ ...done, output: { kind: kind.case ?? "" } });
      await using other = await start(dialect, { adapters: { echo } });
      const task = await submit(other.operator, "echo");
      expect(JSON.stringify(task.output)).toContain('"echo"');
      await expect(start("sqlite", { adapters: { "no good": echo } })).rejects.toThrow('"no good" is no name');
    });

    test("a configuration of more than 16 KiB is refused", async () => {
      const value = { adapter: "scripted", config: { a: "x".repeat(16_384) } };
      const call = org.admin.agents.registerAgent({
        name: unique("agent"),
        endpoint: { kind: { case: "custom", value } },
      });
      expect(await refusal(call)).toMatchObject({ reason: "INVALID_REQUEST" });
    });
  });
});

describe("pieces", () => {
  /** What was written, a batch a write. */
  function written(clock = fakeClock()) {
    const batches: (readonly Piece[])[] = [];
    const pieces = openPieces(clock, newMeter(), async (batch) => {
      batches.push(batch);
      return true;
    });
    return { clock, batches, pieces };
  }

  test("those of 50 ms are one write, and one row as long as they are text", async () => {
    const { clock, batches, pieces } = written();
    for (const text of ["a", "b", "c"]) await pieces.add({ case: "chunk", value: text });
    clock.advance(49);
    expect(batches).toEqual([]);
    clock.advance(1);
    expect(batches).toEqual([[{ case: "chunk", value: "abc" }]]);
    await pieces.add({ case: "chunk", value: "d" });
    await pieces.close();
    expect(batches.at(-1)).toEqual([{ case: "chunk", value: "d" }]);
    await pieces.add({ case: "chunk", value: "late" });
    clock.advance(1_000);
    expect(batches).toHaveLength(2);
  });

  test("who adds faster than storage writes waits, and goes on when it has written", async () => {
    const gate = Promise.withResolvers<boolean>();
    let writes = 0;
    const pieces = openPieces(fakeClock(), newMeter(), () => (++writes === 1 ? gate.promise : Promise.resolve(true)));
    let taken = 0;
    const adding = (async () => {
      for (; taken < 100; taken++) await pieces.add({ case: "chunk", value: "x".repeat(16_384) });
    })();
    await new Promise((resolve) => setImmediate(resolve));
    const before = taken;
    expect(before).toBeLessThan(20);
    gate.resolve(true);
    await adding;
    expect(taken).toBe(100);
  });

  test("what cannot be written is told to who adds next, and at the end", async () => {
    const pieces = openPieces(fakeClock(), newMeter(), () => Promise.reject(new Error("disk")));
    await expect(
      (async () => {
        for (let n = 0; n < 20; n++) await pieces.add({ case: "chunk", value: "x".repeat(20_000) });
      })(),
    ).rejects.toThrow("disk");
    await expect(pieces.close()).rejects.toThrow("disk");
  });

  test("however text is cut into pieces, the rows joined are the text, each within its limit", async () => {
    await fc.assert(
      fc.asyncProperty(
        fc.array(
          fc.oneof(fc.string({ unit: "binary" }), fc.constant("😀".repeat(20_000)), fc.constant("ß".repeat(40_000))),
          {
            maxLength: 12,
          },
        ),
        async (texts) => {
          const { clock, batches, pieces } = written();
          for (const [at, value] of texts.entries()) {
            await pieces.add({ case: "chunk", value });
            if (at % 3 === 0) clock.advance(50);
          }
          await pieces.close();
          const rows = batches.flat().map(({ value }) => value as string);
          expect(rows.join("")).toBe(texts.join(""));
          for (const row of rows) expect(Buffer.byteLength(row)).toBeLessThanOrEqual(maxPieceBytes);
        },
      ),
      { numRuns: 50 },
    );
  });

  test("an hour of small pieces is a few thousand rows", () => {
    let rows = 0;
    for (let ms = 0; ms < 3_600_000; rows++) ms += waitMs(rows);
    expect(rows).toBeLessThan(3_000);
  });
});
