/** A trace as a tree: tasks under the tasks they came from, each with its steps and their times. */
import { durationMs } from "@bufbuild/protobuf/wkt";
import { type TraceEvent, TraceEventKind } from "../../gen/moltwire/bus/v1/trace_pb.ts";
import { agentNames, kindName, timeMs } from "./names.ts";
import { fit, paint, plain, span } from "./output.ts";

/** How a trace is drawn. */
export type TreeOptions = {
  /** The columns there are. */
  readonly width: number;
  /** Names of agents by id, for those that the events do not name. */
  readonly names?: ReadonlyMap<string, string>;
};

type Node = {
  readonly spanId: string;
  readonly parentSpanId: string;
  readonly events: TraceEvent[];
  readonly children: Node[];
};

const bad = new Set<number>([
  TraceEventKind.REFUSED,
  TraceEventKind.FAILED,
  TraceEventKind.ATTEMPT_FAILED,
  TraceEventKind.CANCELED,
  TraceEventKind.REJECTED,
]);
const ends = new Set<number>([
  TraceEventKind.REFUSED,
  TraceEventKind.COMPLETED,
  TraceEventKind.FAILED,
  TraceEventKind.CANCELED,
  TraceEventKind.REJECTED,
]);
const kindColumns = 14;

/** The lines of the tree. Times are milliseconds since the first event; events must be oldest first, as the server answers them. */
export function renderTree(events: readonly TraceEvent[], { width, names = new Map() }: TreeOptions): string[] {
  const known = new Map([...names, ...agentNames(events)]);
  const beginMs = events[0] ? timeMs(events[0]) : 0;
  const lines: string[] = [];
  const draw = (node: Node, indent: string, last: boolean): void => {
    lines.push(`${indent}${last ? "└─" : "├─"} ${headline(node, known, width - indent.length - 3)}`);
    const under = `${indent}${last ? "   " : "│  "}`;
    const bar = node.children.length > 0 ? "│" : " ";
    for (const event of node.events) lines.push(`${under}${bar} ${step(event, beginMs, width - under.length - 2)}`);
    node.children.forEach((child, at) => void draw(child, under, at === node.children.length - 1));
  };
  const roots = nest(events);
  roots.forEach((root, at) => void draw(root, "", at === roots.length - 1));
  return lines;
}

/** Spans that a growing tree remembers; of an older one the tasks under it begin at the margin. */
const maxSpans = 10_000;
const branchColumns = 6;

/**
 * Draws steps as they come, of any number of traces at once: each is a line with its time, its trace's first digits and, as far in as its task lies
 * under others that were seen, what it is. What a filter leaves out is not seen, so what lay under it begins at the margin.
 */
export function growingTree(): (event: TraceEvent, width: number) => string {
  const depths = new Map<string, number>();
  return (event, width) => {
    const key = (spanId: string) => `${event.traceId} ${spanId}`;
    const above = depths.get(key(event.parentSpanId));
    const known = depths.get(key(event.spanId));
    const depth = known ?? (above === undefined ? 0 : above + 1);
    if (known === undefined) {
      depths.set(key(event.spanId), depth);
      if (depths.size > maxSpans) depths.delete(depths.keys().next().value!);
    }
    const branch = depth === 0 ? "" : `${"│  ".repeat(depth - 1)}${known === undefined ? "├─ " : "│  "}`;
    const kind = kindName(event.kind);
    const filler = " ".repeat(Math.max(0, branchColumns + kindColumns - branch.length - kind.length));
    const time = new Date(timeMs(event)).toISOString().slice(11, 23);
    const head = `${time}  ${event.traceId.slice(0, 8)}  ${branch}`;
    const took = event.duration ? ` (${span(durationMs(event.duration))})` : "";
    const contract = plain(event.contractId);
    const room = width - [head, kind, filler, contract, took].join("").length - 4;
    const message = fit(plain(event.message), Math.max(20, room)) + took;
    return `${head}${bad.has(event.kind) ? paint("red", kind) : kind}${filler}  ${contract}  ${paint("dim", message)}`.trimEnd();
  };
}

/** The spans of the events, each under its parent; one whose parent has no events here stands at the top. */
function nest(events: readonly TraceEvent[]): Node[] {
  const nodes = new Map<string, Node>();
  for (const event of events) {
    const { spanId, parentSpanId } = event;
    const node = nodes.get(spanId) ?? { spanId, parentSpanId, events: [], children: [] };
    nodes.set(spanId, node);
    node.events.push(event);
  }
  const roots: Node[] = [];
  const placed = new Set<string>();
  for (const node of nodes.values()) {
    // A parent's first event comes before its children's, so looking only at placed spans keeps rings out.
    const parent = placed.has(node.parentSpanId) ? nodes.get(node.parentSpanId) : undefined;
    (parent?.children ?? roots).push(node);
    placed.add(node.spanId);
  }
  return roots;
}

/** What a task was, who did it for whom, and its id if there is room. */
function headline({ events }: Node, names: ReadonlyMap<string, string>, width: number): string {
  const last = events.at(-1)!;
  const end = events.find(({ kind }) => ends.has(kind));
  const state = end ? kindName(end.kind) : "OPEN";
  const name = (id: string) => plain(names.get(id) ?? id);
  const caller = events.find(({ callerAgentId }) => callerAgentId !== "")?.callerAgentId;
  const target = events.findLast(({ targetAgentId }) => targetAgentId !== "")?.targetAgentId;
  const colour = end === undefined ? "yellow" : bad.has(end.kind) ? "red" : "green";
  const took = span(timeMs(end ?? last) - timeMs(events[0]!));
  const who = `${caller ? name(caller) : "administrator"}${target ? ` → ${name(target)}` : ""}`;
  const room = width - [plain(last.contractId), state, took, who].join("  ").length;
  const id = last.taskId !== "" && last.taskId.length + 2 <= room ? `  ${paint("dim", plain(last.taskId))}` : "";
  return `${paint("bold", plain(last.contractId))}  ${paint(colour, state)}  ${took}  ${who}${id}`;
}

function step(event: TraceEvent, beginMs: number, width: number): string {
  const offset = span(timeMs(event) - beginMs).padStart(8);
  const kind = kindName(event.kind).padEnd(kindColumns);
  const took = event.duration ? ` (${span(durationMs(event.duration))})` : "";
  const message = fit(plain(event.message), width - 8 - kindColumns - 4 - took.length) + took;
  return `${paint("dim", offset)}  ${bad.has(event.kind) ? paint("red", kind) : kind}  ${message}`.trimEnd();
}
