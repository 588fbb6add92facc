import http2, { type IncomingHttpHeaders } from "node:http2";
import net, { type Socket } from "node:net";

/** A raw TCP connection, and everything it was sent so far. */
export type RawConnection = {
  socket: Socket;
  received: () => Buffer;
  text: () => string;
  closed: Promise<void>;
  isClosed: () => boolean;
};

export async function connectRaw(port: number): Promise<RawConnection> {
  const socket = net.connect(port, "127.0.0.1");
  const connection = watchRaw(socket);
  await new Promise((resolve) => socket.once("connect", resolve));
  return connection;
}

/** Keeps what a socket is sent. */
export function watchRaw(socket: Socket): RawConnection {
  const chunks: Buffer[] = [];
  const closed = Promise.withResolvers<void>();
  let isClosed = false;
  socket.on("data", (chunk: Buffer) => chunks.push(chunk));
  socket.on("error", () => {});
  socket.on("close", () => {
    isClosed = true;
    closed.resolve();
  });
  const received = () => Buffer.concat(chunks);
  return {
    socket,
    received,
    text: () => received().toString("latin1"),
    closed: closed.promise,
    isClosed: () => isClosed,
  };
}

/** The client's half of the HTTP/2 greeting: preface and an empty SETTINGS frame. */
export const preface = Buffer.from("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");

/** An HTTP/2 frame: RFC 9113, section 4.1. */
export function frame(type: number, flags: number, stream: number, payload: Uint8Array = new Uint8Array(0)): Buffer {
  const head = Buffer.alloc(9);
  head.writeUIntBE(payload.length, 0, 3);
  head[3] = type;
  head[4] = flags;
  head.writeUInt32BE(stream, 5);
  return Buffer.concat([head, payload]);
}

/** A message of gRPC or of a Connect stream: flags, length, bytes. */
export function envelope(bytes: Uint8Array, flags = 0, length = bytes.length): Buffer {
  const head = Buffer.alloc(5);
  head[0] = flags;
  head.writeUInt32BE(length, 1);
  return Buffer.concat([head, bytes]);
}

/**
 * What came back of a request. `grpcStatus` is from the trailers, or the headers where there are no others; `reset` is the code
 * with which the stream ends at last.
 */
export type Answered = {
  status: number;
  headers: IncomingHttpHeaders;
  body: Buffer;
  grpcStatus: string | undefined;
  /** Whether the headers ended the stream, which is what gRPC calls trailers only. */
  isHeadersOnly: boolean;
  reset: Promise<number | undefined>;
};

/** Sends one HTTP/2 request on the session and resolves when its answer ends. `end: false` leaves its body open. */
export function request2(
  session: http2.ClientHttp2Session,
  headers: Record<string, string>,
  body: Uint8Array = new Uint8Array(0),
  { end = true }: { end?: boolean } = {},
): Promise<Answered> {
  return new Promise((resolve, reject) => {
    const stream = session.request({ ":method": "POST", ...headers }, { endStream: false });
    const chunks: Buffer[] = [];
    const reset = Promise.withResolvers<number | undefined>();
    let head: IncomingHttpHeaders = {};
    let trailers: IncomingHttpHeaders = {};
    let failed: Error | undefined;
    let isHeadersOnly = false;
    stream.on("response", (received, flags) => {
      head = received;
      isHeadersOnly = (flags & http2.constants.NGHTTP2_FLAG_END_STREAM) !== 0;
    });
    stream.on("trailers", (received) => {
      trailers = received;
    });
    stream.on("data", (chunk: Buffer) => chunks.push(chunk));
    stream.on("error", (error) => {
      failed = error;
    });
    stream.on("end", () => {
      if (head[":status"] === undefined) return;
      const grpcStatus = (trailers["grpc-status"] ?? head["grpc-status"]) as string | undefined;
      const status = Number(head[":status"]);
      resolve({ status, headers: head, body: Buffer.concat(chunks), grpcStatus, isHeadersOnly, reset: reset.promise });
    });
    stream.on("close", () => {
      reset.resolve(stream.rstCode);
      reject(failed ?? new Error(`no answer, reset with ${stream.rstCode}`));
    });
    if (end) stream.end(body);
    else stream.write(body);
  });
}

/** Opens an HTTP/2 session. */
export async function connect2(
  port: number,
  options: http2.ClientSessionOptions = {},
): Promise<http2.ClientHttp2Session> {
  const session = http2.connect(`http://127.0.0.1:${port}`, options);
  session.on("error", () => {});
  await new Promise((resolve) => session.once("connect", resolve));
  return session;
}
