/** What is said of a budget: that a task does not fit, that most of it is used. */

import type { JsonObject } from "@bufbuild/protobuf";
import { BudgetPeriod, BudgetScope } from "../../../gen/moltwire/bus/v1/budget_pb.ts";
import type { App } from "../../app.ts";
import type { Tx } from "../../db/db.ts";
import { nameIn } from "../../enum-name.ts";
import { Fault } from "../../errors.ts";
import { emit } from "../../ops/outbox.ts";
import { periodEnd } from "./period.ts";
import { type Amount, type Limits, markWarned, type UseRow } from "./use-store.ts";

/** A budget as it stands for one subject. */
export type Standing = {
  readonly scope: number;
  readonly period: number;
  readonly subjectId: string;
  readonly limits: Limits;
  readonly use: UseRow;
};

/** One of the two units of a budget. */
type Unit = { readonly unit: string; readonly limit: number; readonly spent: number; readonly reserved: number };

const warnAt = 0.8;

export const scopeName = (scope: number): string => nameIn(BudgetScope, scope);
export const periodName = (period: number): string => nameIn(BudgetPeriod, period);

/** The units that have a limit. */
function unitsOf({ limits, use }: Standing): Unit[] {
  const tokens = limits.limit_tokens !== null && {
    unit: "tokens",
    limit: limits.limit_tokens,
    spent: use.spent_tokens,
    reserved: use.reserved_tokens,
  };
  const credits = limits.limit_micros !== null && {
    unit: "credits_micros",
    limit: limits.limit_micros,
    spent: use.spent_micros,
    reserved: use.reserved_micros,
  };
  return [tokens, credits].filter((unit) => unit !== false);
}

const wantedOf = (unit: Unit, amount: Amount): number => (unit.unit === "tokens" ? amount.tokens : amount.micros);

/** The first unit that an amount does not fit into; undefined when all do. */
export const lacking = (standing: Standing, amount: Amount): Unit | undefined =>
  unitsOf(standing).find((unit) => unit.spent + unit.reserved + wantedOf(unit, amount) > unit.limit);

/** BUDGET_EXCEEDED: which budget, how it stands, and what to do. Waiting is advised only where it helps. */
export function exceeded(standing: Standing, amount: Amount, now: number): Fault {
  const unit = lacking(standing, amount)!;
  const facts = factsOf(standing, unit);
  const { scope, subject_id, period } = facts;
  const wanted = wantedOf(unit, amount);
  const resetMs = periodEnd(standing.period, standing.use.start_ms);
  const waiting = resetMs !== undefined && wanted <= unit.limit ? resetMs : undefined;
  const whose = `${period} budget of ${scope}${subject_id && ` ${subject_id}`}`;
  const room = Math.max(0, unit.limit - unit.spent - unit.reserved);
  const message =
    `the ${whose} has room for ${room} ${unit.unit} and the task needs ${wanted}: ${unit.spent} of ${unit.limit} are spent and ${unit.reserved} reserved; ` +
    `${waiting === undefined ? "" : `wait until ${new Date(waiting).toISOString()}, `}have the limit raised (BudgetService/SetBudget)` +
    `${unit.reserved > 0 ? ", or try again when running tasks have ended" : ""}`;
  return new Fault("BUDGET_EXCEEDED", message, facts, {
    quota: { subject: `budget:${scope}/${subject_id}/${period}/${unit.unit}`, description: message },
    ...(waiting !== undefined && { retryAfterMs: Math.max(1, waiting - now) }),
  });
}

function factsOf(standing: Standing, { unit, limit, spent, reserved }: Unit): Record<string, string> & Facts {
  const resetMs = periodEnd(standing.period, standing.use.start_ms);
  return {
    scope: scopeName(standing.scope),
    subject_id: standing.subjectId,
    period: periodName(standing.period),
    unit,
    limit: String(limit),
    spent: String(spent),
    reserved: String(reserved),
    ...(resetMs !== undefined && { reset_time: new Date(resetMs).toISOString() }),
  };
}

type Facts = { readonly scope: string; readonly subject_id: string; readonly period: string };

/** Where a standing is told. */
export type Told = { readonly orgId: string; readonly traceId: string; readonly timeMs: number };

/** Tells, once in each period, that 80 % of a limit are spent or reserved. Of a count that this transaction has changed. */
export async function warn(tx: Tx, app: App, budgetId: string, standing: Standing, told: Told): Promise<void> {
  const { use, subjectId, scope } = standing;
  const unit = unitsOf(standing).find(
    ({ spent, reserved, limit }) => spent + reserved > 0 && spent + reserved >= limit * warnAt,
  );
  if (!unit || use.warned !== 0) return;
  await markWarned(tx, { orgId: told.orgId, budgetId, subjectId });
  const payload: JsonObject = factsOf(standing, unit);
  const agentId = scope === BudgetScope.AGENT ? subjectId : "";
  await emit(tx, app, { ...told, type: "budget.warning", agentId, payload });
}
