import { lookup, Resolver } from "node:dns/promises";

/** Resolves a host name to its addresses. Rejects if it has none. Should stop early when the signal aborts. */
export type Resolve = (host: string, signal: AbortSignal) => Promise<readonly string[]>;

/**
 * Asks the machine: hosts file, search domains and all. Runs on libuv's threads, where a few names with a
 * silent name server hold up every other look-up: only for names that the operator vouches for.
 */
export const resolveBySystem: Resolve = async (host) =>
  (await lookup(host, { all: true })).map(({ address }) => address);

/**
 * Asks name servers over the network, without threads, so that one agent's slow name server delays nobody else's
 * calls. Knows no hosts file and no search domains.
 *
 * @param servers `address:port` each; without, those the machine is set up with, read anew for every name.
 */
export const resolveByQuery =
  (servers?: readonly string[]): Resolve =>
  async (host, signal) => {
    const resolver = new Resolver({ timeout: 2_000, tries: 2 });
    if (servers) resolver.setServers(servers);
    const cancel = () => resolver.cancel();
    signal.addEventListener("abort", cancel, { once: true });
    try {
      const answers = await Promise.allSettled([resolver.resolve4(host), resolver.resolve6(host)]);
      const addresses = answers.flatMap((answer) => (answer.status === "fulfilled" ? answer.value : []));
      if (addresses.length > 0) return addresses;
      throw answers.find((answer) => answer.status === "rejected")?.reason ?? new Error("no addresses");
    } finally {
      signal.removeEventListener("abort", cancel);
    }
  };
