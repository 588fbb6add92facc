/** How budgets stand. Every change is one statement that asks for what it needs; who changes several takes them in the order of `applying.ts`. */
import { join, type Queryable, type Sql, sql, type Tx } from "../../db/db.ts";
import { counted, minus, plus } from "../cost/saturated.ts";
import { inPlaceOrder } from "./applying.ts";

/** What is used of a budget by one subject, in the period that began at `start_ms`. */
export type UseRow = {
  readonly start_ms: number;
  readonly spent_tokens: number;
  readonly reserved_tokens: number;
  readonly spent_micros: number;
  readonly reserved_micros: number;
  readonly warned: number;
};

/** Tokens and micro-credits. */
export type Amount = { readonly tokens: number; readonly micros: number };
/** The same with null for what is not limited. */
export type Limits = { readonly limit_tokens: number | null; readonly limit_micros: number | null };
/** Which count: of which budget, for which subject. */
export type UseKey = { readonly orgId: string; readonly budgetId: string; readonly subjectId: string };

/** A period in which nothing was used. */
export const unused = (startMs: number): UseRow => ({
  start_ms: startMs,
  spent_tokens: 0,
  reserved_tokens: 0,
  spent_micros: 0,
  reserved_micros: 0,
  warned: 0,
});

const columns = sql`start_ms, spent_tokens, reserved_tokens, spent_micros, reserved_micros, warned`;
const keyed = ({ orgId, budgetId, subjectId }: UseKey): Sql =>
  sql`org_id = ${orgId} and budget_id = ${budgetId} and subject_id = ${subjectId}`;

/** What a count is at the beginning of a period, if that is later than the one it stands for. */
const inPeriod = (counter: Sql, startMs: number): Sql =>
  sql`(case when budget_use.start_ms < ${startMs} then 0 else ${counter} end)`;

/** The columns that a later period sets back. */
const turned = (startMs: number): Sql =>
  sql`start_ms = case when budget_use.start_ms < ${startMs} then ${startMs} else budget_use.start_ms end,
      warned = ${inPeriod(sql`budget_use.warned`, startMs)}`;

/**
 * Sets an amount aside if spent + reserved stay within the limits; undefined when they would not. One statement, so that no other admission
 * comes between the look and the deed. The amount alone must be within the limits: the first row of a subject is not asked.
 */
export function reserveUse(
  tx: Tx,
  key: UseKey,
  startMs: number,
  { tokens, micros }: Amount,
  limits: Limits,
): Promise<UseRow | undefined> {
  const spentTokens = inPeriod(sql`budget_use.spent_tokens`, startMs);
  const reservedTokens = inPeriod(sql`budget_use.reserved_tokens`, startMs);
  const spentMicros = inPeriod(sql`budget_use.spent_micros`, startMs);
  const reservedMicros = inPeriod(sql`budget_use.reserved_micros`, startMs);
  const { limit_tokens: maxTokens, limit_micros: maxMicros } = limits;
  const inTokens =
    maxTokens === null ? sql`1 = 1` : sql`${spentTokens} + ${reservedTokens} + ${tokens} <= ${maxTokens}`;
  const inMicros =
    maxMicros === null ? sql`1 = 1` : sql`${spentMicros} + ${reservedMicros} + ${micros} <= ${maxMicros}`;
  return tx.one<UseRow>(sql`
    insert into budget_use (org_id, budget_id, subject_id, ${columns})
    values (${key.orgId}, ${key.budgetId}, ${key.subjectId}, ${startMs}, 0, ${tokens}, 0, ${micros}, 0)
    on conflict (org_id, budget_id, subject_id) do update
      set ${turned(startMs)}, spent_tokens = ${spentTokens}, spent_micros = ${spentMicros},
        reserved_tokens = ${plus(reservedTokens, tokens)}, reserved_micros = ${plus(reservedMicros, micros)}
      where ${inTokens} and ${inMicros}
    returning ${columns}`);
}

/** Turns a reserve into what was used, in the period in which it was made; undefined when that is over or the budget was removed. */
export const settleUse = (tx: Tx, key: UseKey, startMs: number, reserved: Amount, used: Amount) =>
  tx.one<UseRow>(sql`
    update budget_use set reserved_tokens = ${minus(sql`reserved_tokens`, reserved.tokens)}, reserved_micros = ${minus(sql`reserved_micros`, reserved.micros)},
      spent_tokens = ${plus(sql`spent_tokens`, used.tokens)}, spent_micros = ${plus(sql`spent_micros`, used.micros)}
    where ${keyed(key)} and start_ms = ${startMs} returning ${columns}`);

/** Adds what was used without a reserve, in the period that began then; undefined when that is over. */
export const spendUse = (tx: Tx, key: UseKey, startMs: number, { tokens, micros }: Amount) =>
  tx.one<UseRow>(sql`
    insert into budget_use (org_id, budget_id, subject_id, ${columns})
    values (${key.orgId}, ${key.budgetId}, ${key.subjectId}, ${startMs}, ${tokens}, 0, ${micros}, 0, 0)
    on conflict (org_id, budget_id, subject_id) do update
      set ${turned(startMs)}, spent_tokens = ${plus(inPeriod(sql`budget_use.spent_tokens`, startMs), tokens)},
        spent_micros = ${plus(inPeriod(sql`budget_use.spent_micros`, startMs), micros)},
        reserved_tokens = ${inPeriod(sql`budget_use.reserved_tokens`, startMs)}, reserved_micros = ${inPeriod(sql`budget_use.reserved_micros`, startMs)}
      where budget_use.start_ms <= ${startMs}
    returning ${columns}`);

export const findUse = (db: Queryable, key: UseKey): Promise<UseRow | undefined> =>
  db.one<UseRow>(sql`select ${columns} from budget_use where ${keyed(key)}`);

/** Of a row that this transaction has changed, and so holds. */
export const markWarned = (tx: Tx, key: UseKey): Promise<number> =>
  tx.run(sql`update budget_use set warned = 1 where ${keyed(key)}`);

/** Forgets what a removed budget counted, up to a bound: what is left has an id that nothing asks for again. */
export const forgetUses = (tx: Tx, orgId: string, budgetId: string, limit: number): Promise<number> =>
  tx.run(sql`
    delete from budget_use where org_id = ${orgId} and budget_id = ${budgetId} and subject_id in (
      select subject_id from budget_use where org_id = ${orgId} and budget_id = ${budgetId} order by subject_id limit ${limit})`);

/** What is set aside for a task in one budget. */
export type ReserveRow = {
  readonly budget_id: string;
  readonly subject_id: string;
  readonly scope: number;
  readonly period: number;
  readonly start_ms: number;
  readonly tokens: number;
  readonly micros: number;
};

/** Writes down what was set aside for a task, at least one. */
export const insertReserves = (tx: Tx, orgId: string, taskId: string, rows: readonly ReserveRow[]): Promise<number> =>
  tx.run(sql`
    insert into budget_reserve (org_id, task_id, budget_id, subject_id, scope, period, start_ms, tokens, micros)
    values ${join(
      rows.map(
        (row) =>
          sql`(${orgId}, ${taskId}, ${row.budget_id}, ${row.subject_id}, ${row.scope}, ${row.period}, ${row.start_ms}, ${row.tokens}, ${row.micros})`,
      ),
    )}`);

/** Takes what was set aside for a task: whoever settles it has it, once. */
export const takeReserves = (tx: Tx, orgId: string, taskId: string): Promise<ReserveRow[]> =>
  tx.all<ReserveRow>(sql`
    delete from budget_reserve where org_id = ${orgId} and task_id = ${taskId}
    returning budget_id, subject_id, scope, period, start_ms, tokens, micros`);

/** The reserves of a task that still count, with how their budgets stand. */
export const standingOfTask = (
  db: Queryable,
  orgId: string,
  taskId: string,
): Promise<(ReserveRow & UseRow & Limits)[]> =>
  db.all(sql`
    select r.budget_id, r.subject_id, r.scope, r.period, r.tokens, r.micros, u.start_ms, u.spent_tokens, u.reserved_tokens, u.spent_micros, u.reserved_micros,
      u.warned, b.limit_tokens, b.limit_micros
    from budget_reserve r
    join budget_use u on u.org_id = r.org_id and u.budget_id = r.budget_id and u.subject_id = r.subject_id and u.start_ms = r.start_ms
    join budget b on b.org_id = r.org_id and b.budget_id = r.budget_id
    where r.org_id = ${orgId} and r.task_id = ${taskId} order by r.budget_id, r.subject_id`);

/** Locks the counts in which something is set aside for a task, in their order, until the transaction ends. */
export async function lockUsesOf(tx: Tx, orgId: string, taskId: string): Promise<void> {
  for (const { budget_id: budgetId, subject_id: subjectId } of (await standingOfTask(tx, orgId, taskId)).toSorted(
    inPlaceOrder,
  ))
    await tx.one(
      sql`select start_ms from budget_use where ${keyed({ orgId, budgetId, subjectId })} ${tx.dialect.forUpdate}`,
    );
}

/** What the attempts of a task used, by model. */
export async function usedByModel(
  db: Queryable,
  orgId: string,
  taskId: string,
): Promise<(Amount & { readonly model: string })[]> {
  const rows = await db.all<{ model: string; tokens: number | bigint; micros: number | bigint }>(sql`
    select model, cast(sum(input_tokens + output_tokens) as bigint) as tokens, cast(sum(cost_micros) as bigint) as micros
    from task_attempt where org_id = ${orgId} and task_id = ${taskId} group by model`);
  return rows.map(({ model, tokens, micros }) => ({ model, tokens: counted(tokens), micros: counted(micros) }));
}

/** What the attempts of a task used, all of them. */
export async function usedInAll(
  db: Queryable,
  orgId: string,
  taskId: string,
): Promise<{ readonly inputTokens: number; readonly outputTokens: number; readonly costMicros: number }> {
  const row = (await db.one<{ read: number | bigint; written: number | bigint; micros: number | bigint }>(sql`
    select cast(coalesce(sum(input_tokens), 0) as bigint) as read, cast(coalesce(sum(output_tokens), 0) as bigint) as written,
      cast(coalesce(sum(cost_micros), 0) as bigint) as micros
    from task_attempt where org_id = ${orgId} and task_id = ${taskId}`))!;
  return { inputTokens: counted(row.read), outputTokens: counted(row.written), costMicros: counted(row.micros) };
}
