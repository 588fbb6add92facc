/** `moltwire submit`: one task, from input to output. */
import { randomUUID } from "node:crypto";
import { toJson } from "@bufbuild/protobuf";
import { ValueSchema } from "@bufbuild/protobuf/wkt";
import type { CallOptions } from "@connectrpc/connect";
import {
  BusService,
  type SubmitTaskResponse,
  SubmitTaskResponseSchema,
} from "../../gen/moltwire/bus/v1/bus_service_pb.ts";
import { type Task, TaskState } from "../../gen/moltwire/bus/v1/task_pb.ts";
import { type TraceEvent, TraceEventKind } from "../../gen/moltwire/bus/v1/trace_pb.ts";
import { agentIdOf } from "./agent-name.ts";
import { collect, type Noun, run, seconds, withServer } from "./command.ts";
import { connectClients } from "./connect.ts";
import { exitCodes, exitCodesHelp } from "./exit-codes.ts";
import { readInput } from "./input.ts";
import { kindName } from "./names.ts";
import { note, paint, plain, print, printJson, safeJson } from "./output.ts";
import { explain, type Problem, report } from "./problem.ts";
import { type ConnectionOptions, readSettings, UsageError } from "./settings.ts";
import { renderEnd } from "./task-end.ts";

/** Adds the command. */
export const submit: Noun = (program) => {
  const command = program
    .command("submit")
    .description("have a task done and print its output")
    .argument("<contract>", "the contract's id")
    .argument("[input]", "JSON, @file, or - for standard input (default: null)")
    .option("--version <range>", "an exact version, or a range such as ^1.2 (default: the latest)")
    .option("--target <agent>", "only this agent may do it: its name or id")
    .option("--as <agent>", "the agent to act for, by name or id; for administrators")
    .option("--label <name=text>", "write this on the task; may be repeated", collect)
    .option("--dry-run", "show how it would be checked and routed; change nothing")
    .option("--no-wait", "end as soon as the task is accepted; print its id")
    .option("--idempotency-key <text>", "repeat safely: a second call with it joins the first one's task")
    .option("--timeout <seconds>", "give up, and let the task fail, after so long", seconds);
  withServer(command, BusService.method.submitTask)
    .addHelpText(
      "after",
      `\nExample:\n  moltwire submit research/search '{"terms": []}' > found.json\n${exitCodesHelp}`,
    )
    .action(run((contract: string, input: string | undefined, options) => submitTask(contract, input, options)));
};

/** The options of `submit`. */
type SubmitOptions = ConnectionOptions & {
  readonly version?: string;
  readonly target?: string;
  /** The agent to act for; for administrators. */
  readonly as?: string;
  readonly label?: readonly string[];
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
async function submitTask(contractId: string, argument: string | undefined, options: SubmitOptions): Promise<number> {
  const settings = readSettings(options, process.env);
  const input = await readInput(argument, process.stdin);
  const idempotencyKey = options.idempotencyKey ?? `cli-${randomUUID()}`;
  const labels = readLabels(options.label ?? []);
  const clients = connectClients(settings);
  const orgId = options.org ?? "";
  const request = {
    orgId,
    agentId: await agentIdOf(options.as, { clients, orgId }),
    contractId,
    contractVersion: options.version ?? "",
    input,
    targetAgentId: await agentIdOf(options.target, { clients, orgId }),
    labels,
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
    return conclude(await clients(BusService).submitTask(request, call), options);
  } catch (error) {
    const problem = explain(error, settings.url);
    return report(request.validateOnly ? problem : joinable(problem, idempotencyKey), options.json);
  } finally {
    process.off("SIGINT", interrupted);
  }
}

function readLabels(texts: readonly string[]): Record<string, string> {
  const pairs = texts.map((text) => {
    const [, name, value] = /^([^=]+)=(.*)$/s.exec(text) ?? [];
    if (name === undefined) throw new UsageError(`--label ${text} is no label`, "write --label name=text");
    return [name, value!] as const;
  });
  return Object.fromEntries(pairs);
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

/** The output on standard output, what there is to say of it on standard error. */
function showTask(task: Task, waited: boolean): void {
  for (const line of renderEnd(task, waited)) note(line);
  if (task.output) print(safeJson(toJson(ValueSchema, task.output)));
  else if (!waited) print(task.taskId);
}

function showPath(path: readonly TraceEvent[]): void {
  for (const event of path) print(`${kindName(event.kind).padEnd(14)}  ${plain(event.message)}`);
  print(paint("dim", "Nothing was changed: this was a dry run."));
}
