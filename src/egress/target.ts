import { isIP } from "node:net";
import { denied } from "./error.ts";

/** Where one call goes: a URL taken apart once, by the one parser whose result is also what is connected to. */
export type Target = {
  readonly secure: boolean;
  /** Lower-case ASCII name without a trailing dot, or an address in its usual notation without brackets. */
  readonly host: string;
  /** Whether `host` is an address. */
  readonly literal: boolean;
  readonly port: number;
  /** Scheme, host and port: the key of pools and queues. */
  readonly origin: string;
  /** Path and query. */
  readonly path: string;
};

const maxUrlLength = 2_048;
const label = /^[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?$/;

/** Whether this is a well-formed host name in lower-case ASCII (RFC 1123, underscores too). */
export const isHostName = (host: string): boolean =>
  host.length <= 253 && host.split(".").every((part) => label.test(part));

/** `localhost` and everything below it, which is this machine whatever DNS says (RFC 6761). */
export const isLocalhost = (host: string): boolean => host === "localhost" || host.endsWith(".localhost");

/**
 * Takes an http or https URL apart. The WHATWG parser turns every spelling of an IPv4 address (decimal, octal,
 * hexadecimal, short, full-width, percent-encoded) into the usual one, so what is checked later is what is meant.
 *
 * @throws EgressError `denied` for what may never be called: another scheme, credentials, a malformed host.
 */
export const parseTarget = (text: string): Target => {
  if (text.length > maxUrlLength) throw denied(`the URL is longer than ${maxUrlLength} characters`);
  // Control characters, spaces and backslashes are repaired by the parser: such a URL means one thing to it, another to a reader.
  // biome-ignore lint/suspicious/noControlCharactersInRegex: they are what is looked for
  if (/[\u0000-\u0020\u007f\\]/.test(text)) throw denied("the URL holds a space, a backslash or a control character");
  const url = URL.parse(text);
  if (!url) throw denied("not a valid URL");
  if (url.protocol !== "http:" && url.protocol !== "https:") throw denied("only http and https URLs can be called");
  if (!/^https?:\/\/[^/]/i.test(text)) throw denied("not a valid URL");
  if (url.username || url.password || /^[^/?#]*\/\/[^/?#]*@/.test(text))
    throw denied("credentials in a URL are refused");
  const host = url.hostname.replace(/^\[(.*)\]$/, "$1").replace(/\.$/, "");
  const literal = isIP(host) !== 0;
  if (!literal && !isHostName(host)) throw denied("the URL's host is not a valid name");
  if (!literal) url.hostname = host;
  const secure = url.protocol === "https:";
  const port = url.port === "" ? (secure ? 443 : 80) : Number(url.port);
  if (port === 0) throw denied("the URL's port is not valid");
  return { secure, host, literal, port, origin: url.origin, path: url.pathname + url.search };
};
