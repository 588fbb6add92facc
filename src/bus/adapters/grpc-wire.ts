/** The little of gRPC over HTTP/2 that calling an agent needs (https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md). */
import { unusable } from "./faults.ts";

const prefixBytes = 5;
const maxHeld = 1_024;

/** One message as gRPC frames it: not compressed. */
export function frame(message: Uint8Array): Uint8Array {
  const framed = Buffer.allocUnsafe(prefixBytes + message.length);
  framed[0] = 0;
  framed.writeUInt32BE(message.length, 1);
  framed.set(message, prefixBytes);
  return framed;
}

/** The messages of a body, each of at most `maxBytes`. Throws AGENT_BAD_RESPONSE for what is no such body. */
export async function* unframe(body: AsyncIterable<Uint8Array>, maxBytes: number): AsyncGenerator<Uint8Array> {
  let held: Uint8Array[] = [];
  let bytes = 0;
  let wanted = prefixBytes;
  let inMessage = false;
  for await (const chunk of body) {
    held.push(chunk);
    bytes += chunk.length;
    if (bytes < wanted) {
      // Many small chunks cost more than their bytes.
      if (held.length > maxHeld) held = [Buffer.concat(held)];
      continue;
    }
    let rest: Buffer = Buffer.concat(held);
    while (rest.length >= wanted) {
      const part = rest.subarray(0, wanted);
      rest = rest.subarray(wanted);
      if (inMessage) yield part;
      else if (part[0] !== 0)
        throw unusable("its message is compressed, which was not asked for, or is no gRPC message");
      wanted = inMessage ? prefixBytes : part.readUInt32BE(1);
      if (wanted > maxBytes) throw unusable(`its message has ${wanted} bytes; at most ${maxBytes} are taken`);
      inMessage = !inMessage;
    }
    held = [rest];
    bytes = rest.length;
  }
  if (bytes > 0 || inMessage) throw unusable("its last message is cut short");
}

/** A time as gRPC writes it: at most 8 digits and a unit. */
export const grpcTimeout = (ms: number): string => {
  const whole = Math.max(1, Math.floor(ms));
  return whole < 1e8 ? `${whole}m` : `${Math.floor(whole / 1_000)}S`;
};

/** Names of the status codes from 1 (https://grpc.github.io/grpc/core/md_doc_statuscodes.html), as Connect spells them. */
const codes = [
  "canceled",
  "unknown",
  "invalid_argument",
  "deadline_exceeded",
  "not_found",
  "already_exists",
  "permission_denied",
  "resource_exhausted",
  "failed_precondition",
  "aborted",
  "out_of_range",
  "unimplemented",
  "internal",
  "unavailable",
  "data_loss",
  "unauthenticated",
] as const;

/** How the call ended, by its trailers, or by its headers where nothing else came; undefined when they do not say. */
export function statusOf(
  fields: Readonly<Record<string, string>>,
): { readonly code: string | undefined; readonly message: string } | undefined {
  const status = fields["grpc-status"];
  if (status === undefined || !/^\d{1,3}$/.test(status)) return undefined;
  const number = Number(status);
  const code = number === 0 ? undefined : (codes[number - 1] ?? "unknown");
  return { code, message: percentDecoded(fields["grpc-message"] ?? "") };
}

function percentDecoded(text: string): string {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}
