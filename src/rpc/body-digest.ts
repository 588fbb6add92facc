/** The digest of a call's body as it came over the wire, for methods whose callers sign it. */
import { createHash } from "node:crypto";
import { type ContextValues, createContextKey } from "@connectrpc/connect";

/** SHA-256 of the body; undefined for a call that announces no digest of its own (RFC 9530), or whose body has not been read to its end. */
export const bodyDigestKey = createContextKey<() => Uint8Array | undefined>(() => undefined, {
  description: "digest of the body",
});

/** The same body, of which the digest is taken as it is read, where the call announces one. */
export function digested(
  values: ContextValues,
  announced: unknown,
  body: AsyncIterable<Uint8Array>,
): AsyncIterable<Uint8Array> {
  if (announced === undefined) return body;
  const hash = createHash("sha256");
  let digest: Uint8Array | undefined;
  values.set(bodyDigestKey, () => digest);
  return (async function* () {
    for await (const bytes of body) {
      hash.update(bytes);
      yield bytes;
    }
    digest = hash.digest();
  })();
}
