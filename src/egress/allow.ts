import { BlockList, isIP } from "node:net";
import { isHostName } from "./target.ts";

/** What the operator lets outgoing calls reach although it is private. */
export type Allowance = {
  /** Whether this host name is listed, for this port or any; it then covers whatever it resolves to. */
  readonly host: (host: string, port: number) => boolean;
  /** Whether this address is listed, for this port or any. */
  readonly address: (address: string, port: number) => boolean;
};

type Entry =
  | { readonly kind: "network"; readonly address: string; readonly prefix: number; readonly port: number }
  | { readonly kind: "host"; readonly host: string; readonly port: number };

const maxEntries = 1_000;
/** Stands for "any port" in an entry: no URL can have it. */
const anyPort = 0;

const bad = (entry: string, why: string): Error =>
  new Error(
    `"${entry}" ${why}; an entry is a CIDR (10.0.0.0/8), an address, a host name, or one of the last two with a port (hooks.internal:8080, [::1]:8080)`,
  );

const parseCidr = (entry: string): Entry => {
  const [address, prefix, ...rest] = entry.split("/") as [string, string];
  const family = isIP(address);
  if (family === 0 || address.includes("%") || rest.length > 0) throw bad(entry, "is not a CIDR");
  if (!/^\d{1,3}$/.test(prefix) || Number(prefix) > (family === 4 ? 32 : 128)) {
    throw bad(entry, `does not end in a prefix length of 0 to ${family === 4 ? 32 : 128}`);
  }
  return { kind: "network", address, prefix: Number(prefix), port: anyPort };
};

const parsePort = (entry: string, port: string | undefined): number => {
  if (port === undefined) return anyPort;
  if (!/^\d{1,5}$/.test(port) || Number(port) < 1 || Number(port) > 65_535)
    throw bad(entry, "has no port of 1 to 65535");
  return Number(port);
};

const parseEntry = (entry: string): Entry => {
  if (entry.includes("://")) throw bad(entry, "is a URL");
  if (entry.includes("/")) return parseCidr(entry);
  const wholeIpv6 = isIP(entry) === 6;
  const parts = /^(\[[^\]]*\]|[^:]*)(?::(.*))?$/s.exec(entry);
  if (!wholeIpv6 && !parts) throw bad(entry, "is neither an address nor a host name");
  const host = wholeIpv6 ? entry : parts![1]!.replace(/^\[(.*)\]$/, "$1");
  const port = wholeIpv6 ? anyPort : parsePort(entry, parts![2]);
  const family = isIP(host);
  if (family !== 0 && !host.includes("%")) {
    return { kind: "network", address: host, prefix: family === 4 ? 32 : 128, port };
  }
  const url = URL.parse(`http://${host}`);
  const name = url?.hostname.replace(/\.$/, "") ?? "";
  if (isIP(name) !== 0) throw bad(entry, `is an unusual spelling of ${name}`);
  if (url?.username || !isHostName(name)) throw bad(entry, "is neither an address nor a host name");
  return { kind: "host", host: name, port };
};

/**
 * Reads the operator's list (comma-separated; blanks around entries and empty entries are fine).
 *
 * @returns the entries, ready for `openEgress`.
 * @throws Error naming the first bad entry and what an entry looks like.
 */
export const parseAllow = (list: string): readonly string[] => {
  const entries = list
    .split(",")
    .map((entry) => entry.trim())
    .filter((entry) => entry !== "");
  if (entries.length > maxEntries) throw new Error(`the list has ${entries.length} entries, more than ${maxEntries}`);
  for (const entry of entries) parseEntry(entry);
  return entries;
};

/**
 * Makes entries ready to be asked.
 *
 * @throws Error naming the first bad entry.
 */
export const openAllowance = (entries: readonly string[]): Allowance => {
  const hosts = new Set<string>();
  const networks = new Map<number, BlockList>();
  for (const entry of entries.map(parseEntry)) {
    if (entry.kind === "host") hosts.add(`${entry.host}:${entry.port}`);
    else {
      const list = networks.get(entry.port) ?? new BlockList();
      list.addSubnet(entry.address, entry.prefix, isIP(entry.address) === 4 ? "ipv4" : "ipv6");
      networks.set(entry.port, list);
    }
  }
  const inNetworks = (address: string, port: number): boolean =>
    networks.get(port)?.check(address, isIP(address) === 4 ? "ipv4" : "ipv6") ?? false;
  return {
    host: (host, port) => hosts.has(`${host}:${anyPort}`) || hosts.has(`${host}:${port}`),
    address: (address, port) =>
      isIP(address) !== 0 && !address.includes("%") && (inNetworks(address, anyPort) || inNetworks(address, port)),
  };
};
