import type { MessageInitShape } from "@bufbuild/protobuf";
import { timestampFromMs } from "@bufbuild/protobuf/wkt";
import type { WatchJobsRequest, WatchJobsResponseSchema } from "../../gen/moltwire/queue/v1/queue_service_pb.ts";
import type { App } from "../app.ts";
import { readKeepingOf } from "../bus/policy/keeping.ts";
import type { LogPosition } from "../db/log.ts";
import { Fault } from "../errors.ts";
import type { Reader } from "../rpc/feed.ts";
import { logCursors } from "../rpc/log-position.ts";
import type { Query } from "../rpc/query.ts";
import { sightOf } from "./access.ts";
import { changeFloor, changesTopic, lastChange, readChanges, toChange } from "./change-log.ts";

/** The name of the log of changes in cursors. */
const log = "jobs";

type Message = MessageInitShape<typeof WatchJobsResponseSchema>;

/** The changes of jobs that the caller may know of; CURSOR_EXPIRED when some after its cursor are no longer kept. */
export async function changesReader(
  app: App,
  req: WatchJobsRequest,
  given: Query,
): Promise<Reader<Message, LogPosition>> {
  const { db, caller, orgId } = given;
  const keeping = readKeepingOf(app, given);
  const cursors = logCursors(app.cursors, log, orgId);
  const floor = await changeFloor(db, orgId);
  const start = req.fromStart ? floor : await lastChange(db, orgId);
  const position = req.afterCursor ? cursors.decode(req.afterCursor) : start;
  if (isBefore(position, floor))
    throw new Fault("CURSOR_EXPIRED", "changes after this cursor are no longer kept: begin anew, or with the oldest", {
      oldest_cursor: cursors.encode(floor),
    });
  const checkpoint = (at: LogPosition, nowMs: number): Message => ({
    cursor: cursors.encode(at),
    event: { case: "checkpoint", value: timestampFromMs(nowMs) },
  });
  return {
    topics: [changesTopic(orgId)],
    position,
    first: [checkpoint(position, app.clock.now())],
    cursor: cursors.encode,
    checkpoint,
    async read(after: LogPosition, limit: number) {
      const rows = await readChanges(app.db.query, orgId, after, limit);
      const asked = rows.filter(
        ({ queue, job_id }) => (!req.queue || req.queue === queue) && (!req.jobId || req.jobId === job_id),
      );
      const messages: Message[] = [];
      // Asked anew for each stretch: policies may have changed.
      const sight = asked.length > 0 ? await sightOf(keeping, app, caller, orgId) : undefined;
      for (const row of asked) {
        if (!(await sight!.sees(row.queue))) continue;
        messages.push({ cursor: cursors.encode(row), event: { case: "change", value: toChange(app, row) } });
      }
      return { messages, position: rows.at(-1) ?? after, more: rows.length === limit };
    },
  };
}

const isBefore = (a: LogPosition, b: LogPosition): boolean => a.xid < b.xid || (a.xid === b.xid && a.seq < b.seq);
