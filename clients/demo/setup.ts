/** What the demo needs on a fresh server, made over the wire: an organisation, keys, contracts, agents. */
import { Role } from "../../gen/moltwire/api/v1/access_pb.ts";
import { AgentService } from "../../gen/moltwire/bus/v1/agent_service_pb.ts";
import { ContractService } from "../../gen/moltwire/bus/v1/contract_service_pb.ts";
import { ApiKeyService } from "../../gen/moltwire/federation/v1/api_key_service_pb.ts";
import { OrganizationService } from "../../gen/moltwire/federation/v1/organization_service_pb.ts";
import { type Clients, connectClients } from "../cli/connect.ts";
import { contracts } from "./contracts.ts";
import { type Reviewer, reviewerEndpoint } from "./reviewers.ts";
import type { RunStep } from "./steps.ts";

const reviewContract = "research/review";

/** Who was made, with the keys that speak for them. */
export type Made = {
  readonly orgId: string;
  readonly orgKey: string;
  readonly plannerKey: string;
  /** Names by agent id. */
  readonly names: ReadonlyMap<string, string>;
};

/** Where the agents that do work are. */
export type Workers = { readonly researcherUrl: string; readonly reviewer: Reviewer };

/** Sets up a server that has nothing yet. `operator` calls with the operator's key. */
export async function setUp(operator: Clients, url: string, workers: Workers, step: RunStep): Promise<Made> {
  const { orgId, orgKey } = await step(
    "organisation",
    () => makeOrganization(operator),
    ({ orgId }) => `demo is ${orgId}; its administrator has a key`,
  );
  const admin = connectClients({ url, key: orgKey });
  await step(
    "contracts",
    () => registerContracts(admin),
    () => contracts.map(({ contractId, version }) => `${contractId} ${version}`).join(", "),
  );
  const agents = await step(
    "agents",
    () => registerAgents(admin, workers),
    () =>
      `researcher at ${workers.researcherUrl}; reviewer at ${workers.reviewer.baseUrl}; planner only calls, with its own key`,
  );
  return { orgId, orgKey, ...agents };
}

async function makeOrganization(operator: Clients) {
  const { organization } = await operator(OrganizationService).createOrganization({
    name: "demo",
    displayName: "Demo",
  });
  const { orgId } = organization!;
  const { secret } = await operator(ApiKeyService).createApiKey({ orgId, name: "demo administrator", role: Role.ORG });
  return { orgId, orgKey: secret };
}

async function registerContracts(admin: Clients): Promise<void> {
  for (const contract of contracts) await admin(ContractService).registerContract(contract);
}

async function registerAgents(admin: Clients, { researcherUrl, reviewer: model }: Workers) {
  const agents = admin(AgentService);
  const { agent: researcher } = await agents.registerAgent({
    name: "researcher",
    description: "Searches the project's own documents.",
    capabilities: contracts.map(({ contractId }) => contractId).filter((contractId) => contractId !== reviewContract),
    endpoint: { kind: { case: "http", value: { url: researcherUrl } } },
  });
  const { agent: reviewer } = await agents.registerAgent({
    name: "reviewer",
    description: "Reviews what the researcher found.",
    capabilities: [reviewContract],
    endpoint: { kind: { case: "openai", value: reviewerEndpoint(model) } },
  });
  const { agent: planner } = await agents.registerAgent({
    name: "planner",
    description: "Plans, and asks others to do the work.",
  });
  const { secret } = await admin(ApiKeyService).createApiKey({ name: "demo planner", agentId: planner!.agentId });
  const names = new Map([researcher!, reviewer!, planner!].map(({ agentId, name }) => [agentId, name]));
  return { plannerKey: secret, names };
}
