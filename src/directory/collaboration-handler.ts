import type { ServiceImpl } from "@connectrpc/connect";
import type {
  DirectoryService,
  LogCollaborationRequest,
} from "../../gen/moltwire/directory/v1/directory_service_pb.ts";
import type { App } from "../app.ts";
import { findAgent } from "../bus/agent-store.ts";
import { Fault, notFound } from "../errors.ts";
import { agentOf } from "../memory/owner.ts";
import { command } from "../rpc/command.ts";
import { readPage } from "../rpc/page.ts";
import { query } from "../rpc/query.ts";
import { seesWholeOrg } from "../rpc/scope.ts";
import { insertCollaboration, listCollaborations, toCollaboration } from "./collaboration-store.ts";
import { checkEvidence, type Evidence, evidenceNames, evidenceNumbers } from "./evidence.ts";
import { keepStanding, lockStanding } from "./profile-store.ts";
import { addRating, worthOf } from "./reputation.ts";

export const collaborations = (
  app: App,
): Pick<ServiceImpl<typeof DirectoryService>, "logCollaboration" | "listCollaborations"> => ({
  logCollaboration: command(app, async (req, { tx, caller, orgId, now }) => {
    const agentId = agentOf(caller, req.agentId);
    if (!seesWholeOrg(caller) && agentId !== caller.agentId) throw notFound("agent", agentId);
    const evidence = evidenceOf(req);
    const partnerOrgId = await checkEvidence(tx, orgId, evidence, { agentId, partnerId: req.partnerAgentId });
    const standing = await lockStanding(tx, partnerOrgId, req.partnerAgentId);
    if (!standing)
      throw new Fault("FAILED_PRECONDITION", "the agent is gone, and with it its reputation", {
        field: "partner_agent_id",
      });
    const row = {
      ...{ org_id: orgId, collaboration_id: app.ids.next("col"), agent_id: agentId, task_type: req.taskType },
      ...{
        partner_org_id: partnerOrgId,
        partner_agent_id: req.partnerAgentId,
        outcome: req.outcome,
        rating: req.rating,
      },
      ...{ evidence_kind: evidenceNumbers[evidence.kind], evidence_id: evidence.id, create_ms: now },
    };
    if ((await insertCollaboration(tx, row)) === 0)
      throw new Fault("ALREADY_EXISTS", `you have said how the ${evidenceNames[evidence.kind]} went`, {
        resource: "collaboration",
        id: evidence.id,
      });
    const milli = await keepStanding(
      tx,
      partnerOrgId,
      req.partnerAgentId,
      addRating(standing, worthOf(req.rating, req.outcome), now),
    );
    return { collaboration: toCollaboration(row), partnerReputation: milli / 1_000 };
  }),

  listCollaborations: query(app, async (req, { db, caller, orgId }) => {
    const agentId = agentOf(caller, req.agentId);
    const known = seesWholeOrg(caller) ? await findAgent(db, orgId, agentId) : agentId === caller.agentId;
    if (!known) throw notFound("agent", agentId);
    const page = await readPage(
      app.cursors,
      ["ListCollaborations", orgId, agentId, String(req.side)],
      req,
      (after, limit) => listCollaborations(db, orgId, agentId, req.side, after, limit),
      (row) => [row.collaboration_id],
    );
    return { collaborations: page.rows.map(toCollaboration), nextPageToken: page.nextPageToken };
  }),
});

const evidenceOf = ({ evidence }: LogCollaborationRequest): Evidence => ({
  kind: evidenceKinds[evidence.case!],
  id: evidence.value!,
});

const evidenceKinds: Record<NonNullable<LogCollaborationRequest["evidence"]["case"]>, Evidence["kind"]> = {
  taskId: "task",
  jobId: "job",
  threadId: "thread",
  marketplaceTaskId: "marketplaceTask",
};
