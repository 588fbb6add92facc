/** What policies say to a task: may its caller ask for the contract, and may the agent that would do it use the tools that the work needs? */
import type { JsonObject } from "@bufbuild/protobuf";
import type { App } from "../app.ts";
import type { Queryable } from "../db/db.ts";
import { Fault } from "../errors.ts";
import type { AgentRow } from "./agent-store.ts";
import type { Demand } from "./approval/gate.ts";
import type { ContractRow } from "./contract-store.ts";
import { type Decided, decideInvoke, decideTools, type Origin, policyDenied } from "./policy/decide-task.ts";
import type { AgentFacts } from "./policy/entity.ts";
import { somebody } from "./unshown.ts";

/** Of how many of the agents that policies refuse for one task the decisions are written into the decision log. Asked is about each that routing found. */
const maxRefusalsKept = 50;

/** Who asks for what. */
export type Asking = {
  readonly orgId: string;
  /** Undefined: an administrator, for no agent. */
  readonly caller: AgentFacts | undefined;
  /** The organisation of the caller, if it is another. */
  readonly from?: string | undefined;
  readonly contract: ContractRow;
  readonly origin: Origin;
  readonly grantId: string;
  readonly now: number;
};

/** The agent that may do it, and who asks for an approval first; or why none may. `decisions` are for the log. */
export type Permit = {
  readonly decisions: readonly Decided[];
  /** Agents that are hidden from the caller. */
  readonly hidden?: ReadonlySet<string>;
} & (
  | { readonly agent: AgentRow; readonly demand: Demand | undefined; readonly refusal?: undefined }
  | { readonly refusal: Fault }
);

/** The first of the agents that policies let do it, and why not those before it, by their ids. With none, the refusal tells of the first. */
export async function permit(
  app: App,
  db: Queryable,
  asking: Asking,
  candidates: readonly [AgentRow, ...AgentRow[]],
): Promise<Permit & { readonly refusedBy: ReadonlyMap<string, Fault> }> {
  const refusedBy = new Map<string, Fault>();
  const decisions: Decided[] = [];
  const hidden = new Set(candidates.filter((agent) => agent.hidden).map(({ agent_id }) => agent_id));
  for (const agent of candidates) {
    const one = await permitAgent(app, db, asking, agent);
    if (!one.refusal) return { ...one, decisions: [...decisions, ...one.decisions], hidden, refusedBy };
    if (refusedBy.size < maxRefusalsKept) decisions.push(...one.decisions);
    refusedBy.set(agent.agent_id, one.refusal);
  }
  return { refusal: refusedBy.get(candidates[0].agent_id)!, decisions, hidden, refusedBy };
}

/** What policies say to one agent. */
export async function permitAgent(app: App, db: Queryable, asking: Asking, agent: AgentRow): Promise<Permit> {
  const { orgId, caller, from, contract, origin, grantId, now } = asking;
  const tokens = contract.estimated_tokens || contract.max_tokens;
  const asked = { orgId, contract, tokens, origin, now };
  const invoke = await decideInvoke(app, db, {
    ...asked,
    caller,
    targetAgentId: agent.agent_id,
    ...(grantId && { grantId }),
    ...(from && ({ from, direction: "in" } as const)),
  });
  if (invoke.answer.verdict === "DENY") return { refusal: policyDenied(invoke), decisions: [invoke] };
  const tools = await decideTools(app, db, { ...asked, agent });
  const decisions = [invoke, ...tools.decisions];
  if (tools.denied) return { refusal: toolDenied(agent, tools.denied), decisions };
  return { agent, demand: demandOf(contract, decisions), decisions };
}

/** POLICY_DENIED that names the tool and the agent, unless that is hidden from the caller. */
function toolDenied(agent: AgentRow, { tool, decided }: { readonly tool: string; readonly decided: Decided }): Fault {
  const denied = policyDenied(decided);
  if (agent.hidden)
    return new Fault("POLICY_DENIED", `${somebody} may not use the tool ${tool}`, {
      ...{ policy_ids: denied.metadata.policy_ids ?? "", tool },
    });
  const metadata = { ...denied.metadata, tool, agent_id: agent.agent_id };
  return new Fault("POLICY_DENIED", `${agent.name} may not use the tool ${tool}: ${denied.message}`, metadata);
}

/** What policies said, of a permit or of a decision that is none. */
type Said = {
  readonly decisions: readonly Decided[];
  readonly hidden?: ReadonlySet<string>;
  readonly refusal?: Fault | undefined;
  readonly demand?: Demand | undefined;
};

/** What the trace says of what policies said; nothing of what they said to agents that are hidden from the caller. */
export function policyStep(permit: Said): { readonly message: string; readonly details: JsonObject } {
  const answers = permit.decisions
    .filter(({ question }) => !permit.hidden?.has(question.principal.id))
    .map(({ answer }) => answer);
  const asked = permit.refusal ? undefined : permit.demand?.policyIds;
  const verdict = permit.refusal ? "DENY" : asked?.length ? "REQUIRE_APPROVAL" : "ALLOW";
  const ids = [...new Set(answers.flatMap(({ determining }) => determining.map(({ policyId }) => policyId)))];
  const by = ids.length > 0 ? ` by ${ids.slice(0, 5).join(", ")}` : "";
  const said = { DENY: "denied", REQUIRE_APPROVAL: "allowed once it is approved", ALLOW: "allowed" }[verdict];
  const reasons = [...new Set(answers.flatMap(({ reasons }) => reasons))].slice(0, maxTold);
  const message = permit.refusal ? `denied: ${permit.refusal.message}` : said + by;
  return { message, details: { verdict, policy_ids: ids.slice(0, maxTold), reasons } };
}

const maxTold = 20;

/** Who asks for an approval: the contract, or policies. */
export function demandOf(
  contract: Pick<ContractRow, "contract_id" | "approval_required">,
  decisions: readonly Decided[],
): Demand | undefined {
  const byContract = contract.approval_required !== 0;
  const asking = decisions
    .filter(({ answer }) => answer.verdict === "REQUIRE_APPROVAL")
    .flatMap(({ answer }) => answer.determining.filter(({ approval }) => approval !== ""));
  if (!byContract && asking.length === 0) return undefined;
  return {
    byContract,
    policyIds: [...new Set(asking.map(({ policyId }) => policyId))],
    reasons: [
      ...(byContract ? [`${contract.contract_id} asks for an approval of each task`] : []),
      ...new Set(asking.map(({ policyId, approval }) => `${policyId}: ${approval}`)),
    ],
  };
}
