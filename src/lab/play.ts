/** One run, from the first agent to the last. */
import { ConnectError } from "@connectrpc/connect";
import { ScenarioEventKind } from "../../gen/moltwire/lab/v1/scenario_pb.ts";
import type { Clock } from "../clock.ts";
import { Crashed, createActor, type Injected } from "./actor.ts";
import type { Observation } from "./observation.ts";
import { playOf } from "./patterns/patterns.ts";
import { planOf } from "./plan.ts";
import type { Recorder } from "./recorder.ts";
import type { Fared, Played } from "./results.ts";
import type { Sandbox } from "./sandbox.ts";
import type { PatternPlay, Scene } from "./scene.ts";
import { criteriaOf, faultsOf, type ScenarioRow } from "./store.ts";
import type { Wire } from "./wire.ts";

/** How long a round waits at most, and as which part of the timeout. */
const longestRoundMs = 3_000;
const roundsInTimeout = 5;

export type PlayNeeds = {
  readonly clock: Clock;
  readonly scenario: ScenarioRow;
  readonly sandbox: Sandbox;
  readonly wire: Wire;
  readonly traceparent: string;
  readonly recorder: Recorder;
  /** Aborts when the run is canceled or the server stops. */
  readonly signal: AbortSignal;
};

/** Plays a scenario in its sandbox. Rejects with the signal's reason, or when the stage could not be set. */
export async function play(needs: PlayNeeds): Promise<Played> {
  const { clock, scenario, sandbox, wire, traceparent, recorder, signal } = needs;
  const faults = faultsOf(scenario);
  const plan = planOf(BigInt(scenario.seed), scenario.agents, faults);
  const pattern = playOf(scenario.pattern, clock);
  const log: Observation[] = [];
  const injected: Injected[] = [];
  const startMs = clock.now();
  const nowMs = () => clock.now() - startMs;
  const scene: Scene = {
    plan,
    agentIds: sandbox.agents.map(({ agentId }) => agentId),
    registryId: sandbox.registryId,
    arbiter: wire.clients(sandbox.adminKey, traceparent),
    roundMs: Math.min(longestRoundMs, scenario.timeout_ms / roundsInTimeout),
    nowMs,
    sinceStart: (timeMs) => timeMs - startMs,
    see: (seen, atMs = nowMs()) => void log.push({ ...seen, atMs }),
    tell: (message, agent) => recorder.tell(ScenarioEventKind.PROGRESS, message, agent),
  };
  await pattern.prepare(scene);
  signal.throwIfAborted();
  recorder.tell(ScenarioEventKind.PLAYING, `${scenario.agents} agents begin`);

  const timeUp = new AbortController();
  const timer = clock.after(scenario.timeout_ms, () => timeUp.abort(new Error("the time of the run was over")));
  const until = AbortSignal.any([signal, timeUp.signal]);
  const inject = (agent: number) => (fault: Injected) => {
    injected.push(fault);
    if (fault.kind === "crashed") scene.see({ kind: "crashed", agent });
    if (fault.kind === "crashed" || fault.kind === "cut_off")
      recorder.tell(ScenarioEventKind.FAULT, fault.kind === "crashed" ? "crashes" : "is cut off", agent);
  };
  const fared = await Promise.all(
    sandbox.agents.map(async ({ agentId, key }, agent) => {
      const clients = wire.clients(key, traceparent);
      const actor = createActor({
        ...{ agent, agentId, clients, plan, clock, nowMs, signal: until },
        ...{ keyPrefix: `run${scenario.run}`, inject: inject(agent) },
      });
      const how = await live(actor, pattern, scene, clock, until);
      if (!until.aborted)
        recorder.tell(ScenarioEventKind.AGENT_ENDED, how.completed ? "has done its part" : how.reason, agent);
      return { ...actor.tally, ...how };
    }),
  );
  timer.cancel();
  const durationMs = nowMs();
  signal.throwIfAborted();
  await pattern.conclude(scene);
  return {
    scenarioId: scenario.scenario_id,
    run: scenario.run,
    pattern: scenario.pattern,
    criteria: criteriaOf(scenario),
    faults,
    play: pattern,
    plan,
    log,
    fared,
    injected,
    durationMs,
    cutShort: timeUp.signal.aborted
      ? `the time of ${scenario.timeout_ms / 1_000} s was over before all agents had come to their end`
      : "",
  };
}

/** Lives until the agent has done its part or gives up; after a crash it lives again. */
async function live(
  actor: ReturnType<typeof createActor>,
  pattern: PatternPlay,
  scene: Scene,
  clock: Clock,
  signal: AbortSignal,
): Promise<Pick<Fared, "completed" | "reason">> {
  for (;;) {
    const life = actor.begin();
    try {
      await pattern.play(life, scene);
      return { completed: true, reason: "" };
    } catch (error) {
      // What ends a life says more than what it broke off.
      const cause: unknown = life.signal.aborted ? life.signal.reason : error;
      if (signal.aborted) return { completed: false, reason: "the run was over first" };
      if (!(cause instanceof Crashed)) return { completed: false, reason: reasonOf(cause) };
      if (!(await away(cause.downMs, clock, signal))) return { completed: false, reason: "the run was over first" };
    } finally {
      life.end();
    }
  }
}

/** Whether the agent comes back while the run goes on. */
const away = (downMs: number, clock: Clock, signal: AbortSignal): Promise<boolean> =>
  clock.sleep(downMs, signal).then(
    () => true,
    () => false,
  );

const reasonOf = (cause: unknown): string =>
  cause instanceof ConnectError ? cause.rawMessage : cause instanceof Error ? cause.message : String(cause);
