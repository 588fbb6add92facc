/**
 * The circuit breaker of an agent, as a pure state machine (M. Nygard, Release It!, "Circuit Breaker"): closed until `threshold` failures lie
 * within `windowMs`; open for `openMs`; then half-open, in which one attempt, the probe, tries the agent: its success closes the circuit, its
 * failure opens it again.
 *
 * Failures are kept by their times, and not as a count and the begin of a window: a count per window lets up to twice the threshold through
 * where two windows meet, or opens for failures that lie further apart. No more than the threshold of them is ever kept, and only while there
 * are any is there anything to keep. A success while closed changes nothing: what failed within the window still counts.
 */
import { CircuitState } from "../../../gen/moltwire/bus/v1/agent_pb.ts";

/** One attempt of one task. */
export type Try = { readonly taskId: string; readonly attempt: number };

/** The attempt that tries the agent, or the attempt 0 of a task that is about to, and until when it is believed to: after that, it is lost, and another may. */
export type Probe = Try & { readonly untilMs: number };

export type Circuit = {
  readonly state: CircuitState;
  /** When the failures happened that count; while it is open or half-open, those that opened it. */
  readonly failuresMs: readonly number[];
  /** When it opened last. */
  readonly openMs: number | null;
  /** From when one attempt may try the agent; null unless it is OPEN. */
  readonly retryMs: number | null;
  /** Null unless it is HALF_OPEN. */
  readonly probe: Probe | null;
};

/** When a circuit opens and for how long; see BreakerSettings. */
export type Breaker = {
  readonly threshold: number;
  readonly windowMs: number;
  readonly openMs: number;
  readonly disabled: boolean;
};

/** What an attempt tells of its agent: that it works, that it does not, or nothing. */
export type Verdict = "success" | "failure" | "nothing";

/** How an attempt may call the agent: like all others, as the probe, or not at all. */
export type Admission = "call" | "probe" | "none";

/** How the circuit of an agent stands of which nothing is known. */
export const closedCircuit: Circuit = {
  state: CircuitState.CLOSED,
  failuresMs: [],
  openMs: null,
  retryMs: null,
  probe: null,
};

/** Whether, and how, an attempt that begins now may call the agent; of the task that has reserved the probe, if one has. */
export function admission(circuit: Circuit, now: number, taskId = ""): Admission {
  if (circuit.state === CircuitState.CLOSED) return "call";
  return now >= retryAt(circuit) || isReservedFor(circuit, taskId) ? "probe" : "none";
}

/** From when an attempt may call the agent, as far as is known: a probe under way may change that at any time. */
export const retryAt = ({ retryMs, probe }: Circuit): number => probe?.untilMs ?? retryMs ?? 0;

/** How many failures count now. */
export const failureCount = ({ state, failuresMs }: Circuit, { windowMs }: Breaker, now: number): number =>
  (state === CircuitState.CLOSED ? counting(failuresMs, windowMs, now) : failuresMs).length;

/** The attempt becomes the probe; only where {@link admission} says so. */
export const withProbe = (circuit: Circuit, probe: Probe): Circuit => ({
  ...circuit,
  state: CircuitState.HALF_OPEN,
  retryMs: null,
  probe,
});

/** An attempt has ended. While the circuit is not closed, only the probe is listened to: the others began before it opened. */
export function afterAttempt(circuit: Circuit, breaker: Breaker, by: Try, verdict: Verdict, now: number): Circuit {
  if (breaker.disabled) return closedCircuit;
  if (circuit.state === CircuitState.CLOSED)
    return verdict === "failure" ? withFailure(circuit, breaker, now) : circuit;
  if (!isProbe(circuit, by)) return circuit;
  if (verdict === "success") return { ...closedCircuit, openMs: circuit.openMs };
  if (verdict === "nothing") return abandoned(circuit, now);
  return opened(circuit, [...circuit.failuresMs, now], breaker, now);
}

/** The probe has told nothing: the next attempt may be one at once. */
const abandoned = (circuit: Circuit, now: number): Circuit => ({
  ...circuit,
  state: CircuitState.OPEN,
  retryMs: now,
  probe: null,
});

function withFailure(circuit: Circuit, breaker: Breaker, now: number): Circuit {
  const failuresMs = [...counting(circuit.failuresMs, breaker.windowMs, now), now].slice(-breaker.threshold);
  return failuresMs.length < breaker.threshold ? { ...circuit, failuresMs } : opened(circuit, failuresMs, breaker, now);
}

const opened = (circuit: Circuit, failuresMs: readonly number[], breaker: Breaker, now: number): Circuit => ({
  ...circuit,
  state: CircuitState.OPEN,
  failuresMs: failuresMs.slice(-breaker.threshold),
  openMs: now,
  retryMs: now + breaker.openMs,
  probe: null,
});

/** The probe is a task's before it is an attempt's: its number is 0 then. */
const isReservedFor = ({ probe }: Circuit, taskId: string): boolean =>
  probe !== null && probe.attempt === 0 && probe.taskId === taskId;

const isProbe = ({ probe }: Circuit, by: Try): boolean =>
  probe !== null && probe.taskId === by.taskId && probe.attempt === by.attempt;

/** A failure counts until it is as old as the window. */
const counting = (failuresMs: readonly number[], windowMs: number, now: number): number[] =>
  failuresMs.filter((ms) => ms > now - windowMs);
