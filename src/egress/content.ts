import { promisify } from "node:util";
import { brotliDecompress, gunzip, inflate, zstdDecompress } from "node:zlib";
import { EgressError } from "./error.ts";
import type { Answer, Content } from "./exchange.ts";

type Decompress = (body: Uint8Array, options: { maxOutputLength: number }) => Promise<Buffer>;

const decompressors: Readonly<Record<string, Decompress>> = {
  gzip: promisify(gunzip),
  "x-gzip": promisify(gunzip),
  deflate: promisify(inflate),
  br: promisify(brotliDecompress),
  zstd: promisify(zstdDecompress),
};

/**
 * Undoes one layer of compression, which a server may apply although `identity` was asked for. Memory stays within
 * `maxBytes` however far the content would expand.
 *
 * @throws EgressError `bad-response` for an unknown or stacked encoding or damaged content.
 */
export const decodeContent = async ({ status, headers, content }: Answer, maxBytes: number): Promise<Content> => {
  const name = (headers["content-encoding"] ?? "").trim().toLowerCase();
  if (name === "" || name === "identity" || content.body.length === 0) return content;
  const decompress = Object.hasOwn(decompressors, name) ? decompressors[name] : undefined;
  if (!decompress)
    throw new EgressError("bad-response", "the answer's content-encoding cannot be read", { sent: true, status });
  // A part of a compressed body is of no use.
  if (content.truncated) return { body: new Uint8Array(), truncated: true };
  try {
    // Zero is not a length zlib accepts; one byte more than an empty body is still too long.
    const body = await decompress(content.body, { maxOutputLength: Math.max(1, maxBytes) });
    return body.length > maxBytes ? { body: new Uint8Array(), truncated: true } : { body, truncated: false };
  } catch (cause) {
    if ((cause as NodeJS.ErrnoException).code === "ERR_BUFFER_TOO_LARGE") {
      return { body: new Uint8Array(), truncated: true };
    }
    throw new EgressError("bad-response", "the answer's compressed content is damaged", { sent: true, status, cause });
  }
};
