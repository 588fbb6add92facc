import type { MessageInitShape } from "@bufbuild/protobuf";
import { timestampFromMs } from "@bufbuild/protobuf/wkt";
import type { RateSchema } from "../../../gen/moltwire/bus/v1/cost_pb.ts";
import { join, type Queryable, sql, type Tx } from "../../db/db.ts";

/** A rate as it is stored. An empty agent or model: any. Prices are of 1,000 tokens, in micro-credits. */
export type RateRow = {
  readonly org_id: string;
  readonly agent_id: string;
  readonly model: string;
  readonly effective_ms: number;
  /** {@link never}: there is no next one. */
  readonly end_ms: number;
  readonly input_micros: number;
  readonly output_micros: number;
  readonly inherit: number;
  readonly create_ms: number;
};

/** The end of what has none. */
export const never = Number.MAX_SAFE_INTEGER;

const columns = sql`org_id, agent_id, model, effective_ms, end_ms, input_micros, output_micros, inherit, create_ms`;

/**
 * The rate that is applied to an agent's work with a model at a time, or undefined. The latest of each name is one step down the primary key;
 * of them the most closely named one counts that has prices.
 */
export async function rateFor(
  db: Queryable,
  orgId: string,
  agentId: string,
  model: string,
  atMs: number,
): Promise<RateRow | undefined> {
  const names = [[agentId, model], [agentId, ""], ...(model ? [["", model]] : []), ["", ""]].slice(model ? 0 : 1);
  const latest = names.map(
    ([agent = "", of = ""]) => sql`
    select * from (select ${columns} from rate
      where org_id = ${orgId} and agent_id = ${agent} and model = ${of} and effective_ms <= ${atMs} order by effective_ms desc limit 1) latest`,
  );
  const rows = await db.all<RateRow>(join(latest, " union all "));
  return names
    .map(([agent, of]) => rows.find((row) => row.agent_id === agent && row.model === of))
    .find((row) => row && row.inherit === 0);
}

/** One caller at a time changes the rates of an organisation: each change also ends the one before it. */
export const lockRates = (tx: Tx, orgId: string): Promise<unknown> =>
  tx.one(sql`select 1 as found from organization where org_id = ${orgId} ${tx.dialect.forUpdate}`);

/** Sets a rate from a time on, in place of one of the same name and time; the one before it ends then. Under {@link lockRates}. */
export async function putRate(tx: Tx, rate: Omit<RateRow, "end_ms">): Promise<void> {
  const { org_id, agent_id, model, effective_ms } = rate;
  const name = sql`org_id = ${org_id} and agent_id = ${agent_id} and model = ${model}`;
  const next = await tx.one<{ effective_ms: number }>(
    sql`select effective_ms from rate where ${name} and effective_ms > ${effective_ms} order by effective_ms limit 1`,
  );
  await tx.run(
    sql`update rate set end_ms = ${effective_ms} where ${name} and effective_ms < ${effective_ms} and end_ms > ${effective_ms}`,
  );
  await tx.run(sql`
    insert into rate (${columns})
    values (${org_id}, ${agent_id}, ${model}, ${effective_ms}, ${next?.effective_ms ?? never}, ${rate.input_micros}, ${rate.output_micros},
      ${rate.inherit}, ${rate.create_ms})
    on conflict (org_id, agent_id, model, effective_ms) do update
      set input_micros = excluded.input_micros, output_micros = excluded.output_micros, inherit = excluded.inherit, create_ms = excluded.create_ms`);
}

export const findRate = (db: Queryable, { org_id, agent_id, model, effective_ms }: Omit<RateRow, "end_ms">) =>
  db.one<RateRow>(sql`
    select ${columns} from rate where org_id = ${org_id} and agent_id = ${agent_id} and model = ${model} and effective_ms = ${effective_ms}`);

/** How many rates of an organisation are in effect or to come, counted up to a bound; by the index on (org, end). */
export const countLiveRates = async (db: Queryable, orgId: string, now: number, bound: number): Promise<number> =>
  (await db.one<{ n: number }>(
    sql`select count(*) as n from (select 1 as one from rate where org_id = ${orgId} and end_ms > ${now} limit ${bound}) live`,
  ))!.n;

/** The rates that can apply to an agent, in effect or to come: most closely named first, then by model, then by time; of those that live, of which there are few. */
export const ratesOfAgent = (db: Queryable, orgId: string, agentId: string, now: number, limit: number) =>
  db.all<RateRow>(sql`
    select ${columns} from rate where org_id = ${orgId} and agent_id in (${agentId}, '') and end_ms > ${now}
    order by case when agent_id = '' then 1 else 0 end, case when model = '' then 1 else 0 end, model, effective_ms limit ${limit}`);

export const toRate = (row: RateRow): MessageInitShape<typeof RateSchema> => ({
  orgId: row.org_id,
  agentId: row.agent_id,
  model: row.model,
  inputPer1000TokensMicros: BigInt(row.input_micros),
  outputPer1000TokensMicros: BigInt(row.output_micros),
  inherit: row.inherit !== 0,
  effectiveTime: timestampFromMs(row.effective_ms),
  ...(row.end_ms !== never && { endTime: timestampFromMs(row.end_ms) }),
  createTime: timestampFromMs(row.create_ms),
});
