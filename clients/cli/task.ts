/** `moltwire task`: pieces of work under way and done. `moltwire submit` begins one. */
import { toJson } from "@bufbuild/protobuf";
import { ValueSchema } from "@bufbuild/protobuf/wkt";
import { BusService } from "../../gen/moltwire/bus/v1/bus_service_pb.ts";
import { type Task, TaskStateSchema } from "../../gen/moltwire/bus/v1/task_pb.ts";
import { agentIdOf } from "./agent-name.ts";
import { addCall } from "./call.ts";
import { addNoun, type Noun, run, withServer } from "./command.ts";
import { choices, type Field, oneOf } from "./field.ts";
import { fixes } from "./fixes.ts";
import { addList } from "./list.ts";
import { reasonName, stateName } from "./names.ts";
import { paint, plain } from "./output.ts";
import { age, at, between, type Column, jsonText, renderFacts } from "./table.ts";
import { stateColour } from "./task-end.ts";
import { taskWatch } from "./task-watch.ts";

const { getTask, listTasks, cancelTask } = BusService.method;

const itsId = "its id: tsk_…";
const which: Field = { name: "taskId", as: "<task>", help: itsId };

/** Adds the commands. */
export const task: Noun = (program) => {
  const noun = addNoun(program, "task", "pieces of work, under way and done");
  addList(noun, {
    summary: "list tasks, newest first, without input and output",
    method: listTasks,
    filters: [
      {
        name: "state",
        as: "--state <state>",
        help: `only those in this state: ${choices(TaskStateSchema)}`,
        read: oneOf(TaskStateSchema),
      },
      {
        name: "agentId",
        as: "--agent <agent>",
        help: "only those it asked for or was given: its name or id",
        read: agentIdOf,
      },
      { name: "contractId", as: "--contract <id>", help: "only those of this contract" },
      { name: "traceId", as: "--trace <id>", help: "only those of this trace" },
    ],
    rows: ({ tasks }) => tasks,
    columns,
    things: "tasks",
    first: "moltwire submit CONTRACT INPUT",
  });
  addCall(noun, {
    name: "get",
    summary: "show a task with its input and output",
    method: getTask,
    fields: [which],
    show: (response) => describe(response.task!),
  });
  const watch = noun
    .command("watch")
    .description("print a task's steps and then its output, over lost connections. Ends with 1 if it does not complete")
    .argument("<task>", itsId)
    .option("--after <cursor>", "go on after this cursor (--json shows them)");
  withServer(watch, BusService.method.watchTask).action(run((id: string, options) => taskWatch(id, options)));
  addCall(noun, {
    name: "cancel",
    summary: "end a task; its agent may have done the work all the same",
    method: cancelTask,
    fields: [which, { name: "note", as: "--note <text>", help: "why, for people" }],
    show: (response) => describe(response.task!),
  });
};

const columns: readonly Column<Task>[] = [
  { title: "TASK", cell: ({ taskId }) => taskId },
  { title: "STATE", cell: ({ state }) => stateName(state), colour: stateColour },
  { title: "AGE", cell: ({ createTime }) => age(createTime), right: true },
  { title: "TOOK", cell: ({ createTime, endTime }) => between(createTime, endTime), right: true },
  { title: "CONTRACT", cell: ({ contractId, contractVersion }) => `${contractId} ${contractVersion}`, cut: true },
  { title: "WHY", cell: ({ error }) => (error ? reasonName(error.reason) : ""), cut: true },
];

function describe(task: Task): string[] {
  const took = between(task.createTime, task.endTime);
  const { error } = task;
  return renderFacts(`${paint("bold", task.taskId)}  ${paint(stateColour(task), stateName(task.state))}`, [
    ["contract", `${task.contractId} ${task.contractVersion}`],
    ["why", error && `${reasonName(error.reason)}: ${error.message}`],
    ["fix", error && fixes[reasonName(error.reason)]],
    ["asked by", task.callerAgentId || "an administrator"],
    ["done by", task.targetAgentId],
    ["accepted", at(task.createTime)],
    ["took", took],
    ["deadline", task.endTime ? "" : at(task.deadlineTime)],
    ["attempts", task.attempts > 1 ? String(task.attempts) : ""],
    ["labels", Object.entries(task.labels).map(([name, text]) => `${plain(name)}=${plain(text)}`)],
    ["trace", task.traceId],
    ["input", task.input && jsonText(toJson(ValueSchema, task.input))],
    ["output", task.output && jsonText(toJson(ValueSchema, task.output))],
  ]);
}
