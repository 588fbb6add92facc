import type { MessageInitShape } from "@bufbuild/protobuf";
import { timestampFromMs } from "@bufbuild/protobuf/wkt";
import type { CostTotalsSchema, StepCostSchema } from "../../../gen/moltwire/bus/v1/cost_pb.ts";
import { type Queryable, type Sql, sql, type Tx } from "../../db/db.ts";
import type { Position } from "../../rpc/cursor.ts";
import { dayStart } from "./day.ts";
import type { PricedAttempt } from "./price-attempt.ts";
import { type RateRow, toRate } from "./rate-store.ts";
import { plus } from "./saturated.ts";

/** An attempt that has ended, as it is counted. */
export type CountedAttempt = PricedAttempt & {
  readonly orgId: string;
  readonly taskId: string;
  readonly attempt: number;
  readonly agentId: string;
  readonly endMs: number;
};

/** Sums as they are read. */
export type TotalsRow = {
  readonly tasks: number;
  readonly attempts: number;
  readonly input_tokens: number;
  readonly output_tokens: number;
  readonly cost_micros: number;
  readonly unrated_attempts: number;
};

/**
 * Adds an attempt to what its agent used on the day. Last in its transaction, since on PostgreSQL all attempts of the agent that end at a time
 * wait for this row. A task counts once for each agent, with the first of its attempts by that one.
 */
export async function countAttempt(tx: Tx, of: CountedAttempt): Promise<void> {
  const { usage } = of;
  const tasks = of.attempt === 1 || !(await hadBefore(tx, of)) ? 1 : 0;
  const unrated = !of.rate && of.costMicros === 0 && usage.inputTokens + usage.outputTokens > 0 ? 1 : 0;
  await tx.run(sql`
    insert into agent_cost (org_id, agent_id, day_ms, model, tasks, attempts, input_tokens, output_tokens, cost_micros, unrated_attempts, last_ms)
    values (${of.orgId}, ${of.agentId}, ${dayStart(of.endMs)}, ${usage.model}, ${tasks}, 1, ${usage.inputTokens}, ${usage.outputTokens},
      ${of.costMicros}, ${unrated}, ${of.endMs})
    on conflict (org_id, agent_id, day_ms, model) do update
      set tasks = agent_cost.tasks + excluded.tasks, attempts = agent_cost.attempts + 1,
        input_tokens = ${plus(sql`agent_cost.input_tokens`, usage.inputTokens)},
        output_tokens = ${plus(sql`agent_cost.output_tokens`, usage.outputTokens)},
        cost_micros = ${plus(sql`agent_cost.cost_micros`, of.costMicros)},
        unrated_attempts = agent_cost.unrated_attempts + excluded.unrated_attempts, last_ms = excluded.last_ms`);
}

const hadBefore = async (db: Queryable, { orgId, taskId, attempt, agentId }: CountedAttempt): Promise<boolean> =>
  (await db.one(sql`
    select 1 as found from task_attempt
    where org_id = ${orgId} and task_id = ${taskId} and attempt < ${attempt} and agent_id = ${agentId} and end_ms is not null limit 1`)) !==
  undefined;

/** The model that an agent reported last, or empty: the last one of the latest day on which it reported any. */
export const lastModel = async (db: Queryable, orgId: string, agentId: string): Promise<string> =>
  (
    await db.one<{ model: string }>(sql`
      select model from agent_cost
      where org_id = ${orgId} and agent_id = ${agentId} and model <> '' and day_ms = (
        select day_ms from agent_cost where org_id = ${orgId} and agent_id = ${agentId} and model <> '' order by day_ms desc limit 1)
      order by last_ms desc limit 1`)
  )?.model ?? "";

/** Whether anything was ever counted for an agent. */
export const hasCosts = async (db: Queryable, orgId: string, agentId: string): Promise<boolean> =>
  (await db.one(sql`select 1 as found from agent_cost where org_id = ${orgId} and agent_id = ${agentId} limit 1`)) !==
  undefined;

const sums = sql`cast(coalesce(sum(tasks), 0) as bigint) as tasks, cast(coalesce(sum(attempts), 0) as bigint) as attempts,
  cast(coalesce(sum(input_tokens), 0) as bigint) as input_tokens, cast(coalesce(sum(output_tokens), 0) as bigint) as output_tokens,
  cast(coalesce(sum(cost_micros), 0) as bigint) as cost_micros, cast(coalesce(sum(unrated_attempts), 0) as bigint) as unrated_attempts`;

/** Days, both included, by when they begin. */
export type Window = { readonly startMs: number; readonly endMs: number };

const ofAgent = (orgId: string, agentId: string, { startMs, endMs }: Window): Sql =>
  sql`from agent_cost where org_id = ${orgId} and agent_id = ${agentId} and day_ms between ${startMs} and ${endMs}`;

export const agentTotals = async (db: Queryable, orgId: string, agentId: string, window: Window): Promise<TotalsRow> =>
  (await db.one<TotalsRow>(sql`select ${sums} ${ofAgent(orgId, agentId, window)}`))!;

/** What an agent used of each model, dearest first. */
export const agentModels = (db: Queryable, orgId: string, agentId: string, window: Window, limit: number) =>
  db.all<TotalsRow & { readonly model: string }>(sql`
    select model, ${sums} ${ofAgent(orgId, agentId, window)} group by model order by sum(cost_micros) desc, model limit ${limit}`);

export type AgentDayRow = TotalsRow & { readonly agent_id: string; readonly day_ms: number };

/** Per agent and day, latest day first, then by agent; along the index on (org, day, agent), or of one agent along the primary key. */
export function listAgentDays(
  db: Queryable,
  orgId: string,
  { agentId, model, window }: { readonly agentId: string; readonly model: string; readonly window: Window },
  after: Position | undefined,
  limit: number,
): Promise<AgentDayRow[]> {
  const [lastDay, lastAgent] = (after ?? [window.endMs, ""]) as [number, string];
  return db.all<AgentDayRow>(sql`
    select day_ms, agent_id, ${sums} from agent_cost
    where org_id = ${orgId} and day_ms between ${window.startMs} and ${lastDay} and (day_ms < ${lastDay} or agent_id > ${lastAgent})
      ${agentId ? sql`and agent_id = ${agentId}` : sql``} ${model ? sql`and model = ${model}` : sql``}
    group by day_ms, agent_id order by day_ms desc, agent_id limit ${limit}`);
}

/** One attempt that has ended, with what its task says of it. */
export type StepRow = {
  readonly task_id: string;
  readonly span_id: string;
  readonly parent_span_id: string;
  readonly attempt: number;
  readonly contract_id: string;
  readonly contract_version: string;
  readonly caller_agent_id: string;
  readonly agent_id: string;
  readonly model: string;
  readonly input_tokens: number;
  readonly output_tokens: number;
  readonly cost_micros: number;
  readonly rate: string;
  readonly estimated: number;
  readonly end_ms: number;
};

/** Attempts that have ended, as a range of the end: SQLite does not take the index for `is not null` alone. */
const ended = sql`a.end_ms > 0`;

/** The attempts of a trace, of all tasks or of those that one agent asked for or was given; by the index on (org, trace, end). */
const stepsOf = (orgId: string, traceId: string, forAgentId: string): Sql => sql`
  from task_attempt a join task k on k.org_id = a.org_id and k.task_id = a.task_id
  where a.org_id = ${orgId} and a.trace_id = ${traceId}
    ${forAgentId ? sql`and (k.caller_agent_id = ${forAgentId} or k.target_agent_id = ${forAgentId} or a.agent_id = ${forAgentId})` : sql``}`;

/** Oldest first. */
export function traceSteps(
  db: Queryable,
  orgId: string,
  traceId: string,
  forAgentId: string,
  after: Position | undefined,
  limit: number,
): Promise<StepRow[]> {
  const later =
    after &&
    sql`a.end_ms is not null and (a.end_ms, a.task_id, a.attempt) > (${after[0]!}, ${after[1]!}, ${after[2]!})`;
  return db.all<StepRow>(sql`
    select a.task_id, k.span_id, k.parent_span_id, a.attempt, a.contract_id, a.contract_version, k.caller_agent_id, a.agent_id, a.model,
      a.input_tokens, a.output_tokens, a.cost_micros, a.rate, a.estimated, a.end_ms
    ${stepsOf(orgId, traceId, forAgentId)} and ${later ?? ended} order by a.end_ms, a.task_id, a.attempt limit ${limit}`);
}

export const traceTotals = async (
  db: Queryable,
  orgId: string,
  traceId: string,
  forAgentId: string,
): Promise<TotalsRow> =>
  (await db.one<TotalsRow>(sql`
    select count(distinct a.task_id) as tasks, count(*) as attempts, cast(coalesce(sum(a.input_tokens), 0) as bigint) as input_tokens,
      cast(coalesce(sum(a.output_tokens), 0) as bigint) as output_tokens, cast(coalesce(sum(a.cost_micros), 0) as bigint) as cost_micros,
      count(case when a.rate = '' and a.cost_micros = 0 and a.input_tokens + a.output_tokens > 0 then 1 end) as unrated_attempts
    ${stepsOf(orgId, traceId, forAgentId)} and ${ended}`))!;

export const toTotals = (row: TotalsRow): MessageInitShape<typeof CostTotalsSchema> => ({
  tasks: BigInt(row.tasks),
  attempts: BigInt(row.attempts),
  inputTokens: BigInt(row.input_tokens),
  outputTokens: BigInt(row.output_tokens),
  costMicros: BigInt(row.cost_micros),
  unratedAttempts: BigInt(row.unrated_attempts),
});

export const toStepCost = (row: StepRow): MessageInitShape<typeof StepCostSchema> => ({
  taskId: row.task_id,
  spanId: row.span_id,
  parentSpanId: row.parent_span_id,
  attempt: row.attempt,
  contractId: row.contract_id,
  contractVersion: row.contract_version,
  callerAgentId: row.caller_agent_id,
  agentId: row.agent_id,
  model: row.model,
  inputTokens: BigInt(row.input_tokens),
  outputTokens: BigInt(row.output_tokens),
  costMicros: BigInt(row.cost_micros),
  ...(row.rate && { rate: toRate(JSON.parse(row.rate) as RateRow) }),
  estimated: row.estimated !== 0,
  endTime: timestampFromMs(row.end_ms),
});
