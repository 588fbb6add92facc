/** The runs of this server: begins them, ends them, and cleans up after them and after those of servers that are gone. */
import { ScenarioState } from "../../gen/moltwire/lab/v1/scenario_pb.ts";
import type { App } from "../app.ts";
import { Fault } from "../errors.ts";
import { refOf, tellEnd } from "./end.ts";
import { scenarioTopic } from "./event-store.ts";
import { play } from "./play.ts";
import { recorder } from "./recorder.ts";
import { resultsOf } from "./results.ts";
import { removeSandbox, type Sandbox, sandboxesToRemove } from "./sandbox.ts";
import { findScenario, orphanedRuns, type ScenarioRow } from "./store.ts";
import { type Inside, innerServer, type Wire } from "./wire.ts";

/** How many runs a server takes at once. */
const maxRuns = 8;
/** How often the lab looks for runs whose server is gone, and for what is left of runs. */
export const recoverMs = 5_000;
const batch = 100;
/** Behind the bell that tells of a cancellation. */
const lookMs = 2_000;
/** How long the calls of a run that has ended may take to end. */
const idleMs = 10_000;

/** A place for a run; to be left when it is not begun. */
export type Place = { begin(run: Begun): void; leave(): void };

/** A run that is RUNNING in storage. */
export type Begun = { readonly scenario: ScenarioRow; readonly sandbox: Sandbox };

export type Lab = {
  /** Lets the agents in. */
  open(inside: Inside): void;
  /** OVERLOADED when this server runs as many as it takes. */
  take(scenarioId: string): Place;
  /** Ends runs whose server is gone, and removes what is left of runs. */
  recover(): Promise<void>;
  /** After `app.stopping`: resolves when no run is under way, or when the time is over. */
  drain(ms: number): Promise<void>;
};

export function createLab(app: App): Lab {
  /** By their scenarios: places that are taken, and runs under way. */
  const taken = new Map<string, number>();
  const underWay = new Set<Promise<void>>();
  let wires: (() => Wire) | undefined;

  const count = (scenarioId: string, by: number) => {
    const next = (taken.get(scenarioId) ?? 0) + by;
    if (next > 0) taken.set(scenarioId, next);
    else taken.delete(scenarioId);
  };

  return {
    open(inside) {
      wires = innerServer(inside);
    },
    take(scenarioId) {
      const runs = [...taken.values()].reduce((sum, one) => sum + one, 0);
      if (runs >= maxRuns)
        throw new Fault(
          "OVERLOADED",
          `this server runs ${maxRuns} scenarios, as many as it takes`,
          {},
          { retryAfterMs: 5_000 },
        );
      count(scenarioId, 1);
      let here = true;
      const leave = () => {
        if (here) count(scenarioId, -1);
        here = false;
      };
      return {
        leave,
        begin(run) {
          const running = conduct(app, wires!(), run)
            .catch((error: unknown) =>
              app.log.error({ err: error, scenario_id: scenarioId }, "a run was not brought to its end"),
            )
            .finally(() => {
              underWay.delete(running);
              leave();
            });
          underWay.add(running);
        },
      };
    },
    recover: () => recover(app, (scenarioId) => taken.has(scenarioId)),
    async drain(ms) {
      const over = new AbortController();
      await Promise.race([Promise.all(underWay), app.clock.sleep(ms, over.signal).catch(() => {})]);
      over.abort();
    },
  };
}

/** Plays a run, cleans up, and then tells how it ended: nothing of it is left by then. */
async function conduct(app: App, wire: Wire, { scenario, sandbox }: Begun): Promise<void> {
  const over = new AbortController();
  const stopped = () => over.abort(new Fault("SHUTTING_DOWN", "the server stopped"));
  app.stopping.addEventListener("abort", stopped, { once: true });
  if (app.stopping.aborted) stopped();
  void watchEnd(app, scenario, over);
  const events = recorder(app, refOf(scenario));
  const traceparent = `00-${scenario.trace_id}-${scenario.span_id}-01`;
  const outcome = await play({
    clock: app.clock,
    scenario,
    sandbox,
    wire,
    traceparent,
    recorder: events,
    signal: over.signal,
  })
    .then(resultsOf)
    .catch((error: unknown) => ({ error }));
  const wasStopped = app.stopping.aborted;
  const wasEnded = over.signal.aborted;
  app.stopping.removeEventListener("abort", stopped);
  over.abort();
  await events.close();
  await settled(app, wire);
  await removeSandbox(app.db, { ...scenario, sandbox_org_id: sandbox.orgId });
  await app.db.tx((tx) => {
    const now = app.clock.now();
    if (!("error" in outcome)) {
      const { state, reason } = outcome;
      const message = state === ScenarioState.SUCCEEDED ? "the run succeeded" : `the run failed: ${reason}`;
      return tellEnd(tx, app, scenario, { state, message }, now, outcome);
    }
    if (wasStopped)
      return tellEnd(tx, app, scenario, { state: ScenarioState.ABORTED, message: "the server stopped" }, now);
    if (!wasEnded) app.log.error({ err: outcome.error, scenario_id: scenario.scenario_id }, "a run failed");
    const message = "the run failed by a fault of the server's own; its log tells more";
    return tellEnd(tx, app, scenario, { state: ScenarioState.FAILED, message }, now);
  });
}

/** Aborts once the run has ended otherwise: it was canceled, or another server took this one for gone. */
async function watchEnd(app: App, { org_id, scenario_id, run }: ScenarioRow, over: AbortController): Promise<void> {
  try {
    const bell = app.db.listen(scenarioTopic(scenario_id), over.signal);
    for (;;) {
      const row = await findScenario(app.db.query, org_id, scenario_id);
      if (row?.state !== ScenarioState.RUNNING || row.run !== run) return over.abort(new Error("the run has ended"));
      await bell.wait(lookMs, over.signal);
    }
  } catch (error) {
    if (!over.signal.aborted) app.log.warn({ err: error, scenario_id }, "a run could not be watched");
  }
}

/** Waits for the handlers of calls that were given up. */
async function settled(app: App, wire: Wire): Promise<void> {
  const over = new AbortController();
  const late = app.clock.sleep(idleMs, over.signal).then(
    () => app.log.warn("calls of a run took long to end"),
    () => {},
  );
  await Promise.race([wire.idle(), late]);
  over.abort();
}

async function recover(app: App, isHere: (scenarioId: string) => boolean): Promise<void> {
  const now = app.clock.now();
  for (const row of await orphanedRuns(app.db.query, app.serverId, now, batch)) {
    if (isHere(row.scenario_id)) continue;
    const message = "its server is gone, or did not bring it to its end";
    await app.db.tx((tx) => tellEnd(tx, app, row, { state: ScenarioState.ABORTED, message }, app.clock.now()));
  }
  for (const row of await sandboxesToRemove(app.db.query, app.serverId, now, batch)) {
    if (app.stopping.aborted) return;
    if (!isHere(row.scenario_id)) await removeSandbox(app.db, row);
  }
}
