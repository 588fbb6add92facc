import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { CircuitState } from "../gen/moltwire/bus/v1/agent_pb.ts";
import { AttemptFault, type AttemptReason } from "../src/bus/adapter.ts";
import {
  admission,
  afterAttempt,
  type Breaker,
  type Circuit,
  closedCircuit,
  failureCount,
  type Verdict,
  withProbe,
} from "../src/bus/circuit/circuit.ts";
import { verdictOf } from "../src/bus/circuit/verdict.ts";
import { inTurn } from "../src/bus/weights.ts";

/** What may happen to an agent: time passes, an attempt wants to begin, one of those that run ends. */
const move = fc.oneof(
  fc.record({ kind: fc.constant("wait" as const), ms: fc.integer({ min: 0, max: 40 }) }),
  fc.record({ kind: fc.constant("begin" as const), probeMs: fc.integer({ min: 1, max: 60 }) }),
  fc.record({
    kind: fc.constant("end" as const),
    which: fc.nat(20),
    verdict: fc.constantFrom<Verdict>("success", "failure", "failure", "nothing"),
  }),
);
const breakers = fc.record({
  threshold: fc.integer({ min: 1, max: 4 }),
  windowMs: fc.integer({ min: 1, max: 100 }),
  openMs: fc.integer({ min: 1, max: 50 }),
  disabled: fc.constant(false),
});

/** The rule as the proto says it, by looking back over all that ever happened. */
function naive({ threshold, windowMs, openMs }: Breaker) {
  let failures: number[] = [];
  let openUntil: number | undefined;
  let probe: { id: string; until: number } | undefined;
  const recent = (now: number) => failures.filter((at) => now - at < windowMs).length;
  const open = (now: number) => {
    openUntil = now + openMs;
    probe = undefined;
  };
  return {
    state: () => (probe ? CircuitState.HALF_OPEN : openUntil === undefined ? CircuitState.CLOSED : CircuitState.OPEN),
    recent,
    begin(id: string, now: number, probeMs: number) {
      if (openUntil === undefined) return "call";
      if (probe ? now < probe.until : now < openUntil) return "none";
      probe = { id, until: now + probeMs };
      return "probe";
    },
    end(id: string, verdict: Verdict, now: number) {
      if (openUntil === undefined) {
        if (verdict !== "failure") return;
        failures.push(now);
        if (recent(now) >= threshold) open(now);
      } else if (probe?.id === id) {
        if (verdict === "failure") return open(now);
        probe = undefined;
        openUntil = verdict === "success" ? undefined : now;
        if (verdict === "success") failures = [];
      }
    },
  };
}

describe("the circuit breaker", () => {
  test("is at every moment what looking back over all that happened makes of it, whatever happens", () => {
    const seen = new Set<string>();
    fc.assert(
      fc.property(breakers, fc.array(move, { maxLength: 200 }), (breaker, moves) => {
        const model = naive(breaker);
        let circuit: Circuit = closedCircuit;
        let now = 1_000;
        const running: string[] = [];
        for (const [n, step] of moves.entries()) {
          if (step.kind === "wait") now += step.ms;
          else if (step.kind === "begin") {
            const how = admission(circuit, now);
            expect(how).toBe(model.begin(`t${n}`, now, step.probeMs));
            if (how === "probe")
              circuit = withProbe(circuit, { taskId: `t${n}`, attempt: 1, untilMs: now + step.probeMs });
            if (how !== "none") running.push(`t${n}`);
          } else if (running.length > 0) {
            const [taskId] = running.splice(step.which % running.length, 1);
            circuit = afterAttempt(circuit, breaker, { taskId: taskId!, attempt: 1 }, step.verdict, now);
            model.end(taskId!, step.verdict, now);
          }
          expect(circuit.state).toBe(model.state());
          if (circuit.state === CircuitState.CLOSED)
            expect(failureCount(circuit, breaker, now)).toBe(model.recent(now));
          expect(circuit.failuresMs.length).toBeLessThanOrEqual(breaker.threshold);
          seen.add(String(circuit.state));
        }
      }),
      { numRuns: 2_000 },
    );
    expect(seen.size).toBe(3);
  });

  test("lets exactly one through while a probe is believed to run, and another once that is lost", () => {
    const open: Circuit = { ...closedCircuit, state: CircuitState.OPEN, failuresMs: [1], openMs: 1, retryMs: 10 };
    expect([admission(open, 9), admission(open, 10)]).toEqual(["none", "probe"]);
    const reserved = withProbe(open, { taskId: "a", attempt: 0, untilMs: 30 });
    expect([admission(reserved, 29, "a"), admission(reserved, 29, "b"), admission(reserved, 30, "b")]).toEqual([
      ...["probe", "none", "probe"],
    ]);
    const tried = withProbe(reserved, { taskId: "a", attempt: 1, untilMs: 50 });
    expect(admission(tried, 30, "a")).toBe("none");
    expect([admission(tried, 10), admission(tried, 49), admission(tried, 50)]).toEqual(["none", "none", "probe"]);
    const breaker = { threshold: 1, windowMs: 100, openMs: 10, disabled: false };
    const again = withProbe(tried, { taskId: "b", attempt: 1, untilMs: 90 });
    expect(afterAttempt(again, breaker, { taskId: "a", attempt: 1 }, "success", 60)).toBe(again);
    expect(afterAttempt(again, breaker, { taskId: "b", attempt: 2 }, "failure", 60)).toBe(again);
    expect(afterAttempt(again, breaker, { taskId: "b", attempt: 1 }, "success", 60).state).toBe(CircuitState.CLOSED);
  });

  test.each<[AttemptReason, Record<string, string>, number, Verdict]>([
    ["ADAPTER_ERROR", { code: "internal" }, 1_000, "failure"],
    ["ADAPTER_ERROR", { status: "500" }, 1_000, "failure"],
    ["ADAPTER_ERROR", { code: "unavailable" }, 1_000, "failure"],
    ["ADAPTER_ERROR", { code: "deadline_exceeded" }, 1_000, "failure"],
    ["ADAPTER_ERROR", { code: "deadline_exceeded" }, 999, "nothing"],
    ["ADAPTER_ERROR", { code: "invalid_argument" }, 1_000, "nothing"],
    ["ADAPTER_ERROR", { code: "not_found" }, 1_000, "nothing"],
    ["AGENT_UNREACHABLE", {}, 10, "failure"],
    ["AGENT_TIMEOUT", {}, 1_000, "failure"],
    ["AGENT_TIMEOUT", {}, 999, "nothing"],
    ["AGENT_BAD_RESPONSE", {}, 1_000, "failure"],
    ["CONTRACT_VIOLATION", {}, 1_000, "failure"],
    ["ENDPOINT_REFUSED", {}, 1_000, "nothing"],
    ["OVERLOADED", {}, 1_000, "nothing"],
  ])("takes %s %j within %i of 1000 ms for: %s", (reason, metadata, timeoutMs, verdict) => {
    expect(verdictOf(new AttemptFault(reason, "failed", "as told", { metadata }), timeoutMs, 1_000)).toBe(verdict);
  });
});

describe("weighted turns", () => {
  const weights = fc.array(fc.integer({ min: 1, max: 30 }), { minLength: 1, maxLength: 12 });

  /** All turns of a cycle, in the order in which they are due. */
  const cycleOf = (given: readonly number[]) =>
    given
      .flatMap((weight, index) => Array.from({ length: weight }, (_, k) => ({ index, at: (2 * k + 1) / (2 * weight) })))
      .toSorted((a, b) => a.at - b.at || a.index - b.index)
      .map(({ index }) => index);

  test("are those of a cycle written out in full, turn after turn, cycle after cycle", () => {
    fc.assert(
      fc.property(weights, fc.nat(5), (given, cycles) => {
        const cycle = cycleOf(given);
        for (const [place, index] of cycle.entries())
          expect(inTurn(given, cycles * cycle.length + place)[0]).toBe(index);
      }),
    );
  });

  test("name everybody once, in the order in which each is next", () => {
    fc.assert(
      fc.property(weights, fc.nat(1_000), (given, turn) => {
        const cycle = cycleOf(given);
        const coming = [...cycle, ...cycle].slice(turn % cycle.length, (turn % cycle.length) + cycle.length);
        expect(inTurn(given, turn)).toEqual([...new Set(coming)]);
      }),
    );
  });

  test("go round among equals, and are spread where they are not", () => {
    const of = (given: number[]) =>
      Array.from({ length: given.reduce((a, b) => a + b) }, (_, n) => inTurn(given, n)[0]);
    expect(of([1, 1, 1])).toEqual([0, 1, 2]);
    expect(of([3, 1])).toEqual([0, 0, 1, 0]);
    expect(of([5, 1, 1])).toEqual([0, 0, 0, 1, 2, 0, 0]);
  });

  test("take no time that counts, however large the weights", () => {
    const given = Array.from({ length: 250 }, (_, n) => 1 + ((n * 37) % 1_000));
    const before = process.threadCpuUsage();
    for (let turn = 0; turn < 100; turn++) inTurn(given, turn * 1_237);
    expect(process.threadCpuUsage(before).user / 1_000).toBeLessThan(1_000);
  });
});
