/** `moltwire trace`: what was done, and why. */
import { toJson } from "@bufbuild/protobuf";
import { timestampMs } from "@bufbuild/protobuf/wkt";
import { BusService } from "../../gen/moltwire/bus/v1/bus_service_pb.ts";
import { type Trace, type TraceEvent, TraceEventSchema, TraceSchema } from "../../gen/moltwire/bus/v1/trace_pb.ts";
import { TraceService } from "../../gen/moltwire/bus/v1/trace_service_pb.ts";
import { agentIdOf } from "./agent-name.ts";
import { addNoun, collect, type Noun, run, wholeNumber, withServer } from "./command.ts";
import { type Clients, connectClients } from "./connect.ts";
import { exitCodes } from "./exit-codes.ts";
import { addList } from "./list.ts";
import { columns, note, paint, print, printJson, span } from "./output.ts";
import { type ConnectionOptions, readSettings, UsageError } from "./settings.ts";
import { age, between, type Column } from "./table.ts";
import { traceTail } from "./trace-tail.ts";
import { renderTree } from "./trace-tree.ts";

/** Adds the commands. */
export const trace: Noun = (program) => {
  const noun = addNoun(program, "trace", "what was done, and why");
  const get = noun
    .command("get")
    .description("print one trace as a tree with times")
    .argument("<id>", "a trace's id, or that of one of its tasks");
  withServer(get, TraceService.method.getTrace).action(run((id: string, options) => traceGet(id, options)));
  const tail = noun
    .command("tail")
    .description(
      "print steps as they happen, each under the task that its task came from, over lost connections, until Ctrl-C",
    )
    .option("--trace <id>", "only this trace")
    .option("--agent <agent>", "only what concerns this agent: its name or id")
    .option("--contract <id>", "only this contract")
    .option("--kind <name>", "only this kind of step, such as completed; may be repeated", collect)
    .option("--from-start", "begin with the oldest step kept")
    .option("--after <cursor>", "go on after this cursor (--json shows them)")
    .option("--count <number>", "end after so many steps", wholeNumber(1, 1_000_000));
  withServer(tail, TraceService.method.tailTraces).action(run((options) => traceTail(options)));
  addList(noun, {
    summary: "list traces, newest first",
    method: TraceService.method.listTraces,
    filters: [
      {
        name: "agentId",
        as: "--agent <agent>",
        help: "only those that this agent opened: its name or id",
        read: agentIdOf,
      },
      { name: "contractId", as: "--contract <id>", help: "only those whose first task is of this contract" },
    ],
    rows: ({ traces }) => traces,
    columns: traceColumns,
    things: "traces",
    first: "moltwire submit CONTRACT INPUT",
  });
};

const traceColumns: readonly Column<Trace>[] = [
  { title: "TRACE", cell: ({ traceId }) => traceId },
  { title: "AGE", cell: ({ startTime }) => age(startTime), right: true },
  { title: "TOOK", cell: ({ startTime, updateTime }) => between(startTime, updateTime), right: true },
  { title: "TASKS", cell: ({ tasks }) => String(tasks), right: true },
  {
    title: "OPEN",
    cell: ({ openTasks }) => (openTasks > 0 ? String(openTasks) : ""),
    right: true,
    colour: () => "yellow",
  },
  {
    title: "FAILED",
    cell: ({ failedTasks }) => (failedTasks > 0 ? String(failedTasks) : ""),
    right: true,
    colour: () => "red",
  },
  { title: "CONTRACT", cell: ({ contractId }) => contractId, cut: true },
];

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
