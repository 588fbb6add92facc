/** Asking the bus for work, and what came of it. */
import { fromJson, type JsonValue, toJson } from "@bufbuild/protobuf";
import { type Value, ValueSchema } from "@bufbuild/protobuf/wkt";
import { BusService, type WatchTaskResponse } from "../../gen/moltwire/bus/v1/bus_service_pb.ts";
import { type Task, TaskState } from "../../gen/moltwire/bus/v1/task_pb.ts";
import type { Clients } from "../cli/connect.ts";

/** A task ended without an output. */
export class TaskFailed extends Error {
  override readonly name = "TaskFailed";
  readonly task: Task;

  constructor(task: Task) {
    super(`${task.contractId}: ${task.error?.message ?? "the task did not complete"}`);
    this.task = task;
  }
}

/** How long a call may take at most. */
export const callTimeoutMs = 10_000;
/** For a task that is watched, and done by a large model perhaps. */
const watchTimeoutMs = 70_000;

/** A JSON value as the protocol has it. */
export const toValue = (json: unknown): Value => fromJson(ValueSchema, json as JsonValue);

/** A task as it is asked for here: under the first major version of its contract. */
export const wish = (contractId: string, input: unknown) => ({
  contractId,
  contractVersion: "^1.0.0",
  input: toValue(input),
});

/** Has a task done and waits until it has ended, however it did. With `traceparent` it is part of that trace. */
export async function ask(clients: Clients, contractId: string, input: unknown, traceparent?: string): Promise<Task> {
  const call = { timeoutMs: callTimeoutMs, ...(traceparent !== undefined && { headers: { traceparent } }) };
  const { task } = await clients(BusService).submitTask(wish(contractId, input), call);
  return task!;
}

/** Watches a task until it has ended; at most 70 s. `see` is told each of its messages. */
export async function watch(
  clients: Clients,
  taskId: string,
  see: (event: WatchTaskResponse["event"]) => void = () => {},
): Promise<Task> {
  let task: Task | undefined;
  for await (const { event } of clients(BusService).watchTask({ taskId }, { timeoutMs: watchTimeoutMs })) {
    if (event.case === "task") task = event.value;
    see(event);
  }
  if (!task) throw new Error(`the stream of ${taskId} ended before it began`);
  return task;
}

/**
 * What a task answered. The bus has checked it against the contract's output schema.
 *
 * @throws TaskFailed if it did not complete.
 */
export function outputOf<Output>(task: Task): Output {
  if (task.state !== TaskState.COMPLETED || !task.output) throw new TaskFailed(task);
  return toJson(ValueSchema, task.output) as Output;
}
