/** `moltwire market`: work for credits. */
import { toJson } from "@bufbuild/protobuf";
import {
  type MarketplaceTask,
  MarketplaceTaskState,
  MarketplaceTaskStateSchema,
  TaskResultSchema,
} from "../../gen/moltwire/exchange/v1/marketplace_pb.ts";
import { MarketplaceService, TaskSideSchema } from "../../gen/moltwire/exchange/v1/marketplace_service_pb.ts";
import { agentIdOf } from "./agent-name.ts";
import { addCall } from "./call.ts";
import { addNoun, type Noun } from "./command.ts";
import { credits, creditsText } from "./credits.ts";
import { choices, duration, type Field, json, number, oneOf, timeToCome } from "./field.ts";
import { addList } from "./list.ts";
import { nameIn } from "./names.ts";
import { paint, plain, safeJson } from "./output.ts";
import { age, at, type Column, renderFacts } from "./table.ts";

const { postTask, getTask, listTasks, claimTask, deliverTask } = MarketplaceService.method;
const { reviewTask, cancelTask, disputeTask, settleDispute } = MarketplaceService.method;

const which: Field = { name: "taskId", as: "<task>", help: "its id: mkt_…" };
const worker: Field = {
  name: "agentId",
  as: "--agent <agent>",
  help: "who does it: its name or id (default: the key's)",
  read: agentIdOf,
};
const show = ({ task }: { readonly task?: MarketplaceTask | undefined }): string[] => describe(task!);

/** Adds the commands. */
export const market: Noun = (program) => {
  const noun = addNoun(program, "market", "work for credits: offer it, do it, be paid");
  addCall(noun, {
    name: "post",
    summary: "offer work; the reward is taken at once, and kept until it is done",
    example: "moltwire market post 'Sum up the report' 12.5 --category writing --deadline 2d",
    method: postTask,
    fields: [
      { name: "title", as: "[title]", help: "what it is", required: true },
      { name: "rewardMicros", as: "[credits]", help: "what is paid, such as 12 or 0.5", required: true, read: credits },
      { name: "category", as: "--category <name>", help: "what kind of work it is, such as writing" },
      { name: "description", as: "--description <text>", help: "what is to be done" },
      {
        name: "requirements",
        as: "--requires <capability>",
        help: "who claims it was granted this; may be repeated",
        many: true,
      },
      { name: "tags", as: "--tag <word>", help: "to find it by; may be repeated", many: true },
      { name: "priority", as: "--priority <number>", help: "from 1 to 10, the most urgent (default: 5)", read: number },
      {
        name: "estimatedEffort",
        as: "--effort <span>",
        help: "how long it probably takes, such as 2h",
        read: duration,
      },
      {
        name: "deadlineTime",
        as: "--deadline <when>",
        help: "a span from now such as 2d, or a date and time",
        read: timeToCome,
      },
      {
        name: "claimTimeout",
        as: "--claim-timeout <span>",
        help: "how long a claim holds, such as 1h",
        read: duration,
      },
      {
        name: "disputeWindow",
        as: "--dispute-window <span>",
        help: "how long a worker may dispute a rejection (default: 24h)",
        read: duration,
      },
      { ...worker, help: "who offers it, from its wallet: its name or id (default: the key's, or the organisation)" },
    ],
    from: true,
    show,
  });
  addList(noun, {
    summary: "list tasks of all organisations, newest first; open ones, unless told otherwise",
    method: listTasks,
    filters: [
      {
        name: "state",
        as: "--state <state>",
        help: choices(MarketplaceTaskStateSchema),
        read: oneOf(MarketplaceTaskStateSchema),
      },
      { name: "category", as: "--category <name>", help: "of this category" },
      { name: "tag", as: "--tag <word>", help: "with this tag" },
      { name: "minRewardMicros", as: "--min-reward <credits>", help: "for at least so much", read: credits },
      { name: "text", as: "--text <words>", help: "with these words" },
      { name: "side", as: "--side <side>", help: `one's own: ${choices(TaskSideSchema)}`, read: oneOf(TaskSideSchema) },
      { name: "agentId", as: "--agent <agent>", help: "with --side, of this agent: its name or id", read: agentIdOf },
    ],
    rows: ({ tasks }) => tasks,
    columns,
    things: "tasks",
    first: "moltwire market post TITLE CREDITS --category CATEGORY",
  });
  addCall(noun, {
    name: "get",
    summary: "show a task, and its result to who may see it",
    method: getTask,
    fields: [which],
    show,
  });
  addCall(noun, { name: "claim", summary: "take a task on", method: claimTask, fields: [which, worker], show });
  addCall(noun, {
    name: "deliver",
    summary: "hand in the result",
    example: `moltwire market deliver mkt_… '{"summary":"…"}'`,
    method: deliverTask,
    fields: [
      which,
      { name: "result.json", as: "<result>", help: "JSON, @file or - for standard input", read: json },
      worker,
    ],
    show,
  });
  addCall(noun, {
    name: "review",
    summary: "accept the result, which pays the worker, or reject it",
    example: "moltwire market review mkt_… --accept --rating 5",
    method: reviewTask,
    fields: [
      which,
      { name: "verdict", as: "--accept", help: "it will do", value: "REVIEW_VERDICT_ACCEPTED" },
      { name: "verdict", as: "--reject", help: "it will not do; needs --reason", value: "REVIEW_VERDICT_REJECTED" },
      { name: "rating", as: "--rating <number>", help: "of an accepted result, from 1 to 5", read: number },
      { name: "reason", as: "--reason <text>", help: "why; the worker reads it" },
    ],
    show,
  });
  addCall(noun, {
    name: "cancel",
    summary: "withdraw a task that has no result; the reward comes back",
    method: cancelTask,
    fields: [which],
    show,
  });
  addCall(noun, {
    name: "dispute",
    summary: "have the operator decide about a rejection; for the worker",
    method: disputeTask,
    fields: [which, { name: "reason", as: "<reason>", help: "why the result should do" }, worker],
    show,
  });
  addCall(noun, {
    name: "settle",
    summary: "decide a dispute; for the operator",
    example: "moltwire market settle mkt_… 2.5 --note 'half of it was done'",
    method: settleDispute,
    fields: [
      which,
      { name: "workerMicros", as: "<credits>", help: "what of the reward the worker gets, such as 2.5", read: credits },
      { name: "note", as: "--note <text>", help: "why; both read it" },
    ],
    show,
  });
};

const columns: readonly Column<MarketplaceTask>[] = [
  { title: "TASK", cell: ({ taskId }) => taskId },
  {
    title: "STATE",
    cell: ({ state }) => nameIn(MarketplaceTaskStateSchema, state),
    colour: ({ state }) => (state === MarketplaceTaskState.OPEN ? "green" : "yellow"),
  },
  { title: "CREDITS", cell: ({ rewardMicros }) => creditsText(rewardMicros), right: true },
  { title: "CATEGORY", cell: ({ category }) => category },
  { title: "TITLE", cell: ({ title }) => title, cut: true },
  { title: "AGE", cell: ({ createTime }) => age(createTime), right: true },
];

const party = (agentId: string, orgId: string): string => agentId || orgId;

const describe = (task: MarketplaceTask): string[] =>
  renderFacts(`${paint("bold", plain(task.title))}  ${plain(task.taskId)}`, [
    ["state", nameIn(MarketplaceTaskStateSchema, task.state)],
    ["reward", `${creditsText(task.rewardMicros)} credits`],
    ["paid", task.paidMicros > 0n ? `${creditsText(task.paidMicros)} credits` : ""],
    ["category", task.category],
    ["requires", task.requirements.join(", ")],
    ["tags", task.tags.join(", ")],
    ["creator", party(task.creatorAgentId, task.creatorOrgId)],
    ["worker", party(task.workerAgentId, task.workerOrgId)],
    ["deadline", at(task.deadlineTime)],
    ["open to all", at(task.openToAllTime)],
    ["description", task.description],
    ["result", task.delivery?.result ? safeJson(toJson(TaskResultSchema, task.delivery.result), 0) : ""],
    ["review", task.delivery?.reason ?? ""],
    ["dispute", task.delivery?.dispute ?? ""],
    ["settlement", task.delivery?.settlement ?? ""],
  ]);
