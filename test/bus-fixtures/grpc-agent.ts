/** gRPC servers as agents: one of a library, and one that answers whatever bytes a test wants. */
import { once } from "node:events";
import {
  createSecureServer,
  createServer,
  type Http2Server,
  type ServerHttp2Session,
  type ServerHttp2Stream,
} from "node:http2";
import type { AddressInfo, Socket } from "node:net";
import type { ServiceImpl } from "@connectrpc/connect";
import { connectNodeAdapter } from "@connectrpc/connect-node";
import { AgentRuntimeService } from "../../gen/moltwire/agent/v1/agent_runtime_service_pb.ts";

export type GrpcAgent = AsyncDisposable & {
  readonly url: string;
  /** How many connections it got. */
  connections(): number;
  /** Drops every connection. */
  drop(): void;
};

type Tls = { readonly key: string; readonly cert: string };

async function serve(server: Http2Server, scheme: string): Promise<GrpcAgent> {
  const sockets = new Set<Socket>();
  let connections = 0;
  server.on(scheme === "https" ? "secureConnection" : "connection", (socket: Socket) => {
    connections++;
    sockets.add(socket);
    socket.on("error", () => {});
    socket.on("close", () => sockets.delete(socket));
  });
  server.on("session", (session: ServerHttp2Session) => session.on("error", () => {}));
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  const drop = () => {
    for (const socket of sockets) socket.destroy();
  };
  return {
    url: `${scheme}://127.0.0.1:${(server.address() as AddressInfo).port}`,
    connections: () => connections,
    drop,
    async [Symbol.asyncDispose]() {
      drop();
      server.close();
      await once(server, "close");
    },
  };
}

/** An agent made with Connect's gRPC server. */
export function grpcAgent(built: Partial<ServiceImpl<typeof AgentRuntimeService>>, tls?: Tls): Promise<GrpcAgent> {
  const handler = connectNodeAdapter({
    routes: (router) => router.service(AgentRuntimeService, built),
    connect: false,
    grpcWeb: false,
  });
  return tls
    ? serve(createSecureServer({ ...tls, ALPNProtocols: ["h2"] }, handler), "https")
    : serve(createServer(handler), "http");
}

/** An HTTP/2 server that does with each request what it is told. */
export function rawGrpcAgent(onStream: (stream: ServerHttp2Stream) => void): Promise<GrpcAgent> {
  const server = createServer();
  server.on("stream", (stream) => {
    stream.on("error", () => {});
    onStream(stream);
  });
  return serve(server, "http");
}
