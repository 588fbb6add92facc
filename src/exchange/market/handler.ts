import { createHash } from "node:crypto";
import type { ServiceImpl } from "@connectrpc/connect";
import { Role } from "../../../gen/moltwire/api/v1/access_pb.ts";
import { MarketplaceTaskState, ReviewVerdict } from "../../../gen/moltwire/exchange/v1/marketplace_pb.ts";
import {
  type ListTasksRequest,
  type MarketplaceService,
  TaskSide,
} from "../../../gen/moltwire/exchange/v1/marketplace_service_pb.ts";
import type { App } from "../../app.ts";
import { actingAgent } from "../../bus/submit.ts";
import type { Queryable } from "../../db/db.ts";
import { maxSearchWords, wordsOf } from "../../directory/words.ts";
import { badField, notFound } from "../../errors.ts";
import { agentOf } from "../../memory/owner.ts";
import { readOr } from "../../queue/payload.ts";
import { holdsScope } from "../../rpc/access.ts";
import type { Caller } from "../../rpc/caller.ts";
import { type Command, command } from "../../rpc/command.ts";
import { answerBytes, defaultPageSize } from "../../rpc/page.ts";
import { query } from "../../rpc/query.ts";
import { seesWholeOrg } from "../../rpc/scope.ts";
import { type Brought, carryOut, lockTask } from "./carry-out.ts";
import { checkClaim } from "./claim.ts";
import { checkResult, insertDelivery, reviewDelivery, sayOfDelivery, toDelivery } from "./delivery-store.ts";
import { missingTask, partyRequired, refusalFault } from "./fault.ts";
import { searchTasks, type TaskFilter } from "./list-store.ts";
import { anybody, isCreator, seenDelivery, toTask, type Viewer, viewerOf } from "./message.ts";
import { post } from "./post.ts";
import { rateWorker } from "./rate.ts";
import { type Act, type Life, take } from "./rule.ts";
import { findTask, lifeOf, type ShownRow, type TaskRow } from "./store.ts";

export const marketplaceHandler = (app: App): ServiceImpl<typeof MarketplaceService> => ({
  postTask: command(app, async (req, given) => shown(app, given, await post(app, req, given))),

  getTask: query(app, async (req, { db, caller, orgId, now }) => {
    const row = await findTask(db, req.taskId);
    const viewer = viewerOf(caller, orgId);
    if (!row || isHidden(row, viewer)) throw missingTask(req.taskId);
    const seen = await seenDelivery(db, row, viewer);
    const delivery = seen && toDelivery(app, seen.row, seen.isOpen);
    return { task: { ...toTask(row, viewer, now), ...(delivery && { delivery }) } };
  }),

  listTasks: query(app, async (req, { db, caller, orgId, now }) => {
    // The method is everybody's, so a key that may not read the marketplace sees what is seen without one.
    const reads = caller.role !== Role.PUBLIC && holdsScope(caller.scopes, "marketplace:read");
    const viewer = reads ? viewerOf(caller, orgId) : anybody;
    const filter = await filterOf(db, req, viewer, caller);
    const asked = createHash("sha256").update(JSON.stringify(filter, textOfBigint)).digest("base64url");
    const place = ["marketplace ListTasks", viewer.orgId, viewer.agentId, asked];
    const after = req.pageToken ? app.cursors.decode(place, req.pageToken, "page_token") : undefined;
    const found = await searchTasks(db, filter, after, req.pageSize || defaultPageSize, now);
    const rows = withinAnswer(found.rows);
    const next = rows.length < found.rows.length ? [rows.at(-1)!.seq] : found.next;
    return {
      tasks: rows.map((row) => toTask(row, viewer, now)),
      nextPageToken: next ? app.cursors.encode(place, next) : "",
    };
  }),

  claimTask: command(app, async (req, given) => {
    const agentId = workerOf(given.caller, req.agentId);
    const task = await held(app, req.taskId, given);
    // First of all whether anybody could: what an agent lacks for a task that is over helps nobody.
    lifeAfter(task, "claim", agentId, given.now);
    await checkClaim(app, given, task, agentId);
    return shown(app, given, await acted(app, given, task, "claim", agentId, { workerOrgId: given.orgId }));
  }),

  deliverTask: command(app, async (req, given) => {
    const agentId = workerOf(given.caller, req.agentId);
    checkResult(req.result!);
    const task = await heldForWorker(app, req.taskId, given, agentId);
    const row = await acted(app, given, task, "deliver", agentId);
    await insertDelivery(given.tx, app, latestOf(row), { orgId: given.orgId, agentId }, req.result!, given.now);
    return shown(app, given, row);
  }),

  reviewTask: command(app, async (req, given) => {
    const accepted = req.verdict === ReviewVerdict.ACCEPTED;
    if (!accepted && req.reason === "") throw badField("reason", "say why the result will not do");
    if (!accepted && req.rating !== 0) throw badField("rating", "only an accepted result is rated");
    const task = await ownTask(app, req.taskId, given);
    const row = await acted(app, given, task, accepted ? "accept" : "reject", "", { rating: req.rating });
    await reviewDelivery(given.tx, app, latestOf(row), req.verdict, { reason: req.reason }, given.now);
    if (req.rating > 0) await rateWorker(given.tx, app, row, given.now);
    return shown(app, given, row);
  }),

  cancelTask: command(app, async (req, given) => {
    const task = await ownTask(app, req.taskId, given);
    return shown(app, given, await acted(app, given, task, "cancel", ""));
  }),

  disputeTask: command(app, async (req, given) => {
    const agentId = workerOf(given.caller, req.agentId);
    const task = await heldForWorker(app, req.taskId, given, agentId);
    const row = await acted(app, given, task, "dispute", agentId);
    await sayOfDelivery(given.tx, app, latestOf(row), { dispute: req.reason });
    return shown(app, given, row);
  }),

  settleDispute: command(app, async (req, given) => {
    const task = await held(app, req.taskId, given);
    if (req.workerMicros > BigInt(task.reward))
      throw badField("worker_micros", `the reward is ${task.reward}: at most so much`);
    const row = await acted(app, given, task, "settle", "", { settled: req.workerMicros });
    await sayOfDelivery(given.tx, app, latestOf(row), { settlement: req.note });
    return shown(app, given, row);
  }),
});

/** What the rule says to an act on a task that is held, carried out. */
async function acted(
  app: App,
  { tx, now, trace }: Command,
  task: TaskRow,
  act: Act,
  agentId: string,
  brought?: Brought,
): Promise<TaskRow> {
  const life = lifeAfter(task, act, agentId, now);
  return carryOut(tx, app, task, act, life, { now, traceId: trace.traceId }, brought);
}

/** What the rule makes of an act on a task that is held; throws what it refuses. */
function lifeAfter(task: TaskRow, act: Act, agentId: string, now: number): Life {
  const outcome = take(lifeOf(task), act, agentId, now);
  if ("refusal" in outcome) throw refusalFault(task, outcome.refusal);
  return outcome.life;
}

/** As {@link held}, for what is the worker's: who names the worker of another organisation is not it. */
async function heldForWorker(app: App, taskId: string, given: Command, agentId: string): Promise<TaskRow> {
  const task = await held(app, taskId, given);
  if (task.worker_agent_id === agentId && task.worker_org_id !== given.orgId) throw partyRequired(taskId, "WORKER");
  return task;
}

/** The task, held for a change; NOT_FOUND. */
async function held(app: App, taskId: string, { tx, caller, orgId, now, trace }: Command): Promise<TaskRow> {
  const task = await lockTask(tx, app, taskId, { now, traceId: trace.traceId });
  if (!task) throw missingTask(taskId);
  const row = (await findTask(tx, taskId))!;
  if (isHidden(row, viewerOf(caller, orgId))) throw missingTask(taskId);
  return task;
}

/** The same, for who acts for its creator; MARKETPLACE_PARTY_REQUIRED. */
async function ownTask(app: App, taskId: string, given: Command): Promise<TaskRow> {
  const task = await held(app, taskId, given);
  if (!isCreator(viewerOf(given.caller, given.orgId), task)) throw partyRequired(taskId, "CREATOR");
  return task;
}

/** Tasks of a disabled organisation are there only for who has to do with them. */
const isHidden = (row: ShownRow, { orgId, isOperator }: Viewer): boolean =>
  row.creator_disabled !== 0 && !isOperator && orgId !== row.org_id && orgId !== row.worker_org_id;

/** What was done to a task is done whether its results can still be read or not: reading it tells why they cannot. */
async function shown(app: App, { tx, caller, orgId, now }: Command, { task_id }: Pick<TaskRow, "task_id">) {
  const row = (await findTask(tx, task_id))!;
  const viewer = viewerOf(caller, orgId);
  const seen = await seenDelivery(tx, row, viewer);
  const read = () => (seen ? { delivery: toDelivery(app, seen.row, seen.isOpen) } : {});
  return { task: { ...toTask(row, viewer, now), ...readOr(read, () => ({})) } };
}

const latestOf = ({ org_id, task_id, deliveries }: TaskRow) => ({
  orgId: org_id,
  taskId: task_id,
  number: deliveries,
});

/** The agent that works: the key's own, or the one that an administrator names. NOT_FOUND for any other. */
function workerOf(caller: Caller, named: string): string {
  const agentId = agentOf(caller, named);
  if (!seesWholeOrg(caller) && agentId !== caller.agentId) throw notFound("agent", agentId);
  return agentId;
}

async function filterOf(db: Queryable, req: ListTasksRequest, viewer: Viewer, caller: Caller): Promise<TaskFilter> {
  const words = wordsOf(req.text);
  if (req.text.trim() !== "" && words.length === 0) throw badField("text", "needs a word of letters or digits");
  if (words.length > maxSearchWords) throw badField("text", `at most ${maxSearchWords} words`);
  if (req.side !== TaskSide.UNSPECIFIED && viewer === anybody)
    throw badField("side", "needs a key that may read the marketplace");
  const agentId = viewer === anybody ? "" : await actingAgent(db, caller, viewer.orgId, req.agentId);
  const of = req.side === TaskSide.CREATOR ? "creator" : "worker";
  const isAny = req.side === TaskSide.UNSPECIFIED;
  return {
    state: req.state || (isAny ? MarketplaceTaskState.OPEN : MarketplaceTaskState.UNSPECIFIED),
    ...{ category: req.category, tag: req.tag, minReward: req.minRewardMicros, words },
    side: isAny ? undefined : { of, orgId: viewer.orgId, agentId },
  };
}

/** As many tasks as one answer holds: each is little, but for its description. */
function withinAnswer(rows: readonly ShownRow[]): readonly ShownRow[] {
  let bytes = 0;
  const end = rows.findIndex((row) => {
    bytes += otherBytes + 3 * (row.description.length + row.title.length);
    return bytes > answerBytes;
  });
  return end > 0 ? rows.slice(0, end) : rows;
}

/** What is at most beside texts: ids, times, requirements and tags. */
const otherBytes = 5_000;

const textOfBigint = (_key: string, value: unknown): unknown => (typeof value === "bigint" ? String(value) : value);
