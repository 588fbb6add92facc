/** `moltwire task watch`: one task, step by step, to its end. */
import { toJson } from "@bufbuild/protobuf";
import { timestampMs, ValueSchema } from "@bufbuild/protobuf/wkt";
import { ProgressSchema } from "../../gen/moltwire/agent/v1/agent_runtime_pb.ts";
import {
  BusService,
  type WatchTaskResponse,
  WatchTaskResponseSchema,
} from "../../gen/moltwire/bus/v1/bus_service_pb.ts";
import { type Task, TaskState } from "../../gen/moltwire/bus/v1/task_pb.ts";
import { connectClients } from "./connect.ts";
import { exitCodes } from "./exit-codes.ts";
import { follow } from "./follow.ts";
import { kindName, timeMs } from "./names.ts";
import { columns, fit, note, plain, print, printJson, safeJson, span } from "./output.ts";
import { type ConnectionOptions, readSettings } from "./settings.ts";
import { renderEnd } from "./task-end.ts";

/** The options of `task watch`. */
export type WatchOptions = ConnectionOptions & { readonly after?: string };

/**
 * Prints each step of a task and then its output, over lost connections. Standard output gets the output alone, so that it can be piped; with
 * --json it gets every message. Returns the exit code: 1 if the task did not complete.
 */
export async function taskWatch(taskId: string, options: WatchOptions): Promise<number> {
  const settings = readSettings(options, process.env);
  const bus = connectClients(settings)(BusService);
  const orgId = options.org ?? "";
  let opening = true;
  const messages = follow(settings.url, options.after ?? "", (afterCursor, signal) => {
    opening = true;
    return bus.watchTask({ orgId, taskId, afterCursor }, { signal });
  });
  let beginMs: number | undefined;
  for await (const message of messages) {
    const task = message.event.case === "task" ? message.event.value : undefined;
    // The whole task comes first on each connection, and once more as the last message of all.
    const again = opening && beginMs !== undefined;
    const end = opening ? undefined : task;
    opening = false;
    if (again) continue;
    beginMs ??= task?.createTime ? timestampMs(task.createTime) : 0;
    if (options.json) printMessage(message);
    else if (end) showEnd(end);
    else showMessage(message, beginMs);
    if (end) return end.state === TaskState.COMPLETED ? exitCodes.ok : exitCodes.failed;
  }
  throw new Error("the stream of a task ended before the task did");
}

function printMessage(message: WatchTaskResponse): void {
  if (message.event.case !== "checkpoint") printJson(toJson(WatchTaskResponseSchema, message), 0);
}

function showMessage({ event }: WatchTaskResponse, beginMs: number): void {
  if (event.case === "task") {
    note(`${plain(event.value.contractId)} ${plain(event.value.contractVersion)}  ${event.value.taskId}`);
  } else if (event.case === "step") {
    showLine(span(timeMs(event.value) - beginMs), kindName(event.value.kind), event.value.message);
  } else if (event.case === "progress") {
    showLine("", "PROGRESS", JSON.stringify(toJson(ProgressSchema, event.value)));
  } else if (event.case === "chunk") {
    showLine("", "OUTPUT", event.value);
  }
}

function showLine(time: string, kind: string, text: string): void {
  const head = `${time.padStart(8)}  ${kind.padEnd(14)}  `;
  note(head + fit(plain(text), Math.max(20, columns() - head.length)));
}

function showEnd(task: Task): void {
  for (const line of renderEnd(task)) note(line);
  if (task.output) print(safeJson(toJson(ValueSchema, task.output)));
}
