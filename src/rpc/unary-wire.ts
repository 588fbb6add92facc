/** How a unary call that goes the short way lies on the wire: by Connect as it is, by gRPC and gRPC-Web in an envelope with a status after it. */
import { Code, ConnectError } from "@connectrpc/connect";
import {
  type Compression,
  encodeEnvelope,
  mergeNonProtocolHeaders,
  type UniversalHandlerOptions,
} from "@connectrpc/connect/protocol";
import { codeToHttpStatus, errorToJsonBytes } from "@connectrpc/connect/protocol-connect";
import * as grpc from "@connectrpc/connect/protocol-grpc";
import * as grpcWeb from "@connectrpc/connect/protocol-grpc-web";
import type { Answer } from "./answer.ts";
import { prefixBytes } from "./malformed.ts";

/** What is answered: headers, trailers if there are any, and bytes or why there are none. */
export type Reply = {
  readonly header: Headers;
  readonly trailer: Headers | undefined;
  readonly isBinary: boolean;
  readonly jsonOptions: UniversalHandlerOptions["jsonOptions"] | undefined;
  /** What packs the answer, of which its reader knows how to unpack it. */
  readonly pack: (bytes: Uint8Array) => Compression | undefined;
};

/** A protocol. */
export type Wire = {
  /** As Connect calls it. */
  readonly name: "connect" | "grpc" | "grpc-web";
  /** Whether the message comes in an envelope. */
  readonly isEnveloped: boolean;
  /** By which header a request says how long it waits, how it is packed, and what answers may be. */
  readonly headers: { readonly timeout: string; readonly encoding: string; readonly accepts: string };
  /** The message in a whole body. Throws a ConnectError for a body that is not one message. */
  readonly messageIn: (body: Uint8Array) => Uint8Array;
  readonly answer: (reply: Reply, bytes: Uint8Array) => Promise<Answer>;
  readonly refusal: (reply: Reply, error: ConnectError) => Promise<Answer>;
};

const status200 = 200;
const compressedFlag = 1;

/** See https://connectrpc.com/docs/protocol#unary-request. */
export const connectWire: Wire = {
  name: "connect",
  isEnveloped: false,
  headers: { timeout: "connect-timeout-ms", encoding: "content-encoding", accepts: "accept-encoding" },
  messageIn: (body) => body,
  answer(reply, bytes) {
    reply.header.set("content-type", reply.isBinary ? "application/proto" : "application/json");
    return packed(reply, status200, bytes);
  },
  refusal(reply, error) {
    if (!error.isWireError) mergeNonProtocolHeaders(reply.header, error.metadata);
    reply.header.set("content-type", "application/json");
    return packed(reply, codeToHttpStatus(error.code), errorToJsonBytes(error, reply.jsonOptions));
  },
};

async function packed(reply: Reply, status: number, bytes: Uint8Array): Promise<Answer> {
  const { header, trailer, pack } = reply;
  for (const [name, value] of trailer ?? []) header.append(`trailer-${name}`, value);
  const by = pack(bytes);
  if (!by) return { status, header, body: bytes };
  header.set("content-encoding", by.name);
  return { status, header, body: await by.compress(bytes) };
}

const grpcHeaders = { timeout: "grpc-timeout", encoding: "grpc-encoding", accepts: "grpc-accept-encoding" } as const;

/** See https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md. Its status is in trailers, which HTTP/2 has. */
export const grpcWire: Wire = {
  name: "grpc",
  isEnveloped: true,
  headers: grpcHeaders,
  messageIn: (body) => onlyMessage(body, 0),
  answer: async (reply, bytes) => ({ ...(await enveloped(grpc, reply, bytes)), trailer: trailerOf(reply, undefined) }),
  refusal: async (reply, error) => ({ ...headed(grpc, reply, new Uint8Array(0)), trailer: trailerOf(reply, error) }),
};

/** See https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-WEB.md. Its status is a last envelope, which browsers can read. */
export const grpcWebWire: Wire = {
  name: "grpc-web",
  isEnveloped: true,
  headers: grpcHeaders,
  messageIn: (body) => onlyMessage(body, grpcWeb.trailerFlag),
  async answer(reply, bytes) {
    const answer = await enveloped(grpcWeb, reply, bytes);
    return { ...answer, body: Buffer.concat([answer.body, webTrailer(reply, undefined)]) };
  },
  refusal: async (reply, error) => headed(grpcWeb, reply, webTrailer(reply, error)),
};

const trailerOf = ({ trailer }: Reply, error: ConnectError | undefined): Headers =>
  grpc.setTrailerStatus(trailer ?? new Headers(), error);

const webTrailer = (reply: Reply, error: ConnectError | undefined): Uint8Array =>
  encodeEnvelope(grpcWeb.trailerFlag, grpcWeb.trailerSerialize(trailerOf(reply, error)));

type Types = { readonly contentTypeProto: string; readonly contentTypeJson: string };

function headed(types: Types, { header, isBinary }: Reply, body: Uint8Array): Answer {
  header.set("content-type", isBinary ? types.contentTypeProto : types.contentTypeJson);
  return { status: status200, header, body };
}

async function enveloped(types: Types, reply: Reply, bytes: Uint8Array): Promise<Answer> {
  const by = reply.pack(bytes);
  if (!by) return headed(types, reply, encodeEnvelope(0, bytes));
  reply.header.set("grpc-encoding", by.name);
  return headed(types, reply, encodeEnvelope(compressedFlag, await by.compress(bytes)));
}

/** The one message of a body of envelopes that are not packed; those marked by `skipped`, if any, are no messages. */
function onlyMessage(body: Uint8Array, skipped: number): Uint8Array {
  const view = new DataView(body.buffer, body.byteOffset, body.byteLength);
  let message: Uint8Array | undefined;
  for (let at = 0; at < body.byteLength; ) {
    const end = at + prefixBytes <= body.byteLength ? at + prefixBytes + view.getUint32(at + 1) : Infinity;
    if (end > body.byteLength) throw new ConnectError("protocol error: incomplete envelope", Code.InvalidArgument);
    const flags = body[at]!;
    if ((flags & compressedFlag) !== 0)
      throw new ConnectError(
        "protocol error: received compressed envelope, but no compression was named",
        Code.Internal,
      );
    if (skipped === 0 || (flags & skipped) !== skipped) {
      if (message) throw new ConnectError("protocol error: received extra input message", Code.Unimplemented);
      message = body.subarray(at + prefixBytes, end);
    }
    at = end;
  }
  if (!message) throw new ConnectError("protocol error: missing input message", Code.Unimplemented);
  return message;
}
