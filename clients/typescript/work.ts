/** One delivery: the handler runs, heartbeats go out meanwhile, and its answer is brought to the server. */
import { setTimeout as delay } from "node:timers/promises";
import { fromJson, type JsonValue, type MessageInitShape, toJson } from "@bufbuild/protobuf";
import { durationMs, ValueSchema } from "@bufbuild/protobuf/wkt";
import { type Client, Code, ConnectError } from "@connectrpc/connect";
import type { Usage } from "../../gen/moltwire/agent/v1/agent_runtime_pb.ts";
import type { BusService, RespondTaskRequestSchema, TaskDelivery } from "../../gen/moltwire/bus/v1/bus_service_pb.ts";

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

/** Does one task: gives its output, as JSON, or throws. What it throws is a failure that another try may mend, but for a {@link TaskError}, which says. */
export type Handler = (task: TaskInHand) => Promise<JsonValue> | JsonValue;

/** The work failed, and whether another try may mend it. */
export class TaskError extends Error {
  override readonly name = "TaskError";
  readonly retryable: boolean;

  constructor(message: string, options: { readonly retryable: boolean; readonly cause?: unknown }) {
    super(message, { cause: options.cause });
    this.retryable = options.retryable;
  }
}

type Answer = NonNullable<MessageInitShape<typeof RespondTaskRequestSchema>["outcome"]>;
type Told = { fraction: number; message: string };

const maxMessageLength = 4_096;
const maxProgressLength = 1_024;
const firstWaitMs = 100;
const longestWaitMs = 5_000;
/** What may pass: the same call again may be answered. */
const passing: ReadonlySet<Code> = new Set([
  Code.Unavailable,
  Code.ResourceExhausted,
  Code.Internal,
  Code.Unknown,
  Code.Aborted,
  Code.DeadlineExceeded,
]);

/** Never rejects: what goes wrong is an answer to the server, or told to `onProblem`. Aborting `give` lets the task go. */
export async function workOn(
  bus: Client<typeof BusService>,
  handler: Handler,
  delivery: TaskDelivery,
  give: AbortController,
  onProblem: (error: unknown) => void,
): Promise<void> {
  const { task, leaseToken } = delivery;
  const taskId = task!.taskId;
  const told: { progress?: Told } = {};
  let usage = {};
  const done = new AbortController();
  const beating = beat(bus, delivery, give, done.signal, told, onProblem);
  const outcome = await run(handler, {
    taskId,
    attempt: task!.attempt,
    contractId: task!.contractId,
    contractVersion: task!.contractVersion,
    capability: task!.capability,
    input: task!.input ? toJson(ValueSchema, task!.input) : null,
    maxTokens: Number(task!.maxTokens),
    signal: give.signal,
    traceparent: task!.traceparent,
    progress: (fraction, message = "") =>
      void (told.progress = {
        fraction: Math.min(1, Math.max(0, fraction)) || 0,
        message: message.slice(0, maxProgressLength),
      }),
    usage: (used) => void (usage = { ...usage, ...used }),
  });
  try {
    if (!give.signal.aborted)
      await untilAnswered(give.signal, () =>
        bus.respondTask(
          { taskId, leaseToken, outcome, usage },
          { signal: give.signal, headers: { "idempotency-key": `${taskId}-${task!.attempt}` } },
        ),
      );
  } catch (error) {
    if (!give.signal.aborted) onProblem(error);
  } finally {
    done.abort();
    await beating;
  }
}

async function run(handler: Handler, task: TaskInHand): Promise<Answer> {
  try {
    return { case: "output", value: fromJson(ValueSchema, await handler(task)) };
  } catch (error) {
    const message = (error instanceof Error ? error.message : String(error)).slice(0, maxMessageLength);
    const retryable = error instanceof TaskError ? error.retryable : true;
    return { case: "failure", value: { message, retryable } };
  }
}

/** A heartbeat in every third of the lease, until the task is answered or let go. */
async function beat(
  bus: Client<typeof BusService>,
  { task, leaseToken, lease }: TaskDelivery,
  give: AbortController,
  done: AbortSignal,
  told: { progress?: Told },
  onProblem: (error: unknown) => void,
): Promise<void> {
  const signal = AbortSignal.any([done, give.signal]);
  const everyMs = Math.floor(durationMs(lease!) / 3);
  const { taskId } = task!;
  while (!signal.aborted) {
    await delay(everyMs, undefined, { signal }).catch(() => {});
    if (signal.aborted) return;
    const { progress } = told;
    delete told.progress;
    try {
      const request = { taskId, leaseToken, ...(progress && { progress }) };
      const { cancelRequested } = await bus.heartbeatTask(request, { signal, timeoutMs: everyMs });
      if (cancelRequested) give.abort();
    } catch (error) {
      // A lost heartbeat is made good by the next one; a lost lease is not.
      if (signal.aborted) return;
      if (ConnectError.from(error).code === Code.FailedPrecondition) give.abort();
      else onProblem(error);
    }
  }
}

/** Calls until the server has answered, whatever it says; the key makes it one answer. As long as the lease is there it is worth it. */
async function untilAnswered(signal: AbortSignal, call: () => Promise<unknown>): Promise<void> {
  for (let waitMs = firstWaitMs; ; waitMs = Math.min(longestWaitMs, 2 * waitMs)) {
    try {
      await call();
      return;
    } catch (error) {
      if (signal.aborted || !passing.has(ConnectError.from(error).code)) throw error;
      await delay(waitMs, undefined, { signal });
    }
  }
}
