/** How a task ended, in a few lines for standard error. */
import { type Task, TaskState } from "../../gen/moltwire/bus/v1/task_pb.ts";
import { fixes } from "./fixes.ts";
import { reasonName, stateName } from "./names.ts";
import { type Format, paintError, plain } from "./output.ts";
import { between } from "./table.ts";

/** The lines: the state, why it failed and what helps, and its ids. `waited` is false when nobody waited for its end. */
export function renderEnd(task: Task, waited = true): string[] {
  const good = task.state === TaskState.COMPLETED || !waited;
  const mark = paintError(good ? "green" : "red", `${good ? "✔" : "✘"} ${stateName(task.state)}`);
  const took = between(task.createTime, task.endTime);
  const reason = task.error ? reasonName(task.error.reason) : "";
  const fix = fixes[reason];
  return [
    `${mark}  ${plain(task.contractId)} ${plain(task.contractVersion)}${took && `  in ${took}`}`,
    ...(task.error ? [`  ${reason}: ${plain(task.error.message)}`] : []),
    ...(fix ? [`  fix    ${fix}`] : []),
    `  task   ${task.taskId}`,
    `  trace  ${task.traceId}`,
  ];
}

const ends = new Set<TaskState>([TaskState.COMPLETED, TaskState.FAILED, TaskState.CANCELED, TaskState.REJECTED]);

/** Whether a task stays in this state. */
export const isEnd = (state: TaskState): boolean => ends.has(state);

/** Green for what went well, red for what did not, yellow for what goes on. */
export function stateColour({ state }: Task): Format {
  if (state === TaskState.COMPLETED) return "green";
  return isEnd(state) ? "red" : "yellow";
}
