// Request bodies as strangers send them: read within limits, and their faults named as the sender's.

import { Code, ConnectError } from "@connectrpc/connect";
import { ErrorInfoSchema } from "../../gen/google/rpc/error_details_pb.ts";
import { Fault, toConnectError } from "../errors.ts";
import type { RawRequest } from "./answer.ts";

/** Limits on one request's body. */
export type BodyLimits = {
  /** Bytes of one message as it is on the wire. More is `resource_exhausted`. */
  maxBytes: number;
  /** From the first look at the body to its end. Later is `deadline_exceeded`. Undefined for bodies that are streams. */
  timeoutMs: number | undefined;
};

/** Before the bytes of a message in an envelope: flags, and its length. */
export const prefixBytes = 5;

/**
 * A body that is one message, in a single chunk, or none if it is empty. It is read when it is asked for, by events: iterating
 * over a request costs several times as much, on every unary call.
 *
 * The request outlives its reader: failing does not destroy it, so that the answer still gets out.
 *
 * @throws ConnectError as {@link readEnvelopes}; `canceled` when the sender leaves before the end.
 */
export function readWhole(request: RawRequest, limits: BodyLimits): AsyncIterable<Uint8Array> {
  let isRead = false;
  const end = { done: true, value: undefined } as const;
  const iterator: AsyncIterator<Uint8Array> = {
    next: async () => {
      if (isRead) return end;
      isRead = true;
      const value = await collect(request, limits);
      return value.length === 0 ? end : { done: false, value };
    },
    return: async () => end,
  };
  return { [Symbol.asyncIterator]: () => iterator };
}

/**
 * A body that is one message, or an envelope with one; see {@link readWhole}. An envelope that announces more than is taken is refused before
 * that comes.
 */
export function collect(
  request: RawRequest,
  { maxBytes: maxMessageBytes, timeoutMs }: BodyLimits,
  isEnveloped = false,
): Promise<Buffer> {
  const maxBytes = maxMessageBytes + (isEnveloped ? prefixBytes : 0);
  // A canceled HTTP/2 request ends as one whose body is empty.
  if (request.aborted) return Promise.reject(senderLeft());
  if (Number(request.headers["content-length"]) > maxBytes) return Promise.reject(tooLarge(maxMessageBytes));
  if (request.readableEnded) return Promise.resolve(Buffer.alloc(0));
  if (request.destroyed) return Promise.reject(senderLeft());
  return new Promise((resolve, reject) => {
    const held = gather(maxBytes);
    // Most bodies come in one piece, which needs no copy.
    let only: Buffer | undefined;
    const announces = (bytes: Buffer) =>
      isEnveloped && bytes.length >= prefixBytes && bytes.readUInt32BE(1) > maxMessageBytes;
    const release = () => {
      clearTimeout(timer);
      request.off("data", onData).off("end", onEnd).off("close", onLeave).off("error", onLeave);
    };
    const fail = (error: ConnectError) => {
      release();
      request.pause();
      reject(error);
    };
    const onData = (chunk: Buffer) => {
      if (only === undefined && held.length === 0 && chunk.length <= maxBytes) {
        only = chunk;
        if (announces(chunk)) fail(tooLarge(maxMessageBytes));
        return;
      }
      if (only !== undefined) held.add(only);
      only = undefined;
      if (!held.add(chunk) || announces(held.seen())) fail(tooLarge(maxMessageBytes));
    };
    const onLeave = () => fail(senderLeft());
    const onEnd = () => {
      if (request.aborted) return onLeave();
      release();
      resolve(only ?? held.take());
    };
    const timer = timeoutMs === undefined ? undefined : setTimeout(() => fail(tooLate(timeoutMs)), timeoutMs);
    request.on("end", onEnd).on("close", onLeave).on("error", onLeave).on("data", onData);
  });
}

const senderLeft = () => new ConnectError("the client went away", Code.Canceled);

/**
 * A body of envelopes in whole messages, one chunk per envelope, each shown to `see` first. Every byte is copied once, into
 * one buffer: a body that comes in thousands of small pieces would otherwise hold thousands of buffers, and be summed up
 * again for each of them.
 *
 * The request outlives its reader: leaving early does not destroy it, so that the answer still gets out.
 *
 * @throws ConnectError `resource_exhausted` as soon as a message is announced or found to be larger than the limit;
 * `deadline_exceeded` when it comes too slowly.
 */
export async function* readEnvelopes(
  request: RawRequest,
  limits: BodyLimits,
  see: (envelope: Uint8Array) => void,
): AsyncGenerator<Uint8Array> {
  const held = gather(limits.maxBytes + prefixBytes);
  const take = () => {
    const envelope = held.take();
    see(envelope);
    return envelope;
  };
  let wanted = prefixBytes;
  for await (const chunk of chunksInTime(request, limits.timeoutMs)) {
    let rest: Buffer = chunk;
    while (rest.length > 0) {
      const part = rest.subarray(0, wanted - held.length);
      rest = rest.subarray(part.length);
      if (!held.add(part)) throw tooLarge(limits.maxBytes);
      if (held.length < wanted) break;
      if (wanted === prefixBytes) {
        wanted += held.messageBytes();
        if (wanted - prefixBytes > limits.maxBytes) throw tooLarge(limits.maxBytes);
      }
      if (held.length === wanted) {
        yield take();
        wanted = prefixBytes;
      }
    }
  }
  if (held.length > 0) yield take();
}

function tooLarge(maxBytes: number): ConnectError {
  return new ConnectError(`the message is larger than ${maxBytes} bytes`, Code.ResourceExhausted);
}

const tooLate = (timeoutMs: number | undefined): ConnectError =>
  toConnectError(new Fault("DEADLINE_EXCEEDED", `the body did not arrive within ${timeoutMs} ms`));

/** A buffer that grows by doubling up to its limit. */
function gather(maxBytes: number) {
  let buffer = Buffer.alloc(0);
  let length = 0;
  return {
    get length() {
      return length;
    },
    /** False if it does not fit. */
    add(part: Buffer): boolean {
      const needed = length + part.length;
      if (needed > maxBytes) return false;
      if (needed > buffer.length) {
        const larger = Buffer.allocUnsafeSlow(Math.min(maxBytes, Math.max(needed, 2 * buffer.length)));
        buffer.copy(larger, 0, 0, length);
        buffer = larger;
      }
      part.copy(buffer, length);
      length = needed;
      return true;
    },
    /** What the prefix announces. */
    messageBytes: () => buffer.readUInt32BE(1),
    /** What is held, which stays. */
    seen: () => buffer.subarray(0, length),
    take(): Buffer {
      const whole = buffer.subarray(0, length);
      buffer = Buffer.alloc(0);
      length = 0;
      return whole;
    },
  };
}

async function* chunksInTime(request: RawRequest, timeoutMs: number | undefined): AsyncGenerator<Buffer> {
  const chunks = request.iterator({ destroyOnReturn: false }) as AsyncIterator<Buffer>;
  let late: (() => void) | undefined;
  let isLate = false;
  const timer =
    timeoutMs === undefined
      ? undefined
      : setTimeout(() => {
          isLate = true;
          late?.();
        }, timeoutMs);
  try {
    for (;;) {
      const next = await new Promise<IteratorResult<Buffer>>((resolve, reject) => {
        late = () => reject(tooLate(timeoutMs));
        if (isLate) late();
        else chunks.next().then(resolve, reject);
      });
      if (next.done === true) return;
      yield next.value;
    }
  } finally {
    clearTimeout(timer);
    // It may be waiting for a chunk that never comes.
    chunks.return?.().catch(() => {});
  }
}

/**
 * What went wrong between a request's bytes and its message, as the sender's fault. Connect calls malformed binary and cut-off gzip `internal`
 * and lets other decoders' errors through as they are; both become `invalid_argument`.
 */
export function requestFault(error: unknown): ConnectError {
  if (!(error instanceof ConnectError)) return malformed("the request could not be decoded", error);
  if (error.code !== Code.Internal && error.code !== Code.InvalidArgument) return error;
  return error.findDetails(ErrorInfoSchema).length > 0 ? error : malformed(error.rawMessage, error);
}

const malformed = (message: string, cause: unknown): ConnectError =>
  toConnectError(new Fault("MALFORMED_REQUEST", message, {}, { cause }));

/**
 * Whether a body of envelopes begins with one marked as compressed though the request names no compression. That alone is
 * `internal` by the letter of the protocols (https://github.com/grpc/grpc/blob/master/doc/compression.md), and stays so.
 */
export function isWronglyCompressed(request: RawRequest, firstEnvelope: Uint8Array): boolean {
  const encoding = request.headers["grpc-encoding"] ?? request.headers["connect-content-encoding"] ?? "identity";
  return encoding === "identity" && ((firstEnvelope[0] ?? 0) & 1) === 1;
}
