import { openAllowance } from "./allow.ts";
import { type Connection, dial, openConnection, type Protocol } from "./connection.ts";
import { decodeContent } from "./content.ts";
import { within } from "./deadline.ts";
import { EgressError, type Stop } from "./error.ts";
import { type Answer, exchange, type Head } from "./exchange.ts";
import { openGuard } from "./guard.ts";
import { type Http2Connection, openHttp2, streamHttp2 } from "./http2.ts";
import { type Idle, openIdle } from "./idle.ts";
import { type EgressRequest, requestHeaders } from "./request.ts";
import { type Resolve, resolveByQuery, resolveBySystem } from "./resolve.ts";
import { openSlots } from "./slots.ts";
import { type Streaming, streamHttp1 } from "./streaming.ts";
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

/** An answer whose body is read as it comes. */
export type EgressStream = {
  readonly status: number;
  /** Names in lower case; repeated headers joined with a comma. */
  readonly headers: Readonly<Record<string, string>>;
  /** The body, to be read once; a reader that is slow slows the other side. Throws an EgressError in the middle. */
  readonly body: AsyncIterable<Uint8Array>;
  /** What came after the body; complete once it has been read. */
  readonly trailers: () => Readonly<Record<string, string>>;
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
   * One request whose answer is read as it comes, over HTTP/1.1 or HTTP/2 (in the clear or over TLS). The call lasts until `read` ends, within
   * `timeoutMs`; a body that it leaves unread is given up with its connection. Compressed answers are refused.
   *
   * @throws EgressError as `fetch` (a connection lost in the middle is `unreachable`), and whatever `read` throws.
   */
  readonly stream: <T>(
    request: Omit<EgressRequest, "onOverflow"> & { readonly protocol: Protocol },
    read: (answer: EgressStream) => Promise<T>,
  ) => Promise<T>;
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
  const idle = openIdle<Connection>(options.maxIdleConnections ?? 256);
  const idleHttp2 = openIdle<Http2Connection>(options.maxIdleConnections ?? 256);
  const connectTimeoutMs = options.connectTimeoutMs ?? 10_000;
  const limits = {
    idleMs: options.idleMs ?? 10_000,
    maxAgeMs: options.maxConnectionAgeMs ?? 300_000,
    maxHeaderBytes: options.maxHeaderBytes ?? 16_384,
    ca: options.ca,
  };
  const closing = new AbortController();
  const life = { signal: closing.signal, stop: ended };

  const connecting = <T>(
    target: Target,
    signal: AbortSignal,
    open: (addresses: readonly string[], signal: AbortSignal) => Promise<T>,
  ): Promise<T> =>
    within(connectTimeoutMs, tooSlow("connecting"), [{ signal }], async (inTime) =>
      open(await guard(target, inTime), inTime),
    );

  const connect = (target: Target, signal: AbortSignal): Promise<Connection> =>
    connecting(target, signal, (addresses, inTime) => openConnection(target, addresses, limits, inTime));

  const connectHttp2 = (target: Target, signal: AbortSignal): Promise<Http2Connection> =>
    connecting(target, signal, async (addresses, inTime) =>
      openHttp2(target, await dial(target, addresses, "h2", limits.ca, inTime), limits),
    );

  /** Does it on a kept connection or a new one. Gives the connection too: it is the caller's then. */
  const onConnection = async <C extends Connection | Http2Connection, T>(
    target: Target,
    kept: Idle<C>,
    connectNow: () => Promise<C>,
    work: (connection: C) => Promise<T>,
  ): Promise<{ readonly connection: C; readonly result: T }> => {
    for (;;) {
      const old = kept.take(target.origin);
      const connection = old ?? (await connectNow());
      try {
        return { connection, result: await work(connection) };
      } catch (error) {
        // The other side had closed a kept connection before a byte of this request was written: not a failure.
        const untouched = error instanceof EgressError && error.kind === "unreachable" && !error.sent;
        if (!old || !untouched) throw error;
      }
    }
  };

  const converse = async (target: Target, head: Head, request: EgressRequest, signal: AbortSignal): Promise<Answer> => {
    const { connection, result } = await onConnection(
      target,
      idle,
      () => connect(target, signal),
      (each) => exchange(each, head, request, signal),
    );
    idle.give(target.origin, connection);
    return result;
  };

  const follow = async <C extends Connection | Http2Connection, T>(
    target: Target,
    kept: Idle<C>,
    connectNow: () => Promise<C>,
    begin: (connection: C) => Promise<Streaming>,
    read: (answer: EgressStream) => Promise<T>,
  ): Promise<T> => {
    const { connection, result } = await onConnection(target, kept, connectNow, begin);
    const { status, headers, flow, trailers, leave } = result;
    try {
      if (!["", "identity"].includes((headers["content-encoding"] ?? "").trim().toLowerCase()))
        throw new EgressError("bad-response", "the answer is compressed, which was not asked for", {
          sent: true,
          status,
        });
      return await read({ status, headers, body: flow.chunks, trailers });
    } finally {
      leave();
      if (flow.ended()) kept.give(target.origin, connection);
      else connection.destroy();
    }
  };

  /** Runs a call in a slot of its origin, in its time. */
  const inSlot = <T>(target: Target, request: EgressRequest, work: (signal: AbortSignal) => Promise<T>): Promise<T> => {
    const parents = request.signal ? [life, { signal: request.signal, stop: aborted }] : [life];
    return within(request.timeoutMs, tooSlow("the call"), parents, async (signal) => {
      const release = await slots.take(target.origin, signal);
      try {
        return await work(signal);
      } finally {
        release();
      }
    });
  };

  /** Tells how a call came out: by the class of its status, or by what went wrong. */
  const told = async <T>(work: (answered: (status: number) => void) => Promise<T>): Promise<T> => {
    let result = "fault";
    try {
      return await work((status) => {
        result = `${Math.floor(status / 100)}xx`;
      });
    } catch (error) {
      result = error instanceof EgressError ? error.kind : "fault";
      throw error;
    } finally {
      options.onResult?.(result);
    }
  };

  return {
    fetch: (request) =>
      told(async (answered) => {
        const target = parseTarget(request.url);
        const head = { path: target.path, headers: requestHeaders(request) };
        const answer = await inSlot(target, request, (signal) => converse(target, head, request, signal));
        const { status, headers } = answer;
        const decoded = await decodeContent(answer, request.maxResponseBytes);
        if (decoded.truncated && request.onOverflow !== "truncate") {
          throw new EgressError("too-large", "the answer's body is too large", { sent: true, status });
        }
        answered(status);
        return { status, headers, ...decoded };
      }),
    stream: (request, read) =>
      told((answered) => {
        const target = parseTarget(request.url);
        const head = { path: target.path, headers: requestHeaders(request) };
        const reading: typeof read = (answer) => {
          answered(answer.status);
          return read(answer);
        };
        return inSlot(target, request, (signal) =>
          request.protocol === "h2"
            ? follow(
                target,
                idleHttp2,
                () => connectHttp2(target, signal),
                (each) => streamHttp2(each, head, request, signal),
                reading,
              )
            : follow(
                target,
                idle,
                () => connect(target, signal),
                (each) => streamHttp1(each, head, request, signal),
                reading,
              ),
        );
      }),

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
      idleHttp2.close();
    },
  };
};
