// Where a call comes from: the peer of its connection, or whom a trusted proxy names.

import { isIP } from "node:net";
import { createContextKey } from "@connectrpc/connect";
import type { FastifyRequest } from "fastify";

const maxNetworks = 100;

/** The address of a call's client, as `clientAddress` gives it. */
export const clientAddressKey = createContextKey<string>("", { description: "client address" });

/**
 * Reads the operator's list, for Fastify's `trustProxy`: addresses and CIDRs with commas between, at most 100. Throws an Error naming the first bad one.
 */
export function parseProxies(list: string): readonly string[] {
  const networks = list
    .split(",")
    .map((network) => network.trim())
    .filter((network) => network !== "");
  if (networks.length > maxNetworks) throw new Error(`has ${networks.length} entries, more than ${maxNetworks}`);
  for (const network of networks) {
    const [, address = "", prefix] = /^([^/%]*)(?:\/(\d{1,3}))?$/.exec(network) ?? [];
    const family = isIP(address);
    if (family === 0) throw new Error(`"${network}" is neither an address nor a CIDR such as 10.0.0.0/8`);
    const most = family === 4 ? 32 : 128;
    if (prefix !== undefined && Number(prefix) > most)
      throw new Error(`"${network}" does not end in a prefix length of 1 to ${most}`);
    if (prefix !== undefined && Number(prefix) === 0)
      throw new Error(`"${network}" would believe everybody; name the network of the proxies`);
  }
  return networks;
}

/**
 * The client's IP address, IPv4 never in its IPv6 form. `x-forwarded-for` is read from its end, and believed only as far as each address that added to it is a
 * trusted proxy; where it says what is no address, the last one that is stands. Empty when the client is already gone.
 */
export function clientAddress(request: Pick<FastifyRequest, "ip" | "ips">): string {
  const hops = request.ips ?? [request.ip];
  const address = hops.findLast((hop) => hop !== undefined && isIP(hop) !== 0) ?? "";
  return address.replace(/^::ffff:(?=\d+\.\d+\.\d+\.\d+$)/i, "");
}
