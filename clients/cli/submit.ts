/** `moltwire submit`: one task, from input to output. */
import { randomUUID } from "node:crypto";
import { toJson } from "@bufbuild/protobuf";
import { timestampMs, ValueSchema } from "@bufbuild/protobuf/wkt";
import type { CallOptions } from "@connectrpc/connect";
import {
  BusService,
  type SubmitTaskResponse,
  SubmitTaskResponseSchema,
} from "../../gen/moltwire/bus/v1/bus_service_pb.ts";
import { type Task, TaskState } from "../../gen/moltwire/bus/v1/task_pb.ts";
import { type TraceEvent, TraceEventKind } from "../../gen/moltwire/bus/v1/trace_pb.ts";
import { connectClients } from "./connect.ts";
import { exitCodes } from "./exit-codes.ts";
import { fixes } from "./fixes.ts";
import { readInput } from "./input.ts";
import { kindName, reasonName, stateName } from "./names.ts";
import { note, paint, paintError, plain, print, printJson, safeJson, span } from "./output.ts";
import { explain, type Problem, report } from "./problem.ts";
import { type ConnectionOptions, readSettings } from "./settings.ts";

/** The options of `submit`. */
export type SubmitOptions = ConnectionOptions & {
  readonly version?: string;
  readonly target?: string;
  /** The agent to act for; for administrators. */
  readonly as?: string;
  readonly dryRun?: boolean;
  /** False with --no-wait. */
  readonly wait?: boolean;
  readonly idempotencyKey?: string;
  /** Seconds. */
  readonly timeout?: number;
};

/** How much longer than its deadline a call is waited for. */
const graceMs = 3_000;

/**
 * Submits a task and waits for its end. Standard output gets the task's output and nothing else; standard error tells about it.
 * Every call has an idempotency key, so that after a lost connection the same command can join the task. Returns the exit code.
 */
export async function submit(
  contractId: string,
  argument: string | undefined,
  options: SubmitOptions,
): Promise<number> {
  const settings = readSettings(options, process.env);
  const input = await readInput(argument, process.stdin);
  const idempotencyKey = options.idempotencyKey ?? `cli-${randomUUID()}`;
  const request = {
    orgId: options.org ?? "",
    agentId: options.as ?? "",
    contractId,
    contractVersion: options.version ?? "",
    input,
    targetAgentId: options.target ?? "",
    returnImmediately: options.wait === false,
    validateOnly: options.dryRun === true,
  };
  const call = callOptions(options, request.validateOnly ? undefined : idempotencyKey);
  const interrupted = () => {
    note(
      `\nThe task goes on if it was accepted. To join it, repeat the command with --idempotency-key ${idempotencyKey}`,
    );
    process.exit(exitCodes.interrupted);
  };
  process.once("SIGINT", interrupted);
  try {
    return conclude(await connectClients(settings)(BusService).submitTask(request, call), options);
  } catch (error) {
    const problem = explain(error, settings.url);
    return report(request.validateOnly ? problem : joinable(problem, idempotencyKey), options.json);
  } finally {
    process.off("SIGINT", interrupted);
  }
}

/**
 * The call's deadline goes to the server, which fails the task at it and answers so; this side waits a little longer, to hear that.
 * Connect's own `timeoutMs` would hang up at the very moment.
 */
function callOptions({ timeout }: SubmitOptions, idempotencyKey: string | undefined): CallOptions {
  const timeoutMs = timeout === undefined ? undefined : Math.ceil(timeout * 1_000);
  return {
    headers: {
      ...(idempotencyKey !== undefined && { "idempotency-key": idempotencyKey }),
      ...(timeoutMs !== undefined && { "connect-timeout-ms": String(timeoutMs) }),
    },
    ...(timeoutMs !== undefined && { signal: AbortSignal.timeout(timeoutMs + graceMs) }),
  };
}

/** The problem, with how to join the task if there may be one. */
const joinable = (problem: Problem, idempotencyKey: string): Problem =>
  problem.maybeAccepted
    ? { ...problem, fix: `the task goes on if it was accepted; to join it, add --idempotency-key ${idempotencyKey}` }
    : problem;

function conclude(response: SubmitTaskResponse, options: SubmitOptions): number {
  const { task, decisionPath } = response;
  if (options.json) printJson(toJson(SubmitTaskResponseSchema, response));
  else if (task) showTask(task, options.wait !== false);
  else showPath(decisionPath);
  if (!task) return decisionPath.some(({ kind }) => kind === TraceEventKind.REFUSED) ? exitCodes.refused : exitCodes.ok;
  return task.state === TaskState.COMPLETED || options.wait === false ? exitCodes.ok : exitCodes.failed;
}

function showTask(task: Task, waited: boolean): void {
  const good = task.state === TaskState.COMPLETED || !waited;
  const mark = good
    ? paintError("green", `✔ ${stateName(task.state)}`)
    : paintError("red", `✘ ${stateName(task.state)}`);
  const took =
    task.createTime && task.endTime ? `  in ${span(timestampMs(task.endTime) - timestampMs(task.createTime))}` : "";
  note(`${mark}  ${plain(task.contractId)} ${plain(task.contractVersion)}${took}`);
  if (task.error) {
    const reason = reasonName(task.error.reason);
    note(`  ${reason}: ${plain(task.error.message)}`);
    if (fixes[reason]) note(`  fix    ${fixes[reason]}`);
  }
  note(`  task   ${task.taskId}`);
  note(`  trace  ${task.traceId}`);
  if (task.output) print(safeJson(toJson(ValueSchema, task.output)));
  else if (!waited) print(task.taskId);
}

function showPath(path: readonly TraceEvent[]): void {
  for (const event of path) print(`${kindName(event.kind).padEnd(14)}  ${plain(event.message)}`);
  print(paint("dim", "Nothing was changed: this was a dry run."));
}
