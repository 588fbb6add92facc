/** A reader of the trace log that comes back after every kill with the last cursor it saw. */
import { createClient } from "@connectrpc/connect";
import type { TraceEvent } from "../../gen/moltwire/bus/v1/trace_pb.ts";
import { TraceService } from "../../gen/moltwire/bus/v1/trace_service_pb.ts";
import { transport } from "../harness.ts";
import { answered, type Ledger } from "./ledger.ts";
import type { Life } from "./workload.ts";

export type Follower = {
  /** What it has read in all its lives, in order. */
  readonly seen: string[];
  /** Reads until the server is gone or the signal says to stop. */
  follow(life: Life, ledger: Ledger, signal: AbortSignal): Promise<void>;
};

/** An event in a form that can be compared. */
const lineOf = ({ taskId, kind, message, time }: TraceEvent): string =>
  `${taskId} ${kind} ${time?.seconds}.${time?.nanos} ${message}`;

export function openFollower(): Follower {
  const seen: string[] = [];
  let cursor = "";
  return {
    seen,
    async follow(life, ledger, signal) {
      const traces = createClient(TraceService, transport(life.url, life.adminKey, "connect"));
      try {
        for await (const message of traces.tailTraces({ afterCursor: cursor, fromStart: true }, { signal })) {
          cursor = message.cursor;
          if (message.event.case === "traceEvent") seen.push(lineOf(message.event.value));
        }
        ledger.surprises.push("the stream of traces ended by itself");
      } catch (error) {
        const word = answered(error);
        if (signal.aborted || (word === undefined && life.killed)) return;
        ledger.surprises.push(word ?? `the stream of traces broke while the server was alive: ${error}`);
      }
    },
  };
}

/** Reads the log from its start until it has so many events; rejects after 30 s. */
export async function readLog(life: Life, count: number): Promise<string[]> {
  const traces = createClient(TraceService, transport(life.url, life.adminKey, "connect"));
  const log: string[] = [];
  if (count === 0) return log;
  for await (const { event } of traces.tailTraces({ fromStart: true }, { signal: AbortSignal.timeout(30_000) })) {
    if (event.case === "traceEvent" && log.push(lineOf(event.value)) === count) break;
  }
  return log;
}
