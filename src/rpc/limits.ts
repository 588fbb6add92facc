import type { DescMethod } from "@bufbuild/protobuf";
import { Role } from "../../gen/moltwire/api/v1/access_pb.ts";
import type { Clock } from "../clock.ts";
import { Fault } from "../errors.ts";
import type { Caller } from "./caller.ts";

const windowMs = 60_000;
const maxTracked = 100_000;

/** What one request costs the caller, and what is left. */
export type Allowance = {
  readonly limit: number;
  readonly remaining: number;
  readonly retryAfterMs: number;
  readonly allowed: boolean;
};

/** Counts the requests of this process; replicas will lease shares of the limit. */
export type Limiter = { take(agentId: string): Allowance };

/** The times of the requests in the window: a ring of `limit` places of which `count`, ending before `next`, are taken. */
type Ring = { readonly times: Float64Array; next: number; count: number };

/**
 * At most `limit` requests in any 60 s, exactly, at constant cost: a request is refused while `limit` earlier ones lie in the window. A
 * refused request is not counted. `limit` 0 switches it off.
 */
export function slidingWindow(limit: number, clock: Clock): Limiter {
  const rings = new Map<string, Ring>();
  const off: Allowance = { limit: 0, remaining: 0, retryAfterMs: 0, allowed: true };

  function ringOf(agentId: string): Ring {
    const ring = rings.get(agentId) ?? { times: new Float64Array(limit), next: 0, count: 0 };
    rings.delete(agentId); // and back in at the end: the map's order is that of use
    rings.set(agentId, ring);
    if (rings.size > maxTracked) rings.delete(rings.keys().next().value!);
    return ring;
  }

  return {
    take(agentId) {
      if (limit === 0) return off;
      const now = clock.now();
      const ring = ringOf(agentId);
      const oldest = () => ring.times[(ring.next - ring.count + limit) % limit]!;
      while (ring.count > 0 && oldest() <= now - windowMs) ring.count--;
      if (ring.count === limit) return { limit, remaining: 0, retryAfterMs: oldest() + windowMs - now, allowed: false };
      ring.times[ring.next] = now;
      ring.next = (ring.next + 1) % limit;
      ring.count++;
      return { limit, remaining: limit - ring.count, retryAfterMs: 0, allowed: true };
    },
  };
}

/** Heartbeats keep work alive and count nothing. */
const uncounted: ReadonlySet<string> = new Set(["HeartbeatTask"]);

/** Counts a call of an agent: RATE_LIMITED beyond its limit, else the response says how much is left. */
export function takeRequest(limiter: Limiter, caller: Caller, method: DescMethod, responseHeader: Headers): void {
  if (caller.role !== Role.AGENT || uncounted.has(method.name)) return;
  const { allowed, limit, remaining, retryAfterMs } = limiter.take(caller.agentId);
  if (limit === 0) return;
  if (!allowed) {
    const message = `more than ${limit} requests in ${windowMs / 1000} seconds: try again in ${Math.ceil(retryAfterMs / 1000)} s`;
    const metadata = { limit: String(limit), remaining: "0", window_ms: String(windowMs) };
    throw new Fault("RATE_LIMITED", message, metadata, {
      retryAfterMs,
      quota: { subject: `agent:${caller.agentId}`, description: message },
    });
  }
  responseHeader.set("ratelimit-limit", String(limit));
  responseHeader.set("ratelimit-remaining", String(remaining));
}
