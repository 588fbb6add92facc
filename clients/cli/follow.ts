/** A stream of the server that goes on over lost connections. */
import { setTimeout as delay } from "node:timers/promises";
import { ConnectError } from "@connectrpc/connect";
import { exitCodes } from "./exit-codes.ts";
import { note, span } from "./output.ts";
import { explain, type Problem } from "./problem.ts";

/** The server says something every 15 s; a connection silent for longer is dead, though nothing has said so. */
const maxSilenceMs = 45_000;
const firstWaitMs = 250;
const maxWaitMs = 10_000;

/**
 * The messages of a stream, each with its cursor. After a lost connection `open` is called again with the last one, for ever and with growing
 * waits, and standard error says so. What fails before the first message, or for a reason that waiting does not mend, is thrown.
 */
export async function* follow<M extends { readonly cursor: string }>(
  url: string,
  after: string,
  open: (cursor: string, signal: AbortSignal) => AsyncIterable<M>,
): AsyncGenerator<M, never> {
  let cursor = after;
  let connected = false;
  let failures = 0;
  for (;;) {
    const watch = watchdog(maxSilenceMs);
    try {
      for await (const message of open(cursor, watch.signal)) {
        watch.heard();
        if (failures > 0) note("connected again");
        connected = true;
        failures = 0;
        cursor = message.cursor;
        yield message;
      }
      if (failures === 0) note("connection lost: the server ended the stream; trying again from the last step");
    } catch (error) {
      const problem = explain(error, url);
      if (!watch.signal.aborted && !(connected && passes(problem))) throw error;
      cursor = problem.cursor ?? cursor;
      const why = watch.signal.aborted ? `nothing heard for ${span(maxSilenceMs)}` : problem.message;
      if (failures === 0) note(`connection lost: ${why}; trying again from the last step`);
    } finally {
      watch.end();
    }
    await delay(waitMs(failures, Math.random()));
    failures += 1;
  }
}

/** Whether it is worth trying again. */
const passes = ({ exitCode, reason }: Problem): boolean =>
  (exitCode === exitCodes.unreachable && reason === "UNREACHABLE") ||
  reason === "SHUTTING_DOWN" ||
  reason === "OVERLOADED" ||
  reason === "STORAGE_UNAVAILABLE" ||
  reason === "RATE_LIMITED";

/** The wait before the next try: from 250 ms, doubled each time up to 10 s, and by chance down to half of that. */
export const waitMs = (failures: number, chance: number): number =>
  Math.min(maxWaitMs, firstWaitMs * 2 ** Math.min(failures, 10)) * (0.5 + chance / 2);

/** Aborts its signal when `heard` was not called for so long, and when ended. */
function watchdog(ms: number) {
  const controller = new AbortController();
  const timer = setTimeout(() => controller.abort(new ConnectError("silence")), ms);
  return {
    signal: controller.signal,
    heard: () => void timer.refresh(),
    end() {
      clearTimeout(timer);
      controller.abort();
    },
  };
}
