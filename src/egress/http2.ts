import { type ClientHttp2Session, connect, constants, type IncomingHttpHeaders } from "node:http2";
import type { Socket } from "node:net";
import type { ConnectionLimits } from "./connection.ts";
import { EgressError, stopped } from "./error.ts";
import { flatten, type Head, redirected } from "./exchange.ts";
import { type Flow, openFlow } from "./flow.ts";
import type { EgressRequest } from "./request.ts";
import type { Streaming } from "./streaming.ts";
import type { Target } from "./target.ts";

/** One open HTTP/2 connection, serving one call at a time. */
export type Http2Connection = {
  readonly session: ClientHttp2Session;
  /** Whether a call is under way. */
  busy: boolean;
  /** Limit of an answer's headers, and of its trailers. Said to the other side too, but that need not obey. */
  readonly maxHeaderBytes: number;
  /** Whether it may serve another call: still open, not told to go, not too old. */
  readonly usable: () => boolean;
  /** Closes it now, whatever it is doing. */
  readonly destroy: () => void;
};

/** Speaks HTTP/2 on a socket that was opened to a checked address. The session never opens one by itself. */
export function openHttp2(target: Target, socket: Socket, limits: ConnectionLimits): Http2Connection {
  const session = connect(target.origin, {
    createConnection: () => socket,
    maxReservedRemoteStreams: 0,
    settings: { enablePush: false, maxHeaderListSize: limits.maxHeaderBytes },
  });
  let aged = false;
  let leaving = false;
  const age = setTimeout(() => {
    aged = true;
  }, limits.maxAgeMs).unref();
  const destroy = () => {
    clearTimeout(age);
    session.destroy();
    socket.destroy();
  };
  const connection: Http2Connection = {
    session,
    busy: false,
    maxHeaderBytes: limits.maxHeaderBytes,
    usable: () => !aged && !leaving && !session.closed && !session.destroyed,
    destroy,
  };
  session.on("goaway", () => {
    leaving = true;
  });
  // A call under way hears of it by its own stream.
  session.on("error", destroy);
  session.once("close", destroy);
  session.setTimeout(limits.idleMs, () => {
    if (!connection.busy) destroy();
  });
  return connection;
}

/**
 * One request on an open connection; resolves with the head of its answer, whose body then flows.
 *
 * @throws EgressError; `sent` is true from when the request is handed to the connection, unless the other side says that it took no notice of it.
 */
export const streamHttp2 = (
  connection: Http2Connection,
  head: Head,
  request: EgressRequest,
  signal: AbortSignal,
): Promise<Streaming> =>
  new Promise((resolve, reject) => {
    if (signal.aborted) return reject(stopped(signal, false));
    let status: number | undefined;
    let flow: Flow | undefined;
    let trailers: Readonly<Record<string, string>> = {};
    let stream: ReturnType<ClientHttp2Session["request"]>;
    try {
      stream = connection.session.request({
        ":method": request.method,
        ":path": head.path,
        ...head.headers,
        // What gRPC demands; it belongs to the connection, so callers cannot give it.
        te: "trailers",
      });
    } catch (cause) {
      return reject(new EgressError("unreachable", "the connection was lost before an answer", { cause }));
    }
    connection.busy = true;
    const leave = () => {
      connection.busy = false;
      signal.removeEventListener("abort", onAbort);
    };
    const fail = (error: EgressError) => {
      leave();
      flow?.fail(error);
      reject(error);
      connection.destroy();
    };
    const onAbort = () => fail(stopped(signal, true, status));
    const onLost = (cause: unknown) => fail(lost(cause, stream.rstCode, status));
    signal.addEventListener("abort", onAbort, { once: true });
    stream.on("response", (received: IncomingHttpHeaders & { ":status"?: number }) => {
      const code = received[":status"] ?? 0;
      status = code;
      const headers = flatten(Object.fromEntries(Object.entries(received).filter(([name]) => !name.startsWith(":"))));
      if (bytesOf(received) > connection.maxHeaderBytes) return fail(tooLarge(code));
      if (code >= 300 && code < 400) return fail(redirected(code));
      const body = openFlow(request.maxResponseBytes, code, {
        pause: () => stream.pause(),
        resume: () => stream.resume(),
      });
      flow = body;
      stream.on("data", (chunk: Buffer) => {
        if (!body.push(chunk)) connection.destroy();
      });
      resolve({ status: code, headers, flow: body, trailers: () => trailers, leave });
    });
    stream.on("trailers", (received) => {
      if (bytesOf(received) > connection.maxHeaderBytes) return fail(tooLarge(status));
      trailers = flatten(received);
    });
    // A reset without an error code looks like an end; gRPC tells them apart by its trailers.
    stream.on("end", () => {
      if (stream.rstCode === constants.NGHTTP2_NO_ERROR && flow) flow.end();
    });
    stream.on("error", onLost);
    stream.on("close", () => {
      if (!flow?.ended()) onLost(undefined);
    });
    stream.end(request.body);
  });

const bytesOf = (headers: IncomingHttpHeaders): number =>
  Object.entries(headers).reduce((sum, [name, value]) => sum + name.length + String(value).length, 0);

const tooLarge = (status: number | undefined): EgressError =>
  new EgressError("too-large", "the answer's headers are too large", { sent: true, status });

function lost(cause: unknown, rstCode: number | undefined, status: number | undefined): EgressError {
  // RFC 9113, section 8.7: such a request was not processed in any way.
  if (rstCode === constants.NGHTTP2_REFUSED_STREAM)
    return new EgressError("unreachable", "the other side refused the request unseen", { cause, status });
  const details = { sent: true, status, cause };
  if ((cause as NodeJS.ErrnoException | undefined)?.code === "ERR_HTTP2_ERROR")
    return new EgressError("bad-response", "the answer is not valid HTTP/2", details);
  const when = status === undefined ? "before an answer" : "in the middle of the answer";
  return new EgressError("unreachable", `the connection was lost ${when}`, details);
}
