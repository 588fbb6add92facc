import type { MessageInitShape } from "@bufbuild/protobuf";
import { type Timestamp, timestampMs } from "@bufbuild/protobuf/wkt";
import type { HandlerContext, ServiceImpl } from "@connectrpc/connect";
import { type DeadLetterSchema, DeadLetterState } from "../../../gen/moltwire/bus/v1/dead_letter_pb.ts";
import type {
  DeadLetterService,
  RetryDeadLetterRequest,
  RetryDeadLetterResponseSchema,
} from "../../../gen/moltwire/bus/v1/dead_letter_service_pb.ts";
import type { App } from "../../app.ts";
import type { Queryable } from "../../db/db.ts";
import { badField, Fault, notFound } from "../../errors.ts";
import { acceptAcross } from "../../federation/gateway/accept.ts";
import { countUnder } from "../../federation/gateway/rate.ts";
import { isAway } from "../../federation/gateway/sides.ts";
import type { Caller } from "../../rpc/caller.ts";
import { command, runCommand } from "../../rpc/command.ts";
import { readPage } from "../../rpc/page.ts";
import { query } from "../../rpc/query.ts";
import { seesWholeOrg } from "../../rpc/scope.ts";
import { attemptsOf, toTaskAttempt } from "../attempt-store.ts";
import { checkRoom, type Dispatcher, startAccepted } from "../dispatch.ts";
import { type Accepted, acceptTask } from "../submit.ts";
import { findTask } from "../task-store.ts";
import {
  type DeadLetterRow,
  findDeadLetter,
  listDeadLetters,
  lockDeadLetter,
  markResolved,
  markRetried,
  retriesOf,
  toDeadLetter,
  toEnvelope,
} from "./dead-letter-store.ts";
import { checkRetries, retryOrder } from "./retry.ts";

type RetryReply = Extract<MessageInitShape<typeof RetryDeadLetterResponseSchema>, { $typeName?: never }>;

export const deadLetterHandler = (app: App, dispatcher: Dispatcher): ServiceImpl<typeof DeadLetterService> => ({
  listDeadLetters: query(app, async (req, { db, caller, orgId }) => {
    const [startMs, endMs] = [msOf(req.startTime), msOf(req.endTime)];
    if (startMs !== null && endMs !== null && endMs <= startMs)
      throw badField("end_time", "must be after start_time, or nothing lies between them");
    const own = caller.agentId;
    if (!seesWholeOrg(caller) && req.callerAgentId && req.callerAgentId !== own)
      return { deadLetters: [], nextPageToken: "" };
    const { taskId, traceId, targetAgentId, contractId, contractVersion, reason, state } = req;
    const callerAgentId = seesWholeOrg(caller) ? req.callerAgentId : own;
    const wanted = { taskId, traceId, targetAgentId, contractId, contractVersion, reason, state };
    const filter = { ...wanted, callerAgentId, startMs, endMs };
    const page = await readPage(
      app.cursors,
      ["ListDeadLetters", orgId, ...Object.values(filter).map(String)],
      req,
      (after, limit) => listDeadLetters(db, orgId, filter, after, limit),
      (row) => [row.create_ms, row.dead_letter_id],
    );
    const tried = page.rows.filter((row) => row.state !== DeadLetterState.OPEN).map((row) => row.dead_letter_id);
    const retries = await retriesOf(db, orgId, tried);
    return { deadLetters: page.rows.map((row) => toDeadLetter(app, row, retries)), nextPageToken: page.nextPageToken };
  }),

  getDeadLetter: query(app, async (req, { db, caller, orgId }) => {
    const row = visible(caller, await findDeadLetter(db, orgId, req.deadLetterId), req.deadLetterId);
    return { deadLetter: await whole(app, db, row) };
  }),

  resolveDeadLetter: command(app, async (req, { tx, caller, orgId, now }) => {
    const row = visible(caller, await lockDeadLetter(tx, orgId, req.deadLetterId), req.deadLetterId);
    if (row.state !== DeadLetterState.RESOLVED)
      await markResolved(tx, row, caller.agentId || caller.keyId, req.note, now);
    else if (row.resolve_note !== req.note)
      throw new Fault("FAILED_PRECONDITION", "it is resolved already, with another note", { state: "RESOLVED" });
    return { deadLetter: await wholeNow(app, tx, row) };
  }),

  retryDeadLetter: (req, context) => retry(app, dispatcher, req, context),
});

/** Accepts the retry in one transaction with what that makes of the dead letter, then works on it. */
async function retry(
  app: App,
  dispatcher: Dispatcher,
  req: RetryDeadLetterRequest,
  context: HandlerContext,
): Promise<RetryReply> {
  checkRoom(dispatcher);
  let accepted: Accepted | undefined;
  let turn: number | undefined;
  const count = countUnder(app, context.responseHeader);
  const { reply } = await count.around(() =>
    runCommand(app, req, context, async (request, given): Promise<RetryReply> => {
      const { tx, caller, orgId } = given;
      // Locked, so that of those who retry it at once each sees what the one before it began.
      const row = visible(caller, await lockDeadLetter(tx, orgId, request.deadLetterId), request.deadLetterId);
      checkRetries(await retriesOf(tx, orgId, [row.dead_letter_id]));
      const failed = (await findTask(tx, orgId, row.task_id))!;
      const { target_org_id: targetOrgId } = failed;
      const order = await retryOrder(app, given, request, failed);
      turn ??= dispatcher.turns.take(targetOrgId, row.contract_id); // once, though the body may run again
      // Across organisations under whatever grant fits now; the work is what begins, if it need not be approved first.
      const across = isAway(failed)
        ? await acceptAcross(app, { ...order, wish: { ...order.wish, grantId: "" }, targetOrgId }, given, turn, count)
        : undefined;
      accepted = across ? across.work : await acceptTask(app, order, given, turn);
      const task = across?.task ?? accepted!.task;
      await markRetried(tx, row);
      return { deadLetter: await wholeNow(app, tx, row), taskId: task.task_id, spanId: task.span_id };
    }),
  );
  if (accepted && accepted.task.task_id === reply.taskId) startAccepted(dispatcher, accepted);
  return reply;
}

/** The dead letter, if the caller may know of it; else NOT_FOUND. */
function visible(caller: Caller, row: DeadLetterRow | undefined, id: string): DeadLetterRow {
  if (!row || !(seesWholeOrg(caller) || row.caller_agent_id === caller.agentId)) throw notFound("dead letter", id);
  return row;
}

/** With its envelope, its attempts and its retries. */
async function whole(app: App, db: Queryable, row: DeadLetterRow): Promise<MessageInitShape<typeof DeadLetterSchema>> {
  const { org_id: orgId, task_id: taskId, dead_letter_id: id } = row;
  const task = await findTask(db, orgId, taskId);
  if (!task) throw new Error(`task ${taskId} of dead letter ${id} is gone`);
  const { attempts, error, retry_of_dead_letter_id } = task;
  const made = await attemptsOf(db, orgId, taskId);
  return {
    ...toDeadLetter(app, { ...row, attempts, error, retry_of_dead_letter_id }, await retriesOf(db, orgId, [id])),
    envelope: toEnvelope(app, task),
    attempts: made.map((attempt) => toTaskAttempt(app, attempt)),
  };
}

/** As it is after a change. */
const wholeNow = async (app: App, db: Queryable, { org_id, dead_letter_id }: DeadLetterRow) =>
  whole(app, db, (await findDeadLetter(db, org_id, dead_letter_id))!);

const msOf = (time: Timestamp | undefined): number | null => (time ? timestampMs(time) : null);
