import { fromJson } from "@bufbuild/protobuf";
import { ValueSchema } from "@bufbuild/protobuf/wkt";
import type { HandlerContext, ServiceImpl } from "@connectrpc/connect";
import type { ApprovalService, ApproveRequest } from "../../../gen/moltwire/bus/v1/approval_service_pb.ts";
import type { App } from "../../app.ts";
import { notFound } from "../../errors.ts";
import { readVisible } from "../../queue/page.ts";
import { command, runCommand } from "../../rpc/command.ts";
import { query } from "../../rpc/query.ts";
import type { Dispatcher } from "../dispatch.ts";
import { findTask, openJson } from "../task-store.ts";
import { decideApproval, type Resumed } from "./decide.ts";
import { sightOf } from "./sight.ts";
import { findApproval, listApprovals, toApproval } from "./store.ts";

export const approvalHandler = (app: App, dispatcher: Dispatcher): ServiceImpl<typeof ApprovalService> => ({
  getApproval: query(app, async (req, given) => {
    const { db, orgId } = given;
    const row = await findApproval(db, orgId, req.approvalId);
    const task = row && (await findTask(db, orgId, row.task_id));
    const { sees } = await sightOf(app, given);
    if (!row || !task || !(await sees(row))) throw notFound("approval", req.approvalId);
    const input = fromJson(ValueSchema, openJson(app, orgId, row.task_id, "input", task.input));
    return { approval: { ...toApproval(row), input } };
  }),

  listApprovals: query(app, async (req, given) => {
    const { db, caller, orgId } = given;
    const { sees, all } = await sightOf(app, given);
    const callerAgentId = all ? "" : caller.agentId;
    const { state, agentId, contractId, taskId, traceId } = req;
    const filter = { state, agentId, callerAgentId, contractId, taskId, traceId };
    const scope = ["ListApprovals", orgId, caller.agentId, ...Object.values(filter).map(String)];
    const page = await readVisible(
      app.cursors,
      scope,
      req,
      (after, limit) => listApprovals(db, orgId, filter, after, limit),
      sees,
      (row) => [row.approval_id],
    );
    return { approvals: page.rows.map(toApproval), nextPageToken: page.nextPageToken };
  }),

  approve: (req, context) => approve(app, dispatcher, req, context),

  deny: command(app, async (req, given) => ({
    approval: toApproval((await decideApproval(app, req, "deny", given)).approval),
  })),
});

/** The task goes on after the commit. Where this server has no room for it, it takes it up when it looks for strays. */
async function approve(app: App, dispatcher: Dispatcher, req: ApproveRequest, context: HandlerContext) {
  let resumed: Resumed | undefined;
  const { reply, replayed } = await runCommand(app, req, context, async (request, given) => {
    resumed = undefined; // the body may run again
    const decided = await decideApproval(app, request, "approve", given);
    resumed = decided.resumed;
    return { approval: toApproval(decided.approval) };
  });
  if (resumed && !replayed && dispatcher.hasRoom()) {
    const { task, token } = resumed;
    const hold = { orgId: task.org_id, taskId: task.task_id, token };
    dispatcher.start({ hold, task, turn: 0 });
  }
  return reply;
}
