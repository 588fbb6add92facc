/** Page tokens and stream cursors: opaque, and good only where they were made. */
import { createCipheriv, createHmac, timingSafeEqual } from "node:crypto";
import { Fault } from "../errors.ts";

/** Where a token is good: what it walks through, the organisation, and whatever else (caller, filter) the position depends on. */
export type CursorScope = readonly string[];

/** The values of the last row that was answered, in the order of the sort. */
export type Position = readonly (string | number)[];

export type Cursors = {
  encode(scope: CursorScope, position: Position): string;
  /** Throws INVALID_PAGE_TOKEN, naming the field, for anything that `encode` did not make for this scope. */
  decode(scope: CursorScope, token: string, field: string): Position;
};

const macBytes = 16;
/** Positions are padded to a multiple of this, so that the length of a token does not tell how large its numbers are. */
const blockLength = 32;

/**
 * Tokens are base64url of a synthetic IV and the position as JSON, encrypted under it: deterministic authenticated encryption (the
 * construction of SIV, RFC 5297, from HMAC-SHA256 and AES-256-CTR). They are encrypted because a position holds numbers that count what
 * all organisations do, and deterministic so that one position has one cursor.
 */
export function signedCursors(secret: Uint8Array): Cursors {
  const derive = (use: string) => createHmac("sha256", secret).update(`moltwire cursor ${use}`).digest();
  const macKey = derive("mac");
  const cipherKey = derive("cipher");
  const sign = (scope: CursorScope, body: Uint8Array): Buffer =>
    createHmac("sha256", macKey).update(JSON.stringify(scope)).update("\0").update(body).digest().subarray(0, macBytes);
  const encrypt = (iv: Uint8Array, bytes: Uint8Array): Buffer =>
    createCipheriv("aes-256-ctr", cipherKey, iv).update(bytes);
  return {
    encode(scope, position) {
      const text = JSON.stringify(position);
      const body = Buffer.from(text.padEnd(Math.ceil(text.length / blockLength) * blockLength));
      const iv = sign(scope, body);
      return Buffer.concat([iv, encrypt(iv, body)]).toString("base64url");
    },
    decode(scope, token, field) {
      const bytes = Buffer.from(token, "base64url");
      const iv = bytes.subarray(0, macBytes);
      // Decoding passes over letters that do not belong and over bits that do not count; a token has one spelling.
      const isWhole = bytes.length > macBytes && bytes.toString("base64url") === token;
      const body = isWhole ? encrypt(iv, bytes.subarray(macBytes)) : undefined;
      if (!body || !timingSafeEqual(iv, sign(scope, body))) {
        const text = `${field} was not made by this method for this caller and filter: start again without it`;
        throw new Fault("INVALID_PAGE_TOKEN", text, { field }, { fields: [{ field, description: text }] });
      }
      return JSON.parse(body.toString()) as Position;
    },
  };
}
