/**
 * The form in which payloads lie in columns: a header that says how the bytes are sealed, then the bytes.
 *
 *     byte 0      format version, 1
 *     byte 1      algorithm: 0 none, 1 AES-256-GCM
 *     byte 2      length of the key id in bytes; 0 for none
 *     byte 3…     key id (ASCII), then the sealed bytes
 *
 * Sealed bytes of algorithm 0 are the payload; of algorithm 1 a nonce of 12 bytes, the ciphertext, and its tag of 16 bytes. Anything else is refused at reading,
 * never passed through.
 */
import { createCipheriv, createDecipheriv, type KeyObject, randomFillSync } from "node:crypto";
import { Fault } from "../errors.ts";

/** Where a payload lies. When it is encrypted, its place is authenticated, so that two values cannot be swapped: no two payloads have the same one. */
export type Place = { readonly orgId: string; readonly table: string; readonly id: string };

export type Vault = {
  /** Whether what is written is encrypted. */
  readonly encrypts: boolean;
  /**
   * Seals for the place; in a transaction of `app.db`, since it may ask for a data key that is not at hand: then the transaction is undone, the key made or read, and the body
   * runs again.
   */
  seal(place: Place, bytes: Uint8Array): Uint8Array;
  /**
   * Opens what was read through `app.db`, which has the data keys brought of all that it reads. Throws a Fault when the bytes are not what `seal` made for this place (DATA_NOT_AUTHENTIC), or the
   * organisation's key was dropped (KEY_DROPPED).
   */
  open(place: Place, sealed: Uint8Array): Uint8Array;
};

/** A key that payloads are sealed with. */
export type DataKey = { readonly keyId: string; readonly key: KeyObject };

/** What the header says. */
export type Header = { readonly encrypted: false } | { readonly encrypted: true; readonly keyId: string };

const formatVersion = 1;
const algorithmNone = 0;
const algorithmGcm = 1;
const fixedBytes = 3;
const nonceBytes = 12;
const tagBytes = 16;

/** As much of a sealed payload as tells its header. */
export const headerBytes: number = fixedBytes + 255;

/** Keeps payloads in the clear, in the form that can say so. */
export const plainVault = (): Vault => ({
  encrypts: false,
  seal: (_place, bytes) => sealPlain(bytes),
  open: openPlain,
});

export function sealPlain(bytes: Uint8Array): Uint8Array {
  const sealed = new Uint8Array(fixedBytes + bytes.length);
  sealed[0] = formatVersion;
  sealed[1] = algorithmNone;
  sealed.set(bytes, fixedBytes);
  return sealed;
}

/** Throws a Fault unless the payload is in the clear. */
export function openPlain(place: Place, sealed: Uint8Array): Uint8Array {
  const header = headerOf(sealed);
  if (!header) throw notAuthentic(place, "UNKNOWN_FORMAT");
  if (header.encrypted) throw notAuthentic(place, "NO_MASTER_KEY");
  return sealed.subarray(fixedBytes);
}

/** The header of a payload, or of its beginning; undefined when it has none that this program knows. */
export function headerOf(sealed: Uint8Array): Header | undefined {
  const [version, algorithm, idBytes] = sealed;
  if (version !== formatVersion || idBytes === undefined) return undefined;
  if (algorithm === algorithmNone) return idBytes === 0 ? { encrypted: false } : undefined;
  if (algorithm !== algorithmGcm || idBytes === 0 || sealed.length < fixedBytes + idBytes) return undefined;
  return { encrypted: true, keyId: keyIdOf(sealed, idBytes) };
}

/** The key id of what may be an encrypted payload; undefined for anything else. Quick: it looks at every column of every row that is read. */
export function encryptedBy(bytes: Uint8Array): string | undefined {
  const idBytes = bytes[2]!;
  if (bytes[0] !== formatVersion || bytes[1] !== algorithmGcm) return undefined;
  if (idBytes === 0 || bytes.length < fixedBytes + idBytes + nonceBytes + tagBytes) return undefined;
  return keyIdOf(bytes, idBytes);
}

const keyIdOf = ({ buffer, byteOffset }: Uint8Array, idBytes: number): string =>
  Buffer.from(buffer, byteOffset + fixedBytes, idBytes).toString("latin1");

/** Encrypts a payload for its place: AES-256-GCM (NIST SP 800-38D) under a random nonce of 96 bits. */
export function encrypt({ keyId, key }: DataKey, place: Place, bytes: Uint8Array): Uint8Array {
  const nonce = nextNonce();
  const cipher = createCipheriv("aes-256-gcm", key, nonce);
  cipher.setAAD(associated(keyId, place));
  const ciphertext = cipher.update(bytes);
  cipher.final();
  const start = fixedBytes + keyId.length;
  const sealed = Buffer.allocUnsafe(start + nonceBytes + bytes.length + tagBytes);
  sealed[0] = formatVersion;
  sealed[1] = algorithmGcm;
  sealed[2] = keyId.length;
  sealed.write(keyId, fixedBytes, "latin1");
  sealed.set(nonce, start);
  sealed.set(ciphertext, start + nonceBytes);
  sealed.set(cipher.getAuthTag(), start + nonceBytes + bytes.length);
  return sealed;
}

/** Throws a Fault (DATA_NOT_AUTHENTIC) when the bytes are not what {@link encrypt} made with this key for this place. Nothing is given out before that is known. */
export function decrypt({ keyId, key }: DataKey, place: Place, sealed: Uint8Array): Uint8Array {
  const start = fixedBytes + keyId.length;
  if (sealed.length < start + nonceBytes + tagBytes) throw notAuthentic(place, "CHANGED");
  const nonce = sealed.subarray(start, start + nonceBytes);
  const decipher = createDecipheriv("aes-256-gcm", key, nonce, { authTagLength: tagBytes });
  decipher.setAAD(associated(keyId, place)).setAuthTag(sealed.subarray(-tagBytes));
  const bytes = decipher.update(sealed.subarray(start + nonceBytes, -tagBytes));
  try {
    decipher.final();
  } catch {
    throw notAuthentic(place, "CHANGED");
  }
  return bytes;
}

/** No organisation, table or key id has a NUL character, so that no two places give the same bytes. */
const associated = (keyId: string, { orgId, table, id }: Place): Buffer =>
  Buffer.from(`moltwire sealed ${formatVersion} ${algorithmGcm}\0${keyId}\0${orgId}\0${table}\0${id}`);

/** Why a stored payload is refused. */
export type Cause = "CHANGED" | "UNKNOWN_FORMAT" | "UNKNOWN_KEY" | "NOT_ENCRYPTED" | "NO_MASTER_KEY";

const explanations: Record<Cause, string> = {
  CHANGED: "it was changed, or moved from another place",
  UNKNOWN_FORMAT: "it is in a form that this server does not know",
  UNKNOWN_KEY: "it names a data key that its organisation does not have",
  NOT_ENCRYPTED: "it is not encrypted, and all that this server wrote is",
  NO_MASTER_KEY: "it is encrypted, and this server has no master key",
};

export const notAuthentic = ({ table }: Place, cause: Cause): Fault =>
  new Fault("DATA_NOT_AUTHENTIC", `what is stored is refused: ${explanations[cause]}`, { table, cause });

export const keyDropped = ({ orgId }: Place): Fault =>
  new Fault("KEY_DROPPED", "the organisation's data key was dropped: what was stored before cannot be read any more", {
    org_id: orgId,
  });

/**
 * Nonces from the system's source of chance, a few hundred at a time. Not from `app.ids`: a test that replays ids must not make the nonces of a former run, since two payloads under
 * one nonce betray each other.
 */
const pool = Buffer.alloc(512 * nonceBytes);
let used = pool.length;

function nextNonce(): Uint8Array {
  if (used === pool.length) {
    randomFillSync(pool);
    used = 0;
  }
  return pool.subarray(used, (used += nonceBytes));
}
