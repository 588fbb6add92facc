/** A server that fails as it is told, and writes down what it was asked. */
import { once } from "node:events";
import { createServer } from "node:http2";
import { connectNodeAdapter } from "@connectrpc/connect-node";
import { QueueService } from "../../gen/moltwire/queue/v1/queue_service_pb.ts";

export type Asked = { readonly method: string; readonly key: string | null; readonly traceparent: string | null };

/** Each call of GetJob and CancelJob takes the first of `failures` and throws it, or that of its job in `ofJobs`; when there are none it answers. */
export async function faultyServer() {
  const asked: Asked[] = [];
  const failures: unknown[] = [];
  const ofJobs = new Map<string, unknown>();
  const answer =
    (method: string) =>
    ({ jobId }: { jobId: string }, { requestHeader }: { requestHeader: Headers }) => {
      asked.push({ method, key: requestHeader.get("idempotency-key"), traceparent: requestHeader.get("traceparent") });
      if (failures.length > 0) throw failures.shift();
      const failure = ofJobs.get(jobId);
      if (ofJobs.delete(jobId)) throw failure;
      return {};
    };
  const server = createServer(
    connectNodeAdapter({
      routes: (router) => router.service(QueueService, { getJob: answer("GetJob"), cancelJob: answer("CancelJob") }),
    }),
  );
  const sessions = new Set<{ destroy(): void }>();
  server.on("session", (session) => sessions.add(session));
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  const { port } = server.address() as { port: number };
  return {
    url: `http://127.0.0.1:${port}`,
    asked,
    failures,
    ofJobs,
    async [Symbol.asyncDispose]() {
      for (const session of sessions) session.destroy();
      await new Promise((closed) => server.close(closed));
    },
  };
}
