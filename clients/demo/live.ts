/** A TailTraces that runs while the demo works. */
import { durationMs } from "@bufbuild/protobuf/wkt";
import { type TraceEvent, TraceEventKind } from "../../gen/moltwire/bus/v1/trace_pb.ts";
import { TraceService } from "../../gen/moltwire/bus/v1/trace_service_pb.ts";
import type { Clients } from "../cli/connect.ts";
import { kindName, timeMs } from "../cli/names.ts";

/** A stream that is open. */
export type LiveTail = {
  /** Waits until so many tasks have completed before its eyes, and answers all steps seen until then. */
  readonly completed: (tasks: number, maxMs: number) => Promise<readonly TraceEvent[]>;
  readonly close: () => void;
};

/** Opens the stream; returns when the server has said its first word on it, so that no step is missed. */
export async function openTail(clients: Clients, traceId: string): Promise<LiveTail> {
  const controller = new AbortController();
  const seen: TraceEvent[] = [];
  const open = Promise.withResolvers<void>();
  let ring = Promise.withResolvers<void>();
  const reading = (async () => {
    for await (const { event } of clients(TraceService).tailTraces({ traceId }, { signal: controller.signal })) {
      open.resolve();
      if (event.case === "traceEvent") seen.push(event.value);
      ring.resolve();
      ring = Promise.withResolvers();
    }
    throw new Error("the server ended the stream");
  })();
  reading.catch(() => {});
  await Promise.race([open.promise, reading]);

  return {
    async completed(tasks, maxMs) {
      const late = AbortSignal.timeout(maxMs);
      const { promise: tooLate, reject } = Promise.withResolvers<never>();
      tooLate.catch(() => {});
      late.addEventListener("abort", () => reject(new Error(`only ${seen.length} steps came in ${maxMs / 1_000} s`)), {
        once: true,
      });
      while (seen.filter(({ kind }) => kind === TraceEventKind.COMPLETED).length < tasks) {
        await Promise.race([ring.promise, reading, tooLate]);
      }
      return seen;
    },
    close: () => controller.abort(),
  };
}

/**
 * Compares what came live with what was read afterwards.
 *
 * @throws Error at the first difference.
 */
export function compareTraces(live: readonly TraceEvent[], read: readonly TraceEvent[]): void {
  const name = (event: TraceEvent | undefined) =>
    event &&
    [
      event.spanId,
      kindName(event.kind),
      timeMs(event),
      event.message,
      event.duration && durationMs(event.duration),
    ].join(" ");
  for (let at = 0; at < Math.max(live.length, read.length); at++) {
    const [one, other] = [name(live[at]), name(read[at])];
    if (one !== other)
      throw new Error(`step ${at + 1} came live as "${one ?? "nothing"}" and was read as "${other ?? "nothing"}"`);
  }
}
