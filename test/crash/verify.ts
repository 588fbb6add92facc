/** Holds what the clients were told and what the agent saw against what the server knows. */
import { isDeepStrictEqual } from "node:util";
import { type DescEnum, toJson } from "@bufbuild/protobuf";
import { ValueSchema } from "@bufbuild/protobuf/wkt";
import { createClient } from "@connectrpc/connect";
import { ErrorReason, ErrorReasonSchema } from "../../gen/moltwire/api/v1/error_reason_pb.ts";
import { BusService } from "../../gen/moltwire/bus/v1/bus_service_pb.ts";
import { type Task, TaskState, TaskStateSchema } from "../../gen/moltwire/bus/v1/task_pb.ts";
import { TraceEventKind, TraceEventKindSchema } from "../../gen/moltwire/bus/v1/trace_pb.ts";
import { TraceService } from "../../gen/moltwire/bus/v1/trace_service_pb.ts";
import { EventService } from "../../gen/moltwire/ops/v1/event_service_pb.ts";
import { transport } from "../harness.ts";
import type { Agent, Arrival } from "./agent.ts";
import type { Ledger, Submit } from "./ledger.ts";
import { endOf, type Life } from "./workload.ts";

/** What was found: how many tasks ended how, how many trace events there are, and everything that is wrong. */
export type Findings = {
  readonly tasks: number;
  readonly byState: Record<string, number>;
  readonly recovered: number;
  readonly traceEvents: number;
  readonly problems: string[];
};

const atOnce = 16;
/** The last step of a trace, by how the task ended. */
export const ends: ReadonlyMap<TaskState, TraceEventKind> = new Map([
  [TaskState.COMPLETED, TraceEventKind.COMPLETED],
  [TaskState.FAILED, TraceEventKind.FAILED],
  [TaskState.CANCELED, TraceEventKind.CANCELED],
  [TaskState.REJECTED, TraceEventKind.REJECTED],
]);
const endKinds: ReadonlySet<TraceEventKind> = new Set(ends.values());

/** Everything a client was told of tasks, against the tasks, traces and events there are. Call it when no task is open. */
export async function verifyTasks(life: Life, ledger: Ledger, agent: Agent): Promise<Findings> {
  const bus = createClient(BusService, transport(life.url, life.adminKey, "connect"));
  const problems: string[] = [];
  const all = await pages(async (pageToken) => {
    const page = await bus.listTasks({ pageSize: 250, pageToken });
    return { items: page.tasks, next: page.nextPageToken };
  });
  const submits = new Map(ledger.submits.map((submit) => [String(submit.orders.n), submit]));
  const tasks = new Map<string, Task>();
  const byState: Record<string, number> = {};
  const asked = new Set<string>();
  await inParallel(all, async ({ taskId, labels }) => {
    const { task } = await bus.getTask({ taskId });
    tasks.set(taskId, task!);
    const submit = submits.get(labels.n ?? "");
    if (!submit) return void problems.push(`${taskId}: nobody asked for it`);
    if (asked.has(labels.n!)) problems.push(`${taskId}: submit ${labels.n} has more than one task`);
    asked.add(labels.n!);
    problems.push(...faultsOf(task!, submit, agent.arrivals.get(taskId) ?? []).map((fault) => `${taskId}: ${fault}`));
    const state = stateName(task!);
    byState[state] = (byState[state] ?? 0) + 1;
  });
  for (const { taskId } of ledger.submits)
    if (taskId && !tasks.has(taskId)) problems.push(`${taskId}: acknowledged, and not there`);
  for (const taskId of agent.arrivals.keys())
    if (!tasks.has(taskId)) problems.push(`${taskId}: the agent had it, and it is not there`);
  const { recovered, traceEvents } = await verifyTraces(life, tasks, problems);
  await verifyEvents(life, tasks, problems);
  return { tasks: tasks.size, byState, recovered, traceEvents, problems };
}

/** What is wrong with how a task ended. */
function faultsOf(task: Task, submit: Submit, arrivals: readonly Arrival[]): string[] {
  const faults: string[] = [];
  const expect = (holds: boolean, fault: string) =>
    void (holds || faults.push(`${fault} (${describe(task, arrivals)})`));
  const { kind, orders } = submit;
  const reason = task.error?.reason;
  const is = (state: TaskState) => task.state === state;
  const fate = `it is ${stateName(task)}`;
  expect(ends.has(task.state), "it has not ended");
  expect(!submit.ended || submit.ended.text === endOf(task), `a client was told ${submit.ended?.text}`);
  expect(!submit.taskId || submit.taskId === task.taskId, `a client was told it is ${submit.taskId}`);
  expect(!submit.cancelAcknowledged || is(TaskState.CANCELED), `its cancelation was acknowledged and ${fate}`);
  expect(!is(TaskState.CANCELED) || submit.cancelTried, "nobody canceled it");
  if (is(TaskState.COMPLETED)) {
    const output = task.output && toJson(ValueSchema, task.output);
    const right = isDeepStrictEqual(output, kind === "echo" ? orders : { n: orders.n });
    expect(right, `its output is ${JSON.stringify(output)}`);
    expect(kind === "echo" || arrivals.some(({ outcome }) => outcome === "answered"), "the agent never answered it");
  }
  if (is(TaskState.FAILED)) {
    const gaveUp = reason === ErrorReason.ADAPTER_ERROR && orders.plan.at(-1) === "fail";
    const unknown = reason === ErrorReason.OUTCOME_UNKNOWN && kind === "once";
    expect(
      gaveUp || unknown,
      `it failed with ${nameOf(ErrorReasonSchema, reason ?? 0)}, ordered ${kind} ${orders.plan}`,
    );
  }
  if (kind === "once") {
    const again = arrivals.slice(0, -1).filter(({ outcome }) => outcome !== "failed" && outcome !== "not begun");
    expect(again.length === 0, "not repeatable, and the agent got it again after it may have been begun");
    const lost = arrivals.some(({ outcome }) => outcome === "lost");
    const isUnknown = is(TaskState.FAILED) && reason === ErrorReason.OUTCOME_UNKNOWN;
    expect(!lost || isUnknown || is(TaskState.CANCELED), `not repeatable, its answer was lost, and ${fate}`);
  }
  return faults;
}

/** A value of an enum, by name. */
export const nameOf = (schema: DescEnum, number: number): string => schema.value[number]?.localName ?? String(number);

/** How a task ended, in a word or two. */
export const stateName = ({ state, error }: Task): string =>
  nameOf(TaskStateSchema, state) +
  (error && state === TaskState.FAILED ? ` ${nameOf(ErrorReasonSchema, error.reason)}` : "");

const describe = (task: Task, arrivals: readonly Arrival[]): string =>
  `${task.contractId}, ${task.attempts} attempts; the agent: ${arrivals.map(({ attempt, outcome }) => `${attempt} ${outcome}`).join(", ") || "nothing"}`;

/** Each trace: one acceptance, as many dispatches as attempts, one end, which is the last event and the task's state. */
async function verifyTraces(
  life: Life,
  tasks: ReadonlyMap<string, Task>,
  problems: string[],
): Promise<{ recovered: number; traceEvents: number }> {
  const traces = createClient(TraceService, transport(life.url, life.adminKey, "connect"));
  let recovered = 0;
  let traceEvents = 0;
  await inParallel([...tasks.values()], async ({ taskId, traceId, state, attempts }) => {
    const { trace, events } = await traces.getTrace({ traceId, pageSize: 1000 });
    const kinds = events.filter((event) => event.taskId === taskId).map(({ kind }) => kind);
    const count = (wanted: TraceEventKind) => kinds.filter((kind) => kind === wanted).length;
    const terminal = kinds.filter((kind) => endKinds.has(kind));
    const story = kinds.map((kind) => nameOf(TraceEventKindSchema, kind)).join(" ");
    const isRight =
      terminal.length === 1 &&
      terminal[0] === ends.get(state) &&
      kinds.at(-1) === terminal[0] &&
      count(TraceEventKind.ACCEPTED) === 1 &&
      count(TraceEventKind.DISPATCHED) === attempts &&
      trace?.openTasks === 0;
    if (!isRight)
      problems.push(
        `${taskId}: ${nameOf(TaskStateSchema, state)} after ${attempts} attempts, and its trace is ${story}`,
      );
    if (count(TraceEventKind.RECOVERED) > 0) recovered++;
    traceEvents += events.length;
  });
  return { recovered, traceEvents };
}

/** The event log: one end of every task, which says its state, and of nothing else. */
export async function verifyEvents(life: Life, tasks: ReadonlyMap<string, Task>, problems: string[]): Promise<void> {
  const log = createClient(EventService, transport(life.url, life.adminKey, "connect"));
  const events = await pages(async (pageToken) => {
    const page = await log.listEvents({ pageSize: 250, pageToken, types: ["task.*"] });
    return { items: page.events, next: page.nextPageToken };
  });
  const told = new Map<string, string[]>();
  for (const { payload } of events) {
    const taskId = String(payload?.task_id);
    told.set(taskId, [...(told.get(taskId) ?? []), String(payload?.state)]);
  }
  for (const { taskId, state } of tasks.values()) {
    const states = told.get(taskId) ?? [];
    if (states.length !== 1 || states[0] !== nameOf(TaskStateSchema, state))
      problems.push(
        `${taskId}: ${nameOf(TaskStateSchema, state)}, and its end events say ${states.join(", ") || "nothing"}`,
      );
    told.delete(taskId);
  }
  for (const taskId of told.keys()) problems.push(`${taskId}: an end event of a task that is not there`);
}

/** All items of a paged list. */
export async function pages<T>(read: (pageToken: string) => Promise<{ items: T[]; next: string }>): Promise<T[]> {
  const all: T[] = [];
  let token = "";
  do {
    const { items, next } = await read(token);
    all.push(...items);
    token = next;
  } while (token !== "");
  return all;
}

/** Does the work for each item, a few at a time. */
export async function inParallel<T>(items: readonly T[], work: (item: T) => Promise<void>): Promise<void> {
  const rest = items.values();
  await Promise.all(
    Array.from({ length: atOnce }, async () => {
      for (const item of rest) await work(item);
    }),
  );
}
