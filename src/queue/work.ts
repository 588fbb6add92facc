/** Work: a stream that claims for its worker as long as it has room. */
import type { MessageInitShape } from "@bufbuild/protobuf";
import { timestampFromMs } from "@bufbuild/protobuf/wkt";
import type { HandlerContext } from "@connectrpc/connect";
import { JobState, type LeasedJobSchema } from "../../gen/moltwire/queue/v1/job_pb.ts";
import type { WorkRequest, WorkResponseSchema } from "../../gen/moltwire/queue/v1/queue_service_pb.ts";
import type { App } from "../app.ts";
import { actingAgent } from "../bus/submit.ts";
import { join, type Queryable, sql } from "../db/db.ts";
import { Fault, Refused } from "../errors.ts";
import { callerOf, traceOf } from "../rpc/caller.ts";
import { checkpointMs, endWithKey } from "../rpc/feed.ts";
import { orgOf } from "../rpc/scope.ts";
import { queueTopic, streamTopic } from "./change-log.ts";
import { type Claim, claimJobs, toLeasedJobs } from "./claim.ts";
import { claimableFrom } from "./claim-store.ts";
import { hasExpired, type JobRow } from "./job-store.ts";
import { bellMs } from "./wait.ts";
import { claimOf } from "./wish.ts";

type Message = MessageInitShape<typeof WorkResponseSchema>;

/** A lease of this stream. */
type Held = Pick<JobRow, "job_id" | "lease_token" | "attempts">;

export const work = (app: App) =>
  async function* (req: WorkRequest, context: HandlerContext): AsyncGenerator<Message> {
    const caller = callerOf(context);
    const orgId = await orgOf(app.db.query, caller, req.orgId);
    const agentId = await actingAgent(app.db.query, caller, orgId, req.agentId);
    const over = new AbortController();
    const signal = AbortSignal.any([context.signal, app.stopping, over.signal]);
    const closeStream = app.metrics.streamOpened();
    const stream = app.ids.span();
    const claim = { ...claimOf(req, orgId, agentId, traceOf(context).traceId), stream };
    try {
      endWithKey(app, caller, over, signal);
      yield* lease(app, claim, req.capacity || 1, signal);
    } catch (error) {
      if (over.signal.aborted) throw over.signal.reason;
      throw app.stopping.aborted
        ? new Fault("SHUTTING_DOWN", "the server is stopping: open the stream again; the leases run on")
        : error;
    } finally {
      over.abort();
      closeStream();
    }
  };

async function* lease(app: App, claim: Claim, capacity: number, signal: AbortSignal): AsyncGenerator<Message> {
  const { orgId, queues, stream } = claim;
  const bell = app.db.listen([...queues.map((queue) => queueTopic(orgId, queue)), streamTopic(stream)], signal);
  const held = new Map<string, Held>();
  // Before anything is told, so that who may not claim here hears that first.
  let taken = await take(app, claim, capacity, held);
  yield checkpoint(app);
  let toldMs = app.clock.now();
  for (;;) {
    for (const jobId of taken.lost) yield lostJob(jobId);
    for (const job of taken.jobs) {
      signal.throwIfAborted(); // a slow reader may take long for them
      yield { event: { case: "job", value: job } };
    }
    const lost = await letGo(app.db.query, orgId, held);
    for (const jobId of lost) yield lostJob(jobId);
    if (taken.jobs.length + lost.length > 0) toldMs = app.clock.now();
    signal.throwIfAborted();
    const room = capacity - held.size;
    const fromMs = room > 0 ? await claimableFrom(app.db.query, orgId, queues) : undefined;
    const now = app.clock.now();
    taken = fromMs !== undefined && fromMs <= now ? await take(app, claim, room, held) : nothing;
    if (taken.jobs.length > 0) continue;
    const untilMs = Math.min(toldMs + checkpointMs, fromMs ?? Number.POSITIVE_INFINITY);
    await bell.wait(bellMs(app, untilMs - now), signal);
    if (app.clock.now() < toldMs + checkpointMs) continue;
    yield checkpoint(app);
    toldMs = app.clock.now();
  }
}

const lostJob = (jobId: string): Message => ({ event: { case: "lostJobId", value: jobId } });

const checkpoint = (app: App): Message => ({
  event: { case: "checkpoint", value: timestampFromMs(app.clock.now()) },
});

/** What was claimed, and those of it that this stream had before and did not know to have lost. */
type Taken = { readonly jobs: readonly MessageInitShape<typeof LeasedJobSchema>[]; readonly lost: readonly string[] };
const nothing: Taken = { jobs: [], lost: [] };

/** Claims as many as there is room for. A refusal is kept before it is thrown. */
async function take(app: App, claim: Claim, room: number, held: Map<string, Held>): Promise<Taken> {
  const outcome = await app.db.tx(async (tx) => {
    try {
      const now = app.clock.now();
      return await toLeasedJobs(tx, app, await claimJobs(tx, app, { ...claim, maxJobs: room }, now), now);
    } catch (error) {
      if (error instanceof Refused) return error;
      throw error;
    }
  });
  if (outcome instanceof Refused) throw outcome;
  const lost = outcome.rows.map(({ job_id }) => job_id).filter((jobId) => held.has(jobId));
  for (const row of outcome.rows) held.set(row.job_id, row);
  return { jobs: outcome.jobs, lost };
}

/** Forgets the leases that are over; gives the jobs of those that ended by themselves. */
async function letGo(db: Queryable, orgId: string, held: Map<string, Held>): Promise<string[]> {
  if (held.size === 0) return [];
  const rows = await db.all<{ job_id: string; lease_token: string }>(sql`
    select job_id, lease_token from queue_job
    where org_id = ${orgId} and job_id in (${join([...held.keys()])}) and state = ${JobState.LEASED}`);
  const tokens = new Map(rows.map(({ job_id, lease_token }) => [job_id, lease_token]));
  const ended = [...held.values()].filter(({ job_id, lease_token }) => tokens.get(job_id) !== lease_token);
  const lost: string[] = [];
  for (const { job_id, attempts } of ended) {
    held.delete(job_id);
    if (await hasExpired(db, orgId, job_id, attempts)) lost.push(job_id);
  }
  return lost;
}
