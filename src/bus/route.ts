import type { JsonObject } from "@bufbuild/protobuf";
import { TrustTier } from "../../gen/moltwire/bus/v1/agent_pb.ts";
import type { Queryable } from "../db/db.ts";
import { type AgentRow, agentsWithCapability, findAgent } from "./agent-store.ts";
import type { ContractRow } from "./contract-store.ts";

/** How many fit agents of one capability take turns. */
export const maxConsidered = 250;
/** How many agents a trace names, of those that fit and of those that do not. */
const maxNamed = 20;

/** Who may do a task, in the order in which they are tried, and what became of the others. */
export type Route = {
  readonly candidates: readonly AgentRow[];
  readonly considered: number;
  readonly verdicts: readonly JsonObject[];
};

/**
 * The agents of the organisation that have the contract's capability and may do it, or only the one that the caller wants. Among equals the
 * `turn` decides who is first, so that successive tasks go round.
 */
export async function route(
  db: Queryable,
  orgId: string,
  contract: ContractRow,
  wantedAgentId: string,
  turn: number,
): Promise<Route> {
  const { capability, security_class: tier } = contract;
  const usable = await agentsWithCapability(
    db,
    orgId,
    { capability, onlyAgentId: wantedAgentId, tier, fit: true },
    maxConsidered,
  );
  const others = await agentsWithCapability(
    db,
    orgId,
    { capability, onlyAgentId: wantedAgentId, tier, fit: false },
    maxNamed,
  );
  const judged = usable.map((agent) => ({ agent, why: whyNot(agent, contract) }));
  const fit = judged.filter(({ why }) => why === undefined).map(({ agent }) => agent);
  const first = fit.length === 0 ? 0 : turn % fit.length;
  const candidates = [...fit.slice(first), ...fit.slice(0, first)];
  const named = [...judged.slice(0, maxNamed), ...others.map((agent) => ({ agent, why: whyNot(agent, contract) }))];
  const verdicts = named.map(({ agent, why }) => ({
    agent_id: agent.agent_id,
    name: agent.name,
    chosen: agent === candidates[0],
    why: why ?? (agent === candidates[0] ? "its turn" : "fits; another's turn"),
  }));
  return { candidates, considered: usable.length + others.length, verdicts };
}

/** The agent as it is now, if it may still do the work. */
export async function stillFit(db: Queryable, chosen: AgentRow, contract: ContractRow): Promise<AgentRow | undefined> {
  const agent = await findAgent(db, chosen.org_id, chosen.agent_id);
  const able = agent && (JSON.parse(agent.capabilities) as string[]).includes(contract.capability);
  return able && whyNot(agent, contract) === undefined ? agent : undefined;
}

/** Why an agent may not do it, or undefined. Tiers count from 1, the most trusted, to 4. */
function whyNot(agent: AgentRow, contract: ContractRow): string | undefined {
  if (agent.disabled !== 0) return "disabled";
  if (agent.endpoint === null) return "has no endpoint";
  if (agent.trust_tier > contract.security_class)
    return `its tier ${tierName(agent.trust_tier)} is below ${tierName(contract.security_class)}`;
  const allowed = new Set(JSON.parse(agent.allowed_tools) as string[]);
  const missing = (JSON.parse(contract.required_tools) as string[]).find((tool) => !allowed.has(tool));
  return missing === undefined ? undefined : `may not use the tool ${missing}`;
}

export const tierName = (tier: number): string =>
  Object.keys(TrustTier).find((name) => TrustTier[name as keyof typeof TrustTier] === tier) ?? String(tier);
