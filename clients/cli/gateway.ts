/** `moltwire gateway`: work of other organisations, under their grants. */
import { toJson } from "@bufbuild/protobuf";
import { ValueSchema } from "@bufbuild/protobuf/wkt";
import { PolicyVerdictSchema } from "../../gen/moltwire/bus/v1/policy_pb.ts";
import { TaskState, TaskStateSchema } from "../../gen/moltwire/bus/v1/task_pb.ts";
import type { GatewayContract, GatewayStatus } from "../../gen/moltwire/federation/v1/gateway_pb.ts";
import { GatewayService } from "../../gen/moltwire/federation/v1/gateway_service_pb.ts";
import { agentIdOf } from "./agent-name.ts";
import { addCall } from "./call.ts";
import { addNoun, type Noun } from "./command.ts";
import { exitCodes } from "./exit-codes.ts";
import { json } from "./field.ts";
import { addList } from "./list.ts";
import { kindName, nameIn, reasonName } from "./names.ts";
import { note, paint, plain, safeJson } from "./output.ts";
import { at, type Column, renderFacts } from "./table.ts";
import { isEnd, renderEnd } from "./task-end.ts";

const { submitTask, listContracts, getStatus } = GatewayService.method;

/** Adds the commands. */
export const gateway: Noun = (program) => {
  const noun = addNoun(program, "gateway", "work of other organisations, under their grants");
  addCall(noun, {
    name: "submit",
    summary: "have a task done by another organisation; standard output gets its output",
    example: "moltwire gateway submit org_… research/search '{\"terms\": []}'",
    method: submitTask,
    fields: [
      { name: "targetOrgId", as: "[organisation]", help: "the organisation that does it, by its id", required: true },
      { name: "contractId", as: "[contract]", help: "its contract", required: true },
      { name: "input", as: "[input]", help: "JSON, @file, or - for standard input (default: null)", read: json },
      { name: "contractVersion", as: "--version <range>", help: "an exact version, or a range (default: the latest)" },
      { name: "grantId", as: "--grant <grant>", help: "under this grant (default: the best that there is)" },
      { name: "agentId", as: "--as <agent>", help: "the agent to act for; for administrators", read: agentIdOf },
      { name: "targetAgentId", as: "--target <agent>", help: "only this agent of the other may do it, by its id" },
      { name: "returnImmediately", as: "--detach", help: "end as soon as the task is accepted" },
      { name: "validateOnly", as: "--dry-run", help: "show how it would be decided; change nothing" },
    ],
    from: true,
    show({ task, decisionPath }) {
      if (!task) return decisionPath.map(({ kind, message }) => `${kindName(kind).padEnd(14)}  ${plain(message)}`);
      for (const line of renderEnd(task, isEnd(task.state))) note(line);
      return [task.output ? safeJson(toJson(ValueSchema, task.output)) : task.taskId];
    },
    exitCode: ({ task }) =>
      task && isEnd(task.state) && task.state !== TaskState.COMPLETED ? exitCodes.failed : exitCodes.ok,
  });
  addList(noun, {
    summary: "list the contracts that other organisations' grants open",
    method: listContracts,
    filters: [
      { name: "targetOrgId", as: "--of <organisation>", help: "only those of this organisation, by its id" },
      { name: "grantId", as: "--grant <grant>", help: "only what this grant opens" },
      { name: "capability", as: "--capability <name>", help: "only those that ask for this capability" },
    ],
    rows: ({ contracts }) => contracts,
    columns,
    things: "contracts",
    first: "moltwire grant accept GRANT",
  });
  addCall(noun, {
    name: "status",
    summary: "show how the requests of a trace stand",
    method: getStatus,
    fields: [{ name: "traceId", as: "<trace>", help: "its id: 32 hexadecimal digits" }],
    show: ({ statuses }) => statuses.flatMap(describe),
  });
};

const columns: readonly Column<GatewayContract>[] = [
  { title: "ORGANISATION", cell: ({ orgId }) => orgId },
  { title: "NAME", cell: ({ orgName }) => orgName, cut: true },
  { title: "CONTRACT", cell: ({ contractId }) => contractId },
  { title: "VERSION", cell: ({ version }) => version },
  { title: "GRANT", cell: ({ grantId }) => grantId },
  { title: "DESCRIPTION", cell: ({ description }) => description, cut: true },
];

const verdict = (number: number): string => (number === 0 ? "not asked" : nameIn(PolicyVerdictSchema, number));

const describe = (row: GatewayStatus): string[] =>
  renderFacts(`${paint("bold", row.taskId || "refused")}  ${row.state ? nameIn(TaskStateSchema, row.state) : ""}`, [
    ["reason", row.reason ? reasonName(row.reason) : ""],
    ["from", row.callerOrgId],
    ["to", row.targetOrgId],
    ["contract", `${plain(row.contractId)} ${plain(row.contractVersion)}`],
    ["grant", `${row.grantId}, revision ${row.grantRevision}`],
    ["asking side", verdict(row.callerVerdict)],
    ["doing side", verdict(row.targetVerdict)],
    ["tokens", String((row.usage?.inputTokens ?? 0n) + (row.usage?.outputTokens ?? 0n))],
    ["cost", String(row.costMicros)],
    ["asked", at(row.createTime)],
    ["ended", at(row.endTime)],
  ]);
