import { getEventListeners } from "node:events";
import { type ClientHttp2Session, type ClientHttp2Stream, connect as connectHttp2 } from "node:http2";
import { timestampMs } from "@bufbuild/protobuf/wkt";
import fc from "fast-check";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { type TraceEvent, TraceEventKind } from "../gen/moltwire/bus/v1/trace_pb.ts";
import type { TailTracesRequest } from "../gen/moltwire/bus/v1/trace_service_pb.ts";
import { sql } from "../src/db/db.ts";
import { contract, echoEndpoint, eventsOf, kindsOf, stateOf, submit, whenEnded, worker } from "./bus-fixtures/bus.ts";
import { httpAgent, silent } from "./bus-fixtures/http-agent.ts";
import { type Clients, dialects, eventually, fakeClock, type Org, refusal, start, type World } from "./harness.ts";

type Tail = Partial<Omit<TailTracesRequest, "$typeName" | "$unknown">>;

/** Reads a tail until `enough` says so; gives the events and the last cursor. */
async function tail(by: Clients, request: Tail, enough: (events: readonly TraceEvent[]) => boolean) {
  const events: TraceEvent[] = [];
  let cursor = request.afterCursor ?? "";
  if (enough(events)) return { events, cursor };
  const stream = opened((options) => by.traces.tailTraces(request, options));
  for await (const message of stream) {
    cursor = message.cursor;
    if (message.event.case !== "traceEvent") continue;
    expect(message.event.value.cursor).toBe(cursor);
    events.push(message.event.value);
    if (enough(events)) break;
  }
  return { events, cursor };
}

/** A stream that is closed when it is left: the clients' own go on until their signal ends them. */
async function* opened<Message>(
  open: (options: { readonly signal: AbortSignal }) => AsyncIterable<Message>,
): AsyncGenerator<Message, never> {
  const leaving = new AbortController();
  try {
    yield* open({ signal: leaving.signal });
    throw new Error("the stream has ended");
  } finally {
    leaving.abort();
  }
}

/** A tail from the start over a connection of one's own. */
function rawTail(session: ClientHttp2Session, key: string): ClientHttp2Stream {
  const stream = session.request({
    ":method": "POST",
    ":path": "/moltwire.bus.v1.TraceService/TailTraces",
    "content-type": "application/connect+json",
    authorization: `Bearer ${key}`,
  });
  const request = Buffer.from('{"fromStart":true}');
  stream.on("error", () => {});
  return stream.end(Buffer.concat([Buffer.from([0, 0, 0, 0, request.length]), request]));
}

const sameStep = ({ taskId, kind, details }: TraceEvent) => `${taskId} ${kind} ${JSON.stringify(details)}`;

/** The steps of an echo task. */
const stepsPerTask = 9;

async function echoContract(org: Org): Promise<string> {
  const contractId = await contract(org);
  await org.agent({ capabilities: [contractId], endpoint: echoEndpoint });
  return contractId;
}

describe.each(dialects)("%s", (dialect) => {
  let world: World;
  beforeAll(async () => {
    world = await start(dialect);
  });
  afterAll(() => world[Symbol.asyncDispose]());

  describe("TailTraces", () => {
    test("reconnecting fifty times under load misses nothing, repeats nothing and keeps the order", async () => {
      const org = await world.org();
      const contractId = await echoContract(org);
      const callers = 8;
      const tasksEach = 25;
      const total = callers * tasksEach * stepsPerTask;
      const load = Promise.all(
        Array.from({ length: callers }, async () => {
          for (let n = 0; n < tasksEach; n++) await submit(org.admin, contractId, { input: n });
        }),
      );
      const seen: TraceEvent[] = [];
      let afterCursor = "";
      for (let reconnect = 0; reconnect < 50; reconnect++) {
        const upTo = Math.min(total, seen.length + 1 + ((reconnect * 7) % 40));
        const request = afterCursor ? { afterCursor } : { fromStart: true };
        const part = await tail(org.admin, request, (events) => seen.length + events.length >= upTo);
        seen.push(...part.events);
        afterCursor = part.cursor;
      }
      const rest = await tail(org.admin, { afterCursor }, (events) => seen.length + events.length >= total);
      seen.push(...rest.events);
      await load;
      const whole = await tail(org.admin, { fromStart: true }, (events) => events.length >= total);
      expect(seen.map(sameStep)).toEqual(whole.events.map(sameStep));
      expect(new Set(seen.map(({ cursor }) => cursor)).size).toBe(total);
      for (const steps of Object.values(Object.groupBy(seen, ({ traceId }) => traceId))) {
        const kept = await eventsOf(org.admin, steps![0]!.traceId);
        expect(steps!.map(sameStep)).toEqual(kept.map(sameStep));
      }
    });

    test("going on after any cursor gives exactly the rest", async () => {
      const org = await world.org();
      const contractId = await echoContract(org);
      for (let n = 0; n < 3; n++) await submit(org.admin, contractId);
      const total = 3 * stepsPerTask;
      const { events } = await tail(org.admin, { fromStart: true }, (found) => found.length === total);
      await fc.assert(
        fc.asyncProperty(fc.integer({ min: 0, max: total - 2 }), async (n) => {
          const afterCursor = events[n]!.cursor;
          const rest = await tail(org.admin, { afterCursor }, (found) => found.length === total - n - 1);
          expect(rest.events).toEqual(events.slice(n + 1));
        }),
        { numRuns: 12 },
      );
    });

    test("begins with a checkpoint, and without a cursor with what comes next", async () => {
      const org = await world.org();
      const contractId = await echoContract(org);
      await submit(org.admin, contractId, { input: "before" });
      // On PostgreSQL steps are read once no older transaction is open.
      await tail(org.admin, { fromStart: true }, (events) => events.length === stepsPerTask);
      const stream = opened((options) => org.admin.traces.tailTraces({}, options));
      const first = (await stream.next()).value;
      if (first.event.case !== "checkpoint") throw new Error(`${first.event.case} came first`);
      expect(Math.abs(timestampMs(first.event.value) - Date.now())).toBeLessThan(10_000);
      const { traceId } = await submit(org.admin, contractId, { input: "after" });
      const second = (await stream.next()).value;
      expect(second.event).toMatchObject({ case: "traceEvent", value: { traceId } });
      await stream.return(undefined as never);
      const resumed = await tail(org.admin, { afterCursor: first.cursor }, (events) => events.length === stepsPerTask);
      expect(new Set(resumed.events.map((event) => event.traceId))).toEqual(new Set([traceId]));
    });

    test("filters by agent, contract, kind and trace", async () => {
      const org = await world.org();
      const [a, b] = [await echoContract(org), await echoContract(org)];
      const [one, two] = [await org.agent(), await org.agent()];
      const [first, second] = [await submit(one.as, a), await submit(one.as, b)];
      await submit(two.as, a);
      await submit(two.as, b);
      const all = (await tail(org.admin, { fromStart: true }, (events) => events.length === 4 * stepsPerTask)).events;
      const filters: [Tail, (event: TraceEvent) => boolean][] = [
        [{ agentId: one.agentId }, (event) => event.callerAgentId === one.agentId],
        [{ agentId: first.targetAgentId }, (event) => event.targetAgentId === first.targetAgentId],
        [{ contractId: b }, (event) => event.contractId === b],
        [{ traceId: second.traceId }, (event) => event.traceId === second.traceId],
        [{ kinds: [TraceEventKind.DISPATCHED, TraceEventKind.COMPLETED] }, ({ kind }) => [7, 13].includes(kind)],
        [
          { contractId: a, agentId: two.agentId },
          (event) => event.contractId === a && event.callerAgentId === two.agentId,
        ],
      ];
      for (const [filter, fits] of filters) {
        const wanted = all.filter(fits);
        const got = await tail(org.admin, { fromStart: true, ...filter }, (events) => events.length === wanted.length);
        expect(got.events).toEqual(wanted);
      }
    });

    test("an agent sees the traces it opened and the steps it takes part in, and nothing else", async () => {
      const org = await world.org();
      const contractId = await contract(org);
      const doer = await org.agent({ capabilities: [contractId], endpoint: echoEndpoint });
      const [one, two] = [await org.agent(), await org.agent()];
      const [mine, other] = [await submit(one.as, contractId), await submit(two.as, contractId)];
      const whole = await eventsOf(one.as, mine.traceId);
      expect(whole).toHaveLength(stepsPerTask);
      expect(await refusal(one.as.traces.getTrace({ traceId: other.traceId }))).toMatchObject({ reason: "NOT_FOUND" });
      const seenByDoer = (events: readonly TraceEvent[]) => events.length === 2 * 6;
      const given = (await tail(doer.as, { fromStart: true }, seenByDoer)).events;
      expect(given.every(({ targetAgentId }) => targetAgentId === doer.agentId)).toBe(true);
      const last = await submit(one.as, contractId);
      const seen = await tail(one.as, { fromStart: true }, (events) => events.length === 2 * stepsPerTask);
      expect(new Set(seen.events.map(({ traceId }) => traceId))).toEqual(new Set([mine.traceId, last.traceId]));
      const { traces } = await one.as.traces.listTraces({});
      expect(traces.map(({ traceId }) => traceId)).toEqual([last.traceId, mine.traceId]);
      expect((await org.admin.traces.listTraces({})).traces).toHaveLength(3);
    });

    test("a cursor of another organisation, or of another log, is refused", async () => {
      const [org, other] = [await world.org(), await world.org()];
      const contractId = await echoContract(other);
      await submit(other.admin, contractId);
      const { cursor } = await tail(other.admin, { fromStart: true }, (events) => events.length === 1);
      const tries = [
        org.admin.traces.tailTraces({ afterCursor: cursor }),
        other.admin.events.watchEvents({ afterCursor: cursor }),
        other.admin.traces.tailTraces({ afterCursor: `${cursor}x` }),
        other.admin.traces.tailTraces({ afterCursor: "AAAA" }),
      ];
      for (const stream of tries) {
        const found = await refusal(stream[Symbol.asyncIterator]().next());
        expect(found).toMatchObject({
          ...{ code: "InvalidArgument", reason: "INVALID_PAGE_TOKEN" },
          metadata: { field: "after_cursor" },
        });
      }
    });

    test("a reader whose filter lets nothing through is told every 15 s where the log is", async () => {
      const clock = fakeClock(Date.now());
      await using still = await start(dialect, { clock });
      const org = await still.org();
      const contractId = await echoContract(org);
      const stream = opened((options) => org.admin.traces.tailTraces({ contractId: "another" }, options));
      const first = (await stream.next()).value;
      // A checkpoint that was due before the steps were read tells the old place once more.
      for (let told = first; told.cursor === first.cursor; expect(told.event.case).toBe("checkpoint")) {
        let hasCome = false;
        const next = stream.next().then(({ value }) => {
          hasCome = true;
          return value;
        });
        await eventually(async () => {
          clock.advance(15_000);
          await submit(org.admin, contractId);
          return hasCome;
        });
        told = await next;
      }
      await stream.return(undefined as never);
    });

    test("what the filter hides does not hold up what it lets through, also behind a slow transaction", async () => {
      const org = await world.org();
      const [a, b] = [await echoContract(org), await echoContract(org)];
      const { db } = world.server.app;
      const stream = opened((options) => org.admin.traces.tailTraces({ contractId: b }, options));
      await stream.next();
      for (let n = 0; n < 3; n++) {
        const slow = Promise.withResolvers<void>();
        const begun = Promise.withResolvers<void>();
        // On PostgreSQL nothing behind an open transaction is read: the bells have rung when it commits.
        const held = db.tx(async (tx) => {
          await tx.run(sql`update setting set value = value`);
          begun.resolve();
          if (dialect === "postgres") await slow.promise;
        });
        await begun.promise;
        await submit(org.admin, a);
        const { traceId } = await submit(org.admin, b);
        slow.resolve();
        await held;
        // A step that is held up comes behind the next checkpoint.
        for (let step = 0; step < stepsPerTask; step++)
          expect((await stream.next()).value.event).toMatchObject({ value: { traceId } });
      }
      await stream.return(undefined as never);
    });

    test("a reader that does not read holds no memory, and nobody else up", async () => {
      const org = await world.org();
      const contractId = await contract(org, { inputSchema: { type: "number" } });
      await org.agent({ capabilities: [contractId], endpoint: echoEndpoint });
      const session = connectHttp2(world.url, { settings: { initialWindowSize: 1_000 } });
      try {
        rawTail(session, org.adminKey).pause();
        await eventually(() => world.server.app.metrics.openStreams() > 0);
        const reads: number[] = [];
        const { db } = world.server.app;
        const { all } = db.query;
        let most = 0;
        db.query.all = async <Row>(q: Parameters<typeof all>[0]) => {
          const rows = await all<Row>(q);
          if (/from trace_event e join trace/.test(q.sql)) reads.push(rows.length);
          most = Math.max(most, rows.length);
          return rows;
        };
        try {
          for (let n = 0; n < 60; n++) await submit(org.admin, contractId, { input: n });
          const { events } = await tail(org.admin, { fromStart: true }, (found) => found.length === 60 * stepsPerTask);
          expect(events).toHaveLength(60 * stepsPerTask);
          // 540 steps: the reader that reads takes them in pages; the stalled one has taken its page or two, and no more.
          expect(reads.reduce((sum, rows) => sum + rows, 0)).toBeLessThan(2 * 60 * stepsPerTask);
          expect(most).toBeLessThanOrEqual(257);
        } finally {
          db.query.all = all;
        }
      } finally {
        session.destroy();
      }
    });
  });

  describe("WatchTask", () => {
    async function watched(by: Clients, taskId: string, afterCursor = "") {
      const messages = [];
      for await (const message of by.bus.watchTask({ taskId, afterCursor })) messages.push(message);
      return messages;
    }
    const stepsIn = (messages: Awaited<ReturnType<typeof watched>>) =>
      messages.flatMap(({ event }) => (event.case === "step" ? [event.value] : []));

    test("tells first the whole task, then each step as it happens, at last the task as it ended, and is over", async () => {
      const org = await world.org();
      await using agent = await httpAgent(silent);
      const contractId = await contract(org);
      await worker(org, contractId, agent);
      const { taskId } = await submit(org.admin, contractId, { returnImmediately: true });
      const call = await agent.call(0);
      const messages = [];
      for await (const message of org.admin.bus.watchTask({ taskId }))
        if (messages.push(message) === 1) call.answer({ output: 1 });
      const tasks = messages.flatMap(({ event }, n) => (event.case === "task" ? [[n, stateOf(event.value)]] : []));
      expect(tasks).toEqual([
        [0, "WORKING"],
        [messages.length - 1, "COMPLETED"],
      ]);
      const { task } = await org.admin.bus.getTask({ taskId });
      expect(messages.at(-1)!.event.value).toEqual(task);
      const kept = await eventsOf(org.admin, task!.traceId);
      expect(stepsIn(messages).map(sameStep)).toEqual(kept.map(sameStep));
    });

    test("goes on after each cursor with exactly the rest, also after the end, and also in a trace of other tasks", async () => {
      const org = await world.org();
      const contractId = await echoContract(org);
      const headers = { traceparent: "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01" };
      const many = await Promise.all(Array.from({ length: 40 }, () => submit(org.admin, contractId, {}, { headers })));
      const { taskId } = many[20]!;
      const messages = await watched(org.admin, taskId);
      const steps = stepsIn(messages);
      expect(kindsOf(steps)).toHaveLength(stepsPerTask);
      expect(new Set(steps.map((step) => step.taskId))).toEqual(new Set([taskId]));
      for (const [n, { cursor }] of messages.entries()) {
        const rest = await watched(org.admin, taskId, cursor);
        expect(stepsIn(rest)).toEqual(stepsIn(messages.slice(n + 1)));
        expect([rest[0]!.event.case, rest.at(-1)!.event]).toEqual(["task", messages.at(-1)!.event]);
      }
    });

    test("of another's task, or with a cursor that was not made here, is refused", async () => {
      const [org, other] = [await world.org(), await world.org()];
      const contractId = await echoContract(org);
      const { taskId } = await submit(org.admin, contractId);
      for (const by of [other.admin, (await org.agent()).as])
        expect(await refusal(watched(by, taskId))).toMatchObject({ code: "NotFound", reason: "NOT_FOUND" });
      expect(await refusal(watched(org.admin, taskId, "nonsense"))).toMatchObject({ reason: "INVALID_PAGE_TOKEN" });
    });
  });

  describe("WatchEvents and ListEvents", () => {
    test("tell each end of a task once, resume after a cursor, filter by type, and show an agent its own", async () => {
      const org = await world.org();
      const good = await echoContract(org);
      const bad = await contract(org, { outputSchema: { type: "string" } });
      await org.agent({ capabilities: [bad], endpoint: echoEndpoint, breaker: { disabled: true } });
      const [one, two] = [await org.agent(), await org.agent()];
      const made = [];
      for (let n = 0; n < 12; n++) made.push(await submit((n % 3 ? one : two).as, n % 2 ? good : bad));
      const watch = async (by: Clients, request: object, count: number) => {
        const events = [];
        for await (const { item, cursor } of opened((options) => by.events.watchEvents(request, options))) {
          if (item.case !== "event") continue;
          expect(item.value.cursor).toBe(cursor);
          if (events.push(item.value) === count) break;
        }
        return events;
      };
      const all = await watch(org.admin, { fromStart: true }, 18);
      const ends = all.filter(({ type }) => type.startsWith("task."));
      expect(ends.map(({ payload }) => payload?.task_id)).toEqual(made.map(({ taskId }) => taskId));
      expect(all.map(({ type }) => type).slice(0, 3)).toEqual(["task.failed", "deadletter.created", "task.completed"]);
      expect(all[0]).toMatchObject({
        ...{ type: "task.failed", agentId: two.agentId, traceId: made[0]!.traceId },
        payload: { contract_id: bad, contract_version: "1.0.0", state: "FAILED", reason: "CONTRACT_VIOLATION" },
      });
      expect(all[0]!.eventId).toMatch(/^evt_/);
      expect(await watch(org.admin, { afterCursor: all[4]!.cursor }, 13)).toEqual(all.slice(5));
      const completed = all.filter(({ type }) => type === "task.completed");
      for (const types of [["task.completed"], ["nothing.*", "task.completed"]])
        expect(await watch(org.admin, { fromStart: true, types }, 6)).toEqual(completed);
      expect(await watch(org.admin, { fromStart: true, types: ["task.*"] }, 12)).toEqual(ends);
      const own = all.filter(({ agentId }) => agentId === one.agentId);
      expect(await watch(one.as, { fromStart: true }, own.length)).toEqual(own);
      const list = async (by: Clients, request: object) => {
        const events = [];
        for (let pageToken = ""; ; ) {
          const page = await by.events.listEvents({ pageSize: 5, pageToken, ...request });
          events.push(...page.events);
          pageToken = page.nextPageToken;
          if (!pageToken) return events;
        }
      };
      expect(await list(org.admin, {})).toEqual(all);
      expect(await list(org.admin, { types: ["task.completed"] })).toEqual(completed);
      expect(await list(one.as, { pageSize: 3 })).toEqual(own);
      expect(await list(org.admin, { types: ["none.*"] })).toEqual([]);
    });
  });

  test("two hundred streams that are closed, or whose readers vanish, leave nothing behind", async () => {
    const org = await world.org();
    const contractId = await echoContract(org);
    const { metrics, db, stopping, ending } = world.server.app;
    await eventually(() => metrics.openStreams() === 0);
    const { listen } = db;
    const bells: AbortSignal[] = [];
    db.listen = (topics, signal) => {
      bells.push(signal);
      return listen(topics, signal);
    };
    const listeners = () => [stopping, ending].map((signal) => getEventListeners(signal, "abort").length);
    const before = listeners();
    try {
      // A connection has a hundred streams at most.
      const closing = Array.from({ length: 4 }, () => world.as(org.adminKey)).flatMap((by) =>
        Array.from({ length: 25 }, (_, n) =>
          opened<unknown>((options) =>
            n % 2 ? by.traces.tailTraces({}, options) : by.events.watchEvents({}, options),
          ),
        ),
      );
      await Promise.all(closing.map((stream) => stream.next()));
      const vanishing = Array.from({ length: 4 }, () => connectHttp2(world.url));
      for (const session of vanishing) for (let n = 0; n < 25; n++) rawTail(session, org.adminKey).resume();
      await eventually(() => metrics.openStreams() === 200);
      await submit(org.admin, contractId);
      for (const session of vanishing) session.destroy();
      await Promise.all(closing.map((stream) => stream.return(undefined as never)));
      await eventually(() => metrics.openStreams() === 0);
      expect(bells.length).toBeGreaterThanOrEqual(400);
      await eventually(() => bells.every((signal) => signal.aborted));
      expect(listeners()).toEqual(before);
    } finally {
      db.listen = listen;
    }
    expect(stateOf(await whenEnded(org.admin, (await submit(org.admin, contractId)).taskId))).toBe("COMPLETED");
  });
});
