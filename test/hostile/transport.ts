import type { Interceptor, Transport } from "@connectrpc/connect";
import { createConnectTransport } from "@connectrpc/connect-node";

/** Calls with a key, by Connect over HTTP/2. */
export function transport(baseUrl: string, key: string): Transport {
  const withKey: Interceptor = (next) => (request) => {
    request.header.set("authorization", `Bearer ${key}`);
    return next(request);
  };
  return createConnectTransport({ baseUrl, httpVersion: "2", interceptors: [withKey] });
}
