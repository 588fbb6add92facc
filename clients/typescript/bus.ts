/** Tasks: having agents do some, and doing some. */
import type { JsonValue } from "@bufbuild/protobuf";
import type { CallOptions } from "@connectrpc/connect";
import {
  BusService,
  type SubmitTaskRequestSchema,
  type WatchTaskResponse,
} from "../../gen/moltwire/bus/v1/bus_service_pb.ts";
import { type Task, TaskState } from "../../gen/moltwire/bus/v1/task_pb.ts";
import { type Area, areaOf } from "./area.ts";
import { type Connection, clientOf } from "./connection.ts";
import { type Fields, jsonOf, jsonValue } from "./payload.ts";
import { type ServeOptions, serveTasks } from "./serve.ts";
import { taskFailure } from "./typed-errors.ts";
import type { Handler } from "./work.ts";

/** The fields of SubmitTaskRequest. */
export type SubmitOptions = Omit<
  Fields<typeof SubmitTaskRequestSchema>,
  "contractId" | "input" | "returnImmediately" | "validateOnly"
>;

type Helpers = {
  /**
   * Has a task done, and gives its output. Rejects with the error of the call, or with that of the task (its id is `about.task_id`), each of the class of its reason. A task
   * that somebody has to approve first is awaited until it has ended.
   */
  call(contractId: string, input: JsonValue, options?: SubmitOptions, call?: CallOptions): Promise<JsonValue>;
  /** Has a task done, and gives it as soon as it is accepted. */
  submit(contractId: string, input: JsonValue, options?: SubmitOptions, call?: CallOptions): Promise<Task>;
  /** What happens to a task, from its beginning to its end, over lost connections too. The loop ends with the task. */
  watch(taskId: string, call?: CallOptions): AsyncGenerator<WatchTaskResponse, void>;
  /**
   * Does the tasks of the key's agent, whose endpoint must be `pull`, until `signal` aborts or the process gets SIGTERM: then nothing new is taken, what is in
   * hand is finished, and it resolves. Rejects when the server refuses for good, such as for a revoked key. Everything else is tried again.
   */
  serve(handler: Handler, options?: ServeOptions): Promise<void>;
};

export type BusArea = Area<typeof BusService, Helpers>;

/**
 * The bus.
 *
 * @example
 * ```ts
 * import { connect, ContractViolation } from "@moltwire/client";
 *
 * const { bus } = connect({ url, apiKey });
 * console.log(await bus.call("shout", { text: "hello" })); // { text: 'hello' }
 * try {
 *   await bus.call("shout", {});
 * } catch (error) {
 *   if (!(error instanceof ContractViolation)) throw error;
 *   console.log(error.field, error.keyword); // input.text required
 * }
 * ```
 */
export function busOf(connection: Connection): BusArea {
  const rpc = clientOf(connection, BusService);
  const ended = async (task: Task, call: CallOptions = {}): Promise<Task> => {
    let last = task;
    for await (const { event } of rpc.watchTask({ orgId: task.orgId, taskId: task.taskId }, call))
      if (event.case === "task") last = event.value;
    return last;
  };
  return areaOf<typeof BusService, Helpers>(rpc, {
    async call(contractId, input, options = {}, call) {
      const { task } = await rpc.submitTask({ ...options, contractId, input: jsonValue(input) }, call);
      const last = task!.endTime ? task! : await ended(task!, call);
      if (last.state !== TaskState.COMPLETED) throw taskFailure(last.taskId, last.error);
      return jsonOf(last.output) ?? null;
    },
    async submit(contractId, input, options = {}, call) {
      const request = { ...options, contractId, input: jsonValue(input), returnImmediately: true };
      return (await rpc.submitTask(request, call)).task!;
    },
    async *watch(taskId, call) {
      yield* rpc.watchTask({ taskId }, call);
    },
    serve: (handler, options = {}) => serveTasks(rpc, handler, options),
  });
}
