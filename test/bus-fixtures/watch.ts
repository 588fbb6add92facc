/** WatchTask as tests look at it. */
import type { WatchTaskResponse } from "../../gen/moltwire/bus/v1/bus_service_pb.ts";
import { TraceEventKind } from "../../gen/moltwire/bus/v1/trace_pb.ts";
import type { Clients } from "../harness.ts";
import { nameOf, stateOf } from "./bus.ts";

/** A message in a few words: `task COMPLETED`, `step DISPATCHED`, `chunk hello`, `progress 0.5 half`. */
export function told({ event }: WatchTaskResponse): string {
  switch (event.case) {
    case "task":
      return `task ${stateOf(event.value)}`;
    case "step":
      return `step ${nameOf(TraceEventKind, event.value.kind)}`;
    case "progress":
      return `progress ${event.value.fraction} ${event.value.message}`;
    default:
      return `${event.case} ${String(event.value)}`;
  }
}

/** Every message until the task has ended, without checkpoints. */
export async function watched(by: Clients, taskId: string, afterCursor = ""): Promise<WatchTaskResponse[]> {
  const messages: WatchTaskResponse[] = [];
  for await (const message of by.bus.watchTask({ taskId, afterCursor }))
    if (message.event.case !== "checkpoint") messages.push(message);
  return messages;
}

/** All the text that was streamed. */
export const chunksOf = (messages: readonly WatchTaskResponse[]): string[] =>
  messages.flatMap(({ event }) => (event.case === "chunk" ? [event.value] : []));
