/** Who comes in by the door for other servers: everything that has to hold of a message before anything is done for it. */
import { timestampMs } from "@bufbuild/protobuf/wkt";
import { createValidator } from "@bufbuild/protovalidate";
import type { HandlerContext } from "@connectrpc/connect";
import {
  type PeerEnvelope,
  PeerEnvelopeSchema,
  type SignedMessage,
} from "../../../gen/moltwire/federation/v1/peer_envelope_pb.ts";
import { PeerState } from "../../../gen/moltwire/federation/v1/peer_pb.ts";
import type { App } from "../../app.ts";
import type { Queryable } from "../../db/db.ts";
import { Fault } from "../../errors.ts";
import { bodyDigestKey } from "../../rpc/body-digest.ts";
import { clientAddressKey } from "../../rpc/client-address.ts";
import { addressGroup, take } from "../../rpc/limits.ts";
import { isNonceTaken, takeNonce } from "./call-store.ts";
import { digestText, holds, readSignature } from "./http-signature.ts";
import { audienceOf } from "./identity.ts";
import { keyBytes } from "./key.ts";
import { signedUrls } from "./public-names.ts";
import { openMessage } from "./signed-message.ts";
import { findByKey, findPeer, type PeerRow } from "./store.ts";
import { checkTimes, skewMs } from "./times.ts";

/** How often work goes from one server to another at most. */
export const maxHops = 4;
/** The version of envelopes, replies and receipts. */
export const envelopeVersion = 1;

/** A message that was let in: whose, and what it says. Its nonce is used. */
export type Arrival = { readonly peer: PeerRow; readonly envelope: PeerEnvelope; readonly signed: SignedMessage };

const validator = createValidator();

/**
 * Throws a Fault of a PEER_ reason, in the order that HandlePeerCall names, or RATE_LIMITED. What is refused counts against the address that it comes from: whoever has seen a message of a peer
 * can send it again as often as it likes, and must not use up what the peer may ask. What is let in counts against the peer, before anything is written for it.
 */
export async function letIn(app: App, signed: SignedMessage, context: HandlerContext): Promise<Arrival> {
  const address = addressGroup(context.values.get(clientAddressKey));
  const counted = async (error: unknown): Promise<never> => {
    if (error instanceof Fault) await take(app.limiters.addresses, "address", address, context.responseHeader);
    throw error;
  };
  const { peer, envelope, expireMs } = await check(app, signed, context).catch(counted);
  await take(app.limiters.peers, "peer", peer.peer_id, context.responseHeader);
  const taken = await app.db.tx((tx) => takeNonce(tx, signed.keyId, envelope.nonce, expireMs));
  return taken === 0 ? counted(replayed(envelope)) : { peer, envelope, signed };
}

/** All that can be found out without writing; and until when the nonce is to be remembered. */
async function check(
  app: App,
  signed: SignedMessage,
  context: HandlerContext,
): Promise<{ readonly peer: PeerRow; readonly envelope: PeerEnvelope; readonly expireMs: number }> {
  const now = app.clock.now();
  const { peer, nonce } = await whose(app, context, now);
  const digest = context.values.get(bodyDigestKey)();
  if (!digest || digestText(digest) !== context.requestHeader.get("content-digest"))
    throw new Fault("PEER_DIGEST_MISMATCH", "the body is not the one whose digest was signed");
  checkTimes(nonce.createMs, nonce.expireMs, now);
  const envelope = openMessage(signed, keyBytes(peer.public_key), PeerEnvelopeSchema);
  if (!envelope || signed.keyId !== nonce.keyId)
    throw notSigned("the envelope is not signed by the key that signed the request");
  checkEnvelope(app, peer, envelope, nonce.text, now);
  if (await isNonceTaken(app.db.query, signed.keyId, envelope.nonce)) throw replayed(envelope);
  return { peer, envelope, expireMs: Math.max(timestampMs(envelope.expireTime!), nonce.expireMs) + skewMs };
}

type Nonce = { readonly text: string; readonly keyId: string; readonly createMs: number; readonly expireMs: number };

/** The peer whose key signed the request. */
async function whose(
  app: App,
  { requestMethod, url, requestHeader }: HandlerContext,
  now: number,
): Promise<{ readonly peer: PeerRow & { readonly public_key: string }; readonly nonce: Nonce }> {
  const read = signedUrls(app.config.publicNames, url).map((at) => readSignature(requestMethod, at, requestHeader));
  const [signature] = read;
  if (!signature) throw notSigned("there is no signature of the form that HandlePeerCall names");
  const { keyId, nonce: text, createdS, expiresS } = signature;
  const peer = await findByKey(app.db.query, keyId, now);
  if (!peer) throw unknownPeer(keyId);
  const publicKey = keyBytes(peer.public_key);
  if (!read.some((one) => one && holds(one, publicKey)))
    throw notSigned(
      "another key signed the request, what was signed has been changed, or it is for a server of another name",
    );
  return { peer, nonce: { text, keyId, createMs: createdS * 1_000, expireMs: expiresS * 1_000 } };
}

/** What has to hold of the envelope itself, whatever it came over. */
function checkEnvelope(app: App, peer: PeerRow, envelope: PeerEnvelope, nonce: string, now: number): void {
  if (envelope.version !== envelopeVersion)
    throw invalid(`it is of version ${envelope.version}, and this server knows ${envelopeVersion}`);
  const checked = validator.validate(PeerEnvelopeSchema, envelope);
  if (checked.kind === "error") throw checked.error;
  if (checked.kind === "invalid") throw invalid(`${checked.violations[0]?.message ?? "it breaks its schema"}`);
  if (envelope.origin !== peer.audience) throw invalid("its origin is not the server that signed it");
  if (envelope.nonce !== nonce) throw invalid("its nonce is not that of the request's signature");
  checkTimes(timestampMs(envelope.createTime!), timestampMs(envelope.expireTime!), now);
  const { audience, hops } = envelope;
  if (audience !== audienceOf(app))
    throw new Fault("PEER_AUDIENCE_WRONG", "the message is for another server", { audience });
  if (hops > maxHops) {
    const metadata = { hops: String(hops), limit: String(maxHops) };
    throw new Fault("PEER_HOPS_EXCEEDED", `the work has gone from server to server ${hops} times`, metadata);
  }
}

/** PEER_UNKNOWN when the peer was removed since its message was let in. */
export async function checkPeer(db: Queryable, { peer, signed }: Arrival): Promise<void> {
  if ((await findPeer(db, peer.peer_id))?.state !== PeerState.ACTIVE) throw unknownPeer(signed.keyId);
}

const unknownPeer = (keyId: string): Fault =>
  new Fault("PEER_UNKNOWN", "no peer of this server has the key", { key_id: keyId });
const replayed = ({ nonce }: PeerEnvelope): Fault =>
  new Fault("PEER_MESSAGE_REPLAYED", "the message was taken before", { nonce });
const notSigned = (detail: string): Fault =>
  new Fault("PEER_SIGNATURE_INVALID", `the signature is not good: ${detail}`, { detail });
const invalid = (detail: string): Fault =>
  new Fault("PEER_ENVELOPE_INVALID", `the envelope cannot be taken: ${detail}`, { detail });
