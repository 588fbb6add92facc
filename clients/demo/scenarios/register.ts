/** The operator registers an organisation, and nobody else can: it begins with credits, sees itself alone, and has its first task done at once. */
import { AgentService } from "../../../gen/moltwire/bus/v1/agent_service_pb.ts";
import { ContractService } from "../../../gen/moltwire/bus/v1/contract_service_pb.ts";
import { BillingService } from "../../../gen/moltwire/exchange/v1/billing_service_pb.ts";
import { OrganizationService } from "../../../gen/moltwire/federation/v1/organization_service_pb.ts";
import { connectClients } from "../../cli/connect.ts";
import { creditsText } from "../../cli/credits.ts";
import { ask, outputOf } from "../ask.ts";
import { addOrganization } from "../setup.ts";
import { claim, refused, same } from "./claim.ts";
import type { Outcome, World } from "./scenario.ts";

const name = "acme";
const contractId = "acme/echo";
const input = { say: "hello" };

/** Registers `acme`, and has it begin. */
export async function register({ operator, admin, url }: World): Promise<Outcome> {
  const { metadata: lacking } = await refused("ROLE_REQUIRED", addOrganization(admin, name));
  const { orgId, orgKey } = await addOrganization(operator, name);
  await refused("ALREADY_EXISTS", addOrganization(operator, name));

  const acme = connectClients({ url, key: orgKey });
  const listed = async (as: typeof acme) =>
    (await as(OrganizationService).listOrganizations({ pageSize: 250 })).organizations.map((one) => one.orgId);
  const all = await listed(operator);
  same("the organisations that the new one sees", await listed(acme), [orgId]);
  claim(all.includes(orgId), "the operator does not see the new organisation");
  const { balance } = await acme(BillingService).getBalance({});
  claim(balance!.availableMicros > 0n, "the new organisation has no credits");

  await acme(ContractService).registerContract({ contractId, version: "1.0.0" });
  const endpoint = { kind: { case: "echo", value: {} } } as const;
  await acme(AgentService).registerAgent({ name: "echo", capabilities: [contractId], endpoint });
  const task = await ask(acme, contractId, input);
  same("what its first task answers", [task.orgId, outputOf(task)], [orgId, input]);
  return {
    proof: `${name} by the operator (an administrator: ROLE_REQUIRED, ${lacking.required_role}); the same name again: ALREADY_EXISTS; it sees 1 of ${all.length} organisations, has ${creditsText(balance!.availableMicros)} credits, and its first task COMPLETED`,
    traceId: task.traceId,
  };
}
