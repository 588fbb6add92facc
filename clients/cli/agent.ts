/** `moltwire agent`: the parties on the bus. */
import type { JsonObject } from "@bufbuild/protobuf";
import { type Agent, type Endpoint, TrustTierSchema } from "../../gen/moltwire/bus/v1/agent_pb.ts";
import { AgentService } from "../../gen/moltwire/bus/v1/agent_service_pb.ts";
import { agentIdOf } from "./agent-name.ts";
import { addCall } from "./call.ts";
import { addNoun, type Noun } from "./command.ts";
import { choices, type Field, json, number, oneOf, type Reading } from "./field.ts";
import { addList } from "./list.ts";
import { nameIn } from "./names.ts";
import { paint, plain } from "./output.ts";
import { UsageError } from "./settings.ts";
import { age, at, type Column, jsonText, renderFacts } from "./table.ts";

const { registerAgent, getAgent, listAgents, updateAgent, deleteAgent } = AgentService.method;

const which: Field = { name: "agentId", as: "<agent>", help: "its name or id", read: agentIdOf };
const properties: readonly Field[] = [
  { name: "description", as: "--description <text>", help: "what it is for" },
  {
    name: "trustTier",
    as: "--trust <tier>",
    help: `how far it is trusted: ${choices(TrustTierSchema)}`,
    read: oneOf(TrustTierSchema),
  },
  { name: "capabilities", as: "--capability <name>", help: "what it may be asked for; may be repeated", many: true },
  { name: "allowedTools", as: "--tool <name>", help: "a tool that it may use; may be repeated", many: true },
  {
    name: "endpoint",
    as: "--endpoint <where>",
    help: "where it takes tasks: http=URL; pull for one that asks for them; echo for one in the server that answers its input",
    read: endpoint,
  },
  { name: "metadata", as: "--metadata <json>", help: "an object of your own: JSON, @file or -", read: json },
];

/** Adds the commands. */
export const agent: Noun = (program) => {
  const noun = addNoun(program, "agent", "the parties on the bus: who asks for work, and who does it");
  addCall(noun, {
    name: "register",
    summary: "add an agent; `moltwire key create --agent` makes its key",
    example: "moltwire agent register shouter --capability shout --endpoint http=https://example.com/task",
    method: registerAgent,
    fields: [{ name: "name", as: "[name]", help: "unique in the organisation", required: true }, ...properties],
    from: true,
    show: (response) => describe(response.agent!),
  });
  addList(noun, {
    summary: "list agents, oldest first",
    method: listAgents,
    filters: [
      { name: "capability", as: "--capability <name>", help: "only those with this capability" },
      { name: "name", as: "--name <name>", help: "only the one of this name" },
    ],
    rows: ({ agents }) => agents,
    columns,
    things: "agents",
    first: "moltwire agent register NAME --capability CAPABILITY --endpoint http=URL",
  });
  addCall(noun, {
    name: "get",
    summary: "show an agent",
    method: getAgent,
    fields: [which],
    show: (response) => describe(response.agent!),
  });
  addCall(noun, {
    name: "update",
    summary: "change an agent; lists are replaced whole",
    example: "moltwire agent update shouter --capability shout --capability whisper --clear description",
    method: updateAgent,
    fields: [
      { ...which, as: "[agent]", required: true },
      {
        name: "ifRevision",
        as: "--if-revision <number>",
        help: "only if nobody has changed it since it was at this revision",
        read: number,
      },
    ],
    change: [
      { name: "name", as: "--name <name>", help: "its new name" },
      ...properties,
      { name: "disabled", as: "--disable", help: "give it no new tasks" },
      { name: "disabled", as: "--enable", help: "give it tasks again", value: false },
    ],
    from: true,
    show: (response) => describe(response.agent!),
  });
  addCall(noun, {
    name: "delete",
    summary: "remove an agent and revoke its keys; its tasks and traces stay",
    method: deleteAgent,
    fields: [which],
    show: ({ revokedApiKeys: keys }) => [`deleted; ${keys} key${keys === 1 ? "" : "s"} revoked`],
  });
};

const columns: readonly Column<Agent>[] = [
  { title: "AGENT", cell: ({ agentId }) => agentId },
  { title: "NAME", cell: ({ name }) => name, cut: true },
  { title: "STATE", cell: ({ disabled }) => (disabled ? "disabled" : "enabled"), colour: stateColour },
  { title: "AGE", cell: ({ createTime }) => age(createTime), right: true },
  { title: "CAPABILITIES", cell: ({ capabilities }) => capabilities.join(" "), cut: true },
  { title: "ENDPOINT", cell: ({ endpoint }) => endpointText(endpoint), cut: true },
];

function describe(agent: Agent): string[] {
  const state = paint(stateColour(agent), agent.disabled ? "disabled" : "enabled");
  return renderFacts(`${paint("bold", plain(agent.name))}  ${agent.agentId}  ${state}`, [
    ["for", agent.description],
    ["capabilities", agent.capabilities.join(" ") || "none: it only asks for work"],
    ["endpoint", endpointText(agent.endpoint) || "none: it only asks for work"],
    ["tools", agent.allowedTools.join(" ")],
    ["trust", nameIn(TrustTierSchema, agent.trustTier)],
    ["metadata", jsonText(agent.metadata)],
    ["registered", at(agent.createTime)],
    ["revision", agent.revision > 1n ? `${agent.revision}, of ${at(agent.updateTime)}` : ""],
  ]);
}

function stateColour({ disabled }: Agent) {
  return disabled ? "yellow" : "green";
}

function endpointText(endpoint: Endpoint | undefined): string {
  const { kind } = endpoint ?? {};
  return kind?.case === "http" ? kind.value.url : (kind?.case ?? "");
}

function endpoint(text: string, { label }: Reading): JsonObject {
  if (text === "echo" || text === "pull") return { [text]: {} };
  const url = /^(?:http=)?(https?:\/\/.+)$/.exec(text)?.[1];
  if (url !== undefined) return { http: { url } };
  throw new UsageError(`${label} ${text} is no endpoint`, "write http=https://example.com/task, pull or echo");
}
