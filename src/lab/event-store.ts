/** The events of a run: a log with a gapless sequence, whose head is in the scenario. */
import type { MessageInitShape } from "@bufbuild/protobuf";
import { timestampFromMs } from "@bufbuild/protobuf/wkt";
import type { ScenarioEventKind, ScenarioEventSchema, ScenarioState } from "../../gen/moltwire/lab/v1/scenario_pb.ts";
import { join, type Queryable, sql, type Tx } from "../db/db.ts";
import type { RunRef } from "./store.ts";

/** An event before it is written. */
export type NewEvent = {
  readonly kind: ScenarioEventKind;
  readonly timeMs: number;
  /** Undefined: it is about the whole run. */
  readonly agent?: number | undefined;
  readonly message: string;
};

/** An event as it is stored; `kind` is the number of ScenarioEventKind. */
export type EventRow = {
  readonly sequence: number;
  readonly run: number;
  readonly kind: number;
  readonly time_ms: number;
  readonly agent: number | null;
  readonly message: string;
};

/** Rung when something of the scenario has changed. */
export const scenarioTopic = (scenarioId: string): string => `scenario:${scenarioId}`;

/** Writes events of a run, unless there is a later run; the scenario's row is what takes its writers one after another. `during`: only in that state, so that nothing follows the end. */
export async function appendEvents(
  tx: Tx,
  { orgId, scenarioId, run }: RunRef,
  events: readonly NewEvent[],
  during?: ScenarioState,
): Promise<void> {
  if (events.length === 0) return;
  const head = await tx.one<{ last_sequence: number }>(sql`
    update lab_scenario set last_sequence = last_sequence + ${events.length}
    where org_id = ${orgId} and scenario_id = ${scenarioId} and run = ${run} ${during === undefined ? sql`` : sql`and state = ${during}`}
    returning last_sequence`);
  if (!head) return;
  const first = head.last_sequence - events.length + 1;
  const rows = events.map(
    ({ kind, timeMs, agent = null, message }, n) =>
      sql`(${orgId}, ${scenarioId}, ${first + n}, ${run}, ${kind}, ${timeMs}, ${agent}, ${message})`,
  );
  await tx.run(
    sql`insert into lab_event (org_id, scenario_id, sequence, run, kind, time_ms, agent, message) values ${join(rows)}`,
  );
  tx.ring(scenarioTopic(scenarioId));
}

/** By the primary key. */
export const readEvents = (
  db: Queryable,
  orgId: string,
  scenarioId: string,
  after: number,
  limit: number,
): Promise<EventRow[]> =>
  db.all<EventRow>(sql`
    select sequence, run, kind, time_ms, agent, message from lab_event
    where org_id = ${orgId} and scenario_id = ${scenarioId} and sequence > ${after} order by sequence limit ${limit}`);

export const toEvent = (row: EventRow): MessageInitShape<typeof ScenarioEventSchema> => ({
  sequence: BigInt(row.sequence),
  run: row.run,
  kind: row.kind as ScenarioEventKind,
  time: timestampFromMs(row.time_ms),
  ...(row.agent !== null && { agent: row.agent }),
  message: row.message,
});
