/** What the tests of the bus say often: a contract with its agents, a submit, the steps of a task. */
import { type DescMessage, fromJson, type JsonValue, type MessageInitShape, toJson } from "@bufbuild/protobuf";
import { durationFromMs, type Value, ValueSchema } from "@bufbuild/protobuf/wkt";
import { ErrorReason } from "../../gen/moltwire/api/v1/error_reason_pb.ts";
import type { RegisterAgentRequestSchema } from "../../gen/moltwire/bus/v1/agent_service_pb.ts";
import type { SubmitTaskRequestSchema } from "../../gen/moltwire/bus/v1/bus_service_pb.ts";
import type { RegisterContractRequestSchema } from "../../gen/moltwire/bus/v1/contract_service_pb.ts";
import { type Task, TaskState } from "../../gen/moltwire/bus/v1/task_pb.ts";
import { type TraceEvent, TraceEventKind } from "../../gen/moltwire/bus/v1/trace_pb.ts";
import { type Clients, eventually, type Org, type OrgAgent, unique } from "../harness.ts";
import type { HttpAgent } from "./http-agent.ts";

export const value = (json: JsonValue): Value => fromJson(ValueSchema, json);
export const json = (of: Value | undefined): JsonValue | undefined => of && toJson(ValueSchema, of);

/** The name of an enum's number. */
export const nameOf = (of: Readonly<Record<string, string | number>>, number: number | undefined): string =>
  Object.keys(of).find((name) => of[name] === number) ?? String(number);

export const stateOf = (task: Task | undefined): string => nameOf(TaskState, task?.state);
export const reasonOf = (task: Task | undefined): string => nameOf(ErrorReason, task?.error?.reason);
export const kindsOf = (events: readonly TraceEvent[]): string[] =>
  events.map(({ kind }) => nameOf(TraceEventKind, kind));

/** Some of a message's fields. */
type Fields<Desc extends DescMessage> = Partial<Extract<MessageInitShape<Desc>, { $typeName?: never }>>;

type ContractInit = Fields<typeof RegisterContractRequestSchema> & {
  readonly timeoutMs?: number;
  readonly retries?: number;
  /** The bound of every wait between attempts. Default 1, so that nothing waits. */
  readonly backoffMs?: number;
};

/** Registers version 1.0.0 of a contract of its own id, or what `init` says; gives the id. */
export async function contract(org: Org, init: ContractInit = {}): Promise<string> {
  const { timeoutMs = 10_000, retries = 0, backoffMs = 1, contractId = unique("contract"), ...rest } = init;
  await org.admin.contracts.registerContract({
    contractId,
    version: "1.0.0",
    timeout: durationFromMs(timeoutMs),
    retryPolicy: { maxRetries: retries, backoff: durationFromMs(backoffMs), maxBackoff: durationFromMs(backoffMs) },
    ...rest,
  });
  return contractId;
}

export const httpEndpoint = (url: string) => ({ kind: { case: "http", value: { url } } }) as const;
export const echoEndpoint = { kind: { case: "echo", value: {} } } as const;

/** Registers an agent of the organisation that does the capability at an HTTP server. */
export const worker = (
  org: Org,
  capability: string,
  at: HttpAgent | string,
  init: Fields<typeof RegisterAgentRequestSchema> = {},
): Promise<OrgAgent> =>
  org.agent({
    name: unique("worker"),
    capabilities: [capability],
    endpoint: httpEndpoint(typeof at === "string" ? at : at.url),
    ...init,
  });

type Wish = Omit<Fields<typeof SubmitTaskRequestSchema>, "input"> & { readonly input?: JsonValue };

/** Submits under a contract; the input is JSON. */
export async function submit(
  by: Clients,
  contractId: string,
  { input = {}, ...wish }: Wish = {},
  options?: Parameters<Clients["bus"]["submitTask"]>[1],
): Promise<Task> {
  const { task } = await by.bus.submitTask({ contractId, input: value(input), ...wish }, options);
  return task!;
}

/** All events of a trace, page by page. */
export async function eventsOf(by: Clients, traceId: string, orgId = ""): Promise<TraceEvent[]> {
  const events: TraceEvent[] = [];
  for (let pageToken = ""; ; ) {
    const page = await by.traces.getTrace({ orgId, traceId, pageToken });
    events.push(...page.events);
    pageToken = page.nextPageToken;
    if (!pageToken) return events;
  }
}

/** The task once it is terminal: the last message of WatchTask. */
export async function whenEnded(by: Clients, taskId: string, orgId = ""): Promise<Task> {
  let last: Task | undefined;
  for await (const { event } of by.bus.watchTask({ orgId, taskId })) if (event.case === "task") last = event.value;
  return last!;
}

/**
 * The task once it is terminal, while a fake clock goes on second by second: a wait of the task's that began only after its time was passed, although what
 * goes before it could be read already, ends too.
 */
export const endedAsTimePasses = (clock: { advance(ms: number): void }, by: Clients, taskId: string): Promise<Task> =>
  eventually(async () => {
    const { task } = await by.bus.getTask({ taskId });
    if (task!.endTime) return task!;
    clock.advance(1_000);
    return undefined;
  });

/** The kinds by which a task ends. */
export const terminalKinds: readonly string[] = ["COMPLETED", "FAILED", "CANCELED", "REJECTED"];
