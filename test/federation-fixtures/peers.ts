/** Two servers that federate, and a server that is made by hand: what the tests of peers say often. */
import type { JsonValue, MessageInitShape } from "@bufbuild/protobuf";
import { TrustTier } from "../../gen/moltwire/bus/v1/agent_pb.ts";
import type { RegisterAgentRequestSchema } from "../../gen/moltwire/bus/v1/agent_service_pb.ts";
import type { Task } from "../../gen/moltwire/bus/v1/task_pb.ts";
import type { SubmitTaskRequestSchema } from "../../gen/moltwire/federation/v1/gateway_service_pb.ts";
import type { CreateGrantRequestSchema } from "../../gen/moltwire/federation/v1/grant_service_pb.ts";
import { contract, echoEndpoint, value } from "../bus-fixtures/bus.ts";
import type { Clients, Org, OrgAgent, World } from "../harness.ts";
import { unique } from "../harness.ts";

type Fields<Shape> = Partial<Extract<Shape, { $typeName?: never }>>;
type GrantInit = Fields<MessageInitShape<typeof CreateGrantRequestSchema>>;

/** A server as its operator reaches it. */
type Site = { readonly url: string; readonly operator: Clients };

/** Each of two servers adds the other. `doingOrgId` is of the second, and is asked by the first. Gives the organisations that stand for the other. */
export async function peers(
  asking: Site,
  doing: Site,
  doingOrgId: string,
): Promise<{ readonly askedAs: Standing; readonly askingAs: Standing }> {
  const [near, far] = [await identity(asking), await identity(doing)];
  await forget(doing, near.audience);
  await forget(asking, far.audience);
  const { peer: there } = await doing.operator.peers.addPeer({ name: unique("asking"), baseUrl: asking.url, ...near });
  const { peer: here } = await asking.operator.peers.addPeer({
    ...{ name: unique("doing"), baseUrl: doing.url, ...far, remoteOrgId: doingOrgId },
  });
  return { askedAs: here!, askingAs: there! };
}

/** An organisation that stands for another server. */
type Standing = { readonly peerId: string; readonly orgId: string; readonly agentId: string };

/** Two servers are peers once: those of a former test are so no more. */
async function forget({ operator }: Site, audience: string): Promise<void> {
  for (const peer of (await operator.peers.listPeers({ pageSize: 250 })).peers)
    if (peer.audience === audience) await operator.peers.removePeer({ peerId: peer.peerId });
}

async function identity({ operator }: Site) {
  const { audience, keys } = (await operator.peers.getIdentity({})).identity!;
  return { audience, publicKeys: keys.map(({ publicKey }) => publicKey) };
}

export type Federated = {
  readonly a: World;
  readonly b: World;
  /** On A: an organisation that asks, and its agent. */
  readonly asking: Org;
  readonly asker: OrgAgent;
  /** On B: an organisation that does the work, and its agent. */
  readonly doing: Org;
  readonly worker: OrgAgent;
  readonly contractId: string;
  /** On A, what stands for B. */
  readonly far: Standing;
  /** On B, what stands for A. */
  readonly near: Standing;
  /** On A from what stands for B, and on B to what stands for A. */
  readonly grantHere: string;
  readonly grantThere: string;
  go(wish?: Wish, options?: Parameters<Clients["gateway"]["submitTask"]>[1]): Promise<Task>;
};

type Wish = Omit<Fields<MessageInitShape<typeof SubmitTaskRequestSchema>>, "input"> & { readonly input?: JsonValue };

type Init = {
  readonly contract?: Parameters<typeof contract>[1];
  readonly agent?: Fields<MessageInitShape<typeof RegisterAgentRequestSchema>>;
  readonly grantHere?: GrantInit;
  readonly grantThere?: GrantInit;
  /** Where A finds B. */
  readonly url?: string;
};

/** A grant of an organisation to another in force, both in the hands of the operator. */
export async function grantedBy(
  { operator }: Site,
  orgId: string,
  granteeOrgId: string,
  contractId: string,
  init: GrantInit = {},
): Promise<string> {
  const subject = { case: "contractId", value: contractId } as const;
  const { grant } = await operator.grants.createGrant({ orgId, granteeOrgId, subject, ...init });
  await operator.grants.acceptGrant({ orgId: granteeOrgId, grantId: grant!.grantId });
  return grant!.grantId;
}

/** Two servers that are peers: work of an organisation of B is open, through B and A, to an organisation of A. */
export async function federated(a: World, b: World, init: Init = {}): Promise<Federated> {
  const [asking, doing] = [await a.org(), await b.org()];
  const contractId = await contract(doing, init.contract);
  const { capability = contractId } = init.contract ?? {};
  const worker = await doing.agent({ capabilities: [capability], endpoint: echoEndpoint, ...init.agent });
  const asker = await asking.agent({ trustTier: TrustTier.INTERNAL_RESTRICTED });
  const { askedAs: far, askingAs: near } = await peers(a, { ...b, url: init.url ?? b.url }, doing.orgId);
  const grantThere = await grantedBy(b, doing.orgId, near.orgId, contractId, init.grantThere);
  await a.operator.peers.syncPeer({ peerId: far.peerId });
  const grantHere = await grantedBy(a, far.orgId, asking.orgId, contractId, init.grantHere);
  const go: Federated["go"] = async ({ input = {}, ...wish } = {}, options) => {
    const request = { targetOrgId: far.orgId, contractId, input: value(input), ...wish };
    return (await asker.as.gateway.submitTask(request, options)).task!;
  };
  return { a, b, asking, asker, doing, worker, contractId, far, near, grantHere, grantThere, go };
}
