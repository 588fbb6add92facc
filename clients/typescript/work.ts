/** One task that was delivered: the handler does it under its lease. */
import type { JsonValue, MessageInitShape } from "@bufbuild/protobuf";
import { durationMs } from "@bufbuild/protobuf/wkt";
import type { Client } from "@connectrpc/connect";
import type { Usage } from "../../gen/moltwire/agent/v1/agent_runtime_pb.ts";
import type { BusService, RespondTaskRequestSchema, TaskDelivery } from "../../gen/moltwire/bus/v1/bus_service_pb.ts";
import { failureOf, type Told, toldOf, underLease } from "./lease.ts";
import { jsonOf, jsonValue } from "./payload.ts";

/** A task in the hands of a handler. */
export type TaskInHand = {
  readonly taskId: string;
  /** From 1. */
  readonly attempt: number;
  readonly contractId: string;
  readonly contractVersion: string;
  readonly capability: string;
  readonly input: JsonValue;
  /** The tokens to use at most; 0 for no bound. */
  readonly maxTokens: number;
  /** Aborts when the task is canceled, timed out or another's: its answer is not used any more. */
  readonly signal: AbortSignal;
  /** The W3C trace context to send on with calls. */
  readonly traceparent: string;
  /** Tells how far the work is, with the next heartbeat. `fraction` is from 0 to 1. */
  progress(fraction: number, message?: string): void;
  /** Tells what the work consumed, with the answer. */
  usage(usage: Partial<Pick<Usage, "inputTokens" | "outputTokens" | "model">>): void;
};

/** Does one task: gives its output, as JSON, or throws. What it throws is a failure that another try may mend, but for a TaskError, which says. */
export type Handler = (task: TaskInHand) => Promise<JsonValue> | JsonValue;

type Answer = NonNullable<MessageInitShape<typeof RespondTaskRequestSchema>["outcome"]>;

/** Never rejects: what goes wrong is an answer to the server, or told to `onProblem`. Aborting `give` lets the task go. */
export function workOn(
  bus: Client<typeof BusService>,
  handler: Handler,
  { task: delivered, leaseToken, lease }: TaskDelivery,
  give: AbortController,
  onProblem: (error: unknown) => void,
): Promise<void> {
  const task = delivered!;
  const { taskId, attempt, contractId, contractVersion, capability, traceparent } = task;
  let told: Told | undefined;
  let usage = {};
  const inHand: TaskInHand = {
    taskId,
    attempt,
    contractId,
    contractVersion,
    capability,
    input: jsonOf(task.input) ?? null,
    maxTokens: Number(task.maxTokens),
    signal: give.signal,
    traceparent,
    progress: (fraction, message) => void (told = toldOf(fraction, message)),
    usage: (used) => void (usage = { ...usage, ...used }),
  };
  return underLease<Answer>({
    leaseMs: durationMs(lease!),
    give,
    onProblem,
    async run() {
      try {
        return { case: "output", value: jsonValue(await handler(inHand)) };
      } catch (error) {
        return { case: "failure", value: failureOf(error) };
      }
    },
    answer: (outcome) =>
      bus.respondTask(
        { taskId, leaseToken, outcome, usage },
        { signal: give.signal, headers: { "idempotency-key": `${taskId}-${attempt}` } },
      ),
    async beat(options) {
      const progress = told;
      told = undefined;
      return (await bus.heartbeatTask({ taskId, leaseToken, ...(progress && { progress }) }, options)).cancelRequested;
    },
  });
}
