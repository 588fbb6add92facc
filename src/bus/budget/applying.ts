/** The budgets that a task falls under. */
import { BudgetScope } from "../../../gen/moltwire/bus/v1/budget_pb.ts";
import type { Queryable } from "../../db/db.ts";
import { lastModel } from "../cost/cost-store.ts";
import { anySubject, type BudgetRow, budgetsOf, budgetsOfTask, type Subjects } from "./budget-store.ts";

/** Whose work a task is. An empty id: nobody's. */
export type TaskSubjects = {
  readonly orgId: string;
  readonly traceId: string;
  readonly callerAgentId: string;
  readonly callerKeyId: string;
  readonly grantId: string;
  readonly targetAgentId: string;
};

/** A budget, and the subject that counts in it. */
export type Applying = { readonly budget: BudgetRow; readonly subjectId: string };

/**
 * What a task falls under, in the order in which the counts are changed. `model`: what the target reported last; asked for only
 * where there is a budget. `settles`: its end has something to do.
 */
export type Budgets = { readonly applying: readonly Applying[]; readonly model: string; readonly settles: boolean };

/** One indexed read where the organisation has no budgets. The model is read where it decides something: `priced` says that it does. */
export async function budgetsFor(db: Queryable, of: TaskSubjects, priced: boolean): Promise<Budgets> {
  const subjects = subjectsOf(of);
  const rows = await budgetsOfTask(db, of.orgId, subjects);
  if (rows.length === 0) return { applying: [], model: "", settles: false };
  const hasModels = rows.some(({ scope }) => scope === BudgetScope.MODEL);
  const model = hasModels || priced ? await lastModel(db, of.orgId, of.targetAgentId) : "";
  const ofModel: Subjects = { scope: BudgetScope.MODEL, subjectIds: [model, anySubject] };
  const modelRows = hasModels && model ? await budgetsOf(db, of.orgId, ofModel) : [];
  const applying = [
    ...subjects.flatMap((subject) => nearest(rows, subject)),
    ...(model ? nearest(modelRows, ofModel) : []),
  ].toSorted(inOrder);
  return { applying, model, settles: hasModels || applying.length > 0 };
}

/** The subject of each scope comes first, then `*`. */
const subjectsOf = (of: TaskSubjects): Subjects[] => {
  const each: [BudgetScope, string][] = [
    [BudgetScope.AGENT, of.callerAgentId],
    [BudgetScope.GRANT, of.grantId],
    [BudgetScope.TRACE, of.traceId],
    [BudgetScope.KEY, of.callerKeyId],
  ];
  const named = each.filter(([, id]) => id !== "");
  return [
    { scope: BudgetScope.ORG, subjectIds: [""] },
    ...named.map(([scope, id]) => ({ scope, subjectIds: [id, anySubject] })),
  ];
};

/** Of each period the subject's own budget, or that of each one. */
export function nearest(rows: readonly BudgetRow[], { scope, subjectIds }: Subjects): Applying[] {
  const [subjectId = ""] = subjectIds;
  const ofScope = rows.filter((row) => row.scope === scope && subjectIds.includes(row.subject_id));
  const own = ofScope.filter((row) => row.subject_id === subjectId);
  const common = ofScope.filter(
    (row) => row.subject_id !== subjectId && !own.some(({ period }) => period === row.period),
  );
  return [...own, ...common].map((budget) => ({ budget, subjectId }));
}

/** What is counted where. */
type Place = {
  readonly scope: number;
  readonly period: number;
  readonly budget_id: string;
  readonly subject_id: string;
};

/**
 * The one order in which a transaction changes counts, so that none waits for another in a circle: the narrowest scope first, the
 * organisation, for which everybody waits, last.
 */
export const inPlaceOrder = (a: Place, b: Place): number =>
  rank(a.scope) - rank(b.scope) ||
  a.period - b.period ||
  compare(a.budget_id, b.budget_id) ||
  compare(a.subject_id, b.subject_id);

const inOrder = (a: Applying, b: Applying): number =>
  inPlaceOrder({ ...a.budget, subject_id: a.subjectId }, { ...b.budget, subject_id: b.subjectId });

const order: readonly number[] = [
  BudgetScope.TRACE,
  BudgetScope.KEY,
  BudgetScope.AGENT,
  BudgetScope.GRANT,
  BudgetScope.MODEL,
  BudgetScope.ORG,
];
const rank = (scope: number): number => order.indexOf(scope);
const compare = (a: string, b: string): number => (a < b ? -1 : a > b ? 1 : 0);
