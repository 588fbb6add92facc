/** Two organisations of which one has work that the other may ask for: what the tests of the gateway say often. */
import type { JsonValue, MessageInitShape } from "@bufbuild/protobuf";
import { TrustTier } from "../../gen/moltwire/bus/v1/agent_pb.ts";
import type { RegisterAgentRequestSchema } from "../../gen/moltwire/bus/v1/agent_service_pb.ts";
import type { Task } from "../../gen/moltwire/bus/v1/task_pb.ts";
import type { SubmitTaskRequestSchema } from "../../gen/moltwire/federation/v1/gateway_service_pb.ts";
import type { CreateGrantRequestSchema } from "../../gen/moltwire/federation/v1/grant_service_pb.ts";
import { contract, echoEndpoint, value } from "../bus-fixtures/bus.ts";
import type { Clients, Org, OrgAgent, World } from "../harness.ts";

type Fields<Shape> = Partial<Extract<Shape, { $typeName?: never }>>;
type GrantInit = Fields<MessageInitShape<typeof CreateGrantRequestSchema>>;
type AgentInit = Fields<MessageInitShape<typeof RegisterAgentRequestSchema>>;

/** A new grant that is in force; on the contract unless told. */
export async function granted(from: Org, to: Org, contractId: string, init: GrantInit = {}): Promise<string> {
  const subject = { case: "contractId", value: contractId } as const;
  const { grant } = await from.admin.grants.createGrant({ granteeOrgId: to.orgId, subject, ...init });
  await to.admin.grants.acceptGrant({ grantId: grant!.grantId });
  return grant!.grantId;
}

export type Across = {
  /** The organisation that asks, and an agent of it. */
  readonly asking: Org;
  readonly asker: OrgAgent;
  /** The organisation that does the work, and the agent that does. */
  readonly doing: Org;
  readonly worker: OrgAgent;
  readonly contractId: string;
  readonly grantId: string;
  /** Submits as the asker; the input is JSON. */
  go(wish?: Wish, options?: CallOptions): Promise<Task>;
};

type CallOptions = Parameters<Clients["gateway"]["submitTask"]>[1];
type Wish = Omit<Fields<MessageInitShape<typeof SubmitTaskRequestSchema>>, "input"> & {
  readonly input?: JsonValue;
  readonly by?: Clients;
};

type Init = {
  readonly contract?: Parameters<typeof contract>[1];
  readonly grant?: GrantInit;
  readonly agent?: AgentInit;
  readonly asker?: AgentInit;
  readonly doing?: Org;
  readonly asking?: Org;
};

/** An organisation with a contract and an agent that echoes, and another with an agent that may ask for it. */
export async function across(world: World, init: Init = {}): Promise<Across> {
  const [doing, asking] = [init.doing ?? (await world.org()), init.asking ?? (await world.org())];
  const contractId = await contract(doing, init.contract);
  const { capability = contractId } = init.contract ?? {};
  const worker = await doing.agent({ capabilities: [capability], endpoint: echoEndpoint, ...init.agent });
  const asker = await asking.agent({ trustTier: TrustTier.INTERNAL_RESTRICTED, ...init.asker });
  const grantId = await granted(doing, asking, contractId, init.grant);
  const go: Across["go"] = async ({ input = {}, by = asker.as, ...wish } = {}, options) => {
    const request = { targetOrgId: doing.orgId, contractId, input: value(input), ...wish };
    return (await by.gateway.submitTask(request, options)).task!;
  };
  return { asking, asker, doing, worker, contractId, grantId, go };
}
