import type { MessageInitShape } from "@bufbuild/protobuf";
import { timestampFromMs } from "@bufbuild/protobuf/wkt";
import { BudgetPeriod, type BudgetSchema, BudgetScope } from "../../../gen/moltwire/bus/v1/budget_pb.ts";
import { join, type Queryable, type Sql, sql, type Tx } from "../../db/db.ts";
import type { Position } from "../../rpc/cursor.ts";
import { dayMs } from "../cost/day.ts";
import { periodStart } from "./period.ts";
import { type UseRow, unused } from "./use-store.ts";

/** A budget as it is stored: `scope` and `period` are the numbers of BudgetScope and BudgetPeriod; a limit that is null does not bind. */
export type BudgetRow = {
  readonly org_id: string;
  readonly scope: number;
  readonly subject_id: string;
  readonly period: number;
  /** Changes when the budget is removed and set again. */
  readonly budget_id: string;
  readonly limit_tokens: number | null;
  readonly limit_micros: number | null;
  readonly create_ms: number;
  readonly update_ms: number;
  readonly revision: number;
};

/** What names a budget. */
export type BudgetName = {
  readonly orgId: string;
  readonly scope: number;
  readonly subjectId: string;
  readonly period: number;
};

/** The subject that stands for each one that has no budget of its own. */
export const anySubject = "*";

const useColumns = sql`u.start_ms, u.spent_tokens, u.reserved_tokens, u.spent_micros, u.reserved_micros, u.warned`;
const columns = sql`b.org_id, b.scope, b.subject_id, b.period, b.budget_id, b.limit_tokens, b.limit_micros, b.create_ms, b.update_ms, b.revision`;

const named = ({ orgId, scope, subjectId, period }: BudgetName): Sql =>
  sql`b.org_id = ${orgId} and b.scope = ${scope} and b.subject_id = ${subjectId} and b.period = ${period}`;

/** Adds a budget; 0 when there is one of the name. */
export const insertBudget = (tx: Tx, row: BudgetRow): Promise<number> =>
  tx.run(sql`
    insert into budget (org_id, scope, subject_id, period, budget_id, limit_tokens, limit_micros, create_ms, update_ms, revision)
    values (${row.org_id}, ${row.scope}, ${row.subject_id}, ${row.period}, ${row.budget_id}, ${row.limit_tokens}, ${row.limit_micros},
      ${row.create_ms}, ${row.update_ms}, ${row.revision})
    on conflict (org_id, scope, subject_id, period) do nothing`);

/** Changes the limits; of a row that is locked. */
export const updateBudget = (tx: Tx, row: BudgetRow): Promise<number> =>
  tx.run(sql`
    update budget set limit_tokens = ${row.limit_tokens}, limit_micros = ${row.limit_micros}, update_ms = ${row.update_ms}, revision = ${row.revision}
    where org_id = ${row.org_id} and budget_id = ${row.budget_id}`);

export const deleteBudget = (tx: Tx, orgId: string, budgetId: string): Promise<number> =>
  tx.run(sql`delete from budget where org_id = ${orgId} and budget_id = ${budgetId}`);

/** The subject's own budget, or that of each one, with how it stands for the subject, if anything was used: in one statement, so that limits and counts belong together. By the primary keys. */
export const effectiveBudget = (
  db: Queryable,
  { orgId, scope, subjectId, period }: BudgetName,
): Promise<(BudgetRow & Partial<UseRow>) | undefined> =>
  db.one<BudgetUseRow>(sql`
    select ${columns}, ${useColumns} from budget b
      left join budget_use u on u.org_id = b.org_id and u.budget_id = b.budget_id and u.subject_id = ${subjectId}
    where b.org_id = ${orgId} and b.scope = ${scope} and b.subject_id in (${subjectId}, ${scope === BudgetScope.ORG ? subjectId : anySubject}) and b.period = ${period}
    order by case when b.subject_id = ${subjectId} then 0 else 1 end limit 1`);

export const lockBudget = (tx: Tx, name: BudgetName): Promise<BudgetRow | undefined> =>
  tx.one<BudgetRow>(sql`select ${columns} from budget b where ${named(name)} ${tx.dialect.forUpdate}`);

/** By the id under which it is counted; undefined when it was removed. */
export const findBudgetById = (db: Queryable, orgId: string, budgetId: string): Promise<BudgetRow | undefined> =>
  db.one<BudgetRow>(sql`select ${columns} from budget b where b.org_id = ${orgId} and b.budget_id = ${budgetId}`);

/** How many budgets an organisation has, counted up to a bound. */
export const countBudgets = async (db: Queryable, orgId: string, bound: number): Promise<number> =>
  (await db.one<{ n: number }>(
    sql`select count(*) as n from (select 1 as one from budget where org_id = ${orgId} limit ${bound}) counted`,
  ))!.n;

/** Which subjects of a scope are asked for. */
export type Subjects = { readonly scope: number; readonly subjectIds: readonly string[] };

const ofSubjects = (orgId: string, { scope, subjectIds }: Subjects): Sql => sql`
  select ${columns} from budget b where b.org_id = ${orgId} and b.scope = ${scope} and b.subject_id in (${join(subjectIds)})`;

/**
 * The budgets of these subjects, and of MODEL any one, which tells that there are some: all in one statement, since every task that is
 * accepted pays for it. Each part is a step down the primary key.
 */
export const budgetsOfTask = (db: Queryable, orgId: string, subjects: readonly Subjects[]): Promise<BudgetRow[]> =>
  db.all<BudgetRow>(sql`
    ${join(
      subjects.map((of) => ofSubjects(orgId, of)),
      " union all ",
    )}
    union all select * from (select ${columns} from budget b where b.org_id = ${orgId} and b.scope = ${BudgetScope.MODEL} limit 1) of_models`);

export const budgetsOf = (db: Queryable, orgId: string, subjects: Subjects): Promise<BudgetRow[]> =>
  db.all<BudgetRow>(ofSubjects(orgId, subjects));

export type BudgetFilter = {
  readonly scope: number;
  readonly subjectId: string;
  readonly period: number;
  readonly minUsedPercent: number;
};

/** An agent and its key: it sees what is its own. */
export type Viewer = { readonly agentId: string; readonly keyId: string };

/** Whether an agent may read the budget `b`: of itself, its key, its organisation, its models, the traces it opened, and of each one. */
const readableBy = (orgId: string, { agentId, keyId }: Viewer): Sql => sql`(
  b.subject_id = ${anySubject} or b.scope = ${BudgetScope.ORG}
  or (b.scope = ${BudgetScope.AGENT} and b.subject_id = ${agentId}) or (b.scope = ${BudgetScope.KEY} and b.subject_id = ${keyId})
  or (b.scope = ${BudgetScope.TRACE} and exists (
    select 1 from trace t where t.org_id = ${orgId} and t.trace_id = b.subject_id and t.opener_agent_id = ${agentId}))
  or (b.scope = ${BudgetScope.MODEL} and exists (
    select 1 from agent_cost c where c.org_id = ${orgId} and c.agent_id = ${agentId} and c.model = b.subject_id)))`;

/** Whether an agent may read a budget of this name, set or not. */
export const mayRead = async (db: Queryable, name: BudgetName, viewer: Viewer): Promise<boolean> =>
  (await db.one(sql`
    select 1 as found from (select cast(${name.scope} as bigint) as scope, cast(${name.subjectId} as text) as subject_id) b
    where ${readableBy(name.orgId, viewer)}`)) !== undefined;

export type BudgetUseRow = BudgetRow & UseRow;

/** By scope, then subject, then period: along the primary key. With `forAgent`, those that it may read. */
export function listBudgets(
  db: Queryable,
  orgId: string,
  filter: BudgetFilter,
  viewer: Viewer | undefined,
  now: number,
  after: Position | undefined,
  limit: number,
): Promise<(BudgetRow & Partial<UseRow>)[]> {
  const { scope, subjectId, period, minUsedPercent } = filter;
  const inPeriod = sql`u.start_ms >= ${periodStart(BudgetPeriod.DAY, now)} or b.period = ${BudgetPeriod.TOTAL}`;
  const beyond = (limitOf: Sql, used: Sql) => sql`(${used} > 0 and ${used} * 100 >= ${limitOf} * ${minUsedPercent})`;
  return db.all<BudgetUseRow>(sql`
    select ${columns}, ${useColumns}
    from budget b left join budget_use u
      on u.org_id = b.org_id and u.budget_id = b.budget_id and u.subject_id = b.subject_id and b.subject_id <> ${anySubject} and (${inPeriod})
    where b.org_id = ${orgId} ${after ? sql`and (b.scope, b.subject_id, b.period) > (${after[0]!}, ${after[1]!}, ${after[2]!})` : sql``}
      ${scope ? sql`and b.scope = ${scope}` : sql``} ${subjectId ? sql`and b.subject_id = ${subjectId}` : sql``}
      ${period ? sql`and b.period = ${period}` : sql``} ${viewer ? sql`and ${readableBy(orgId, viewer)}` : sql``}
      ${
        minUsedPercent
          ? sql`and (${beyond(sql`b.limit_tokens`, sql`(u.spent_tokens + u.reserved_tokens)`)} or ${beyond(sql`b.limit_micros`, sql`(u.spent_micros + u.reserved_micros)`)})`
          : sql``
      }
    order by b.scope, b.subject_id, b.period limit ${limit}`);
}

/** A budget as clients read it, of a subject and how it stands for that one now. */
export function toBudget(
  row: BudgetRow,
  subjectId: string,
  use: UseRow | undefined,
  now: number,
): MessageInitShape<typeof BudgetSchema> {
  const start = periodStart(row.period, now);
  const current = use && use.start_ms >= start ? use : unused(start);
  return {
    orgId: row.org_id,
    scope: row.scope as BudgetScope,
    subjectId,
    period: row.period as BudgetPeriod,
    ...(row.limit_tokens !== null && {
      tokens: {
        limit: BigInt(row.limit_tokens),
        spent: BigInt(current.spent_tokens),
        reserved: BigInt(current.reserved_tokens),
      },
    }),
    ...(row.limit_micros !== null && {
      credits: {
        limitMicros: BigInt(row.limit_micros),
        spentMicros: BigInt(current.spent_micros),
        reservedMicros: BigInt(current.reserved_micros),
      },
    }),
    ...(row.period === BudgetPeriod.DAY && { resetTime: timestampFromMs(start + dayMs) }),
    inherited: subjectId !== row.subject_id,
    createTime: timestampFromMs(row.create_ms),
    updateTime: timestampFromMs(row.update_ms),
    revision: BigInt(row.revision),
  };
}
