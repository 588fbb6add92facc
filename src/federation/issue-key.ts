import type { Tx } from "../db/db.ts";
import type { Ids } from "../ids.ts";
import { insertKey, type NewKey } from "./api-key-store.ts";
import { newKeyText } from "./key-text.ts";

/** Makes and stores a key; gives its id and its text, which is to be shown once. */
export async function issueKey(
  tx: Tx,
  ids: Ids,
  key: Omit<NewKey, "keyId" | "digest">,
): Promise<{ readonly keyId: string; readonly text: string }> {
  const keyId = ids.next("key");
  const { text, digest } = newKeyText(keyId, ids);
  await insertKey(tx, { ...key, keyId, digest });
  return { keyId, text };
}
