/** A peer made by hand that is asked, too: it answers each envelope as a test says, signed. */
import { once } from "node:events";
import { createServer, type IncomingMessage, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { buffer } from "node:stream/consumers";
import { create, fromBinary, type MessageInitShape, toBinary } from "@bufbuild/protobuf";
import { errorToJsonBytes } from "@connectrpc/connect/protocol-connect";
import {
  type PeerEnvelope,
  PeerEnvelopeSchema,
  PeerReplySchema,
} from "../../gen/moltwire/federation/v1/peer_envelope_pb.ts";
import {
  HandlePeerCallRequestSchema,
  HandlePeerCallResponseSchema,
} from "../../gen/moltwire/federation/v1/peer_gateway_service_pb.ts";
import { Fault, toConnectError } from "../../src/errors.ts";
import { signMessage } from "../../src/federation/peer/signed-message.ts";
import type { World } from "../harness.ts";
import { type HandMade, handMade } from "./hand-made.ts";

type Body = NonNullable<Extract<MessageInitShape<typeof PeerReplySchema>, { $typeName?: never }>["body"]>;

export type Answering = AsyncDisposable &
  HandMade & {
    /** What it was asked, in order. */
    readonly asked: PeerEnvelope[];
    /** Gives the answer; one that does not come leaves who asks waiting, and a Fault is answered as one. */
    answer: (envelope: PeerEnvelope) => Promise<Body> | Body;
  };

function asFault(error: unknown): Fault {
  if (error instanceof Fault) return error;
  throw error;
}

/** Adds it to a server. */
export async function answering(world: World, init: Parameters<typeof handMade>[1] = {}): Promise<Answering> {
  const reply = async (request: IncomingMessage, response: ServerResponse) => {
    const { envelope: asked } = fromBinary(HandlePeerCallRequestSchema, await buffer(request));
    const envelope = fromBinary(PeerEnvelopeSchema, asked!.payload);
    peer.asked.push(envelope);
    const body = await new Promise<Body>((resolve) => resolve(peer.answer(envelope))).catch(asFault);
    if (body instanceof Fault) {
      response.writeHead(429, { "content-type": "application/json" });
      response.end(errorToJsonBytes(toConnectError(body), undefined));
      return;
    }
    const signed = signMessage(peer.key, PeerReplySchema, {
      ...{ version: 1, origin: peer.audience, audience: envelope.origin, inReplyTo: envelope.nonce },
      body,
    });
    response.setHeader("content-type", "application/proto");
    response.end(toBinary(HandlePeerCallResponseSchema, create(HandlePeerCallResponseSchema, { reply: signed })));
  };
  const server = createServer((request, response) => {
    // Who asks may have gone.
    reply(request, response).catch(() => response.destroy());
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  const baseUrl = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
  const peer: Answering = {
    ...(await handMade(world, { baseUrl, remoteOrgId: "org_there", ...init })),
    asked: [],
    answer: () => ({ case: "contracts", value: {} }),
    async [Symbol.asyncDispose]() {
      server.closeAllConnections();
      server.close();
      await once(server, "close");
    },
  };
  return peer;
}
