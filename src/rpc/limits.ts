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

/** The times of the requests in the window: a ring of places of which `count`, ending before `next`, are taken. */
type Ring = { times: Float64Array; next: number; count: number };

const firstPlaces = 16;

/**
 * At most `limit` requests in any 60 s, exactly, at constant cost: a request is refused while `limit` earlier ones lie in the window. A
 * refused request is not counted. `limit` 0 switches it off.
 */
export function slidingWindow(limit: number, clock: Clock): Limiter {
  const rings = new Map<string, Ring>();
  const now = neverBack(clock);
  const off: Allowance = { limit: 0, remaining: 0, retryAfterMs: 0, allowed: true };

  function ringOf(agentId: string): Ring {
    const ring = rings.get(agentId) ?? { times: new Float64Array(Math.min(limit, firstPlaces)), next: 0, count: 0 };
    rings.delete(agentId); // and back in at the end: the map's order is that of use
    rings.set(agentId, ring);
    return ring;
  }

  /** Forgets who has not called for a window, a few at each call, and beyond the most that are tracked, who called least lately. */
  function forget(before: number): void {
    for (const [agentId, ring] of rings) {
      if (newest(ring) > before && rings.size <= maxTracked) return;
      rings.delete(agentId);
    }
  }

  return {
    take(agentId) {
      if (limit === 0) return off;
      const at = now();
      forget(at - windowMs);
      const ring = ringOf(agentId);
      while (ring.count > 0 && oldest(ring) <= at - windowMs) ring.count--;
      if (ring.count === limit)
        return { limit, remaining: 0, retryAfterMs: oldest(ring) + windowMs - at, allowed: false };
      push(ring, at, limit);
      return { limit, remaining: limit - ring.count, retryAfterMs: 0, allowed: true };
    },
  };
}

const oldest = ({ times, next, count }: Ring): number => times[(next - count + times.length) % times.length]!;
const newest = ({ times, next }: Ring): number => times[(next - 1 + times.length) % times.length]!;

/** Adds a time; a full ring grows to twice its places, at most to the limit. */
function push(ring: Ring, at: number, limit: number): void {
  if (ring.count === ring.times.length) {
    const grown = new Float64Array(Math.min(limit, 2 * ring.times.length));
    grown.set(ring.times.subarray(ring.next));
    grown.set(ring.times.subarray(0, ring.next), ring.times.length - ring.next);
    ring.times = grown;
    ring.next = ring.count;
  }
  ring.times[ring.next] = at;
  ring.next = (ring.next + 1) % ring.times.length;
  ring.count++;
}

/** The clock without its steps back, after which callers would be refused for as long as the step was. */
function neverBack(clock: Clock): () => number {
  let last = Number.NEGATIVE_INFINITY;
  let steppedBackMs = 0;
  return () => {
    const time = clock.now();
    if (time < last) steppedBackMs += last - time;
    last = time;
    return time + steppedBackMs;
  };
}

/** Heartbeats, and answers of agents that pull, count nothing: they keep work alive and end it, and there are as many as was handed out. */
const uncounted: ReadonlySet<string> = new Set(["HeartbeatTask", "RespondTask", "HeartbeatJob"]);

/** Counts a call of an agent: RATE_LIMITED beyond its limit, else the response says how much is left. */
export function takeRequest(limiter: Limiter, caller: Caller, method: DescMethod, responseHeader: Headers): void {
  if (caller.role !== Role.AGENT || uncounted.has(method.name)) return;
  const { allowed, limit, remaining, retryAfterMs } = limiter.take(caller.agentId);
  if (limit === 0) return;
  responseHeader.set("ratelimit-limit", String(limit));
  responseHeader.set("ratelimit-remaining", String(remaining));
  if (!allowed) {
    const message = `more than ${limit} requests in ${windowMs / 1000} seconds: try again in ${Math.ceil(retryAfterMs / 1000)} s`;
    const metadata = { limit: String(limit), remaining: "0", window_ms: String(windowMs) };
    throw new Fault("RATE_LIMITED", message, metadata, {
      retryAfterMs,
      quota: { subject: `agent:${caller.agentId}`, description: message },
    });
  }
}
