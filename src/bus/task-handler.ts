import { create, type MessageInitShape } from "@bufbuild/protobuf";
import { timestampFromMs } from "@bufbuild/protobuf/wkt";
import type { HandlerContext, ServiceImpl } from "@connectrpc/connect";
import type {
  BusService,
  SubmitTaskRequest,
  SubmitTaskResponseSchema,
  WatchTaskResponseSchema,
} from "../../gen/moltwire/bus/v1/bus_service_pb.ts";
import { TaskSchema, TaskState } from "../../gen/moltwire/bus/v1/task_pb.ts";
import { TraceEventKind } from "../../gen/moltwire/bus/v1/trace_pb.ts";
import type { App } from "../app.ts";
import type { Queryable, Tx } from "../db/db.ts";
import type { LogPosition } from "../db/log.ts";
import { Fault, notFound } from "../errors.ts";
import { isAway } from "../federation/gateway/sides.ts";
import { checkKept, logFloor } from "../ops/log-floor.ts";
import { type Caller, callerOf, traceOf } from "../rpc/caller.ts";
import { command, runCommand } from "../rpc/command.ts";
import { feed } from "../rpc/feed.ts";
import { logCursors, logStart } from "../rpc/log-position.ts";
import { readPage } from "../rpc/page.ts";
import { query } from "../rpc/query.ts";
import { orgOf, seesWholeOrg, viewerOf } from "../rpc/scope.ts";
import { checkBudgets } from "./budget/reserve-budgets.ts";
import { cancelTopic } from "./cancel-topic.ts";
import { concludeAcross, stateName } from "./conclude.ts";
import { decide } from "./decide.ts";
import { checkRoom, type Dispatcher, startAccepted } from "./dispatch.ts";
import { deadlineOf, ended } from "./ended.ts";
import { fromPieceRow } from "./piece-store.ts";
import { type Accepted, acceptTask, actingAgent, approvalStep, budgetWish, orderOf, wishOf } from "./submit.ts";
import {
  findTask,
  findTaskSummary,
  isTerminal,
  listTasks,
  lockTask,
  type TaskRow,
  type TaskSummaryRow,
  taskState,
  toTask,
} from "./task-store.ts";
import { traceLog } from "./trace-handler.ts";
import {
  findTrace,
  firstPieceKind,
  fromEventRow,
  hasStepAfter,
  readTaskSteps,
  type Step,
  taskTopic,
  toTraceEvent,
} from "./trace-store.ts";
import { detailsFor } from "./unshown.ts";

type SubmitReply = MessageInitShape<typeof SubmitTaskResponseSchema>;
type Built = "submitTask" | "getTask" | "listTasks" | "cancelTask" | "watchTask";

export const taskHandler = (app: App, dispatcher: Dispatcher): Pick<ServiceImpl<typeof BusService>, Built> => ({
  submitTask: async (req, context) =>
    req.validateOnly ? dryRun(app, dispatcher, req, context) : submit(app, dispatcher, req, context),

  getTask: query(app, async (req, { db, caller, orgId }) => ({
    task: toTask(app, await visibleTask(db, caller, orgId, req.taskId)),
  })),

  listTasks: query(app, async (req, { db, caller, orgId }) => {
    if (!seesWholeOrg(caller) && req.agentId && req.agentId !== caller.agentId) return { tasks: [], nextPageToken: "" };
    const filter = {
      state: req.state,
      agentId: seesWholeOrg(caller) ? req.agentId : caller.agentId,
      contractId: req.contractId,
      traceId: req.traceId,
    };
    const scope = ["ListTasks", orgId, ...Object.values(filter).map(String)];
    const page = await readPage(
      app.cursors,
      scope,
      req,
      (after, limit) => listTasks(db, orgId, filter, after, limit),
      (row) => [row.task_id],
    );
    return { tasks: page.rows.map((row) => toTask(app, row)), nextPageToken: page.nextPageToken };
  }),

  cancelTask: command(app, async (req, { tx, caller, orgId, now }) => {
    const task = await cancelable(tx, caller, orgId, req.taskId);
    if (task.state === TaskState.CANCELED) return { task: toTask(app, task) };
    if (isTerminal(task.state))
      throw new Fault("FAILED_PRECONDITION", `the task is ${stateName(task.state)} already`, {
        state: stateName(task.state),
      });
    const hold = { orgId, taskId: task.task_id, token: task.lease_token };
    const fault = {
      reason: "TASK_CANCELED",
      message: req.note || "canceled",
      metadata: { canceled_by: caller.agentId || caller.keyId },
    } as const;
    const step = {
      kind: TraceEventKind.CANCELED,
      timeMs: now,
      message: fault.message,
      details: { note: req.note },
      targetAgentId: task.target_agent_id,
      durationMs: now - task.create_ms,
    };
    const end = { state: TaskState.CANCELED, endMs: now };
    // What its caller writes about it is for its own organisation.
    const there = { reason: fault.reason, message: "canceled by the organisation that asked", metadata: {} };
    const stepThere = { ...step, message: there.message, details: { note: "" } };
    await concludeAcross(
      tx,
      app,
      { hold, task },
      { ...end, fault, steps: [step] },
      { ...end, fault: there, steps: [stepThere] },
    );
    tx.ring(cancelTopic(task.task_id));
    return { task: toTask(app, (await findTask(tx, orgId, task.task_id))!) };
  }),

  watchTask: feed(app, async (req, { db, caller, orgId }) => {
    const task = await visibleTask(db, caller, orgId, req.taskId);
    const cursors = logCursors(app.cursors, traceLog, orgId);
    const position = req.afterCursor ? cursors.decode(req.afterCursor) : logStart;
    // The log of the organisation can begin later than this cursor, and have all of this task none the less.
    if (req.afterCursor && !(await findTrace(db, orgId, task.trace_id)))
      checkKept(position, await logFloor(db, orgId, traceLog), cursors.encode);
    return {
      topics: [taskTopic(task.task_id)],
      position,
      first: [whole(app, task, cursors.encode(position))],
      cursor: cursors.encode,
      checkpoint: (at: LogPosition, nowMs: number): WatchMessage => ({
        cursor: cursors.encode(at),
        event: { case: "checkpoint", value: timestampFromMs(nowMs) },
      }),
      read: (after: LogPosition, limit: number) => readSteps(app, task, cursors.encode, viewerOf(caller), after, limit),
    };
  }),
});

type WatchMessage = MessageInitShape<typeof WatchTaskResponseSchema>;

const whole = (app: App, task: TaskRow, cursor: string): WatchMessage => ({
  cursor,
  event: { case: "task", value: create(TaskSchema, toTask(app, task)) },
});

/** The steps and pieces of one task; after the last one the whole task again, and the feed is over. */
async function readSteps(
  app: App,
  { org_id: orgId, task_id: taskId, trace_id: traceId }: TaskRow,
  encode: (at: LogPosition) => string,
  asAgentId: string | undefined,
  after: LogPosition,
  limit: number,
) {
  const state = await taskState(app.db.query, orgId, taskId);
  const rows = await readTaskSteps(app.db.query, orgId, traceId, taskId, after, limit);
  const messages = rows.map((row): WatchMessage => {
    const cursor = encode(row);
    if (row.kind >= firstPieceKind) return { cursor, event: fromPieceRow(app, row) };
    return { cursor, event: { case: "step", value: fromEventRow(app, row, cursor, asAgentId) } };
  });
  const position = rows.at(-1) ?? after;
  const more = rows.length === limit;
  const over =
    !more &&
    (state === undefined || isTerminal(state)) &&
    !(await hasStepAfter(app.db.query, orgId, traceId, taskId, position));
  const ended = over ? await findTask(app.db.query, orgId, taskId) : undefined;
  return { messages: ended ? [...messages, whole(app, ended, encode(position))] : messages, position, more, over };
}

async function submit(
  app: App,
  dispatcher: Dispatcher,
  req: SubmitTaskRequest,
  context: HandlerContext,
): Promise<SubmitReply> {
  checkRoom(dispatcher);
  const deadlineMs = deadlineOf(app.clock.now(), req.returnImmediately ? undefined : context.timeoutMs());
  let accepted: Accepted | undefined;
  let turn: number | undefined;
  const { reply } = await runCommand(app, req, context, async (request, given): Promise<SubmitReply> => {
    turn ??= dispatcher.turns.take(given.orgId, request.contractId); // once, though the body may run again
    accepted = await acceptTask(app, await orderOf(request, given, deadlineMs), given, turn);
    return { task: toTask(app, accepted.task) };
  });
  const { orgId = "", taskId = "" } = reply.task!;
  if (accepted?.task.task_id === taskId) startAccepted(dispatcher, accepted);
  if (req.returnImmediately) return reply;
  return { task: toTask(app, await ended(app, orgId, taskId, context.signal)) };
}

/** The decision without the deed: what would be written is answered instead. */
async function dryRun(
  app: App,
  dispatcher: Dispatcher,
  req: SubmitTaskRequest,
  context: HandlerContext,
): Promise<SubmitReply> {
  const db = app.db.query;
  const orgId = await orgOf(db, callerOf(context), req.orgId);
  const callerAgentId = await actingAgent(db, callerOf(context), orgId, req.agentId);
  const { traceId, spanId, parentSpanId } = traceOf(context);
  const span = { orgId, traceId, spanId, parentSpanId, taskId: "", callerAgentId, contractId: req.contractId };
  const turn = dispatcher.turns.peek(orgId, req.contractId);
  const now = app.clock.now();
  const decision = await decide(app, db, wishOf(req, orgId, callerAgentId), now, turn);
  const draft = {
    org_id: orgId,
    trace_id: traceId,
    caller_agent_id: callerAgentId,
    caller_key_id: callerOf(context).keyId,
    grant_id: "",
    contract_id: req.contractId,
    create_ms: now,
  };
  const budget = decision.refusal ? undefined : await checkBudgets(db, budgetWish(draft, decision));
  const steps = [...decision.steps, ...(budget?.steps ?? [])];
  if (!decision.refusal && !budget?.refusal && decision.demand)
    steps.push(approvalStep(now, decision.demand, decision.targetAgentId));
  const asAgentId = viewerOf(callerOf(context));
  const shown = ({ details = {}, ...step }: Step): Step => ({
    ...step,
    details: asAgentId === undefined ? details : detailsFor(asAgentId, details),
  });
  return { decisionPath: steps.map((step) => toTraceEvent(span, shown(step))) };
}

const takesPart = (caller: Caller, task: TaskSummaryRow): boolean =>
  seesWholeOrg(caller) || task.caller_agent_id === caller.agentId || task.target_agent_id === caller.agentId;

/** The task, if the caller may know of it; else NOT_FOUND. */
async function visibleTask(db: Queryable, caller: Caller, orgId: string, taskId: string): Promise<TaskRow> {
  const task = await findTask(db, orgId, taskId);
  if (!task || !takesPart(caller, task)) throw notFound("task", taskId);
  return task;
}

/** The task, locked, if the caller asked for it; else NOT_FOUND. */
async function cancelable(tx: Tx, caller: Caller, orgId: string, taskId: string): Promise<TaskRow> {
  const seen = await findTaskSummary(tx, orgId, taskId);
  // Work that is another organisation's is locked before the side that asked.
  if (seen && isAway(seen)) await lockTask(tx, seen.target_org_id, taskId);
  const task = await lockTask(tx, orgId, taskId);
  if (!task || !(seesWholeOrg(caller) || task.caller_agent_id === caller.agentId)) throw notFound("task", taskId);
  return task;
}
