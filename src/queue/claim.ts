import type { MessageInitShape } from "@bufbuild/protobuf";
import { timestampFromMs } from "@bufbuild/protobuf/wkt";
import { JobState, type LeasedJobSchema } from "../../gen/moltwire/queue/v1/job_pb.ts";
import type { App } from "../app.ts";
import { sql, type Tx } from "../db/db.ts";
import { Fault } from "../errors.ts";
import { authorize } from "./access.ts";
import { type Change, recordChanges } from "./change-log.ts";
import { bestQueues, dueQueues, payloadsOf, promoteDue, type Taking, takeBest } from "./claim-store.ts";
import { failAttempt } from "./finish.ts";
import { changeJob, type JobRow, toJob } from "./job-store.ts";
import { openPayload } from "./payload.ts";

/** What is to be claimed, by whom. */
export type Claim = {
  readonly orgId: string;
  /** Empty for an administrator's own. */
  readonly agentId: string;
  readonly queues: readonly string[];
  readonly maxJobs: number;
  readonly leaseMs: number;
  /** The Work stream that takes them, or empty. */
  readonly stream: string;
  readonly traceId: string;
};

const tokenBytes = 18;
/** How many jobs whose time has come one claim makes claimable; the sweep makes the others. */
const promotedAtOnce = 100;
/** How often it is looked again when others took what was chosen. */
const maxRounds = 3;

/** Takes jobs, the highest priority first and then the oldest. Throws POLICY_DENIED. */
export async function claimJobs(tx: Tx, app: App, claim: Claim, now: number): Promise<JobRow[]> {
  const { orgId, agentId, traceId, queues, leaseMs, stream } = claim;
  await authorize(tx, app, { orgId, agentId, now, traceId }, "claim_job", queues);
  const promoted = await promote(tx, orgId, queues, now);
  const token = Buffer.from(app.ids.bytes(tokenBytes)).toString("base64url");
  const taking: Taking = { orgId, workerAgentId: agentId, token, stream, leaseMs, now };
  const jobs = (await take(tx, taking, claim)).sort((a, b) => b.priority - a.priority || a.seq - b.seq);
  const changes: Change[] = promoted.map((job) => ({ job, from: JobState.SCHEDULED }));
  for (const job of jobs) changes.push({ job, from: JobState.PENDING, ...firstWait(job, now) });
  await recordChanges(tx, app, orgId, changes, now);
  return jobs;
}

/** Makes claimable what is due: a job can be claimed from its time on, and not from the next sweep on. */
async function promote(tx: Tx, orgId: string, queues: readonly string[], now: number): Promise<JobRow[]> {
  const promoted: JobRow[] = [];
  for (const queue of await dueQueues(tx, orgId, queues, now))
    promoted.push(...(await promoteDue(tx, orgId, queue, now, promotedAtOnce)));
  return promoted;
}

/**
 * From one queue: its best. From several: looks which queues the best jobs are in, then takes as many from each, so that no job is locked that is not taken. What
 * others took meanwhile is looked for again.
 */
async function take(tx: Tx, taking: Taking, { orgId, queues, maxJobs }: Claim): Promise<JobRow[]> {
  if (queues.length === 1) return takeBest(tx, taking, queues[0]!, maxJobs);
  const taken: JobRow[] = [];
  for (let round = 0; round < maxRounds && taken.length < maxJobs; round++) {
    const best = await bestQueues(tx, orgId, queues, maxJobs - taken.length);
    if (best.length === 0) break;
    for (const [queue, places] of Map.groupBy(best, (queue) => queue))
      taken.push(...(await takeBest(tx, taking, queue, places.length)));
  }
  return taken;
}

const firstWait = ({ attempts, ready_ms }: JobRow, now: number): { waitMs?: number } =>
  attempts === 1 && ready_ms !== null ? { waitMs: now - ready_ms } : {};

/** Claimed jobs as their worker gets them; `rows` are those of them. */
type Leased = { readonly rows: readonly JobRow[]; readonly jobs: readonly MessageInitShape<typeof LeasedJobSchema>[] };

/**
 * Jobs as their worker gets them, with their payloads. One that cannot be read any more, since its key was dropped or somebody else has changed it, ends as dead: it
 * would keep all those behind it from being claimed.
 */
export async function toLeasedJobs(tx: Tx, app: App, claimed: readonly JobRow[], now: number): Promise<Leased> {
  const [first] = claimed;
  if (!first) return { rows: [], jobs: [] };
  const { org_id: orgId } = first;
  const payloads = await payloadsOf(
    tx,
    orgId,
    claimed.map(({ job_id }) => job_id),
  );
  const rows: JobRow[] = [];
  const jobs: MessageInitShape<typeof LeasedJobSchema>[] = [];
  const ended: Change[] = [];
  for (const job of claimed) {
    try {
      jobs.push(toLeasedJob(app, job, payloads.get(job.job_id)));
      rows.push(job);
    } catch (error) {
      if (!(error instanceof Fault && unreadable.has(error.reason))) throw error;
      ended.push(await endUnreadable(tx, app, job, error, now));
    }
  }
  if (ended.length > 0) await recordChanges(tx, app, orgId, ended, now);
  return { rows, jobs };
}

function toLeasedJob(app: App, job: JobRow, sealed: Uint8Array | undefined) {
  const payload = sealed && openPayload(app, { orgId: job.org_id, jobId: job.job_id }, "payload", sealed);
  return {
    job: { ...toJob(app, job), ...(payload && { payload }) },
    leaseToken: job.lease_token,
    leaseExpireTime: timestampFromMs(job.lease_expire_ms!),
  };
}

const unreadable: ReadonlySet<string> = new Set(["KEY_DROPPED", "DATA_NOT_AUTHENTIC"]);

async function endUnreadable(tx: Tx, app: App, job: JobRow, fault: Fault, now: number): Promise<Change> {
  const code = fault.reason.toLowerCase();
  const failure = { retryable: false, retryAfterMs: 0, code, message: fault.message, expired: false };
  return failAttempt(tx, app, await changeJob(tx, job.seq, sql`progress = null`), failure, now);
}
