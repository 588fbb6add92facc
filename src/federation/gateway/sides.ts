/**
 * A task across organisations has two rows of one id: that of the organisation that asks, for which its agents' work is away, and that of the organisation whose
 * agents do it, for which it is a guest. Each has its own input, output, trace, decisions and budgets, sealed for its organisation; the guest's is the one
 * that is worked on, and the other follows it in the same transactions. Whoever locks both locks the guest's first.
 */
import type { TaskSummaryRow } from "../../bus/task-store.ts";
import { findTaskSummary } from "../../bus/task-store.ts";
import type { Queryable } from "../../db/db.ts";
import { type CrossingRow, findCrossing } from "./crossing-store.ts";

type Sides = Pick<TaskSummaryRow, "org_id" | "target_org_id" | "origin">;

/** Whether agents of another organisation do the work. */
export const isAway = ({ org_id, target_org_id }: Sides): boolean => target_org_id !== org_id;

/** Whether the work is done for another organisation. */
export const isGuest = (task: Sides): boolean => task.origin !== "bus" && !isAway(task);

/** Under what a guest came in. */
export async function crossingOf(db: Queryable, guest: TaskSummaryRow): Promise<CrossingRow> {
  const crossing = await findCrossing(db, guest.org_id, guest.task_id);
  if (!crossing) throw new Error(`task ${guest.task_id} came in under no grant`);
  return crossing;
}

/** The row of a guest that its own organisation has. */
export async function homeOf(db: Queryable, guest: TaskSummaryRow): Promise<TaskSummaryRow> {
  const { caller_org_id } = await crossingOf(db, guest);
  const home = await findTaskSummary(db, caller_org_id, guest.task_id);
  if (!home) throw new Error(`task ${guest.task_id} is gone from the organisation that asked for it`);
  return home;
}
