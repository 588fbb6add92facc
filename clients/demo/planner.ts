/** The demo's planner: an agent that only calls. It has four tasks done, each with what the one before it answered, in one trace. */
import { randomBytes } from "node:crypto";
import { isDeepStrictEqual } from "node:util";
import { fromJson, type JsonValue, toJson } from "@bufbuild/protobuf";
import { ValueSchema } from "@bufbuild/protobuf/wkt";
import type { Client } from "@connectrpc/connect";
import type { BusService } from "../../gen/moltwire/bus/v1/bus_service_pb.ts";
import { type Task, TaskState } from "../../gen/moltwire/bus/v1/task_pb.ts";
import { TraceEventKind } from "../../gen/moltwire/bus/v1/trace_pb.ts";
import type { Composed, Found, Outline } from "./research.ts";
import type { Review } from "./review.ts";
import type { RunStep } from "./steps.ts";

/** A task ended without an output. */
export class TaskFailed extends Error {
  override readonly name = "TaskFailed";
  readonly task: Task;

  constructor(task: Task) {
    super(task.error?.message ?? "the task did not complete");
    this.task = task;
  }
}

/** What the planner brings home. */
export type Findings = {
  readonly outline: Outline;
  readonly found: Found;
  readonly composed: Composed;
  readonly review: Review;
};

const callTimeoutMs = 10_000;
/** For a task that is watched, and done by a large model perhaps. */
const watchTimeoutMs = 70_000;
const passageLimit = 8;
const quoteLimit = 4;

/** A new W3C trace context: the planner's own span, above all its tasks. */
export function newTrace(): { readonly traceId: string; readonly traceparent: string } {
  const traceId = randomBytes(16).toString("hex");
  return { traceId, traceparent: `00-${traceId}-${randomBytes(8).toString("hex")}-01` };
}

/** Answers a question by the bus. Each task is a step. */
export async function plan(
  bus: Client<typeof BusService>,
  traceparent: string,
  question: string,
  step: RunStep,
): Promise<Findings> {
  const ask = async <Output>(contractId: string, input: unknown): Promise<Output> => {
    const call = { headers: { traceparent }, timeoutMs: callTimeoutMs };
    const request = { contractId, contractVersion: "^1.0.0", input: fromJson(ValueSchema, input as JsonValue) };
    const { task } = await bus.submitTask(request, call);
    if (task?.state !== TaskState.COMPLETED || !task.output) throw new TaskFailed(task!);
    // The bus has checked it against the contract's output schema.
    return toJson(ValueSchema, task.output) as Output;
  };
  const outline = await step(
    "outline",
    () => ask<Outline>("research/outline", { question }),
    ({ terms, unknown }) =>
      `${terms.map(({ word, weight }) => `${word} ${weight}`).join(", ")}${unknown.length > 0 ? `; in no document: ${unknown.join(", ")}` : ""}`,
  );
  const { terms } = outline;
  const found = await step(
    "search",
    () => ask<Found>("research/search", { terms, limit: passageLimit }),
    ({ passages, searched }) =>
      `the ${passages.length} best of ${searched} passages; first ${passages[0]!.source}:${passages[0]!.line}`,
  );
  const composed = await step(
    "compose",
    () => ask<Composed>("research/compose", { terms, passages: found.passages, limit: quoteLimit }),
    ({ quotes }) => `${quotes.length} sentences of ${new Set(quotes.map(({ source }) => source)).size} files`,
  );
  const { review } = await step(
    "review",
    () => watchReview(bus, traceparent, { question, quotes: composed.quotes }),
    ({ review: { verdict, missing }, pieces, task }) =>
      `${verdict}${missing.length > 0 ? `, nothing on ${missing.join(", ")}` : ""}; streamed in ${pieces === 1 ? "1 piece" : `${pieces} pieces`}; ${usageText(task)}`,
  );
  return { outline, found, composed, review };
}

/** Has the quotes reviewed, and watches: the reviewer's answer comes in pieces while it is written. */
async function watchReview(bus: Client<typeof BusService>, traceparent: string, input: object) {
  const request = {
    contractId: "research/review",
    contractVersion: "^1.0.0",
    input: fromJson(ValueSchema, input as JsonValue),
  };
  const call = { headers: { traceparent }, timeoutMs: callTimeoutMs };
  const { task: accepted } = await bus.submitTask({ ...request, returnImmediately: true }, call);
  let task = accepted!;
  let streamed = "";
  let pieces = 0;
  for await (const { event } of bus.watchTask({ taskId: task.taskId }, { timeoutMs: watchTimeoutMs })) {
    if (event.case === "task") task = event.value;
    // Another attempt begins anew.
    if (event.case === "step" && event.value.kind === TraceEventKind.DISPATCHED) [streamed, pieces] = ["", 0];
    if (event.case === "chunk") [streamed, pieces] = [streamed + event.value, pieces + 1];
  }
  if (task.state !== TaskState.COMPLETED || !task.output) throw new TaskFailed(task);
  const review = toJson(ValueSchema, task.output) as Review;
  if (!isDeepStrictEqual(JSON.parse(streamed), review)) throw new Error("what was streamed is not what was answered");
  return { review, pieces, task };
}

const usageText = ({ usage }: Task): string =>
  `${usage?.inputTokens ?? 0} tokens read, ${usage?.outputTokens ?? 0} written by ${usage?.model || "no model"}`;
