/** One instance of an agent that pulls, told what to do step by step. */
import type { JsonValue } from "@bufbuild/protobuf";
import { durationFromMs } from "@bufbuild/protobuf/wkt";
import type { RespondTaskResponse, TaskDelivery } from "../../gen/moltwire/bus/v1/bus_service_pb.ts";
import { type Clients, eventually, type Org, type OrgAgent, unique } from "../harness.ts";
import { value } from "./bus.ts";

export const pullEndpoint = { kind: { case: "pull", value: {} } } as const;

/** Registers an agent of the organisation that pulls the tasks of a capability. */
export const puller = (org: Org, capability: string): Promise<OrgAgent> =>
  org.agent({ name: unique("puller"), capabilities: [capability], endpoint: pullEndpoint });

export type Instance = AsyncDisposable & {
  /** Everything delivered so far, and every id revoked. */
  readonly deliveries: readonly TaskDelivery[];
  readonly revoked: readonly string[];
  /** Anything but deliveries and revocations. */
  readonly checkpoints: number;
  /** The n-th delivery, from 0, once it has come. */
  delivery(n: number): Promise<TaskDelivery>;
  /** How the stream ended. */
  readonly ended: Promise<unknown>;
  /** Hangs up. */
  leave(): Promise<void>;
};

export type InstanceOptions = {
  readonly capacity?: number;
  readonly leaseMs?: number;
  readonly instance?: string;
  readonly agentId?: string;
  /** Called with each delivery as it comes. */
  readonly onDelivery?: (delivery: TaskDelivery) => void;
};

/** Opens a stream and reads it. */
export function serving(by: Clients, options: InstanceOptions = {}): Instance {
  const { capacity = 1, leaseMs = 30_000, instance = "", agentId = "", onDelivery } = options;
  const deliveries: TaskDelivery[] = [];
  const revoked: string[] = [];
  let checkpoints = 0;
  const leaving = new AbortController();
  const read = async () => {
    const request = { capacity, lease: durationFromMs(leaseMs), instance, agentId };
    for await (const { event } of by.bus.serve(request, { signal: leaving.signal })) {
      if (event.case === "delivery") {
        deliveries.push(event.value);
        onDelivery?.(event.value);
      } else if (event.case === "revokedTaskId") revoked.push(event.value);
      else checkpoints++;
    }
  };
  const ended = read().then(
    () => undefined,
    (error: unknown) => error,
  );
  const leave = async () => {
    leaving.abort();
    await ended;
  };
  return {
    deliveries,
    revoked,
    get checkpoints() {
      return checkpoints;
    },
    delivery: (n) => eventually(() => deliveries[n]),
    ended,
    leave,
    [Symbol.asyncDispose]: leave,
  };
}

const keyOf = ({ task, leaseToken }: TaskDelivery) => ({ taskId: task!.taskId, leaseToken });

export const respond = (
  by: Clients,
  delivery: TaskDelivery,
  output: JsonValue = "done",
): Promise<RespondTaskResponse> =>
  by.bus.respondTask({ ...keyOf(delivery), outcome: { case: "output", value: value(output) } });

export const failTask = (by: Clients, delivery: TaskDelivery, retryable = true): Promise<RespondTaskResponse> =>
  by.bus.respondTask({ ...keyOf(delivery), outcome: { case: "failure", value: { message: "as told", retryable } } });

export const heartbeat = (by: Clients, delivery: TaskDelivery) => by.bus.heartbeatTask(keyOf(delivery));
