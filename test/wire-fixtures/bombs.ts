/** Messages of 40 bytes to 200 KB that become 20 or 200 MB: some say so, and some say that they are small. */
import { brotliCompressSync, constants, createBrotliCompress, gzipSync } from "node:zlib";

const zeros = Buffer.alloc(200_000_000);
const honestGzip = gzipSync(zeros);

/** Each with its encoding. */
export const bombs: readonly { readonly says: string; readonly encoding: "gzip" | "br"; readonly packed: Buffer }[] = [
  { says: "its size", encoding: "gzip", packed: honestGzip },
  { says: "100 bytes", encoding: "gzip", packed: lying(honestGzip) },
  { says: "2 bytes, of its last part", encoding: "gzip", packed: Buffer.concat([honestGzip, gzipSync("{}")]) },
  { says: "its size", encoding: "br", packed: brotliCompressSync(zeros.subarray(0, 20_000_000)) },
  { says: "1 byte, of its first part", encoding: "br", packed: await inTwoParts(zeros.subarray(0, 20_000_000)) },
];

function lying(packed: Buffer): Buffer {
  const copy = Buffer.from(packed);
  copy.writeUInt32LE(100, copy.length - 4);
  return copy;
}

async function inTwoParts(bytes: Buffer): Promise<Buffer> {
  const packer = createBrotliCompress();
  packer.write("{");
  packer.flush(constants.BROTLI_OPERATION_FLUSH, () => packer.end(bytes));
  return Buffer.concat(await packer.toArray());
}
