import type { MessageInitShape } from "@bufbuild/protobuf";
import { timestampMs } from "@bufbuild/protobuf/wkt";
import type {
  ListDecisionsRequest,
  ListDecisionsResponseSchema,
} from "../../../gen/moltwire/bus/v1/policy_service_pb.ts";
import type { App } from "../../app.ts";
import { badField } from "../../errors.ts";
import { readPage } from "../../rpc/page.ts";
import type { Query } from "../../rpc/query.ts";
import { seesWholeOrg } from "../../rpc/scope.ts";
import { bodyOf, type DecisionFilter, listDecisions, resourceText, toDecision } from "./decision-store.ts";

/** One page of the decision log, newest first: of an agent only the decisions that had it as principal. */
export async function listDecisionsPage(
  app: App,
  req: ListDecisionsRequest,
  { db, caller, orgId }: Query,
): Promise<MessageInitShape<typeof ListDecisionsResponseSchema>> {
  const startMs = req.startTime && timestampMs(req.startTime);
  const endMs = req.endTime && timestampMs(req.endTime);
  if (startMs !== undefined && endMs !== undefined && endMs <= startMs)
    throw badField("end_time", "has to be after start_time");
  const agentId = seesWholeOrg(caller) ? req.agentId : caller.agentId;
  if (req.agentId && req.agentId !== agentId) return { decisions: [], nextPageToken: "" };
  const { resource } = req;
  const filter: DecisionFilter = {
    verdict: req.verdict,
    agentId,
    action: req.action,
    resource: resource ? resourceText({ ...resource, orgId: resource.orgId || orgId }) : "",
    policyId: req.policyId,
    taskId: req.taskId,
    traceId: req.traceId,
    startMs,
    endMs,
  };
  const scope = ["ListDecisions", orgId, JSON.stringify(filter)];
  const page = await readPage(
    app.cursors,
    scope,
    req,
    (after, limit) => listDecisions(db, orgId, filter, after, limit),
    (row) => [row.time_ms, row.decision_id],
  );
  return { decisions: page.rows.map((row) => toDecision(row, bodyOf(app, row))), nextPageToken: page.nextPageToken };
}
