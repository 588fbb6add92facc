import { isIP, type Socket } from "node:net";
import { openAllowance } from "./allow.ts";
import { dial } from "./connection.ts";
import { within } from "./deadline.ts";
import { denied } from "./error.ts";
import { openGuard } from "./guard.ts";
import { type Resolve, resolveByQuery, resolveBySystem } from "./resolve.ts";
import { isHostName } from "./target.ts";

/** Where a connection goes: a name in lower-case ASCII without a trailing dot, or an address without brackets. */
export type Place = { readonly host: string; readonly port: number };

/**
 * Opens a TCP connection in the clear, for what speaks something else than HTTP: to what the guard lets through and to nothing else. The socket is the caller's
 * to close.
 *
 * @throws EgressError `denied`, `unreachable`, `timeout` or `aborted`.
 */
export type OpenSocket = (place: Place, timeoutMs: number, signal: AbortSignal) => Promise<Socket>;

/** How a place is written in a list of what may be reached. */
export const asEntry = ({ host, port }: Place): string => (isIP(host) === 6 ? `[${host}]:${port}` : `${host}:${port}`);

/** @throws Error naming a bad entry of `allow`; see `openEgress`. */
export function openSockets({
  allow,
  resolve,
}: {
  readonly allow: readonly string[];
  readonly resolve?: Resolve | undefined;
}): OpenSocket {
  const resolvers = { listed: resolve ?? resolveBySystem, other: resolve ?? resolveByQuery() };
  const guard = openGuard(openAllowance(allow), resolvers, "allowed");
  return ({ host, port }, timeoutMs, signal) => {
    const literal = isIP(host) !== 0;
    if (!literal && !isHostName(host)) throw denied("the host is not a valid name");
    const target = { secure: false, host, literal, port, origin: asEntry({ host, port }), path: "" };
    const stop = { kind: "aborted", message: "the connection was given up" } as const;
    const late = { kind: "timeout", message: "connecting took too long" } as const;
    return within(timeoutMs, late, [{ signal, stop }], async (inTime) =>
      dial(target, await guard(target, inTime), "http/1.1", undefined, inTime),
    );
  };
}
