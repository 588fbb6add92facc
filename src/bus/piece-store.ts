/**
 * What an agent streams while it works: progress and pieces of output. They are rows of the log of trace events, so that one cursor leads
 * through steps and pieces in the order in which they were written, and what removes a trace removes them.
 */
import { create, fromBinary, toBinary } from "@bufbuild/protobuf";
import { type Progress, ProgressSchema } from "../../gen/moltwire/agent/v1/agent_runtime_pb.ts";
import type { App } from "../app.ts";
import { join, sql, type Tx } from "../db/db.ts";
import { eventPlace, firstPieceKind, openEvent, type Span, type TraceEventRow, taskTopic } from "./trace-store.ts";

/** How far the work is: a part done from 0 to 1, and what is being done, for a person (≤ 1,024 characters). */
export type ProgressPiece = { readonly case: "progress"; readonly value: Pick<Progress, "fraction" | "message"> };
/** Text output that follows the text before it. */
export type ChunkPiece = { readonly case: "chunk"; readonly value: string };
export type Piece = ProgressPiece | ChunkPiece;

const kinds = { progress: firstPieceKind, chunk: firstPieceKind + 1 } as const;

/**
 * Writes pieces of one task, at least one, in their order. Only while the task is held or leased by who writes: lock it first. `agentId` is
 * the agent that has it. Nobody but the watchers of the task is woken.
 */
export async function recordPieces(
  tx: Tx,
  app: Pick<App, "ids" | "vault">,
  span: Span,
  agentId: string,
  pieces: readonly Piece[],
): Promise<void> {
  const rows = pieces.map((piece) => {
    const kind = kinds[piece.case];
    const eventId = app.ids.span();
    const body = app.vault.seal(eventPlace(span.orgId, span.traceId, kind, eventId), bytesOf(piece));
    return sql`(${span.orgId}, ${tx.dialect.xid}, ${span.traceId}, ${span.taskId}, ${kind}, ${span.callerAgentId}, ${agentId}, ${span.contractId}, ${eventId}, ${body})`;
  });
  await tx.run(sql`
    insert into trace_event (org_id, xid, trace_id, task_id, kind, caller_agent_id, target_agent_id, contract_id, event_id, body) values ${join(rows)}`);
  tx.ring(taskTopic(span.taskId));
}

/** A stored piece as WatchTask tells it. */
export function fromPieceRow(app: Pick<App, "vault">, row: TraceEventRow) {
  const bytes = openEvent(app, row);
  return row.kind === kinds.progress
    ? ({ case: "progress", value: fromBinary(ProgressSchema, bytes) } as const)
    : ({ case: "chunk", value: Buffer.from(bytes).toString() } as const);
}

const bytesOf = (piece: Piece): Uint8Array =>
  piece.case === "progress"
    ? toBinary(ProgressSchema, create(ProgressSchema, piece.value))
    : Buffer.from(piece.value, "utf8");
