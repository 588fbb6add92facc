import { JobState } from "../../gen/moltwire/queue/v1/job_pb.ts";
import { empty, join, sql, type Tx } from "../db/db.ts";
import { Fault } from "../errors.ts";
import type { Change } from "./change-log.ts";
import { type JobRow, jobColumns } from "./job-store.ts";

/** Another job has its key. */
const keyIsHeld = sql`unique_key <> '' and exists (select 1 from queue_job holder
  where holder.org_id = queue_job.org_id and holder.queue = queue_job.queue and holder.unique_key = queue_job.unique_key
    and holder.unique_key <> '' and holder.state < 4)`;

/** Dead jobs of a queue, oldest death first, whose keys nobody has, locked; along the index of dead jobs. */
export const deadToRedrive = (tx: Tx, orgId: string, queue: string, limit: number): Promise<JobRow[]> =>
  tx.all<JobRow>(sql`
    select ${jobColumns} from queue_job where org_id = ${orgId} and queue = ${queue} and state = 5 and not (${keyIsHeld})
    order by end_ms, seq limit ${limit} ${tx.dialect.name === "sqlite" ? empty : sql`for update of queue_job`}`);

/** Throws ALREADY_EXISTS when an unfinished job has the key of a dead one. */
export async function checkKeyIsFree(tx: Tx, { org_id, queue, unique_key }: JobRow): Promise<void> {
  if (unique_key === "") return;
  const holder = await tx.one<{ job_id: string }>(sql`
    select job_id from queue_job
    where org_id = ${org_id} and queue = ${queue} and unique_key = ${unique_key} and unique_key <> '' and state < 4`);
  if (holder) throw keyTaken(holder.job_id);
}

/** The answer when a unique key is another job's meanwhile. */
export const keyTaken = (jobId: string): Fault =>
  new Fault("ALREADY_EXISTS", "an unfinished job of the queue has its unique key: it cannot be tried again beside it", {
    resource: "job",
    id: jobId,
  });

/** Of dead jobs with one key only the first can be redriven. */
export function firstOfEachKey(jobs: readonly JobRow[]): JobRow[] {
  const keys = new Set<string>();
  return jobs.filter(({ unique_key: key }) => key === "" || (!keys.has(key) && keys.add(key)));
}

/** Lets locked dead jobs be tried again, with as many attempts as at first. */
export async function redrive(tx: Tx, jobs: readonly JobRow[], now: number): Promise<Change[]> {
  if (jobs.length === 0) return [];
  const again = await tx.all<JobRow>(sql`
    update queue_job set state = 2, attempt_limit = attempts + max_attempts, redrives = redrives + 1, run_ms = ${now}, ready_ms = ${now}, end_ms = null,
      cancel_requested = 0
    where seq in (${join(jobs.map(({ seq }) => seq))}) returning ${jobColumns}`);
  return again.map((job) => ({ job, from: JobState.FAILED }));
}
