/** A peer that is no server but a key: it writes messages as it likes, and sends them over a real socket. */
import { randomBytes } from "node:crypto";
import { once } from "node:events";
import { type IncomingMessage, request } from "node:http";
import { buffer } from "node:stream/consumers";
import { create, fromBinary, type MessageInitShape, toBinary } from "@bufbuild/protobuf";
import { durationFromMs, timestampFromMs } from "@bufbuild/protobuf/wkt";
import { Code, ConnectError } from "@connectrpc/connect";
import { errorFromJsonBytes } from "@connectrpc/connect/protocol-connect";
import { ErrorInfoSchema } from "../../gen/google/rpc/error_details_pb.ts";
import {
  PeerEnvelopeSchema,
  type PeerReply,
  PeerReplySchema,
} from "../../gen/moltwire/federation/v1/peer_envelope_pb.ts";
import {
  HandlePeerCallRequestSchema,
  HandlePeerCallResponseSchema,
} from "../../gen/moltwire/federation/v1/peer_gateway_service_pb.ts";
import type { AddPeerRequestSchema } from "../../gen/moltwire/federation/v1/peer_service_pb.ts";
import { digestText, sha256, signRequest } from "../../src/federation/peer/http-signature.ts";
import { publicHalf, type SigningKey, signingKeyOf } from "../../src/federation/peer/key.ts";
import { signMessage } from "../../src/federation/peer/signed-message.ts";
import { unique, type World } from "../harness.ts";

type Fields<Shape> = Partial<Extract<Shape, { $typeName?: never }>>;
type Envelope = Extract<MessageInitShape<typeof PeerEnvelopeSchema>, { $typeName?: never }>;

/** What is asked. */
type Asked = NonNullable<Envelope["body"]>;

/** What a message has that is not as it should be. */
export type Odd = {
  readonly envelope?: Omit<Partial<Envelope>, "body"> & { readonly body?: Asked };
  /** Signs the envelope. */
  readonly envelopeKey?: SigningKey;
  /** Signs the request, in the name of the peer's own key. */
  readonly requestKey?: SigningKey;
  /** When all of it was made, from now. */
  readonly madeMs?: number;
  readonly livesMs?: number;
  /** Of the request's signature alone. */
  readonly requestMadeMs?: number;
  /** Where it is sent to as its signature says. */
  readonly url?: string;
};

/** A request as it goes over the wire. */
export type Message = { readonly body: Uint8Array; readonly headers: Readonly<Record<string, string>> };

/** What came back: a reply, or the reason of an error. */
export type Back = {
  readonly status: number;
  readonly reason: string;
  readonly header: Headers;
  readonly reply?: PeerReply;
};

export const newKey = (): { readonly key: SigningKey; readonly publicKey: Uint8Array } => {
  const bytes = randomBytes(32);
  return { key: signingKeyOf(bytes), publicKey: publicHalf(bytes) };
};

const path = "/moltwire.federation.v1.PeerGatewayService/HandlePeerCall";

export type HandMade = {
  readonly key: SigningKey;
  readonly publicKey: Uint8Array;
  readonly peerId: string;
  readonly orgId: string;
  readonly agentId: string;
  readonly audience: string;
  /** A message that is all right, but for what is odd. Without a body: a wish to leave work that there is not. */
  write(odd?: Odd): Message;
  /** A call as such a message asks for it. */
  call(callId: string, orgId: string, contractId: string, timeoutMs?: number): Asked;
};

/** How it is added. */
type Init = Fields<MessageInitShape<typeof AddPeerRequestSchema>>;

/** Adds a peer that is made by hand. */
export async function handMade({ operator, url, server }: World, init: Init = {}): Promise<HandMade> {
  const { key, publicKey } = newKey();
  const { audience = unique("hand-made") } = init;
  const { peer } = await operator.peers.addPeer({
    ...{ name: unique("hand-made"), baseUrl: "http://127.0.0.1:9", audience, publicKeys: [publicKey] },
    ...init,
  });
  const to = (await operator.peers.getIdentity({})).identity!.audience;
  const write: HandMade["write"] = (odd = {}) => {
    const at = server.app.clock.now();
    const now = at + (odd.madeMs ?? 0);
    const livesMs = odd.livesMs ?? 120_000;
    const nonce = randomBytes(16).toString("hex");
    const envelope = signMessage(odd.envelopeKey ?? key, PeerEnvelopeSchema, {
      ...{ version: 1, origin: audience, audience: to, nonce, hops: 1, traceparent: "" },
      ...{ createTime: timestampFromMs(now), expireTime: timestampFromMs(now + livesMs) },
      body: { case: "cancel", value: { callId: "nothing" } },
      ...odd.envelope,
    });
    const body = toBinary(HandlePeerCallRequestSchema, create(HandlePeerCallRequestSchema, { envelope }));
    const asked = {
      ...{ method: "POST", url: new URL(path, odd.url ?? url).href, contentType: "application/proto" },
      contentDigest: digestText(sha256(body)),
    };
    const createdS = Math.floor((at + (odd.requestMadeMs ?? odd.madeMs ?? 0)) / 1_000);
    const params = { createdS, expiresS: createdS + livesMs / 1_000, keyId: key.keyId };
    const named = { ...params, nonce: odd.envelope?.nonce ?? nonce };
    const headers = signRequest(odd.requestKey ?? key, asked, named);
    return { body, headers: { ...headers, "connect-protocol-version": "1" } };
  };
  const call: HandMade["call"] = (callId, orgId, contractId, timeoutMs = 10_000) => ({
    case: "call",
    value: { callId, orgId, contractId, timeout: durationFromMs(timeoutMs) },
  });
  const { peerId, orgId, agentId, audience: own } = peer!;
  return { key, publicKey, audience: own, peerId, orgId, agentId, write, call };
}

/** Sends a message, over a connection of its own. */
export async function post(url: string, { body, headers }: Message): Promise<Back> {
  const sent = request(new URL(path, url), { method: "POST", headers, agent: false }).end(body);
  const [response] = (await once(sent, "response")) as [IncomingMessage];
  const bytes = await buffer(response);
  const header = new Headers(Object.entries(response.headers).map(([name, value]) => [name, String(value)]));
  const status = response.statusCode!;
  if (status === 200) {
    const { reply } = fromBinary(HandlePeerCallResponseSchema, bytes);
    return { status, header, reason: "", reply: fromBinary(PeerReplySchema, reply!.payload) };
  }
  const error = errorFromJsonBytes(bytes, undefined, new ConnectError("no error of Connect", Code.Unknown));
  return { status, header, reason: error.findDetails(ErrorInfoSchema)[0]?.reason ?? "" };
}
