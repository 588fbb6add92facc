// grpc.health.v1: whether the server and each of its services take calls, for load balancers and people.

import { Code, ConnectError, type ConnectRouter, type HandlerContext } from "@connectrpc/connect";
import { Health, HealthCheckResponse_ServingStatus as Status } from "../../gen/grpc/health/v1/health_pb.ts";

/** The statuses, and who waits for them to change. The empty name stands for the whole server. */
export type HealthState = {
  /** Undefined if nobody set it. */
  get(service: string): Status | undefined;
  /** All of them, by service name. */
  all(): ReadonlyMap<string, Status>;
  set(service: string, status: Status): void;
  /** Sets every service to NOT_SERVING, for good: later calls of `set` change nothing. For the start of a shutdown. */
  shutDown(): void;
  /** Resolves at the next change, or when the signal is aborted; leaves nothing behind either way. */
  changed(signal: AbortSignal): Promise<void>;
  /** How many wait for a change. */
  watchers(): number;
};

/** The state in which the server and the named services are SERVING. */
export function createHealthState(services: readonly string[]): HealthState {
  const statuses = new Map<string, Status>(["", ...services].map((service) => [service, Status.SERVING]));
  const waiting = new Set<() => void>();
  let isShutDown = false;
  const wakeAll = () => {
    for (const wake of waiting) wake();
  };
  return {
    get: (service) => statuses.get(service),
    all: () => statuses,
    set: (service, status) => {
      if (isShutDown) return;
      statuses.set(service, status);
      wakeAll();
    },
    shutDown: () => {
      isShutDown = true;
      for (const service of statuses.keys()) statuses.set(service, Status.NOT_SERVING);
      wakeAll();
    },
    changed: (signal) =>
      new Promise((resolve) => {
        if (signal.aborted) return resolve();
        const wake = () => {
          waiting.delete(wake);
          signal.removeEventListener("abort", wake);
          resolve();
        };
        waiting.add(wake);
        signal.addEventListener("abort", wake, { once: true });
      }),
    watchers: () => waiting.size,
  };
}

/** Watches at once; a call above it is `resource_exhausted`. Each holds a stream for as long as its client likes. */
const maxWatchers = 1_024;

/**
 * Check, List and Watch over the state. Watch first tells the status as it is (SERVICE_UNKNOWN for a name nobody set), then each
 * change, and ends with the signal's reason when its caller leaves or the server shuts down.
 */
export function healthRoutes(state: HealthState): (router: ConnectRouter) => void {
  async function* watch({ service }: { service: string }, { signal }: HandlerContext) {
    if (state.watchers() >= maxWatchers) throw new ConnectError("too many watchers", Code.ResourceExhausted);
    let told: Status | undefined;
    for (;;) {
      const status = state.get(service) ?? Status.SERVICE_UNKNOWN;
      if (status !== told) yield { status };
      told = status;
      if (signal.aborted) throw signal.reason;
      // A change during the yield above would otherwise be waited for after it happened.
      if ((state.get(service) ?? Status.SERVICE_UNKNOWN) === told) await state.changed(signal);
    }
  }
  return (router) => {
    router.service(Health, {
      check: ({ service }) => {
        const status = state.get(service);
        if (status === undefined) throw new ConnectError("there is no such service", Code.NotFound);
        return { status };
      },
      list: () => ({ statuses: Object.fromEntries([...state.all()].map(([name, status]) => [name, { status }])) }),
      watch,
    });
  };
}
