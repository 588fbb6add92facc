import type { MessageInitShape } from "@bufbuild/protobuf";
import { timestampFromMs } from "@bufbuild/protobuf/wkt";
import type { CollaborationSchema, Outcome } from "../../gen/moltwire/directory/v1/collaboration_pb.ts";
import { CollaborationSide } from "../../gen/moltwire/directory/v1/directory_service_pb.ts";
import { join, type Queryable, type Sql, sql, type Tx } from "../db/db.ts";
import type { Position } from "../rpc/cursor.ts";
import { evidenceNumbers } from "./evidence.ts";

export type CollaborationRow = {
  readonly org_id: string;
  readonly collaboration_id: string;
  readonly agent_id: string;
  readonly partner_org_id: string;
  readonly partner_agent_id: string;
  readonly evidence_kind: number;
  readonly evidence_id: string;
  readonly task_type: string;
  readonly outcome: number;
  readonly rating: number;
  readonly create_ms: number;
};

const columns = sql`org_id, collaboration_id, agent_id, partner_org_id, partner_agent_id, evidence_kind, evidence_id, task_type, outcome, rating, create_ms`;

/** 0 when the agent has said how that was before. */
export const insertCollaboration = (tx: Tx, row: CollaborationRow): Promise<number> =>
  tx.run(sql`
    insert into collaboration (${columns})
    values (${row.org_id}, ${row.collaboration_id}, ${row.agent_id}, ${row.partner_org_id}, ${row.partner_agent_id}, ${row.evidence_kind}, ${row.evidence_id},
      ${row.task_type}, ${row.outcome}, ${row.rating}, ${row.create_ms})
    on conflict do nothing`);

/** Newest first: one walk for each side along its own index, put together. Nobody rates itself, so that no row is in both. */
export function listCollaborations(
  db: Queryable,
  orgId: string,
  agentId: string,
  side: CollaborationSide,
  after: Position | undefined,
  limit: number,
): Promise<CollaborationRow[]> {
  const before = after ? sql`and collaboration_id < ${after[0]!}` : sql``;
  const walk = (which: Sql) =>
    sql`select * from (select ${columns} from collaboration where ${which} ${before} order by collaboration_id desc limit ${limit}) one`;
  const walks = [
    ...(side === CollaborationSide.RECEIVED ? [] : [walk(sql`org_id = ${orgId} and agent_id = ${agentId}`)]),
    ...(side === CollaborationSide.GIVEN
      ? []
      : [walk(sql`partner_org_id = ${orgId} and partner_agent_id = ${agentId}`)]),
  ];
  return db.all<CollaborationRow>(
    sql`select ${columns} from (${join(walks, " union all ")}) found order by collaboration_id desc limit ${limit}`,
  );
}

/** The members of the oneof, by how they are stored. */
const evidenceCases = new Map(
  (["task", "job", "thread", "marketplaceTask"] as const).map((kind) => [evidenceNumbers[kind], `${kind}Id` as const]),
);

export const toCollaboration = (row: CollaborationRow): MessageInitShape<typeof CollaborationSchema> => ({
  collaborationId: row.collaboration_id,
  agentId: row.agent_id,
  partnerAgentId: row.partner_agent_id,
  taskType: row.task_type,
  outcome: row.outcome as Outcome,
  rating: row.rating,
  evidence: { case: evidenceCases.get(row.evidence_kind)!, value: row.evidence_id },
  createTime: timestampFromMs(row.create_ms),
});
