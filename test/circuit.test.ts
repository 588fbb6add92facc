import { durationFromMs, durationMs, timestampMs } from "@bufbuild/protobuf/wkt";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { RetryInfoSchema } from "../gen/google/rpc/error_details_pb.ts";
import { CircuitState } from "../gen/moltwire/bus/v1/agent_pb.ts";
import { BudgetPeriod, BudgetScope } from "../gen/moltwire/bus/v1/budget_pb.ts";
import { TaskState } from "../gen/moltwire/bus/v1/task_pb.ts";
import { TraceEventKind } from "../gen/moltwire/bus/v1/trace_pb.ts";
import { countOpenCircuits, putCircuit } from "../src/bus/circuit/circuit-store.ts";
import { sql } from "../src/db/db.ts";
import {
  contract,
  endedAsTimePasses,
  eventsOf,
  httpEndpoint,
  kindsOf,
  nameOf,
  reasonOf,
  stateOf,
  submit,
  whenEnded,
  worker,
} from "./bus-fixtures/bus.ts";
import { deadUrl, echo, failing, type Handle, httpAgent, silent } from "./bus-fixtures/http-agent.ts";
import { storage } from "./bus-fixtures/storage.ts";
import { type Clients, dialects, eventually, fakeClock, type Org, refusal, start, type World } from "./harness.ts";

const failed = failing("internal");
const breaker = (failureThreshold: number, windowMs = 60_000, openMs = 30_000) => ({
  failureThreshold,
  window: durationFromMs(windowMs),
  openDuration: durationFromMs(openMs),
});

const circuitOf = async (by: Clients, agentId: string) => (await by.agents.getAgent({ agentId })).agent!.circuit!;
const stateOfCircuit = async (by: Clients, agentId: string) =>
  nameOf(CircuitState, (await circuitOf(by, agentId)).state);
const retryMs = ({ error }: Awaited<ReturnType<typeof refusal>>) =>
  durationMs(error.findDetails(RetryInfoSchema)[0]!.retryDelay!);
const changesOf = async (by: Clients, traceId: string) =>
  (await eventsOf(by, traceId))
    .filter(({ kind }) => kind === TraceEventKind.CIRCUIT_CHANGED)
    .map(({ details }) => `${details?.from}-${details?.to}`);
const openedEvents = async (by: Clients) =>
  (await by.events.listEvents({ pageSize: 250 })).events.filter(({ type }) => type === "circuit.opened");

describe.each(dialects)("%s", (dialect) => {
  const clock = fakeClock(Date.now());
  let world: World;
  beforeAll(async () => {
    world = await start(dialect, { clock });
  });
  afterAll(() => world[Symbol.asyncDispose]());

  /** An agent whose circuit is open after one failure, and the contract that only it can do. */
  async function broken(org: Org, at: { url: string }, openMs = 30_000, init: Parameters<typeof contract>[1] = {}) {
    const contractId = await contract(org, init);
    const { agentId } = await worker(org, contractId, at.url, { breaker: breaker(1, 60_000, openMs) });
    await submit(org.admin, contractId);
    expect(await stateOfCircuit(org.admin, agentId)).toBe("OPEN");
    return { contractId, agentId };
  }

  test("opens when as many failures as are set lie within the window, and not when the first of them has left it", async () => {
    const org = await world.org();
    await using agent = await httpAgent(failed);
    const contractId = await contract(org);
    const { agentId } = await worker(org, contractId, agent, { breaker: breaker(3, 10_000, 5_000) });
    const counts: string[] = [];
    for (const waitMs of [0, 6_000, 4_000, 5_999]) {
      clock.advance(waitMs);
      await submit(org.admin, contractId);
      const { state, failureCount } = await circuitOf(org.admin, agentId);
      counts.push(`${nameOf(CircuitState, state)} ${failureCount}`);
    }
    expect(counts).toEqual(["CLOSED 1", "CLOSED 2", "CLOSED 2", "OPEN 3"]);
    const circuit = await circuitOf(org.admin, agentId);
    expect([timestampMs(circuit.openTime!), timestampMs(circuit.retryTime!)]).toEqual([
      clock.now(),
      clock.now() + 5_000,
    ]);
    expect((await org.admin.agents.listAgents({})).agents.map((one) => one.circuit)).toEqual([undefined]);
  });

  test("while it is open a submit is refused with the time to try again, and the agent hears nothing", async () => {
    const org = await world.org();
    await using agent = await httpAgent(failed);
    const { contractId, agentId } = await broken(org, agent, 5_000);
    const first = await refusal(submit(org.admin, contractId));
    expect([first.code, first.reason]).toEqual(["Unavailable", "CIRCUIT_OPEN"]);
    expect(first.metadata).toMatchObject({ agent_id: agentId, failure_count: "1" });
    expect(retryMs(first)).toBe(5_000);
    clock.advance(4_999);
    expect(retryMs(await refusal(submit(org.admin, contractId)))).toBe(1);
    const { events } = await org.admin.traces.getTrace({ traceId: first.metadata.trace_id! });
    expect(kindsOf(events)).toEqual(["SUBMITTED", "INPUT_CHECKED", "ROUTED", "REFUSED"]);
    expect(agent.calls).toHaveLength(1);
    const dry = await org.admin.bus.submitTask({ contractId, validateOnly: true });
    expect(kindsOf(dry.decisionPath).at(-1)).toBe("REFUSED");
  });

  test("after its time one task tries the agent: a failure opens it again for as long, a success closes it", async () => {
    const org = await world.org();
    await using agent = await httpAgent(failed);
    const { contractId, agentId } = await broken(org, agent, 5_000);
    const openMs = clock.now();
    clock.advance(5_000);
    const again = await submit(org.admin, contractId);
    expect(stateOf(again)).toBe("FAILED");
    expect(await changesOf(org.admin, again.traceId)).toEqual(["OPEN-HALF_OPEN", "HALF_OPEN-OPEN"]);
    expect(retryMs(await refusal(submit(org.admin, contractId)))).toBe(5_000);
    agent.handle = echo;
    clock.advance(5_000);
    const good = await submit(org.admin, contractId);
    expect(stateOf(good)).toBe("COMPLETED");
    expect(await changesOf(org.admin, good.traceId)).toEqual(["OPEN-HALF_OPEN", "HALF_OPEN-CLOSED"]);
    expect(kindsOf(await eventsOf(org.admin, good.traceId)).at(-1)).toBe("COMPLETED");
    const circuit = await circuitOf(org.admin, agentId);
    expect([nameOf(CircuitState, circuit.state), circuit.failureCount]).toEqual(["CLOSED", 0]);
    expect([timestampMs(circuit.openTime!), circuit.retryTime]).toEqual([openMs + 5_000, undefined]);
    const events = await eventually(async () => {
      const found = await openedEvents(org.admin);
      return found.length === 2 && found;
    });
    expect(events.map(({ agentId: of, payload }) => [of, payload?.from, payload?.failure_count])).toEqual([
      [agentId, "CLOSED", 1],
      [agentId, "HALF_OPEN", 1],
    ]);
    expect(stateOf(await submit(org.admin, contractId))).toBe("COMPLETED");
  });

  test("of a hundred callers at once exactly one reaches an agent that is tried, and all go when it has answered", async () => {
    const org = await world.org();
    await using agent = await httpAgent(failed);
    const { contractId, agentId } = await broken(org, agent, 5_000);
    agent.handle = silent;
    clock.advance(5_000);
    const callers = Array.from({ length: 100 }, () =>
      submit(org.admin, contractId).then(
        (task) => (stateOf(task) === "COMPLETED" ? "COMPLETED" : reasonOf(task)),
        async (error: unknown) => (await refusal(Promise.reject(error))).reason,
      ),
    );
    const probe = await agent.call(1);
    expect(await stateOfCircuit(org.admin, agentId)).toBe("HALF_OPEN");
    let done = 0;
    for (const caller of callers) void caller.then(() => done++);
    await eventually(() => done === 99);
    expect(agent.calls).toHaveLength(2);
    expect(await countOpenCircuits(world.server.app.db.query)).toMatchObject({ halfOpen: 1 });
    agent.handle = echo;
    probe.answer({ output: 1 });
    const outcomes = Object.groupBy(await Promise.all(callers), (outcome) => outcome);
    expect([outcomes.COMPLETED?.length, outcomes.CIRCUIT_OPEN?.length]).toEqual([1, 99]);
    // The others were refused, and not accepted to fail: the only dead letter is of the task that opened the circuit.
    expect((await org.admin.deadLetters.listDeadLetters({})).deadLetters).toHaveLength(1);
    expect(await stateOfCircuit(org.admin, agentId)).toBe("CLOSED");
    expect(stateOf(await submit(org.admin, contractId))).toBe("COMPLETED");
  });

  test("a task reserves the try of no agent that policies keep from it", async () => {
    const org = await world.org();
    await using agent = await httpAgent(failed);
    const contractId = await contract(org);
    const init = { breaker: breaker(1) };
    const first = await worker(org, contractId, agent, init);
    const second = await worker(org, contractId, agent, init);
    for (const { agentId } of [first, second]) await submit(org.admin, contractId, { targetAgentId: agentId });
    const cedarText = `forbid (principal, action == Action::"invoke", resource) when { context has target_agent_id && context.target_agent_id == "${first.agentId}" };`;
    await org.admin.policies.putPolicy({ policyId: "not-the-first", cedarText });
    clock.advance(30_000);
    agent.handle = echo;
    for (let n = 0; n < 2; n++) expect(stateOf(await submit(org.admin, contractId))).toBe("COMPLETED");
    expect(await stateOfCircuit(org.admin, second.agentId)).toBe("CLOSED");
    expect(await stateOfCircuit(org.admin, first.agentId)).toBe("OPEN");
  });

  test("a task that budgets refuse gives the try back that it had reserved", async () => {
    const org = await world.org();
    await using agent = await httpAgent(failed);
    const { contractId, agentId } = await broken(org, agent, 30_000, { estimatedTokens: 10n });
    const budget = { scope: BudgetScope.ORG, period: BudgetPeriod.TOTAL };
    await org.admin.budgets.setBudget({ ...budget, limitTokens: 5n });
    clock.advance(30_000);
    agent.handle = echo;
    expect((await refusal(submit(org.admin, contractId))).reason).toBe("BUDGET_EXCEEDED");
    expect(await stateOfCircuit(org.admin, agentId)).toBe("OPEN");
    await org.admin.budgets.setBudget({ ...budget, limitTokens: 1_000n });
    expect(stateOf(await submit(org.admin, contractId))).toBe("COMPLETED");
  });

  test("a try that nobody ever ends blocks the agent no longer than it could have taken", async () => {
    const org = await world.org();
    await using agent = await httpAgent();
    const contractId = await contract(org);
    const { agentId } = await worker(org, contractId, agent);
    const lost = { taskId: "tsk_lost", attempt: 1, untilMs: clock.now() + 10_000 };
    const circuit = { state: CircuitState.HALF_OPEN, failuresMs: [1], openMs: 1, retryMs: null, probe: lost };
    await world.server.app.db.tx((tx) => putCircuit(tx, org.orgId, agentId, circuit));
    clock.advance(9_999);
    expect((await refusal(submit(org.admin, contractId))).reason).toBe("CIRCUIT_OPEN");
    clock.advance(1);
    const task = await submit(org.admin, contractId);
    expect(stateOf(task)).toBe("COMPLETED");
    expect(await changesOf(org.admin, task.traceId)).toEqual(["HALF_OPEN-CLOSED"]);
  });

  test("a try that is canceled tells nothing, and the next task may try at once", async () => {
    const org = await world.org();
    await using agent = await httpAgent(failed);
    const { contractId, agentId } = await broken(org, agent, 5_000);
    agent.handle = silent;
    clock.advance(5_000);
    const { taskId, traceId } = await submit(org.admin, contractId, { returnImmediately: true });
    await agent.call(1);
    expect(retryMs(await refusal(submit(org.admin, contractId)))).toBe(1_000);
    await org.admin.bus.cancelTask({ taskId });
    expect(await changesOf(org.admin, traceId)).toEqual(["OPEN-HALF_OPEN", "HALF_OPEN-OPEN"]);
    agent.handle = echo;
    expect(stateOf(await submit(org.admin, contractId))).toBe("COMPLETED");
    expect(await stateOfCircuit(org.admin, agentId)).toBe("CLOSED");
    await world.settled();
    expect(await openedEvents(org.admin)).toHaveLength(1);
  });

  test.each<[string, string, Handle | undefined]>([
    ["answers an error", "OPEN", failed],
    ["says that it is unavailable", "OPEN", failing("unavailable", 503)],
    ["answers garbage", "OPEN", ({ response }) => void response.end("garbage")],
    ["breaks the contract with its output", "OPEN", () => ({ output: "text" })],
    ["cuts the connection", "OPEN", ({ response }) => void response.destroy()],
    ["is not there", "OPEN", undefined],
    ["blames the input", "CLOSED", failing("invalid_argument", 400)],
    ["does as it should", "CLOSED", () => ({ output: 1 })],
  ])("that one attempt may open, of an agent that %s, is %s", async (_what, state, handle) => {
    const org = await world.org();
    await using agent = await httpAgent(handle);
    const contractId = await contract(org, { outputSchema: { type: "number" } });
    const { agentId } = await worker(org, contractId, handle ? agent : await deadUrl(), { breaker: breaker(1) });
    await submit(org.admin, contractId);
    expect(await stateOfCircuit(org.admin, agentId)).toBe(state);
  });

  test("an answer after the contract's timeout counts, and one after a caller's sooner deadline does not", async () => {
    await using timely = await start(dialect);
    const org = await timely.org();
    await using agent = await httpAgent(silent);
    const [slow, quick] = [await contract(org, { timeoutMs: 60_000 }), await contract(org, { timeoutMs: 100 })];
    const { agentId } = await worker(org, slow, agent, { capabilities: [slow, quick], breaker: breaker(1) });
    // Its caller may be gone by then; the task's deadline is what matters.
    await submit(org.admin, slow, {}, { timeoutMs: 4_000 }).catch(() => undefined);
    const [late] = await eventually(async () => {
      const { tasks } = await org.admin.bus.listTasks({ state: TaskState.FAILED });
      return tasks.length > 0 && tasks;
    });
    expect([reasonOf(late), late?.error?.metadata.cause]).toEqual(["OUTCOME_UNKNOWN", "DEADLINE_EXCEEDED"]);
    expect(await stateOfCircuit(org.admin, agentId)).toBe("CLOSED");
    expect(stateOf(await submit(org.admin, quick))).toBe("FAILED");
    expect(await stateOfCircuit(org.admin, agentId)).toBe("OPEN");
  });

  test("never opens when it is disabled, and by default opens at the fifth failure", async () => {
    const org = await world.org();
    await using agent = await httpAgent(failed);
    const [off, on] = [await contract(org), await contract(org)];
    const never = await worker(org, off, agent, { breaker: { disabled: true } });
    const fifth = await worker(org, on, agent);
    for (let n = 0; n < 6; n++) await submit(org.admin, off);
    for (let n = 0; n < 4; n++) await submit(org.admin, on);
    expect(await stateOfCircuit(org.admin, fifth.agentId)).toBe("CLOSED");
    await submit(org.admin, on);
    expect(await stateOfCircuit(org.admin, fifth.agentId)).toBe("OPEN");
    expect(await circuitOf(org.admin, never.agentId)).toMatchObject({ state: CircuitState.CLOSED, failureCount: 0 });
  });

  test("is closed by naming the endpoint or the breaker in an update, and by nothing else", async () => {
    const org = await world.org();
    await using agent = await httpAgent(failed);
    const { contractId, agentId } = await broken(org, agent);
    const update = (paths: string[]) =>
      org.admin.agents.updateAgent({
        agentId,
        updateMask: { paths },
        change: { description: "mended", endpoint: httpEndpoint(agent.url), breaker: breaker(1) },
      });
    await update(["description"]);
    expect(await stateOfCircuit(org.admin, agentId)).toBe("OPEN");
    await update(["endpoint"]);
    expect(await stateOfCircuit(org.admin, agentId)).toBe("CLOSED");
    await submit(org.admin, contractId);
    expect(await stateOfCircuit(org.admin, agentId)).toBe("OPEN");
    await update(["breaker"]);
    expect(await stateOfCircuit(org.admin, agentId)).toBe("CLOSED");
  });

  test("what an endpoint that was replaced meanwhile still fails does not count for the new one", async () => {
    const org = await world.org();
    await using old = await httpAgent(silent);
    await using fresh = await httpAgent();
    const contractId = await contract(org, { timeoutMs: 60_000 });
    const { agentId } = await worker(org, contractId, old, { breaker: breaker(1) });
    const { taskId } = await submit(org.admin, contractId, { returnImmediately: true });
    const call = await old.call(0);
    const change = { endpoint: httpEndpoint(fresh.url) };
    await org.admin.agents.updateAgent({ agentId, updateMask: { paths: ["endpoint"] }, change });
    call.answer({ code: "internal" }, 500);
    expect(stateOf(await whenEnded(org.admin, taskId))).toBe("FAILED");
    expect(await stateOfCircuit(org.admin, agentId)).toBe("CLOSED");
  });

  test("nothing is written for agents that do not fail, and nothing is left of one that is deleted", async () => {
    const org = await world.org();
    await using agent = await httpAgent();
    const contractId = await contract(org);
    const { agentId } = await worker(org, contractId, agent);
    const rows = () =>
      world.server.app.db.query.all(sql`select agent_id from agent_circuit where org_id = ${org.orgId}`);
    for (let n = 0; n < 3; n++) await submit(org.admin, contractId);
    expect(await rows()).toEqual([]);
    agent.handle = failed;
    await submit(org.admin, contractId);
    expect(await rows()).toHaveLength(1);
    await org.admin.agents.deleteAgent({ agentId });
    expect(await rows()).toEqual([]);
  });

  test("another organisation's agents, and another agent at the same place, have circuits of their own", async () => {
    await using agent = await httpAgent(failed);
    const [one, two] = [await world.org(), await world.org()];
    await broken(one, agent);
    const contractId = await contract(two);
    const { agentId } = await worker(two, contractId, agent, { breaker: breaker(1) });
    expect(await stateOfCircuit(two.admin, agentId)).toBe("CLOSED");
    expect((await refusal(one.admin.agents.getAgent({ agentId }))).reason).toBe("NOT_FOUND");
  });

  describe("when a circuit opens", () => {
    test("other agents are called instead, and the trace tells why", async () => {
      const org = await world.org();
      await using bad = await httpAgent(failed);
      await using good = await httpAgent();
      const { contractId, agentId } = await broken(org, bad);
      const other = await worker(org, contractId, good);
      const targets = new Set<string>();
      for (let n = 0; n < 4; n++) {
        const task = await submit(org.admin, contractId);
        targets.add(task.targetAgentId);
        const routed = (await eventsOf(org.admin, task.traceId)).find(({ kind }) => kind === TraceEventKind.ROUTED);
        expect(routed?.details?.candidates).toMatchObject([
          { agent_id: other.agentId, chosen: true },
          { agent_id: agentId, chosen: false, score: 0, why: expect.stringContaining("OPEN") },
        ]);
      }
      expect([...targets]).toEqual([other.agentId]);
      const insisted = await refusal(submit(org.admin, contractId, { targetAgentId: agentId }));
      expect(insisted.reason).toBe("CIRCUIT_OPEN");
    });

    test("of all agents, a fallback contract does it; and when its agents' are open too, the submit is refused", async () => {
      const org = await world.org();
      await using bad = await httpAgent(failed);
      await using good = await httpAgent();
      const second = await contract(org);
      await worker(org, second, good, { breaker: breaker(1, 60_000, 5_000) });
      const { contractId } = await broken(org, bad, 60_000);
      const first = await contract(org, { capability: contractId, fallbacks: [{ contractId: second }] });
      const task = await submit(org.admin, first);
      expect([stateOf(task), bad.calls.length, good.calls.length]).toEqual(["COMPLETED", 1, 1]);
      expect(kindsOf(await eventsOf(org.admin, task.traceId))).toContain("FALLBACK");
      good.handle = failed;
      expect(reasonOf(await submit(org.admin, first))).toBe("ADAPTER_ERROR");
      const refused = await refusal(submit(org.admin, first));
      expect([refused.reason, bad.calls.length, good.calls.length]).toEqual(["CIRCUIT_OPEN", 1, 2]);
    });

    test("those that may not try the agent go to the fallback contract, one of them tries", async () => {
      const org = await world.org();
      await using bad = await httpAgent(failed);
      await using good = await httpAgent();
      const second = await contract(org);
      await worker(org, second, good);
      const { contractId } = await broken(org, bad, 5_000);
      const first = await contract(org, { capability: contractId, fallbacks: [{ contractId: second }] });
      bad.handle = silent;
      clock.advance(5_000);
      const tasks = Array.from({ length: 20 }, () => submit(org.admin, first));
      const probe = await bad.call(1);
      await good.call(18);
      probe.answer({ output: 1 });
      expect((await Promise.all(tasks)).map(stateOf)).toEqual(Array.from({ length: 20 }, () => "COMPLETED"));
      expect([bad.calls.length, good.calls.length]).toEqual([2, 19]);
    });

    test("while a task waits for its next attempt, the agent is passed over: for another, a fallback, or the end", async () => {
      await using steady = await start(dialect, { clock, ids: { ...world.server.app.ids, chance: () => 1 } });
      const org = await steady.org();
      await using bad = await httpAgent(failed);
      await using good = await httpAgent();
      const second = await contract(org);
      await worker(org, second, good);
      const retrying = { retries: 3, backoffMs: 60_000 };
      const alone = await contract(org, retrying);
      const backed = await contract(org, { ...retrying, capability: alone, fallbacks: [{ contractId: second }] });
      await worker(org, alone, bad, { breaker: breaker(2, 60_000, 3_600_000) });
      const made = [];
      for (const contractId of [alone, backed]) {
        const task = await submit(org.admin, contractId, { returnImmediately: true });
        await eventually(async () => kindsOf(await eventsOf(org.admin, task.traceId)).includes("ATTEMPT_FAILED"));
        made.push(task);
      }
      clock.advance(60_000);
      const [failedTask, savedTask] = await Promise.all(
        made.map(({ taskId }) => endedAsTimePasses(clock, org.admin, taskId)),
      );
      expect([stateOf(failedTask), reasonOf(failedTask)]).toEqual(["FAILED", "CIRCUIT_OPEN"]);
      expect([stateOf(savedTask), bad.calls.length, good.calls.length]).toEqual(["COMPLETED", 2, 1]);
    });
  });
});

describe.each(dialects)("%s, across servers", (dialect) => {
  test("a circuit stands after a restart as it stood before", async () => {
    await using place = await storage(dialect);
    await using agent = await httpAgent(failed);
    const clock = fakeClock(Date.now());
    let adminKey: string;
    let agentId: string;
    let contractId: string;
    {
      await using before = await start(dialect, { ...place.options, clock });
      const org = await before.org();
      adminKey = org.adminKey;
      contractId = await contract(org);
      ({ agentId } = await worker(org, contractId, agent, { breaker: breaker(2, 60_000, 5_000) }));
      await submit(org.admin, contractId);
    }
    for (const [state, calls] of [
      ["CLOSED", 2],
      ["OPEN", 2],
    ] as const) {
      await using after = await start(dialect, { ...place.options, clock });
      const by = after.as(adminKey);
      expect(await stateOfCircuit(by, agentId)).toBe(state);
      if (state === "CLOSED") await submit(by, contractId);
      else expect((await refusal(submit(by, contractId))).reason).toBe("CIRCUIT_OPEN");
      expect(agent.calls).toHaveLength(calls);
    }
  });

  test("a try whose server stops in its middle is given up by the restart, and the next task may try", async () => {
    await using place = await storage(dialect);
    await using agent = await httpAgent(failed);
    const clock = fakeClock(Date.now());
    let adminKey: string;
    const ids: Record<string, string> = {};
    const tasks: Record<string, string> = {};
    {
      await using before = await start(dialect, { ...place.options, clock, drainMs: 0 });
      const org = await before.org();
      adminKey = org.adminKey;
      for (const name of ["once", "repeated"]) {
        const contractId = await contract(org, {
          contractId: name,
          repeatable: name === "repeated",
          timeoutMs: 60_000,
        });
        ids[name] = (await worker(org, contractId, agent, { breaker: breaker(1, 60_000, 5_000) })).agentId;
        await submit(org.admin, contractId);
      }
      agent.handle = silent;
      clock.advance(5_000);
      for (const name of ["once", "repeated"])
        tasks[name] = (await submit(org.admin, name, { returnImmediately: true })).taskId;
      await agent.call(3);
      for (const agentId of Object.values(ids)) expect(await stateOfCircuit(org.admin, agentId)).toBe("HALF_OPEN");
      clock.advance(1); // passes the end of the drain, which is now
      const closing = before.server.close();
      await eventually(() => before.server.app.stopping.aborted);
      clock.advance(1);
      await closing;
    }
    agent.handle = echo;
    await using after = await start(dialect, { ...place.options, clock });
    const by = after.as(adminKey);
    expect(stateOf(await whenEnded(by, tasks.repeated!))).toBe("COMPLETED");
    expect(await stateOfCircuit(by, ids.repeated!)).toBe("CLOSED");
    expect(reasonOf(await whenEnded(by, tasks.once!))).toBe("OUTCOME_UNKNOWN");
    expect(await stateOfCircuit(by, ids.once!)).toBe("OPEN");
    expect(stateOf(await submit(by, "once"))).toBe("COMPLETED");
    expect(await stateOfCircuit(by, ids.once!)).toBe("CLOSED");
  });
});

describe.runIf(dialects.includes("postgres"))("two replicas on one PostgreSQL database", () => {
  test("count the failures of an agent together, and let one task through between them", async () => {
    await using place = await storage("postgres");
    await using agent = await httpAgent(failed);
    const clock = fakeClock(Date.now());
    await using one = await start("postgres", { ...place.options, clock });
    await using two = await start("postgres", { ...place.options, clock });
    const org = await one.org();
    const both = [org.admin, two.as(org.adminKey)] as const;
    const contractId = await contract(org);
    const { agentId } = await worker(org, contractId, agent, { breaker: breaker(20, 60_000, 5_000) });
    await Promise.all(Array.from({ length: 20 }, (_, n) => submit(both[n % 2]!, contractId)));
    for (const by of both)
      expect(await circuitOf(by, agentId)).toMatchObject({ state: CircuitState.OPEN, failureCount: 20 });
    agent.handle = silent;
    clock.advance(5_000);
    const made = await Promise.allSettled(
      Array.from({ length: 100 }, (_, n) => submit(both[n % 2]!, contractId, { returnImmediately: true })),
    );
    const probe = await agent.call(20);
    const accepted = made.flatMap((one) => (one.status === "fulfilled" ? [one.value.taskId] : []));
    const open = async () => (await org.admin.bus.listTasks({ state: TaskState.WORKING })).tasks;
    await eventually(async () => (await org.admin.bus.listTasks({ state: TaskState.SUBMITTED })).tasks.length === 0);
    expect((await open()).map(({ taskId }) => taskId)).toEqual([probe.task.taskId]);
    expect(agent.calls).toHaveLength(21);
    probe.answer({ output: 1 });
    const ended = await Promise.all(accepted.map((taskId) => whenEnded(org.admin, taskId)));
    expect(ended.filter((task) => stateOf(task) === "COMPLETED")).toHaveLength(1);
    expect(ended.filter((task) => reasonOf(task) === "CIRCUIT_OPEN")).toHaveLength(accepted.length - 1);
    for (const by of both) expect(await stateOfCircuit(by, agentId)).toBe("CLOSED");
  });
});
