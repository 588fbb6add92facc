/** What GetOverview counts: each query goes along an index and ends at a bound. */
import type { MessageInitShape } from "@bufbuild/protobuf";
import { timestampFromMs } from "@bufbuild/protobuf/wkt";
import { PolicyVerdict } from "../../gen/moltwire/bus/v1/policy_pb.ts";
import type { GetOverviewResponseSchema } from "../../gen/moltwire/ops/v1/admin_service_pb.ts";
import { DeliveryState } from "../../gen/moltwire/webhook/v1/delivery_pb.ts";
import { dayMs, dayStart, dayText } from "../bus/cost/day.ts";
import { type Queryable, type Sql, sql } from "../db/db.ts";

const bound = 10_000;
const hourMs = 3_600_000;
const hours = 24;
const days = 30;

/** How many rows of an organisation there are, up to the bound. */
const upTo = (rows: Sql): Sql => sql`(select count(*) from (${rows} limit ${bound}) counted)`;

/** Webhook by webhook, as their index goes. */
const deliveriesIn = (orgId: string, state: DeliveryState): Sql => sql`
  select 1 as one from webhook w cross join webhook_delivery d where w.org_id = ${orgId} and d.org_id = ${orgId} and d.webhook_id = w.webhook_id and d.state = ${state}`;

/** Everything that is as it is now, in one statement. */
export const countsNow = (orgId: string): Sql => sql`select
  ${upTo(sql`select 1 as one from agent where org_id = ${orgId}`)} as agents,
  ${upTo(sql`select 1 as one from agent_circuit where org_id = ${orgId} and state > 1`)} as circuits,
  ${upTo(sql`select 1 as one from contract where org_id = ${orgId}`)} as contracts,
  ${upTo(sql`select 1 as one from task where org_id = ${orgId} and state < 4`)} as tasks,
  ${upTo(sql`select 1 as one from approval where org_id = ${orgId} and state = 1`)} as approvals,
  ${upTo(sql`select 1 as one from dead_letter where org_id = ${orgId} and state = 1`)} as letters,
  ${upTo(deliveriesIn(orgId, DeliveryState.PENDING))} as sending,
  ${upTo(deliveriesIn(orgId, DeliveryState.FAILED))} as unsent`;

/** Of all queues but the one that stands for the organisation. */
export const queueLevels = (orgId: string): Sql => sql`
  select cast(coalesce(sum(pending), 0) as bigint) as pending, cast(coalesce(sum(leased), 0) as bigint) as leased, cast(coalesce(sum(failed), 0) as bigint) as failed
  from (select pending, leased, failed from queue_level where org_id = ${orgId} and queue > '' limit ${bound}) counted`;

type Hour = { readonly hour: number; readonly n: number };

/** By the hour, of the newest rows: `times` gives their `at_ms`, newest first. */
const byHour = (times: Sql): Sql =>
  sql`select at_ms / ${hourMs} as hour, count(*) as n from (${times} limit ${bound}) counted group by 1`;

export const tracesByHour = (orgId: string, fromMs: number): Sql =>
  byHour(
    sql`select start_ms as at_ms from trace where org_id = ${orgId} and start_ms >= ${fromMs} order by start_ms desc`,
  );

export const failuresByHour = (orgId: string, fromMs: number): Sql =>
  byHour(
    sql`select create_ms as at_ms from dead_letter where org_id = ${orgId} and create_ms >= ${fromMs} order by create_ms desc`,
  );

export const decisionsByHour = (orgId: string, verdict: PolicyVerdict, fromMs: number): Sql =>
  byHour(
    sql`select time_ms as at_ms from policy_decision where org_id = ${orgId} and verdict = ${verdict} and nth = 0 and time_ms >= ${fromMs} order by time_ms desc`,
  );

export const deliveriesByHour = (orgId: string, fromMs: number): Sql =>
  byHour(
    sql`select d.event_ms as at_ms from webhook w cross join webhook_delivery d
      where w.org_id = ${orgId} and d.org_id = ${orgId} and d.webhook_id = w.webhook_id and d.event_ms >= ${fromMs}`,
  );

export const costsByDay = (orgId: string, fromMs: number): Sql => sql`
  select day_ms, cast(sum(input_tokens + output_tokens) as bigint) as tokens, cast(sum(cost_micros) as bigint) as cost
  from (select day_ms, input_tokens, output_tokens, cost_micros from agent_cost where org_id = ${orgId} and day_ms >= ${fromMs} order by day_ms desc limit ${bound}) counted
  group by day_ms`;

type Now = {
  readonly agents: number;
  readonly circuits: number;
  readonly contracts: number;
  readonly tasks: number;
  readonly approvals: number;
  readonly letters: number;
  readonly sending: number;
  readonly unsent: number;
};

/** The overview of an organisation. */
export async function readOverview(
  db: Queryable,
  orgId: string,
  now: number,
): Promise<MessageInitShape<typeof GetOverviewResponseSchema>> {
  const firstHour = Math.floor(now / hourMs) - hours + 1;
  const fromMs = firstHour * hourMs;
  const counts = (await db.one<Now>(countsNow(orgId)))!;
  const levels = (await db.one<{ pending: number; leased: number; failed: number }>(queueLevels(orgId)))!;
  const traces = await perHour(db, tracesByHour(orgId, fromMs));
  const failures = await perHour(db, failuresByHour(orgId, fromMs));
  const allowed = await perHour(db, decisionsByHour(orgId, PolicyVerdict.ALLOW, fromMs));
  const denied = await perHour(db, decisionsByHour(orgId, PolicyVerdict.DENY, fromMs));
  const deliveries = await perHour(db, deliveriesByHour(orgId, fromMs));
  const firstDay = dayStart(now) - (days - 1) * dayMs;
  const used = await db.all<{ day_ms: number; tokens: number | bigint; cost: number | bigint }>(
    costsByDay(orgId, firstDay),
  );
  const usedOn = new Map(used.map((row) => [row.day_ms, row]));
  return {
    agents: BigInt(counts.agents),
    openCircuits: BigInt(counts.circuits),
    contractVersions: BigInt(counts.contracts),
    openTasks: BigInt(counts.tasks),
    pendingApprovals: BigInt(counts.approvals),
    openDeadLetters: BigInt(counts.letters),
    pendingJobs: BigInt(levels.pending),
    leasedJobs: BigInt(levels.leased),
    deadJobs: BigInt(levels.failed),
    pendingDeliveries: BigInt(counts.sending),
    failedDeliveries: BigInt(counts.unsent),
    hours: Array.from({ length: hours }, (_, n) => ({
      startTime: timestampFromMs((firstHour + n) * hourMs),
      traces: traces(firstHour + n),
      failedTasks: failures(firstHour + n),
      allowed: allowed(firstHour + n),
      denied: denied(firstHour + n),
      deliveries: deliveries(firstHour + n),
    })),
    days: Array.from({ length: days }, (_, n) => {
      const day = usedOn.get(firstDay + n * dayMs);
      return {
        date: dayText(firstDay + n * dayMs),
        tokens: BigInt(day?.tokens ?? 0),
        costMicros: BigInt(day?.cost ?? 0),
      };
    }),
  };
}

async function perHour(db: Queryable, counts: Sql): Promise<(hour: number) => bigint> {
  const rows = await db.all<Hour>(counts);
  const byHour = new Map(rows.map(({ hour, n }) => [Number(hour), BigInt(n)]));
  return (hour) => byHour.get(hour) ?? 0n;
}
