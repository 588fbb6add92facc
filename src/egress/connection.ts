import { connect as connectTcp, isIP, type LookupFunction, type Socket } from "node:net";
import { connect as connectTls, TLSSocket } from "node:tls";
import { Client } from "undici";
import { EgressError, stopped } from "./error.ts";
import type { Target } from "./target.ts";

/** One open connection, serving one call at a time. */
export type Connection = {
  readonly client: Client;
  /** Whether it may serve another call: still open, not too old. */
  readonly usable: () => boolean;
  /** Closes it now, whatever it is doing. */
  readonly destroy: () => void;
};

/** Limits of one connection. */
export type ConnectionLimits = {
  /** Closed after lying unused so long. */
  readonly idleMs: number;
  /** Not used again after this, so that a name that moved is followed. */
  readonly maxAgeMs: number;
  readonly maxHeaderBytes: number;
  /** PEM certificates of further authorities, if any. */
  readonly ca: string | undefined;
};

/** Answers the socket's own look-up with the addresses that were checked: there is no second resolution to lie to. */
const pinned =
  (addresses: readonly string[]): LookupFunction =>
  (_host, options, callback) => {
    const answers = addresses.map((address) => ({ address, family: isIP(address) }));
    process.nextTick(() => {
      if (options.all) callback(null, answers);
      else callback(null, answers[0]!.address, answers[0]!.family);
    });
  };

/** What is spoken on a connection, by its name in ALPN. */
export type Protocol = "http/1.1" | "h2";

const openSocket = (
  target: Target,
  addresses: readonly string[],
  protocol: Protocol,
  ca: string | undefined,
): Socket => {
  const where = target.literal
    ? { host: target.host, port: target.port }
    : { host: target.host, port: target.port, lookup: pinned(addresses) };
  if (!target.secure) return connectTcp(where);
  const name = target.literal ? {} : { servername: target.host };
  return connectTls({ ...where, ...name, ALPNProtocols: [protocol], ...(ca === undefined ? {} : { ca }) });
};

const failed = (target: Target, cause: NodeJS.ErrnoException, connected: boolean): EgressError => {
  const code = cause.code && /^[A-Z0-9_]{1,64}$/.test(cause.code) ? ` (${cause.code})` : "";
  const what = target.secure && connected ? "the TLS handshake failed" : "no connection could be made";
  return new EgressError("unreachable", what + code, { cause });
};

/**
 * Connects to one of the checked addresses, TLS handshake included. Whatever fails here, the request has not been sent.
 *
 * @throws EgressError `unreachable`, or what the signal's reason says; `sent` is always false.
 */
export const dial = (
  target: Target,
  addresses: readonly string[],
  protocol: Protocol,
  ca: string | undefined,
  signal: AbortSignal,
): Promise<Socket> =>
  new Promise((resolve, reject) => {
    if (signal.aborted) return reject(stopped(signal, false));
    const socket = openSocket(target, addresses, protocol, ca);
    let connected = false;
    const fail = (error: EgressError) => {
      signal.removeEventListener("abort", onAbort);
      reject(error);
      socket.destroy();
    };
    const onAbort = () => fail(stopped(signal, false));
    const onClose = () => fail(failed(target, new Error("closed"), connected));
    signal.addEventListener("abort", onAbort, { once: true });
    socket.setNoDelay(true);
    // Stays on: an error between here and the client's own listener must not end the process.
    socket.on("error", (cause) => fail(failed(target, cause, connected)));
    socket.once("close", onClose);
    socket.once("connect", () => {
      connected = true;
    });
    socket.once(target.secure ? "secureConnect" : "connect", () => {
      signal.removeEventListener("abort", onAbort);
      socket.removeListener("close", onClose);
      // A server that answers without ALPN speaks HTTP/1.1.
      if (socket instanceof TLSSocket && protocol === "h2" && socket.alpnProtocol !== "h2")
        return fail(new EgressError("unreachable", "the server does not speak HTTP/2"));
      resolve(socket);
    });
  });

/**
 * Opens a connection to one of the checked addresses.
 *
 * @throws EgressError `unreachable`, or what the signal's reason says; `sent` is always false.
 */
export const openConnection = async (
  target: Target,
  addresses: readonly string[],
  limits: ConnectionLimits,
  signal: AbortSignal,
): Promise<Connection> => {
  const socket = await dial(target, addresses, "http/1.1", limits.ca, signal);
  let handedOver = false;
  const client = new Client(target.origin, {
    // The client gets this socket once. It can never connect, and so never resolve or send again, by itself.
    connect: (_options, callback) => {
      const again = handedOver;
      handedOver = true;
      // Not at once: the client is not ready for the answer before this returns.
      queueMicrotask(() => (again ? callback(new Error("the connection is closed"), null) : callback(null, socket)));
    },
    allowH2: false,
    pipelining: 1,
    maxHeaderSize: limits.maxHeaderBytes,
    keepAliveTimeout: limits.idleMs,
    keepAliveMaxTimeout: limits.idleMs,
    // The call's own deadline covers these.
    headersTimeout: 0,
    bodyTimeout: 0,
  });
  let aged = false;
  const age = setTimeout(() => {
    aged = true;
  }, limits.maxAgeMs).unref();
  const destroy = () => {
    clearTimeout(age);
    socket.destroy();
    if (!client.destroyed) client.destroy(null, () => {});
  };
  socket.once("close", destroy);
  return {
    client,
    usable: () => !aged && !socket.destroyed && !client.destroyed,
    destroy,
  };
};
