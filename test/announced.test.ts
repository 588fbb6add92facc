import { brotliCompressSync, constants, gzipSync } from "node:zlib";
import fc from "fast-check";
import { expect, test } from "vitest";
import { brotliAnnounced, gzipAnnounced } from "../src/rpc/announced.ts";

const bytes = fc.oneof(
  fc.uint8Array({ maxLength: 50_000 }),
  fc.tuple(fc.integer({ min: 0, max: 255 }), fc.nat(3_000_000)).map(([byte, size]) => new Uint8Array(size).fill(byte)),
);

test("gzip says how much comes out of it", () => {
  fc.assert(
    fc.property(bytes, (plain) => {
      expect(gzipAnnounced(gzipSync(plain))).toBe(plain.length);
    }),
    { numRuns: 50 },
  );
});

test("brotli says of its first part how much comes out of it, whatever its window; of a single one that is all", () => {
  const windows = fc.integer({ min: constants.BROTLI_MIN_WINDOW_BITS, max: constants.BROTLI_MAX_WINDOW_BITS });
  fc.assert(
    fc.property(bytes, windows, fc.integer({ min: 0, max: 6 }), (plain, window, quality) => {
      const params = { [constants.BROTLI_PARAM_LGWIN]: window, [constants.BROTLI_PARAM_QUALITY]: quality };
      const said = brotliAnnounced(brotliCompressSync(plain, { params }));
      if (said.isAll) expect(said.bytes).toBe(plain.length);
      else expect(said.bytes).toBeLessThanOrEqual(plain.length);
      if (plain.length > 0) expect(said.bytes).toBeGreaterThan(0);
    }),
    { numRuns: 100 },
  );
});

test("what is cut off says something, and nothing fails over it", () => {
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 12 }), (packed) => {
      expect(gzipAnnounced(packed)).toBeGreaterThanOrEqual(0);
      expect(brotliAnnounced(packed).bytes).toBeGreaterThanOrEqual(0);
    }),
  );
});
