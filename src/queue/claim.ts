import type { MessageInitShape } from "@bufbuild/protobuf";
import { timestampFromMs } from "@bufbuild/protobuf/wkt";
import { JobState, type LeasedJobSchema } from "../../gen/moltwire/queue/v1/job_pb.ts";
import type { App } from "../app.ts";
import { sql, type Tx } from "../db/db.ts";
import { Fault } from "../errors.ts";
import { answerBytes } from "../rpc/page.ts";
import { authorize } from "./access.ts";
import { type Change, recordChanges } from "./change-log.ts";
import {
  bestQueues,
  type Choice,
  dueQueues,
  lockBest,
  payloadsOf,
  promoteDue,
  type Taking,
  takeBest,
  takeLocked,
} from "./claim-store.ts";
import { failAttempt } from "./finish.ts";
import { changeJob, type JobRow, toReadJob } from "./job-store.ts";
import { openPayload, readOr, unreadableFault } from "./payload.ts";

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
  const jobs = (await take(tx, taking, claim)).sort(byRank);
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

/** Takes the best job, as most claims do: no other is locked and nothing is measured. */
async function takeOne(tx: Tx, taking: Taking, queues: readonly string[]): Promise<JobRow[]> {
  if (queues.length === 1) return takeBest(tx, taking, queues[0]!);
  for (let round = 0; round < maxRounds; round++) {
    const [queue] = await bestQueues(tx, taking.orgId, queues, 1);
    if (queue === undefined) break;
    const taken = await takeBest(tx, taking, queue);
    if (taken.length > 0) return taken;
  }
  return [];
}

/**
 * Takes the best that fit into one answer. One job fits always. From several queues: looks which queues the best jobs are in, then chooses among as many of each, so
 * that no job is locked that is not to be taken. What others took meanwhile is looked for again.
 */
async function take(tx: Tx, taking: Taking, { orgId, queues, maxJobs }: Claim): Promise<JobRow[]> {
  if (maxJobs === 1) return takeOne(tx, taking, queues);
  const taken: JobRow[] = [];
  let leftBytes = answerBytes;
  for (let round = 0; round < maxRounds && taken.length < maxJobs; round++) {
    const choices = await choose(tx, orgId, queues, maxJobs - taken.length);
    if (!choices) break;
    const fitting = thatFit(choices, leftBytes);
    const seqs = fitting.map(({ seq }) => seq);
    if (seqs.length > 0) taken.push(...(await takeLocked(tx, taking, seqs)));
    leftBytes -= fitting.reduce((sum, { bytes }) => sum + bytes, 0);
    if (queues.length === 1 || fitting.length < choices.length) break;
  }
  return taken;
}

/** The best jobs of the queues, locked, best first; undefined when none waits. */
async function choose(
  tx: Tx,
  orgId: string,
  queues: readonly string[],
  limit: number,
): Promise<readonly Choice[] | undefined> {
  if (queues.length === 1) return lockBest(tx, orgId, queues[0]!, limit);
  const choices: Choice[] = [];
  const best = await bestQueues(tx, orgId, queues, limit);
  if (best.length === 0) return undefined;
  for (const [queue, places] of Map.groupBy(best, (queue) => queue))
    choices.push(...(await lockBest(tx, orgId, queue, places.length)));
  return choices.sort(byRank);
}

const byRank = (a: Pick<Choice, "priority" | "seq">, b: Pick<Choice, "priority" | "seq">): number =>
  b.priority - a.priority || a.seq - b.seq;

/** The first ones that come to no more than so many bytes together: no later one is taken before one that does not fit. */
function thatFit(choices: readonly Choice[], leftBytes: number): readonly Choice[] {
  let bytes = 0;
  const end = choices.findIndex((choice) => (bytes += choice.bytes) > leftBytes);
  return end < 0 ? choices : choices.slice(0, end);
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
    const leased = readOr<ReturnType<typeof toLeasedJob> | Fault>(
      () => toLeasedJob(app, job, payloads.get(job.job_id)),
      (fault) => fault,
    );
    if (leased instanceof Fault) {
      ended.push(await endUnreadable(tx, app, job, leased, now));
      continue;
    }
    jobs.push(leased);
    rows.push(job);
  }
  if (ended.length > 0) await recordChanges(tx, app, orgId, ended, now);
  return { rows, jobs };
}

function toLeasedJob(app: App, job: JobRow, sealed: Uint8Array | undefined) {
  const payload = sealed && openPayload(app, { orgId: job.org_id, jobId: job.job_id }, "payload", sealed);
  return {
    job: { ...toReadJob(app, job), ...(payload && { payload }) },
    leaseToken: job.lease_token,
    leaseExpireTime: timestampFromMs(job.lease_expire_ms!),
  };
}

async function endUnreadable(tx: Tx, app: App, job: JobRow, fault: Fault, now: number): Promise<Change> {
  const { code, message } = unreadableFault(fault, job.attempts);
  const failure = { retryable: false, retryAfterMs: 0, code, message, expired: false };
  return failAttempt(tx, app, await changeJob(tx, job.seq, sql`progress = null`), failure, now);
}
