/** The way to a server: generated clients over Connect or gRPC, with the caller's key. */
import type {
  DescMessage,
  DescMethodBiDiStreaming,
  DescMethodServerStreaming,
  DescMethodUnary,
  DescService,
  MessageShape,
} from "@bufbuild/protobuf";
import { type Client, createClient, type Interceptor, type Transport } from "@connectrpc/connect";
import { createConnectTransport, createGrpcTransport } from "@connectrpc/connect-node";
import type { Settings } from "./settings.ts";

/** Makes a client of a service. */
export type Clients = <T extends DescService>(service: T) => Client<T>;

const maxMessageBytes = 16 << 20;
const maxWaitMs = 30_000;

/** Clients that speak Connect over HTTP/1.1, which every proxy lets through. */
export const connectClients = (settings: Pick<Settings, "url" | "key">): Clients =>
  over(createConnectTransport({ httpVersion: "1.1", ...common(settings) }));

/**
 * Calls a method once over Connect and waits at most 30 s for its answer. What it may have changed is changed once however often it is called
 * with the same idempotency key.
 */
export async function callOnce<I extends DescMessage, O extends DescMessage>(
  settings: Pick<Settings, "url" | "key">,
  method: DescMethodUnary<I, O>,
  request: MessageShape<I>,
  idempotencyKey?: string,
): Promise<MessageShape<O>> {
  const transport = createConnectTransport({ httpVersion: "1.1", ...common(settings) });
  const headers = idempotencyKey === undefined ? {} : { "idempotency-key": idempotencyKey };
  const { message } = await transport.unary(method, AbortSignal.timeout(maxWaitMs), undefined, headers, request);
  return message;
}

/**
 * Opens a stream: of a method that only answers over Connect, which every proxy lets through; of one that both sides talk on over gRPC, since that
 * needs HTTP/2.
 */
export async function* openStream<I extends DescMessage, O extends DescMessage>(
  settings: Pick<Settings, "url" | "key">,
  method: DescMethodServerStreaming<I, O> | DescMethodBiDiStreaming<I, O>,
  requests: AsyncIterable<MessageShape<I>>,
  { signal, headers }: { readonly signal?: AbortSignal; readonly headers?: Record<string, string> } = {},
): AsyncGenerator<MessageShape<O>> {
  const transport =
    method.methodKind === "bidi_streaming"
      ? createGrpcTransport(common(settings))
      : createConnectTransport({ httpVersion: "1.1", ...common(settings) });
  const ended = new AbortController();
  const until = AbortSignal.any([ended.signal, ...(signal ? [signal] : [])]);
  try {
    const { message } = await transport.stream(method, until, undefined, headers, requests as never);
    yield* message;
  } finally {
    // Whoever has read enough hangs up.
    ended.abort();
  }
}

/** Clients that speak gRPC over HTTP/2. */
export const grpcClients = (settings: Pick<Settings, "url" | "key">): Clients =>
  over(createGrpcTransport(common(settings)));

const over =
  (transport: Transport): Clients =>
  (service) =>
    createClient(service, transport);

const common = ({ url, key }: Pick<Settings, "url" | "key">) => ({
  baseUrl: url,
  readMaxBytes: maxMessageBytes,
  interceptors: key === undefined ? [] : [withKey(key)],
});

const withKey =
  (key: string): Interceptor =>
  (next) =>
  (request) => {
    request.header.set("authorization", `Bearer ${key}`);
    return next(request);
  };
