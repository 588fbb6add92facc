import { EntryOrder } from "../../gen/moltwire/memory/v1/memory_pb.ts";
import type { ListEntriesRequest } from "../../gen/moltwire/memory/v1/memory_service_pb.ts";
import type { App } from "../app.ts";
import type { Queryable } from "../db/db.ts";
import { answerBytes, defaultPageSize } from "../rpc/page.ts";
import { type EntryRow, entryBytes, type MemoryRef } from "./message.ts";
import { listEntries } from "./store.ts";

/** As many of the largest entries as come to about a page: what is read at once where values are asked for. */
const valuesAtOnce = 62;

/** What a list asks for, of either service. */
export type ListRequest = Pick<ListEntriesRequest, "prefix" | "order" | "withValues" | "pageSize" | "pageToken">;

/** Which entries are looked at. */
export type Listed = { readonly namespace: string; readonly publicOnly: boolean; readonly now: number };

/** One page of entries and the token of the next one, empty on the last. `scope` says where tokens are good. */
export async function pageOfEntries(
  app: App,
  db: Queryable,
  memory: MemoryRef,
  scope: readonly string[],
  { prefix, order, withValues, pageSize, pageToken }: ListRequest,
  { namespace, publicOnly, now }: Listed,
): Promise<{ readonly rows: readonly EntryRow[]; readonly nextPageToken: string }> {
  const byTime = order === EntryOrder.UPDATE_TIME;
  const cursorScope = [...scope, memory.orgId, memory.memoryId, namespace, prefix, String(byTime)];
  const filter = { namespace, prefix, byTime, publicOnly, withValues };
  const positionOf = (row: EntryRow) => [byTime ? row.revision : row.key];
  const size = pageSize || defaultPageSize;
  let after = pageToken ? app.cursors.decode(cursorScope, pageToken, "page_token") : undefined;
  const rows: EntryRow[] = [];
  let bytes = 0;
  for (;;) {
    const limit = Math.min(size - rows.length + 1, withValues ? valuesAtOnce : size + 1);
    const found = await listEntries(db, memory, filter, after, now, limit);
    for (const row of found) {
      bytes += entryBytes(row);
      if (rows.length === size || (rows.length > 0 && bytes > answerBytes))
        return { rows, nextPageToken: app.cursors.encode(cursorScope, positionOf(rows.at(-1)!)) };
      rows.push(row);
    }
    if (found.length < limit) return { rows, nextPageToken: "" };
    after = positionOf(rows.at(-1)!);
  }
}
