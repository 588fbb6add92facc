import { fromJsonString, type MessageInitShape, toJsonString } from "@bufbuild/protobuf";
import { durationFromMs, timestampFromMs } from "@bufbuild/protobuf/wkt";
import {
  type Faults,
  FaultsSchema,
  type Pattern,
  type ScenarioResults,
  ScenarioResultsSchema,
  type ScenarioSchema,
  ScenarioState,
  type SuccessCriteria,
  SuccessCriteriaSchema,
} from "../../gen/moltwire/lab/v1/scenario_pb.ts";
import { type Queryable, sql, type Tx } from "../db/db.ts";
import type { Position } from "../rpc/cursor.ts";

/** A scenario as it is stored: `criteria`, `faults` and `results` JSON of their messages. */
export type ScenarioRow = {
  readonly org_id: string;
  readonly scenario_id: string;
  readonly name: string;
  readonly pattern: Pattern;
  readonly state: ScenarioState;
  readonly agents: number;
  readonly timeout_ms: number;
  readonly seed: number;
  readonly criteria: string;
  readonly faults: string;
  /** The last run, from 1; 0: none. */
  readonly run: number;
  /** The server that runs it, or ran it last. */
  readonly server_id: string;
  readonly trace_id: string;
  readonly span_id: string;
  readonly last_sequence: number;
  readonly create_ms: number;
  readonly start_ms: number | null;
  readonly end_ms: number | null;
};

/** With whether something of its last run is still there. */
export type ShownRow = ScenarioRow & { readonly sandboxed: number };

/** One run of a scenario. */
export type RunRef = { readonly orgId: string; readonly scenarioId: string; readonly run: number };

const columns = sql`s.org_id, s.scenario_id, s.name, s.pattern, s.state, s.agents, s.timeout_ms, s.seed, s.criteria, s.faults, s.run, s.server_id, s.trace_id,
  s.span_id, s.last_sequence, s.create_ms, s.start_ms, s.end_ms`;
const sandboxed = sql`case when exists (select 1 from lab_sandbox b where b.org_id = s.org_id and b.scenario_id = s.scenario_id) then 1 else 0 end as sandboxed`;
const running = ScenarioState.RUNNING;
/** As the condition of their index says it. */
const isRunning = sql`state = 2`;

export const insertScenario = (tx: Tx, row: ScenarioRow): Promise<number> =>
  tx.run(sql`
    insert into lab_scenario (org_id, scenario_id, name, pattern, state, agents, timeout_ms, seed, criteria, faults, run, server_id, trace_id, span_id, last_sequence, create_ms)
    values (${row.org_id}, ${row.scenario_id}, ${row.name}, ${row.pattern}, ${row.state}, ${row.agents}, ${row.timeout_ms}, ${row.seed}, ${row.criteria},
      ${row.faults}, ${row.run}, ${row.server_id}, ${row.trace_id}, ${row.span_id}, ${row.last_sequence}, ${row.create_ms})`);

export const findScenario = (db: Queryable, orgId: string, scenarioId: string): Promise<ShownRow | undefined> =>
  db.one<ShownRow>(
    sql`select ${columns}, ${sandboxed} from lab_scenario s where s.org_id = ${orgId} and s.scenario_id = ${scenarioId}`,
  );

export const lockScenario = (tx: Tx, orgId: string, scenarioId: string): Promise<ScenarioRow | undefined> =>
  tx.one<ScenarioRow>(
    sql`select ${columns} from lab_scenario s where s.org_id = ${orgId} and s.scenario_id = ${scenarioId} ${tx.dialect.forUpdate}`,
  );

/** What to list of an organisation's scenarios; 0 lets all through. */
export type ScenarioFilter = { readonly pattern: number; readonly state: number };

/** Newest first: ids sort by time. By the primary key; an organisation has at most 1,000. */
export const listScenarios = (
  db: Queryable,
  orgId: string,
  { pattern, state }: ScenarioFilter,
  before: Position | undefined,
  limit: number,
): Promise<ShownRow[]> => {
  const [beforeId] = (before ?? []) as string[];
  return db.all<ShownRow>(sql`
    select ${columns}, ${sandboxed} from lab_scenario s
    where s.org_id = ${orgId} ${beforeId === undefined ? sql`` : sql`and s.scenario_id < ${beforeId}`}
      ${pattern ? sql`and s.pattern = ${pattern}` : sql``} ${state ? sql`and s.state = ${state}` : sql``}
    order by s.scenario_id desc limit ${limit}`);
};

/** The results of the last run as JSON; undefined: there are none. */
export const findResults = async (db: Queryable, orgId: string, scenarioId: string): Promise<string | undefined> =>
  (
    await db.one<{ results: string | null }>(
      sql`select results from lab_scenario where org_id = ${orgId} and scenario_id = ${scenarioId}`,
    )
  )?.results ?? undefined;

/** How many scenarios an organisation runs; by the index on those that run. */
export const countRunning = async (db: Queryable, orgId: string): Promise<number> =>
  (await db.one<{ n: number }>(sql`select count(*) as n from lab_scenario where org_id = ${orgId} and ${isRunning}`))!
    .n;

/** Removes what an organisation has beyond so many scenarios, the oldest first, but none that runs or of whose run something is left. */
export async function trimScenarios(tx: Tx, orgId: string, kept: number): Promise<void> {
  const old = await tx.all<{ scenario_id: string }>(sql`
    select s.scenario_id from lab_scenario s
    where s.org_id = ${orgId} and s.scenario_id <= (
        select k.scenario_id from lab_scenario k where k.org_id = ${orgId} order by k.scenario_id desc limit 1 offset ${kept})
      and s.state <> ${running}
      and not exists (select 1 from lab_sandbox b where b.org_id = s.org_id and b.scenario_id = s.scenario_id)
    order by s.scenario_id limit 10`);
  for (const { scenario_id } of old) {
    await tx.run(sql`delete from lab_scenario where org_id = ${orgId} and scenario_id = ${scenario_id}`);
    await dropEvents(tx, orgId, scenario_id);
  }
}

export const dropEvents = (tx: Tx, orgId: string, scenarioId: string): Promise<number> =>
  tx.run(sql`delete from lab_event where org_id = ${orgId} and scenario_id = ${scenarioId}`);

/** Where a run begins. */
export type Beginning = RunRef & {
  readonly serverId: string;
  readonly traceId: string;
  readonly spanId: string;
  readonly startMs: number;
};

export const beginRun = (
  tx: Tx,
  { orgId, scenarioId, run, serverId, traceId, spanId, startMs }: Beginning,
): Promise<number> =>
  tx.run(sql`
    update lab_scenario set state = ${running}, run = ${run}, server_id = ${serverId}, trace_id = ${traceId}, span_id = ${spanId}, results = null,
      start_ms = ${startMs}, end_ms = null
    where org_id = ${orgId} and scenario_id = ${scenarioId}`);

/** Ends a run that still runs; 0 when it has ended otherwise. */
export const endRun = (
  tx: Tx,
  { orgId, scenarioId, run }: RunRef,
  state: ScenarioState,
  now: number,
): Promise<number> =>
  tx.run(sql`
    update lab_scenario set state = ${state}, end_ms = ${now}
    where org_id = ${orgId} and scenario_id = ${scenarioId} and run = ${run} and state = ${running}`);

/** Keeps what was observed of a run, unless there is a later one. */
export const keepResults = (tx: Tx, { orgId, scenarioId, run }: RunRef, results: ScenarioResults): Promise<number> =>
  tx.run(sql`
    update lab_scenario set results = ${toJsonString(ScenarioResultsSchema, results)}
    where org_id = ${orgId} and scenario_id = ${scenarioId} and run = ${run}`);

/** Runs whose server is gone, and those of this one; few run at all, by the index on them. */
export const orphanedRuns = (db: Queryable, serverId: string, now: number, limit: number): Promise<ScenarioRow[]> =>
  db.all<ScenarioRow>(sql`
    select ${columns} from lab_scenario s
    where ${isRunning} and (s.server_id = ${serverId}
      or not exists (select 1 from lease l where l.name = 'server:' || s.server_id and l.until_ms > ${now}))
    order by s.org_id, s.scenario_id limit ${limit}`);

export const toScenario = (row: ShownRow): MessageInitShape<typeof ScenarioSchema> => ({
  orgId: row.org_id,
  scenarioId: row.scenario_id,
  name: row.name,
  pattern: row.pattern,
  agentCount: row.agents,
  timeout: durationFromMs(row.timeout_ms),
  successCriteria: criteriaOf(row),
  seed: BigInt(row.seed),
  faults: faultsOf(row),
  state: row.state,
  run: row.run,
  traceId: row.trace_id,
  createTime: timestampFromMs(row.create_ms),
  ...(row.start_ms !== null && { startTime: timestampFromMs(row.start_ms) }),
  ...(row.end_ms !== null && { endTime: timestampFromMs(row.end_ms) }),
  cleaning: row.state !== running && row.sandboxed !== 0,
});

export const criteriaOf = ({ criteria }: Pick<ScenarioRow, "criteria">): SuccessCriteria =>
  fromJsonString(SuccessCriteriaSchema, criteria);
export const faultsOf = ({ faults }: Pick<ScenarioRow, "faults">): Faults => fromJsonString(FaultsSchema, faults);
export const resultsFrom = (json: string): ScenarioResults => fromJsonString(ScenarioResultsSchema, json);
