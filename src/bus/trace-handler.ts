import type { MessageInitShape } from "@bufbuild/protobuf";
import { timestampFromMs } from "@bufbuild/protobuf/wkt";
import type { ServiceImpl } from "@connectrpc/connect";
import type {
  TailTracesRequest,
  TailTracesResponseSchema,
  TraceService,
} from "../../gen/moltwire/bus/v1/trace_service_pb.ts";
import type { App } from "../app.ts";
import type { LogPosition } from "../db/log.ts";
import { notFound } from "../errors.ts";
import { checkKept, followKept, logFloor } from "../ops/log-floor.ts";
import type { Caller } from "../rpc/caller.ts";
import { feed } from "../rpc/feed.ts";
import { logCursors, logStart } from "../rpc/log-position.ts";
import { readPage } from "../rpc/page.ts";
import { query } from "../rpc/query.ts";
import { seesWholeOrg, viewerOf } from "../rpc/scope.ts";
import {
  committedTraceSteps,
  findTrace,
  firstStep,
  fromEventRow,
  lastStep,
  listTraces,
  type OpenedEventRow,
  readSteps,
  takesPart,
  toTrace,
  tracesTopic,
} from "./trace-store.ts";

/** The name of the log of trace events in cursors; WatchTask's are of the same log. */
export const traceLog = "traces";
const defaultTracePage = 250;

type TailMessage = MessageInitShape<typeof TailTracesResponseSchema>;

export const traceHandler = (app: App): ServiceImpl<typeof TraceService> => ({
  getTrace: query(app, async (req, { db, caller, orgId }) => {
    const opened = await findTrace(db, orgId, req.traceId);
    const whole = opened !== undefined && (seesWholeOrg(caller) || opened.opener_agent_id === caller.agentId);
    if (!opened || !(whole || (await takesPart(db, orgId, req.traceId, caller.agentId))))
      throw notFound("trace", req.traceId);
    const trace = whole ? opened : (await findTrace(db, orgId, req.traceId, caller.agentId))!;
    const cursors = logCursors(app.cursors, traceLog, orgId);
    const size = req.pageSize || defaultTracePage;
    const after = req.pageToken ? cursors.decode(req.pageToken, "page_token") : logStart;
    const found = await committedTraceSteps(db, orgId, req.traceId, after, size + 1);
    const rows = found.slice(0, size);
    const seen = rows.filter((row) => maySee(caller, { ...row, opener_agent_id: opened.opener_agent_id }));
    const events = seen.map((row) => fromEventRow(app, row, cursors.encode(row), viewerOf(caller)));
    return { trace: toTrace(trace), events, nextPageToken: found.length > size ? cursors.encode(rows.at(-1)!) : "" };
  }),

  listTraces: query(app, async (req, { db, caller, orgId }) => {
    const openerAgentId = seesWholeOrg(caller) ? req.agentId : caller.agentId;
    if (req.agentId && req.agentId !== openerAgentId) return { traces: [], nextPageToken: "" };
    const scope = ["ListTraces", orgId, openerAgentId, req.contractId];
    const read = (after: Parameters<typeof listTraces>[3], limit: number) =>
      listTraces(db, orgId, { openerAgentId, contractId: req.contractId }, after, limit);
    const page = await readPage(app.cursors, scope, req, read, (row) => [row.start_ms, row.trace_id]);
    return { traces: page.rows.map(toTrace), nextPageToken: page.nextPageToken };
  }),

  tailTraces: feed(app, async (req, { db, caller, orgId }) => {
    const cursors = logCursors(app.cursors, traceLog, orgId);
    const wanted = filter(caller, req);
    const floor = await logFloor(db, orgId, traceLog);
    const start = req.fromStart ? await firstStep(db, orgId, floor) : await lastStep(db, orgId);
    const position = req.afterCursor ? cursors.decode(req.afterCursor) : start;
    if (req.afterCursor) checkKept(position, floor, cursors.encode);
    const checkpoint = (at: LogPosition, nowMs: number): TailMessage => ({
      cursor: cursors.encode(at),
      event: { case: "checkpoint", value: timestampFromMs(nowMs) },
    });
    const checkStretch = followKept(app.db.query, orgId, traceLog, { position, floor, encode: cursors.encode });
    return {
      topics: [tracesTopic(orgId)],
      position,
      first: [checkpoint(position, app.clock.now())],
      cursor: cursors.encode,
      checkpoint,
      async read(after: LogPosition, limit: number) {
        const rows = await readSteps(app.db.query, orgId, after, limit);
        await checkStretch(after, rows.length === limit);
        const messages = rows.filter(wanted).map((row): TailMessage => {
          const cursor = cursors.encode(row);
          return { cursor, event: { case: "traceEvent", value: fromEventRow(app, row, cursor, viewerOf(caller)) } };
        });
        return { messages, position: rows.at(-1) ?? after, more: rows.length === limit };
      },
    };
  }),
});

/** An agent sees the steps it asked for or was given, and all of a trace that it opened. */
function maySee(
  caller: Caller,
  row: { readonly caller_agent_id: string; readonly target_agent_id: string; readonly opener_agent_id: string },
): boolean {
  return (
    seesWholeOrg(caller) || [row.caller_agent_id, row.target_agent_id, row.opener_agent_id].includes(caller.agentId)
  );
}

function filter(caller: Caller, req: TailTracesRequest): (row: OpenedEventRow) => boolean {
  const kinds = new Set<number>(req.kinds);
  return (row) =>
    maySee(caller, row) &&
    (!req.traceId || row.trace_id === req.traceId) &&
    (!req.agentId || row.caller_agent_id === req.agentId || row.target_agent_id === req.agentId) &&
    (!req.contractId || row.contract_id === req.contractId) &&
    (kinds.size === 0 || kinds.has(row.kind));
}
