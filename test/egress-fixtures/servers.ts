import { once } from "node:events";
import { createServer as createHttp, type RequestListener } from "node:http";
import { type AddressInfo, createServer as createTcp, type Server, type Socket } from "node:net";
import { onTestFinished } from "vitest";

/** A server on a loopback address that remembers every connection it got. */
export type Peer = {
  readonly port: number;
  readonly sockets: readonly Socket[];
  /** Resolves when the n-th connection (from 1) has arrived. */
  readonly connected: (n: number) => Promise<Socket>;
  /** Stops listening and drops its connections. */
  readonly stop: () => Promise<void>;
};

const listen = async (server: Server, host: string, port: number): Promise<Peer> => {
  const sockets: Socket[] = [];
  server.on("connection", (socket: Socket) => {
    sockets.push(socket);
    socket.on("error", () => {});
    server.emit("counted");
  });
  server.listen(port, host);
  await once(server, "listening");
  const stop = async () => {
    for (const socket of sockets) socket.destroy();
    if (!server.listening) return;
    server.close();
    await once(server, "close");
  };
  onTestFinished(stop);
  const connected = async (n: number): Promise<Socket> => {
    while (sockets.length < n) await once(server, "counted");
    return sockets[n - 1]!;
  };
  return { port: (server.address() as AddressInfo).port, sockets, connected, stop };
};

/** A TCP server that hands each connection to `onSocket`. */
export const tcpPeer = (onSocket: (socket: Socket) => void, host = "127.0.0.1", port = 0): Promise<Peer> =>
  listen(createTcp(onSocket), host, port);

/** An HTTP server. */
export const httpPeer = (answer: RequestListener, host = "127.0.0.1", port = 0): Promise<Peer> =>
  listen(createHttp(answer), host, port);

/** A server that nobody must ever connect to; what does gets an answer, so that a leak shows as a success. */
export const canary = (host = "127.0.0.1", port = 0): Promise<Peer> =>
  httpPeer((_request, response) => response.end("internal secret"), host, port);

/** Answers every request with these bytes, as they are, once its head has arrived; leaves the connection open. */
export const rawPeer = (...answer: (string | Uint8Array)[]): Promise<Peer> =>
  tcpPeer((socket) => {
    socket.on("data", () => {
      for (const part of answer) socket.write(part);
    });
  });

/** A port of 127.0.0.1 on which nothing listens. */
export const closedPort = async (): Promise<number> => {
  const server = createTcp().listen(0, "127.0.0.1");
  await once(server, "listening");
  const { port } = server.address() as AddressInfo;
  server.close();
  await once(server, "close");
  return port;
};

/** Resolves when the other side has closed this connection, in whatever way. */
export const closed = (socket: Socket): Promise<void> =>
  new Promise((resolve) => {
    socket.resume();
    if (socket.destroyed) resolve();
    else socket.once("close", () => resolve());
  });

/** Closes a connection to the end that the other side has noticed and closed it too. */
export const hangUp = (socket: Socket): Promise<void> => {
  socket.end();
  return closed(socket);
};
