/** An agent by BusService/Serve: a stream that is kept open, and the tasks that come on it, each in work of its own. */
import { durationFromMs } from "@bufbuild/protobuf/wkt";
import type { Client } from "@connectrpc/connect";
import type { BusService, TaskDelivery } from "../../gen/moltwire/bus/v1/bus_service_pb.ts";
import { Hand } from "./hand.ts";
import { keepOpen, stopSignal } from "./keep-open.ts";
import { randomName } from "./retry.ts";
import { type Handler, workOn } from "./work.ts";

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

/** See `serve` of the bus. */
export async function serveTasks(
  bus: Client<typeof BusService>,
  handler: Handler,
  options: ServeOptions,
): Promise<void> {
  const { capacity = 1, leaseMs = 30_000, agentId = "", onProblem = () => {} } = options;
  const { stop, end } = stopSignal(options.signal);
  const hangUp = new AbortController();
  const inHand = new Hand<TaskDelivery>((delivery, give) => workOn(bus, handler, delivery, give, onProblem));
  // Under this name a stream that is opened anew goes on with what is in hand.
  const request = { capacity, lease: durationFromMs(leaseMs), instance: randomName(), agentId };
  const read = async (drain: boolean, onMessage = () => {}) => {
    for await (const { event } of bus.serve({ ...request, drain }, { signal: hangUp.signal })) {
      onMessage();
      if (event.case === "delivery") inHand.take(event.value.task!.taskId, event.value);
      else if (event.case === "revokedTaskId") inHand.letGo(event.value);
    }
  };
  // What is on its way would be lost by hanging up: the server is told, and ends the stream after the last delivery.
  const drain = () => void read(true).catch(() => hangUp.abort());
  stop.addEventListener("abort", drain, { once: true });
  try {
    await keepOpen((onMessage) => read(false, onMessage), { stop, onProblem });
    await inHand.empty();
  } finally {
    end();
    stop.removeEventListener("abort", drain);
    inHand.letAllGo();
    hangUp.abort();
  }
}
