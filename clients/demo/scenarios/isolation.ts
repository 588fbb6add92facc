/** Without a grant another organisation's contracts, agents and namespaces do not even seem to exist; one on a namespace opens that namespace alone. */
import { randomBytes } from "node:crypto";
import { AgentService } from "../../../gen/moltwire/bus/v1/agent_service_pb.ts";
import { ContractService } from "../../../gen/moltwire/bus/v1/contract_service_pb.ts";
import { NamespaceService } from "../../../gen/moltwire/federation/v1/namespace_service_pb.ts";
import { outputOf } from "../ask.ts";
import { newTrace } from "../planner.ts";
import { refused, same } from "./claim.ts";
import { addFlaky } from "./flaky-agent.ts";
import { addPartner, agree, askAcross, openTo } from "./partner.ts";
import type { Outcome, World } from "./scenario.ts";

const [closed, open] = ["isolation/closed", "isolation/open"];
const input = { text: "is anybody there" };

/** Has a partner look for work that is there and for work that is not, then opens one of two namespaces. */
export async function isolation(world: World): Promise<Outcome> {
  const { admin } = world;
  for (const name of [closed, open]) await admin(NamespaceService).createNamespace({ name });
  const hidden = await addFlaky(world, "isolation-closed", { namespace: closed });
  const shown = await addFlaky(world, "isolation-open", { namespace: open });
  const partner = await addPartner(world, "isolation");

  const { traceId, traceparent } = newTrace();
  const look = (contractId: string, targetOrgId = world.made.orgId) =>
    refused("NOT_FOUND", askAcross(world, partner, contractId, input, { targetOrgId, traceparent }));
  const noOrg = `org_${randomBytes(16).toString("hex")}`;
  const answer = await look(hidden.contractId);
  same("the refusal, and that of an organisation that there is not", answer, await look(hidden.contractId, noOrg));
  const agent = (agentId: string) => refused("NOT_FOUND", partner.admin(AgentService).getAgent({ agentId }));
  const noAgent = `agt_${randomBytes(16).toString("hex")}`;
  const [there, notThere] = [await agent(hidden.agentId), await agent(noAgent)];
  same("the refusal of an agent, and of one that there is not", there.message, notThere.message);
  const lists = [
    (await partner.admin(ContractService).listContracts({})).contracts,
    (await partner.admin(NamespaceService).listNamespaces({})).namespaces,
    await openTo(partner),
  ];
  same("contracts, namespaces and open contracts that the partner lists", lists, [[], [], []]);

  await agree(world, partner, { case: "namespace", value: open });
  same("the contracts that a grant on one namespace opens", await openTo(partner), [shown.contractId]);
  const task = await askAcross(world, partner, shown.contractId, input);
  same("what the agent of the open namespace answers", outputOf(task), { words: 3 });
  same("the refusal of the closed one after that", await look(hidden.contractId), answer);
  same("calls of the hidden agent", await hidden.calls(), 0);
  return {
    proof: `NOT_FOUND without a grant, word for word as for an organisation that there is not, and nothing is listed; a grant on the namespace ${open} opens ${shown.contractId} and leaves ${hidden.contractId} NOT_FOUND`,
    traceId,
  };
}
