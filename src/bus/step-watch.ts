import type { Logger } from "pino";
import { ErrorReason } from "../../gen/moltwire/api/v1/error_reason_pb.ts";
import { TraceEventKind } from "../../gen/moltwire/bus/v1/trace_pb.ts";
import type { Span, Step } from "./trace-store.ts";

/** Told of the steps of a task that one transaction wrote, after its commit. */
export type StepWatcher = (span: Span, steps: readonly Step[]) => void;

/** The kinds of step by which a task ends, and the state it is then in. */
export const terminalStates: Readonly<Partial<Record<TraceEventKind, string>>> = {
  [TraceEventKind.COMPLETED]: "COMPLETED",
  [TraceEventKind.FAILED]: "FAILED",
  [TraceEventKind.CANCELED]: "CANCELED",
  [TraceEventKind.REJECTED]: "REJECTED",
};

/** Why a step is a failure: an ErrorReason there is, or empty. */
export function failureOf({ kind, details }: Step): string {
  if (kind === TraceEventKind.CANCELED) return "TASK_CANCELED";
  const reason = details?.reason;
  return typeof reason === "string" && reason in ErrorReason ? reason : "";
}

/** Tells each watcher in turn. It is called where storage answers its callers: a fault of a watcher's own must not reach them, and is logged. */
export const tellAll =
  (log: Logger, watchers: readonly StepWatcher[]): StepWatcher =>
  (span, steps) => {
    try {
      for (const watch of watchers) watch(span, steps);
    } catch (error) {
      log.error({ err: error, task_id: span.taskId, trace_id: span.traceId }, "committed steps were not counted");
    }
  };
