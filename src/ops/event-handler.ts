import type { MessageInitShape } from "@bufbuild/protobuf";
import { timestampFromMs } from "@bufbuild/protobuf/wkt";
import type { ServiceImpl } from "@connectrpc/connect";
import type { EventService, WatchEventsResponseSchema } from "../../gen/moltwire/ops/v1/event_service_pb.ts";
import type { App } from "../app.ts";
import type { LogPosition } from "../db/log.ts";
import type { Caller } from "../rpc/caller.ts";
import { feed, feedPageSize } from "../rpc/feed.ts";
import { logCursors, logStart } from "../rpc/log-position.ts";
import { defaultPageSize } from "../rpc/page.ts";
import { query } from "../rpc/query.ts";
import { seesWholeOrg } from "../rpc/scope.ts";
import { checkKept, followKept, logFloor } from "./log-floor.ts";
import { type EventRow, eventsTopic, lastEvent, readEvents, readEventsBack, toEvent } from "./outbox.ts";
import { concerns } from "./visible.ts";

const log = "events";

export const eventHandler = (app: App): ServiceImpl<typeof EventService> => ({
  watchEvents: feed(app, async (req, { db, caller, orgId }) => {
    const cursors = logCursors(app.cursors, log, orgId);
    const wanted = filter(caller, req.types);
    const floor = await logFloor(db, orgId, log);
    const start = req.fromStart ? floor : await lastEvent(db, orgId);
    const position = req.afterCursor ? cursors.decode(req.afterCursor) : start;
    if (req.afterCursor) checkKept(position, floor, cursors.encode);
    const checkpoint = (at: LogPosition, nowMs: number): MessageInitShape<typeof WatchEventsResponseSchema> => ({
      cursor: cursors.encode(at),
      item: { case: "checkpoint", value: timestampFromMs(nowMs) },
    });
    const checkStretch = followKept(app.db.query, orgId, log, { position, floor, encode: cursors.encode });
    return {
      topics: [eventsTopic(orgId)],
      position,
      first: [checkpoint(position, app.clock.now())],
      cursor: cursors.encode,
      checkpoint,
      async read(after: LogPosition, limit: number) {
        const rows = await readEvents(app.db.query, orgId, after, limit);
        await checkStretch(after, rows.length === limit);
        const messages = rows.filter(wanted).map((row): MessageInitShape<typeof WatchEventsResponseSchema> => {
          const cursor = cursors.encode(row);
          return { cursor, item: { case: "event", value: toEvent(app, row, cursor) } };
        });
        return { messages, position: rows.at(-1) ?? after, more: rows.length === limit };
      },
    };
  }),

  /** Reads a bounded stretch of the log and answers what the filter lets through, so a page can be short and yet not the last. */
  listEvents: query(app, async (req, { db, caller, orgId }) => {
    const cursors = logCursors(app.cursors, log, orgId);
    // A token of one direction is none of the other.
    const tokens = req.newestFirst ? logCursors(app.cursors, `${log} backwards`, orgId) : cursors;
    const size = req.pageSize || defaultPageSize;
    const wanted = filter(caller, req.types);
    let after = req.pageToken ? tokens.decode(req.pageToken, "page_token") : undefined;
    if (after && !req.newestFirst) checkKept(after, await logFloor(db, orgId, log), cursors.encode);
    const events: EventRow[] = [];
    let more = true;
    for (let reads = 0; more && events.length < size && reads < 8; reads++) {
      const rows = req.newestFirst
        ? await readEventsBack(db, orgId, after, feedPageSize)
        : await readEvents(db, orgId, after ?? logStart, feedPageSize);
      const fitting = rows.filter(wanted).slice(0, size - events.length);
      events.push(...fitting);
      const full = events.length === size;
      after = (full ? fitting.at(-1) : rows.at(-1)) ?? after;
      more = rows.length === feedPageSize || (full && rows.at(-1) !== fitting.at(-1));
    }
    return {
      events: events.map((row) => toEvent(app, row, cursors.encode(row))),
      nextPageToken: more && after ? tokens.encode(after) : "",
    };
  }),
});

/** What the caller may see and asked for. */
function filter(caller: Caller, types: readonly string[]): (row: EventRow) => boolean {
  const fits = (type: string) =>
    types.length === 0 ||
    types.some(
      (wanted) => wanted === "*" || wanted === type || (wanted.endsWith(".*") && type.startsWith(wanted.slice(0, -1))),
    );
  const viewer = { wholeOrg: seesWholeOrg(caller), agentId: caller.agentId };
  return (row) => fits(row.type) && concerns(viewer, row.agent_id);
}
