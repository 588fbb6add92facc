/**
 * What a key looks like: `mw_`, 32 hexadecimal digits that are the key's id, 32 letters and digits of secret (190 bits), 6 of checksum.
 *
 * The checksum (CRC-32 of all before it, in base 62, as GitHub's tokens have it) tells a typo from a wrong key without a look-up and lets
 * secret scanners recognise keys.
 */
import { createHash } from "node:crypto";
import { crc32 } from "node:zlib";
import type { Ids } from "../ids.ts";

const alphabet = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
const secretLength = 32;
const checksumLength = 6;
const form = /^mw_([0-9a-f]{32})[0-9A-Za-z]{32}([0-9A-Za-z]{6})$/;

/** A new key for this id: its text, to be shown once, and the digest to be stored. */
export function newKeyText(keyId: string, ids: Ids): { readonly text: string; readonly digest: string } {
  const body = `mw_${keyId.replace(/^key_/, "")}${randomLetters(secretLength, ids)}`;
  const text = body + checksum(body);
  return { text, digest: keyDigest(text) };
}

/** The id in a key, or undefined when the text is no key or has a typo. */
export function keyIdOf(text: string): string | undefined {
  const [, id, sum] = form.exec(text) ?? [];
  if (!id || checksum(text.slice(0, -checksumLength)) !== sum) return undefined;
  return `key_${id}`;
}

/** What is stored of a key: its SHA-256, in hexadecimal. A secret of 190 random bits needs no slow hash. */
export const keyDigest = (text: string): string => createHash("sha256").update(text).digest("hex");

function checksum(body: string): string {
  let rest = crc32(body);
  let out = "";
  for (let i = 0; i < checksumLength; i++) {
    out = alphabet[rest % 62] + out;
    rest = Math.trunc(rest / 62);
  }
  return out;
}

/** Uniform letters and digits: bytes beyond the last whole multiple of 62 are thrown away. */
function randomLetters(count: number, ids: Ids): string {
  let out = "";
  while (out.length < count) {
    for (const byte of ids.bytes(count * 2)) if (byte < 248 && out.length < count) out += alphabet[byte % 62];
  }
  return out;
}
