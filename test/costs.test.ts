import { timestampFromMs, timestampMs } from "@bufbuild/protobuf/wkt";
import fc from "fast-check";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import type { StepCost } from "../gen/moltwire/bus/v1/cost_pb.ts";
import { parseDay } from "../src/bus/cost/day.ts";
import { costMicros, maxCostMicros, unknownUsage } from "../src/bus/cost/price.ts";
import { submit } from "./bus-fixtures/bus.ts";
import { httpAgent } from "./bus-fixtures/http-agent.ts";
import { asTold, metered, type Used, use } from "./bus-fixtures/metered.ts";
import { type Clients, dialects, fakeClock, type Org, refusal, start, type World } from "./harness.ts";

const dayMs = 86_400_000;

describe("the price of tokens", () => {
  const tokens = fc.integer({ min: 0, max: 1_000_000_000_000 });
  const price = fc.integer({ min: 0, max: 1_000_000_000 });
  const usage = (inputTokens: number, outputTokens: number) => ({ inputTokens, outputTokens, model: "" });

  test("is exact, rounded up to a whole micro-credit, and bounded", () => {
    fc.assert(
      fc.property(tokens, tokens, price, price, (input, output, input_micros, output_micros) => {
        const thousandths = BigInt(input) * BigInt(input_micros) + BigInt(output) * BigInt(output_micros);
        const cost = BigInt(costMicros(usage(input, output), { input_micros, output_micros }));
        if (cost === BigInt(maxCostMicros)) expect(thousandths).toBeGreaterThan((cost - 1n) * 1_000n);
        else expect([cost * 1_000n >= thousandths, cost * 1_000n - thousandths < 1_000n]).toEqual([true, true]);
      }),
    );
    const of = { input_micros: 3, output_micros: 5 };
    expect(
      [usage(0, 0), usage(1, 0), usage(1_000, 0), usage(1_001, 0), usage(200, 80)].map((u) => costMicros(u, of)),
    ).toEqual([0, 1, 3, 4, 1]);
    expect(costMicros(usage(5, 5), undefined)).toBe(0);
  });

  test("of unknown tokens is that of the dearer kind: no way to split them costs more", () => {
    fc.assert(
      fc.property(
        fc.integer({ min: 0, max: 1_000_000 }),
        fc.double({ min: 0, max: 1, noNaN: true }),
        price,
        price,
        (all, part, i, o) => {
          const of = { input_micros: i, output_micros: o };
          const read = Math.floor(all * part);
          const reserve = costMicros(unknownUsage(all, "", of), of);
          expect(reserve).toBeGreaterThanOrEqual(costMicros(usage(read, all - read), of));
        },
      ),
    );
  });

  test("a day that is none is none", () => {
    expect(
      ["2024-02-29", "2025-02-29", "2025-13-01", "2025-1-1", "x"].map((text) => parseDay(text) !== undefined),
    ).toEqual([true, false, false, false, false]);
  });
});

describe.each(dialects)("%s", (dialect) => {
  const clock = fakeClock(Date.parse("2026-05-10T12:00:00Z"));
  let world: World;
  beforeAll(async () => {
    world = await start(dialect, { clock });
  });
  afterAll(() => world[Symbol.asyncDispose]());

  const stepsOf = async (by: Clients, traceId: string): Promise<StepCost[]> => {
    const steps: StepCost[] = [];
    for (let pageToken = ""; ; ) {
      const page = await by.costs.getTraceCosts({ traceId, pageSize: 2, pageToken });
      steps.push(...page.steps);
      pageToken = page.nextPageToken;
      if (!pageToken) return steps;
    }
  };
  const rate = (input: number, output: number, of: { agentId?: string; model?: string; atMs?: number } = {}) => ({
    agentId: of.agentId ?? "",
    model: of.model ?? "",
    inputPer1000TokensMicros: BigInt(input),
    outputPer1000TokensMicros: BigInt(output),
    ...(of.atMs !== undefined && { effectiveTime: timestampFromMs(of.atMs) }),
  });
  /** What one task of 1,000 and 1,000 tokens costs now. */
  const costOf = async (org: Org, contractId: string, model: string): Promise<number> =>
    Number((await use(org.admin, contractId, { inputTokens: 1_000, outputTokens: 1_000, model })).costMicros);

  test("the most closely named rate in effect is applied, and one that inherits gives way to the next", async () => {
    const org = await world.org();
    await using agent = await httpAgent(asTold);
    const { contractId, does } = await metered(org, agent, 0);
    const { agentId } = does;
    const set = (...rates: Parameters<Clients["costs"]["setRates"]>[0]["rates"] & object) =>
      org.admin.costs.setRates({ rates });
    expect(await costOf(org, contractId, "m")).toBe(0);
    await set(rate(1, 1));
    expect(await costOf(org, contractId, "m")).toBe(2);
    await set(rate(10, 10, { model: "m" }));
    expect(await costOf(org, contractId, "m")).toBe(20);
    await set(rate(100, 100, { agentId }));
    expect(await costOf(org, contractId, "m")).toBe(200);
    await set(rate(1_000, 1_000, { agentId, model: "m" }));
    expect(await costOf(org, contractId, "m")).toBe(2_000);
    expect([await costOf(org, contractId, "n"), await costOf(org, contractId, "")]).toEqual([200, 200]);
    await set({ ...rate(0, 0, { agentId, model: "m" }), inherit: true });
    expect(await costOf(org, contractId, "m")).toBe(200);
    await set({ ...rate(0, 0, { agentId }), inherit: true });
    expect([await costOf(org, contractId, "m"), await costOf(org, contractId, "n")]).toEqual([20, 2]);
    const { rates, totals } = await org.admin.costs.getAgentCosts({ agentId });
    expect(rates.map((one) => [one.agentId, one.model, one.inherit])).toEqual([
      [agentId, "m", true],
      [agentId, "", true],
      ["", "m", false],
      ["", "", false],
    ]);
    expect(totals).toMatchObject({ unratedAttempts: 1n, tasks: 10n });
  });

  test("rates follow one another at their times, and none changes what was counted before", async () => {
    const org = await world.org();
    await using agent = await httpAgent(asTold);
    const { contractId } = await metered(org, agent, 0);
    const now = clock.now();
    const { rates } = await org.admin.costs.setRates({
      rates: [rate(1, 0), rate(3, 0, { atMs: now + 2_000 }), rate(2, 0, { atMs: now + 1_000 })],
    });
    const spans = rates.map((one) => [
      timestampMs(one.effectiveTime!) - now,
      one.endTime && timestampMs(one.endTime) - now,
    ]);
    expect(spans).toEqual([
      [0, 1_000],
      [2_000, undefined],
      [1_000, 2_000],
    ]);
    const task = await use(org.admin, contractId, { inputTokens: 1_000 });
    clock.advance(999);
    expect(await costOf(org, contractId, "")).toBe(1);
    clock.advance(1);
    expect(await costOf(org, contractId, "")).toBe(2);
    await org.admin.costs.setRates({ rates: [rate(7, 0, { atMs: now + 2_000 })] }); // its time has not come
    clock.advance(1_000);
    expect(await costOf(org, contractId, "")).toBe(7);
    const [step] = await stepsOf(org.admin, task.traceId);
    expect([step!.costMicros, timestampMs(step!.rate!.endTime!) - now]).toEqual([1n, 1_000]);
    const { rates: live } = await org.admin.costs.getAgentCosts({ agentId: step!.agentId });
    expect(live.map((one) => one.inputPer1000TokensMicros)).toEqual([7n]);
  });

  test("rates are set all or none, and what is wrong with them is named", async () => {
    const org = await world.org();
    const foreign = await (await world.org()).agent();
    const set = (...rates: Parameters<Clients["costs"]["setRates"]>[0]["rates"] & object) =>
      refusal(org.admin.costs.setRates({ rates }));
    expect(await set(rate(1, 1), rate(2, 2))).toMatchObject({
      reason: "INVALID_REQUEST",
      metadata: { field: "rates[1]" },
    });
    expect(await set(rate(1, 1, { atMs: clock.now() - 1 }))).toMatchObject({
      reason: "INVALID_REQUEST",
      metadata: { field: "rates[0].effective_time" },
    });
    expect((await set({ ...rate(0, 1), inherit: true })).metadata.field).toBe("rates[0].output_per_1000_tokens_micros");
    expect(await set(rate(1, 1), rate(1, 1, { agentId: foreign.agentId }))).toMatchObject({
      reason: "NOT_FOUND",
      metadata: { field: "rates[1].agent_id", resource: "agent" },
    });
    const { agentId } = await org.agent();
    expect((await org.admin.costs.getAgentCosts({ agentId })).rates).toEqual([]);
  });

  test("an organisation has at most 10,000 rates in effect or to come; those that were are not counted", async () => {
    const org = await world.org();
    const batch = (n: number) => Array.from({ length: 250 }, (_, k) => rate(1, 1, { model: `m${n * 250 + k}` }));
    for (let n = 0; n < 40; n++) await org.admin.costs.setRates({ rates: batch(n) });
    expect((await refusal(org.admin.costs.setRates({ rates: [rate(1, 1)] }))).metadata).toMatchObject({
      resource: "rates",
      limit: "10000",
    });
    clock.advance(1);
    await org.admin.costs.setRates({ rates: batch(0) });
  });

  test("what an agent used is the sum of its steps, by model, and what its tasks say they cost", async () => {
    const org = await world.org();
    await using agent = await httpAgent(({ task }) => {
      const { usages } = task.input as { usages: Used[] };
      const last = task.attempt === usages.length;
      return { output: last ? 1 : "no number", usage: usages[task.attempt! - 1] };
    });
    const { contractId, does } = await metered(org, agent, 0, {
      repeatable: true,
      retries: 5,
      backoffMs: 0, // its clock stands still
      outputSchema: { type: "number" },
    });
    await org.admin.costs.setRates({ rates: [rate(1_500, 2_500), rate(10_000, 0, { model: "b" })] });
    const tasks = [];
    for (const usages of [
      [{ inputTokens: 1, model: "a" }],
      [{ outputTokens: 7, model: "a" }, { inputTokens: 3, model: "b" }, {}],
      [{ inputTokens: 11, outputTokens: 13 }, { outputTokens: 17 }],
    ])
      tasks.push(await submit(org.admin, contractId, { input: { usages } }));
    const steps = (await Promise.all(tasks.map(({ traceId }) => stepsOf(org.admin, traceId)))).flat();
    expect(steps.map(({ attempt }) => attempt)).toEqual([1, 1, 2, 3, 1, 2]);
    const sum = (of: (step: StepCost) => bigint, from = steps) => from.reduce((all, step) => all + of(step), 0n);
    const { totals, models, startDate, endDate } = await org.admin.costs.getAgentCosts({ agentId: does.agentId });
    expect([startDate, endDate]).toEqual(["2026-04-11", "2026-05-10"]);
    expect(totals).toMatchObject({
      tasks: 3n,
      attempts: 6n,
      inputTokens: sum((step) => step.inputTokens),
      outputTokens: sum((step) => step.outputTokens),
      costMicros: sum((step) => step.costMicros),
      unratedAttempts: 0n,
    });
    for (const model of ["a", "b", ""]) {
      const of = steps.filter((step) => step.model === model);
      expect(models.find((one) => one.model === model)?.totals).toMatchObject({
        attempts: BigInt(of.length),
        costMicros: sum((step) => step.costMicros, of),
      });
    }
    expect(models.map(({ totals: t }) => t!.costMicros)).toEqual(
      models.map(({ totals: t }) => t!.costMicros).toSorted((a, b) => Number(b - a)),
    );
    for (const task of tasks) {
      const own = steps.filter(({ taskId }) => taskId === task.taskId);
      expect(task.costMicros).toBe(sum((step) => step.costMicros, own));
      const { totals: ofTrace } = await org.admin.costs.getTraceCosts({ traceId: task.traceId });
      expect(ofTrace).toMatchObject({ tasks: 1n, attempts: BigInt(own.length), costMicros: task.costMicros });
      expect(own.every((step) => step.spanId === task.spanId && step.contractId === contractId)).toBe(true);
    }
  });

  test("attempts count on the UTC day on which they ended; days are listed latest first, then by agent, page by page", async () => {
    const org = await world.org();
    await using agent = await httpAgent(asTold);
    const workers = [await metered(org, agent, 0), await metered(org, agent, 0)];
    clock.advance(dayMs - (clock.now() % dayMs) - 1); // the last millisecond of a day
    const today = new Date(clock.now()).toISOString().slice(0, 10);
    for (let day = 0; day < 2; day++) {
      for (const { contractId } of workers) await use(org.admin, contractId, { inputTokens: 1 + day, model: "m" });
      clock.advance(1);
    }
    await use(org.admin, workers[0]!.contractId, { inputTokens: 5, model: "n" });
    const tomorrow = new Date(clock.now()).toISOString().slice(0, 10);
    const list = async (by: Clients, req: object = {}) => {
      const rows: unknown[] = [];
      for (let pageToken = ""; ; ) {
        const page = await by.costs.listAgentCosts({ pageSize: 1, ...req, pageToken });
        rows.push(...page.agentCosts.map((row) => [row.date, row.agentId, Number(row.totals!.inputTokens)]));
        pageToken = page.nextPageToken;
        if (!pageToken) return rows;
      }
    };
    const [a, b] = workers.map(({ does }) => does.agentId).toSorted();
    const extra = (agentId: string | undefined) => (agentId === workers[0]!.does.agentId ? 5 : 0);
    const all = [
      [tomorrow, a, 2 + extra(a)],
      [tomorrow, b, 2 + extra(b)],
      [today, a, 1],
      [today, b, 1],
    ];
    expect(await list(org.admin)).toEqual(all);
    expect(await list(org.admin, { pageSize: 3 })).toEqual(all);
    expect(await list(org.admin, { agentId: a })).toEqual(all.filter(([, id]) => id === a));
    expect(await list(org.admin, { model: "n" })).toEqual([[tomorrow, workers[0]!.does.agentId, 5]]);
    expect(await list(org.admin, { endDate: today })).toEqual(all.slice(2));
    expect(await list(workers[0]!.does.as)).toEqual(all.filter(([, id]) => id === workers[0]!.does.agentId));
    expect(await list(workers[0]!.does.as, { agentId: workers[1]!.does.agentId })).toEqual([]);
  });

  test("a window that is empty, too long or of no dates is refused", async () => {
    const org = await world.org();
    const { agentId } = await org.agent();
    for (const [startDate, endDate, field] of [
      ["2026-01-02", "2026-01-01", "start_date"],
      ["2025-01-01", "2026-01-02", "start_date"],
      ["2025-02-30", "2026-01-01", "start_date"],
      ["2026-01-01", "2026-13-01", "end_date"],
      ["tomorrow", "", "start_date"],
    ] as const)
      for (const call of [
        () => org.admin.costs.getAgentCosts({ agentId, startDate, endDate }),
        () => org.admin.costs.listAgentCosts({ startDate, endDate }),
      ])
        expect(await refusal(call())).toMatchObject({ reason: "INVALID_REQUEST", metadata: { field } });
    await org.admin.costs.listAgentCosts({ startDate: "2025-01-01", endDate: "2026-01-01" });
  });

  test("an agent sees its own costs, all of the traces it opened, and of others its part", async () => {
    const org = await world.org();
    await using agent = await httpAgent(asTold);
    const one = await metered(org, agent, 0);
    const two = await metered(org, agent, 0);
    const [opener, stranger] = [await org.agent(), await org.agent()];
    const traceId = "c".repeat(32);
    const options = { headers: { traceparent: `00-${traceId}-${"1".repeat(16)}-01` } };
    await submit(opener.as, one.contractId, { input: { usage: { inputTokens: 1 } } }, options);
    await submit(one.does.as, two.contractId, { input: { usage: { inputTokens: 10 } } }, options);
    await submit(org.admin, two.contractId, { input: { usage: { inputTokens: 100 } } }, options);
    const seen = async (by: Clients) => {
      const { totals, steps } = await by.costs.getTraceCosts({ traceId });
      expect(steps.reduce((all, step) => all + step.inputTokens, 0n)).toBe(totals!.inputTokens);
      return [Number(totals!.tasks), Number(totals!.inputTokens)];
    };
    expect(await seen(org.admin)).toEqual([3, 111]);
    expect(await seen(opener.as)).toEqual([3, 111]);
    expect(await seen(one.does.as)).toEqual([2, 11]);
    expect(await seen(two.does.as)).toEqual([2, 110]);
    expect((await refusal(seen(stranger.as))).reason).toBe("NOT_FOUND");
    expect((await refusal(org.admin.costs.getTraceCosts({ traceId: "d".repeat(32) }))).reason).toBe("NOT_FOUND");
    expect((await one.does.as.costs.getAgentCosts({})).totals?.inputTokens).toBe(1n);
    expect((await refusal(one.does.as.costs.getAgentCosts({ agentId: two.does.agentId }))).reason).toBe("NOT_FOUND");
    expect((await refusal(org.admin.costs.getAgentCosts({}))).reason).toBe("INVALID_REQUEST");
    await org.admin.agents.deleteAgent({ agentId: two.does.agentId });
    expect((await org.admin.costs.getAgentCosts({ agentId: two.does.agentId })).totals?.inputTokens).toBe(110n);
  });

  test("absurd amounts are counted up to a bound, and every task still ends", async () => {
    const org = await world.org();
    await using agent = await httpAgent(asTold);
    const { contractId, does } = await metered(org, agent, 0);
    await org.admin.costs.setRates({ rates: [rate(1_000_000_000, 1_000_000_000)] });
    await org.admin.budgets.setBudget({ scope: 2, period: 2, limitTokens: 1_000_000_000_000_000n });
    const most = { inputTokens: 1_000_000_000_000, outputTokens: 1_000_000_000_000 };
    for (let n = 0; n < 12; n++)
      expect((await use(org.admin, contractId, most)).costMicros).toBe(BigInt(maxCostMicros));
    const { totals } = await org.admin.costs.getAgentCosts({ agentId: does.agentId });
    expect([totals!.attempts, totals!.costMicros]).toEqual([12n, BigInt(Number.MAX_SAFE_INTEGER)]);
  });
});
