import type { DescMethod, Message } from "@bufbuild/protobuf";
import { Code, type Interceptor } from "@connectrpc/connect";
import { Role } from "../../gen/moltwire/api/v1/access_pb.ts";
import { TrustTier } from "../../gen/moltwire/bus/v1/agent_pb.ts";
import type { Clock } from "../clock.ts";
import { Fault, toConnectError } from "../errors.ts";
import { accessOf } from "./access.ts";
import { windowMs } from "./allotment.ts";
import { type Caller, callerKey } from "./caller.ts";
import type { TierLimits } from "./tier-limits.ts";

const maxTracked = 100_000;

/** Whether requests were let in, and what is left. */
export type Allowance = {
  readonly limit: number;
  readonly remaining: number;
  /** When there will be room, if there is none now; undefined: never, being more than the limit at once. */
  readonly retryAfterMs: number | undefined;
  readonly allowed: boolean;
};

/** Counts requests. */
export type Limiter = {
  /**
   * Takes one or several at once: all or none. `before` is how many the same call took already, and will take again when it is repeated; `most` the limit of this id,
   * where it is not that of all. At once where this process alone counts; where replicas share the limit, a promise when what this one was allotted is used up.
   */
  take(id: string, count?: number, before?: number, most?: number): Allowance | Promise<Allowance>;
};

/** A limiter of this process alone. */
export type OwnLimiter = { take(id: string, count?: number, before?: number, most?: number): Allowance };

/** The times of the requests in the window: a ring of places of which `count`, ending before `next`, are taken. */
type Ring = { times: Float64Array; next: number; count: number };

const firstPlaces = 16;

/**
 * At most `usual` requests in any 60 s, exactly, at constant cost: a request is refused while that many earlier ones lie in the window. A
 * refused request is not counted. A limit of 0 switches it off.
 */
export function slidingWindow(usual: number, clock: Clock): OwnLimiter {
  const rings = new Map<string, Ring>();
  const now = neverBack(clock);
  const off: Allowance = { limit: 0, remaining: 0, retryAfterMs: 0, allowed: true };

  function ringOf(id: string, most: number): Ring {
    const ring = rings.get(id) ?? { times: new Float64Array(Math.min(most, firstPlaces)), next: 0, count: 0 };
    rings.delete(id); // and back in at the end: the map's order is that of use
    rings.set(id, ring);
    return ring;
  }

  /** Forgets who has not called for a window, a few at each call, and beyond the most that are tracked, who called least lately. */
  function forget(before: number): void {
    for (const [id, ring] of rings) {
      if (newest(ring) > before && rings.size <= maxTracked) return;
      rings.delete(id);
    }
  }

  return {
    take(id, count = 1, before = 0, limit = usual) {
      if (limit === 0) return off;
      const at = now();
      forget(at - windowMs);
      const ring = ringOf(id, limit);
      while (ring.count > 0 && nthOldest(ring, 0) <= at - windowMs) ring.count--;
      const left = limit - ring.count; // less than nothing where the limit was lowered
      const remaining = Math.max(0, left);
      if (before + count > limit) return { limit, remaining, retryAfterMs: undefined, allowed: false };
      if (count > left) {
        const retryAfterMs = nthOldest(ring, before + count - left - 1) + windowMs - at;
        return { limit, remaining, retryAfterMs, allowed: false };
      }
      for (let n = 0; n < count; n++) push(ring, at, limit);
      return { limit, remaining: remaining - count, retryAfterMs: 0, allowed: true };
    },
  };
}

const nthOldest = ({ times, next, count }: Ring, n: number): number =>
  times[(next - count + n + times.length) % times.length]!;
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
export function neverBack(clock: Clock): () => number {
  let last = Number.NEGATIVE_INFINITY;
  let steppedBackMs = 0;
  return () => {
    const time = clock.now();
    if (time < last) steppedBackMs += last - time;
    last = time;
    return time + steppedBackMs;
  };
}

/**
 * Heartbeats, and answers of agents that pull, count nothing: they keep work alive and end it, and there are as many as was handed out. Calls of other servers are taken by the
 * door for them, which knows whose they are.
 */
const uncounted: ReadonlySet<string> = new Set(["HeartbeatTask", "RespondTask", "HeartbeatJob", "HandlePeerCall"]);

/** Where somebody whom nobody knows leaves something behind. Counted by address, with or without an agent's key. */
const openDoors: ReadonlySet<string> = new Set(["Register", "SubmitContact"]);
const openDoorShare = 12;

/** Whether calls of the method are counted at open doors. */
export const isOpenDoor = ({ name }: DescMethod): boolean => openDoors.has(name);

/** A server asks for all the agents it has: so many times the limit of one agent. */
const peerShare = 10;

/** Passwords that an address may try in 60 s, whatever the limit of calls: also where there is none. */
const passwordsPerWindow = 10;

/**
 * Of agents, of addresses that call without a good key, of addresses at open doors, of other servers, of addresses that try passwords, and of keys and grants that have
 * limits of their own.
 */
export type Limiters = {
  readonly agents: Limiter;
  /** The limits of agents by how far they are trusted; of others that of `agents` holds. */
  readonly tiers: TierLimits;
  readonly addresses: Limiter;
  readonly doors: Limiter;
  readonly peers: Limiter;
  readonly passwords: Limiter;
  readonly keys: Limiter;
  readonly grants: Limiter;
};

/**
 * `limit` requests in 60 s for an agent whose tier has no limit of its own and for an address, a twelfth of it at open doors, and ten times as many for another server. `shared`
 * makes those that replicas share. Addresses without a good key are counted by each replica: nobody should make it write by calling.
 */
export const createLimiters = (
  limit: number,
  tiers: TierLimits,
  clock: Clock,
  shared: (kind: string, usual: number) => Limiter = (_kind, usual) => slidingWindow(usual, clock),
): Limiters => ({
  agents: shared("agent", limit),
  tiers,
  addresses: slidingWindow(limit, clock),
  doors: shared("door", Math.ceil(limit / openDoorShare)),
  peers: shared("peer", limit * peerShare),
  passwords: shared("password", passwordsPerWindow),
  keys: shared("key", 0),
  grants: shared("grant", 0),
});

/** What counts as one address: of IPv6 the network of 64 bits, all of which one client can have. */
export function addressGroup(address: string): string {
  if (!address.includes(":")) return address;
  const [head = "", tail] = address.split("%")[0]!.split("::");
  const left = head.split(":").filter((part) => part !== "");
  const right = (tail ?? "").split(":").filter((part) => part !== "");
  const zeros = tail === undefined ? 0 : Math.max(0, 8 - left.length - right.length);
  const parts = [...left, ...Array<string>(zeros).fill("0"), ...right];
  return `${parts
    .slice(0, 4)
    .map((part) => Number.parseInt(part, 16).toString(16))
    .join(":")}::/64`;
}

/**
 * Counts a call: RATE_LIMITED beyond the limit of its key, its agent or its address, else the response says how much is left of the one of which least is. Administrators are not
 * counted, but for the limits of their keys.
 */
export async function takeRequest(
  limiters: Limiters,
  caller: Caller,
  method: DescMethod,
  address: string,
  responseHeader: Headers,
): Promise<void> {
  if (uncounted.has(method.name) || !method.parent.typeName.startsWith("moltwire.")) return;
  await takeOfKey(limiters, caller, responseHeader);
  if (caller.role > Role.AGENT) return;
  if (isOpenDoor(method)) await take(limiters.doors, "address", addressGroup(address), responseHeader);
  else if (caller.role === Role.AGENT) await takeOfAgent(limiters, caller, responseHeader);
  else await take(limiters.addresses, "address", addressGroup(address), responseHeader);
}

/** Counts a call of somebody whom no key shows: RATE_LIMITED in place of its refusal, beyond the limit of its address, so that nobody tries keys without end. */
export async function takeStranger(
  limiters: Limiters,
  error: unknown,
  address: string,
  responseHeader: Headers,
): Promise<void> {
  if (!(error instanceof Fault)) return;
  if (toConnectError(error).code === Code.Unauthenticated || error.reason === "KEY_NETWORK_REFUSED")
    await take(limiters.addresses, "address", addressGroup(address), responseHeader);
}

/** Takes one request of an agent by its tier's limit; or, for a call that was taken, the further items of its list. */
export const takeOfAgent = (
  { agents, tiers }: Limiters,
  { agentId, trustTier = TrustTier.UNSPECIFIED }: Caller,
  responseHeader: Headers,
  moreItems = 0,
): Promise<void> => take(agents, "agent", agentId, responseHeader, moreItems, tiers[trustTier]);

/** Takes one request of a key that has a limit of its own, or, for a call that was taken, the further items of its list. */
export async function takeOfKey(
  { keys }: Limiters,
  { keyId, requestsPerMinute }: Caller,
  responseHeader: Headers,
  moreItems = 0,
): Promise<void> {
  if (requestsPerMinute) await take(keys, "key", keyId, responseHeader, moreItems, requestsPerMinute);
}

/**
 * Takes one request of an agent, an address or a peer, as {@link takeRequest} does; or, for a call that was taken, the further items of its list. `most`: the limit of this
 * one. The headers are those of whatever of the response's limits has least left.
 */
export async function take(
  limiter: Limiter,
  kind: Subject,
  id: string,
  responseHeader: Headers,
  moreItems = 0,
  most?: number,
): Promise<void> {
  const taken = limiter.take(id, moreItems || 1, moreItems && 1, most);
  tell(taken instanceof Promise ? await taken : taken, `${kind}:${id}`, responseHeader, moreItems);
}

/** What is counted. */
export type Subject = "agent" | "address" | "peer" | "key" | "grant";

/** Tells what is left by the headers, or throws RATE_LIMITED. */
export function tell(
  { allowed, limit, remaining, retryAfterMs }: Allowance,
  subject: string,
  responseHeader: Headers,
  moreItems = 0,
): void {
  if (limit === 0) return;
  if (!allowed || remaining < Number(responseHeader.get("ratelimit-remaining") ?? Number.POSITIVE_INFINITY)) {
    responseHeader.set("ratelimit-limit", String(limit));
    responseHeader.set("ratelimit-remaining", String(remaining));
  }
  if (allowed) return;
  const inWindow = `more than ${limit} requests in ${windowMs / 1000} seconds`;
  const message =
    retryAfterMs === undefined
      ? `each item counts as a request, and there are never ${inWindow}: send fewer at once`
      : `${moreItems > 0 ? "each item counts as a request: " : ""}${inWindow}: try again in ${Math.ceil(retryAfterMs / 1000)} s`;
  const metadata = { limit: String(limit), remaining: String(remaining), window_ms: String(windowMs) };
  throw new Fault("RATE_LIMITED", message, metadata, {
    ...(retryAfterMs !== undefined && { retryAfterMs }),
    quota: { subject, description: message },
  });
}

/**
 * Counts the items of a list that its method declares. The gate has counted the call, and with it the first of them; a list that is refused counts as that
 * one call, which stays counted.
 */
export const itemsInterceptor =
  (limiters: Limiters): Interceptor =>
  (next) =>
  async (request) => {
    const caller = request.contextValues.get(callerKey);
    const isCounted = caller.role === Role.AGENT || caller.requestsPerMinute !== undefined;
    const more = request.stream || !isCounted ? 0 : itemsOf(request.method, request.message) - 1;
    if (more <= 0) return next(request);
    const header = new Headers();
    await takeOfKey(limiters, caller, header, more);
    if (caller.role === Role.AGENT) await takeOfAgent(limiters, caller, header, more);
    const response = await next(request);
    header.forEach((value, name) => void response.header.set(name, value));
    return response;
  };

function itemsOf(method: DescMethod, message: Message): number {
  const { items } = accessOf(method);
  if (items === "") return 0;
  const { localName } = method.input.fields.find(({ name }) => name === items)!;
  return (message as Message & Record<string, readonly unknown[]>)[localName]!.length;
}
