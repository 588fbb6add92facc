/** The spans of tasks and attempts, from the steps of their traces once these are committed. */
import { createHash } from "node:crypto";
import { TraceEventKind } from "../../gen/moltwire/bus/v1/trace_pb.ts";
import { failureOf, type StepWatcher, terminalStates } from "../bus/step-watch.ts";
import type { Span, Step } from "../bus/trace-store.ts";
import type { FinishedSpan, Telemetry } from "./span.ts";

/** An attempt that has begun. */
type OpenAttempt = { readonly number: number; readonly startMs: number; readonly attributes: Record<string, string> };

/** More than one server works on at once; beyond, the oldest is forgotten: its task has gone to another server. */
const maxOpen = 20_000;

/** Ends the spans that committed steps complete. */
export function spansOfTasks(telemetry: Telemetry): StepWatcher {
  const completed = taskSpans();
  return (span, steps) => {
    for (const each of completed(span, steps)) telemetry.ended(each);
  };
}

/**
 * Gives the spans that the steps of one transaction complete. The ids of task and attempt follow from the task's id, so that a task that
 * goes from one server to another has one span, of whoever ends it. An attempt that its server did not live to see end has none.
 */
export function taskSpans(): (span: Span, steps: readonly Step[]) => FinishedSpan[] {
  const open = new Map<string, OpenAttempt>();

  function begin(span: Span, { timeMs, details, targetAgentId = "" }: Step): void {
    const { attempt, adapter, contract_id, contract_version } = details ?? {};
    const attributes = {
      "moltwire.contract_id": String(contract_id ?? span.contractId),
      ...(contract_version !== undefined && { "moltwire.contract_version": String(contract_version) }),
      ...(adapter !== undefined && { "moltwire.adapter": String(adapter) }),
      ...(targetAgentId && { "gen_ai.agent.id": targetAgentId }),
    };
    open.delete(span.taskId); // and back in at the end: the map's order is that of their beginning
    open.set(span.taskId, { number: Number(attempt), startMs: timeMs, attributes });
    if (open.size > maxOpen) open.delete(open.keys().next().value!);
  }

  function endAttempt(
    span: Span,
    { kind, timeMs: endMs }: Step,
    reason: string,
    tokens: Record<string, number>,
  ): FinishedSpan[] {
    const attempt = open.get(span.taskId);
    if (!attempt) return [];
    open.delete(span.taskId);
    const { number, startMs, attributes } = attempt;
    return [
      {
        traceId: span.traceId,
        spanId: spanIdOf(`${span.taskId}/${number}`),
        parentSpanId: spanIdOf(span.taskId),
        name: "invoke_agent",
        kind: "client",
        startMs,
        endMs,
        attributes: {
          "gen_ai.operation.name": "invoke_agent",
          ...attributes,
          ...tokens,
          ...(reason && { "error.type": reason }),
          "moltwire.attempt": number,
          "moltwire.org_id": span.orgId,
          "moltwire.task_id": span.taskId,
        },
        failed: kind !== TraceEventKind.ANSWERED,
      },
    ];
  }

  return (span, steps) => {
    if (!span.taskId) return [];
    return steps.flatMap((step) => {
      const state = terminalStates[step.kind];
      if (state !== undefined) {
        const reason = failureOf(step);
        return [...endAttempt(span, step, reason, {}), taskSpan(span, step, state, reason)];
      }
      if (begins(step)) begin(span, step);
      else if (step.kind === TraceEventKind.ANSWERED) return endAttempt(span, step, "", tokensOf(step));
      else if (step.kind === TraceEventKind.ATTEMPT_FAILED)
        return endAttempt(span, step, failureOf(step), tokensOf(step));
      return [];
    });
  };
}

/** An attempt begins when its agent is called, or pulls the task: until then a task that is dispatched only waits. */
const begins = ({ kind, details }: Step): boolean =>
  kind === TraceEventKind.DELIVERED || (kind === TraceEventKind.DISPATCHED && details?.attempt !== undefined);

/** From acceptance to the end, below the call that submitted it. */
const taskSpan = (span: Span, step: Step, state: string, reason: string): FinishedSpan => ({
  traceId: span.traceId,
  spanId: spanIdOf(span.taskId),
  parentSpanId: span.spanId,
  name: "task",
  kind: "internal",
  startMs: step.timeMs - (step.durationMs ?? 0),
  endMs: step.timeMs,
  attributes: {
    "moltwire.contract_id": span.contractId,
    "moltwire.org_id": span.orgId,
    "moltwire.task_id": span.taskId,
    "moltwire.task_state": state,
    ...(span.callerAgentId && { "moltwire.caller_agent_id": span.callerAgentId }),
    ...(reason && { "error.type": reason }),
  },
  failed: state === "FAILED",
});

/** A span id that everybody finds again: 64 bits of a digest. */
const spanIdOf = (name: string): string => createHash("sha256").update(name).digest("hex").slice(0, 16);

/** https://opentelemetry.io/docs/specs/semconv/gen-ai/: agents that count none report 0. */
function tokensOf({ details }: Step): Record<string, number> {
  const input = Number(details?.input_tokens ?? 0);
  const output = Number(details?.output_tokens ?? 0);
  if (input === 0 && output === 0) return {};
  return { "gen_ai.usage.input_tokens": input, "gen_ai.usage.output_tokens": output };
}
