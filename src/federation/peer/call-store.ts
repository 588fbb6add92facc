/** What has crossed: nonces that were used, and work that peers asked for. */
import { type Queryable, sql, type Tx } from "../../db/db.ts";
import { idempotencyKeptMs } from "../../rpc/idempotency.ts";

/** Work that a peer asked for; `org_id` is of the organisation that stands for it, in which the task is that asks. */
export type CallRow = {
  readonly org_id: string;
  readonly call_id: string;
  readonly peer_id: string;
  readonly request_sha256: string;
  readonly target_org_id: string;
  readonly task_id: string;
  readonly hops: number;
  readonly trace_id: string;
  readonly budget_micros: number | null;
  readonly create_ms: number;
};

const columns = sql`org_id, call_id, peer_id, request_sha256, target_org_id, task_id, hops, trace_id, budget_micros, create_ms`;

/** Takes a nonce, which can be done once; 0 when it was. */
export const takeNonce = (tx: Tx, keyId: string, nonce: string, expireMs: number): Promise<number> =>
  tx.run(
    sql`insert into federation_peer_nonce (key_id, nonce, expire_ms) values (${keyId}, ${nonce}, ${expireMs}) on conflict do nothing`,
  );

/** Whether a nonce was taken; by the primary key. */
export const isNonceTaken = async (db: Queryable, keyId: string, nonce: string): Promise<boolean> =>
  (await db.one(sql`select 1 as one from federation_peer_nonce where key_id = ${keyId} and nonce = ${nonce}`)) !==
  undefined;

/** Takes the name of work, which can be done once; 0 when it was. Of two transactions the second waits for the first. */
export const claimCall = (tx: Tx, row: CallRow): Promise<number> =>
  tx.run(sql`
    insert into federation_peer_call (${columns})
    values (${row.org_id}, ${row.call_id}, ${row.peer_id}, ${row.request_sha256}, ${row.target_org_id}, ${row.task_id}, ${row.hops}, ${row.trace_id}, ${row.budget_micros},
      ${row.create_ms})
    on conflict do nothing`);

/** The work was accepted as this task. */
export const nameTask = (tx: Tx, { org_id, call_id }: CallRow, taskId: string): Promise<number> =>
  tx.run(sql`update federation_peer_call set task_id = ${taskId} where org_id = ${org_id} and call_id = ${call_id}`);

/** The work was refused: it may be asked for again. */
export const dropCall = (tx: Tx, { org_id, call_id }: CallRow): Promise<number> =>
  tx.run(sql`delete from federation_peer_call where org_id = ${org_id} and call_id = ${call_id}`);

export const findCall = (db: Queryable, orgId: string, callId: string): Promise<CallRow | undefined> =>
  db.one<CallRow>(sql`select ${columns} from federation_peer_call where org_id = ${orgId} and call_id = ${callId}`);

/** The call that a task of the organisation came by, if it came from a peer. */
export const findCallOfTask = (db: Queryable, orgId: string, taskId: string): Promise<CallRow | undefined> =>
  db.one<CallRow>(sql`select ${columns} from federation_peer_call where org_id = ${orgId} and task_id = ${taskId}`);

/** How much work of one trace a peer has asked for within the time for which the names of work are kept, counted up to a bound; by its index. */
export const countOfTrace = async (db: Queryable, orgId: string, traceId: string, bound: number): Promise<number> =>
  (await db.one<{ n: number }>(sql`
    select count(*) as n from (
      select 1 as one from federation_peer_call where trace_id = ${traceId} and org_id = ${orgId} limit ${bound}) counted`))!
    .n;

/** Nonces of messages that have expired; gives how many were deleted. */
export const deleteNonces = (tx: Tx, now: number, limit: number): Promise<number> =>
  tx.run(sql`
    delete from federation_peer_nonce where (key_id, nonce) in (
      select key_id, nonce from federation_peer_nonce where expire_ms < ${now} order by expire_ms limit ${limit})`);

/** Calls whose names are kept no longer; gives how many were deleted. */
export const deleteCalls = (tx: Tx, now: number, limit: number): Promise<number> =>
  tx.run(sql`
    delete from federation_peer_call where (org_id, call_id) in (
      select org_id, call_id from federation_peer_call where create_ms < ${now - idempotencyKeptMs} order by create_ms limit ${limit})`);
