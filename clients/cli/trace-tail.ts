/** `moltwire trace tail`: steps as they happen, over lost connections. */
import { setTimeout as delay } from "node:timers/promises";
import { toJson } from "@bufbuild/protobuf";
import { ConnectError } from "@connectrpc/connect";
import { type TraceEvent, TraceEventSchema } from "../../gen/moltwire/bus/v1/trace_pb.ts";
import { TraceService } from "../../gen/moltwire/bus/v1/trace_service_pb.ts";
import { connectClients } from "./connect.ts";
import { exitCodes } from "./exit-codes.ts";
import { kindName, parseKind, timeMs } from "./names.ts";
import { columns, fit, note, paint, plain, print, printJson, span } from "./output.ts";
import { explain, type Problem } from "./problem.ts";
import { type ConnectionOptions, readSettings, UsageError } from "./settings.ts";

/** The options of `trace tail`. */
export type TailOptions = ConnectionOptions & {
  readonly trace?: string;
  readonly agent?: string;
  readonly contract?: string;
  readonly kind?: readonly string[];
  readonly fromStart?: boolean;
  readonly after?: string;
  /** End after so many steps. */
  readonly count?: number;
};

/** The server says something every 15 s; a connection silent for longer is dead, though nothing has said so. */
const maxSilenceMs = 45_000;
const firstWaitMs = 250;
const maxWaitMs = 10_000;

/** Prints steps until Ctrl-C, or until `--count` of them. A lost connection is taken up again after the last cursor. Returns the exit code. */
export async function traceTail(options: TailOptions): Promise<number> {
  const settings = readSettings(options, process.env);
  const traceId = options.trace?.toLowerCase() ?? "";
  if (!/^([0-9a-f]{32})?$/.test(traceId))
    throw new UsageError(`--trace ${options.trace} is no trace's id`, "32 hexadecimal digits");
  const traces = connectClients(settings)(TraceService);
  const wanted = {
    orgId: options.org ?? "",
    traceId,
    agentId: options.agent ?? "",
    contractId: options.contract ?? "",
    kinds: (options.kind ?? []).map(parseKind),
  };
  let cursor = options.after ?? "";
  let connected = false;
  let seen = 0;
  let failures = 0;

  for (;;) {
    const watch = watchdog(maxSilenceMs);
    try {
      const request = { ...wanted, afterCursor: cursor, fromStart: cursor === "" && options.fromStart === true };
      for await (const message of traces.tailTraces(request, { signal: watch.signal })) {
        watch.heard();
        if (failures > 0) note("connected again");
        connected = true;
        failures = 0;
        cursor = message.cursor;
        if (message.event.case !== "traceEvent") continue;
        show(message.event.value, options.json === true);
        seen += 1;
        if (seen === options.count) return exitCodes.ok;
      }
    } catch (error) {
      const problem = explain(error, settings.url);
      if (!watch.signal.aborted && !(connected && passes(problem))) throw error;
      cursor = problem.cursor ?? cursor;
      if (failures === 0)
        note(`connection lost: ${watch.signal.aborted ? `nothing heard for ${span(maxSilenceMs)}` : problem.message}`);
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

function show(event: TraceEvent, json: boolean): void {
  if (json) {
    printJson(toJson(TraceEventSchema, event), 0);
    return;
  }
  const time = new Date(timeMs(event)).toISOString().slice(11, 23);
  const head = `${time}  ${event.traceId.slice(0, 8)}  ${kindName(event.kind).padEnd(14)}  ${plain(event.contractId)}`;
  print(`${head}  ${paint("dim", fit(plain(event.message), Math.max(20, columns() - head.length - 2)))}`);
}
