// What compressed messages may cost. Connect's own compressions unpack in steps of 16 KiB, each of them a turn of the event loop, and pack in a thread whatever it is.

import { promisify } from "node:util";
import * as zlib from "node:zlib";
import { Code, ConnectError } from "@connectrpc/connect";
import type { Compression } from "@connectrpc/connect/protocol";
import { compressionBrotli, compressionGzip } from "@connectrpc/connect-node";
import { brotliAnnounced, gzipAnnounced } from "./announced.ts";

type Bytes = Uint8Array<ArrayBuffer>;
type Unpack = (bytes: Uint8Array, options: { maxOutputLength: number; chunkSize?: number }) => Promise<Buffer>;

const gunzip: Unpack = promisify(zlib.gunzip);
const unbrotli: Unpack = promisify(zlib.brotliDecompress);
const packBrotli: (bytes: Uint8Array, options: zlib.BrotliOptions) => Promise<Buffer> = promisify(zlib.brotliCompress);

/** What most messages fit into. So much is packed in half of the processor time or less where it is, without a thread that has to be told and to tell; 64 KiB take the same. */
const smallBytes = 16_384;
/** By brotli's own default of 11, 12 KB take 12 ms of a processor, and by this 0.2 ms, and become a twelfth longer. */
const brotliParams = { [zlib.constants.BROTLI_PARAM_QUALITY]: 4 };
const stepBytes = 262_144;
/** Large messages that are unpacked at once, in all: of each the whole may be in memory, and as many processors are busy. */
const largeAtOnce = 2;

/**
 * Gzip within the limits, as Connect's own: throws `resource_exhausted` for what becomes too large, `invalid_argument` for what cannot be unpacked. What is honest
 * about its size is not unpacked when it is too large.
 */
export const gzip: Compression = {
  ...compressionGzip,
  compress: async (bytes) =>
    bytes.byteLength <= smallBytes ? own(zlib.gzipSync(bytes)) : compressionGzip.compress(bytes),
  async decompress(packed, readMaxBytes) {
    if (packed.length === 0) return new Uint8Array(0);
    const small = await unpackSmall(gunzip, packed, readMaxBytes);
    if (small !== undefined) return small;
    if (gzipAnnounced(packed) > readMaxBytes) throw tooLarge(readMaxBytes);
    return unpackLarge(gunzip, packed, readMaxBytes);
  },
};

/** The same of brotli. To see only the beginning of a bomb would take 8 ms, so it is believed first. */
export const brotli: Compression = {
  ...compressionBrotli,
  compress: async (bytes) => own(await packBrotli(bytes, { params: brotliParams })),
  async decompress(packed, readMaxBytes) {
    if (packed.length === 0) return new Uint8Array(0);
    const { bytes, isAll } = brotliAnnounced(packed);
    if (bytes > readMaxBytes) throw tooLarge(readMaxBytes);
    const isSmall = isAll && bytes <= smallBytes;
    return (
      (isSmall && (await unpackSmall(unbrotli, packed, readMaxBytes))) || unpackLarge(unbrotli, packed, readMaxBytes)
    );
  },
};

/** Undefined if it is not small. */
async function unpackSmall(unpack: Unpack, packed: Uint8Array, maxBytes: number): Promise<Bytes | undefined> {
  try {
    return own(await unpack(packed, { maxOutputLength: Math.min(smallBytes, maxBytes) }));
  } catch (error) {
    if (isTooLarge(error)) return undefined;
    throw broken(error);
  }
}

async function unpackLarge(unpack: Unpack, packed: Uint8Array, maxBytes: number): Promise<Bytes> {
  await turn();
  try {
    return own(await unpack(packed, { maxOutputLength: maxBytes, chunkSize: stepBytes }));
  } catch (error) {
    throw isTooLarge(error) ? tooLarge(maxBytes) : broken(error);
  } finally {
    done();
  }
}

const tooLarge = (readMaxBytes: number): ConnectError =>
  new ConnectError(`the message is larger than ${readMaxBytes} bytes when it is unpacked`, Code.ResourceExhausted);

const own = (bytes: Buffer): Bytes => bytes as Bytes;

const isTooLarge = (error: unknown): boolean =>
  error instanceof Error && "code" in error && error.code === "ERR_BUFFER_TOO_LARGE";

const broken = (cause: unknown): ConnectError =>
  new ConnectError("the message cannot be unpacked", Code.InvalidArgument, undefined, undefined, cause);

let running = 0;
const waiting: (() => void)[] = [];

async function turn(): Promise<void> {
  if (running < largeAtOnce) running++;
  else await new Promise<void>((resolve) => waiting.push(resolve));
}

/** Whoever waits longest takes the place. */
function done(): void {
  const next = waiting.shift();
  if (next) next();
  else running--;
}
