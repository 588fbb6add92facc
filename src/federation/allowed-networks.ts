/** Where a key may be used from: networks as text, such as `203.0.113.0/24`, `2001:db8::/32` or one address. Pure. */
import { isIPv4, isIPv6 } from "node:net";

/** The first address of a network as a number, and how many bits of it the network has. */
export type Network = { readonly family: 4 | 6; readonly first: bigint; readonly prefix: number };

const widths = { 4: 32, 6: 128 } as const;
/** `::ffff:0:0/96`, in which IPv6 has the addresses of IPv4. */
const mappedPrefix = 96;
const mapped = 0xffffn;

/** The network that a text names; a text says what is wrong with it. An IPv4 network in its IPv6 form is that of IPv4. */
export function readNetwork(text: string): Network | string {
  const [, address = "", length] = /^([^/]*)(?:\/(0|[1-9]\d{0,2}))?$/.exec(text) ?? [];
  const whole = readAddress(address);
  if (!whole || address.includes("%")) return "must be an address, or a CIDR such as 203.0.113.0/24 or 2001:db8::/32";
  const isMapped = whole.family === 4 && address.includes(":");
  const most = isMapped ? widths[6] : widths[whole.family];
  const given = length === undefined ? most : Number(length);
  const least = isMapped ? mappedPrefix : 0;
  if (given > most || given < least) return `its prefix length must be from ${least} to ${most}`;
  const network = { ...whole, prefix: isMapped ? given - mappedPrefix : given };
  const spare = BigInt(widths[network.family] - network.prefix);
  if ((network.first >> spare) << spare !== network.first)
    return "has bits beyond its prefix length: give the first address of the network, or a longer prefix";
  return network;
}

/** Whether an address lies in one of the networks. Nothing that is no address does. A zone is ignored. */
export function isWithin(networks: readonly string[], address: string): boolean {
  const whole = readAddress(address.split("%", 1)[0]!);
  return whole !== undefined && covered(networks, { ...whole, prefix: widths[whole.family] });
}

/** Whether a network lies as a whole in one of the others. */
export function covered(networks: readonly string[], inner: Network): boolean {
  return networks.some((text) => {
    const outer = readNetwork(text);
    if (typeof outer === "string" || outer.family !== inner.family || outer.prefix > inner.prefix) return false;
    const spare = BigInt(widths[outer.family] - outer.prefix);
    return outer.first >> spare === inner.first >> spare;
  });
}

function readAddress(text: string): Omit<Network, "prefix"> | undefined {
  if (isIPv4(text)) return { family: 4, first: ipv4(text) };
  if (!isIPv6(text) || text.includes("%")) return undefined;
  const first = ipv6(text);
  return first >> 32n === mapped ? { family: 4, first: first & 0xffff_ffffn } : { family: 6, first };
}

const ipv4 = (text: string): bigint => text.split(".").reduce((bits, part) => (bits << 8n) | BigInt(part), 0n);

function ipv6(text: string): bigint {
  const [left = [], right = []] = text.split("::").map(words);
  const zeros = Array<bigint>(8 - left.length - right.length).fill(0n);
  return [...left, ...zeros, ...right].reduce((bits, word) => (bits << 16n) | word, 0n);
}

/** The groups of 16 bits between colons; an IPv4 address at the end is two. */
const words = (text: string): bigint[] =>
  text
    .split(":")
    .filter((word) => word !== "")
    .flatMap((word) => (word.includes(".") ? [ipv4(word) >> 16n, ipv4(word) & 0xffffn] : [BigInt(`0x${word}`)]));
