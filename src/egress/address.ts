import { BlockList, isIP } from "node:net";

const subnets = (family: "ipv4" | "ipv6", cidrs: readonly string[]): BlockList => {
  const list = new BlockList();
  for (const cidr of cidrs) {
    const [network, prefix] = cidr.split("/") as [string, string];
    list.addSubnet(network, Number(prefix), family);
  }
  return list;
};

/** IANA IPv4 special-purpose registry: all that is not plain global unicast. */
const specialIpv4 = subnets("ipv4", [
  "0.0.0.0/8", // this network, unspecified
  "10.0.0.0/8", // private
  "100.64.0.0/10", // carrier-grade NAT; 100.100.100.200 is a cloud's metadata
  "127.0.0.0/8", // loopback
  "168.63.129.16/32", // a cloud's host agent, in otherwise public space
  "169.254.0.0/16", // link-local, metadata
  "172.16.0.0/12", // private
  "192.0.0.0/24", // protocol assignments; 192.0.0.192 is a cloud's metadata
  "192.0.2.0/24", // documentation
  "192.88.99.0/24", // 6to4 relays
  "192.168.0.0/16", // private
  "198.18.0.0/15", // benchmarks
  "198.51.100.0/24", // documentation
  "203.0.113.0/24", // documentation
  "224.0.0.0/4", // multicast
  "240.0.0.0/4", // reserved, broadcast
]);

/**
 * IPv6 is refused by default: only 2000::/3 is global unicast. That leaves out loopback, unspecified, ULA, link- and
 * site-local, multicast, IPv4-mapped and -compatible, and both NAT64 prefixes without naming them.
 */
const globalIpv6 = subnets("ipv6", ["2000::/3"]);

/** Parts of 2000::/3 that are special, or carry an IPv4 address inside. */
const specialIpv6 = subnets("ipv6", [
  "2001::/23", // protocol assignments: Teredo, benchmarks, ORCHID
  "2001:db8::/32", // documentation
  "2002::/16", // 6to4
  "3ffe::/16", // the former 6bone
  "3fff::/20", // documentation
]);

/**
 * Whether an address is plain global unicast, so that anybody's endpoint may live there. Anything that is not
 * an address in its usual notation (a zone id, an octal spelling) is not public.
 *
 * Sources: IANA IPv4 and IPv6 Special-Purpose Address Registries, RFC 6890.
 */
export const isPublicAddress = (address: string): boolean => {
  if (address.includes("%")) return false;
  const family = isIP(address);
  if (family === 4) return !specialIpv4.check(address, "ipv4");
  if (family === 6) return globalIpv6.check(address, "ipv6") && !specialIpv6.check(address, "ipv6");
  return false;
};
