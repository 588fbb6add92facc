/** Budgets of both sides of a request, asked in one transaction. */

import type { App } from "../../app.ts";
import { type BudgetReserve, type BudgetWish, reserveBudgets } from "../../bus/budget/reserve-budgets.ts";
import { settleBudgets } from "../../bus/budget/settle-budgets.ts";
import type { TaskRow } from "../../bus/task-store.ts";
import type { Tx } from "../../db/db.ts";
import { inLockOrder } from "../../db/lock-order.ts";

/** What one side is about to set aside in its budgets. */
export type Reserving = {
  readonly orgId: string;
  readonly reserve: () => Promise<BudgetReserve>;
  /** Of what was reserved: nothing was used. */
  readonly giveBack: () => Promise<unknown>;
};

/** For a task that is not inserted yet. */
export const reserving = (tx: Tx, app: App, task: TaskRow, wish: BudgetWish): Reserving => ({
  orgId: task.org_id,
  reserve: () => reserveBudgets(tx, app, task.task_id, wish),
  giveBack: () => settleBudgets(tx, app, task, task.create_ms),
});

/** What budgets said, by sides. */
export type Reserved = {
  readonly budgets: ReadonlyMap<Reserving, BudgetReserve>;
  /** The side that refused; then nothing is set aside, and those after it were not asked. */
  readonly refusedBy: Reserving | undefined;
  readonly giveBack: () => Promise<void>;
  /** As of {@link BudgetReserve}, of all sides; where one refused, it is for whoever keeps the refusal to tell. */
  readonly tell: () => Promise<void>;
};

/** Sets aside with all sides or with none, in the order of `lock-order.ts`, whichever asks. */
export async function reserveInOrder(sides: readonly Reserving[]): Promise<Reserved> {
  const budgets = new Map<Reserving, BudgetReserve>();
  const giveBack = async () => {
    for (const [side, { budgeted }] of budgets) if (budgeted) await side.giveBack();
  };
  const tell = async () => {
    for (const budget of budgets.values()) await budget.tell();
  };
  for (const side of sides.toSorted((a, b) => inLockOrder(a.orgId, b.orgId))) {
    const budget = await side.reserve();
    budgets.set(side, budget);
    if (!budget.refusal) continue;
    await giveBack();
    return { budgets, refusedBy: side, giveBack, tell };
  }
  return { budgets, refusedBy: undefined, giveBack, tell };
}
