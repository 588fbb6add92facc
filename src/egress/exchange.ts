import type { Dispatcher } from "undici";
import type { Connection } from "./connection.ts";
import { EgressError, stopped } from "./error.ts";
import type { EgressRequest } from "./request.ts";
import { openSink } from "./sink.ts";

/** A response's body: `truncated` if there was more than was kept. */
export type Content = { readonly body: Uint8Array; readonly truncated: boolean };

/** An answer as it came over the wire, its body not yet decompressed. */
export type Answer = {
  readonly status: number;
  /** Names in lower case; repeated headers joined with a comma. */
  readonly headers: Readonly<Record<string, string>>;
  readonly content: Content;
};

/** What to write, apart from what the caller's request says. */
export type Head = { readonly path: string; readonly headers: Record<string, string> };

/** Headers as they are answered: names in lower case, repeated ones joined with a comma. */
export const flatten = (headers: Record<string, string | string[] | undefined>): Record<string, string> =>
  Object.fromEntries(
    Object.entries(headers).map(([name, value]) => [name, Array.isArray(value) ? value.join(", ") : (value ?? "")]),
  );

/** Redirects are never followed. */
export const redirected = (status: number): EgressError =>
  new EgressError("redirect", `the answer is a redirect (${status}), which is not followed`, { sent: true, status });

/** What went wrong on an open connection, in the caller's terms; `begun` if the first bytes of an answer had come. */
export const failure = (
  cause: NodeJS.ErrnoException,
  begun: boolean,
  details: { sent: boolean; status: number | undefined },
): EgressError => {
  if (cause.code === "UND_ERR_HEADERS_OVERFLOW") {
    return new EgressError("too-large", "the answer's headers are too large", { ...details, cause });
  }
  if (begun || cause.name === "HTTPParserError") {
    return new EgressError("bad-response", "the answer was cut short or is not valid HTTP", { ...details, cause });
  }
  return new EgressError("unreachable", "the connection was lost before an answer", { ...details, cause });
};

/**
 * One request and its whole answer on an open connection. However it fails, the connection is closed; it is also
 * closed after a truncated answer.
 *
 * @throws EgressError; `sent` is true from just before the first byte of the request is written.
 */
export const exchange = (
  connection: Connection,
  head: Head,
  request: EgressRequest,
  signal: AbortSignal,
): Promise<Answer> =>
  new Promise((resolve, reject) => {
    let sent = false;
    let begun = false;
    let status: number | undefined;
    let headers: Record<string, string> = {};
    const sink = openSink(request.maxResponseBytes);

    const leave = () => signal.removeEventListener("abort", onAbort);
    const fail = (error: EgressError) => {
      leave();
      reject(error);
      connection.destroy();
    };
    const finish = (truncated: boolean) => {
      leave();
      resolve({ status: status!, headers, content: { body: sink.bytes(), truncated } });
      if (truncated) connection.destroy();
    };
    const overflow = () => {
      if (request.onOverflow === "truncate") return finish(true);
      fail(new EgressError("too-large", "the answer's body is too large", { sent, status }));
    };
    const onAbort = () => fail(stopped(signal, sent, status));

    const handler: Dispatcher.DispatchHandler = {
      onRequestStart: () => {
        sent = true;
      },
      onResponseStarted: () => {
        begun = true;
      },
      onResponseStart: (_controller, code, received) => {
        if (code < 200) return;
        status = code;
        headers = flatten(received);
        if (code >= 300 && code < 400) fail(redirected(code));
      },
      onResponseData: (_controller, chunk) => {
        if (!sink.write(chunk)) overflow();
      },
      onResponseEnd: () => finish(false),
      onResponseError: (_controller, cause) => fail(failure(cause, begun, { sent, status })),
    };

    if (signal.aborted) return onAbort();
    signal.addEventListener("abort", onAbort, { once: true });
    const body = typeof request.body === "string" ? Buffer.from(request.body) : request.body;
    connection.client.dispatch(
      { ...head, method: request.method, body: body && body.length > 0 ? Buffer.from(body) : null },
      handler,
    );
  });
