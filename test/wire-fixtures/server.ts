import type { AddressInfo } from "node:net";
import { setTimeout as sleep } from "node:timers/promises";
import { create } from "@bufbuild/protobuf";
import { MethodOptions_IdempotencyLevel } from "@bufbuild/protobuf/wkt";
import { Code, ConnectError, type HandlerContext, type Interceptor } from "@connectrpc/connect";
import { type FastifyInstance, fastify } from "fastify";
import {
  AgentRuntimeService,
  type HandleTaskRequest,
  HandleTaskResponseSchema,
  type StreamTaskRequest,
} from "../../gen/moltwire/agent/v1/agent_runtime_service_pb.ts";
import { file_moltwire_api_v1_access } from "../../gen/moltwire/api/v1/access_pb.ts";
import { cleartextServer, type ListenLimits, type Port } from "../../src/listen.ts";
import { createHealthState, type HealthState, healthRoutes } from "../../src/rpc/health.ts";
import { type Failure, type MountOptions, mount } from "../../src/rpc/mount.ts";
import { reflectionRoutes } from "../../src/rpc/reflection.ts";
import { answerUnknownPaths, refuse } from "../../src/rpc/refuse.ts";

/** Longer than any test may take: what comes before a limit of this has not waited for it. */
export const neverMs = 3_600_000;

/** A server made of the pieces under test, with an agent that echoes. */
export type WireServer = {
  port: number;
  url: string;
  fastify: FastifyInstance;
  edge: Port;
  health: HealthState;
  failures: Failure[];
  shutdown: AbortController;
  /** How many calls of HandleTask there were. */
  asked(): number;
  /** Handlers that are running. */
  running: Set<string>;
  close(): Promise<void>;
};

/**
 * HandleTask answers its input, except for these capabilities: `bug` throws what is no ConnectError, `refused` a ConnectError, `sleep` ends with its signal, `wait`
 * answers once `release` is called, if its signal is not aborted before. StreamTask sends `attempt` chunks and then does as the capability says: `forever` waits on its
 * signal, `deaf` waits for good, `bug` throws.
 */
export async function startServer(
  given: {
    limits?: Partial<ListenLimits>;
    edge?: Port;
    mount?: Partial<MountOptions>;
    interceptors?: Interceptor[];
  } = {},
): Promise<WireServer & { release: () => void }> {
  const edge = given.edge ?? cleartextServer(given.limits);
  const health = createHealthState([AgentRuntimeService.typeName]);
  const failures: Failure[] = [];
  const shutdown = new AbortController();
  const running = new Set<string>();
  const waiting = Promise.withResolvers<void>();
  let asked = 0;
  const app = fastify({ serverFactory: edge.serverFactory, return503OnClosing: false });

  const handleTask = async ({ task }: HandleTaskRequest, { signal }: HandlerContext) => {
    asked++;
    if (task?.capability === "bug") throw new TypeError("secret");
    if (task?.capability === "refused")
      throw new ConnectError("not you", Code.PermissionDenied, { "x-why": "because" });
    if (task?.capability === "sleep") await sleep(60_000, undefined, { signal });
    if (task?.capability === "wait") {
      running.add(task.taskId);
      await new Promise((resolve, reject) => {
        waiting.promise.then(resolve);
        signal.addEventListener("abort", () => reject(signal.reason), { once: true });
      });
    }
    return create(HandleTaskResponseSchema, task?.input === undefined ? {} : { output: task.input });
  };
  async function* streamTask({ task }: StreamTaskRequest, context: HandlerContext) {
    running.add(task?.taskId ?? "");
    try {
      for (let i = 1; i <= (task?.attempt ?? 0); i++) yield { event: { case: "chunk" as const, value: String(i) } };
      if (task?.capability === "bug") throw new TypeError("secret");
      if (task?.capability === "deaf") await new Promise(() => {});
      if (task?.capability === "forever") {
        await new Promise((resolve) => context.signal.addEventListener("abort", resolve, { once: true }));
      }
    } finally {
      running.delete(task?.taskId ?? "");
    }
  }
  // As a server would that takes every error it hears of for its own.
  app.setErrorHandler((_error, request, reply) =>
    refuse(reply, request, new ConnectError("a page failed", Code.Internal)),
  );
  app.addHook("onRequest", async (request, reply) => {
    if (request.headers.authorization === "Bearer wrong") {
      reply.header("x-set-by-a-hook", "yes");
      const error = new ConnectError("this key is wrong: schlüssel", Code.Unauthenticated, { "retry-after": "7" });
      return refuse(reply, request, error);
    }
  });
  answerUnknownPaths(app);
  mount(app, {
    routes: (router) => {
      router.service(AgentRuntimeService, { handleTask, streamTask });
      router.rpc(readTask, handleTask);
      healthRoutes(health)(router);
      reflectionRoutes([AgentRuntimeService], [file_moltwire_api_v1_access])(router);
    },
    shutdownSignal: shutdown.signal,
    streamGraceMs: 100,
    onFailure: (failure) => failures.push(failure),
    ...(given.interceptors === undefined ? {} : { interceptors: given.interceptors }),
    ...given.mount,
  });
  app.get("/plain", () => ({ hello: "world" }));
  const url = await app.listen({ host: "127.0.0.1", port: 0 });
  const { port } = app.server.address() as AddressInfo;
  const release = () => waiting.resolve();
  const close = async () => {
    release();
    shutdown.abort();
    await app.close();
  };
  return { port, url, fastify: app, edge, health, failures, shutdown, asked: () => asked, running, release, close };
}

/** HandleTask under another name, and free of side effects, so that Connect offers it by GET. */
export const readTask = {
  ...AgentRuntimeService.method.handleTask,
  name: "ReadTask",
  localName: "readTask",
  idempotency: MethodOptions_IdempotencyLevel.NO_SIDE_EFFECTS,
} as typeof AgentRuntimeService.method.handleTask;

/** A valid request. */
export function task(capability = "echo", attempt = 1) {
  const input = { kind: { case: "stringValue" as const, value: "hi" } };
  return { task: { taskId: crypto.randomUUID(), attempt, contractId: "c", capability, input } };
}

/** Waits until a condition holds; looks again every few milliseconds, and gives up with the condition's text. */
export async function until(holds: () => boolean, withinMs = 60_000): Promise<void> {
  const end = performance.now() + withinMs;
  while (!holds()) {
    if (performance.now() > end) throw new Error(`not within ${withinMs} ms: ${holds}`);
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
}
