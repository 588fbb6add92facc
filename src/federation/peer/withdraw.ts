/** What is offered for a peer here, and its end. */
import { lockAgent, updateAgent } from "../../bus/agent-store.ts";
import { deprecateContract } from "../../bus/contract-store.ts";
import { type Queryable, sql, type Tx } from "../../db/db.ts";
import { type PeerRow, removePeer } from "./store.ts";

/** A contract version that is offered for a peer. */
export type Offered = { readonly contract_id: string; readonly version: string };

/** All that is offered for a peer: as many as SyncPeer brings at most. */
export const offeredFor = (db: Queryable, { org_id, peer_id }: PeerRow): Promise<Offered[]> =>
  db.all<Offered>(sql`
    select contract_id, version from federation_peer_contract where org_id = ${org_id} and peer_id = ${peer_id} order by contract_id, version`);

export const offer = (tx: Tx, { org_id, peer_id }: PeerRow, { contract_id, version }: Offered): Promise<number> =>
  tx.run(sql`
    insert into federation_peer_contract (org_id, peer_id, contract_id, version) values (${org_id}, ${peer_id}, ${contract_id}, ${version})
    on conflict do nothing`);

/** The peer offers a version no more. */
export async function endOffer(tx: Tx, { org_id, peer_id }: PeerRow, of: Offered, now: number): Promise<void> {
  await deprecateContract(tx, org_id, of.contract_id, of.version, now);
  await tx.run(sql`
    delete from federation_peer_contract where org_id = ${org_id} and peer_id = ${peer_id} and contract_id = ${of.contract_id} and version = ${of.version}`);
}

/** The peer is removed: nothing crosses any more, and nothing of it is offered. */
export async function withdraw(tx: Tx, row: PeerRow, now: number): Promise<void> {
  await removePeer(tx, row, now);
  for (const one of await offeredFor(tx, row)) await endOffer(tx, row, one, now);
  const agent = await lockAgent(tx, row.org_id, row.agent_id);
  if (agent)
    await updateAgent(tx, { ...agent, capabilities: "[]", disabled: 1, update_ms: now, revision: agent.revision + 1 });
}
