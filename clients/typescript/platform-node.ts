/** What Node does in its own way. Browsers have platform-web.ts. */
import type { Interceptor, Transport } from "@connectrpc/connect";
import { createConnectTransport, Http2SessionManager } from "@connectrpc/connect-node";
import type { TraceApi } from "./trace.ts";

const maxMessageBytes = 16 << 20;

/** One HTTP/2 connection for all transports of a server, which is opened at the first call and again whenever it breaks. */
export function transportsTo(baseUrl: string): (interceptors: Interceptor[]) => Transport {
  // A connection that died without a word is noticed within some 20 s.
  const sessionManager = new Http2SessionManager(baseUrl, { pingIntervalMs: 15_000, pingTimeoutMs: 5_000 });
  const options = { baseUrl, httpVersion: "2", readMaxBytes: maxMessageBytes, sessionManager } as const;
  return (interceptors) => createConnectTransport({ ...options, interceptors });
}

/** When the turn of the event loop is over, and what came in with it is read. */
export const afterTurn = (run: () => void): void => void setImmediate(run);

/** A variable of the environment. */
export const environment = (name: string): string | undefined => process.env[name];

/** Calls back on SIGTERM; gives what stops listening. */
export function onTerminate(listener: () => void): () => void {
  process.once("SIGTERM", listener);
  return () => void process.removeListener("SIGTERM", listener);
}

/** @opentelemetry/api, where the program has it. */
export const findTraceApi = (): Promise<TraceApi | undefined> =>
  import("@opentelemetry/api").then(
    ({ context, propagation }) => ({ context, propagation }),
    () => undefined,
  );
