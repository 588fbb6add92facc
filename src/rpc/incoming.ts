// A request of node:http or node:http2 as Connect's handlers take it.

import { Code, ConnectError, type ContextValues } from "@connectrpc/connect";
import type { UniversalServerRequest } from "@connectrpc/connect/protocol";
import type { RawRequest, RawResponse } from "./answer.ts";

/** All but the body; `release` says that the call is over, so that its connection's end means nothing to it. */
export type Incoming = Omit<UniversalServerRequest, "body"> & { release(): void };

/**
 * The request as Connect's handlers take it. Its signal is aborted when the caller leaves before `release`, and only then: every
 * abort of a call that is over would cost a stack trace.
 *
 * @throws ConnectError `invalid_argument` if it names no valid host and path.
 */
export function incoming(request: RawRequest, response: RawResponse, contextValues: ContextValues): Incoming {
  const { signal, release } = leaveSignal(request, response);
  return {
    httpVersion: request.httpVersion,
    method: request.method ?? "",
    url: urlOf(request),
    header: webHeaders(request.headers),
    signal,
    contextValues,
    release,
  };
}

/** The whole address of a request. Throws `invalid_argument` if it names no valid host and path. */
export function urlOf(request: RawRequest): string {
  const isEncrypted = "encrypted" in request.socket && request.socket.encrypted === true;
  const authority = "authority" in request ? request.authority : request.headers.host;
  const base = `${isEncrypted ? "https" : "http"}://${authority ?? ""}`;
  try {
    return new URL(request.url ?? "", base).toString();
  } catch {
    throw new ConnectError("the request names no valid host and path", Code.InvalidArgument);
  }
}

/** The headers for who wants them as the web has them; HTTP/2's pseudo-headers are left out. */
export function webHeaders(headers: RawRequest["headers"]): Headers {
  const web = new Headers();
  for (const name of Object.keys(headers)) {
    const value = headers[name];
    if (value === undefined || name.startsWith(":")) continue;
    if (typeof value === "string") web.append(name, value);
    else for (const each of value) web.append(name, each);
  }
  return web;
}

function leaveSignal(request: RawRequest, response: RawResponse): { signal: AbortSignal; release(): void } {
  const controller = new AbortController();
  return { signal: controller.signal, release: whenCallerLeaves(request, response, (why) => controller.abort(why)) };
}

/** Tells when the caller leaves before the answer is whole, also if that is so already. The result ends the watching. */
export function whenCallerLeaves(
  request: RawRequest,
  response: RawResponse,
  tell: (why: ConnectError) => void,
): () => void {
  // HTTP/1.1 closes a request as soon as it is read, and a response when it is out or its connection is gone.
  const closing = "stream" in request ? request : response;
  const onLeave = () => {
    release();
    // The answer is whole, so this is the end of the call, which may be heard of before `release`.
    if (response.writableEnded) return;
    const how = "stream" in request ? ` (HTTP/2 error code ${request.stream.rstCode})` : "";
    tell(new ConnectError(`the caller went away${how}`, Code.Canceled));
  };
  const release = () => {
    closing.off("close", onLeave);
    request.off("error", onLeave);
  };
  closing.on("close", onLeave);
  request.on("error", onLeave);
  // A request of HTTP/2 never says that it is closed; its stream does.
  if (closing.closed || ("stream" in request && (request.stream.closed || request.stream.destroyed))) onLeave();
  return release;
}
