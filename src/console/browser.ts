/** What a browser says of itself: which page a call comes from, and the session cookie. Pure of anything but headers. */
import { createContextKey } from "@connectrpc/connect";
import type { FastifyRequest } from "fastify";

/** A call as far as browsers are concerned. */
export type Browser = {
  /** Whether it comes from a page of this server. Only then a session counts: all else could be the doing of another site. */
  readonly sameOrigin: boolean;
  /** Whether it came over TLS, to this server or to a trusted proxy. */
  readonly secure: boolean;
  /** The token in the session cookie. */
  readonly token: string | undefined;
};

const noBrowser: Browser = { sameOrigin: false, secure: false, token: undefined };

/** Set by the port. */
export const browserKey = createContextKey<Browser>(noBrowser, { description: "browser" });

/**
 * Reads the headers. Browsers say where a call comes from in `sec-fetch-site`; older ones, and all over plain HTTP from elsewhere than loopback, only in `origin`.
 * A call that says neither is not one of a page's scripts.
 */
export function browserOf({ headers, protocol, host }: Pick<FastifyRequest, "headers" | "protocol" | "host">): Browser {
  const { cookie, origin } = headers;
  const site = headers["sec-fetch-site"];
  if (cookie === undefined && origin === undefined && site === undefined) return noBrowser;
  const secure = protocol === "https";
  const sameOrigin = site === undefined ? origin === `${protocol}://${host}` : site === "same-origin";
  return { sameOrigin, secure, token: cookieNamed(cookie, cookieName(secure)) };
}

const cookieNamed = (cookie: string | undefined, name: string): string | undefined =>
  cookie
    ?.split(";")
    .map((pair) => pair.trim())
    .find((pair) => pair.startsWith(`${name}=`))
    ?.slice(name.length + 1);

/** `__Host-` lets no other host of the domain set it, and exists over TLS only. */
const cookieName = (secure: boolean): string => (secure ? "__Host-moltwire_session" : "moltwire_session");

/** The header that gives the browser a session for so many seconds; 0 takes it away. */
export const sessionCookie = (secure: boolean, token: string, maxAgeS: number): string =>
  `${cookieName(secure)}=${token}; Path=/; Max-Age=${maxAgeS}; HttpOnly; SameSite=Strict${secure ? "; Secure" : ""}`;
