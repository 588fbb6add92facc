import type { MessageInitShape } from "@bufbuild/protobuf";
import { timestampFromMs } from "@bufbuild/protobuf/wkt";
import { ErrorReason } from "../../../gen/moltwire/api/v1/error_reason_pb.ts";
import type { PolicyVerdict } from "../../../gen/moltwire/bus/v1/policy_pb.ts";
import type { TaskState } from "../../../gen/moltwire/bus/v1/task_pb.ts";
import type { GatewayStatusSchema } from "../../../gen/moltwire/federation/v1/gateway_pb.ts";
import type { App } from "../../app.ts";
import { openFault } from "../../bus/task-store.ts";
import type { ReasonName } from "../../errors.ts";
import type { StatusRow } from "./crossing-store.ts";
import { reasonAcross } from "./told.ts";

/** A request across organisations as one of the two reads it: its task is that of the reader's side. */
export function toStatus(
  app: Pick<App, "vault">,
  readerOrgId: string,
  row: StatusRow,
): MessageInitShape<typeof GatewayStatusSchema> {
  const refusal = row.reason as ReasonName;
  const told = readerOrgId === row.caller_org_id ? reasonAcross(refusal) : refusal;
  const error = row.error ? openFault(app, readerOrgId, row.task_id, row.error).reason : ErrorReason.UNSPECIFIED;
  return {
    taskId: row.state === null ? "" : row.task_id,
    traceId: row.trace_id,
    state: (row.state ?? 0) as TaskState,
    reason: row.reason && row.state === null ? ErrorReason[told] : error,
    callerOrgId: row.caller_org_id,
    targetOrgId: row.org_id,
    contractId: row.contract_id,
    contractVersion: row.contract_version,
    grantId: row.grant_id,
    grantRevision: BigInt(row.grant_revision),
    callerVerdict: row.caller_verdict as PolicyVerdict,
    targetVerdict: row.target_verdict as PolicyVerdict,
    usage: { inputTokens: BigInt(row.input_tokens), outputTokens: BigInt(row.output_tokens), model: row.model },
    costMicros: BigInt(row.cost_micros),
    createTime: timestampFromMs(row.create_ms),
    ...(row.end_ms !== null && { endTime: timestampFromMs(row.end_ms) }),
  };
}
