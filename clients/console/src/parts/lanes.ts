/** What the steps of a trace say of its tasks over time. Pure. */
import { TraceEventKind as Kind, type TraceEvent } from "../../../../gen/moltwire/bus/v1/trace_pb.ts";
import { ofStep } from "../live/item.ts";

/** One task of a trace. */
export type Lane = {
  readonly spanId: string;
  readonly taskId: string;
  readonly contractId: string;
  readonly agentId: string;
  /** How many tasks it is below. */
  readonly depth: number;
  readonly startMs: number;
  /** Of its last step so far. */
  readonly endMs: number;
  readonly state: "good" | "bad" | "wait";
  readonly attempts: readonly { readonly startMs: number; readonly endMs: number; readonly failed: boolean }[];
};

const good: ReadonlySet<Kind> = new Set([Kind.COMPLETED]);
const bad: ReadonlySet<Kind> = new Set([Kind.FAILED, Kind.REJECTED, Kind.CANCELED, Kind.REFUSED]);
const begins: ReadonlySet<Kind> = new Set([Kind.DISPATCHED, Kind.DELIVERED]);
const ends: ReadonlySet<Kind> = new Set([Kind.ANSWERED, Kind.ATTEMPT_FAILED]);

/** A lane for each task, in the order in which they began, each below the one that asked for it. */
export function lanesOf(events: readonly TraceEvent[]): readonly Lane[] {
  const bySpan = Map.groupBy(events, ({ spanId }) => spanId);
  const parents = new Map([...bySpan].map(([spanId, steps]) => [spanId, steps[0]!.parentSpanId]));
  const depthOf = (spanId: string): number => {
    let depth = 0;
    for (let at = parents.get(spanId); at !== undefined && bySpan.has(at) && depth < 32; at = parents.get(at)) depth++;
    return depth;
  };
  const lanes = [...bySpan].map(([spanId, steps]) => laneOf(spanId, steps, depthOf(spanId)));
  const children = Map.groupBy(lanes, ({ spanId }) => {
    const parent = parents.get(spanId) ?? "";
    return bySpan.has(parent) ? parent : "";
  });
  const below = (parent: string): Lane[] =>
    (children.get(parent) ?? [])
      .toSorted((a, b) => a.startMs - b.startMs)
      .flatMap((lane) => [lane, ...below(lane.spanId)]);
  return below("");
}

function laneOf(spanId: string, steps: readonly TraceEvent[], depth: number): Lane {
  const times = steps.map((step) => ofStep(step).timeMs);
  const attempts: { startMs: number; endMs: number; failed: boolean }[] = [];
  const endMs = Math.max(...times);
  for (const [index, { kind }] of steps.entries()) {
    const last = attempts.at(-1);
    if (begins.has(kind)) attempts.push({ startMs: times[index]!, endMs, failed: false });
    else if (ends.has(kind) && last)
      attempts[attempts.length - 1] = { ...last, endMs: times[index]!, failed: kind === Kind.ATTEMPT_FAILED };
  }
  const kinds = new Set(steps.map(({ kind }) => kind));
  return {
    spanId,
    taskId: steps.find(({ taskId }) => taskId !== "")?.taskId ?? "",
    contractId: steps.find(({ contractId }) => contractId !== "")?.contractId ?? "",
    agentId: steps.findLast(({ targetAgentId }) => targetAgentId !== "")?.targetAgentId ?? "",
    depth,
    startMs: Math.min(...times),
    endMs,
    state: !kinds.isDisjointFrom(bad) ? "bad" : !kinds.isDisjointFrom(good) ? "good" : "wait",
    attempts,
  };
}
