import { createContextKey, type HandlerContext } from "@connectrpc/connect";
import { Role } from "../../gen/moltwire/api/v1/access_pb.ts";
import type { TrustTier } from "../../gen/moltwire/bus/v1/agent_pb.ts";
import type { Fault } from "../errors.ts";
import type { TraceContext } from "./trace-context.ts";

/** Who is calling. */
export type Caller = {
  readonly role: Role;
  /** Empty for PUBLIC. */
  readonly orgId: string;
  /** The agent an AGENT key is bound to, else empty. */
  readonly agentId: string;
  /** How far that agent is trusted; undefined where there is none. */
  readonly trustTier?: TrustTier | undefined;
  /** Empty for PUBLIC. */
  readonly keyId: string;
  /** What the key may do; empty: all that its role may. */
  readonly scopes: readonly string[];
  /** Where the key may be used from; none: anywhere. */
  readonly networks?: readonly string[];
  /** How many requests the key may make in 60 s; undefined: as many as whom it speaks for. */
  readonly requestsPerMinute?: number;
  /** From when the key, or the session, is refused, in milliseconds; undefined: never. */
  readonly expireMs?: number | undefined;
  /** Of somebody who is signed in to the console: the digest of the session's token. */
  readonly session?: string;
  /** Of somebody without a key: why what was sent in its place does not count here. */
  readonly refused?: Fault;
};

/** Somebody without a key. */
export const publicCaller: Caller = { role: Role.PUBLIC, orgId: "", agentId: "", keyId: "", scopes: [] };

/** Set before the interceptors run, by the listener's hook. */
export const callerKey = createContextKey<Caller>(publicCaller, { description: "caller" });

/** Set by the outermost interceptor. */
export const traceKey = createContextKey<TraceContext>(
  { traceId: "", spanId: "", parentSpanId: "" },
  { description: "trace" },
);

export const callerOf = (context: Pick<HandlerContext, "values">): Caller => context.values.get(callerKey);
export const traceOf = (context: Pick<HandlerContext, "values">): TraceContext => context.values.get(traceKey);
