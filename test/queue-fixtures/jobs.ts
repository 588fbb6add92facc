/** What the tests of queues say often. */
import { type JsonValue, type MessageInitShape, toJson } from "@bufbuild/protobuf";
import { ValueSchema } from "@bufbuild/protobuf/wkt";
import { type Job, JobState, type LeasedJob, type Payload } from "../../gen/moltwire/queue/v1/job_pb.ts";
import type { ClaimJobsRequestSchema, NewJobSchema, QueueStats } from "../../gen/moltwire/queue/v1/queue_service_pb.ts";
import { sql } from "../../src/db/db.ts";
import { sweepQueues } from "../../src/queue/sweep.ts";
import { nameOf, value } from "../bus-fixtures/bus.ts";
import { type Clients, eventually, type World } from "../harness.ts";

type Fields<T> = Partial<Extract<T, { $typeName?: never }>>;
export type JobInit = Fields<MessageInitShape<typeof NewJobSchema>>;

export const json = (of: JsonValue) => ({ kind: { case: "json", value: value(of) } }) as const;
export const bytes = (of: Uint8Array, contentType = "") =>
  ({ kind: { case: "data", value: of }, contentType }) as const;
export const jsonOf = (payload: Payload | undefined): JsonValue | undefined =>
  payload?.kind.case === "json" ? (toJson(ValueSchema, payload.kind.value) as JsonValue) : undefined;

export const stateOf = (job: Job | undefined): string => nameOf(JobState, job?.state);

/** Submits a job; gives it. */
export async function submit(by: Clients, job: JobInit = {}): Promise<Job> {
  return (await by.queues.submitJob({ job })).job!;
}

/** Claims what there is. */
export async function claim(
  by: Clients,
  request: Fields<MessageInitShape<typeof ClaimJobsRequestSchema>> = {},
): Promise<LeasedJob[]> {
  return (await by.queues.claimJobs(request)).jobs;
}

/** The lease in the form that heartbeats and ends want it. */
export const leaseOf = ({ job, leaseToken }: LeasedJob) => ({ jobId: job!.jobId, leaseToken });

export const get = async (by: Clients, jobId: string): Promise<Job> => (await by.queues.getJob({ jobId })).job!;

/** How one queue stands. */
export const statsOf = async (by: Clients, queue: string): Promise<QueueStats | undefined> =>
  (await by.queues.getQueueStats({ queue })).queues[0];

/** Sweeps until nothing is due: what another sweep has under way is passed over. */
export const swept = ({ server: { app } }: World): Promise<boolean> =>
  eventually(async () => {
    await sweepQueues(app);
    const now = app.clock.now();
    const due = await app.db.query.one(sql`
      select 1 as found from queue_job where (state = 1 and run_ms <= ${now}) or (state = 3 and lease_expire_ms <= ${now}) limit 1`);
    return due === undefined;
  });
