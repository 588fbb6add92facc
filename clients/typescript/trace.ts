/** W3C trace context: the calls of a program stand in its own traces. */
import type { Interceptor } from "@connectrpc/connect";

/** What is used of @opentelemetry/api. */
export type TraceApi = {
  readonly context: { active(): unknown };
  readonly propagation: {
    inject(
      context: unknown,
      carrier: Headers,
      setter: { set(carrier: Headers, key: string, value: string): void },
    ): void;
  };
};

/** The header of a call, if it has none: what is given, or else the span that is active in OpenTelemetry. */
export const traceContext =
  (given: string | (() => string | undefined) | undefined, api: () => Promise<TraceApi | undefined>): Interceptor =>
  (next) =>
  async (request) => {
    if (request.header.has("traceparent")) return next(request);
    const own = typeof given === "function" ? given() : given;
    if (own) request.header.set("traceparent", own);
    else inject(await api(), request.header);
    return next(request);
  };

/** Only `traceparent`: the server reads nothing else, and browsers may send no other header. */
function inject(api: TraceApi | undefined, header: Headers): void {
  api?.propagation.inject(api.context.active(), header, {
    set: (carrier, key, value) => {
      if (key.toLowerCase() === "traceparent") carrier.set(key, value);
    },
  });
}
