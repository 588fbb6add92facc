import type { CursorScope, Cursors, Position } from "./cursor.ts";

/** How many rows a List answers when it is not told. */
export const defaultPageSize = 50;

/**
 * What one answer holds at most, in bytes of protobuf, where what it is made of can be large: gRPC clients refuse more than 4 MiB unless they are told otherwise, and
 * bytes are a third longer in JSON.
 */
export const answerBytes = 3 * 1_048_576;

/** The largest message that the server sends, in bytes. */
export const largestAnswerBytes = 16 * 1_048_576;

type PageRequest = { readonly pageSize: number; readonly pageToken: string };

/** One page of a list: its rows and the token of the next page, empty on the last. */
export type Page<Row> = { readonly rows: readonly Row[]; readonly nextPageToken: string };

/**
 * As {@link readPage}, of rows that can be large: a page ends before what would take it over `maxBytes`, but for its first row. `read` gives rows that tell what
 * they come to, and are small themselves.
 */
export async function readBoundedPage<Row>(
  cursors: Cursors,
  scope: CursorScope,
  request: PageRequest,
  read: (after: Position | undefined, limit: number) => Promise<readonly Row[]>,
  positionOf: (row: Row) => Position,
  bytesOf: (row: Row) => number,
  maxBytes = answerBytes,
): Promise<Page<Row> & { readonly after: Position | undefined }> {
  const size = request.pageSize || defaultPageSize;
  const after = request.pageToken ? cursors.decode(scope, request.pageToken, "page_token") : undefined;
  const found = await read(after, size + 1);
  let bytes = 0;
  const fits = (row: Row, n: number) => {
    bytes += bytesOf(row);
    return n === 0 || bytes <= maxBytes;
  };
  const end = found.findIndex((row, n) => n === size || !fits(row, n));
  const rows = end === -1 ? found : found.slice(0, end);
  const last = rows.at(-1);
  const nextPageToken = end !== -1 && last ? cursors.encode(scope, positionOf(last)) : "";
  return { rows, nextPageToken, after };
}

/**
 * Reads one page. `read` gets the position after which to go on (undefined: from the beginning) and how many rows to give: one more
 * than the page, which tells whether another follows.
 */
export async function readPage<Row>(
  cursors: Cursors,
  scope: CursorScope,
  request: PageRequest,
  read: (after: Position | undefined, limit: number) => Promise<readonly Row[]>,
  positionOf: (row: Row) => Position,
  defaultSize = defaultPageSize,
): Promise<Page<Row>> {
  const size = request.pageSize || defaultSize;
  const after = request.pageToken ? cursors.decode(scope, request.pageToken, "page_token") : undefined;
  const found = await read(after, size + 1);
  const rows = found.slice(0, size);
  const last = rows.at(-1);
  return { rows, nextPageToken: found.length > size && last ? cursors.encode(scope, positionOf(last)) : "" };
}
