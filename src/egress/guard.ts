import { isPublicAddress } from "./address.ts";
import type { Allowance } from "./allow.ts";
import { denied, EgressError, orStopped } from "./error.ts";
import type { Resolve } from "./resolve.ts";
import { isLocalhost, type Target } from "./target.ts";

/**
 * Decides which addresses a target may be reached at: resolves to 1 to 8 of them, all checked. Connect to one of these and
 * to nothing else.
 *
 * @throws EgressError `denied`; `unreachable` if the name does not resolve; what the signal's reason says.
 */
export type Guard = (target: Target, signal: AbortSignal) => Promise<readonly string[]>;

const maxAddresses = 8;
const loopback = ["127.0.0.1", "::1"];

/** One message for all of them, so that it tells nothing about what is behind a name. */
const refused = (): EgressError => denied("the URL leads to an address that outgoing calls may not reach");

const httpsOnly = (): EgressError => denied("only https URLs can be called");

/**
 * @param resolvers `listed` is asked for names on the operator's list, `other` for the rest.
 * @param insecureHttp whether plain http is for everybody or only for what the operator listed.
 */
export const openGuard = (
  allow: Allowance,
  resolvers: { readonly listed: Resolve; readonly other: Resolve },
  insecureHttp: "allowed" | "allow-listed",
): Guard => {
  const judge = (target: Target, addresses: readonly string[]): readonly string[] => {
    const byName = allow.host(target.host, target.port);
    const listed = (address: string) => byName || allow.address(address, target.port);
    // One bad address refuses the name: an answer mixing public and private ones is an attack or a mistake.
    if (!addresses.every((address) => listed(address) || isPublicAddress(address))) throw refused();
    if (!target.secure && insecureHttp === "allow-listed" && !addresses.every(listed)) {
      throw httpsOnly();
    }
    return addresses.slice(0, maxAddresses);
  };

  /** The addresses that need no DNS, if the target is of that kind. */
  const known = (target: Target): readonly string[] | undefined => {
    if (target.literal) return judge(target, [target.host]);
    if (!isLocalhost(target.host)) return undefined;
    const listed = allow.host(target.host, target.port)
      ? loopback
      : loopback.filter((address) => allow.address(address, target.port));
    if (listed.length === 0) throw refused();
    return listed;
  };

  /** Without addresses, only its name can have put a target on the operator's list. */
  const unknownName = (target: Target, cause: unknown): EgressError =>
    !target.secure && insecureHttp === "allow-listed" && !allow.host(target.host, target.port)
      ? httpsOnly()
      : new EgressError("unreachable", "the host name does not resolve", { cause });

  return async (target, signal) => {
    const addresses = known(target);
    if (addresses) return addresses;
    const resolve = allow.host(target.host, target.port) ? resolvers.listed : resolvers.other;
    const answer = await orStopped(resolve(target.host, signal), signal).catch((cause: unknown) => {
      if (cause instanceof EgressError) throw cause;
      throw unknownName(target, cause);
    });
    if (answer.length === 0) throw unknownName(target, undefined);
    return judge(target, answer);
  };
};
