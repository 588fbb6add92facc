import type { MessageInitShape } from "@bufbuild/protobuf";
import { create, fromBinary, type JsonObject, toBinary } from "@bufbuild/protobuf";
import { durationFromMs, timestampFromMs } from "@bufbuild/protobuf/wkt";
import { TraceEventKind, TraceEventSchema, type TraceSchema } from "../../gen/moltwire/bus/v1/trace_pb.ts";
import type { App } from "../app.ts";
import { join, type Queryable, sql, type Tx } from "../db/db.ts";
import { committedAfter, type LogPosition, settled, settledAfter } from "../db/log.ts";
import { isBefore, logFloor } from "../ops/log-floor.ts";
import type { Position } from "../rpc/cursor.ts";
import { logStart } from "../rpc/log-position.ts";
import type { Place } from "../vault/sealed.ts";
import { detailsFor } from "./unshown.ts";

/** Where the events of a task belong. */
export type Span = {
  readonly orgId: string;
  readonly traceId: string;
  readonly spanId: string;
  readonly parentSpanId: string;
  /** Empty for a task that was refused. */
  readonly taskId: string;
  /** Empty when an administrator asked. */
  readonly callerAgentId: string;
  readonly contractId: string;
  /** The side of a task across organisations that does the work: whoever counts tasks hears of acceptance, refusal and end from the side that asked. */
  readonly echo?: boolean;
};

/** The steps that both sides of a task have. */
const countedOnce: ReadonlySet<TraceEventKind> = new Set([
  TraceEventKind.ACCEPTED,
  TraceEventKind.REFUSED,
  TraceEventKind.COMPLETED,
  TraceEventKind.FAILED,
  TraceEventKind.CANCELED,
  TraceEventKind.REJECTED,
]);

/** One step of a task, before it is written. */
export type Step = {
  readonly kind: TraceEventKind;
  readonly timeMs: number;
  readonly message: string;
  readonly details?: JsonObject;
  readonly targetAgentId?: string;
  readonly durationMs?: number;
};

/** A step as it is stored; `body` is a sealed TraceEvent. */
export type TraceEventRow = {
  readonly xid: number;
  readonly seq: number;
  readonly org_id: string;
  readonly trace_id: string;
  readonly task_id: string;
  readonly kind: number;
  readonly caller_agent_id: string;
  readonly target_agent_id: string;
  readonly contract_id: string;
  /** Unique among the rows of its trace and kind; empty in rows of before there was one. */
  readonly event_id: string;
  readonly body: Uint8Array;
};

/** With the agent that opened the trace. */
export type OpenedEventRow = TraceEventRow & { readonly opener_agent_id: string };

/** Rung after steps of an organisation are committed. */
export const tracesTopic = (orgId: string): string => `traces:${orgId}`;
/** Rung after steps of one task are committed. */
export const taskTopic = (taskId: string): string => `task:${taskId}`;

/** Rows of the log of this kind or a higher one are no steps but pieces of a stream, which only WatchTask tells; see piece-store.ts. */
export const firstPieceKind = 1_000;

const ofEvent = { xid: sql`e.xid`, seq: sql`e.seq` };
const eventColumns = sql`e.xid, e.seq, e.org_id, e.trace_id, e.task_id, e.kind, e.caller_agent_id, e.target_agent_id, e.contract_id, e.event_id, e.body`;

/** Writes the steps of a task, at least one, in the transaction in which they happen: one statement, since each costs a round trip on PostgreSQL. */
export async function recordSteps(
  tx: Tx,
  app: Pick<App, "ids" | "vault" | "stepsCommitted">,
  span: Span,
  steps: readonly Step[],
): Promise<void> {
  const rows = steps.map((step) => {
    const eventId = app.ids.span();
    const place = eventPlace(span.orgId, span.traceId, step.kind, eventId);
    const body = app.vault.seal(place, toBinary(TraceEventSchema, toTraceEvent(span, step)));
    return sql`(${span.orgId}, ${tx.dialect.xid}, ${span.traceId}, ${span.taskId}, ${step.kind}, ${span.callerAgentId},
      ${step.targetAgentId ?? ""}, ${span.contractId}, ${eventId}, ${body})`;
  });
  await tx.run(sql`
    insert into trace_event (org_id, xid, trace_id, task_id, kind, caller_agent_id, target_agent_id, contract_id, event_id, body) values ${join(rows)}`);
  tx.ring(tracesTopic(span.orgId));
  if (span.taskId) tx.ring(taskTopic(span.taskId));
  const told = span.echo ? steps.filter(({ kind }) => !countedOnce.has(kind)) : steps;
  tx.afterCommit(() => app.stepsCommitted(span, told));
}

/** The step as clients read it, without its place in the log. */
export const toTraceEvent = (span: Span, step: Step) =>
  create(TraceEventSchema, {
    traceId: span.traceId,
    spanId: span.spanId,
    parentSpanId: span.parentSpanId,
    taskId: span.taskId,
    kind: step.kind,
    time: timestampFromMs(step.timeMs),
    callerAgentId: span.callerAgentId,
    targetAgentId: step.targetAgentId ?? "",
    contractId: span.contractId,
    message: step.message,
    details: step.details ?? {},
    ...(step.durationMs !== undefined && { duration: durationFromMs(step.durationMs) }),
  });

/** A stored step as clients read it: an agent by its id, or an administrator. */
export function fromEventRow(
  app: Pick<App, "vault">,
  row: TraceEventRow,
  cursor: string,
  asAgentId: string | undefined,
) {
  const event = fromBinary(TraceEventSchema, openEvent(app, row));
  if (asAgentId !== undefined && event.details) event.details = detailsFor(asAgentId, event.details);
  event.cursor = cursor;
  return event;
}

/** The body of a stored step or piece. */
export const openEvent = (app: Pick<App, "vault">, row: TraceEventRow): Uint8Array =>
  app.vault.open(eventPlace(row.org_id, row.trace_id, row.kind, eventIdOf(row.event_id, row.seq)), row.body);

/** What tells a row from the others of its trace and kind: rows of before there were event ids lay in the clear, so that their number can serve. */
export const eventIdOf = (eventId: string, seq: number): string => eventId || `#${seq}`;

/** Where the body of a step or piece lies. */
export const eventPlace = (orgId: string, traceId: string, kind: number, eventId: string): Place => ({
  orgId,
  table: "trace_event",
  id: `${traceId} ${kind} ${eventId}`,
});

/** Opens the trace, unless it is: 1, or 0. The first task gives it its contract and its opener. */
export const openTrace = (tx: Tx, span: Span, startMs: number): Promise<number> =>
  tx.run(sql`
    insert into trace (org_id, trace_id, contract_id, opener_agent_id, start_ms)
    values (${span.orgId}, ${span.traceId}, ${span.contractId}, ${span.callerAgentId}, ${startMs}) on conflict do nothing`);

/** Of a trace that the same transaction has opened, and in which nothing has happened after all. */
export const removeTrace = (tx: Tx, { orgId, traceId }: Pick<Span, "orgId" | "traceId">): Promise<number> =>
  tx.run(sql`delete from trace where org_id = ${orgId} and trace_id = ${traceId}`);

/**
 * The settled steps of an organisation after a position, oldest first; by the index on (org, xid, seq). The pieces of streams lie between
 * and are walked over; a task has few, since they are coalesced.
 */
export const readSteps = (db: Queryable, orgId: string, after: LogPosition, limit: number): Promise<OpenedEventRow[]> =>
  db.all<OpenedEventRow>(sql`
    select ${eventColumns}, t.opener_agent_id from trace_event e join trace t on t.org_id = e.org_id and t.trace_id = e.trace_id
    where e.org_id = ${orgId} and ${settledAfter(db.dialect, after, ofEvent)} and e.kind < ${firstPieceKind} order by e.xid, e.seq limit ${limit}`);

/**
 * The settled steps and pieces of one task after a position, oldest first; by the index on (org, trace, xid, seq). Those of the trace's other tasks
 * are left out here and not by the reader: a trace can have many, and pieces can be large.
 */
export const readTaskSteps = (
  db: Queryable,
  orgId: string,
  traceId: string,
  taskId: string,
  after: LogPosition,
  limit: number,
): Promise<TraceEventRow[]> =>
  db.all<TraceEventRow>(sql`
    select ${eventColumns} from trace_event e
    where e.org_id = ${orgId} and e.trace_id = ${traceId} and ${settledAfter(db.dialect, after, ofEvent)}
      and e.task_id = ${taskId}
    order by e.xid, e.seq limit ${limit}`);

/** The committed steps of one trace, settled or not: for reading it once, not for following it. */
export const committedTraceSteps = (
  db: Queryable,
  orgId: string,
  traceId: string,
  after: LogPosition,
  limit: number,
): Promise<TraceEventRow[]> =>
  db.all<TraceEventRow>(sql`
    select ${eventColumns} from trace_event e
    where e.org_id = ${orgId} and e.trace_id = ${traceId} and ${committedAfter(db.dialect, after, ofEvent)} and e.kind < ${firstPieceKind} order by e.xid, e.seq limit ${limit}`);

/** Whether a task has a committed step or piece after a position, settled or not. */
export const hasStepAfter = async (
  db: Queryable,
  orgId: string,
  traceId: string,
  taskId: string,
  after: LogPosition,
): Promise<boolean> =>
  (await db.one(sql`
    select 1 as found from trace_event
    where org_id = ${orgId} and trace_id = ${traceId} and ${committedAfter(db.dialect, after)} and task_id = ${taskId} limit 1`)) !==
  undefined;

/** Where the log of an organisation ends now. */
export const lastStep = async (db: Queryable, orgId: string): Promise<LogPosition> =>
  (await db.one<LogPosition>(sql`
    select xid, seq from trace_event where org_id = ${orgId} and ${settled(db.dialect)} order by xid desc, seq desc limit 1`)) ??
  logFloor(db, orgId, "traces");

/** Where whoever wants all that is kept begins: at the floor, or before it where traces that go on have steps from before. */
export const firstStep = async (db: Queryable, orgId: string, floor: LogPosition): Promise<LogPosition> => {
  const first = await db.one<LogPosition>(
    sql`select xid, seq from trace_event where org_id = ${orgId} and ${settled(db.dialect)} order by xid, seq limit 1`,
  );
  return first && isBefore(first, floor) ? logStart : floor;
};

/** A trace with the counts of its tasks. */
export type TraceRow = {
  readonly org_id: string;
  readonly trace_id: string;
  readonly contract_id: string;
  readonly opener_agent_id: string;
  readonly start_ms: number;
  readonly tasks: number;
  readonly open_tasks: number;
  readonly failed_tasks: number;
  readonly end_ms: number | null;
};

/**
 * With the counts of its tasks, or of those that one agent takes part in; along the index on (org, trace). `state` below 4 is not terminal, 5
 * is FAILED; see TaskState.
 */
const traceColumns = (ofAgentId: string) => {
  const mine = ofAgentId ? sql`and (k.caller_agent_id = ${ofAgentId} or k.target_agent_id = ${ofAgentId})` : sql``;
  const tasks = sql`from task k where k.org_id = t.org_id and k.trace_id = t.trace_id ${mine}`;
  return sql`t.org_id, t.trace_id, t.contract_id, t.opener_agent_id, t.start_ms, (select count(*) ${tasks}) as tasks,
    (select count(*) ${tasks} and k.state < 4) as open_tasks, (select count(*) ${tasks} and k.state = 5) as failed_tasks, (select max(k.end_ms) ${tasks}) as end_ms`;
};

/** One trace; its counts are of all its tasks, or of those that one agent takes part in. */
export const findTrace = (
  db: Queryable,
  orgId: string,
  traceId: string,
  ofAgentId = "",
): Promise<TraceRow | undefined> =>
  db.one<TraceRow>(
    sql`select ${traceColumns(ofAgentId)} from trace t where t.org_id = ${orgId} and t.trace_id = ${traceId}`,
  );

/** Whether an agent asked for or was given anything in a trace; along the index on (org, trace, xid, seq). */
export const takesPart = async (db: Queryable, orgId: string, traceId: string, agentId: string): Promise<boolean> =>
  (await db.one(sql`
    select 1 as found from trace_event where org_id = ${orgId} and trace_id = ${traceId} and (caller_agent_id = ${agentId} or target_agent_id = ${agentId}) limit 1`)) !==
  undefined;

export type TraceFilter = { readonly openerAgentId: string; readonly contractId: string };

/** Newest first; by the index on (org, start, trace), or, of one opener, on (org, opener, start, trace). */
export function listTraces(
  db: Queryable,
  orgId: string,
  filter: TraceFilter,
  after: Position | undefined,
  limit: number,
): Promise<TraceRow[]> {
  const before = after ? sql`and (t.start_ms, t.trace_id) < (${after[0]!}, ${after[1]!})` : sql``;
  const ofOpener = filter.openerAgentId ? sql`and t.opener_agent_id = ${filter.openerAgentId}` : sql``;
  const ofContract = filter.contractId ? sql`and t.contract_id = ${filter.contractId}` : sql``;
  return db.all<TraceRow>(sql`
    select ${traceColumns("")} from trace t where t.org_id = ${orgId} ${ofOpener} ${ofContract} ${before} order by t.start_ms desc, t.trace_id desc limit ${limit}`);
}

export const toTrace = (row: TraceRow): MessageInitShape<typeof TraceSchema> => ({
  orgId: row.org_id,
  traceId: row.trace_id,
  contractId: row.contract_id,
  openerAgentId: row.opener_agent_id,
  tasks: row.tasks,
  openTasks: row.open_tasks,
  failedTasks: row.failed_tasks,
  startTime: timestampFromMs(row.start_ms),
  updateTime: timestampFromMs(Math.max(row.start_ms, row.end_ms ?? 0)),
});
