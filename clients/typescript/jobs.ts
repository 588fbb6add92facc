/** A worker by QueueService/Work: a stream that is kept open, and the jobs that come on it, each in work of its own. */
import type { JsonObject } from "@bufbuild/protobuf";
import { durationFromMs } from "@bufbuild/protobuf/wkt";
import type { Client } from "@connectrpc/connect";
import type { Job, LeasedJob } from "../../gen/moltwire/queue/v1/job_pb.ts";
import type { QueueService } from "../../gen/moltwire/queue/v1/queue_service_pb.ts";
import { Hand } from "./hand.ts";
import { keepOpen, stopSignal } from "./keep-open.ts";
import { failureOf, type Told, toldOf, underLease } from "./lease.ts";
import { type Content, contentOf, payloadOf } from "./payload.ts";

/** A job in the hands of a handler. */
export type JobInHand = {
  readonly jobId: string;
  readonly queue: string;
  /** From 1. */
  readonly attempt: number;
  /** What to do; undefined when the job has no payload. */
  readonly payload: Content | undefined;
  /** Everything else of it, such as its tags and the progress of the attempt before. */
  readonly job: Job;
  /** Aborts when the job is canceled or another's: its result is not used any more. */
  readonly signal: AbortSignal;
  /** The W3C trace context to send on with calls. */
  readonly traceparent: string;
  /** Tells how far the work is, with the next heartbeat, and where another attempt can go on (`details`, at most 4 KiB). `fraction` is from 0 to 1. */
  progress(fraction: number, message?: string, details?: JsonObject): void;
};

/** Does one job: gives its result, or nothing, or throws. What it throws is a failure that another try may mend, but for a TaskError, which says. */
export type JobHandler = (job: JobInHand) => Promise<Content | undefined> | Content | undefined;

export type WorkOptions = {
  /** The queues to take from. Default: `default`. */
  readonly queues?: readonly string[];
  /** How many jobs are in work at once, from 1 to 100. Default 1. */
  readonly capacity?: number;
  /** How long the server waits for a sign of life of a job, from 1,000 to 3,600,000. Heartbeats go out by themselves in every third of it. Default 30,000. */
  readonly leaseMs?: number;
  /** Ends the work; jobs in hand are finished. SIGTERM does the same. What was on its way then is another's when its lease has run out. */
  readonly signal?: AbortSignal;
  /** The agent to work for, with an administrator's key. */
  readonly agentId?: string;
  /** Hears why the stream broke, before it is opened anew, and why a result or a heartbeat did not arrive. Default: nobody. */
  readonly onProblem?: (error: unknown) => void;
};

type Queues = Client<typeof QueueService>;

/** See `work` of the queue. */
export async function workJobs(queues: Queues, handler: JobHandler, options: WorkOptions): Promise<void> {
  const { capacity = 1, leaseMs = 30_000, agentId = "", onProblem = () => {} } = options;
  const { stop, end } = stopSignal(options.signal);
  const places = limited(capacity);
  const inHand = new Hand<LeasedJob>((leased, give) =>
    doJob(queues, (job) => places(() => handler(job), give.signal), leased, { give, leaseMs, onProblem }),
  );
  const request = { queues: [...(options.queues ?? [])], capacity, lease: durationFromMs(leaseMs), agentId };
  try {
    await keepOpen(
      async (onMessage) => {
        for await (const { event } of queues.work(request, { signal: stop })) {
          onMessage();
          if (event.case === "job") inHand.take(event.value.job!.jobId, event.value);
          else if (event.case === "lostJobId") inHand.letGo(event.value);
        }
      },
      { stop, onProblem },
    );
    await inHand.empty();
  } finally {
    end();
    inHand.letAllGo();
  }
}

type Outcome = { readonly result: Content | undefined } | { readonly error: unknown };
type Keeping = {
  readonly give: AbortController;
  readonly leaseMs: number;
  readonly onProblem: (error: unknown) => void;
};

function doJob(
  queues: Queues,
  handler: JobHandler,
  { job: leased, leaseToken }: LeasedJob,
  { give, leaseMs, onProblem }: Keeping,
): Promise<void> {
  const job = leased!;
  const { jobId, queue, attempts: attempt, traceId, spanId } = job;
  let progress: (Told & { details?: JsonObject }) | undefined;
  const inHand: JobInHand = {
    jobId,
    queue,
    attempt,
    payload: contentOf(job.payload),
    job,
    signal: give.signal,
    traceparent: traceId && spanId ? `00-${traceId}-${spanId}-01` : "",
    progress: (fraction, message, details) =>
      void (progress = { ...toldOf(fraction, message), ...(details && { details }) }),
  };
  const lease = { jobId, leaseToken };
  const call = { signal: give.signal, headers: { "idempotency-key": `${jobId}-${attempt}` } };
  return underLease<Outcome>({
    leaseMs,
    give,
    onProblem,
    async run() {
      try {
        return { result: (await handler(inHand)) ?? undefined };
      } catch (error) {
        return { error };
      }
    },
    answer(outcome) {
      if ("result" in outcome) {
        const { result } = outcome;
        return queues.completeJob({ ...lease, ...(result !== undefined && { result: payloadOf(result) }) }, call);
      }
      const { message, retryable } = failureOf(outcome.error);
      return queues.failJob({ ...lease, error: { message }, retryable }, call);
    },
    async beat(options) {
      const told = progress;
      progress = undefined;
      return (await queues.heartbeatJob({ ...lease, ...(told && { progress: told }) }, options)).cancelRequested;
    },
  });
}

/**
 * Runs at most so many at once, the others when there is room. A stream that is opened anew brings jobs while those of the one before are still in work: they wait here,
 * under their leases.
 */
function limited(places: number) {
  const waiting: (() => void)[] = [];
  let free = places;
  return async <T>(run: () => T | Promise<T>, signal: AbortSignal): Promise<T> => {
    if (free > 0) free -= 1;
    else await new Promise<void>((resolve) => waiting.push(resolve));
    try {
      signal.throwIfAborted();
      return await run();
    } finally {
      const next = waiting.shift();
      if (next) next();
      else free += 1;
    }
  };
}
