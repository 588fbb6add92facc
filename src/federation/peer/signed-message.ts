/** Messages with the signature of the server that wrote them, whatever they come over. */
import {
  create,
  type DescMessage,
  fromBinary,
  type MessageInitShape,
  type MessageShape,
  toBinary,
} from "@bufbuild/protobuf";
import { type SignedMessage, SignedMessageSchema } from "../../../gen/moltwire/federation/v1/peer_envelope_pb.ts";
import { isSignedBy, type SigningKey, signBytes } from "./key.ts";

/** What is signed: the name of the message too, so that none can be taken for one of another kind. */
const signed = (schema: DescMessage, payload: Uint8Array): Uint8Array =>
  Buffer.concat([Buffer.from(`${schema.typeName}\0`), payload]);

export function signMessage<Desc extends DescMessage>(
  key: SigningKey,
  schema: Desc,
  init: MessageInitShape<Desc>,
): SignedMessage {
  const payload = toBinary(schema, create(schema, init));
  return create(SignedMessageSchema, {
    payload,
    keyId: key.keyId,
    signature: signBytes(key, signed(schema, payload)),
  });
}

/** The message; undefined when it is not signed by the key whose public half this is, or is none of this kind. */
export function openMessage<Desc extends DescMessage>(
  { payload, signature }: SignedMessage,
  publicKey: Uint8Array,
  schema: Desc,
): MessageShape<Desc> | undefined {
  if (!isSignedBy(publicKey, signed(schema, payload), signature)) return undefined;
  try {
    return fromBinary(schema, payload);
  } catch {
    return undefined;
  }
}
