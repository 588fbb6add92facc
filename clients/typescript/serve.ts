/** An agent by BusService/Serve: a stream that is kept open, and the tasks that come on it, each in work of its own. */
import { randomUUID } from "node:crypto";
import { setTimeout as delay } from "node:timers/promises";
import { durationFromMs } from "@bufbuild/protobuf/wkt";
import { type Client, Code, ConnectError } from "@connectrpc/connect";
import type { BusService, TaskDelivery } from "../../gen/moltwire/bus/v1/bus_service_pb.ts";
import { type Handler, workOn } from "./work.ts";

export { type Handler, TaskError, type TaskInHand } from "./work.ts";

export type ServeOptions = {
  /** How many tasks are in work at once, from 1 to 1,000. Default 1. */
  readonly capacity?: number;
  /** How long the server waits for a sign of life of a task, from 1,000 to 3,600,000. Heartbeats go out by themselves in every third of it. Default 30,000. */
  readonly leaseMs?: number;
  /** Ends the serving; tasks in hand are finished. SIGTERM does the same. */
  readonly signal?: AbortSignal;
  /** The agent to serve for, with an administrator's key. */
  readonly agentId?: string;
  /** Hears why the stream broke, before it is opened anew, and why an answer or a heartbeat did not arrive. Default: nobody. */
  readonly onProblem?: (error: unknown) => void;
};

type Bus = Client<typeof BusService>;

const firstWaitMs = 100;
const longestWaitMs = 10_000;

/** What another try does not mend. */
const hopeless: ReadonlySet<Code> = new Set([
  Code.Unauthenticated,
  Code.PermissionDenied,
  Code.InvalidArgument,
  Code.NotFound,
  Code.FailedPrecondition,
  Code.Unimplemented,
]);

/** See `serve` of `connect`. */
export async function serveTasks(bus: Bus, handler: Handler, options: ServeOptions): Promise<void> {
  const { capacity = 1, leaseMs = 30_000, agentId = "", onProblem = () => {} } = options;
  const stopping = new AbortController();
  const onTerm = () => stopping.abort();
  process.once("SIGTERM", onTerm);
  const stop = options.signal ? AbortSignal.any([options.signal, stopping.signal]) : stopping.signal;
  const hangUp = new AbortController();
  const inHand = new Hand(bus, handler, onProblem);
  // Under this name a stream that is opened anew goes on with what is in hand.
  const request = { capacity, lease: durationFromMs(leaseMs), instance: randomUUID(), agentId };
  const read = async (drain: boolean, onMessage = () => {}) => {
    for await (const { event } of bus.serve({ ...request, drain }, { signal: hangUp.signal })) {
      onMessage();
      if (event.case === "delivery") inHand.take(event.value);
      else if (event.case === "revokedTaskId") inHand.letGo(event.value);
    }
  };
  // What is on its way would be lost by hanging up: the server is told, and ends the stream after the last delivery.
  const drain = () => void read(true).catch(() => hangUp.abort());
  stop.addEventListener("abort", drain, { once: true });
  try {
    for (let waitMs = firstWaitMs; !stop.aborted; waitMs = Math.min(longestWaitMs, 2 * waitMs)) {
      try {
        await read(false, () => void (waitMs = firstWaitMs));
      } catch (error) {
        if (stop.aborted) break;
        if (hopeless.has(ConnectError.from(error).code)) throw error;
        onProblem(error);
      }
      await delay(waitMs * (0.5 + Math.random() / 2), undefined, { signal: stop }).catch(() => {});
    }
    await inHand.empty();
  } finally {
    process.removeListener("SIGTERM", onTerm);
    stop.removeEventListener("abort", drain);
    inHand.letAllGo();
    hangUp.abort();
  }
}

/** The tasks that are in work. */
class Hand {
  readonly #works = new Map<string, { readonly work: Promise<void>; readonly give: AbortController }>();
  readonly #begin: (delivery: TaskDelivery, give: AbortController) => Promise<void>;

  constructor(bus: Bus, handler: Handler, onProblem: (error: unknown) => void) {
    this.#begin = (delivery, give) => workOn(bus, handler, delivery, give, onProblem);
  }

  take(delivery: TaskDelivery): void {
    const { taskId } = delivery.task!;
    this.letGo(taskId);
    const give = new AbortController();
    const work = this.#begin(delivery, give).finally(() => {
      if (this.#works.get(taskId)?.give === give) this.#works.delete(taskId);
    });
    this.#works.set(taskId, { work, give });
  }

  letGo(taskId: string): void {
    this.#works.get(taskId)?.give.abort();
  }

  letAllGo(): void {
    for (const taskId of this.#works.keys()) this.letGo(taskId);
  }

  async empty(): Promise<void> {
    while (this.#works.size > 0) await Promise.all([...this.#works.values()].map(({ work }) => work));
  }
}
