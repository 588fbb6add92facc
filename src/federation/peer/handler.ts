import { durationMs } from "@bufbuild/protobuf/wkt";
import type { HandlerContext, ServiceImpl } from "@connectrpc/connect";
import { PeerState } from "../../../gen/moltwire/federation/v1/peer_pb.ts";
import type { PeerService } from "../../../gen/moltwire/federation/v1/peer_service_pb.ts";
import type { App } from "../../app.ts";
import { checkUrl } from "../../bus/endpoint-check.ts";
import { badField, notFound } from "../../errors.ts";
import { command } from "../../rpc/command.ts";
import { readPage } from "../../rpc/page.ts";
import { query } from "../../rpc/query.ts";
import { addPeer } from "./add.ts";
import { checkActive, checkKey, keyTaken } from "./faults.ts";
import { ensureKey, identityOf, rotateKey } from "./identity.ts";
import { endPeerKeys, findPeer, insertPeerKey, listPeers, lockPeer, shown, toPeer } from "./store.ts";
import { syncPeer } from "./sync.ts";
import { withdraw } from "./withdraw.ts";

const defaultOverlapMs = 24 * 3_600_000;

export const peerHandler = (app: App): ServiceImpl<typeof PeerService> => ({
  getIdentity: command(app, async (_req, { tx, now }) => {
    await ensureKey(tx, app, now);
    return { identity: await identityOf(tx, app) };
  }),

  async addPeer(request, context: HandlerContext) {
    await checkBaseUrl(app, request.baseUrl);
    return command(app, async (req: typeof request, { tx, orgId, now }) => {
      const row = await addPeer(tx, app, req, req.orgId ? orgId : undefined, now);
      return { peer: await shown(tx, row, now) };
    })(request, context);
  },

  listPeers: query(app, async (req, { db, now }) => {
    const read = (after: Parameters<typeof listPeers>[2], limit: number) =>
      listPeers(db, req.includeRemoved, after, limit);
    const scope = ["ListPeers", String(req.includeRemoved)];
    const page = await readPage(app.cursors, scope, req, read, (row) => [row.peer_id]);
    return { peers: page.rows.map((row) => toPeer(row, row.keys, now)), nextPageToken: page.nextPageToken };
  }),

  removePeer: command(app, async (req, { tx, now }) => {
    const row = await lockPeer(tx, req.peerId);
    if (!row) throw notFound("peer", req.peerId);
    if (row.state !== PeerState.REMOVED) await withdraw(tx, row, now);
    return { peer: await shown(tx, (await findPeer(tx, row.peer_id))!, now) };
  }),

  rotatePeerKey: command(app, async (req, { tx, now }) => {
    const overlapMs = req.overlap ? durationMs(req.overlap) : defaultOverlapMs;
    const { publicKey } = req;
    if (!req.peerId) {
      if (publicKey.length > 0) throw badField("public_key", "this server makes its own key: name a peer, or no key");
      await rotateKey(tx, app, overlapMs, now);
      return { identity: await identityOf(tx, app) };
    }
    const row = await lockPeer(tx, req.peerId);
    if (!row) throw notFound("peer", req.peerId);
    checkActive(row);
    await checkKey(tx, app, publicKey, "public_key");
    await endPeerKeys(tx, row, now + overlapMs, now);
    if ((await insertPeerKey(tx, row, publicKey, now)) === 0) throw keyTaken("public_key");
    return { peer: await shown(tx, { ...row, update_ms: now }, now) };
  }),

  syncPeer: (request, context: HandlerContext) => syncPeer(app, request, context),
});

/** Before the transaction begins, since a name has to be resolved for it. */
async function checkBaseUrl(app: App, text: string): Promise<void> {
  await checkUrl(app.webhookEgress, text, "base_url", "an https URL");
  const { origin } = new URL(text);
  if (text !== origin && text !== `${origin}/`)
    throw badField("base_url", `must be a scheme, a host and perhaps a port, such as ${origin}`);
}
