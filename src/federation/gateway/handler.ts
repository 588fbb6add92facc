import type { MessageInitShape } from "@bufbuild/protobuf";
import type { HandlerContext, ServiceImpl } from "@connectrpc/connect";
import type {
  GatewayService,
  SubmitTaskRequest,
  SubmitTaskResponseSchema,
} from "../../../gen/moltwire/federation/v1/gateway_service_pb.ts";
import type { App } from "../../app.ts";
import { checkRoom, type Dispatcher, startAccepted } from "../../bus/dispatch.ts";
import { deadlineOf, ended } from "../../bus/ended.ts";
import { actingAgent, toInput } from "../../bus/submit.ts";
import { toTask } from "../../bus/task-store.ts";
import { toTraceEvent } from "../../bus/trace-store.ts";
import type { Queryable } from "../../db/db.ts";
import { notFound } from "../../errors.ts";
import { type Caller, callerOf, traceOf } from "../../rpc/caller.ts";
import { runCommand } from "../../rpc/command.ts";
import { defaultPageSize, readPage } from "../../rpc/page.ts";
import { query } from "../../rpc/query.ts";
import { orgOf, seesWholeOrg } from "../../rpc/scope.ts";
import type { TraceContext } from "../../rpc/trace-context.ts";
import { type AcceptedAcross, type AcrossOrder, acceptAcross, dryRunAcross } from "./accept.ts";
import { listStatuses } from "./crossing-store.ts";
import { openContracts, toGatewayContracts } from "./open-contracts.ts";
import type { Quota } from "./quota.ts";
import { countUnder } from "./rate.ts";
import { toStatus } from "./status.ts";

type SubmitReply = Extract<MessageInitShape<typeof SubmitTaskResponseSchema>, { $typeName?: never }>;

export const gatewayHandler = (app: App, dispatcher: Dispatcher): ServiceImpl<typeof GatewayService> => ({
  submitTask: async (req, context) =>
    req.validateOnly ? dryRun(app, dispatcher, req, context) : submit(app, dispatcher, req, context),

  listContracts: query(app, async (req, { db, orgId, now }) => {
    const { grantId, targetOrgId, capability } = req;
    const filter = { grantId, targetOrgId, capability };
    const scope = ["GatewayListContracts", orgId, ...Object.values(filter)];
    const after = req.pageToken ? app.cursors.decode(scope, req.pageToken, "page_token") : undefined;
    const { rows, next } = await openContracts(db, orgId, filter, after, req.pageSize || defaultPageSize, now);
    const nextPageToken = next ? app.cursors.encode(scope, next) : "";
    return { contracts: await toGatewayContracts(db, rows, now), nextPageToken };
  }),

  getStatus: query(app, async (req, { db, caller, orgId }) => {
    const callerAgentId = seesWholeOrg(caller) ? undefined : caller.agentId;
    const scope = ["GatewayGetStatus", orgId, callerAgentId ?? "", req.traceId];
    const page = await readPage(
      app.cursors,
      scope,
      req,
      (after, limit) => listStatuses(db, orgId, req.traceId, callerAgentId, after, limit),
      (row) => [row.task_id],
    );
    if (page.rows.length === 0) throw notFound("trace", req.traceId);
    return { statuses: page.rows.map((row) => toStatus(app, orgId, row)), nextPageToken: page.nextPageToken };
  }),
});

async function orderOf(
  db: Queryable,
  req: SubmitTaskRequest,
  of: { readonly caller: Caller; readonly orgId: string; readonly trace: TraceContext },
  deadlineMs: number | null,
): Promise<AcrossOrder> {
  const { caller, orgId, trace } = of;
  return {
    wish: {
      orgId,
      callerAgentId: await actingAgent(db, caller, orgId, req.agentId),
      origin: "gateway",
      grantId: req.grantId,
      contract: { contractId: req.contractId, version: req.contractVersion },
      input: toInput(req.input),
      wantedAgentId: req.targetAgentId,
    },
    targetOrgId: req.targetOrgId,
    labels: req.labels,
    deadlineMs,
    trace,
    retryOfDeadLetterId: "",
  };
}

async function submit(
  app: App,
  dispatcher: Dispatcher,
  req: SubmitTaskRequest,
  context: HandlerContext,
): Promise<SubmitReply> {
  checkRoom(dispatcher);
  const deadlineMs = deadlineOf(app.clock.now(), req.returnImmediately ? undefined : context.timeoutMs());
  let accepted: AcceptedAcross | undefined;
  let turn: number | undefined;
  const count = countUnder(app, context.responseHeader);
  const { reply } = await count.around(() =>
    runCommand(app, req, context, async (request, given): Promise<SubmitReply> => {
      // Once, though the body may run again; of the asking organisation's own, so that nobody turns those of others.
      turn ??= dispatcher.turns.take(`${given.orgId} ${request.targetOrgId}`, request.contractId);
      accepted = await acceptAcross(app, await orderOf(given.tx, request, given, deadlineMs), given, turn, count);
      const { task, grant } = accepted;
      return { task: toTask(app, task), grantId: grant.grant_id, grantRevision: BigInt(grant.revision) };
    }),
  );
  const { orgId = "", taskId = "" } = reply.task!;
  if (accepted?.task.task_id === taskId) {
    if (accepted.quota) tellQuota(accepted.quota, context.responseHeader);
    if (accepted.work) startAccepted(dispatcher, accepted.work);
  }
  if (req.returnImmediately) return reply;
  const { grantId = "", grantRevision = 0n } = reply;
  return { task: toTask(app, await ended(app, orgId, taskId, context.signal)), grantId, grantRevision };
}

/** What the quotas of the day leave, of those that the grant has. */
function tellQuota({ limits: { requestsPerDay, tokensPerDay }, use }: Quota, header: Headers): void {
  const tell = (unit: string, limit: number | undefined, used: number) => {
    if (limit === undefined) return;
    header.set(`grant-${unit}-limit`, String(limit));
    header.set(`grant-${unit}-remaining`, String(Math.max(0, limit - used)));
  };
  tell("requests", requestsPerDay, use.requests);
  tell("tokens", tokensPerDay, use.tokens + use.reserved_tokens);
}

/** The decision without the deed: what would be written on the caller's side is answered instead. */
async function dryRun(
  app: App,
  dispatcher: Dispatcher,
  req: SubmitTaskRequest,
  context: HandlerContext,
): Promise<SubmitReply> {
  const db = app.db.query;
  const caller = callerOf(context);
  const trace = traceOf(context);
  const orgId = await orgOf(db, caller, req.orgId);
  const order = await orderOf(db, req, { caller, orgId, trace }, null);
  const turn = dispatcher.turns.peek(req.targetOrgId, req.contractId);
  const { steps, grant } = await dryRunAcross(app, db, order, { keyId: caller.keyId, now: app.clock.now(), turn });
  const { callerAgentId } = order.wish;
  const span = { orgId, ...trace, taskId: "", callerAgentId, contractId: req.contractId };
  return {
    decisionPath: steps.map((step) => toTraceEvent(span, step)),
    ...(grant && { grantId: grant.grant_id, grantRevision: BigInt(grant.revision) }),
  };
}
