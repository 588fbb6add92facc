/** Connections and sessions to a target, in clear or over TLS. */
import http2, { type ClientHttp2Session } from "node:http2";
import net from "node:net";
import tls from "node:tls";
import { frame, preface, type RawConnection, watchRaw } from "../wire-fixtures/raw.ts";
import type { Target } from "./attack.ts";

const host = "127.0.0.1";

/** A connection on which anything may be sent; rejects if it is refused. */
export async function dial({ port, isTls }: Target, protocol: "h2" | "http/1.1"): Promise<RawConnection> {
  const socket = isTls
    ? tls.connect({ host, port, ALPNProtocols: [protocol], rejectUnauthorized: false })
    : net.connect({ host, port });
  const connection = watchRaw(socket);
  await new Promise<void>((resolve, reject) => {
    socket.once(isTls ? "secureConnect" : "connect", resolve).once("error", reject);
    socket.once("close", () => reject(new Error("closed at once")));
  });
  return connection;
}

/** A connection below TLS. */
export async function dialTcp({ port }: Target): Promise<RawConnection> {
  const socket = net.connect({ host, port });
  const connection = watchRaw(socket);
  await new Promise<void>((resolve, reject) => socket.once("connect", resolve).once("error", reject));
  return connection;
}

/** A connection that has sent the HTTP/2 greeting. */
export async function dialHttp2(target: Target): Promise<RawConnection> {
  const connection = await dial(target, "h2");
  connection.socket.write(Buffer.concat([preface, frame(4, 0, 0)]));
  return connection;
}

/** A session that behaves; rejects if it is refused. */
export async function openSession({ port, isTls }: Target): Promise<ClientHttp2Session> {
  const session = http2.connect(`${isTls ? "https" : "http"}://${host}:${port}`, {
    rejectUnauthorized: false,
    maxSessionMemory: 200,
  });
  await new Promise<void>((resolve, reject) => session.once("connect", () => resolve()).once("error", reject));
  session.on("error", () => {});
  return session;
}

/** How a connection ended, or that it did not within the time. */
export async function closedWithin({ closed }: RawConnection, ms: number): Promise<boolean> {
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<boolean>((resolve) => {
    timer = setTimeout(() => resolve(false), ms);
  });
  const isClosed = await Promise.race([closed.then(() => true), late]);
  clearTimeout(timer);
  return isClosed;
}
