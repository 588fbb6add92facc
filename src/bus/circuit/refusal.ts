import { CircuitState } from "../../../gen/moltwire/bus/v1/agent_pb.ts";
import { Fault } from "../../errors.ts";
import type { AgentRow } from "../agent-store.ts";
import type { TaskFault } from "../task-store.ts";
import { shownName } from "../unshown.ts";
import { type Circuit, retryAt } from "./circuit.ts";
import { stateName } from "./conduct.ts";

/** An agent that nothing but its circuit keeps from a task. */
export type Blocked = { readonly agent: AgentRow; readonly circuit: Circuit };

/** A probe under way may end at any time. */
const halfOpenRetryMs = 1_000;

/** How long until a task may call the agent, as far as is known, in milliseconds; at least 1. */
export const retryAfterMs = ({ circuit }: Blocked, now: number): number =>
  Math.max(1, Math.min(retryAt(circuit) - now, circuit.state === CircuitState.HALF_OPEN ? halfOpenRetryMs : Infinity));

/** Why nobody can be called now, told of the agent that comes back first. */
export function circuitFault(blocked: readonly Blocked[], now: number): TaskFault {
  const soonest = soonestBack(blocked, now);
  const { agent, circuit } = soonest;
  const failures = circuit.failuresMs.length;
  const others = blocked.length > 1 ? ` and those of ${blocked.length - 1} more` : "";
  const when =
    circuit.state === CircuitState.OPEN ? `for another ${retryAfterMs(soonest, now)} ms` : "while it is tried";
  return {
    reason: "CIRCUIT_OPEN",
    message: `the circuit of ${shownName(agent)}${others} is ${stateName(circuit.state)} after ${failures} failures: no task goes to it ${when}`,
    metadata: { ...(!agent.hidden && { agent_id: agent.agent_id }), failure_count: String(failures) },
  };
}

/** The same as the refusal of a call, with the time after which to try again. */
export function circuitRefusal(blocked: readonly Blocked[], now: number): Fault {
  const { reason, message, metadata } = circuitFault(blocked, now);
  return new Fault(reason, message, { ...metadata }, { retryAfterMs: retryAfterMs(soonestBack(blocked, now), now) });
}

const soonestBack = (blocked: readonly Blocked[], now: number): Blocked =>
  blocked.reduce((a, b) => (retryAfterMs(b, now) < retryAfterMs(a, now) ? b : a));
