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

/** Whether the signature is of these bytes by the key whose public half this is. */
export function isSignedBy(publicKey: Uint8Array, bytes: Uint8Array, signature: Uint8Array): boolean {
  const key = createPublicKey({ key: Buffer.concat([publicPrefix, publicKey]), format: "der", type: "spki" });
  return verify(null, bytes, key, signature);
}

export const keyText = (publicKey: Uint8Array): string => Buffer.from(publicKey).toString("base64url");
export const keyBytes = (text: string): Uint8Array => Buffer.from(text, "base64url");
