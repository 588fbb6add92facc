/** What the feeds tell, in one form that a tab can send to another. */
import type { JsonObject } from "@bufbuild/protobuf";
import { timestampMs } from "@bufbuild/protobuf/wkt";
import { type TraceEvent, TraceEventKind } from "../../../../gen/moltwire/bus/v1/trace_pb.ts";
import type { Event } from "../../../../gen/moltwire/ops/v1/event_pb.ts";

export type LiveItem = {
  readonly id: string;
  readonly from: "events" | "steps";
  /** The type of an event, or the kind of a step as the protocol names it. */
  readonly type: string;
  readonly timeMs: number;
  readonly agentId: string;
  readonly traceId: string;
  readonly taskId: string;
  readonly text: string;
  readonly tone: "good" | "bad" | "wait" | "off";
  readonly details: JsonObject | undefined;
};

/** How the feeds are: under way for the first time, read, or lost and being read again. */
export type LiveState = "connecting" | "live" | "reconnecting";

export function ofEvent(event: Event): LiveItem {
  const payload = event.payload ?? {};
  return {
    id: event.eventId,
    from: "events",
    type: event.type,
    timeMs: event.time ? timestampMs(event.time) : 0,
    agentId: event.agentId,
    traceId: event.traceId,
    taskId: text(payload.task_id),
    text: [payload.contract_id, payload.queue, payload.reason, payload.state, payload.reasons]
      .map(text)
      .filter((word) => word !== "")
      .join(" · "),
    tone: /failed|opened|created|exceeded|disabled|revoked/.test(event.type)
      ? "bad"
      : /requested|warning/.test(event.type)
        ? "wait"
        : "good",
    details: payload,
  };
}

const tones: Readonly<Record<number, LiveItem["tone"]>> = {
  [TraceEventKind.COMPLETED]: "good",
  [TraceEventKind.APPROVED]: "good",
  [TraceEventKind.FAILED]: "bad",
  [TraceEventKind.REFUSED]: "bad",
  [TraceEventKind.REJECTED]: "bad",
  [TraceEventKind.ATTEMPT_FAILED]: "bad",
  [TraceEventKind.CIRCUIT_CHANGED]: "wait",
  [TraceEventKind.AWAITING_APPROVAL]: "wait",
  [TraceEventKind.FALLBACK]: "wait",
};

const kindNames = new Map<number, string>(Object.entries(TraceEventKind).map(([name, kind]) => [kind, name]));

/** The name of a kind of step. */
export const kindName = (kind: TraceEventKind): string => kindNames.get(kind) ?? String(kind);

export const ofStep = (step: TraceEvent): LiveItem => ({
  id: step.cursor,
  from: "steps",
  type: kindName(step.kind),
  timeMs: step.time ? timestampMs(step.time) : 0,
  agentId: step.targetAgentId || step.callerAgentId,
  traceId: step.traceId,
  taskId: step.taskId,
  text: [step.contractId, step.message].filter((word) => word !== "").join(" · "),
  tone: tones[step.kind] ?? "off",
  details: step.details,
});

const text = (value: unknown): string =>
  Array.isArray(value)
    ? value.map(text).join("; ")
    : typeof value === "string" || typeof value === "number"
      ? String(value)
      : "";
