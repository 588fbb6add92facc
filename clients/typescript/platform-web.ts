/** What browsers, and whatever else has `fetch`, do in their own way. Node has platform-node.ts. */
import type { Interceptor, Transport } from "@connectrpc/connect";
import { createConnectTransport } from "@connectrpc/connect-web";
import type { TraceApi } from "./trace.ts";

/** By `fetch`. */
export const transportsTo =
  (baseUrl: string) =>
  (interceptors: Interceptor[]): Transport =>
    createConnectTransport({ baseUrl, useBinaryFormat: true, interceptors });

/** When the turn of the event loop is over. */
export const afterTurn = (run: () => void): void => void setTimeout(run, 0);

/** There is none. */
export const environment = (_name: string): string | undefined => undefined;

/** Nobody ends a page so. */
export const onTerminate =
  (_listener: () => void): (() => void) =>
  () => {};

/** To be given with `connect`: a page has no modules that may be missing. */
export const findTraceApi = (): Promise<TraceApi | undefined> => Promise.resolve(undefined);
