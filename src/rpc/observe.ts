import { ConnectError, type Interceptor } from "@connectrpc/connect";
import { codeToString } from "@connectrpc/connect/protocol-connect";
import type { App } from "../app.ts";
import { methodName } from "./access.ts";
import { traceKey } from "./caller.ts";
import { clientAddressKey } from "./client-address.ts";

/** Measures every call and logs those that the server failed. */
export const observeInterceptor =
  (app: Pick<App, "log" | "metrics">): Interceptor =>
  (next) =>
  async (request) => {
    const start = performance.now();
    const method = methodName(request.method);
    const done = (error?: unknown) => {
      const code = error === undefined ? "ok" : codeToString(ConnectError.from(error).code);
      app.metrics.rpc(method, code, (performance.now() - start) / 1000);
      if (app.log.isLevelEnabled("debug")) {
        app.log.debug(
          {
            method,
            code,
            ms: Math.round(performance.now() - start),
            client: request.contextValues.get(clientAddressKey),
            trace_id: request.contextValues.get(traceKey).traceId,
          },
          "call",
        );
      }
    };
    try {
      const response = await next(request);
      if (!response.stream) {
        done();
        return response;
      }
      return { ...response, message: observed(response.message, done) };
    } catch (error) {
      done(error);
      throw error;
    }
  };

async function* observed<T>(messages: AsyncIterable<T>, done: (error?: unknown) => void): AsyncGenerator<T> {
  let failure: unknown;
  try {
    yield* messages;
  } catch (error) {
    failure = error;
    throw error;
  } finally {
    done(failure);
  }
}
