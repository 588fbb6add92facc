import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { timestampMs } from "@bufbuild/protobuf/wkt";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { QuotaFailureSchema, RetryInfoSchema } from "../gen/google/rpc/error_details_pb.ts";
import { BudgetPeriod, BudgetScope } from "../gen/moltwire/bus/v1/budget_pb.ts";
import type { Task } from "../gen/moltwire/bus/v1/task_pb.ts";
import { TraceEventKind } from "../gen/moltwire/bus/v1/trace_pb.ts";
import { reserveBudgets, stillWithinBudgets } from "../src/bus/budget/reserve-budgets.ts";
import { maxPerPlace } from "../src/bus/dispatch.ts";
import { sql } from "../src/db/db.ts";
import { eventsOf, kindsOf, nameOf, reasonOf, stateOf, submit, value, whenEnded } from "./bus-fixtures/bus.ts";
import { type Call, failing, httpAgent, silent } from "./bus-fixtures/http-agent.ts";
import { asTold, begin, limit, metered, microsOf, refusedWith, tokensOf, use } from "./bus-fixtures/metered.ts";
import { migratedDatabase } from "./engines.ts";
import { type Clients, dialects, eventually, fakeClock, type Org, refusal, start, type World } from "./harness.ts";

const { AGENT, ORG, GRANT, TRACE, KEY, MODEL } = BudgetScope;
const { DAY, TOTAL } = BudgetPeriod;

/** Answers the calls that wait and those to come, each with five tokens. */
const answerFive = (agent: { handle: unknown; calls: readonly Call[] }) => {
  const five = { output: null, usage: { inputTokens: 2, outputTokens: 3 } };
  agent.handle = () => five;
  for (const call of agent.calls) if (!call.response.writableEnded) call.answer(five);
};

/** Submits at once, by the callers in turn; gives the tasks that were accepted and the reasons of the others. */
async function rush(callers: readonly Clients[], contractId: string, count: number) {
  const accepted: Task[] = [];
  const reasons = new Map<string, number>();
  await Promise.all(
    Array.from({ length: count }, async (_, n) => {
      const task = begin(callers[n % callers.length]!, contractId);
      const reason = await refusedWith(task);
      if (reason === undefined) accepted.push(await task);
      else reasons.set(reason, (reasons.get(reason) ?? 0) + 1);
    }),
  );
  return { accepted, refused: Object.fromEntries(reasons) };
}

const budgeted = async (by: Clients, { traceId }: Task) =>
  (await eventsOf(by, traceId)).filter(({ kind }) => kind === TraceEventKind.BUDGETED).map(({ details }) => details);

describe.each(dialects)("%s", (dialect) => {
  let world: World;
  beforeAll(async () => {
    world = await start(dialect);
  });
  afterAll(() => world[Symbol.asyncDispose]());

  test("of 200 tasks at once that reserve 10 each a budget of 1,000 lets exactly 100 in, and settled at 5 each 500 are spent", async () => {
    const org = await world.org();
    await using agent = await httpAgent(silent);
    const { contractId } = await metered(org, agent, 10);
    await limit(org.admin, 1_000);
    await limit(org.admin, 1_000_000, { scope: TRACE, subjectId: "*" });
    await limit(org.admin, 1_500, { period: DAY });
    const { accepted, refused } = await rush([org.admin], contractId, 200);
    expect([accepted.length, refused]).toEqual([100, { BUDGET_EXCEEDED: 100 }]);
    expect(await tokensOf(org.admin)).toEqual([0, 1_000]);
    expect(await tokensOf(org.admin, { period: DAY })).toEqual([0, 1_000]);
    answerFive(agent);
    for (const { taskId } of accepted) expect(stateOf(await whenEnded(org.admin, taskId))).toBe("COMPLETED");
    expect(await tokensOf(org.admin)).toEqual([500, 0]);
    expect(await tokensOf(org.admin, { period: DAY })).toEqual([500, 0]);
    const left = await world.server.app.db.query.all(sql`select * from budget_reserve where org_id = ${org.orgId}`);
    expect(left).toEqual([]);
  });

  describe("each scope counts its own, and leaves others alone", () => {
    type Case = {
      readonly org: Org;
      readonly contractId: string;
      readonly worksFor: string;
      readonly caller: Awaited<ReturnType<Org["agent"]>>;
      readonly keyId: string;
    };
    const trace = (id: string) => ({ headers: { traceparent: `00-${id.repeat(32)}-${"1".repeat(16)}-01` } });
    const go = (by: Clients, contractId: string, options?: Parameters<typeof submit>[3]) =>
      submit(by, contractId, { returnImmediately: true }, options);
    test.each<[string, BudgetScope, (c: Case) => string, (c: Case) => Promise<Task>, (c: Case) => Promise<Task>]>([
      [
        "AGENT",
        AGENT,
        (c) => c.caller.agentId,
        (c) => go(c.caller.as, c.contractId),
        async (c) => go((await c.org.agent()).as, c.contractId),
      ],
      [
        "AGENT by an administrator",
        AGENT,
        (c) => c.caller.agentId,
        (c) => submit(c.org.admin, c.contractId, { agentId: c.caller.agentId, returnImmediately: true }),
        (c) => go(c.org.admin, c.contractId),
      ],
      ["KEY", KEY, (c) => c.keyId, (c) => go(c.caller.as, c.contractId), (c) => go(c.org.admin, c.contractId)],
      [
        "TRACE",
        TRACE,
        () => "a".repeat(32),
        (c) => go(c.caller.as, c.contractId, trace("a")),
        (c) => go(c.caller.as, c.contractId, trace("b")),
      ],
      [
        "MODEL",
        MODEL,
        () => "small-1",
        (c) => go(c.caller.as, c.contractId),
        async (c) => {
          await using other = await httpAgent(silent);
          return go(c.caller.as, (await metered(c.org, other, 10)).contractId);
        },
      ],
    ])("%s", async (_name, scope, subjectOf, under, beside) => {
      const org = await world.org();
      await using agent = await httpAgent(asTold);
      const { contractId, does } = await metered(org, agent, 10);
      await use(org.admin, contractId, { model: "small-1" }); // what its agent reported last
      agent.handle = silent;
      const caller = await org.agent();
      const { apiKeys } = await org.admin.keys.listApiKeys({ agentId: caller.agentId });
      const c: Case = { org, contractId, worksFor: does.agentId, caller, keyId: apiKeys[0]!.keyId };
      for (const period of [DAY, TOTAL]) {
        const of = { scope, subjectId: subjectOf(c), period };
        await limit(org.admin, 15, of);
        const first = await under(c);
        const said = await refusal(under(c));
        expect(said).toMatchObject({ code: "ResourceExhausted", reason: "BUDGET_EXCEEDED" });
        expect(said.metadata).toMatchObject({
          scope: nameOf(BudgetScope, scope),
          subject_id: of.subjectId,
          period: nameOf(BudgetPeriod, period),
          unit: "tokens",
          limit: "15",
          spent: "0",
          reserved: "10",
        });
        expect(said.error.rawMessage).toMatch(/room for 5 tokens and the task needs 10.*SetBudget/);
        await beside(c);
        expect(await tokensOf(org.admin, of)).toEqual([0, 10]);
        await org.admin.bus.cancelTask({ taskId: first.taskId });
        await limit(org.admin, undefined, of);
      }
    });

    test("GRANT: the tasks under one grant, which nobody can ask for yet", async () => {
      const { app } = world.server;
      const org = await world.org();
      await limit(org.admin, 15, { scope: GRANT, subjectId: "*" });
      const reserve = (grantId: string) =>
        app.db.tx((tx) =>
          reserveBudgets(tx, app, app.ids.next("tsk"), {
            orgId: org.orgId,
            traceId: app.ids.trace(),
            callerAgentId: "",
            callerKeyId: "",
            grantId,
            targetAgentId: "",
            contractId: "c",
            tokens: 10,
            createMs: app.clock.now(),
          }),
        );
      const grant = `grt_${"1".repeat(32)}`;
      expect((await reserve(grant)).refusal).toBeUndefined();
      expect((await reserve(grant)).refusal?.metadata).toMatchObject({ scope: "GRANT", subject_id: grant });
      expect((await reserve(`grt_${"2".repeat(32)}`)).refusal).toBeUndefined();
      expect((await reserve("")).refusal).toBeUndefined();
    });
  });

  test("a refusal by one budget leaves nothing reserved in the others", async () => {
    const org = await world.org();
    await using agent = await httpAgent(silent);
    const { contractId } = await metered(org, agent, 10);
    const caller = await org.agent();
    await limit(org.admin, 100, { scope: AGENT, subjectId: "*" });
    await limit(org.admin, 5);
    expect((await refusal(begin(caller.as, contractId))).metadata.scope).toBe("ORG");
    expect(await tokensOf(org.admin, { scope: AGENT, subjectId: caller.agentId })).toEqual([0, 0]);
  });

  test("a budget of * counts each subject for itself, and one of its own goes before it", async () => {
    const org = await world.org();
    await using agent = await httpAgent(silent);
    const { contractId } = await metered(org, agent, 10);
    const [a, b, c] = [await org.agent(), await org.agent(), await org.agent()];
    const of = ({ agentId }: { agentId: string }) => ({ scope: AGENT, subjectId: agentId });
    await limit(org.admin, 20, { scope: AGENT, subjectId: "*" });
    await limit(org.admin, 30, of(c));
    for (const [who, fits] of [
      [a, 2],
      [b, 2],
      [c, 3],
    ] as const) {
      expect((await rush([who.as], contractId, 5)).accepted).toHaveLength(fits);
      expect(await tokensOf(org.admin, of(who))).toEqual([0, 10 * fits]);
    }
    const inherited = async (who: typeof a) => (await who.as.budgets.getBudget({ ...of(who), period: TOTAL })).budget;
    expect(await inherited(a)).toMatchObject({ inherited: true, subjectId: a.agentId, tokens: { limit: 20n } });
    expect(await inherited(c)).toMatchObject({ inherited: false, tokens: { limit: 30n } });
    expect(await tokensOf(org.admin, { scope: AGENT, subjectId: "*" })).toEqual([0, 0]);
    await limit(org.admin, undefined, of(c));
    expect(await inherited(c)).toMatchObject({ inherited: true, tokens: { limit: 20n, reserved: 0n } });
  });

  test("a task may use more than it reserved: that is recorded, and blocks even what reserves nothing until there is room", async () => {
    const org = await world.org();
    await using agent = await httpAgent(asTold);
    const { contractId } = await metered(org, agent, 10);
    const free = await metered(org, agent, 0);
    await limit(org.admin, 40);
    const task = await use(org.admin, contractId, { inputTokens: 20, outputTokens: 20 });
    expect(await tokensOf(org.admin)).toEqual([40, 0]);
    await use(org.admin, free.contractId); // the limit is reached and not passed
    expect((await refusal(use(org.admin, contractId))).metadata).toMatchObject({ spent: "40", limit: "40" });
    await use(org.admin, free.contractId, { inputTokens: 1 });
    expect(await tokensOf(org.admin)).toEqual([41, 0]);
    expect((await refusal(use(org.admin, free.contractId))).reason).toBe("BUDGET_EXCEEDED");
    await limit(org.admin, 51);
    await use(org.admin, contractId, { inputTokens: 10 });
    expect(await tokensOf(org.admin)).toEqual([51, 0]);
    expect(await budgeted(org.admin, task)).toMatchObject([
      { action: "reserve", tokens: 10, budgets: [{ scope: "ORG", period: "TOTAL" }] },
      { action: "settle", tokens: 40, budgets: [{ reserved_tokens: 10, spent_tokens: 40 }] },
    ]);
    expect(kindsOf(await eventsOf(org.admin, task.traceId)).slice(-2)).toEqual(["BUDGETED", "COMPLETED"]);
  });

  test("a limit of 0 lets in what asks for nothing, and without a limit nothing is told", async () => {
    const org = await world.org();
    await using agent = await httpAgent(asTold);
    const { contractId } = await metered(org, agent, 0);
    const most = await metered(org, agent, 0, { maxTokens: 7n });
    const plain = await use(org.admin, most.contractId);
    expect(await budgeted(org.admin, plain)).toEqual([]);
    await limit(org.admin, 0);
    await use(org.admin, contractId);
    expect((await refusal(use(org.admin, most.contractId))).error.rawMessage).toMatch(/needs 7/);
  });

  test("raised, a budget lets more in at once; lowered, it ends nothing that runs; removed, it forgets", async () => {
    const org = await world.org();
    await using agent = await httpAgent(silent);
    const { contractId } = await metered(org, agent, 10);
    await limit(org.admin, 10);
    const first = await begin(org.admin, contractId);
    expect((await refusal(begin(org.admin, contractId))).reason).toBe("BUDGET_EXCEEDED");
    await limit(org.admin, 20);
    const second = await begin(org.admin, contractId);
    await limit(org.admin, 5);
    expect(await tokensOf(org.admin)).toEqual([0, 20]);
    const said = await refusal(begin(org.admin, contractId));
    expect(said.metadata).toMatchObject({ limit: "5", reserved: "20" });
    await agent.call(1);
    await limit(org.admin, undefined);
    expect((await refusal(tokensOf(org.admin))).reason).toBe("NOT_FOUND");
    const between = await begin(org.admin, contractId);
    await limit(org.admin, 100);
    const later = await begin(org.admin, contractId);
    await agent.call(3);
    expect(await tokensOf(org.admin)).toEqual([0, 10]);
    answerFive(agent);
    for (const { taskId } of [first, second, between, later]) await whenEnded(org.admin, taskId);
    expect(await tokensOf(org.admin)).toEqual([5, 0]);
  });

  test("a budget set while tasks run counts from the next task on, also of models", async () => {
    const org = await world.org();
    await using agent = await httpAgent(silent);
    const { contractId } = await metered(org, agent, 10);
    const before = await begin(org.admin, contractId);
    const call = await agent.call(0);
    const of = { scope: MODEL, subjectId: "m" };
    await eventually(() => Date.now() > timestampMs(before.createTime!)); // in the same millisecond it would count
    await limit(org.admin, 100, of);
    call.answer({ output: null, usage: { inputTokens: 9, model: "m" } });
    await whenEnded(org.admin, before.taskId);
    expect(await tokensOf(org.admin, of)).toEqual([0, 0]);
    agent.handle = asTold;
    await use(org.admin, contractId, { inputTokens: 7, model: "m" });
    expect(await tokensOf(org.admin, of)).toEqual([7, 0]);
  });

  test("a model is reserved of what the target reported last and charged with what it reports", async () => {
    const org = await world.org();
    await using agent = await httpAgent(asTold);
    const { contractId } = await metered(org, agent, 10);
    const [small, large] = ["small", "large"].map((subjectId) => ({ scope: MODEL, subjectId })) as [object, object];
    await limit(org.admin, 1_000, small);
    await limit(org.admin, 1_000, { scope: MODEL, subjectId: "*" });
    await use(org.admin, contractId, { inputTokens: 3, model: "small" }); // nothing was reported before
    expect(await tokensOf(org.admin, small)).toEqual([3, 0]);
    agent.handle = silent;
    const running = await begin(org.admin, contractId);
    expect(await tokensOf(org.admin, small)).toEqual([3, 10]);
    (await agent.call(1)).answer({ output: null, usage: { inputTokens: 4, model: "large" } });
    await whenEnded(org.admin, running.taskId);
    expect(await tokensOf(org.admin, small)).toEqual([3, 0]);
    expect(await tokensOf(org.admin, large)).toEqual([4, 0]);
  });

  test("credits are reserved at the dearer price of the likely rate, and spent as they cost", async () => {
    const org = await world.org();
    await using agent = await httpAgent(asTold);
    const { contractId, does } = await metered(org, agent, 1_000);
    const free = await metered(org, agent, 0);
    const rate = (model: string, input: bigint, output: bigint) => ({
      agentId: does.agentId,
      model,
      inputPer1000TokensMicros: input,
      outputPer1000TokensMicros: output,
    });
    await org.admin.costs.setRates({ rates: [rate("", 1n, 2n), rate("m", 100n, 500n)] });
    const of = { scope: ORG, period: DAY };
    await org.admin.budgets.setBudget({ ...of, limitCreditsMicros: 600n });
    await use(org.admin, contractId, { inputTokens: 1, model: "m" });
    agent.handle = silent;
    await begin(org.admin, contractId);
    const held = await agent.call(1);
    const { budget } = await org.admin.budgets.getBudget(of);
    expect([budget!.tokens, microsOf(budget!)]).toEqual([undefined, [1, 500]]);
    const said = await refusal(begin(org.admin, contractId));
    expect(said.metadata).toMatchObject({ unit: "credits_micros", limit: "600", spent: "1", reserved: "500" });
    await begin(org.admin, free.contractId);
    held.answer({ output: null, usage: { inputTokens: 10, outputTokens: 10, model: "m" } });
    await eventually(async () => microsOf((await org.admin.budgets.getBudget(of)).budget!)[0] === 7);
  });

  test("when nobody knows what a task used its whole reserve is spent; a task that no agent had releases it", async () => {
    const org = await world.org();
    await using agent = await httpAgent(({ response }) => void response.destroy());
    const { contractId } = await metered(org, agent, 10);
    await limit(org.admin, 100_000);
    const lost = await use(org.admin, contractId);
    expect([reasonOf(lost), lost.usage?.inputTokens]).toEqual(["OUTCOME_UNKNOWN", 10n]);
    expect(await tokensOf(org.admin)).toEqual([10, 0]);

    agent.handle = silent;
    const held = await begin(org.admin, contractId);
    await agent.call(1);
    await org.admin.bus.cancelTask({ taskId: held.taskId });
    expect(await tokensOf(org.admin)).toEqual([20, 0]);
    const { steps, totals } = await org.admin.costs.getTraceCosts({ traceId: held.traceId });
    expect(steps).toMatchObject([{ estimated: true, inputTokens: 10n, outputTokens: 0n }]);
    expect(totals).toMatchObject({ tasks: 1n, attempts: 1n, inputTokens: 10n });

    for (let n = 0; n < maxPerPlace; n++) await begin(org.admin, contractId);
    await agent.call(maxPerPlace + 1);
    const waiting = await begin(org.admin, contractId);
    expect(await tokensOf(org.admin)).toEqual([20, 10 * maxPerPlace + 10]);
    await org.admin.bus.cancelTask({ taskId: waiting.taskId });
    expect(await tokensOf(org.admin)).toEqual([20, 10 * maxPerPlace]);
    expect((await budgeted(org.admin, waiting)).map((details) => details?.action)).toEqual(["reserve", "release"]);
  });

  test("attempts that report count as reported, a silent one with what is left of the reserve, and all of them once", async () => {
    const org = await world.org();
    await using agent = await httpAgent(({ task, response }) => {
      if (task.attempt === 1) return { output: "no number", usage: { inputTokens: 4 } };
      if (task.attempt === 4) return { output: 1, usage: { inputTokens: 2 } };
      return void response.destroy();
    });
    const init = { repeatable: true, retries: 5, outputSchema: { type: "number" } };
    const { contractId } = await metered(org, agent, 10, init);
    await limit(org.admin, 100);
    const task = await use(org.admin, contractId);
    expect([stateOf(task), task.attempts]).toEqual(["COMPLETED", 4]);
    const { steps } = await org.admin.costs.getTraceCosts({ traceId: task.traceId });
    expect(steps.map((step) => [Number(step.inputTokens), step.estimated])).toEqual([
      [4, false],
      [6, true],
      [0, true],
      [2, false],
    ]);
    expect(await tokensOf(org.admin)).toEqual([12, 0]);
  });

  test("a failed attempt that is waited after holds the reserve, and its cancel releases it", async () => {
    const org = await world.org();
    await using agent = await httpAgent(failing("internal"));
    const { contractId } = await metered(org, agent, 10, { retries: 3, backoffMs: 60_000 });
    await limit(org.admin, 10);
    const { taskId, traceId } = await begin(org.admin, contractId);
    await eventually(async () => kindsOf(await eventsOf(org.admin, traceId)).at(-1) === "ATTEMPT_FAILED");
    expect(await tokensOf(org.admin)).toEqual([0, 10]);
    await org.admin.bus.cancelTask({ taskId });
    expect(await tokensOf(org.admin)).toEqual([0, 0]);
  });

  test("a dry run tells what a budget would say, and takes nothing", async () => {
    const org = await world.org();
    await using agent = await httpAgent(silent);
    const { contractId } = await metered(org, agent, 10);
    await limit(org.admin, 15);
    const dry = async () => {
      const { decisionPath } = await org.admin.bus.submitTask({ contractId, input: value({}), validateOnly: true });
      return decisionPath.at(-1);
    };
    expect(await dry()).toMatchObject({ kind: TraceEventKind.BUDGETED, details: { action: "reserve", tokens: 10 } });
    expect(await tokensOf(org.admin)).toEqual([0, 0]);
    await begin(org.admin, contractId);
    expect(await dry()).toMatchObject({ kind: TraceEventKind.REFUSED, details: { reason: "BUDGET_EXCEEDED" } });
    await world.settled();
    expect((await org.admin.events.listEvents({ types: ["budget.exceeded"] })).events).toEqual([]);
  });

  test("a refusal leaves its trace and its event, and carries what ran out", async () => {
    const org = await world.org();
    await using agent = await httpAgent(silent);
    const { contractId } = await metered(org, agent, 10);
    const caller = await org.agent();
    await limit(org.admin, 5, { scope: AGENT, subjectId: caller.agentId });
    const said = await refusal(begin(caller.as, contractId));
    expect(said.error.findDetails(QuotaFailureSchema)[0]?.violations[0]?.subject).toBe(
      `budget:AGENT/${caller.agentId}/TOTAL/tokens`,
    );
    expect(said.error.findDetails(RetryInfoSchema)).toEqual([]); // nothing to wait for
    await world.settled();
    const { events } = await caller.as.events.listEvents({ types: ["budget.*"] });
    expect(events.map(({ type, agentId, payload }) => [type, agentId, payload?.limit, payload?.contract_id])).toEqual([
      ["budget.exceeded", caller.agentId, "5", contractId],
    ]);
    const steps = await eventsOf(org.admin, events[0]!.traceId);
    expect(kindsOf(steps)).toEqual(["SUBMITTED", "INPUT_CHECKED", "ROUTED", "POLICY_DECIDED", "REFUSED"]);
    expect(steps.at(-1)!.details).toMatchObject({ reason: "BUDGET_EXCEEDED", scope: "AGENT" });
  });

  test("the warning comes once, when 80 % are spent or reserved", async () => {
    const org = await world.org();
    await using agent = await httpAgent(asTold);
    const { contractId } = await metered(org, agent, 10);
    await limit(org.admin, 100);
    const warnings = async () => {
      await world.settled();
      return (await org.admin.events.listEvents({ types: ["budget.warning"] })).events.map(({ payload }) => payload);
    };
    await use(org.admin, contractId, { inputTokens: 69 });
    expect(await warnings()).toEqual([]);
    await use(org.admin, contractId, { inputTokens: 11 }); // more than reserved, and so only at its end
    expect(await warnings()).toMatchObject([
      { scope: "ORG", period: "TOTAL", unit: "tokens", limit: "100", spent: "80" },
    ]);
    await use(org.admin, contractId, { inputTokens: 5 });
    expect(await warnings()).toHaveLength(1);
  });

  test("the warning comes when 80 % are only reserved, too, and once for both", async () => {
    const org = await world.org();
    await using agent = await httpAgent(silent);
    const { contractId } = await metered(org, agent, 40);
    await limit(org.admin, 100);
    const warnings = async () => {
      await world.settled();
      return (await org.admin.events.listEvents({ types: ["budget.warning"] })).events.map(({ payload }) => payload);
    };
    await begin(org.admin, contractId);
    expect([await tokensOf(org.admin), await warnings()]).toEqual([[0, 40], []]);
    await begin(org.admin, contractId);
    expect(await tokensOf(org.admin)).toEqual([0, 80]);
    expect(await warnings()).toMatchObject([
      { scope: "ORG", period: "TOTAL", unit: "tokens", limit: "100", spent: "0", reserved: "80" },
    ]);
    await agent.call(1); // it has both, and says nothing to them
    agent.handle = asTold;
    const { contractId: small } = await metered(org, agent, 10);
    await use(org.admin, small, { inputTokens: 10 });
    expect([await tokensOf(org.admin), (await warnings()).length]).toEqual([[10, 80], 1]);
  });

  test("a task that was approved later is asked whether it still fits", async () => {
    const { app } = world.server;
    const org = await world.org();
    await using agent = await httpAgent(silent);
    const { contractId } = await metered(org, agent, 10);
    await limit(org.admin, 10);
    const { taskId: task_id } = await begin(org.admin, contractId);
    const still = () => stillWithinBudgets(app.db.query, { org_id: org.orgId, task_id }, app.clock.now());
    expect(await still()).toBeUndefined();
    await limit(org.admin, 9);
    expect((await still())?.metadata).toMatchObject({ limit: "9", reserved: "10" });
    await limit(org.admin, undefined);
    expect(await still()).toBeUndefined();
  });

  describe("the services", () => {
    test("a subject that is not of the scope's form, or not there, is refused", async () => {
      const org = await world.org();
      const set = (scope: BudgetScope, subjectId: string) =>
        refusal(org.admin.budgets.setBudget({ scope, subjectId, period: DAY, limitTokens: 1n }));
      for (const [scope, subjectId] of [
        [AGENT, ""],
        [AGENT, "agt_1"],
        [ORG, "*"],
        [ORG, org.orgId],
        [TRACE, "A".repeat(32)],
        [KEY, `agt_${"1".repeat(32)}`],
        [MODEL, ""],
      ] as const)
        expect([scope, await set(scope, subjectId)]).toMatchObject([scope, { reason: "INVALID_REQUEST" }]);
      const other = await (await world.org()).agent();
      for (const [scope, subjectId] of [
        [AGENT, other.agentId],
        [KEY, `key_${"1".repeat(32)}`],
        [GRANT, `grt_${"1".repeat(32)}`],
      ] as const)
        expect([scope, await set(scope, subjectId)]).toMatchObject([scope, { reason: "NOT_FOUND" }]);
    });

    test("if_revision refuses a lost update, and 0 a budget that is there", async () => {
      const org = await world.org();
      const of = { scope: ORG, period: DAY };
      const set = (limitTokens: bigint, ifRevision?: bigint) =>
        org.admin.budgets.setBudget({ ...of, limitTokens, ...(ifRevision !== undefined && { ifRevision }) });
      expect((await refusal(set(1n, 1n))).metadata).toMatchObject({ revision: "0" });
      expect((await set(1n, 0n)).budget).toMatchObject({ revision: 1n, inherited: false });
      expect((await refusal(set(2n, 0n))).metadata).toMatchObject({ revision: "1" });
      expect((await set(2n, 1n)).budget?.revision).toBe(2n);
      expect((await set(2n)).budget?.revision).toBe(2n); // nothing changed
      expect(await refusal(set(3n, 1n))).toMatchObject({ code: "FailedPrecondition", metadata: { revision: "2" } });
      expect((await org.admin.budgets.setBudget({ ...of, ifRevision: 2n })).budget).toBeUndefined();
      expect((await refusal(org.admin.budgets.getBudget(of))).reason).toBe("NOT_FOUND");
    });

    test("of many that set one budget at once for the first time, one does", async () => {
      const org = await world.org();
      const set = (n: number) =>
        org.admin.budgets.setBudget({ scope: ORG, period: DAY, limitTokens: BigInt(n), ifRevision: 0n });
      const results = await Promise.allSettled(Array.from({ length: 20 }, (_, n) => set(n)));
      expect(results.filter(({ status }) => status === "fulfilled")).toHaveLength(1);
    });

    test("ListBudgets pages through them in order, and finds those that are mostly used", async () => {
      const org = await world.org();
      await using agent = await httpAgent(asTold);
      const { contractId } = await metered(org, agent, 0);
      const caller = await org.agent();
      await limit(org.admin, 10, { scope: MODEL, subjectId: "m" });
      await limit(org.admin, 10);
      await limit(org.admin, 11, { period: DAY });
      await limit(org.admin, 10, { scope: AGENT, subjectId: "*" });
      await limit(org.admin, 0, { scope: TRACE, subjectId: "*" });
      await limit(org.admin, 100, { scope: AGENT, subjectId: caller.agentId });
      await use(caller.as, contractId, { inputTokens: 8 });
      const names: string[] = [];
      for (let pageToken = ""; ; ) {
        const page = await org.admin.budgets.listBudgets({ pageSize: 2, pageToken });
        names.push(
          ...page.budgets.map(
            (b) => `${nameOf(BudgetScope, b.scope)} ${b.subjectId} ${nameOf(BudgetPeriod, b.period)}`,
          ),
        );
        pageToken = page.nextPageToken;
        if (!pageToken) break;
      }
      expect(names).toEqual([
        "AGENT * TOTAL",
        `AGENT ${caller.agentId} TOTAL`,
        "ORG  DAY",
        "ORG  TOTAL",
        "TRACE * TOTAL",
        "MODEL m TOTAL",
      ]);
      const used = async (minUsedPercent: number) =>
        (await org.admin.budgets.listBudgets({ minUsedPercent })).budgets.map((b) => [b.scope, b.period]);
      expect(await used(80)).toEqual([[ORG, TOTAL]]);
      expect(await used(72)).toEqual([
        [ORG, DAY],
        [ORG, TOTAL],
      ]);
      const one = await org.admin.budgets.listBudgets({ scope: AGENT, subjectId: caller.agentId, period: TOTAL });
      expect(one.budgets).toMatchObject([{ tokens: { limit: 100n, spent: 8n, reserved: 0n } }]);
    });

    test("an agent reads what is its own, and of the rest nothing", async () => {
      const org = await world.org();
      await using agent = await httpAgent(asTold);
      const { contractId, does } = await metered(org, agent, 0);
      const [mine, other] = [await org.agent(), await org.agent()];
      const keyOf = async ({ agentId }: typeof mine) =>
        (await org.admin.keys.listApiKeys({ agentId })).apiKeys[0]!.keyId;
      const task = await use(mine.as, contractId, { inputTokens: 1, model: "m" });
      const all = [
        { scope: AGENT, subjectId: mine.agentId },
        { scope: KEY, subjectId: await keyOf(mine) },
        { scope: TRACE, subjectId: task.traceId },
        { scope: ORG, subjectId: "" },
        { scope: MODEL, subjectId: "m" },
        { scope: AGENT, subjectId: "*" },
      ];
      for (const of of all) await limit(org.admin, 10, of);
      const seen = async (who: typeof mine) => {
        const listed = (await who.as.budgets.listBudgets({})).budgets.map((b) => `${b.scope} ${b.subjectId}`);
        for (const of of all) {
          const got = await who.as.budgets.getBudget({ ...of, period: TOTAL }).catch(() => undefined);
          expect([of, got !== undefined]).toEqual([of, listed.includes(`${of.scope} ${of.subjectId}`)]);
        }
        return all.map((of) => listed.includes(`${of.scope} ${of.subjectId}`));
      };
      expect(await seen(mine)).toEqual([true, true, true, true, false, true]);
      expect(await seen(other)).toEqual([false, false, false, true, false, true]);
      expect(await seen(does)).toEqual([false, false, false, true, true, true]);
      expect((await refusal(mine.as.budgets.setBudget({ scope: ORG, period: DAY }))).reason).toBe("ROLE_REQUIRED");
    });

    test("an organisation has at most 10,000 budgets", async () => {
      const org = await world.org();
      await world.server.app.db.tx(async (tx) => {
        for (let n = 0; n < 10_000; n += 500) {
          const rows = Array.from(
            { length: 500 },
            (_, k) => `('${org.orgId}', 6, 'm${n + k}', 2, 'b${n + k}', 1, null, 0, 0, 1)`,
          );
          await tx.script(
            `insert into budget (org_id, scope, subject_id, period, budget_id, limit_tokens, limit_micros, create_ms, update_ms, revision) values ${rows.join(",")}`,
          );
        }
      });
      const said = await refusal(limit(org.admin, 1));
      expect([said.reason, said.metadata]).toMatchObject(["QUOTA_EXCEEDED", { resource: "budgets", limit: "10000" }]);
      await limit(org.admin, 2, { scope: MODEL, subjectId: "m1" });
      await limit(org.admin, undefined, { scope: MODEL, subjectId: "m1" });
      await limit(org.admin, 1);
    });
  });
});

test.each(dialects)(
  "a day begins anew at 00:00 UTC, and a task counts on the day it was accepted (%s)",
  async (dialect) => {
    const clock = fakeClock(Date.parse("2026-03-01T23:59:00Z"));
    await using world = await start(dialect, { clock });
    const org = await world.org();
    await using agent = await httpAgent(silent);
    const { contractId } = await metered(org, agent, 10, { timeoutMs: 300_000 });
    const day = { scope: ORG, period: DAY };
    await limit(org.admin, 15, day);
    await limit(org.admin, 1_000);
    const first = await begin(org.admin, contractId);
    const said = await refusal(begin(org.admin, contractId));
    expect(said.metadata.reset_time).toBe("2026-03-02T00:00:00.000Z");
    expect(Number(said.error.findDetails(RetryInfoSchema)[0]?.retryDelay?.seconds)).toBe(60);
    const { budget } = await org.admin.budgets.getBudget(day);
    expect(timestampMs(budget!.resetTime!)).toBe(Date.parse("2026-03-02T00:00:00Z"));
    clock.advance(59_999);
    expect((await refusal(begin(org.admin, contractId))).reason).toBe("BUDGET_EXCEEDED");
    clock.advance(1);
    expect(await tokensOf(org.admin, day)).toEqual([0, 0]);
    const second = await begin(org.admin, contractId);
    expect(await tokensOf(org.admin, day)).toEqual([0, 10]);
    expect((await refusal(begin(org.admin, contractId))).metadata.reset_time).toBe("2026-03-03T00:00:00.000Z");
    await agent.call(1);
    for (const { taskId } of [first, second]) {
      const call = agent.calls.find(({ task }) => task.taskId === taskId)!;
      call.answer({ output: null, usage: { inputTokens: taskId === first.taskId ? 15 : 4 } });
      await whenEnded(org.admin, taskId);
    }
    expect(await tokensOf(org.admin, day)).toEqual([4, 0]);
    expect(await tokensOf(org.admin)).toEqual([19, 0]);
    await world.settled();
    const { events } = await org.admin.events.listEvents({ types: ["budget.exceeded"] });
    expect(events).toHaveLength(3);
  },
);

test.each(dialects)("the warning of a day comes again on the next (%s)", async (dialect) => {
  const clock = fakeClock();
  await using world = await start(dialect, { clock });
  const org = await world.org();
  await using agent = await httpAgent(asTold);
  const { contractId } = await metered(org, agent, 0);
  await limit(org.admin, 10, { period: DAY });
  for (let n = 0; n < 3; n++) {
    await use(org.admin, contractId, { inputTokens: 8 });
    await use(org.admin, contractId, { inputTokens: 1 });
    clock.advance(86_400_000);
  }
  await world.settled();
  const { events } = await org.admin.events.listEvents({ types: ["budget.warning"] });
  expect(events.map(({ payload }) => payload?.reset_time)).toEqual([
    "2026-01-02T00:00:00.000Z",
    "2026-01-03T00:00:00.000Z",
    "2026-01-04T00:00:00.000Z",
  ]);
});

test.each(dialects)("a server that stops between reserve and settle leaves no reserve behind (%s)", async (dialect) => {
  const folder = mkdtempSync(join(tmpdir(), "moltwire-test-"));
  const database = dialect === "postgres" ? await migratedDatabase() : undefined;
  const place = database ? { databaseUrl: database.url } : { data: folder };
  try {
    await using agent = await httpAgent(silent);
    const before = await start(dialect, { ...place, drainMs: 0 });
    const org = await before.org();
    const again = await metered(org, agent, 10, { repeatable: true });
    const once = await metered(org, agent, 100);
    await limit(org.admin, 1_000_000);
    const tasks = [await begin(org.admin, again.contractId), await begin(org.admin, once.contractId)];
    await agent.call(1);
    expect(await tokensOf(org.admin)).toEqual([0, 110]);
    await before[Symbol.asyncDispose]();
    agent.handle = () => ({ output: null, usage: { inputTokens: 3 } });
    await using after = await start(dialect, place);
    const by = after.as(org.adminKey);
    const ended = await Promise.all(tasks.map(({ taskId }) => whenEnded(by, taskId)));
    expect(ended.map((task) => [stateOf(task), Number(task.usage?.inputTokens)])).toEqual([
      ["COMPLETED", 13], // the attempt that was lost counts with the reserve, the second one as it reports
      ["FAILED", 100],
    ]);
    expect(await tokensOf(by)).toEqual([113, 0]);
    expect(await after.server.app.db.query.all(sql`select * from budget_reserve`)).toEqual([]);
  } finally {
    rmSync(folder, { recursive: true });
    await database?.drop();
  }
});

test.runIf(dialects.includes("postgres"))(
  "two servers on one PostgreSQL let no more in than one: 200 at once, exactly 100 pass, and 500 are spent",
  async () => {
    const database = await migratedDatabase();
    const place = { databaseUrl: database.url };
    try {
      await using one = await start("postgres", place);
      await using two = await start("postgres", place);
      await using agent = await httpAgent(silent);
      const org = await one.org();
      const { contractId } = await metered(org, agent, 10);
      const caller = await org.agent();
      await limit(org.admin, 1_000);
      await limit(org.admin, 1_200, { period: DAY });
      await limit(org.admin, 5_000, { scope: AGENT, subjectId: "*" });
      const { accepted, refused } = await rush([caller.as, two.as(caller.key)], contractId, 200);
      expect([accepted.length, refused]).toEqual([100, { BUDGET_EXCEEDED: 100 }]);
      expect(await tokensOf(org.admin)).toEqual([0, 1_000]);
      answerFive(agent);
      for (const { taskId } of accepted) await whenEnded(org.admin, taskId);
      expect(await tokensOf(org.admin)).toEqual([500, 0]);
      expect(await tokensOf(org.admin, { scope: AGENT, subjectId: caller.agentId })).toEqual([500, 0]);
    } finally {
      await database.drop();
    }
  },
);
