/** Ed25519 keys (RFC 8032), by which servers know one another. */
import { createHash, createPrivateKey, createPublicKey, type KeyObject, sign, verify } from "node:crypto";
import type { Ids } from "../../ids.ts";

/** What stands before the 32 bytes of a public and of a private key in DER (RFC 8410, sections 4 and 7). */
const publicPrefix = Buffer.from("302a300506032b6570032100", "hex");
const privatePrefix = Buffer.from("302e020100300506032b657004220420", "hex");

export const publicKeyBytes = 32;

/** A key that this server signs with. */
export type SigningKey = { readonly keyId: string; readonly key: KeyObject };

/** The id of a key: the first 32 hexadecimal digits of its SHA-256, so that nobody can say another. */
export const keyIdOf = (publicKey: Uint8Array): string =>
  createHash("sha256").update(publicKey).digest("hex").slice(0, 32);

/** A new private key: 32 bytes that nobody can guess. */
export const newPrivateKey = (ids: Ids): Uint8Array => ids.bytes(32);

const privateKeyOf = (privateKey: Uint8Array): KeyObject =>
  createPrivateKey({ key: Buffer.concat([privatePrefix, privateKey]), format: "der", type: "pkcs8" });

/** The public half: 32 bytes. */
export const publicHalf = (privateKey: Uint8Array): Uint8Array =>
  createPublicKey(privateKeyOf(privateKey)).export({ format: "der", type: "spki" }).subarray(publicPrefix.length);

export const signingKeyOf = (privateKey: Uint8Array): SigningKey => ({
  keyId: keyIdOf(publicHalf(privateKey)),
  key: privateKeyOf(privateKey),
});

/** 64 bytes. */
export const signBytes = ({ key }: SigningKey, bytes: Uint8Array): Uint8Array => sign(null, bytes, key);

/**
 * The y of the eight points of small order (of order 1, 4, 8, 8 and 2; two points each, but for the first and the last), without the sign of x. Under such a key anybody can sign, wherever
 * signatures are checked as RFC 8032 and ZIP 215 say and no more.
 */
const smallOrder: ReadonlySet<string> = new Set([
  "0100000000000000000000000000000000000000000000000000000000000000",
  "0000000000000000000000000000000000000000000000000000000000000000",
  "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
  "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
  "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
]);

/** 2^255 - 19, which every y is less than. */
const prime = 2n ** 255n - 19n;

/** Why 32 bytes are not taken as a public key: a point of small order, or one that is not spelled as RFC 8032 says (section 5.1.2), so that one key had two ids. Undefined: they are. */
export function keyFault(publicKey: Uint8Array): string | undefined {
  const y = Buffer.from(publicKey);
  y[publicKeyBytes - 1]! &= 0x7f;
  if (smallOrder.has(y.toString("hex"))) return "is a point of small order, for which anybody can sign";
  const isBelow = BigInt(`0x${y.reverse().toString("hex")}`) < prime;
  return isBelow ? undefined : "is not spelled as RFC 8032 says: its y is not below 2^255 - 19";
}

/** Whether the signature is of these bytes by the key whose public half this is. */
export function isSignedBy(publicKey: Uint8Array, bytes: Uint8Array, signature: Uint8Array): boolean {
  const key = createPublicKey({ key: Buffer.concat([publicPrefix, publicKey]), format: "der", type: "spki" });
  return verify(null, bytes, key, signature);
}

export const keyText = (publicKey: Uint8Array): string => Buffer.from(publicKey).toString("base64url");
export const keyBytes = (text: string): Uint8Array => Buffer.from(text, "base64url");
