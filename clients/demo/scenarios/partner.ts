/** Another organisation, whose agent asks for work of the demo's own under a grant. */
import type { MessageInitShape } from "@bufbuild/protobuf";
import type { Task } from "../../../gen/moltwire/bus/v1/task_pb.ts";
import { GatewayService } from "../../../gen/moltwire/federation/v1/gateway_service_pb.ts";
import type { Grant, GrantTermsSchema } from "../../../gen/moltwire/federation/v1/grant_pb.ts";
import { type CreateGrantRequest, GrantService } from "../../../gen/moltwire/federation/v1/grant_service_pb.ts";
import { type Clients, connectClients } from "../../cli/connect.ts";
import { callTimeoutMs, wish } from "../ask.ts";
import { addCaller, addOrganization } from "../setup.ts";
import type { World } from "./scenario.ts";

/** An organisation of its own, with an agent that only calls. */
export type Partner = {
  readonly orgId: string;
  readonly admin: Clients;
  readonly askerId: string;
  /** Speaks for its agent. */
  readonly asker: Clients;
};

/** Makes the organisation `NAME-partner`. */
export async function addPartner({ operator, url }: World, name: string): Promise<Partner> {
  const { orgId, orgKey } = await addOrganization(operator, `${name}-partner`);
  const admin = connectClients({ url, key: orgKey });
  const { agentId, key } = await addCaller(admin, "asker", "Asks another organisation for work.");
  return { orgId, admin, askerId: agentId, asker: connectClients({ url, key }) };
}

/** What a grant is on. */
export type Subject = CreateGrantRequest["subject"];

/** Proposes a grant of the demo's organisation to the partner. */
export async function propose(
  { admin }: World,
  { orgId }: Partner,
  subject: Subject,
  terms: MessageInitShape<typeof GrantTermsSchema> = {},
): Promise<Grant> {
  const { grant } = await admin(GrantService).createGrant({ granteeOrgId: orgId, subject, terms });
  return grant!;
}

/** A grant that the partner has accepted. */
export async function agree(...[world, partner, subject, terms]: Parameters<typeof propose>): Promise<Grant> {
  const { grantId } = await propose(world, partner, subject, terms);
  return (await partner.admin(GrantService).acceptGrant({ grantId })).grant!;
}

/** How a task of another organisation is asked for besides. */
type How = {
  readonly targetOrgId?: string;
  readonly returnImmediately?: boolean;
  readonly traceparent?: string;
};

/** Has the partner's agent ask the demo's organisation for a task; it has ended when this answers, unless told otherwise. */
export async function askAcross(
  { made }: World,
  { asker }: Partner,
  contractId: string,
  input: unknown,
  { traceparent, ...how }: How = {},
): Promise<Task> {
  const call = { timeoutMs: callTimeoutMs, ...(traceparent !== undefined && { headers: { traceparent } }) };
  const request = { targetOrgId: made.orgId, ...wish(contractId, input), ...how };
  return (await asker(GatewayService).submitTask(request, call)).task!;
}

/** The contracts of other organisations that the partner may ask for, by their ids. */
export async function openTo({ asker }: Partner): Promise<readonly string[]> {
  return (await asker(GatewayService).listContracts({})).contracts.map(({ contractId }) => contractId);
}

/** What was used of a grant today, as an organisation reads it. */
export async function usageOf(reader: Clients, grantId: string) {
  const {
    tokens = 0n,
    reservedTokens = 0n,
    requests = 0n,
    denials = 0n,
  } = (await reader(GrantService).getGrantUsage({ grantId })).days[0] ?? {};
  return {
    tokens: Number(tokens),
    reserved: Number(reservedTokens),
    requests: Number(requests),
    denials: Number(denials),
  };
}
