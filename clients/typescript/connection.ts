/** The way to a server, and clients of its services over it. */
import type { DescService, MessageInitShape } from "@bufbuild/protobuf";
import { type CallOptions, type Client, createClient, type Interceptor, type Transport } from "@connectrpc/connect";
import { afterTurn, environment, findTraceApi, transportsTo } from "#platform";
import { coalescing } from "./coalesce.ts";
import { resuming } from "./resume.ts";
import { idempotencyKeys, retries } from "./retry.ts";
import { anySignal } from "./time.ts";
import { type TraceApi, traceContext } from "./trace.ts";
import { typing } from "./typed-errors.ts";

export type ConnectOptions = {
  /** Where the server listens, such as `http://127.0.0.1:6658`. Default: the variable MOLTWIRE_URL, or that. */
  readonly url?: string;
  /** The caller's key. Default: the variable MOLTWIRE_API_KEY. */
  readonly apiKey?: string;
  /**
   * How long a unary call may take, with all its attempts, unless it says so itself by `timeoutMs`. 0: for ever. Default 90,000, longer than any call waits. Not of
   * SubmitTask, whose deadline becomes the task's: a task takes as long as its contract lets it.
   */
  readonly timeoutMs?: number;
  /** How often a unary call is sent at most, and a feed that has not begun. Default 5; 1: never again. */
  readonly maxAttempts?: number;
  /**
   * Whether unary calls that are made in one turn of the event loop are sent together, as one batch, which costs a fraction of as many requests; each is answered, retried
   * and refused by itself all the same. Calls that may wait for others go by themselves. Default true.
   */
  readonly coalesce?: boolean;
  /** The `traceparent` of every call that has none, or who knows it. Default: that of the span which is active in OpenTelemetry. */
  readonly traceparent?: string | (() => string | undefined);
  /** The module @opentelemetry/api. Default: in Node that which is installed, if one is; in browsers none. */
  readonly openTelemetry?: TraceApi;
  /** Hears of each failure before the call is sent again, and before a feed is opened anew. Default: nobody. */
  readonly onProblem?: (error: unknown) => void;
};

/** The way to a server for one key, which areas and clients share. */
export type Connection = { readonly transport: Transport };

const defaultUrl = "http://127.0.0.1:6658";
const defaultTimeoutMs = 90_000;
const defaultMaxAttempts = 5;

/** Opens nothing yet: that is done by the first call, and again whenever the connection breaks. */
export function open(options: ConnectOptions = {}): Connection {
  const { url = environment("MOLTWIRE_URL") ?? defaultUrl, apiKey = environment("MOLTWIRE_API_KEY") } = options;
  const { timeoutMs = defaultTimeoutMs, maxAttempts = defaultMaxAttempts, onProblem = () => {} } = options;
  const { coalesce = true } = options;
  let found: Promise<TraceApi | undefined> | undefined;
  const traceApi = () => (options.openTelemetry ? Promise.resolve(options.openTelemetry) : (found ??= findTraceApi()));
  const transportOf = transportsTo(url);
  const withKey: Interceptor = (next) => (request) => {
    if (apiKey !== undefined) request.header.set("authorization", `Bearer ${apiKey}`);
    return next(request);
  };
  // The first is the outermost: all attempts of a call have its key and its trace.
  const interceptors = [
    traceContext(options.traceparent, traceApi),
    idempotencyKeys,
    retries(maxAttempts, onProblem),
    withKey,
    ...(coalesce ? [coalescing(transportOf([]), afterTurn)] : []),
  ];
  const transport = resuming(transportOf(interceptors), maxAttempts, onProblem);
  return { transport: typing(withDeadline(transport, timeoutMs)) };
}

const withDeadline = (inner: Transport, timeoutMs: number): Transport => ({
  unary: (method, signal, ownMs, ...rest) => {
    const isTask = method.name === "SubmitTask";
    return inner.unary(method, signal, ownMs ?? (isTask || timeoutMs === 0 ? undefined : timeoutMs), ...rest);
  },
  stream: (...call) => inner.stream(...call),
});

/**
 * A client of any service. Server streams hang up when their loop is left; feeds resume by themselves.
 *
 * @example
 * ```ts
 * import { clientOf, open } from "@moltwire/client";
 * import { TextOperation, TextService } from "@moltwire/client/gen/moltwire/text/v1/text_service_pb";
 *
 * const text = clientOf(open({ url, apiKey }), TextService);
 * const { result } = await text.process({ operation: TextOperation.WORD_COUNT, input: { case: "text", value: "two words" } });
 * console.log(result.case, result.value); // wordCount 2
 * ```
 */
export function clientOf<S extends DescService>({ transport }: Connection, service: S): Client<S> {
  const client: Record<string, unknown> = { ...createClient(service, transport) };
  for (const { localName, methodKind } of service.methods) {
    if (methodKind !== "server_streaming") continue;
    const call = client[localName] as Call;
    client[localName] = (request: never, options: CallOptions = {}) => hangingUp(call, request, options);
  }
  return client as Client<S>;
}

type Call = (request: MessageInitShape<never>, options: CallOptions) => AsyncIterable<unknown>;

async function* hangingUp(call: Call, request: never, options: CallOptions): AsyncGenerator<unknown> {
  const left = new AbortController();
  try {
    yield* call(request, { ...options, signal: anySignal(options.signal, left.signal) });
  } finally {
    left.abort();
  }
}
