/** What the demo needs on a fresh server, made over the wire: an organisation, keys, contracts, agents. */
import { Role } from "../../gen/moltwire/api/v1/access_pb.ts";
import { AgentService } from "../../gen/moltwire/bus/v1/agent_service_pb.ts";
import { ContractService } from "../../gen/moltwire/bus/v1/contract_service_pb.ts";
import { ApiKeyService } from "../../gen/moltwire/federation/v1/api_key_service_pb.ts";
import { OrganizationService } from "../../gen/moltwire/federation/v1/organization_service_pb.ts";
import { type Clients, connectClients } from "../cli/connect.ts";
import { contracts } from "./contracts.ts";
import { type Reviewer, reviewerEndpoint } from "./reviewers.ts";

const reviewContract = "research/review";

/** Who was made, with the keys that speak for them. */
export type Made = {
  readonly orgId: string;
  readonly orgKey: string;
  readonly plannerKey: string;
  /** Ids of the agents. */
  readonly agentIds: { readonly researcher: string; readonly reviewer: string; readonly planner: string };
};

/** Where the agents that do work are. */
export type Workers = { readonly researcherUrl: string; readonly reviewer: Reviewer };

/** Sets up a server that has nothing yet. `operator` calls with the operator's key. */
export async function setUp(operator: Clients, url: string, workers: Workers): Promise<Made> {
  const { orgId, orgKey } = await addOrganization(operator, "demo", "Demo");
  const admin = connectClients({ url, key: orgKey });
  for (const contract of contracts) await admin(ContractService).registerContract(contract);
  return { orgId, orgKey, ...(await registerAgents(admin, workers)) };
}

/** An organisation, and a key of its administrator. `operator` calls with the operator's key. */
export async function addOrganization(operator: Clients, name: string, displayName = name) {
  const { organization } = await operator(OrganizationService).createOrganization({ name, displayName });
  const { orgId } = organization!;
  const { secret } = await operator(ApiKeyService).createApiKey({
    orgId,
    name: `${name} administrator`,
    role: Role.ORG,
  });
  return { orgId, orgKey: secret };
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
  const planner = await addCaller(admin, "planner", "Plans, and asks others to do the work.");
  return {
    plannerKey: planner.key,
    agentIds: { researcher: researcher!.agentId, reviewer: reviewer!.agentId, planner: planner.agentId },
  };
}

/** An agent that only calls, and a key that speaks for it. */
export async function addCaller(admin: Clients, name: string, description: string) {
  const { agent } = await admin(AgentService).registerAgent({ name, description });
  const { agentId } = agent!;
  const { secret } = await admin(ApiKeyService).createApiKey({ name: `demo ${name}`, agentId });
  return { agentId, key: secret };
}
