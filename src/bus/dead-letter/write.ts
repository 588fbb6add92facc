import { ErrorReason } from "../../../gen/moltwire/api/v1/error_reason_pb.ts";
import { DeadLetterState } from "../../../gen/moltwire/bus/v1/dead_letter_pb.ts";
import type { App } from "../../app.ts";
import type { Tx } from "../../db/db.ts";
import type { ReasonName } from "../../errors.ts";
import { emit } from "../../ops/outbox.ts";
import type { TaskSummaryRow } from "../task-store.ts";
import { insertDeadLetter } from "./dead-letter-store.ts";

/** Keeps a task that fails for good, in the transaction in which it ends, and so exactly once. */
export async function writeDeadLetter(
  tx: Tx,
  app: App,
  task: TaskSummaryRow,
  targetAgentId: string,
  reason: ReasonName,
  endMs: number,
): Promise<void> {
  const deadLetterId = app.ids.next("dlq");
  const { org_id, task_id, trace_id, caller_agent_id, contract_id, contract_version } = task;
  const of = { task_id, contract_id, contract_version, target_agent_id: targetAgentId };
  await insertDeadLetter(tx, {
    ...of,
    org_id,
    dead_letter_id: deadLetterId,
    state: DeadLetterState.OPEN,
    trace_id,
    caller_agent_id,
    reason: ErrorReason[reason],
    create_ms: endMs,
    resolve_ms: null,
    resolved_by: "",
    resolve_note: "",
  });
  await emit(tx, app, {
    orgId: org_id,
    type: "deadletter.created",
    agentId: caller_agent_id,
    timeMs: endMs,
    traceId: trace_id,
    payload: { dead_letter_id: deadLetterId, ...of, reason },
  });
}
