/** One envelope to a peer, and its reply: signed, sent, checked. */
import { create, fromBinary, type MessageInitShape, toBinary } from "@bufbuild/protobuf";
import { durationMs, timestampFromMs } from "@bufbuild/protobuf/wkt";
import { Code, ConnectError } from "@connectrpc/connect";
import { codeToString, errorFromJsonBytes } from "@connectrpc/connect/protocol-connect";
import { ErrorInfoSchema, RetryInfoSchema } from "../../../gen/google/rpc/error_details_pb.ts";
import {
  PeerEnvelopeSchema,
  type PeerReply,
  PeerReplySchema,
} from "../../../gen/moltwire/federation/v1/peer_envelope_pb.ts";
import {
  HandlePeerCallRequestSchema,
  HandlePeerCallResponseSchema,
  PeerGatewayService,
} from "../../../gen/moltwire/federation/v1/peer_gateway_service_pb.ts";
import { PeerState } from "../../../gen/moltwire/federation/v1/peer_pb.ts";
import type { App } from "../../app.ts";
import type { EgressResponse } from "../../egress/egress.ts";
import { version } from "../../version.ts";
import { envelopeVersion } from "./door.ts";
import { digestText, sha256, signRequest } from "./http-signature.ts";
import { audienceOf, signingKey } from "./identity.ts";
import { keyBytes } from "./key.ts";
import { openMessage, signMessage } from "./signed-message.ts";
import { findByKey, findPeer, type PeerRow } from "./store.ts";
import { maxLifeMs } from "./times.ts";

type EnvelopeInit = Extract<MessageInitShape<typeof PeerEnvelopeSchema>, { $typeName?: never }>;

/** What is asked, and what goes with it. */
export type Errand = Pick<EnvelopeInit, "budgetLeftMicros" | "traceparent"> & {
  readonly body: NonNullable<EnvelopeInit["body"]>;
  readonly hops: number;
  /** For the whole call. */
  readonly timeoutMs: number;
  readonly signal?: AbortSignal;
};

/** A reply that was checked, the key of the peer that signed it, and what was asked as it was signed. */
export type Answered = {
  readonly body: PeerReply["body"];
  readonly publicKey: Uint8Array;
  readonly payload: Uint8Array;
};

/** The peer answered an error: nothing was begun, unless the code says that the answer was given up. */
export class PeerRefusal extends Error {
  override readonly name = "PeerRefusal";
  readonly code: string;
  readonly status: number;
  /** Its ErrorReason, or empty. */
  readonly reason: string;
  /** When it is worth asking again, in milliseconds from now; undefined: it did not say. */
  readonly retryAfterMs: number | undefined;
  constructor(code: string, status: number, reason: string, message: string, retryAfterMs?: number) {
    super(message);
    this.code = code;
    this.status = status;
    this.reason = reason;
    this.retryAfterMs = retryAfterMs;
  }
}

/** What the peer answered is no reply of it to this. */
export class BadReply extends Error {
  override readonly name = "BadReply";
}

/** The peer was removed: before anything was sent to it, or before its reply came, which is not taken. */
export class PeerGone extends Error {
  override readonly name = "PeerGone";
  readonly sent: boolean;
  constructor(sent: boolean) {
    super("the peer was removed");
    this.sent = sent;
  }
}

/** The largest reply: an output of 1 MiB, or ten contracts. */
const maxReplyBytes = 4 * 1_048_576;
const path = `/${PeerGatewayService.typeName}/${PeerGatewayService.method.handlePeerCall.name}`;
const contentType = "application/proto";

/** Throws EgressError, {@link PeerRefusal}, {@link BadReply} or {@link PeerGone}. */
export async function ask(app: App, peer: PeerRow, errand: Errand): Promise<Answered> {
  const { body, hops, timeoutMs, signal, traceparent = "", budgetLeftMicros } = errand;
  await checkThere(app, peer, false);
  const key = await signingKey(app);
  const now = app.clock.now();
  const nonce = Buffer.from(app.ids.bytes(16)).toString("hex");
  // HTTP signatures count in whole seconds, and the envelope must not outlive its own.
  const createdS = Math.floor(now / 1_000);
  const expiresS = createdS + maxLifeMs / 1_000;
  const envelope = signMessage(key, PeerEnvelopeSchema, {
    version: envelopeVersion,
    origin: audienceOf(app),
    audience: peer.audience,
    createTime: timestampFromMs(createdS * 1_000),
    expireTime: timestampFromMs(expiresS * 1_000),
    nonce,
    hops,
    ...(budgetLeftMicros !== undefined && { budgetLeftMicros }),
    traceparent,
    body,
  });
  const bytes = toBinary(HandlePeerCallRequestSchema, create(HandlePeerCallRequestSchema, { envelope }));
  const url = new URL(path, peer.base_url).href;
  const request = { method: "POST", url, contentType, contentDigest: digestText(sha256(bytes)) };
  const response = await app.egress.fetch({
    ...{ url, method: "POST", body: bytes, timeoutMs, maxResponseBytes: maxReplyBytes },
    headers: {
      ...signRequest(key, request, { createdS, expiresS, nonce, keyId: key.keyId }),
      "connect-protocol-version": "1",
      "connect-timeout-ms": String(Math.max(1, Math.floor(timeoutMs))),
      "user-agent": `moltwire/${version}`,
      ...(traceparent && { traceparent }),
    },
    ...(signal && { signal }),
  });
  await checkThere(app, peer, true);
  if (response.status !== 200) throw refusalOf(response);
  return { ...(await replyOf(app, peer, response, nonce)), payload: envelope.payload };
}

async function checkThere(app: App, { peer_id }: PeerRow, sent: boolean): Promise<void> {
  if ((await findPeer(app.db.query, peer_id))?.state !== PeerState.ACTIVE) throw new PeerGone(sent);
}

/** The reply, if it is one of the peer to this very message. */
async function replyOf(
  app: App,
  peer: PeerRow,
  response: EgressResponse,
  nonce: string,
): Promise<Pick<Answered, "body" | "publicKey">> {
  const signed = read(response)?.reply;
  if (!signed) throw new BadReply("its answer is no reply");
  const signer = await findByKey(app.db.query, signed.keyId, app.clock.now());
  if (signer?.peer_id !== peer.peer_id) throw new BadReply("its reply is signed by a key that it does not have");
  const publicKey = keyBytes(signer.public_key);
  const reply = openMessage(signed, publicKey, PeerReplySchema);
  if (!reply) throw new BadReply("its reply is not signed by it");
  if (reply.version !== envelopeVersion) throw new BadReply(`its reply is of version ${reply.version}`);
  if (reply.origin !== peer.audience || reply.audience !== audienceOf(app) || reply.inReplyTo !== nonce)
    throw new BadReply("its reply is to something else");
  return { body: reply.body, publicKey };
}

function read({ body }: EgressResponse) {
  try {
    return fromBinary(HandlePeerCallResponseSchema, body);
  } catch {
    return undefined;
  }
}

/** An error as Connect writes it, or whatever the server behind the URL says. */
function refusalOf({ status, body }: EgressResponse): PeerRefusal {
  const unsaid = new ConnectError(`it answered ${status}`, Code.Unknown);
  try {
    const error = errorFromJsonBytes(body, undefined, unsaid);
    const reason = error.findDetails(ErrorInfoSchema)[0]?.reason ?? "";
    const delay = error.findDetails(RetryInfoSchema)[0]?.retryDelay;
    return new PeerRefusal(codeToString(error.code), status, reason, error.rawMessage, delay && durationMs(delay));
  } catch {
    return new PeerRefusal("", status, "", unsaid.rawMessage);
  }
}
