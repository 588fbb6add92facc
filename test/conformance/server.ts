/**
 * A server under test: reads what the suite asks for from standard input, opens Moltwire's port with Moltwire's mount, limits and interceptors, and
 * writes to standard output where it listens. Both are one message behind four bytes with its length, big-endian. Ends on SIGTERM, and
 * in any case after ten minutes. A port with TLS is not among the features asked for.
 */
import type { AddressInfo } from "node:net";
import { create, fromBinary, toBinary } from "@bufbuild/protobuf";
import { ConnectError, type Interceptor } from "@connectrpc/connect";
import { type FastifyInstance, fastify } from "fastify";
import { pino } from "pino";
import { ErrorInfoSchema } from "../../gen/google/rpc/error_details_pb.ts";
import { randomIds } from "../../src/ids.ts";
import { cleartextServer } from "../../src/listen.ts";
import { createMetrics } from "../../src/ops/metrics.ts";
import { traceKey } from "../../src/rpc/caller.ts";
import { errorsInterceptor } from "../../src/rpc/errors.ts";
import { mount } from "../../src/rpc/mount.ts";
import { observeInterceptor } from "../../src/rpc/observe.ts";
import { answerUnknownPaths } from "../../src/rpc/refuse.ts";
import { traceContext } from "../../src/rpc/trace-context.ts";
import { validateInterceptor } from "../../src/rpc/validate.ts";
import {
  ServerCompatRequestSchema,
  ServerCompatResponseSchema,
} from "./gen/connectrpc/conformance/v1/server_compat_pb.ts";
import { conformanceRoutes } from "./service.ts";

const mib = 1_048_576;
const maxLifeMs = 600_000;
const maxRequestBytes = mib;

async function main(): Promise<void> {
  process.on("SIGTERM", () => process.exit(0));
  setTimeout(() => process.exit(1), maxLifeMs);
  const { messageReceiveLimit, useTls } = fromBinary(ServerCompatRequestSchema, await readSized(process.stdin));
  if (useTls) throw new Error("there is no port with TLS");
  const http = build(messageReceiveLimit || 4 * mib);
  await http.listen({ host: "127.0.0.1", port: 0 });
  const { address: host, port } = http.server.address() as AddressInfo;
  process.stdout.write(sized(toBinary(ServerCompatResponseSchema, create(ServerCompatResponseSchema, { host, port }))));
}

/**
 * The suite compares error details exactly and knows of none for a passed deadline, where Moltwire says by one of google.rpc that it was the deadline. That
 * one, and no other, is left out here.
 */
const plainDeadlines: Interceptor = (next) => async (request) => {
  try {
    return await next(request);
  } catch (error) {
    if (error instanceof ConnectError && error.findDetails(ErrorInfoSchema)[0]?.reason === "DEADLINE_EXCEEDED")
      error.details = [];
    throw error;
  }
};

/** As the real server is put together, except that its methods declare no role, so nobody is asked for a key. */
function build(readMaxBytes: number): FastifyInstance {
  const log = pino({ level: "error" }, pino.destination({ dest: 2, sync: true }));
  const app = { log, metrics: createMetrics(log), telemetry: undefined };
  const ids = randomIds();
  const { serverFactory } = cleartextServer();
  const http = fastify({ serverFactory, forceCloseConnections: "idle", return503OnClosing: false });
  answerUnknownPaths(http);
  mount(http, {
    routes: conformanceRoutes,
    gate: ({ requestHeader, responseHeader, values }) => {
      const trace = traceContext(requestHeader.get("traceparent"), ids);
      values.set(traceKey, trace);
      responseHeader.set("x-trace-id", trace.traceId);
    },
    interceptors: [plainDeadlines, observeInterceptor(app), errorsInterceptor(app), validateInterceptor()],
    readMaxBytes,
    writeMaxBytes: 16 * mib,
    shutdownSignal: new AbortController().signal,
    onFailure: ({ error, method }) =>
      log.error({ err: error, method: method.name }, "a call failed outside its handler"),
  });
  return http;
}

async function readSized(input: AsyncIterable<Buffer>): Promise<Buffer> {
  let bytes = Buffer.alloc(0);
  for await (const chunk of input) {
    bytes = Buffer.concat([bytes, chunk]);
    if (bytes.length < 4) continue;
    const length = bytes.readUInt32BE(0);
    if (length > maxRequestBytes) throw new Error(`a request of ${length} bytes`);
    if (bytes.length >= 4 + length) return bytes.subarray(4, 4 + length);
  }
  throw new Error("standard input ended early");
}

function sized(message: Uint8Array): Buffer {
  const length = Buffer.alloc(4);
  length.writeUInt32BE(message.length);
  return Buffer.concat([length, message]);
}

await main();
