// What a compressed message says of its own size, before it is unpacked. It may lie: what it says saves work, and takes the place of no limit.

/** By the last four bytes of gzip: the size of what was packed last, modulo 2^32 (RFC 1952, section 2.3.1, ISIZE). */
export const gzipAnnounced = (packed: Uint8Array): number =>
  packed.length < 4
    ? 0
    : new DataView(packed.buffer, packed.byteOffset, packed.byteLength).getUint32(packed.length - 4, true);

/** By the header of brotli's first meta-block (RFC 7932, section 9.2, MLEN): how many bytes that becomes, and whether it is the only one. */
export function brotliAnnounced(packed: Uint8Array): { readonly bytes: number; readonly isAll: boolean } {
  const bits = bitsOf(packed);
  skipWindow(bits);
  const isLast = bits(1) === 1;
  if (isLast && bits(1) === 1) return { bytes: 0, isAll: true };
  const nibbles = bits(2) + 4;
  const isMetadata = nibbles === 7;
  return isMetadata ? { bytes: 0, isAll: false } : { bytes: bits(4 * nibbles) + 1, isAll: isLast };
}

/** WBITS: 1, 4 or 7 bits (section 9.1). */
function skipWindow(bits: (count: number) => number): void {
  if (bits(1) === 1 && bits(3) === 0) bits(3);
}

/** Reads bits from the least significant on; zeros after the end. */
function bitsOf(bytes: Uint8Array): (count: number) => number {
  let at = 0;
  return (count) => {
    let value = 0;
    for (let i = 0; i < count; i++, at++) value |= (((bytes[at >> 3] ?? 0) >> (at & 7)) & 1) << i;
    return value;
  };
}
