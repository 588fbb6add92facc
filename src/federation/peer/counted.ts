/** What is left for the work of a task, of which another server says by its receipt what it used: no more than that is counted. */
import type { Usage } from "../../bus/adapter.ts";
import { roomOfTask } from "../../bus/budget/reserve-budgets.ts";
import { type Amount, lockUsesOf, usedInAll } from "../../bus/budget/use-store.ts";
import { dayStart } from "../../bus/cost/day.ts";
import type { TaskSummaryRow } from "../../bus/task-store.ts";
import type { Queryable, Tx } from "../../db/db.ts";
import { inLockOrder } from "../../db/lock-order.ts";
import { type CrossingRow, findCrossing } from "../gateway/crossing-store.ts";
import { isGuest } from "../gateway/sides.ts";
import { findGrant, termsOf } from "../grant/store.ts";
import { findDay, lockDay } from "../grant/usage-store.ts";

/** In tokens and micro-credits, without what attempts before have used; Infinity: no bound. Of the budgets of both sides, and of the tokens of the grant's day. */
export async function leftFor(db: Queryable, task: TaskSummaryRow, now: number): Promise<Amount> {
  const crossing = await crossingOf(db, task);
  const rooms: Amount[] = [];
  for (const orgId of sidesOf(task, crossing)) {
    const room = await roomOfTask(db, orgId, task.task_id, now);
    // Who buys it pays a price, whatever the work costs whoever sells it.
    rooms.push(task.origin === "listing" && orgId !== task.org_id ? { ...room, micros: Infinity } : room);
  }
  const { inputTokens, outputTokens, costMicros } = await usedInAll(db, task.org_id, task.task_id);
  const tokens = Math.min(...rooms.map((room) => room.tokens), await leftOfDay(db, crossing, now));
  const micros = Math.min(...rooms.map((room) => room.micros));
  return { tokens: Math.max(0, tokens - inputTokens - outputTokens), micros: Math.max(0, micros - costMicros) };
}

/**
 * As {@link leftFor}, and nobody else takes of it until the transaction ends: whoever else ends work at the same time has counted before this look, or looks when this one is counted. The rows are locked before they are
 * read, since a statement that waits for a lock does not see all that was committed meanwhile.
 */
export async function holdLeft(tx: Tx, task: TaskSummaryRow, now: number): Promise<Amount> {
  const crossing = await crossingOf(tx, task);
  for (const orgId of sidesOf(task, crossing)) await lockUsesOf(tx, orgId, task.task_id);
  if (crossing) await lockDay(tx, dayOf(crossing));
  return leftFor(tx, task, now);
}

/** What is counted of what an attempt is said to have used: as much as is left; tokens that were read first. */
export function within(usage: Usage, { tokens, micros }: Amount): Usage {
  const inputTokens = Math.min(usage.inputTokens, tokens);
  const outputTokens = Math.min(usage.outputTokens, tokens - inputTokens);
  return { ...usage, inputTokens, outputTokens, costMicros: Math.min(usage.costMicros ?? 0, micros) };
}

const crossingOf = async (db: Queryable, task: TaskSummaryRow): Promise<CrossingRow | undefined> =>
  isGuest(task) ? findCrossing(db, task.org_id, task.task_id) : undefined;

/** The organisations whose budgets count it, in the order in which they are locked. */
const sidesOf = ({ org_id }: TaskSummaryRow, crossing: CrossingRow | undefined): string[] =>
  [...new Set([org_id, crossing?.caller_org_id ?? org_id])].toSorted(inLockOrder);

const dayOf = ({ org_id: orgId, grant_id: grantId, day_ms: dayMs }: CrossingRow) => ({ orgId, grantId, dayMs });

/** Its own reserve, and what is left beside that. A day that is over bounds nothing. */
async function leftOfDay(db: Queryable, crossing: CrossingRow | undefined, now: number): Promise<number> {
  if (!crossing || crossing.day_ms !== dayStart(now)) return Infinity;
  const grant = await findGrant(db, crossing.org_id, crossing.grant_id);
  const limit = Number((grant && termsOf(grant).tokensPerDay) ?? Infinity);
  const use = await findDay(db, dayOf(crossing));
  return use ? Math.max(0, limit - use.tokens - use.reserved_tokens + crossing.reserved_tokens) : limit;
}
