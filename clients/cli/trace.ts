/** `moltwire trace get`: one trace as a tree. */
import { toJson } from "@bufbuild/protobuf";
import { timestampMs } from "@bufbuild/protobuf/wkt";
import { BusService } from "../../gen/moltwire/bus/v1/bus_service_pb.ts";
import { type Trace, type TraceEvent, TraceEventSchema, TraceSchema } from "../../gen/moltwire/bus/v1/trace_pb.ts";
import { TraceService } from "../../gen/moltwire/bus/v1/trace_service_pb.ts";
import { type Clients, connectClients } from "./connect.ts";
import { exitCodes } from "./exit-codes.ts";
import { columns, note, paint, print, printJson, span } from "./output.ts";
import { type ConnectionOptions, readSettings, UsageError } from "./settings.ts";
import { renderTree } from "./trace-tree.ts";

const pageSize = 1_000;
const maxEvents = 20_000;

/** Prints a trace, named by its own id or by that of one of its tasks. Returns the exit code. */
export async function traceGet(id: string, options: ConnectionOptions): Promise<number> {
  const clients = connectClients(readSettings(options, process.env));
  const orgId = options.org ?? "";
  const traceId = await findTraceId(clients, orgId, id);
  const { trace, events, complete } = await readTrace(clients, orgId, traceId);
  if (options.json) {
    printJson({ trace: toJson(TraceSchema, trace), events: events.map((event) => toJson(TraceEventSchema, event)) });
  } else {
    print(traceHeadline(trace, events.length));
    for (const line of renderTree(events, { width: columns() })) print(line);
  }
  if (!complete) note(`only the first ${maxEvents} steps are shown`);
  return exitCodes.ok;
}

/** One line about a trace. */
export function traceHeadline(trace: Trace, steps: number): string {
  const ms = trace.updateTime && trace.startTime ? timestampMs(trace.updateTime) - timestampMs(trace.startTime) : 0;
  const count = (n: number, word: string) => `${n} ${word}${n === 1 ? "" : "s"}`;
  const counts = [
    count(trace.tasks, "task"),
    ...(trace.openTasks > 0 ? [`${trace.openTasks} open`] : []),
    ...(trace.failedTasks > 0 ? [`${trace.failedTasks} failed`] : []),
    count(steps, "step"),
    span(ms),
  ];
  return `${paint("bold", "trace")} ${trace.traceId}  ${counts.join(" · ")}`;
}

/** Reads a trace page by page, at most 20,000 events; `complete` tells whether that was all. */
export async function readTrace(
  clients: Clients,
  orgId: string,
  traceId: string,
): Promise<{ trace: Trace; events: TraceEvent[]; complete: boolean }> {
  const traces = clients(TraceService);
  const events: TraceEvent[] = [];
  let pageToken = "";
  for (;;) {
    const page = await traces.getTrace({ orgId, traceId, pageSize, pageToken });
    events.push(...page.events);
    pageToken = page.nextPageToken;
    if (pageToken === "" || events.length >= maxEvents)
      return { trace: page.trace!, events, complete: pageToken === "" };
  }
}

async function findTraceId(clients: Clients, orgId: string, id: string): Promise<string> {
  if (/^[0-9a-f]{32}$/i.test(id)) return id.toLowerCase();
  if (!id.startsWith("tsk_")) {
    throw new UsageError(
      `${id} is neither a trace's nor a task's id`,
      "a trace's id has 32 hexadecimal digits, a task's begins with tsk_",
    );
  }
  const { task } = await clients(BusService).getTask({ orgId, taskId: id });
  return task!.traceId;
}
