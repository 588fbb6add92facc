/** The way to a server: generated clients over Connect or gRPC, with the caller's key. */
import type { DescMessage, DescMethodUnary, DescService, MessageShape } from "@bufbuild/protobuf";
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
