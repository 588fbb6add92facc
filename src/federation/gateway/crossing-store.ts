/** Requests across organisations, as both keep them. */
import { join, type Queryable, type Sql, sql, type Tx } from "../../db/db.ts";
import type { Position } from "../../rpc/cursor.ts";
import { lockGrantOf } from "../grant/store.ts";

/** A request that came under a grant; `org_id` is the grantor's, whose agents do the work. */
export type CrossingRow = {
  readonly org_id: string;
  /** The task on both sides; of a request that was refused an id that no task has. */
  readonly task_id: string;
  readonly caller_org_id: string;
  /** Empty: an administrator asked, for no agent. */
  readonly caller_agent_id: string;
  readonly trace_id: string;
  readonly contract_id: string;
  readonly contract_version: string;
  readonly grant_id: string;
  readonly grant_revision: number;
  /** The numbers of PolicyVerdict; 0: not asked. */
  readonly caller_verdict: number;
  readonly target_verdict: number;
  /** Why it was refused, or empty. */
  readonly reason: string;
  readonly day_ms: number;
  readonly reserved_tokens: number;
  /** 1 from the acceptance of the task to its end. */
  readonly is_open: number;
  readonly create_ms: number;
};

const columns = sql`org_id, task_id, caller_org_id, caller_agent_id, trace_id, contract_id, contract_version, grant_id, grant_revision, caller_verdict, target_verdict,
  reason, day_ms, reserved_tokens, is_open, create_ms`;

/** Keeps a request; of one that waited for its own organisation's approval, what came of it. */
export const putCrossing = (tx: Tx, row: CrossingRow): Promise<number> =>
  tx.run(sql`
    insert into federation_crossing (${columns})
    values (${row.org_id}, ${row.task_id}, ${row.caller_org_id}, ${row.caller_agent_id}, ${row.trace_id}, ${row.contract_id}, ${row.contract_version}, ${row.grant_id},
      ${row.grant_revision}, ${row.caller_verdict}, ${row.target_verdict}, ${row.reason}, ${row.day_ms}, ${row.reserved_tokens}, ${row.is_open}, ${row.create_ms})
    on conflict (org_id, task_id) do update set grant_revision = excluded.grant_revision, caller_verdict = excluded.caller_verdict,
      target_verdict = excluded.target_verdict, reason = excluded.reason, day_ms = excluded.day_ms, reserved_tokens = excluded.reserved_tokens, is_open = excluded.is_open`);

export const findCrossing = (db: Queryable, orgId: string, taskId: string): Promise<CrossingRow | undefined> =>
  db.one<CrossingRow>(sql`select ${columns} from federation_crossing where org_id = ${orgId} and task_id = ${taskId}`);

/** The task of a request has ended; gives it to whoever ends it, once. */
export const closeCrossing = (tx: Tx, orgId: string, taskId: string): Promise<CrossingRow | undefined> =>
  tx.one<CrossingRow>(sql`
    update federation_crossing set is_open = 0 where org_id = ${orgId} and task_id = ${taskId} and is_open = 1 returning ${columns}`);

export type OfGrant = Pick<CrossingRow, "org_id" | "grant_id">;

/** Requests under a grant whose tasks have not ended; by the partial index on them. */
export const openCrossings = (
  db: Queryable,
  { org_id, grant_id }: OfGrant,
  afterTaskId: string,
  limit: number,
): Promise<Pick<CrossingRow, "org_id" | "task_id">[]> =>
  db.all(sql`
    select org_id, task_id from federation_crossing
    where org_id = ${org_id} and grant_id = ${grant_id} and is_open = 1 and task_id > ${afterTaskId} order by task_id limit ${limit}`);

/** Grants after one that have left their force and under which tasks may be open; by the partial index on them. */
export const unsettledGrants = (db: Queryable, after: OfGrant, limit: number): Promise<OfGrant[]> =>
  db.all(sql`
    select org_id, grant_id from federation_grant
    where unsettled = 1 and (org_id, grant_id) > (${after.org_id}, ${after.grant_id}) order by org_id, grant_id limit ${limit}`);

/** A grant leaves its force: its open tasks are to be ended. */
export const markUnsettled = (tx: Tx, { org_id, grant_id }: OfGrant): Promise<number> =>
  tx.run(sql`update federation_grant set unsettled = 1 where org_id = ${org_id} and grant_id = ${grant_id}`);

/**
 * Nothing is left to end, or the grant is in force again. Requests are let in with the grant locked, so that none comes after this look: it is locked in a statement of its own, as one
 * that waits for a lock does not see what was committed meanwhile.
 */
export async function markSettled(tx: Tx, { org_id, grant_id }: OfGrant): Promise<void> {
  await lockGrantOf(tx, { org_id, grant_id });
  await tx.run(sql`
    update federation_grant set unsettled = 0 where org_id = ${org_id} and grant_id = ${grant_id} and (state = 2 or not exists (
      select 1 from federation_crossing c where c.org_id = federation_grant.org_id and c.grant_id = federation_grant.grant_id and c.is_open = 1))`);
}

/** Deletes a bounded number of requests that came before a time and whose tasks have ended; gives how many. By the partial index on those. */
export const deleteOldCrossings = (tx: Tx, before: number, limit: number): Promise<number> =>
  tx.run(sql`delete from federation_crossing where (org_id, task_id) in (${oldCrossings(before, limit)})`);

/** The oldest of them. */
export const oldCrossings = (before: number, limit: number): Sql => sql`
  select org_id, task_id from federation_crossing where is_open = 0 and create_ms < ${before} order by create_ms limit ${limit}`;

/** A request with what its task says of it, as one side has it; nothing of that when there is no task. */
export type StatusRow = CrossingRow & {
  readonly state: number | null;
  readonly error: Uint8Array | null;
  readonly input_tokens: number;
  readonly output_tokens: number;
  readonly model: string;
  readonly cost_micros: number;
  readonly end_ms: number | null;
};

/**
 * The requests of a trace in which an organisation takes part, newest first: one walk for each side, along its index. What waits for an approval of the organisation
 * that asks has not come to the other. `callerAgentId`: only those of this agent of the organisation.
 */
export function listStatuses(
  db: Queryable,
  orgId: string,
  traceId: string,
  callerAgentId: string | undefined,
  after: Position | undefined,
  limit: number,
): Promise<StatusRow[]> {
  const before = after ? sql`and task_id < ${after[0]!}` : sql``;
  const newest = sql`order by task_id desc limit ${limit}`;
  const mine = callerAgentId === undefined ? sql`` : sql`and caller_agent_id = ${callerAgentId}`;
  const made = sql`select ${columns} from federation_crossing where caller_org_id = ${orgId} and trace_id = ${traceId} ${mine} ${before} ${newest}`;
  const came = sql`select ${columns} from federation_crossing
    where org_id = ${orgId} and trace_id = ${traceId} and (target_verdict > 0 or reason <> '') ${before} ${newest}`;
  const sides = callerAgentId === undefined ? [made, came] : [made];
  return db.all<StatusRow>(sql`
    select c.*, t.state, t.error, coalesce(t.input_tokens, 0) as input_tokens, coalesce(t.output_tokens, 0) as output_tokens, coalesce(t.model, '') as model,
      coalesce(t.cost_micros, 0) as cost_micros, t.end_ms
    from (${join(
      sides.map((side) => sql`select * from (${side}) walk`),
      " union all ",
    )}) c
    left join task t on t.org_id = ${orgId} and t.task_id = c.task_id
    order by c.task_id desc limit ${limit}`);
}
