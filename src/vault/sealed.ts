/**
 * The form in which payloads lie in columns: a header that says how the bytes are sealed, then the bytes.
 *
 *     byte 0      format version, 1
 *     byte 1      algorithm: 0 none, 1 AES-256-GCM
 *     byte 2      length of the key id in bytes
 *     byte 3…     key id (ASCII), then the sealed bytes
 *
 * Only algorithm 0 is written so far; anything else is refused at reading, never passed through.
 */

/** Where a payload lies. When it is encrypted, its place is authenticated, so that two values cannot be swapped. */
export type Place = { readonly orgId: string; readonly table: string; readonly id: string };

export type Vault = {
  /** Whether what is written is encrypted. */
  readonly encrypts: boolean;
  seal(place: Place, bytes: Uint8Array): Uint8Array;
  /** Throws when the bytes are not what `seal` made for this place. */
  open(place: Place, sealed: Uint8Array): Uint8Array;
};

const formatVersion = 1;
const algorithmNone = 0;
const headerBytes = 3;

/** Keeps payloads in the clear, in the form that can say so. */
export const plainVault = (): Vault => ({
  encrypts: false,
  seal(_place, bytes) {
    const sealed = new Uint8Array(headerBytes + bytes.length);
    sealed[0] = formatVersion;
    sealed[1] = algorithmNone;
    sealed.set(bytes, headerBytes);
    return sealed;
  },
  open(place, sealed) {
    const [version, algorithm, keyIdBytes] = sealed;
    if (version !== formatVersion || algorithm !== algorithmNone || keyIdBytes !== 0) {
      throw new Error(
        `${place.table} ${place.id}: sealed in a form this server cannot open (version ${version}, algorithm ${algorithm})`,
      );
    }
    return sealed.subarray(headerBytes);
  },
});
