/** Random histories of budgets against a model of what they promise, on the store of a real server. */
import fc from "fast-check";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { BudgetPeriod, BudgetScope } from "../../gen/moltwire/bus/v1/budget_pb.ts";
import { reserveBudgets } from "../../src/bus/budget/reserve-budgets.ts";
import { settleBudgets } from "../../src/bus/budget/settle-budgets.ts";
import type { TaskSummaryRow } from "../../src/bus/task-store.ts";
import { sql } from "../../src/db/db.ts";
import { dialects, fakeClock, type Org, start, type World } from "../harness.ts";

const { AGENT, ORG } = BudgetScope;
const { DAY, TOTAL } = BudgetPeriod;
const dayMs = 86_400_000;

/** The budgets of a history: of the organisation, of two agents, and of each one. Indexes into what `agents` gives. */
const places = [
  { scope: ORG, who: -1 },
  { scope: AGENT, who: -2 },
  { scope: AGENT, who: 0 },
  { scope: AGENT, who: 1 },
].flatMap((place) => [DAY, TOTAL].map((period) => ({ ...place, period })));

type Command =
  | { readonly kind: "set"; readonly place: number; readonly limit: number | undefined }
  | { readonly kind: "reserve"; readonly who: number; readonly amounts: readonly number[] }
  | { readonly kind: "settle"; readonly which: number; readonly used: number }
  | { readonly kind: "nextDay" };

const amount = fc.integer({ min: 0, max: 30 });
const command: fc.Arbitrary<Command> = fc.oneof(
  {
    weight: 3,
    arbitrary: fc.record({
      kind: fc.constant("set" as const),
      place: fc.nat(places.length - 1),
      limit: fc.option(fc.integer({ min: 0, max: 100 }), { nil: undefined, freq: 4 }),
    }),
  },
  {
    weight: 5,
    arbitrary: fc.record({
      kind: fc.constant("reserve" as const),
      who: fc.nat(1),
      amounts: fc.array(amount, { minLength: 1, maxLength: 6 }),
    }),
  },
  { weight: 4, arbitrary: fc.record({ kind: fc.constant("settle" as const), which: fc.nat(20), used: amount }) },
  { weight: 1, arbitrary: fc.record({ kind: fc.constant("nextDay" as const) }) },
);

/** How a subject stands in a budget, by the model. */
type Count = { day: number; spent: number; reserved: number };
type Rule = { limit: number; readonly counts: Map<number, Count> };
type Open = {
  readonly task: TaskSummaryRow;
  readonly tokens: number;
  readonly in: readonly { readonly count: Count; readonly day: number }[];
};

/** The promise, in as few words as possible. */
function model() {
  const rules = new Map<number, Rule>();
  const countOf = (rule: Rule, subject: number, day: number): Count => {
    const count = rule.counts.get(subject) ?? { day, spent: 0, reserved: 0 };
    if (count.day < day) Object.assign(count, { day, spent: 0, reserved: 0 });
    rule.counts.set(subject, count);
    return count;
  };
  const indexOf = (scope: number, who: number, period: number) =>
    places.findIndex((place) => place.scope === scope && place.who === who && place.period === period);
  return {
    set(place: number, limit: number | undefined) {
      const rule = rules.get(place);
      if (limit === undefined) rules.delete(place);
      else if (rule) rule.limit = limit;
      else rules.set(place, { limit, counts: new Map() });
    },
    /** The budget that holds for a subject, and how it stands. */
    at(scope: number, who: number, period: number, today: number) {
      const rule =
        rules.get(indexOf(scope, who, period)) ?? (scope === AGENT ? rules.get(indexOf(AGENT, -2, period)) : undefined);
      return rule && { rule, count: countOf(rule, who, period === DAY ? today : 0) };
    },
    of(who: number, today: number) {
      return [DAY, TOTAL]
        .flatMap((period) => [this.at(ORG, -1, period, today), this.at(AGENT, who, period, today)])
        .filter((one) => one !== undefined);
    },
  };
}

describe.each(dialects)("%s", (dialect) => {
  const clock = fakeClock(Date.parse("2026-01-01T09:00:00Z"));
  let world: World;
  beforeAll(async () => {
    world = await start(dialect, { clock });
  });
  afterAll(() => world[Symbol.asyncDispose]());

  const runs = {
    numRuns: dialect === "sqlite" ? 40 : 15,
    // Of a failure it tells the shortest history that it found until then.
    interruptAfterTimeLimit: 25_000,
    markInterruptAsFailure: true,
  };

  test("no history of sets, reserves and settles lets more in than fits, and counts are what open and ended tasks make them", async () => {
    await fc.assert(
      fc.asyncProperty(fc.array(command, { minLength: 5, maxLength: 30 }), async (history) => {
        const org = await world.org();
        const agents = [(await org.agent()).agentId, (await org.agent()).agentId];
        const promised = model();
        const open: Open[] = [];
        for (const step of history) {
          const today = Math.floor(clock.now() / dayMs) * dayMs;
          if (step.kind === "nextDay") clock.advance(dayMs);
          else if (step.kind === "set") {
            await setBudget(org, agents, places[step.place]!, step.limit);
            promised.set(step.place, step.limit);
          } else if (step.kind === "settle") {
            const [ended] = open.splice(step.which, 1);
            if (!ended) continue;
            await settle(ended, step.used);
            for (const { count, day } of ended.in) {
              if (count.day !== day) continue;
              count.reserved -= ended.tokens;
              count.spent += step.used;
            }
          } else {
            // At once: which of them get in is open; how they stand after it is not.
            const made = step.amounts.map((tokens) => ({ tokens, task: taskOf(org, agents[step.who]!) }));
            const let_in = await Promise.all(made.map(({ task, tokens }) => reserve(task, tokens)));
            const standing = promised.of(step.who, today);
            const before = standing.map(({ count }) => count.spent + count.reserved);
            const accepted = made.filter((_, n) => let_in[n]);
            for (const { task, tokens } of accepted) {
              for (const { count } of standing) count.reserved += tokens;
              open.push({ task, tokens, in: standing.map(({ count }) => ({ count, day: count.day })) });
            }
            if (accepted.length > 0)
              for (const { rule, count } of standing)
                expect(count.spent + count.reserved).toBeLessThanOrEqual(rule.limit);
            // None was refused for which there was room whatever the others took.
            for (const [n, { tokens }] of made.entries()) {
              if (let_in[n]) continue;
              const others = accepted.reduce((all, one) => all + one.tokens, 0);
              const room = Math.min(...standing.map(({ rule }, k) => rule.limit - before[k]! - others));
              expect(tokens).toBeGreaterThan(room);
            }
          }
          await compare(org, agents, promised);
        }
      }),
      runs,
    );
  });

  const subjectOf = (agents: readonly string[], who: number) => (who === -1 ? "" : who === -2 ? "*" : agents[who]!);

  const setBudget = (
    org: Org,
    agents: readonly string[],
    { scope, who, period }: (typeof places)[number],
    limit: number | undefined,
  ) =>
    org.admin.budgets.setBudget({
      scope,
      subjectId: subjectOf(agents, who),
      period,
      ...(limit !== undefined && { limitTokens: BigInt(limit) }),
    });

  const taskOf = (org: Org, callerAgentId: string) => {
    const { ids } = world.server.app;
    return {
      org_id: org.orgId,
      target_org_id: org.orgId,
      task_id: ids.next("tsk"),
      trace_id: ids.trace(),
      caller_agent_id: callerAgentId,
      create_ms: clock.now(),
    } as TaskSummaryRow;
  };

  const reserve = async (task: TaskSummaryRow, tokens: number): Promise<boolean> => {
    const { app } = world.server;
    const decision = await app.db.tx((tx) =>
      reserveBudgets(tx, app, task.task_id, {
        orgId: task.org_id,
        traceId: task.trace_id,
        callerAgentId: task.caller_agent_id,
        callerKeyId: "",
        grantId: "",
        targetAgentId: "",
        contractId: "c",
        tokens,
        createMs: task.create_ms,
      }),
    );
    return decision.refusal === undefined;
  };

  const settle = ({ task }: Open, used: number) => {
    const { app } = world.server;
    return app.db.tx(async (tx) => {
      await tx.run(sql`
        insert into task_attempt (org_id, task_id, attempt, trace_id, agent_id, contract_id, contract_version, start_ms, end_ms, error,
          input_tokens, output_tokens, model)
        values (${task.org_id}, ${task.task_id}, 1, ${task.trace_id}, '', 'c', '1.0.0', 0, 1, null, ${used}, 0, '')`);
      await settleBudgets(tx, app, task, clock.now());
    });
  };

  /** Every subject of every budget, as the service tells it and as the model has it. */
  async function compare(org: Org, agents: readonly string[], promised: ReturnType<typeof model>): Promise<void> {
    const today = Math.floor(clock.now() / dayMs) * dayMs;
    for (const period of [DAY, TOTAL]) {
      for (const [scope, who] of [
        [ORG, -1],
        [AGENT, 0],
        [AGENT, 1],
      ] as const) {
        const asked = org.admin.budgets.getBudget({ scope, subjectId: subjectOf(agents, who), period });
        const { budget } = await asked.catch(() => ({ budget: undefined }));
        const told = budget && [budget.tokens?.limit, budget.tokens?.spent, budget.tokens?.reserved].map(Number);
        const is = promised.at(scope, who, period, today);
        expect([scope, who, period, told]).toEqual([
          scope,
          who,
          period,
          is && [is.rule.limit, is.count.spent, is.count.reserved],
        ]);
      }
    }
  }
});
