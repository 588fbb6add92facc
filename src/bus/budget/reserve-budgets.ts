/** Whether budgets let a task in, and what is set aside for it. */
import type { JsonObject } from "@bufbuild/protobuf";
import { TraceEventKind } from "../../../gen/moltwire/bus/v1/trace_pb.ts";
import type { App } from "../../app.ts";
import type { Queryable, Tx } from "../../db/db.ts";
import type { Fault } from "../../errors.ts";
import { emit } from "../../ops/outbox.ts";
import { costMicros, unknownUsage } from "../cost/price.ts";
import { rateFor } from "../cost/rate-store.ts";
import type { Step } from "../trace-store.ts";
import { type Applying, type Budgets, budgetsFor, type TaskSubjects } from "./applying.ts";
import { periodStart } from "./period.ts";
import { exceeded, lacking, periodName, type Standing, scopeName, warn } from "./refusal.ts";
import {
  type Amount,
  findUse,
  insertReserves,
  reserveUse,
  settleUse,
  standingOfTask,
  type UseKey,
  type UseRow,
  unused,
} from "./use-store.ts";

/** A task that asks for room. `tokens` is its contract's estimate; `createMs` decides on which day it counts. */
export type BudgetWish = TaskSubjects & {
  readonly contractId: string;
  readonly tokens: number;
  readonly createMs: number;
  /** What it costs, where that is a listing's price or follows another organisation's rates. */
  readonly micros?: number;
};

/** The answer: the steps to write down, and either whether the task's end has something to settle, or why it is refused. */
export type BudgetDecision = {
  readonly steps: readonly Step[];
  readonly budgeted: boolean;
  /** What was set aside in each budget. */
  readonly reserved: Amount;
  readonly refusal?: Fault;
};

/** What was set aside, or why not. */
export type BudgetReserve = BudgetDecision & {
  /** Its events: that it is refused, or that most of a budget is used with it. For the same transaction, once it is known what becomes of the task. */
  readonly tell: () => Promise<void>;
};

const nothing: Amount = { tokens: 0, micros: 0 };
const silent = async () => {};

/**
 * Sets the estimate of a task aside in every budget it falls under, or in none. Whatever happens beside it, spent + reserved of none pass its
 * limit by it. A refusal is to be committed.
 */
export async function reserveBudgets(tx: Tx, app: App, taskId: string, wish: BudgetWish): Promise<BudgetReserve> {
  const { orgId } = wish;
  const budgets = await budgetsFor(tx, wish, wish.tokens > 0);
  if (budgets.applying.length === 0) return { steps: [], budgeted: budgets.settles, reserved: nothing, tell: silent };
  const amount = await amountOf(tx, wish, budgets);
  const held: { readonly one: Applying; readonly use: UseRow }[] = [];
  for (const one of budgets.applying) {
    const startMs = periodStart(one.budget.period, wish.createMs);
    const fits = lacking(standingOf(one, unused(startMs)), amount) === undefined;
    const use = fits ? await reserveUse(tx, keyOf(orgId, one), startMs, amount, one.budget) : undefined;
    if (use) held.push({ one, use });
    else {
      for (const before of held) await settleUse(tx, keyOf(orgId, before.one), before.use.start_ms, amount, nothing);
      const fault = exceeded(standingOf(one, await currentUse(tx, orgId, one, startMs)), amount, wish.createMs);
      return { ...refused(fault, wish), tell: () => tellRefused(tx, app, wish, fault) };
    }
  }
  const rows = held.map(({ one: { budget, subjectId }, use: { start_ms } }) => ({
    ...budget,
    subject_id: subjectId,
    start_ms,
    ...amount,
  }));
  await insertReserves(tx, orgId, taskId, rows);
  return {
    ...{ steps: [reserveStep(budgets.applying, amount, wish.createMs)], budgeted: true, reserved: amount },
    async tell() {
      for (const { one, use } of held)
        await warn(tx, app, one.budget.budget_id, standingOf(one, use), { ...wish, timeMs: wish.createMs });
    },
  };
}

/** What {@link reserveBudgets} would answer now; changes nothing. */
export async function checkBudgets(db: Queryable, wish: BudgetWish): Promise<BudgetDecision> {
  const budgets = await budgetsFor(db, wish, wish.tokens > 0);
  if (budgets.applying.length === 0) return { steps: [], budgeted: budgets.settles, reserved: nothing };
  const amount = await amountOf(db, wish, budgets);
  for (const one of budgets.applying) {
    const startMs = periodStart(one.budget.period, wish.createMs);
    const standing = standingOf(one, await currentUse(db, wish.orgId, one, startMs));
    if (lacking(standing, amount)) return refused(exceeded(standing, amount, wish.createMs), wish);
  }
  return { steps: [reserveStep(budgets.applying, amount, wish.createMs)], budgeted: true, reserved: amount };
}

/**
 * Why a task that was accepted before must not go on now: a limit was lowered since, or other tasks used more than they had reserved. Undefined
 * when it may. Its own reserve counts; a day that is over and a budget that is gone do not.
 */
export async function stillWithinBudgets(
  db: Queryable,
  task: { readonly org_id: string; readonly task_id: string },
  now: number,
): Promise<Fault | undefined> {
  for (const row of await standingOfTask(db, task.org_id, task.task_id)) {
    const standing = { scope: row.scope, period: row.period, subjectId: row.subject_id, limits: row, use: row };
    if (row.start_ms === periodStart(row.period, now) && lacking(standing, nothing))
      return exceeded(standing, nothing, now);
  }
  return undefined;
}

/** What a task may use at most for its budgets: its own reserve, and what is left beside that; Infinity where none limits it. What other tasks that run use beyond their reserves is not known. */
export async function roomOfTask(db: Queryable, orgId: string, taskId: string, now: number): Promise<Amount> {
  const rows = (await standingOfTask(db, orgId, taskId)).filter((row) => row.start_ms === periodStart(row.period, now));
  const left = (limit: number | null, used: number, own: number) => Math.max(0, (limit ?? Infinity) - used + own);
  return {
    tokens: Math.min(...rows.map((r) => left(r.limit_tokens, r.spent_tokens + r.reserved_tokens, r.tokens))),
    micros: Math.min(...rows.map((r) => left(r.limit_micros, r.spent_micros + r.reserved_micros, r.micros))),
  };
}

/**
 * The estimate, and what it costs by the rate of the target's work with the model it reported last, all tokens being of the dearer kind: with
 * that, a task passes its reserve in credits only by more tokens, another agent, or another model.
 */
async function amountOf(db: Queryable, wish: BudgetWish, { model }: Budgets): Promise<Amount> {
  const { orgId, targetAgentId, tokens, createMs } = wish;
  if (wish.micros !== undefined) return { tokens, micros: wish.micros };
  if (tokens === 0) return nothing;
  const rate = await rateFor(db, orgId, targetAgentId, model, createMs);
  return { tokens, micros: costMicros(unknownUsage(tokens, model, rate), rate) };
}

const tellRefused = (tx: Tx, app: App, wish: BudgetWish, { metadata }: Fault): Promise<void> =>
  emit(tx, app, {
    orgId: wish.orgId,
    type: "budget.exceeded",
    agentId: wish.callerAgentId,
    timeMs: wish.createMs,
    traceId: wish.traceId,
    payload: { ...metadata, contract_id: wish.contractId },
  });

function refused(fault: Fault, { createMs }: BudgetWish): BudgetDecision {
  const { reason, message, metadata } = fault;
  const details = { reason, message, ...metadata };
  return {
    steps: [{ kind: TraceEventKind.REFUSED, timeMs: createMs, message, details }],
    budgeted: false,
    reserved: nothing,
    refusal: fault,
  };
}

const keyOf = (orgId: string, { budget, subjectId }: Applying): UseKey => ({
  orgId,
  budgetId: budget.budget_id,
  subjectId,
});

const standingOf = ({ budget, subjectId }: Applying, use: UseRow): Standing => ({
  scope: budget.scope,
  period: budget.period,
  subjectId,
  limits: budget,
  use,
});

async function currentUse(db: Queryable, orgId: string, one: Applying, startMs: number): Promise<UseRow> {
  const use = await findUse(db, keyOf(orgId, one));
  return use && use.start_ms >= startMs ? use : unused(startMs);
}

function reserveStep(applying: readonly Applying[], { tokens, micros }: Amount, timeMs: number): Step {
  const budgets: JsonObject[] = applying.map(({ budget, subjectId }) => ({
    scope: scopeName(budget.scope),
    subject_id: subjectId,
    period: periodName(budget.period),
  }));
  const details = { action: "reserve", tokens, credits_micros: micros, budgets };
  const message = `reserves ${tokens} tokens and ${micros} micro-credits in ${applying.length} ${applying.length === 1 ? "budget" : "budgets"}`;
  return { kind: TraceEventKind.BUDGETED, timeMs, message, details };
}
