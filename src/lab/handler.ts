import { create, toJsonString } from "@bufbuild/protobuf";
import { durationMs } from "@bufbuild/protobuf/wkt";
import type { ServiceImpl } from "@connectrpc/connect";
import {
  FaultsSchema,
  PatternSchema,
  ScenarioResultsSchema,
  ScenarioState,
  SuccessCriteriaSchema,
} from "../../gen/moltwire/lab/v1/scenario_pb.ts";
import type { CreateScenarioRequest, ScenarioService } from "../../gen/moltwire/lab/v1/scenario_service_pb.ts";
import type { App } from "../app.ts";
import { Fault, notFound } from "../errors.ts";
import { lockOrganization } from "../federation/organization-store.ts";
import { type Command, command, runCommand } from "../rpc/command.ts";
import { feed } from "../rpc/feed.ts";
import { readPage } from "../rpc/page.ts";
import { query } from "../rpc/query.ts";
import { stateName, tellBeginning, tellEnd } from "./end.ts";
import type { Begun, Lab } from "./lab.ts";
import { makeSandbox } from "./sandbox.ts";
import {
  beginRun,
  countRunning,
  dropEvents,
  findResults,
  findScenario,
  insertScenario,
  listScenarios,
  lockScenario,
  resultsFrom,
  type ScenarioRow,
  toScenario,
  trimScenarios,
} from "./store.ts";
import { scenarioReader } from "./watch.ts";

const defaultTimeoutMs = 60_000;
const maxScenarios = 1_000;
const maxRunning = 2;
const seedBytes = 6;

export const scenarioHandler = (app: App, lab: Lab): ServiceImpl<typeof ScenarioService> => ({
  createScenario: command(app, async (req, { tx, orgId, now }) => {
    await trimScenarios(tx, orgId, maxScenarios - 1);
    const row = newScenario(app, req, orgId, now);
    await insertScenario(tx, row);
    return { scenario: toScenario({ ...row, sandboxed: 0 }) };
  }),

  listScenarios: query(app, async (req, { db, orgId }) => {
    const filter = { pattern: req.pattern, state: req.state };
    const scope = ["ListScenarios", orgId, String(req.pattern), String(req.state)];
    const read = (before: Parameters<typeof listScenarios>[3], limit: number) =>
      listScenarios(db, orgId, filter, before, limit);
    const page = await readPage(app.cursors, scope, req, read, (row) => [row.scenario_id]);
    return { scenarios: page.rows.map(toScenario), nextPageToken: page.nextPageToken };
  }),

  async runScenario(req, context) {
    const place = lab.take(req.scenarioId);
    let begun: Begun | undefined;
    try {
      const { reply, replayed } = await runCommand(app, req, context, async (request, given) => {
        begun = await begin(app, request.scenarioId, given);
        return { scenario: toScenario({ ...begun.scenario, sandboxed: 1 }) };
      });
      if (begun && !replayed) place.begin(begun);
      else place.leave();
      return reply;
    } catch (error) {
      place.leave();
      throw error;
    }
  },

  watchScenario: feed(app, (req, given) => scenarioReader(req, given)),

  cancelScenario: command(app, async (req, { tx, orgId, now }) => {
    const row = await lockScenario(tx, orgId, req.scenarioId);
    if (!row) throw notFound("scenario", req.scenarioId);
    const end = { state: ScenarioState.CANCELED, message: "the run was canceled" };
    if (row.state !== ScenarioState.RUNNING || !(await tellEnd(tx, app, row, end, now)))
      throw new Fault("FAILED_PRECONDITION", `the scenario does not run: it is ${stateName(row.state)}`, {
        state: stateName(row.state),
      });
    return { scenario: toScenario({ ...row, state: end.state, end_ms: now, sandboxed: 1 }) };
  }),

  getScenarioResults: query(app, async (req, { db, orgId }) => {
    const row = await findScenario(db, orgId, req.scenarioId);
    if (!row) throw notFound("scenario", req.scenarioId);
    if (row.state === ScenarioState.CREATED || row.state === ScenarioState.RUNNING)
      throw new Fault("FAILED_PRECONDITION", `there is no run that has ended: it is ${stateName(row.state)}`, {
        state: stateName(row.state),
      });
    const kept = await findResults(db, orgId, req.scenarioId);
    const { scenario_id: scenarioId, run, state } = row;
    const bare = create(ScenarioResultsSchema, { scenarioId, run, state, reason: bareReasons[state] ?? "" });
    return { scenario: toScenario(row), results: kept === undefined ? bare : resultsFrom(kept) };
  }),
});

/** Of runs of which there are no results. */
const bareReasons: Readonly<Record<number, string>> = {
  [ScenarioState.CANCELED]: "it was canceled",
  [ScenarioState.ABORTED]: "its server stopped or died",
  [ScenarioState.FAILED]: "it failed by a fault of the server's own",
};

function newScenario(app: App, req: CreateScenarioRequest, orgId: string, now: number): ScenarioRow {
  const { pattern, successCriteria = create(SuccessCriteriaSchema), faults = create(FaultsSchema) } = req;
  return {
    org_id: orgId,
    scenario_id: app.ids.next("scn"),
    name: req.name || PatternSchema.value[pattern]!.localName.toLowerCase(),
    pattern,
    state: ScenarioState.CREATED,
    agents: req.agentCount,
    timeout_ms: req.timeout ? durationMs(req.timeout) : defaultTimeoutMs,
    seed: Number(req.seed ?? Buffer.from(app.ids.bytes(seedBytes)).readUIntBE(0, seedBytes)),
    criteria: toJsonString(SuccessCriteriaSchema, successCriteria),
    faults: toJsonString(FaultsSchema, faults),
    run: 0,
    server_id: "",
    trace_id: "",
    span_id: "",
    last_sequence: 0,
    create_ms: now,
    start_ms: null,
    end_ms: null,
  };
}

/** Begins a run. The organisation is locked first, so that of many that begin at once no more do than may. */
async function begin(app: App, scenarioId: string, { tx, orgId, now, trace }: Command): Promise<Begun> {
  await lockOrganization(tx, orgId);
  const row = await lockScenario(tx, orgId, scenarioId);
  if (!row) throw notFound("scenario", scenarioId);
  if (row.state === ScenarioState.RUNNING)
    throw new Fault("FAILED_PRECONDITION", "the scenario runs already: cancel it, or wait for its end", {
      state: "RUNNING",
    });
  if ((await countRunning(tx, orgId)) >= maxRunning)
    throw new Fault("QUOTA_EXCEEDED", `an organisation runs at most ${maxRunning} scenarios at once`, {
      resource: "running_scenarios",
      limit: String(maxRunning),
    });
  const run = row.run + 1;
  const beginning = { run, serverId: app.serverId, traceId: trace.traceId, spanId: trace.spanId, startMs: now };
  await dropEvents(tx, orgId, scenarioId);
  await beginRun(tx, { orgId, scenarioId, ...beginning });
  const scenario: ScenarioRow = {
    ...row,
    ...{ state: ScenarioState.RUNNING, run, server_id: app.serverId, trace_id: trace.traceId, span_id: trace.spanId },
    ...{ start_ms: now, end_ms: null },
  };
  const size = { agents: row.agents, timeoutMs: row.timeout_ms };
  const sandbox = await makeSandbox(tx, app, { orgId, scenarioId, run }, size, now);
  await tellBeginning(tx, app, scenario, `run ${run} of ${row.name} begins`, now);
  return { scenario, sandbox };
}
