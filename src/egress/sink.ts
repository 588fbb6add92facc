/** Collects bytes up to a limit in one buffer that grows, so a body sent a byte at a time costs no more than another. */
export type Sink = {
  /** Takes what fits; false if that was not all of the chunk. */
  readonly write: (chunk: Uint8Array) => boolean;
  readonly bytes: () => Uint8Array;
};

export const openSink = (maxBytes: number): Sink => {
  let buffer = Buffer.alloc(0);
  let length = 0;
  return {
    write: (chunk) => {
      const fits = Math.min(chunk.length, maxBytes - length);
      if (length + fits > buffer.length) {
        const grown = Buffer.alloc(Math.min(maxBytes, Math.max(length + fits, 2 * buffer.length)));
        buffer.copy(grown, 0, 0, length);
        buffer = grown;
      }
      buffer.set(chunk.subarray(0, fits), length);
      length += fits;
      return fits === chunk.length;
    },
    bytes: () => buffer.subarray(0, length),
  };
};
