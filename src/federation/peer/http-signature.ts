/**
 * HTTP message signatures (RFC 9421) and digests (RFC 9530), as far as servers use them between one another: one signature, Ed25519, over always the same components, with always
 * the same parameters in the same order. Whatever is spelled otherwise is refused, so that there is one way to read a message.
 */
import { createHash } from "node:crypto";
import { isSignedBy, type SigningKey, signBytes } from "./key.ts";

/** The components of a request that are signed, apart from the body, of which the digest is. */
export type SignedRequest = {
  readonly method: string;
  /** Absolute. */
  readonly url: string;
  readonly contentType: string;
  readonly contentDigest: string;
};

/** What a signature says of itself; times in seconds since 1970. */
export type SignatureParams = {
  readonly createdS: number;
  readonly expiresS: number;
  readonly nonce: string;
  readonly keyId: string;
};

/** A signature as it was read: by whom and when it says to be, over what, and its 64 bytes. */
export type ReadSignature = SignatureParams & { readonly base: Uint8Array; readonly signature: Uint8Array };

const components = `("@method" "@authority" "@path" "content-digest" "content-type")`;

/** `@signature-params` (RFC 9421, section 2.3). */
const paramsText = ({ createdS, expiresS, nonce, keyId }: SignatureParams): string =>
  `${components};created=${createdS};expires=${expiresS};nonce="${nonce}";keyid="${keyId}";alg="ed25519";tag="moltwire-peer"`;

const paramsForm =
  /^moltwire=\("@method" "@authority" "@path" "content-digest" "content-type"\);created=([1-9]\d{0,11});expires=([1-9]\d{0,11});nonce="([0-9a-f]{16,64})";keyid="([0-9a-f]{32})";alg="ed25519";tag="moltwire-peer"$/;
const signatureForm = /^moltwire=:([A-Za-z0-9+/]{86}==):$/;

/** What is signed (RFC 9421, section 2.5): a line for each component, the last without an end. `URL` gives host and path in the form of sections 2.2.3 and 2.2.6. */
function signatureBase({ method, url, contentType, contentDigest }: SignedRequest, params: SignatureParams): Buffer {
  const { host, pathname } = new URL(url);
  return Buffer.from(
    [
      `"@method": ${method}`,
      `"@authority": ${host}`,
      `"@path": ${pathname}`,
      `"content-digest": ${contentDigest}`,
      `"content-type": ${contentType}`,
      `"@signature-params": ${paramsText(params)}`,
    ].join("\n"),
  );
}

/** The headers that sign a request. */
export function signRequest(key: SigningKey, request: SignedRequest, params: SignatureParams): Record<string, string> {
  const signature = Buffer.from(signBytes(key, signatureBase(request, params))).toString("base64");
  return {
    "content-type": request.contentType,
    "content-digest": request.contentDigest,
    "signature-input": `moltwire=${paramsText(params)}`,
    signature: `moltwire=:${signature}:`,
  };
}

/** The signature of a request, not judged yet; undefined when there is none of this form. */
export function readSignature(method: string, url: string, header: Headers): ReadSignature | undefined {
  const [, created, expires, nonce, keyId] = paramsForm.exec(header.get("signature-input") ?? "") ?? [];
  const [, signature] = signatureForm.exec(header.get("signature") ?? "") ?? [];
  const [contentDigest, contentType] = [header.get("content-digest"), header.get("content-type")];
  if (nonce === undefined || keyId === undefined || !signature || !contentDigest || !contentType) return undefined;
  const params = { createdS: Number(created), expiresS: Number(expires), nonce, keyId };
  const base = signatureBase({ method, url, contentDigest, contentType }, params);
  return { ...params, base, signature: Buffer.from(signature, "base64") };
}

export const holds = ({ base, signature }: ReadSignature, publicKey: Uint8Array): boolean =>
  isSignedBy(publicKey, base, signature);

/** The `content-digest` of a body (RFC 9530, section 2) whose SHA-256 this is. */
export const digestText = (sha256: Uint8Array): string => `sha-256=:${Buffer.from(sha256).toString("base64")}:`;

export const sha256 = (bytes: Uint8Array): Uint8Array => createHash("sha256").update(bytes).digest();
