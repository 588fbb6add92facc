import type { Dispatcher } from "undici";
import type { Connection } from "./connection.ts";
import { EgressError, stopped } from "./error.ts";
import { failure, flatten, type Head, redirected } from "./exchange.ts";
import { type Flow, openFlow } from "./flow.ts";
import type { EgressRequest } from "./request.ts";

/** An answer whose head has come and whose body flows. */
export type Streaming = {
  readonly status: number;
  /** Names in lower case; repeated headers joined with a comma. */
  readonly headers: Readonly<Record<string, string>>;
  readonly flow: Flow;
  /** What came after the body; complete once it has ended. */
  readonly trailers: () => Readonly<Record<string, string>>;
  /** To be called when the reader is done with it, whole or not. */
  readonly leave: () => void;
};

/**
 * One request on an open connection; resolves with the head of its answer, whose body then flows.
 *
 * @throws EgressError; `sent` is true from just before the first byte of the request is written.
 */
export const streamHttp1 = (
  connection: Connection,
  head: Head,
  request: EgressRequest,
  signal: AbortSignal,
): Promise<Streaming> =>
  new Promise((resolve, reject) => {
    let sent = false;
    let begun = false;
    let status: number | undefined;
    let flow: Flow | undefined;
    let trailers: Readonly<Record<string, string>> = {};

    const leave = () => signal.removeEventListener("abort", onAbort);
    const fail = (error: EgressError) => {
      leave();
      flow?.fail(error);
      reject(error);
      connection.destroy();
    };
    const onAbort = () => fail(stopped(signal, sent, status));

    const handler: Dispatcher.DispatchHandler = {
      onRequestStart: () => {
        sent = true;
      },
      onResponseStarted: () => {
        begun = true;
      },
      onResponseStart: (controller, code, received) => {
        if (code < 200) return;
        status = code;
        if (code >= 300 && code < 400) return fail(redirected(code));
        flow = openFlow(request.maxResponseBytes, code, {
          pause: () => controller.pause(),
          resume: () => controller.resume(),
        });
        resolve({ status: code, headers: flatten(received), flow, trailers: () => trailers, leave });
      },
      onResponseData: (_controller, chunk) => {
        // The client reuses its buffer.
        if (!flow?.push(Buffer.from(chunk))) connection.destroy();
      },
      onResponseEnd: (_controller, received) => {
        trailers = flatten(received ?? {});
        flow?.end();
      },
      onResponseError: (_controller, cause: NodeJS.ErrnoException) => {
        const details = { sent, status };
        if (flow && cause.name !== "HTTPParserError")
          return fail(
            new EgressError("unreachable", "the connection was lost in the middle of the answer", {
              ...details,
              cause,
            }),
          );
        fail(failure(cause, begun, details));
      },
    };

    if (signal.aborted) return onAbort();
    signal.addEventListener("abort", onAbort, { once: true });
    const body = typeof request.body === "string" ? Buffer.from(request.body) : request.body;
    connection.client.dispatch(
      { ...head, method: request.method, body: body && body.length > 0 ? Buffer.from(body) : null },
      handler,
    );
  });
