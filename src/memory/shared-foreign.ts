/** What another organisation sees of a shared namespace instead of revisions, which count what is not public as well. */
import type { WatchSharedEntriesRequest } from "../../gen/moltwire/memory/v1/shared_memory_service_pb.ts";
import type { App } from "../app.ts";
import { badField } from "../errors.ts";
import type { EntryMessage, MemoryRef } from "./message.ts";

const nonceBytes = 6;

/**
 * Places in the log of a namespace, for those who may not count what is not public in it. No two cursors are the same: of one place they would tell that nothing
 * has happened since.
 */
export function cursorsOf({ cursors, ids }: Pick<App, "cursors" | "ids">, { orgId, memoryId }: MemoryRef) {
  const scope = ["shared memory", orgId, memoryId];
  return {
    encode: (revision: number): string =>
      cursors.encode(scope, [revision, Buffer.from(ids.bytes(nonceBytes)).toString("hex")]),
    decode: (text: string): bigint => BigInt(cursors.decode(scope, text, "after_cursor")[0]!),
  };
}

/** After which revision to watch; undefined: with the next change. INVALID_REQUEST. */
export function startOf(
  { afterRevision, afterCursor }: WatchSharedEntriesRequest,
  foreign: boolean,
  decode: (text: string) => bigint,
): bigint | undefined {
  if (afterCursor === "") {
    if (foreign && afterRevision)
      throw badField("after_revision", "of another organisation's memory give after_cursor");
    return afterRevision;
  }
  if (afterRevision !== undefined) throw badField("after_cursor", "give either after_revision or after_cursor");
  return decode(afterCursor);
}

/** An entry as another organisation sees it: revisions tell how many changes lie between what is public. */
export const shown = (foreign: boolean, entry: EntryMessage): EntryMessage =>
  foreign ? { ...entry, revision: 0n, createRevision: 0n } : entry;
