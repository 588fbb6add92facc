import type { DescMethod } from "@bufbuild/protobuf";
import { Code, ConnectError, type Interceptor } from "@connectrpc/connect";
import type { App } from "../app.ts";
import { ClosedError, OutcomeUnknownError, OverloadedError, UnavailableError } from "../db/db.ts";
import { Fault, toConnectError } from "../errors.ts";
import { methodName } from "./access.ts";
import { traceKey } from "./caller.ts";

/** The outermost interceptor: whatever is thrown, clients get a reason, also in the middle of a stream. */
export const errorsInterceptor =
  (app: Pick<App, "log">): Interceptor =>
  (next) =>
  async (request) => {
    const fail = (error: unknown) => {
      const { traceId } = request.contextValues.get(traceKey);
      return asConnectError(app, error, request.method, traceId, request.signal);
    };
    try {
      const response = await next(request);
      return response.stream ? { ...response, message: failing(response.message, fail) } : response;
    } catch (error) {
      throw fail(error);
    }
  };

async function* failing<T>(messages: AsyncIterable<T>, fail: (error: unknown) => ConnectError): AsyncGenerator<T> {
  try {
    yield* messages;
  } catch (error) {
    throw fail(error);
  }
}

/**
 * What clients get for an error. One that nobody expected is logged, and its caller learns only the trace id. `signal` is that
 * of the call: its deadline gets a reason, and a caller who left is nobody's fault.
 */
export function asConnectError(
  app: Pick<App, "log">,
  error: unknown,
  method: DescMethod,
  traceId: string,
  signal: AbortSignal,
): ConnectError {
  if (error instanceof Fault) return toConnectError(error, traceId);
  if (error instanceof ConnectError) {
    const isOwnDeadline = error.code === Code.DeadlineExceeded && error === signal.reason;
    if (!isOwnDeadline) return error;
    return toConnectError(
      new Fault("DEADLINE_EXCEEDED", "the deadline of the call passed", {}, { cause: error }),
      traceId,
    );
  }
  if (signal.aborted && (error === signal.reason || (error instanceof Error && error.name === "AbortError"))) {
    const { reason } = signal;
    const why = reason instanceof Fault ? reason : ConnectError.from(reason, Code.Canceled);
    return asConnectError(app, why, method, traceId, signal);
  }
  if (error instanceof OverloadedError) {
    return toConnectError(
      new Fault("OVERLOADED", "the server has more waiting than it takes", {}, { retryAfterMs: 1_000, cause: error }),
      traceId,
    );
  }
  if (error instanceof UnavailableError) {
    const message = "the database cannot be reached: nothing was done; try again";
    return toConnectError(
      new Fault("STORAGE_UNAVAILABLE", message, {}, { retryAfterMs: 1_000, cause: error }),
      traceId,
    );
  }
  if (error instanceof OutcomeUnknownError) {
    const message =
      "storage failed at the last moment: whether it was done is not known; repeat it with the same idempotency key";
    return toConnectError(new Fault("OUTCOME_UNKNOWN", message, {}, { cause: error }), traceId);
  }
  if (error instanceof ClosedError)
    return toConnectError(new Fault("SHUTTING_DOWN", "the server is stopping", {}, { cause: error }), traceId);
  app.log.error(
    { err: error, method: methodName(method), trace_id: traceId },
    "a call failed by a fault of the server's own",
  );
  return toConnectError(
    new Fault(
      "INTERNAL",
      `internal fault; the server's log tells more under trace id ${traceId}`,
      {},
      { cause: error },
    ),
    traceId,
  );
}
