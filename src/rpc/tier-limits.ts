import { TrustTier } from "../../gen/moltwire/bus/v1/agent_pb.ts";

/** Requests in 60 s of an agent, by how far it is trusted; 0: no limit. A tier that is not named has the usual limit. */
export type TierLimits = { readonly [Tier in TrustTier]?: number };

const maxRequests = 100_000;
const names = Object.keys(TrustTier).filter((name) => name !== "UNSPECIFIED") as (keyof typeof TrustTier)[];

/**
 * Reads the operator's list: `INTERNAL_TRUSTED=600,PUBLIC_VENDOR=60`, tiers in upper or lower case, each once, limits from 0 to 100,000. Throws an Error naming the
 * first bad part.
 */
export function parseTierLimits(list: string): TierLimits {
  const limits: { [Tier in TrustTier]?: number } = {};
  for (const part of list.split(",").map((text) => text.trim())) {
    if (part === "") continue;
    const [, name = "", limit = ""] = /^([^=]*?)\s*=\s*(.*)$/.exec(part) ?? [];
    const tier = names.find((one) => one === name.toUpperCase());
    if (!tier) throw new Error(`"${part}" names no tier: each part is TIER=NUMBER, with one of ${names.join(", ")}`);
    if (!/^\d+$/.test(limit) || Number(limit) > maxRequests)
      throw new Error(`"${part}" has no limit: it must be a whole number from 0 to ${maxRequests}`);
    if (limits[TrustTier[tier]] !== undefined) throw new Error(`"${part}" names its tier again: each has one limit`);
    limits[TrustTier[tier]] = Number(limit);
  }
  return limits;
}
