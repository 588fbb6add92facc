import { openAllowance } from "./allow.ts";
import { type Connection, openConnection } from "./connection.ts";
import { decodeContent } from "./content.ts";
import { within } from "./deadline.ts";
import { EgressError, type Stop } from "./error.ts";
import { type Answer, exchange, type Head } from "./exchange.ts";
import { openGuard } from "./guard.ts";
import { openIdle } from "./idle.ts";
import { type EgressRequest, requestHeaders } from "./request.ts";
import { type Resolve, resolveByQuery, resolveBySystem } from "./resolve.ts";
import { openSlots } from "./slots.ts";
import { parseTarget, type Target } from "./target.ts";

/** A whole answer, whatever its status below 300 or from 400. */
export type EgressResponse = {
  readonly status: number;
  /** Names in lower case; repeated headers joined with a comma. */
  readonly headers: Readonly<Record<string, string>>;
  /** Decompressed; ≤ `maxResponseBytes`. */
  readonly body: Uint8Array;
  /** Whether there was more body than kept; only with `onOverflow: "truncate"`. */
  readonly truncated: boolean;
};

/**
 * The only way out to the network. Reaches public addresses and what the operator allowed, nothing else: in any
 * spelling, through any DNS answer, after any redirect (none is followed). Uses no proxy of the environment.
 */
export type Egress = {
  /**
   * One request and its whole answer in memory. Never repeats a request that may have been sent.
   *
   * @throws EgressError; its `sent` says whether the request may have reached the other side.
   */
  readonly fetch: (request: EgressRequest) => Promise<EgressResponse>;
  /**
   * For when an endpoint is registered or changed: resolves if the URL may be called as far as can be known now.
   * Resolves the name too; one that does not resolve now (within 5 s) is fine, as it is checked at every connect.
   *
   * @throws EgressError `denied`.
   */
  readonly check: (url: string) => Promise<void>;
  /** Ends all calls (`aborted`), closes all connections, and refuses new calls. */
  readonly close: () => Promise<void>;
};

/** Settings of {@link openEgress}; all but `allow` have defaults. */
export type EgressOptions = {
  /** Entries as `parseAllow` gives them: CIDRs, addresses, host names, the last two with or without a port. */
  readonly allow: readonly string[];
  /** `allow-listed`: plain http only to what `allow` names; `allowed` (default): to all that may be reached. */
  readonly insecureHttp?: "allowed" | "allow-listed";
  /** Replaces DNS, for tests. `localhost` is never asked for. */
  readonly resolve?: Resolve;
  /** PEM certificates of authorities to trust instead of the usual ones. */
  readonly ca?: string;
  /** Calls at once to one origin, default 16; each holds one connection. */
  readonly maxConnectionsPerOrigin?: number;
  /** Calls waiting for one origin, default 256; beyond that a call is `busy`. */
  readonly maxWaitingPerOrigin?: number;
  /** Calls running and waiting in all, default 2,048. */
  readonly maxCalls?: number;
  /** Connections kept open without a call, default 256. */
  readonly maxIdleConnections?: number;
  /** How long a connection is kept without a call, default 10 s. */
  readonly idleMs?: number;
  /** How long a connection is used for new calls, default 5 min. */
  readonly maxConnectionAgeMs?: number;
  /** For DNS, TCP and TLS together, within the call's own time; default 10 s. */
  readonly connectTimeoutMs?: number;
  /** Limit of an answer's headers, default 16 KiB. */
  readonly maxHeaderBytes?: number;
  /** Told of each call that ended how: the class of its status, as `2xx`, or the kind of its {@link EgressError}. */
  readonly onResult?: (result: string) => void;
};

const checkTimeoutMs = 5_000;

const tooSlow = (what: string): Stop => ({ kind: "timeout", message: `${what} took too long` });

const aborted: Stop = { kind: "aborted", message: "the call was aborted" };
const ended: Stop = { kind: "aborted", message: "outgoing calls have ended" };

/**
 * Opens the way out.
 *
 * @throws Error naming a bad entry of `allow`.
 */
export const openEgress = (options: EgressOptions): Egress => {
  const allow = openAllowance(options.allow);
  const resolvers = { listed: options.resolve ?? resolveBySystem, other: options.resolve ?? resolveByQuery() };
  const guard = openGuard(allow, resolvers, options.insecureHttp ?? "allowed");
  const slots = openSlots({
    perKey: options.maxConnectionsPerOrigin ?? 16,
    waitingPerKey: options.maxWaitingPerOrigin ?? 256,
    total: options.maxCalls ?? 2_048,
  });
  const idle = openIdle(options.maxIdleConnections ?? 256);
  const connectTimeoutMs = options.connectTimeoutMs ?? 10_000;
  const limits = {
    idleMs: options.idleMs ?? 10_000,
    maxAgeMs: options.maxConnectionAgeMs ?? 300_000,
    maxHeaderBytes: options.maxHeaderBytes ?? 16_384,
    ca: options.ca,
  };
  const closing = new AbortController();
  const life = { signal: closing.signal, stop: ended };

  const connect = (target: Target, signal: AbortSignal): Promise<Connection> =>
    within(connectTimeoutMs, tooSlow("connecting"), [{ signal }], async (connecting) => {
      const addresses = await guard(target, connecting);
      return openConnection(target, addresses, limits, connecting);
    });

  const converse = async (target: Target, head: Head, request: EgressRequest, signal: AbortSignal): Promise<Answer> => {
    for (;;) {
      const kept = idle.take(target.origin);
      const connection = kept ?? (await connect(target, signal));
      try {
        const answer = await exchange(connection, head, request, signal);
        idle.give(target.origin, connection);
        return answer;
      } catch (error) {
        // The other side had closed a kept connection before a byte of this request was written: not a failure.
        const untouched = error instanceof EgressError && error.kind === "unreachable" && !error.sent;
        if (!kept || !untouched) throw error;
      }
    }
  };

  const receive = async (target: Target, head: Head, request: EgressRequest, signal: AbortSignal) => {
    const release = await slots.take(target.origin, signal);
    try {
      return await converse(target, head, request, signal);
    } finally {
      release();
    }
  };

  const fetch: Egress["fetch"] = async (request) => {
    const target = parseTarget(request.url);
    const head = { path: target.path, headers: requestHeaders(request) };
    const parents = request.signal ? [life, { signal: request.signal, stop: aborted }] : [life];
    return within(request.timeoutMs, tooSlow("the call"), parents, async (signal) => {
      const answer = await receive(target, head, request, signal);
      const { status, headers } = answer;
      const decoded = await decodeContent(answer, request.maxResponseBytes);
      if (decoded.truncated && request.onOverflow !== "truncate") {
        throw new EgressError("too-large", "the answer's body is too large", { sent: true, status });
      }
      return { status, headers, ...decoded };
    });
  };

  return {
    fetch: async (request) => {
      try {
        const response = await fetch(request);
        options.onResult?.(`${Math.floor(response.status / 100)}xx`);
        return response;
      } catch (error) {
        options.onResult?.(error instanceof EgressError ? error.kind : "fault");
        throw error;
      }
    },
    check: async (url) => {
      const target = parseTarget(url);
      try {
        await within(checkTimeoutMs, tooSlow("DNS"), [life], (signal) => guard(target, signal));
      } catch (error) {
        if (error instanceof EgressError && error.kind !== "denied") return;
        throw error;
      }
    },
    close: async () => {
      closing.abort();
      idle.close();
    },
  };
};
