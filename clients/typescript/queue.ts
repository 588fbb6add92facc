/** Jobs that wait in queues. */
import type { CallOptions } from "@connectrpc/connect";
import type { Job } from "../../gen/moltwire/queue/v1/job_pb.ts";
import {
  type JobChange,
  type NewJobSchema,
  QueueService,
  type WatchJobsRequestSchema,
} from "../../gen/moltwire/queue/v1/queue_service_pb.ts";
import { type Area, areaOf, told } from "./area.ts";
import { type Connection, clientOf } from "./connection.ts";
import { type JobHandler, type WorkOptions, workJobs } from "./jobs.ts";
import { type Content, type Fields, payloadOf } from "./payload.ts";

/** The fields of NewJob, and for whom. */
export type SubmitJobOptions = Omit<Fields<typeof NewJobSchema>, "payload" | "queue"> & {
  readonly agentId?: string;
  /** What bytes are, such as `image/png`. */
  readonly contentType?: string;
};

type Helpers = {
  /** Puts a job into a queue; gives it, or the unfinished one that has its unique key. */
  submit(queue: string, payload: Content, options?: SubmitJobOptions, call?: CallOptions): Promise<Job>;
  /**
   * Does the jobs of queues until `signal` aborts or the process gets SIGTERM: then nothing new is taken, what is in hand is finished, and it resolves. Rejects when the
   * server refuses for good, such as for a revoked key. Everything else is tried again.
   */
  work(handler: JobHandler, options?: WorkOptions): Promise<void>;
  /** The changes of jobs as they are committed, over lost connections too, each with the cursor after which a later watch can go on. */
  watch(
    request?: Fields<typeof WatchJobsRequestSchema>,
    call?: CallOptions,
  ): AsyncGenerator<{ readonly cursor: string; readonly change: JobChange }, void>;
};

export type QueueArea = Area<typeof QueueService, Helpers>;

/**
 * The queues of the key's organisation.
 *
 * @example
 * ```ts
 * import { connect } from "@moltwire/client";
 *
 * const { queue } = connect({ url, apiKey });
 * await queue.submit("mail", { to: "ada@example.org" }, { priority: 9 });
 * const stop = new AbortController();
 * await queue.work(
 *   ({ payload, attempt }) => {
 *     console.log(payload, attempt); // { to: 'ada@example.org' } 1
 *     stop.abort();
 *     return { sent: true };
 *   },
 *   { queues: ["mail"], signal: stop.signal },
 * );
 * ```
 */
export function queueOf(connection: Connection): QueueArea {
  const rpc = clientOf(connection, QueueService);
  return areaOf<typeof QueueService, Helpers>(rpc, {
    async submit(queue, payload, { agentId = "", contentType, ...job } = {}, call) {
      const request = { agentId, job: { ...job, queue, payload: payloadOf(payload, contentType) } };
      return (await rpc.submitJob(request, call)).job!;
    },
    work: (handler, options = {}) => workJobs(rpc, handler, options),
    watch: (request = {}, call = {}) =>
      told(
        (options) => rpc.watchJobs(request, options),
        call,
        ({ cursor, event }) => (event.case === "change" ? { cursor, change: event.value } : undefined),
      ),
  });
}
