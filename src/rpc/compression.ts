// What compressed messages may cost. Connect's own compressions unpack in steps of 16 KiB, each of them a turn of the event loop.

import { promisify } from "node:util";
import * as zlib from "node:zlib";
import { Code, ConnectError } from "@connectrpc/connect";
import type { Compression } from "@connectrpc/connect/protocol";
import { compressionBrotli, compressionGzip } from "@connectrpc/connect-node";

type Unpack = (bytes: Uint8Array, options: { maxOutputLength: number; chunkSize?: number }) => Promise<Buffer>;

/** What most messages fit into. */
const smallBytes = 16_384;
const stepBytes = 262_144;
/** Large messages that are unpacked at once, in all: of each the whole may be in memory, and as many processors are busy. */
const largeAtOnce = 2;

/** Gzip within the limits. */
export const gzip: Compression = { ...compressionGzip, decompress: within(promisify(zlib.gunzip)) };
/** Brotli within the limits. */
export const brotli: Compression = { ...compressionBrotli, decompress: within(promisify(zlib.brotliDecompress)) };

/** Throws `resource_exhausted` for what becomes too large, `invalid_argument` for what cannot be unpacked. */
function within(unpack: Unpack): Compression["decompress"] {
  return async (bytes, readMaxBytes) => {
    if (bytes.length === 0) return new Uint8Array(0);
    try {
      return own(await unpack(bytes, { maxOutputLength: Math.min(smallBytes, readMaxBytes) }));
    } catch (error) {
      if (!isTooLarge(error)) throw broken(error);
    }
    await turn();
    try {
      return own(await unpack(bytes, { maxOutputLength: readMaxBytes, chunkSize: stepBytes }));
    } catch (error) {
      if (!isTooLarge(error)) throw broken(error);
      throw new ConnectError(
        `the message is larger than ${readMaxBytes} bytes when it is unpacked`,
        Code.ResourceExhausted,
      );
    } finally {
      done();
    }
  };
}

const own = (bytes: Buffer): Uint8Array<ArrayBuffer> => bytes as Uint8Array<ArrayBuffer>;

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
