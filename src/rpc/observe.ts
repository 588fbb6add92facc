import type { DescMethod } from "@bufbuild/protobuf";
import { ConnectError, type ContextValues, createContextKey, type Interceptor } from "@connectrpc/connect";
import { codeToString } from "@connectrpc/connect/protocol-connect";
import type { App } from "../app.ts";
import { Fault } from "../errors.ts";
import { rpcSpan } from "../telemetry/rpc-span.ts";
import { methodName } from "./access.ts";
import { callerKey, traceKey } from "./caller.ts";
import { clientAddressKey } from "./client-address.ts";

/** When a call began, by `performance.now()` and by the clock, and what it speaks: `connect`, `grpc` or `grpc-web`. */
export type Began = { readonly atMs: number; readonly timeMs: number; readonly protocol: string };

/** Set by the gate. */
export const beganKey = createContextKey<Began>({ atMs: 0, timeMs: 0, protocol: "" }, { description: "beginning" });

type Needs = Pick<App, "log" | "metrics" | "telemetry">;

/** Counts and traces a call that is over, wherever it was refused or answered. Once for each call that the gate has seen. */
export function callEnded(app: Needs, method: DescMethod, values: ContextValues, error?: unknown): void {
  const { atMs, timeMs, protocol } = values.get(beganKey);
  const tookMs = performance.now() - atMs;
  const failure = error === undefined ? undefined : ConnectError.from(error);
  const code = failure ? codeToString(failure.code) : "ok";
  const reason = failure?.cause instanceof Fault ? failure.cause.reason : "";
  const name = methodName(method);
  app.metrics.rpc(name, code, reason, tookMs / 1_000);
  const trace = values.get(traceKey);
  app.telemetry?.ended(
    rpcSpan({ method, protocol, trace, caller: values.get(callerKey), code, reason, startMs: timeMs, tookMs }),
  );
  if (app.log.isLevelEnabled("debug")) {
    const client = values.get(clientAddressKey);
    app.log.debug({ method: name, code, ms: Math.round(tookMs), client, trace_id: trace.traceId }, "call");
  }
}

/** Measures every call whose message could be read. */
export const observeInterceptor =
  (app: Needs): Interceptor =>
  (next) =>
  async (request) => {
    const done = (error?: unknown) => callEnded(app, request.method, request.contextValues, error);
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
