/** When a task waits for somebody's approval, and what the approval is bound to. */
import { createHash } from "node:crypto";
import type { JsonValue } from "@bufbuild/protobuf";
import { ApprovalState } from "../../../gen/moltwire/bus/v1/approval_pb.ts";
import type { App } from "../../app.ts";
import type { Tx } from "../../db/db.ts";
import { emit } from "../../ops/outbox.ts";
import { canonicalJson } from "../schema/compile.ts";
import type { TaskRow, TaskSummaryRow } from "../task-store.ts";
import { insertApproval } from "./store.ts";

/** How long an approval waits for somebody. */
export const approvalMs = 24 * 3_600_000;

/** Who asks for an approval: the contract, policies, or both. */
export type Demand = {
  readonly byContract: boolean;
  readonly policyIds: readonly string[];
  readonly reasons: readonly string[];
};

/** What is approved: this input, from this caller, to this agent, under this contract version of this organisation. */
export type Approvable = {
  readonly orgId: string;
  readonly callerAgentId: string;
  readonly callerKeyId: string;
  readonly targetOrgId: string;
  readonly targetAgentId: string;
  readonly contractId: string;
  readonly contractVersion: string;
  readonly input: JsonValue;
};

/**
 * SHA-256, as hexadecimal digits, over a JSON array of these values, the keys of objects sorted and nothing between tokens. The organisation that is to do it is among
 * them, as the last, where it is another.
 */
export const approvalDigest = (what: Approvable): string =>
  createHash("sha256")
    .update(
      canonicalJson([
        what.orgId,
        what.callerAgentId,
        what.callerKeyId,
        what.targetAgentId,
        what.contractId,
        what.contractVersion,
        what.input,
        ...(what.targetOrgId === what.orgId ? [] : [what.targetOrgId]),
      ]),
    )
    .digest("hex");

/** What a stored task would be approved for. */
export const approvable = (task: TaskSummaryRow, input: JsonValue): Approvable => ({
  orgId: task.org_id,
  callerAgentId: task.caller_agent_id,
  callerKeyId: task.caller_key_id,
  targetOrgId: task.target_org_id,
  targetAgentId: task.target_agent_id,
  contractId: task.contract_id,
  contractVersion: task.contract_version,
  input,
});

/** Asks for an approval of a task that is being accepted; the event `approval.requested` commits with it. */
export async function requestApproval(
  tx: Tx,
  app: App,
  task: TaskRow,
  input: JsonValue,
  demand: Demand,
  reserved: { readonly tokens: number; readonly micros: number },
): Promise<void> {
  const expireMs = task.create_ms + approvalMs;
  await insertApproval(tx, {
    org_id: task.org_id,
    approval_id: task.approval_id,
    state: ApprovalState.PENDING,
    task_id: task.task_id,
    trace_id: task.trace_id,
    caller_agent_id: task.caller_agent_id,
    caller_key_id: task.caller_key_id,
    target_agent_id: task.target_agent_id,
    contract_id: task.contract_id,
    contract_version: task.contract_version,
    digest: approvalDigest(approvable(task, input)),
    required_by_contract: demand.byContract ? 1 : 0,
    policy_ids: JSON.stringify(demand.policyIds),
    reasons: JSON.stringify(demand.reasons),
    reserved_tokens: reserved.tokens,
    reserved_micros: reserved.micros,
    create_ms: task.create_ms,
    expire_ms: expireMs,
    decide_ms: null,
    decided_by: "",
    note: "",
  });
  await emit(tx, app, {
    orgId: task.org_id,
    type: "approval.requested",
    agentId: task.caller_agent_id,
    timeMs: task.create_ms,
    traceId: task.trace_id,
    payload: {
      approval_id: task.approval_id,
      task_id: task.task_id,
      contract_id: task.contract_id,
      contract_version: task.contract_version,
      target_agent_id: task.target_agent_id,
      reasons: [...demand.reasons],
      expire_time: new Date(expireMs).toISOString(),
    },
  });
}
