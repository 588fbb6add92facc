// One port for HTTP/1.1 and HTTP/2, and its limits. In cleartext the first bytes of a connection decide (h2c with prior knowledge).

import http from "node:http";
import http2 from "node:http2";
import type { Socket } from "node:net";
import type { FastifyServerFactory } from "fastify";
import { type Connections, limitedConnections } from "./connections.ts";

/** What a client may take from the port. Every number is a hard limit; times are in milliseconds. */
export type ListenLimits = {
  /**
   * From the connection to the bytes that tell HTTP/1.1 from HTTP/2, however slowly they drip. Then it is closed. Over TLS once for the handshake and
   * once more for those bytes.
   */
  firstBytesTimeoutMs: number;
  /** HTTP/1.1: from a request's first byte to the end of its headers. Then 408 and closed. */
  headersTimeoutMs: number;
  /** HTTP/1.1: from a request's first byte to the end of its body. Then 408 and closed. The response may take longer. */
  requestTimeoutMs: number;
  /** HTTP/1.1: how long a connection may wait for its next request. */
  keepAliveTimeoutMs: number;
  /** How often the two HTTP/1.1 request timeouts are looked at, which is how late they may be. */
  timeoutCheckMs: number;
  /** HTTP/2: how long a session may live without an open stream. Then GOAWAY and closed. */
  idleSessionTimeoutMs: number;
  /** Connections at once; one more takes the place of one that is not being served, and is closed at once if there is none. */
  maxConnections: number;
  /** Request line and headers together. HTTP/1.1 answers 431, HTTP/2 resets the stream. */
  maxHeaderBytes: number;
  /** Headers in a request. HTTP/1.1 ignores those after it, HTTP/2 resets the stream. */
  maxHeaders: number;
  /** HTTP/2: open streams in a session; one more is refused. HTTP/1.1: requests without an answer; one more closes the connection. */
  maxStreams: number;
  /** HTTP/2: streams a client may reset in a burst; above it, and above the rate, the session is closed (CVE-2023-44487). */
  streamResetBurst: number;
  /** HTTP/2: resets per second that refill the burst. */
  streamResetsPerSecond: number;
  /** HTTP/2: refused streams after which the session is closed. */
  maxRefusedStreams: number;
  /** HTTP/2: invalid frames after which the session is closed. */
  maxInvalidFrames: number;
  /** HTTP/2: what a session may hold in queued data and header tables, in MiB; above it new streams are refused. */
  maxSessionMemoryMib: number;
  /** After the drain began: how long the open requests and streams may take before their connections are cut. */
  drainTimeoutMs: number;
  /** HTTP/2, after the drain began: how long a client that has all its answers may leave its half of the connection open. Then it is cut. */
  lingerTimeoutMs: number;
};

/** The limits of a server nobody configured. */
export const defaultListenLimits: ListenLimits = {
  firstBytesTimeoutMs: 10_000,
  headersTimeoutMs: 15_000,
  requestTimeoutMs: 60_000,
  keepAliveTimeoutMs: 75_000,
  timeoutCheckMs: 1_000,
  idleSessionTimeoutMs: 120_000,
  maxConnections: 4_096,
  maxHeaderBytes: 16_384,
  maxHeaders: 128,
  maxStreams: 250,
  streamResetBurst: 200,
  streamResetsPerSecond: 33,
  maxRefusedStreams: 100,
  maxInvalidFrames: 100,
  maxSessionMemoryMib: 16,
  drainTimeoutMs: 10_000,
  lingerTimeoutMs: 2_000,
};

/** A port to give to Fastify, and the way to empty it. */
export type Port = {
  /** For `fastify({ serverFactory })`. Call it once. */
  serverFactory: FastifyServerFactory;
  /**
   * Takes no new work: closes idle connections, tells HTTP/2 clients to go away, closes the others as their requests and
   * streams end, and cuts what is left after `drainTimeoutMs`. Fastify's `close()` calls it; calling it twice is harmless.
   */
  drain(): void;
};

type Handler = (request: http.IncomingMessage, response: http.ServerResponse) => void;

// RFC 9113, section 3.4.
const preface = Buffer.from("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
const tcpKeepAliveMs = 60_000;

/** A cleartext port that speaks HTTP/1.1 and HTTP/2 within the limits; those not given are `defaultListenLimits`. */
export function cleartextServer(given: Partial<ListenLimits> = {}): Port {
  const limits = { ...defaultListenLimits, ...given };
  return openPort(limits, ({ undecided, serve }) => ({
    accept(socket) {
      undecided.add(socket);
      sniff(socket, limits.firstBytesTimeoutMs, (isHttp2) => serve(socket, isHttp2));
    },
    refuse: () => {},
  }));
}

/** What a kind of port does with connections before it is known what they speak. */
export type Greeting = {
  accept(socket: Socket): void;
  /** The drain has begun: destroys those that are not `undecided` yet. */
  refuse(): void;
};
/** What it decides with. */
export type Decisions = {
  /** Connections of which it is not known yet what they speak; destroyed when the drain begins. */
  readonly undecided: Set<Socket>;
  /** `connection` is what was accepted, if `socket` is but what is spoken in it. */
  readonly serve: (socket: Socket, isHttp2: boolean, connection?: Socket) => void;
};

/** A port of a kind; calls `greet` for each address it listens on. */
export function openPort(limits: ListenLimits, greet: (decisions: Decisions) => Greeting): Port {
  let drainPort = () => {};
  const serverFactory: FastifyServerFactory = (fastify) => {
    const connections = limitedConnections(limits.maxConnections);
    const undecided = new Set<Socket>();
    // A client may cancel or cut off many requests in one packet with them: they cost nothing but their parsing.
    const handler: Handler = (request, response) => {
      if (!isLost(request)) fastify(request, response);
    };
    const h1 = http1Server(handler, limits);
    const h2 = http2Sessions(handler, limits, connections);
    const closeIdleHttp1 = h1.closeIdleConnections.bind(h1);
    const serveHttp1 = h1.listeners("connection") as ((socket: Socket) => void)[];
    const greeting = greet({
      undecided,
      serve(socket, isHttp2, connection = socket) {
        undecided.delete(socket);
        if (isHttp2) return h2.serve(socket, connection);
        accepted.set(socket, connection);
        for (const serve of serveHttp1) serve.call(h1, socket);
      },
    });
    const accepted = new WeakMap<Socket, Socket>();
    let draining = false;

    h1.removeAllListeners("connection");
    h1.on("connection", (socket: Socket) => {
      if (!connections.add(socket)) {
        socket.destroy();
        return;
      }
      socket.once("close", () => undecided.delete(socket));
      // A peer that lost its power sends no FIN.
      socket.setKeepAlive(true, tcpKeepAliveMs);
      greeting.accept(socket);
    });
    h1.prependListener("request", ({ socket }, response) => {
      const connection = accepted.get(socket) ?? socket;
      if (connections.began(connection) > limits.maxStreams) connection.destroy();
      response.once("close", () => {
        connections.ended(connection);
        // A response that was under way when the drain began leaves its connection open for a next request.
        if (draining) setImmediate(closeIdleHttp1);
      });
    });

    drainPort = () => {
      if (!draining) {
        draining = true;
        setTimeout(connections.destroyAll, limits.drainTimeoutMs).unref();
      }
      greeting.refuse();
      for (const socket of undecided) socket.destroy();
      h2.goAway();
      closeIdleHttp1();
    };
    // Both Fastify's close() and the server's own call it, and it has to mean all of the port.
    h1.closeIdleConnections = drainPort;
    return h1;
  };
  return { serverFactory, drain: () => drainPort() };
}

/** Whether nobody waits for an answer any more. */
function isLost(request: http.IncomingMessage | http2.Http2ServerRequest): boolean {
  if ("stream" in request) return request.stream.destroyed || request.stream.closed;
  return request.socket.destroyed;
}

function http1Server(handler: Handler, limits: ListenLimits): http.Server {
  const server = http.createServer(
    {
      headersTimeout: limits.headersTimeoutMs,
      requestTimeout: limits.requestTimeoutMs,
      keepAliveTimeout: limits.keepAliveTimeoutMs,
      connectionsCheckingInterval: limits.timeoutCheckMs,
      maxHeaderSize: limits.maxHeaderBytes,
    },
    handler,
  );
  server.maxHeadersCount = limits.maxHeaders;
  return server;
}

type Http2Sessions = { serve(socket: Socket, connection: Socket): void; goAway(): void };

function http2Sessions(handler: Handler, limits: ListenLimits, connections: Connections): Http2Sessions {
  /** Each with how it goes away. */
  const sessions = new Map<http2.ServerHttp2Session, () => void>();
  // Of the session that is being made: it tells of its socket by a proxy only.
  let spoken: { readonly socket: Socket; readonly connection: Socket };
  let leaving = false;
  const server = http2.createServer(
    {
      settings: {
        maxConcurrentStreams: limits.maxStreams,
        maxHeaderListSize: limits.maxHeaderBytes,
        enablePush: false,
      },
      maxHeaderListPairs: limits.maxHeaders,
      maxSessionMemory: limits.maxSessionMemoryMib,
      maxSessionRejectedStreams: limits.maxRefusedStreams,
      maxSessionInvalidFrames: limits.maxInvalidFrames,
      streamResetBurst: limits.streamResetBurst,
      streamResetRate: limits.streamResetsPerSecond,
    },
    // Fastify's handler takes both kinds of request at run time.
    handler as unknown as (request: http2.Http2ServerRequest, response: http2.Http2ServerResponse) => void,
  );
  server.on("session", (session) => {
    const { socket, connection: own } = spoken;
    let openStreams = 0;
    const linger = () => {
      const timer = setTimeout(() => own.destroy(), limits.lingerTimeoutMs);
      own.once("close", () => clearTimeout(timer));
    };
    const leave = () => {
      // When all its streams have ended and what they said has left, the session ends the server's half. A client that reads a stream no further does not hear it.
      if (socket.writableFinished) linger();
      else socket.once("finish", linger);
      session.close();
    };
    sessions.set(session, leave);
    session.once("close", () => sessions.delete(session));
    session.on("stream", (stream) => {
      if (stream.destroyed) return;
      openStreams += 1;
      connections.began(own);
      stream.once("close", () => {
        openStreams -= 1;
        connections.ended(own);
      });
    });
    session.setTimeout(limits.idleSessionTimeoutMs, () => {
      if (openStreams === 0) session.close();
    });
    if (leaving) leave();
  });
  return {
    serve: (socket, connection) => {
      spoken = { socket, connection };
      // The HTTP/1.1 server accepts half-open sockets; here a client that ends its half has left, with all its streams.
      socket.allowHalfOpen = false;
      server.emit("connection", socket);
    },
    goAway: () => {
      leaving = true;
      for (const leave of sessions.values()) leave();
    },
  };
}

/** Reads just enough to tell HTTP/2 from the rest, puts it back, and hands the socket on; destroys one that stays silent. */
export function sniff(socket: Socket, timeoutMs: number, decided: (isHttp2: boolean) => void): void {
  let head: Buffer = Buffer.alloc(0);
  const destroy = () => {
    socket.destroy();
  };
  const timer = setTimeout(destroy, timeoutMs);
  // Paused mode: the HTTP/2 server takes over the handle and drains only what was put back.
  const onReadable = () => {
    const chunk: Buffer | null = socket.read();
    if (chunk === null) return;
    head = head.length === 0 ? chunk : Buffer.concat([head, chunk]);
    const length = Math.min(head.length, preface.length);
    const couldBeHttp2 = head.subarray(0, length).equals(preface.subarray(0, length));
    // Putting back a partial preface would make the socket readable again at once, and this a busy loop.
    if (couldBeHttp2 && length < preface.length) return;
    clearTimeout(timer);
    socket.removeListener("readable", onReadable);
    socket.removeListener("error", destroy);
    socket.removeListener("end", destroy);
    socket.unshift(head);
    decided(couldBeHttp2);
  };
  socket.once("close", () => clearTimeout(timer));
  socket.on("error", destroy);
  socket.on("end", destroy);
  socket.on("readable", onReadable);
}
