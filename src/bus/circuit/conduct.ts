/** Where attempts meet the circuit of their agent: in the transactions in which they begin and end. */

import { CircuitState } from "../../../gen/moltwire/bus/v1/agent_pb.ts";
import { TraceEventKind } from "../../../gen/moltwire/bus/v1/trace_pb.ts";
import type { App } from "../../app.ts";
import type { Tx } from "../../db/db.ts";
import { nameIn } from "../../enum-name.ts";
import { emit } from "../../ops/outbox.ts";
import { type AgentRow, breakerOf, lockAgent } from "../agent-store.ts";
import { workTopic } from "../serve/pulled-store.ts";
import type { Step } from "../trace-store.ts";
import {
  admission,
  afterAttempt,
  type Breaker,
  type Circuit,
  failureCount,
  type Try,
  type Verdict,
  withProbe,
} from "./circuit.ts";
import { lockCircuit, putCircuit } from "./circuit-store.ts";
import { breakerFrom } from "./settings.ts";

/** The circuit of an agent lets no attempt through; thrown to undo the attempt's begin. */
export class CircuitOpen extends Error {
  override readonly name = "CircuitOpen";
  readonly agent: AgentRow;
  readonly circuit: Circuit;

  constructor(agent: AgentRow, circuit: Circuit) {
    super(`the circuit of ${agent.agent_id} is ${stateName(circuit.state)}`);
    this.agent = agent;
    this.circuit = circuit;
  }
}

/** Longer than it takes to write down how an attempt ended once its time is over, also when storage is away for a moment. */
const probeSlackMs = 30_000;

/**
 * Lets an attempt through a circuit that is not closed, as its probe, which its task may have reserved, or throws {@link CircuitOpen}. The lock on the circuit lets one after
 * the other through, on whichever replica: the first becomes the probe, and the others find it half-open.
 *
 * The probe is given up by whoever ends or recovers its task, and by itself once its time is over.
 */
export async function enterCircuit(tx: Tx, agent: AgentRow, by: Try, timeoutMs: number, now: number): Promise<Step[]> {
  const circuit = await lockCircuit(tx, agent.org_id, agent.agent_id);
  const how = admission(circuit, now, by.taskId);
  if (how === "none") throw new CircuitOpen(agent, circuit);
  if (how === "call") return [];
  const next = withProbe(circuit, { ...by, untilMs: now + timeoutMs + probeSlackMs });
  await putCircuit(tx, agent.org_id, agent.agent_id, next);
  return changedStep(agent.agent_id, agent.name, breakerOfRow(agent), circuit, next, now);
}

/** An attempt that has ended, and what it tells of its agent. */
export type Ended = Try & {
  readonly orgId: string;
  readonly agentId: string;
  /** The agent as it was when the attempt began. Not known of an attempt that was given up. */
  readonly agent?: AgentRow | undefined;
  readonly verdict: Verdict;
  /** Whether it was the probe, as far as is known without the lock. */
  readonly probe: boolean;
  readonly traceId: string;
};

/**
 * Notes what an ended attempt tells of its agent; gives the step of the trace if the circuit changes. A success costs nothing unless it was the
 * probe's. The failure of an endpoint, or under settings, that were changed meanwhile tells nothing of the agent as it is now.
 */
export async function leaveCircuit(tx: Tx, app: App, ended: Ended, now: number): Promise<Step[]> {
  const { orgId, agentId, verdict, probe } = ended;
  if (!probe && verdict !== "failure") return [];
  if (ended.agent && breakerOfRow(ended.agent).disabled) return [];
  // The agent's lock comes first, as with everything that changes an agent: it also keeps two first failures from adding the row twice.
  const agent = await lockAgent(tx, orgId, agentId);
  if (!agent || (ended.agent && !sameTarget(agent, ended.agent))) return [];
  const breaker = breakerOfRow(agent);
  const circuit = await lockCircuit(tx, orgId, agentId);
  const next = afterAttempt(circuit, breaker, ended, verdict, now);
  if (next === circuit) return [];
  await putCircuit(tx, orgId, agentId, next);
  tx.ring(workTopic({ orgId, agentId })); // tasks that wait to be pulled may be let through now
  if (verdict === "failure" && next.state === CircuitState.OPEN)
    await emitOpened(tx, app, ended, breaker, circuit, next, now);
  return changedStep(agentId, agent.name, breaker, circuit, next, now);
}

const sameTarget = (a: AgentRow, b: AgentRow): boolean => a.endpoint === b.endpoint && a.breaker === b.breaker;

/** The settings of an agent's breaker. */
export const breakerOfRow = (agent: AgentRow): Breaker => breakerFrom(breakerOf(agent));

/** The step of the trace by which a circuit changes its state, if it does. */
export function changedStep(
  agentId: string,
  name: string,
  breaker: Breaker,
  from: Circuit,
  to: Circuit,
  now: number,
): Step[] {
  if (from.state === to.state) return [];
  return [
    {
      kind: TraceEventKind.CIRCUIT_CHANGED,
      timeMs: now,
      message: `the circuit of ${name} is ${stateName(to.state)}`,
      details: { from: stateName(from.state), to: stateName(to.state), ...facts(breaker, to, now) },
      targetAgentId: agentId,
    },
  ];
}

const emitOpened = (
  tx: Tx,
  app: App,
  { orgId, agentId, taskId, traceId }: Ended,
  breaker: Breaker,
  from: Circuit,
  to: Circuit,
  now: number,
): Promise<void> =>
  emit(tx, app, {
    orgId,
    type: "circuit.opened",
    agentId,
    timeMs: now,
    traceId,
    payload: { agent_id: agentId, task_id: taskId, from: stateName(from.state), ...facts(breaker, to, now) },
  });

const facts = (breaker: Breaker, circuit: Circuit, now: number) => ({
  failure_count: failureCount(circuit, breaker, now),
  retry_time: circuit.retryMs === null ? "" : new Date(circuit.retryMs).toISOString(),
});

/** The name of a state as clients read it, such as "HALF_OPEN". */
export const stateName = (state: CircuitState): string => nameIn(CircuitState, state);
