/** How a run begins and ends in storage: state, event and trace together, whoever ends it. */

import { TraceEventKind } from "../../gen/moltwire/bus/v1/trace_pb.ts";
import {
  ScenarioEventKind,
  type ScenarioResults,
  type ScenarioState,
  ScenarioStateSchema,
} from "../../gen/moltwire/lab/v1/scenario_pb.ts";
import type { App } from "../app.ts";
import { openTrace, recordSteps, type Span } from "../bus/trace-store.ts";
import type { Tx } from "../db/db.ts";
import { appendEvents, scenarioTopic } from "./event-store.ts";
import { endRun, keepResults, type RunRef, type ScenarioRow } from "./store.ts";

type Needs = Pick<App, "ids" | "vault" | "stepsCommitted">;
type Traced = Pick<ScenarioRow, "org_id" | "scenario_id" | "trace_id" | "span_id" | "run">;

/** The name of a state as clients read it. */
export const stateName = (state: ScenarioState): string => ScenarioStateSchema.value[state]!.localName;

/** Tells that a run has begun. */
export async function tellBeginning(tx: Tx, app: Needs, row: Traced, message: string, now: number): Promise<void> {
  await openTrace(tx, spanOf(row), now);
  await recordSteps(tx, app, spanOf(row), [step(row, "RUNNING", message, now)]);
  await appendEvents(tx, refOf(row), [{ kind: ScenarioEventKind.STARTED, timeMs: now, message }]);
}

/** Ends a run, unless it has ended already; gives whether it did. */
export async function tellEnd(
  tx: Tx,
  app: Needs,
  row: Traced,
  { state, message }: { readonly state: ScenarioState; readonly message: string },
  now: number,
  results?: ScenarioResults,
): Promise<boolean> {
  const ref = refOf(row);
  if ((await endRun(tx, ref, state, now)) === 0) return false;
  if (results) await keepResults(tx, ref, results);
  await recordSteps(tx, app, spanOf(row), [step(row, stateName(state), message, now)]);
  await appendEvents(tx, ref, [{ kind: ScenarioEventKind.ENDED, timeMs: now, message }]);
  tx.ring(scenarioTopic(ref.scenarioId));
  return true;
}

export const refOf = (row: Traced): RunRef => ({ orgId: row.org_id, scenarioId: row.scenario_id, run: row.run });

const spanOf = (row: Traced): Span => ({
  orgId: row.org_id,
  traceId: row.trace_id,
  spanId: row.span_id,
  parentSpanId: "",
  taskId: "",
  callerAgentId: "",
  contractId: "",
});

const step = (row: Traced, state: string, message: string, timeMs: number) => ({
  kind: TraceEventKind.SCENARIO,
  timeMs,
  message,
  details: { scenario_id: row.scenario_id, run: row.run, state },
});
