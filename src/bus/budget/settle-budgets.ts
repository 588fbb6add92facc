/** What a task used, put in place of what was set aside for it. */
import type { JsonObject } from "@bufbuild/protobuf";
import { BudgetScope } from "../../../gen/moltwire/bus/v1/budget_pb.ts";
import { TraceEventKind } from "../../../gen/moltwire/bus/v1/trace_pb.ts";
import type { App } from "../../app.ts";
import type { Queryable, Tx } from "../../db/db.ts";
import { counted } from "../cost/saturated.ts";
import type { TaskSummaryRow } from "../task-store.ts";
import type { Step } from "../trace-store.ts";
import { inPlaceOrder, nearest } from "./applying.ts";
import { anySubject, budgetsOf, findBudgetById } from "./budget-store.ts";
import { periodStart } from "./period.ts";
import { periodName, scopeName, warn } from "./refusal.ts";
import {
  type Amount,
  type ReserveRow,
  settleUse,
  spendUse,
  takeReserves,
  type UseRow,
  usedByModel,
} from "./use-store.ts";

type Used = Amount & { readonly model: string };
/** One count that a task's end changes. `isNew`: nothing was set aside there. */
type Settlement = ReserveRow & { readonly used: Amount; readonly isNew: boolean };

/**
 * Spends what all attempts of a task used, by what is stored of them, and releases the rest of its reserve; gives the step to write down, if
 * there was anything to do. An attempt of which nobody knows what it used counts with its estimate. `paidMicros`: the price that was paid for it, where it has one, which counts in place of
 * what the work cost. In the transaction that ends the task, once.
 */
export async function settleBudgets(
  tx: Tx,
  app: App,
  task: TaskSummaryRow,
  endMs: number,
  paidMicros?: number,
): Promise<Step[]> {
  const { org_id: orgId, task_id: taskId } = task;
  const reserves = await takeReserves(tx, orgId, taskId);
  const { target_org_id: workOrgId } = task;
  const worked = await usedByModel(tx, workOrgId, taskId);
  const all = sum(worked);
  const total = { ...all, micros: paidMicros ?? all.micros };
  // With which models another organisation works is its own business.
  const byModel = workOrgId === orgId ? worked : [{ ...total, model: "" }];
  const settlements: Settlement[] = [
    ...reserves.map((row) => ({ ...row, used: usedIn(row, byModel, total), isNew: false })),
    ...(await unreserved(tx, task, reserves, byModel)),
  ].toSorted(inPlaceOrder);
  if (settlements.length === 0) return [];
  for (const one of settlements) await settle(tx, app, task, one, endMs);
  return [settleStep(settlements, total, endMs)];
}

const sum = (all: readonly Used[]): Amount => ({
  tokens: counted(all.reduce((tokens, one) => tokens + one.tokens, 0)),
  micros: counted(all.reduce((micros, one) => micros + one.micros, 0)),
});

/** A budget of a model counts what was used of that one; all others count everything. */
const usedIn = ({ scope, subject_id }: ReserveRow, byModel: readonly Used[], total: Amount): Amount =>
  scope === BudgetScope.MODEL ? sum(byModel.filter(({ model }) => model === subject_id)) : total;

/** Budgets of models that the task used and had reserved nothing of; those that were set after it was accepted do not count it. */
async function unreserved(
  db: Queryable,
  task: TaskSummaryRow,
  reserves: readonly ReserveRow[],
  byModel: readonly Used[],
): Promise<Settlement[]> {
  const used = byModel.filter(({ model, tokens }) => model !== "" && tokens > 0);
  if (used.length === 0) return [];
  const models = used.map(({ model }) => model);
  const rows = await budgetsOf(db, task.org_id, { scope: BudgetScope.MODEL, subjectIds: [...models, anySubject] });
  const then = rows.filter(({ create_ms }) => create_ms <= task.create_ms);
  return used.flatMap((amount) =>
    nearest(then, { scope: BudgetScope.MODEL, subjectIds: [amount.model, anySubject] })
      .map(({ budget, subjectId }) => ({
        budget_id: budget.budget_id,
        subject_id: subjectId,
        scope: budget.scope,
        period: budget.period,
        start_ms: periodStart(budget.period, task.create_ms),
        tokens: 0,
        micros: 0,
        used: amount,
        isNew: true,
      }))
      .filter(
        ({ period, subject_id }) =>
          !reserves.some(
            (row) => row.scope === BudgetScope.MODEL && row.period === period && row.subject_id === subject_id,
          ),
      ),
  );
}

async function settle(tx: Tx, app: App, task: TaskSummaryRow, one: Settlement, endMs: number): Promise<void> {
  const { budget_id: budgetId, subject_id: subjectId, start_ms: startMs, used } = one;
  const key = { orgId: task.org_id, budgetId, subjectId };
  const use: UseRow | undefined = one.isNew
    ? await spendUse(tx, key, startMs, used)
    : await settleUse(tx, key, startMs, one, used);
  if (!use || (used.tokens <= one.tokens && used.micros <= one.micros)) return; // it has not become more
  const budget = await findBudgetById(tx, task.org_id, budgetId);
  if (!budget) return;
  const standing = { scope: one.scope, period: one.period, subjectId, limits: budget, use };
  await warn(tx, app, budgetId, standing, { orgId: task.org_id, traceId: task.trace_id, timeMs: endMs });
}

function settleStep(settlements: readonly Settlement[], { tokens, micros }: Amount, timeMs: number): Step {
  const action = tokens === 0 && micros === 0 ? "release" : "settle";
  const budgets: JsonObject[] = settlements.map((one) => ({
    scope: scopeName(one.scope),
    subject_id: one.subject_id,
    period: periodName(one.period),
    reserved_tokens: one.tokens,
    reserved_credits_micros: one.micros,
    spent_tokens: one.used.tokens,
    spent_credits_micros: one.used.micros,
  }));
  const message =
    action === "release"
      ? "releases what was reserved: nothing was used"
      : `spends ${tokens} tokens and ${micros} micro-credits, and releases the rest`;
  const details = { action, tokens, credits_micros: micros, budgets };
  return { kind: TraceEventKind.BUDGETED, timeMs, message, details };
}
