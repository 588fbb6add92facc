/** Two servers become peers, and work of one is opened to the other, all over the wire. */
import { GrantService } from "../../gen/moltwire/federation/v1/grant_service_pb.ts";
import { PeerService } from "../../gen/moltwire/federation/v1/peer_service_pb.ts";
import type { Clients } from "../cli/connect.ts";

/** A server, with clients that speak for its operator. */
export type Site = { readonly url: string; readonly operator: Clients };

/** What work of which organisation is opened to which. */
export type Opening = {
  /** On the server that asks. */
  readonly askingOrgId: string;
  /** On the server that does the work. */
  readonly doingOrgId: string;
  readonly contractId: string;
};

/** What stands for the other on each server. */
export type Federated = {
  /** On the server that asks: the organisation to name as the target of GatewayService/SubmitTask, and its peer. */
  readonly targetOrgId: string;
  readonly peerId: string;
  /** On the server that does the work: the organisation as which the other asks. */
  readonly standInOrgId: string;
};

/** Each adds the other; the one grants, the other brings the contract over and grants it on. Both have to be allowed to reach each other (MOLTWIRE_EGRESS_ALLOW). */
export async function federate(asking: Site, doing: Site, opening: Opening): Promise<Federated> {
  const { askingOrgId, doingOrgId, contractId } = opening;
  const [near, far] = [await identityOf(asking), await identityOf(doing)];
  const { peer: there } = await doing
    .operator(PeerService)
    .addPeer({ name: "peer-that-asks", baseUrl: asking.url, ...near });
  const { peer: here } = await asking
    .operator(PeerService)
    .addPeer({ name: "peer-that-does", baseUrl: doing.url, ...far, remoteOrgId: doingOrgId });
  await grant(doing, doingOrgId, there!.orgId, contractId);
  await asking.operator(PeerService).syncPeer({ peerId: here!.peerId });
  await grant(asking, here!.orgId, askingOrgId, contractId);
  return { targetOrgId: here!.orgId, peerId: here!.peerId, standInOrgId: there!.orgId };
}

async function identityOf({ operator }: Site) {
  const { audience, keys } = (await operator(PeerService).getIdentity({})).identity!;
  return { audience, publicKeys: keys.map(({ publicKey }) => publicKey) };
}

async function grant({ operator }: Site, orgId: string, granteeOrgId: string, contractId: string): Promise<void> {
  const subject = { case: "contractId", value: contractId } as const;
  const { grant: made } = await operator(GrantService).createGrant({ orgId, granteeOrgId, subject });
  await operator(GrantService).acceptGrant({ orgId: granteeOrgId, grantId: made!.grantId });
}
