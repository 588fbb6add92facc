import { BudgetPeriod } from "../../../gen/moltwire/bus/v1/budget_pb.ts";
import { dayMs, dayStart } from "../cost/day.ts";

/** When the period of a time began; 0 for TOTAL, which never began. */
export const periodStart = (period: number, atMs: number): number => (period === BudgetPeriod.DAY ? dayStart(atMs) : 0);

/** When a period that began then ends; undefined for TOTAL. */
export const periodEnd = (period: number, startMs: number): number | undefined =>
  period === BudgetPeriod.DAY ? startMs + dayMs : undefined;
