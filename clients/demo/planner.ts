/** The demo's planner: an agent that only calls. It has four tasks done, each with what the one before it answered, in one trace. */
import { randomBytes } from "node:crypto";
import { isDeepStrictEqual } from "node:util";
import { BusService } from "../../gen/moltwire/bus/v1/bus_service_pb.ts";
import type { Task } from "../../gen/moltwire/bus/v1/task_pb.ts";
import { TraceEventKind } from "../../gen/moltwire/bus/v1/trace_pb.ts";
import type { Clients } from "../cli/connect.ts";
import { ask, callTimeoutMs, outputOf, watch, wish } from "./ask.ts";
import type { Composed, Found, Outline } from "./research.ts";
import type { Review } from "./review.ts";

/** What the planner brings home. */
export type Findings = {
  readonly composed: Composed;
  readonly review: Review;
  /** In how many pieces the review came while it was written. */
  readonly pieces: number;
  /** All that were asked for, in their order. */
  readonly tasks: readonly Task[];
};

const passageLimit = 8;
const quoteLimit = 4;

/** A new W3C trace context: the planner's own span, above all its tasks. */
export function newTrace(): { readonly traceId: string; readonly traceparent: string } {
  const traceId = randomBytes(16).toString("hex");
  return { traceId, traceparent: `00-${traceId}-${randomBytes(8).toString("hex")}-01` };
}

/**
 * Answers a question by the bus.
 *
 * @throws TaskFailed for the first task that does not complete.
 */
export async function plan(planner: Clients, traceparent: string, question: string): Promise<Findings> {
  const tasks: Task[] = [];
  const have = async <Output>(contractId: string, input: unknown): Promise<Output> => {
    const task = await ask(planner, contractId, input, traceparent);
    tasks.push(task);
    return outputOf<Output>(task);
  };
  const { terms } = await have<Outline>("research/outline", { question });
  const { passages } = await have<Found>("research/search", { terms, limit: passageLimit });
  const composed = await have<Composed>("research/compose", { terms, passages, limit: quoteLimit });
  const { review, pieces, task } = await watchReview(planner, traceparent, { question, quotes: composed.quotes });
  return { composed, review, pieces, tasks: [...tasks, task] };
}

/** Has the quotes reviewed, and watches: the reviewer's answer comes in pieces while it is written. */
async function watchReview(planner: Clients, traceparent: string, input: object) {
  const request = { ...wish("research/review", input), returnImmediately: true };
  const call = { headers: { traceparent }, timeoutMs: callTimeoutMs };
  const { task: accepted } = await planner(BusService).submitTask(request, call);
  let streamed = "";
  let pieces = 0;
  const task = await watch(planner, accepted!.taskId, (event) => {
    // Another attempt begins anew.
    if (event.case === "step" && event.value.kind === TraceEventKind.DISPATCHED) [streamed, pieces] = ["", 0];
    if (event.case === "chunk") [streamed, pieces] = [streamed + event.value, pieces + 1];
  });
  const review = outputOf<Review>(task);
  if (!isDeepStrictEqual(JSON.parse(streamed), review)) throw new Error("what was streamed is not what was answered");
  return { review, pieces, task };
}
