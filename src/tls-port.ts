// The same port over TLS: who is there is settled by the handshake, what they speak by ALPN; all else is the cleartext port's.

import type { Socket } from "node:net";
import tls, { type SecureContextOptions, type TlsOptions } from "node:tls";
import type { ClientAuth } from "./config.ts";
import { defaultListenLimits, type ListenLimits, openPort, type Port, sniff } from "./listen.ts";

/** A port that speaks TLS only, and can be given other certificates while it is open. */
export type TlsPort = Port & {
  /** New connections get these from now on; those there are go on with what they have. Throws, and changes nothing, if they cannot be used. */
  use(context: SecureContextOptions): void;
};

/** What a TLS port shows, and whom it lets in. */
export type TlsPortOptions = {
  readonly context: SecureContextOptions;
  /** Whether a client needs a certificate of the context's `ca`, or is asked for one and let in without; one of others is refused in both cases. */
  readonly clientCertificates: ClientAuth | false;
  /** Told why a handshake failed. */
  readonly onRefused?: (error: Error, address: string | undefined) => void;
};

/** The same port as `cleartextServer`, over TLS 1.2 or newer. A client that offers no ALPN speaks HTTP/1.1. */
export function tlsServer(options: TlsPortOptions, given: Partial<ListenLimits> = {}): TlsPort {
  const limits = { ...defaultListenLimits, ...given };
  const servers = new Set<tls.Server>();
  let { context } = options;
  const port = openPort(limits, ({ undecided, serve }) => {
    const handshakes = new Map<string, Socket>();
    const server = tls.createServer({
      ...tlsSettings(context),
      ALPNProtocols: ["h2", "http/1.1"],
      requestCert: options.clientCertificates !== false,
      rejectUnauthorized: options.clientCertificates === "require",
      handshakeTimeout: limits.firstBytesTimeoutMs,
    });
    servers.add(server);
    server.on("tlsClientError", (error, socket) => {
      options.onRefused?.(error, socket.remoteAddress);
      socket.destroy();
    });
    server.on("secureConnection", (socket) => {
      const connection = handshakes.get(peerOf(socket));
      handshakes.delete(peerOf(socket));
      if (options.clientCertificates === "request" && !socket.authorized && showsCertificate(socket)) {
        options.onRefused?.(new Error(`its certificate: ${socket.authorizationError}`), socket.remoteAddress);
        socket.destroy();
        return;
      }
      undecided.add(socket);
      socket.once("close", () => undecided.delete(socket));
      // ALPN has decided; only a client that says nothing is still to be found out.
      sniff(socket, limits.firstBytesTimeoutMs, () => serve(socket, socket.alpnProtocol === "h2", connection));
    });
    return {
      accept(socket) {
        // Node does not say which connection became which encrypted one.
        const peer = peerOf(socket);
        handshakes.set(peer, socket);
        socket.once("close", () => {
          if (handshakes.get(peer) === socket) handshakes.delete(peer);
        });
        socket.on("error", () => socket.destroy());
        server.emit("connection", socket);
      },
      refuse() {
        for (const socket of handshakes.values()) socket.destroy();
      },
    };
  });
  return {
    ...port,
    use(next) {
      tls.createSecureContext(tlsSettings(next));
      context = next;
      for (const server of servers) server.setSecureContext(tlsSettings(next));
    },
  };
}

const tlsSettings = (context: SecureContextOptions): TlsOptions => ({ ...context, minVersion: "TLSv1.2" });
const showsCertificate = (socket: tls.TLSSocket): boolean => Object.keys(socket.getPeerCertificate()).length > 0;
const peerOf = (socket: Socket): string => `${socket.remoteAddress} ${socket.remotePort}`;
