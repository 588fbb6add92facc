/** Whether a task that was approved may still run: what let it in may have ended while it waited. */
import type { JsonValue } from "@bufbuild/protobuf";
import { ApprovalState } from "../../gen/moltwire/bus/v1/approval_pb.ts";
import type { App } from "../app.ts";
import type { Tx } from "../db/db.ts";
import { isLive } from "../federation/key-lineage.ts";
import { configuredKeyId } from "../rpc/auth.ts";
import { approvable, approvalDigest } from "./approval/gate.ts";
import { findApproval } from "./approval/store.ts";
import type { TaskFault, TaskSummaryRow } from "./task-store.ts";

/** Why it may not, or undefined: the approval is for something else, or whoever asked may no longer ask. */
export async function withdrawal(
  tx: Tx,
  app: App,
  task: TaskSummaryRow,
  input: JsonValue,
  agentId: string,
): Promise<TaskFault | undefined> {
  const approval = await findApproval(tx, task.org_id, task.approval_id);
  const digest = approvalDigest({ ...approvable(task, input), targetAgentId: agentId });
  if (approval?.state !== ApprovalState.APPROVED || approval.digest !== digest)
    return {
      reason: "APPROVAL_DENIED",
      message: "the approval is not for this task as it is",
      metadata: { approval_id: task.approval_id },
    };
  if (!(await mayStillAsk(tx, app, task.caller_key_id)))
    return {
      reason: "KEY_REVOKED",
      message: "the key that asked for the task can no longer be used",
      metadata: { key_id: task.caller_key_id },
    };
  return undefined;
}

const mayStillAsk = async (tx: Tx, app: App, keyId: string): Promise<boolean> =>
  keyId === configuredKeyId ? app.config.operatorKeyDigest !== undefined : isLive(tx, keyId, app.clock.now());
