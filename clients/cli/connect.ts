/** The way to a server: generated clients over Connect or gRPC, with the caller's key. */
import type { DescService } from "@bufbuild/protobuf";
import { type Client, createClient, type Interceptor, type Transport } from "@connectrpc/connect";
import { createConnectTransport, createGrpcTransport } from "@connectrpc/connect-node";
import type { Settings } from "./settings.ts";

/** Makes a client of a service. */
export type Clients = <T extends DescService>(service: T) => Client<T>;

const maxMessageBytes = 16 << 20;

/** Clients that speak Connect over HTTP/1.1, which every proxy lets through. */
export const connectClients = (settings: Pick<Settings, "url" | "key">): Clients =>
  over(createConnectTransport({ httpVersion: "1.1", ...common(settings) }));

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
