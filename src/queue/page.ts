import type { CursorScope, Cursors, Position } from "../rpc/cursor.ts";
import { feedPageSize } from "../rpc/feed.ts";
import { answerBytes, defaultPageSize, type Page } from "../rpc/page.ts";

/** How often a page reads on for rows that fit. */
const maxReads = 8;

/**
 * Reads a bounded stretch of a list and keeps what fits, so that a page can be short and yet not the last: a filter that has no index costs a page no more than any
 * other, however few rows it lets through. A page ends early, too, where its rows have come to as many bytes as one answer holds.
 */
export async function readVisible<Row>(
  cursors: Cursors,
  scope: CursorScope,
  request: { readonly pageSize: number; readonly pageToken: string },
  read: (after: Position | undefined, limit: number) => Promise<readonly Row[]>,
  fits: (row: Row) => Promise<boolean>,
  positionOf: (row: Row) => Position,
  bytesOf: (row: Row) => number = () => 0,
): Promise<Page<Row>> {
  const size = request.pageSize || defaultPageSize;
  let after = request.pageToken ? cursors.decode(scope, request.pageToken, "page_token") : undefined;
  const rows: Row[] = [];
  let leftBytes = answerBytes;
  for (let reads = 0; reads < maxReads; reads++) {
    const limit = reads === 0 ? size + 1 : feedPageSize;
    const found = await read(after, limit);
    for (const [n, row] of found.entries()) {
      if (await fits(row)) {
        rows.push(row);
        leftBytes -= bytesOf(row);
      }
      after = positionOf(row);
      const more = n < found.length - 1 || found.length === limit;
      if (rows.length === size || leftBytes <= 0)
        return { rows, nextPageToken: more ? cursors.encode(scope, after) : "" };
    }
    if (found.length < limit) return { rows, nextPageToken: "" };
  }
  return { rows, nextPageToken: after ? cursors.encode(scope, after) : "" };
}
