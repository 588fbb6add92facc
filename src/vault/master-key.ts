/** The master keys: they encrypt nothing but data keys. */
import {
  createCipheriv,
  createDecipheriv,
  createHmac,
  createSecretKey,
  type KeyObject,
  randomBytes,
} from "node:crypto";
import { readFileSync } from "node:fs";

export type MasterKey = {
  /** Tells keys apart and tells nothing of them: `mk_` and 16 hexadecimal digits of an HMAC under the key. */
  readonly id: string;
  readonly key: KeyObject;
};

const keyBytes = 32;
const nonceBytes = 12;
const tagBytes = 16;
/** Of 32 random bytes fewer than 16 are different once in 10^15. */
const leastDifferent = 16;
const howTo = "`moltwire vault generate-key` makes one";

/** Reads a key: 32 random bytes as base64. Throws an Error that says what is wrong with it, and never what it is. */
export function parseMasterKey(text: string): MasterKey {
  const bytes = Buffer.from(text, "base64");
  if (!/^[A-Za-z0-9+/]+={0,2}$/.test(text) || bytes.toString("base64") !== text)
    throw new Error(`is not base64: ${howTo}`);
  if (bytes.length !== keyBytes) throw new Error(`holds ${bytes.length} bytes and needs ${keyBytes}: ${howTo}`);
  if (new Set(bytes).size < leastDifferent) throw new Error(`is weak: too few different bytes; ${howTo}`);
  if (bytes.every((byte) => byte >= 0x20 && byte < 0x7f)) throw new Error(`is weak: text instead of chance; ${howTo}`);
  const key = createSecretKey(bytes);
  const id = `mk_${createHmac("sha256", key).update("moltwire master key id").digest("hex").slice(0, 16)}`;
  return { id, key };
}

/** Reads keys with commas between. */
export const parseMasterKeys = (text: string): MasterKey[] => text.split(",").map((one) => parseMasterKey(one.trim()));

/** Reads a file of keys, one a line: the first is the current one, those below it are previous ones. */
export function readMasterKeyFile(path: string): MasterKey[] {
  let text: string;
  try {
    text = readFileSync(path, "utf8");
  } catch (cause) {
    throw new Error(`cannot be read: ${(cause as Error).message}`, { cause });
  }
  const lines = text.split("\n").map((line) => line.trim());
  const keys = lines.flatMap((line, n) => (line === "" ? [] : [keyOfLine(line, n + 1)]));
  if (keys.length === 0) throw new Error(`${path} is empty: it needs a key on its first line; ${howTo}`);
  return keys;
}

function keyOfLine(line: string, number: number): MasterKey {
  try {
    return parseMasterKey(line);
  } catch (cause) {
    throw new Error(`line ${number} ${(cause as Error).message}`, { cause });
  }
}

/** Encrypts a few bytes by a master key (AES-256-GCM): nonce, ciphertext, tag. `what` says what they are, and is authenticated. */
export function wrap({ key, id }: MasterKey, what: string, bytes: Uint8Array): Uint8Array {
  const nonce = randomBytes(nonceBytes);
  const cipher = createCipheriv("aes-256-gcm", key, nonce).setAAD(associated(id, what));
  return Buffer.concat([nonce, cipher.update(bytes), cipher.final(), cipher.getAuthTag()]);
}

/** Throws when the bytes are not what {@link wrap} made with this key for the same thing. */
export function unwrap({ key, id }: MasterKey, what: string, wrapped: Uint8Array): Uint8Array {
  const nonce = wrapped.subarray(0, nonceBytes);
  const decipher = createDecipheriv("aes-256-gcm", key, nonce, { authTagLength: tagBytes });
  decipher.setAAD(associated(id, what)).setAuthTag(wrapped.subarray(-tagBytes));
  return Buffer.concat([decipher.update(wrapped.subarray(nonceBytes, -tagBytes)), decipher.final()]);
}

const associated = (id: string, what: string): Buffer => Buffer.from(`moltwire wrapped 1\0${id}\0${what}`);
