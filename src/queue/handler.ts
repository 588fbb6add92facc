import { durationMs, timestampFromMs } from "@bufbuild/protobuf/wkt";
import type { ServiceImpl } from "@connectrpc/connect";
import { JobState } from "../../gen/moltwire/queue/v1/job_pb.ts";
import type { NewJob, QueueService } from "../../gen/moltwire/queue/v1/queue_service_pb.ts";
import type { App } from "../app.ts";
import { asRefused, keepingOf, readKeepingOf } from "../bus/policy/keeping.ts";
import { actingAgent } from "../bus/submit.ts";
import { sql } from "../db/db.ts";
import { Fault, notFound } from "../errors.ts";
import { type Command, command } from "../rpc/command.ts";
import { feed } from "../rpc/feed.ts";
import { query } from "../rpc/query.ts";
import { authorize, leaseLost, type Sight, sightOf } from "./access.ts";
import { type Change, recordChanges } from "./change-log.ts";
import { cancel, complete, failAttempt } from "./finish.ts";
import {
  changeJob,
  failedAttempts,
  findData,
  findJob,
  type JobRow,
  listedBytes,
  lockJob,
  lockLeased,
  toAttempt,
  toJob,
  toReadJob,
} from "./job-store.ts";
import { listDeadJobs, listJobs } from "./list-store.ts";
import { claimOrWait } from "./long-poll.ts";
import { readVisible } from "./page.ts";
import { checkPayload, openPayload, sealProgress } from "./payload.ts";
import { checkKeyIsFree, deadToRedrive, firstOfEachKey, redrive } from "./redrive.ts";
import { extendedUntil, isTerminal, limits, stateName } from "./rule.ts";
import { queueStats } from "./stats.ts";
import { enqueue, queueOf } from "./submit.ts";
import { changesReader } from "./watch.ts";
import { work } from "./work.ts";

export const queueHandler = (app: App): ServiceImpl<typeof QueueService> => ({
  submitJob: command(app, async (req, given) => {
    const [result] = await submit(app, req.agentId, [req.job!], () => "job", given);
    const { job, existing } = result!;
    return { job: toJob(app, job), existing };
  }),

  submitJobs: command(app, async (req, given) => {
    const results = await submit(app, req.agentId, req.jobs, (n) => `jobs[${n}]`, given);
    // A thousand jobs that were there already could have more to tell than an answer holds.
    const brief = (job: JobRow) => toJob(app, { ...job, progress: null, error: null });
    return { results: results.map(({ job, existing }) => ({ job: brief(job), existing })) };
  }),

  claimJobs: (req, context) => claimOrWait(app, req, context),

  work: work(app),

  heartbeatJob: command(app, async (req, { tx, orgId, now }) => {
    const job = await leased(tx, orgId, req, now);
    const progress = req.progress ? sealProgress(app, { orgId, jobId: job.job_id }, req.progress) : job.progress;
    const untilMs = extendedUntil(job, now);
    await changeJob(tx, job.seq, sql`lease_expire_ms = ${untilMs}, progress = ${progress}`);
    return { leaseExpireTime: timestampFromMs(untilMs), cancelRequested: job.cancel_requested !== 0 };
  }),

  completeJob: command(app, async (req, { tx, orgId, now }) => {
    checkPayload(req.result, "result");
    const job = await leased(tx, orgId, req, now);
    return { job: await recorded(app, tx, await complete(tx, app, job, req.result, now), now) };
  }),

  failJob: command(app, async (req, { tx, orgId, now }) => {
    const job = await leased(tx, orgId, req, now);
    const { code = "", message = "" } = req.error ?? {};
    const retryAfterMs = req.retryAfter && durationMs(req.retryAfter);
    const failure = { code, message, retryable: req.retryable, retryAfterMs, expired: false };
    return { job: await recorded(app, tx, await failAttempt(tx, app, job, failure, now), now) };
  }),

  cancelJob: command(app, async (req, given) => {
    const { tx, caller, orgId, now } = given;
    const sight = await sightOf(keepingOf(app, given), app, caller, orgId);
    const job = await known(await lockJob(tx, orgId, req.jobId), req.jobId, sight);
    if (job.state === JobState.CANCELED) return { job: toJob(app, job) };
    if (isTerminal(job.state)) throw isAlready(job, "there is nothing to cancel");
    const change = await cancel(tx, job, now);
    return { job: change ? await recorded(app, tx, change, now) : toJob(app, { ...job, cancel_requested: 1 }) };
  }),

  getJob: query(app, async (req, given) => {
    const { db, caller, orgId } = given;
    const sight = await sightOf(readKeepingOf(app, given), app, caller, orgId);
    const job = await known(await findJob(db, orgId, req.jobId), req.jobId, sight);
    const at = { orgId, jobId: job.job_id };
    const { payload, result } = await findData(db, orgId, job.job_id);
    const failed = await failedAttempts(db, orgId, job.job_id);
    const attempts = [...failed.map((row) => toAttempt(app, at, row)), ...successOf(job)].slice(-limits.attemptsShown);
    return {
      job: {
        ...toReadJob(app, job),
        ...(payload && { payload: openPayload(app, at, "payload", payload) }),
        ...(result && { result: openPayload(app, at, "result", result) }),
      },
      attempts,
    };
  }),

  listJobs: query(app, async (req, given) => {
    const { db, caller, orgId } = given;
    const { queue, agentId } = req;
    const named = req.states.filter((state) => state !== JobState.UNSPECIFIED);
    const states = named.length > 0 ? named : [JobState.PENDING, JobState.LEASED];
    const { sees } = await sightOf(readKeepingOf(app, given), app, caller, orgId);
    const page = await readVisible(
      app.cursors,
      ["ListJobs", orgId, caller.agentId, queue, agentId, ...states.map(String)],
      req,
      (after, limit) => listJobs(db, orgId, { queue, states }, after, limit),
      async (job) =>
        (!agentId || job.submitter_agent_id === agentId || job.worker_agent_id === agentId) && sees(job.queue),
      (job) => [job.seq],
      listedBytes,
    );
    return { jobs: page.rows.map((job) => toJob(app, job)), nextPageToken: page.nextPageToken };
  }),

  listDeadJobs: query(app, async (req, given) => {
    const { db, caller, orgId } = given;
    const { sees } = await sightOf(readKeepingOf(app, given), app, caller, orgId);
    const page = await readVisible(
      app.cursors,
      ["ListDeadJobs", orgId, caller.agentId, req.queue],
      req,
      (after, limit) => listDeadJobs(db, orgId, req.queue, after, limit),
      (job) => sees(job.queue),
      (job) => [job.end_ms!, job.seq],
      listedBytes,
    );
    return { jobs: page.rows.map((job) => toJob(app, job)), nextPageToken: page.nextPageToken };
  }),

  getQueueStats: query(app, async (req, given) => {
    const { db, caller, orgId, now } = given;
    const { sees } = await sightOf(readKeepingOf(app, given), app, caller, orgId);
    return { queues: await queueStats(db, orgId, req.queue, sees, now) };
  }),

  redriveJob: command(app, async (req, given) => {
    const { tx, caller, orgId, now, trace } = given;
    const sight = await sightOf(keepingOf(app, given), app, caller, orgId);
    const asking = { orgId, agentId: caller.agentId, now, traceId: trace.traceId };
    if (req.subject.case === "jobId") {
      const job = await known(await lockJob(tx, orgId, req.subject.value), req.subject.value, sight);
      await authorize(tx, app, asking, "enqueue_job", [job.queue]);
      if (job.state !== JobState.FAILED) throw isAlready(job, "only a dead job is redriven");
      await checkKeyIsFree(tx, job);
      await recordChanges(tx, app, orgId, await redrive(tx, [job], now), now);
      return { redriven: 1, more: false };
    }
    const queue = req.subject.value ?? "";
    if (!(await sight.admits(queue))) return { redriven: 0, more: false };
    await authorize(tx, app, asking, "enqueue_job", [queue]);
    const dead = await deadToRedrive(tx, orgId, queue, limits.redrive + 1);
    const changes = await redrive(tx, firstOfEachKey(dead.slice(0, limits.redrive)), now);
    await recordChanges(tx, app, orgId, changes, now);
    return { redriven: changes.length, more: dead.length > limits.redrive };
  }),

  watchJobs: feed(app, (req, given) => changesReader(app, req, given)),
});

/** Puts jobs into queues for an agent, if the policies let it. */
async function submit(
  app: App,
  forAgentId: string,
  jobs: readonly NewJob[],
  fieldOf: (n: number) => string,
  { tx, caller, orgId, now, trace }: Command,
) {
  const agentId = await actingAgent(tx, caller, orgId, forAgentId);
  const queues = new Set(jobs.map(queueOf));
  await authorize(tx, app, { orgId, agentId, now, traceId: trace.traceId }, "enqueue_job", queues);
  return enqueue(tx, app, { orgId, submitterAgentId: agentId, trace, now }, jobs, fieldOf);
}

/** The job, if there is one and the caller may know of it; else NOT_FOUND. */
async function known(job: JobRow | undefined, id: string, { admits }: Sight): Promise<JobRow> {
  if (!job) throw notFound("job", id);
  if (!(await admits(job.queue))) throw asRefused(notFound("job", id));
  return job;
}

/** The job under the caller's lease, locked; LEASE_LOST. */
async function leased(
  tx: Command["tx"],
  orgId: string,
  { jobId, leaseToken }: { readonly jobId: string; readonly leaseToken: string },
  now: number,
): Promise<JobRow> {
  const job = await lockLeased(tx, orgId, jobId, leaseToken, now);
  if (!job) throw leaseLost();
  return job;
}

/** Records a change and gives its job. */
async function recorded(app: App, tx: Command["tx"], change: Change, now: number) {
  await recordChanges(tx, app, change.job.org_id, [change], now);
  return toJob(app, change.job);
}

const isAlready = ({ state }: JobRow, what: string): Fault =>
  new Fault("FAILED_PRECONDITION", `the job is ${stateName(state)}: ${what}`, { state: stateName(state) });

/** The attempt that succeeded, which stands in the job. */
const successOf = ({ state, attempts, worker_agent_id, start_ms, end_ms }: JobRow) =>
  state === JobState.COMPLETED
    ? [
        {
          attempt: attempts,
          workerAgentId: worker_agent_id,
          startTime: timestampFromMs(start_ms!),
          endTime: timestampFromMs(end_ms!),
        },
      ]
    : [];
