/** What an attempt used and what that cost, from what is known of it. */
import { type Queryable, sql } from "../../db/db.ts";
import type { Usage } from "../adapter.ts";
import { lastModel } from "./cost-store.ts";
import { costMicros, unknownUsage } from "./price.ts";
import { type RateRow, rateFor } from "./rate-store.ts";

/** An attempt at its end. `estimated`: nobody knows what it used, and `usage` is what was left of the task's reserve. */
export type PricedAttempt = {
  readonly usage: Usage;
  readonly costMicros: number;
  readonly rate: RateRow | undefined;
  readonly estimated: boolean;
};

/** The tokens that are set aside for a task of a contract. */
export const reserveTokens = (contract: { readonly estimated_tokens: number; readonly max_tokens: number }): number =>
  contract.estimated_tokens || contract.max_tokens;

type Work = { readonly orgId: string; readonly taskId: string; readonly agentId: string };

/** Prices what an agent reports. Without tokens nothing is read: there is nothing that a rate could be applied to. */
export async function priceReported(db: Queryable, work: Work, usage: Usage, endMs: number): Promise<PricedAttempt> {
  if (usage.costMicros !== undefined) return { usage, costMicros: usage.costMicros, rate: undefined, estimated: false };
  const free = usage.inputTokens === 0 && usage.outputTokens === 0;
  const rate = free ? undefined : await rateFor(db, work.orgId, work.agentId, usage.model, endMs);
  return { usage, costMicros: costMicros(usage, rate), rate, estimated: false };
}

/** Prices an attempt of which nobody knows what it used: it counts with all that is left of the reserve. */
export async function priceUnknown(db: Queryable, work: Work, endMs: number): Promise<PricedAttempt> {
  const { orgId, taskId, agentId } = work;
  const found = await db.one<{ estimated_tokens: number; max_tokens: number; used: number }>(sql`
    select c.estimated_tokens, c.max_tokens, t.input_tokens + t.output_tokens as used
    from task t join contract c on c.org_id = t.org_id and c.contract_id = t.contract_id and c.version = t.contract_version
    where t.org_id = ${orgId} and t.task_id = ${taskId}`);
  const tokens = found ? Math.max(0, reserveTokens(found) - found.used) : 0;
  if (tokens === 0) return { usage: unknownUsage(0, "", undefined), costMicros: 0, rate: undefined, estimated: true };
  const model = await lastModel(db, orgId, agentId);
  const rate = await rateFor(db, orgId, agentId, model, endMs);
  const usage = unknownUsage(tokens, model, rate);
  return { usage, costMicros: costMicros(usage, rate), rate, estimated: true };
}
