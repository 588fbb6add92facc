/** Page tokens and stream cursors: opaque, and good only where they were made. */
import { createHmac, timingSafeEqual } from "node:crypto";
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

/** Tokens are base64url of a truncated HMAC-SHA256 (RFC 2104) over scope and position, then the position as JSON. */
export function signedCursors(secret: Uint8Array): Cursors {
  const sign = (scope: CursorScope, body: Buffer): Buffer =>
    createHmac("sha256", secret).update(JSON.stringify(scope)).update("\0").update(body).digest().subarray(0, macBytes);
  return {
    encode(scope, position) {
      const body = Buffer.from(JSON.stringify(position));
      return Buffer.concat([sign(scope, body), body]).toString("base64url");
    },
    decode(scope, token, field) {
      const bytes = Buffer.from(token, "base64url");
      const body = bytes.subarray(macBytes);
      if (bytes.length <= macBytes || !timingSafeEqual(bytes.subarray(0, macBytes), sign(scope, body))) {
        const text = `${field} was not made by this method for this caller and filter: start again without it`;
        throw new Fault("INVALID_PAGE_TOKEN", text, { field }, { fields: [{ field, description: text }] });
      }
      return JSON.parse(body.toString()) as Position;
    },
  };
}
