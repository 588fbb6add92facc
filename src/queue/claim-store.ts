/** The statements of a claim. Each walks partial indexes over jobs that wait, a few rows for each queue, however many wait. */
import { type Dialect, empty, join, type Queryable, type Sql, sql, type Tx } from "../db/db.ts";
import { type JobRow, jobColumns, plainBytes } from "./job-store.ts";

/**
 * One select for each queue, together: a walk of one index over several queues would have to sort all that wait in them. PostgreSQL plans the select once for all of
 * them; SQLite has no `lateral`.
 */
const ofEach = ({ name }: Dialect, queues: readonly string[], select: (queue: Sql) => Sql): Sql =>
  name === "sqlite"
    ? join(
        queues.map((queue) => sql`select * from (${select(sql`${queue}`)}) one`),
        " union all ",
      )
    : sql`select one.* from (values ${join(queues.map((queue) => sql`(${queue})`))}) wanted (wanted_queue)
        cross join lateral (${select(sql`wanted_queue`)}) one`;

/**
 * Before the number of a job, which alone would do: were the table spread over servers by its organisation, PostgreSQL would ask only one of them. SQLite would look for
 * the number in an index of the organisation.
 */
const inOrg = ({ dialect }: Tx, orgId: string): Sql =>
  dialect.name === "postgres" ? sql`org_id = ${orgId} and` : empty;

/** Those of the queues in which a job's time has come. */
export const dueQueues = async (
  db: Queryable,
  orgId: string,
  queues: readonly string[],
  now: number,
): Promise<string[]> =>
  (
    await db.all<{ queue: string }>(
      ofEach(
        db.dialect,
        queues,
        (queue) =>
          sql`select queue from queue_job where org_id = ${orgId} and queue = ${queue} and state = 1 and run_ms <= ${now}
            order by run_ms limit 1`,
      ),
    )
  ).map(({ queue }) => queue);

/** Makes jobs of a queue claimable whose time has come, the earliest first, a bounded number; passes over those that another transaction has. */
export const promoteDue = (tx: Tx, orgId: string, queue: string, now: number, limit: number): Promise<JobRow[]> =>
  tx.all<JobRow>(sql`
    with due as materialized (
      select seq as due_seq from queue_job where org_id = ${orgId} and queue = ${queue} and state = 1 and run_ms <= ${now}
      order by run_ms limit ${limit} ${tx.dialect.skipLocked})
    update queue_job set state = 2, ready_ms = run_ms from due where ${inOrg(tx, orgId)} seq = due_seq returning ${jobColumns}`);

/** The best jobs of each queue, to choose from: their queues, best first. Locks nothing. */
export const bestQueues = async (
  db: Queryable,
  orgId: string,
  queues: readonly string[],
  limit: number,
): Promise<string[]> =>
  (
    await db.all<{ queue: string }>(sql`
      select queue from (${ofEach(
        db.dialect,
        queues,
        (
          queue,
        ) => sql`select queue, priority, seq from queue_job where org_id = ${orgId} and queue = ${queue} and state = 2
          order by priority desc, seq limit ${limit}`,
      )}) best order by priority desc, seq limit ${limit}`)
  ).map(({ queue }) => queue);

/** How jobs are taken. */
export type Taking = {
  readonly orgId: string;
  readonly workerAgentId: string;
  readonly token: string;
  readonly stream: string;
  readonly leaseMs: number;
  readonly now: number;
};

const leasedBy = ({ workerAgentId, token, stream, leaseMs, now }: Taking): Sql =>
  sql`state = 3, attempts = attempts + 1, worker_agent_id = ${workerAgentId}, lease_token = ${token}, lease_stream = ${stream}, lease_ms = ${leaseMs},
    start_ms = ${now}, lease_expire_ms = case when timeout_ms < ${leaseMs} then ${now} + timeout_ms else ${now + leaseMs} end`;

/** Takes the best job of a queue; passes over those that another transaction is taking. */
export const takeBest = (tx: Tx, taking: Taking, queue: string): Promise<JobRow[]> =>
  tx.all<JobRow>(sql`
    with best as materialized (
      select seq as best_seq from queue_job where org_id = ${taking.orgId} and queue = ${queue} and state = 2
      order by priority desc, seq limit 1 ${tx.dialect.skipLocked})
    update queue_job set ${leasedBy(taking)} from best where ${inOrg(tx, taking.orgId)} seq = best_seq returning ${jobColumns}`);

/** A job to choose: its place among others, and what it takes in an answer at most, in bytes of protobuf. */
export type Choice = { readonly seq: number; readonly priority: number; readonly bytes: number };

/**
 * Locks the best jobs of a queue, best first, with their sizes; passes over those that another transaction is taking. A sealed payload is no shorter than the payload
 * is in protobuf. Its length is read without it, job by job: PostgreSQL would scan a table it believes to be small for a join.
 */
export const lockBest = (tx: Tx, orgId: string, queue: string, limit: number): Promise<Choice[]> =>
  tx.all<Choice>(sql`
    select seq, priority, ${plainBytes} + octet_length(unique_key) + octet_length(tags) + coalesce(octet_length(progress), 0) + coalesce(octet_length(error), 0)
      + coalesce((select octet_length(payload) from queue_job_data d where d.org_id = queue_job.org_id and d.job_id = queue_job.job_id), 0) as bytes
    from queue_job where org_id = ${orgId} and queue = ${queue} and state = 2
    order by priority desc, seq limit ${limit} ${tx.dialect.skipLocked}`);

/** Takes jobs that are locked. In no order. */
export const takeLocked = (tx: Tx, taking: Taking, seqs: readonly number[]): Promise<JobRow[]> =>
  tx.all<JobRow>(
    sql`update queue_job set ${leasedBy(taking)} where ${inOrg(tx, taking.orgId)} seq in (${join([...seqs])}) returning ${jobColumns}`,
  );

/** The payloads of jobs, sealed, by id; those that have one. */
export const payloadsOf = async (
  db: Queryable,
  orgId: string,
  jobIds: readonly string[],
): Promise<ReadonlyMap<string, Uint8Array>> =>
  new Map(
    (
      await db.all<{ job_id: string; payload: Uint8Array }>(sql`
        select job_id, payload from queue_job_data
        where org_id = ${orgId} and job_id in (${join([...jobIds])}) and payload is not null`)
    ).map(({ job_id, payload }) => [job_id, payload]),
  );

/**
 * From when on one of the queues has a job to claim, in milliseconds: 0 is now; undefined when none waits. Asks for the first of an order although any would do:
 * PostgreSQL would scan the table for one row of what it thinks is common.
 */
export const claimableFrom = async (
  db: Queryable,
  orgId: string,
  queues: readonly string[],
): Promise<number | undefined> =>
  (
    await db.one<{ at: number }>(sql`
      select at from (${ofEach(
        db.dialect,
        queues,
        (queue) =>
          sql`select 0 as at from queue_job where org_id = ${orgId} and queue = ${queue} and state = 2
          order by priority desc, seq limit 1`,
      )} union all ${ofEach(
        db.dialect,
        queues,
        (queue) => sql`select run_ms as at from queue_job where org_id = ${orgId} and queue = ${queue} and state = 1
          order by run_ms limit 1`,
      )}) next order by at limit 1`)
  )?.at;
