/**
 * How the lab's agents reach this server: by the generated clients, over the same gate, interceptors and handlers as a call from outside, only without a socket. Keys,
 * policies, limits, traces and metrics are those of any caller.
 */
import {
  type Client,
  type ConnectRouter,
  createClient,
  createConnectRouter,
  type Interceptor,
} from "@connectrpc/connect";
import {
  createUniversalHandlerClient,
  type UniversalHandler,
  type UniversalServerRequest,
} from "@connectrpc/connect/protocol";
import { createTransport } from "@connectrpc/connect/protocol-connect";
import { MemoryService } from "../../gen/moltwire/memory/v1/memory_service_pb.ts";
import { QueueService } from "../../gen/moltwire/queue/v1/queue_service_pb.ts";
import { RelayService } from "../../gen/moltwire/relay/v1/relay_service_pb.ts";
import type { MountOptions } from "../rpc/mount.ts";

/** What an agent of the lab speaks. */
export type Clients = {
  readonly relay: Client<typeof RelayService>;
  readonly memory: Client<typeof MemoryService>;
  readonly queue: Client<typeof QueueService>;
};

/** What calls pass on their way in, as at the port. */
export type Inside = Required<Pick<MountOptions, "gate" | "interceptors" | "readMaxBytes" | "writeMaxBytes">> & {
  readonly routes: (router: ConnectRouter) => void;
};

/** The calls of one run. */
export type Wire = {
  /** Clients of whoever has the key; each call belongs to the trace. */
  clients(key: string, traceparent: string): Clients;
  /** Resolves when no call of the run is being handled any more: whoever gave up a call does not wait for its handler, which may still commit. */
  idle(): Promise<void>;
};

/** The services of this server, to be called from inside. */
export function innerServer({ routes, gate, interceptors, readMaxBytes, writeMaxBytes }: Inside): () => Wire {
  const router = createConnectRouter({
    ...{ grpc: false, grpcWeb: false, interceptors, readMaxBytes, writeMaxBytes },
    requestGate: gate,
  });
  routes(router);
  const spoken = new Set([RelayService, MemoryService, QueueService].map(({ typeName }) => typeName));
  const handlers = router.handlers.filter(({ service }) => spoken.has(service.typeName));
  return () => {
    const calls = inFlight();
    const httpClient = createUniversalHandlerClient(handlers.map((handler) => counted(handler, calls)));
    return {
      clients(key, traceparent) {
        const withKey: Interceptor = (next) => (request) => {
          request.header.set("authorization", `Bearer ${key}`);
          request.header.set("traceparent", traceparent);
          return next(request);
        };
        const transport = createTransport({
          ...{ httpClient, baseUrl: "https://lab", useBinaryFormat: true, interceptors: [withKey] },
          ...{ acceptCompression: [], sendCompression: null, compressMinBytes: Number.MAX_SAFE_INTEGER },
          ...{ readMaxBytes: writeMaxBytes, writeMaxBytes: readMaxBytes },
        });
        return {
          relay: createClient(RelayService, transport),
          memory: createClient(MemoryService, transport),
          queue: createClient(QueueService, transport),
        };
      },
      idle: calls.idle,
    };
  };
}

type InFlight = { readonly enter: () => () => void; readonly idle: () => Promise<void> };

function inFlight(): InFlight {
  let count = 0;
  let waiting: (() => void)[] = [];
  return {
    enter() {
      count++;
      let left = false;
      return () => {
        if (left) return;
        left = true;
        count--;
        if (count > 0) return;
        for (const wake of waiting) wake();
        waiting = [];
      };
    },
    idle: () => (count === 0 ? Promise.resolve() : new Promise((resolve) => waiting.push(resolve))),
  };
}

const counted = (handler: UniversalHandler, calls: InFlight): UniversalHandler =>
  Object.assign(async (request: UniversalServerRequest) => {
    const leave = calls.enter();
    try {
      const response = await handler(request);
      if (handler.method.methodKind !== "unary" && response.body)
        return { ...response, body: left(response.body, request.signal, leave) };
      leave();
      return response;
    } catch (error) {
      leave();
      throw error;
    }
  }, handler);

/** A client that goes away does not end its stream, as a socket does that is closed: it is ended here, so that its handler lets go of what it holds. */
function left(body: AsyncIterable<Uint8Array>, signal: AbortSignal, leave: () => void): AsyncIterable<Uint8Array> {
  const messages = body[Symbol.asyncIterator]();
  const end = () => void Promise.resolve(messages.return?.()).then(leave, leave);
  if (signal.aborted) end();
  else signal.addEventListener("abort", end, { once: true });
  return {
    [Symbol.asyncIterator]: () => ({
      async next() {
        const result = await messages.next();
        if (result.done) {
          signal.removeEventListener("abort", end);
          leave();
        }
        return result;
      },
    }),
  };
}
