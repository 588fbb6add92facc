/** The questions of the task pipeline: may this caller ask for this contract, and may this agent use the tools that the work needs? */
import type { App } from "../../app.ts";
import type { Queryable } from "../../db/db.ts";
import { Fault } from "../../errors.ts";
import type { Answer } from "./answer.ts";
import { type AgentFacts, agentEntity, type ContractFacts, contractEntity, orgEntity, toolEntity } from "./entity.ts";
import type { Question } from "./policies.ts";

/** A question with its answer; see `recordDecisions`. */
export type Decided = { readonly question: Question; readonly answer: Answer };

/** The door a task comes in by. */
export type Origin = "bus" | "gateway" | "listing";

/** What both questions need to know of a task. */
export type TaskAsked = {
  /** The organisation whose policies decide. */
  readonly orgId: string;
  readonly contract: ContractFacts;
  /** What would be reserved. */
  readonly tokens: number;
  readonly origin: Origin;
  readonly now: number;
};

export type InvokeAsked = TaskAsked & {
  /** Undefined: an administrator, for no agent. */
  readonly caller: AgentFacts | undefined;
  /** Empty while it is open who does it. */
  readonly targetAgentId: string;
  /** Across organisations. */
  readonly grantId?: string;
  /** The organisation of the caller, if it is another. */
  readonly from?: string;
  /** Across organisations: "out" where the caller's decides, "in" where the other does. */
  readonly direction?: "in" | "out";
};

/** Whether the caller may ask for work under the contract. The principal is the caller, or the organisation itself. */
export async function decideInvoke(
  { policies }: Pick<App, "policies">,
  db: Queryable,
  asked: InvokeAsked,
): Promise<Decided> {
  const { orgId, caller, from = orgId, contract, targetAgentId, tokens, origin, now, grantId, direction } = asked;
  const question: Question = {
    principal: caller ? agentEntity(caller) : orgEntity(from),
    action: "invoke",
    resource: contractEntity(contract, orgId),
    context: {
      tokens,
      origin,
      time: { ms: now },
      contract_version: contract.version,
      ...(targetAgentId && { target_agent_id: targetAgentId }),
      ...(grantId && { grant_id: grantId }),
      ...(direction && { direction }),
    },
  };
  return { question, answer: await policies.decide(db, orgId, question) };
}

/** What was decided on the tools of a task, in the order of the contract; nothing is asked after the first that is denied. */
export type ToolsDecided = {
  readonly decisions: readonly Decided[];
  /** The tool that the agent may not use. */
  readonly denied: { readonly tool: string; readonly decided: Decided } | undefined;
  /** Whether one of those that are not denied asks for an approval. */
  readonly asksApproval: boolean;
};

/** Whether the agent that would do the work may use every tool that the contract requires. The principal is that agent. */
export async function decideTools(
  { policies }: Pick<App, "policies">,
  db: Queryable,
  { orgId, agent, contract, tokens, origin, now }: TaskAsked & { readonly agent: AgentFacts },
): Promise<ToolsDecided> {
  const tools = JSON.parse(contract.required_tools) as string[];
  if (tools.length === 0) return { decisions: [], denied: undefined, asksApproval: false };
  const set = await policies.current(db, orgId);
  const principal = agentEntity(agent);
  const { contract_id, version } = contract;
  const context = { tokens, origin, time: { ms: now }, contract_id, contract_version: version };
  const decisions: Decided[] = [];
  for (const tool of tools) {
    const question = { principal, action: "use_tool", resource: toolEntity(tool, orgId), context };
    const decided = { question, answer: policies.answer(set, question) };
    decisions.push(decided);
    if (decided.answer.verdict === "DENY") return { decisions, denied: { tool, decided }, asksApproval: false };
  }
  const asksApproval = decisions.some(({ answer }) => answer.verdict === "REQUIRE_APPROVAL");
  return { decisions, denied: undefined, asksApproval };
}

/** POLICY_DENIED with the reasons of an answer, and how to ask for it. */
export function policyDenied({ question, answer }: Decided): Fault {
  const { principal, action, resource } = question;
  const { hint, metadata } = howToAsk(principal, action, resource);
  return new Fault("POLICY_DENIED", `${action} ${resource.id}: ${answer.reasons.slice(0, 5).join("; ")}. ${hint}`, {
    policy_ids: answer.determining.map(({ policyId }) => policyId).join(","),
    ...metadata,
  });
}

/** A thing as a question names it. */
type Asked = { readonly type: string; readonly id: string };

/** How whoever was refused gets the answer from TestPolicy: a sentence, and the question for programs. */
export const howToAsk = (principal: Asked, action: string, resource: Asked) => ({
  hint: `To see why, ask PolicyService/TestPolicy: principal ${principal.type} ${principal.id}, action ${action}, resource ${resource.type} ${resource.id}`,
  metadata: {
    action,
    principal_type: principal.type,
    principal_id: principal.id,
    resource_type: resource.type,
    resource_id: resource.id,
  },
});
