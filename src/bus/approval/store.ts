import type { MessageInitShape } from "@bufbuild/protobuf";
import { timestampFromMs } from "@bufbuild/protobuf/wkt";
import { type ApprovalSchema, ApprovalState } from "../../../gen/moltwire/bus/v1/approval_pb.ts";
import { type Queryable, type Sql, sql, type Tx } from "../../db/db.ts";
import type { Position } from "../../rpc/cursor.ts";

/** An approval as it is stored: `state` is the number of ApprovalState, lists are JSON. The input is the task's. */
export type ApprovalRow = {
  readonly org_id: string;
  readonly approval_id: string;
  readonly state: number;
  readonly task_id: string;
  readonly trace_id: string;
  readonly caller_agent_id: string;
  readonly caller_key_id: string;
  readonly target_agent_id: string;
  readonly contract_id: string;
  readonly contract_version: string;
  readonly digest: string;
  readonly required_by_contract: number;
  readonly policy_ids: string;
  readonly reasons: string;
  readonly reserved_tokens: number;
  readonly reserved_micros: number;
  readonly create_ms: number;
  readonly expire_ms: number;
  readonly decide_ms: number | null;
  readonly decided_by: string;
  readonly note: string;
};

const columns = sql`org_id, approval_id, state, task_id, trace_id, caller_agent_id, caller_key_id, target_agent_id, contract_id, contract_version, digest,
  required_by_contract, policy_ids, reasons, reserved_tokens, reserved_micros, create_ms, expire_ms, decide_ms, decided_by, note`;

export const insertApproval = (tx: Tx, row: ApprovalRow): Promise<number> =>
  tx.run(sql`
    insert into approval (${columns})
    values (${row.org_id}, ${row.approval_id}, ${row.state}, ${row.task_id}, ${row.trace_id}, ${row.caller_agent_id}, ${row.caller_key_id},
      ${row.target_agent_id}, ${row.contract_id}, ${row.contract_version}, ${row.digest}, ${row.required_by_contract}, ${row.policy_ids}, ${row.reasons},
      ${row.reserved_tokens}, ${row.reserved_micros}, ${row.create_ms}, ${row.expire_ms}, ${row.decide_ms}, ${row.decided_by}, ${row.note})`);

export const findApproval = (db: Queryable, orgId: string, approvalId: string): Promise<ApprovalRow | undefined> =>
  db.one<ApprovalRow>(sql`select ${columns} from approval where org_id = ${orgId} and approval_id = ${approvalId}`);

/** How a pending approval ends. */
export type ApprovalEnd = {
  readonly state: ApprovalState;
  readonly decideMs: number;
  readonly decidedBy: string;
  readonly note: string;
};

/** Ends an approval, once: whoever comes second changes nothing and gets 0. Whoever calls this has locked the task. */
export const endApproval = (tx: Tx, orgId: string, approvalId: string, end: ApprovalEnd): Promise<number> =>
  tx.run(sql`
    update approval set state = ${end.state}, decide_ms = ${end.decideMs}, decided_by = ${end.decidedBy}, note = ${end.note}
    where org_id = ${orgId} and approval_id = ${approvalId} and state = ${ApprovalState.PENDING}`);

/** Approvals of all organisations that nobody has decided in time, after one, by its time and id; by the partial index on pending ones. */
export const dueApprovals = (
  db: Queryable,
  now: number,
  [afterMs, afterId]: readonly [number, string],
  limit: number,
): Promise<ApprovalRow[]> =>
  db.all<ApprovalRow>(sql`
    select ${columns} from approval
    where state = 1 and expire_ms <= ${now} and expire_ms >= ${afterMs} and (expire_ms > ${afterMs} or approval_id > ${afterId})
    order by expire_ms, approval_id limit ${limit}`);

/** How many approvals of all organisations nobody has decided, for the metrics; by the partial index on them. */
export const countPendingApprovals = async (db: Queryable): Promise<number> =>
  (await db.one<{ n: number }>(sql`select count(*) as n from approval where state = 1`))?.n ?? 0;

export type ApprovalFilter = {
  readonly state: number;
  /** Asked for the task or would do it. */
  readonly agentId: string;
  /** Asked for the task: what an agent may see. */
  readonly callerAgentId: string;
  readonly contractId: string;
  readonly taskId: string;
  readonly traceId: string;
};

/**
 * Newest first. One filter leads along its index, the narrowest that is given; the others only sift what that walk finds, and are written as
 * expressions so that the engine takes no other index. The approvals of one agent are two walks: those it asked for and those it would do.
 */
export function listApprovals(
  db: Queryable,
  orgId: string,
  filter: ApprovalFilter,
  after: Position | undefined,
  limit: number,
): Promise<ApprovalRow[]> {
  const walks = (["taskId", "traceId", "callerAgentId", "agentId", "contractId", "state"] as const).filter(
    (name) => filter[name] !== "" && filter[name] !== 0,
  );
  const lead = walks[0];
  const where = (name: string, column: Sql, value: string | number) => {
    if (value === "" || value === 0) return sql``;
    const shown = name === lead ? column : typeof value === "number" ? sql`${column} + 0` : sql`${column} || ''`;
    return sql`and ${shown} = ${value}`;
  };
  const fits = sql`org_id = ${orgId} ${after ? sql`and approval_id < ${after[0]!}` : sql``}
    ${where("taskId", sql`task_id`, filter.taskId)} ${where("traceId", sql`trace_id`, filter.traceId)}
    ${where("callerAgentId", sql`caller_agent_id`, filter.callerAgentId)} ${where("contractId", sql`contract_id`, filter.contractId)}
    ${where("state", sql`state`, filter.state)}`;
  const newest = sql`order by approval_id desc limit ${limit}`;
  if (!filter.agentId) return db.all<ApprovalRow>(sql`select ${columns} from approval where ${fits} ${newest}`);
  const asked = where("agentId", sql`caller_agent_id`, filter.agentId);
  const given = where("agentId", sql`target_agent_id`, filter.agentId);
  return db.all<ApprovalRow>(sql`
    select ${columns} from (
      select * from (select ${columns} from approval where ${fits} ${asked} ${newest}) asked
      union
      select * from (select ${columns} from approval where ${fits} ${given} ${newest}) given
    ) either ${newest}`);
}

/** An approval as clients read it, without the input. */
export const toApproval = (row: ApprovalRow): MessageInitShape<typeof ApprovalSchema> => ({
  orgId: row.org_id,
  approvalId: row.approval_id,
  state: row.state as ApprovalState,
  taskId: row.task_id,
  traceId: row.trace_id,
  callerAgentId: row.caller_agent_id,
  callerKeyId: row.caller_key_id,
  targetAgentId: row.target_agent_id,
  contractId: row.contract_id,
  contractVersion: row.contract_version,
  digest: row.digest,
  requiredByContract: row.required_by_contract !== 0,
  policyIds: JSON.parse(row.policy_ids) as string[],
  reasons: JSON.parse(row.reasons) as string[],
  reservedTokens: BigInt(row.reserved_tokens),
  reservedCreditsMicros: BigInt(row.reserved_micros),
  createTime: timestampFromMs(row.create_ms),
  expireTime: timestampFromMs(row.expire_ms),
  ...(row.decide_ms !== null && { decideTime: timestampFromMs(row.decide_ms) }),
  decidedBy: row.decided_by,
  note: row.note,
});
