import { denied } from "./error.ts";

/** Methods an outgoing call may use. */
export type EgressMethod = "GET" | "HEAD" | "POST" | "PUT" | "PATCH" | "DELETE" | "OPTIONS";

/** One outgoing call. */
export type EgressRequest = {
  /** Absolute http or https URL, ≤ 2,048 characters, no credentials in it. */
  readonly url: string;
  readonly method: EgressMethod;
  /**
   * ≤ 100 headers, ≤ 32 KiB in all, Latin-1. What belongs to the connection and not to the call (`host`,
   * `content-length`, `accept-encoding`, `connection` and what it names, other hop-by-hop headers) is left out.
   */
  readonly headers: Readonly<Record<string, string>>;
  readonly body?: Uint8Array | string;
  /** For everything: waiting for a slot, DNS, connecting, sending, headers and body. 1 ms to 1 h. */
  readonly timeoutMs: number;
  /** Stops the call at once and closes its connection. */
  readonly signal?: AbortSignal;
  /** Limit of the response's body, decompressed, in bytes. */
  readonly maxResponseBytes: number;
  /** What a longer body does: fail the call (the default), or end it there with `truncated` set. */
  readonly onOverflow?: "fail" | "truncate";
};

const methods: ReadonlySet<string> = new Set(["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]);
const maxHeaders = 100;
const maxHeaderBytes = 32_768;

/** RFC 9110 token. */
const token = /^[!#$%&'*+.^_`|~0-9A-Za-z-]{1,256}$/;
/** RFC 9110 field value, and Latin-1: no control character, so no smuggled line. */
const fieldValue = /^[\t\u0020-\u007e\u0080-\u00ff]*$/;

/** RFC 9110 section 7.6.1 and its predecessors, plus what this client writes itself. */
const ownHeaders: ReadonlySet<string> = new Set([
  "accept-encoding",
  "connection",
  "content-length",
  "expect",
  "host",
  "http2-settings",
  "keep-alive",
  "proxy-authenticate",
  "proxy-authorization",
  "proxy-connection",
  "te",
  "trailer",
  "transfer-encoding",
  "upgrade",
]);

/**
 * Checks the parts of a call that end up in the request's head, and gives the headers to send.
 *
 * @throws EgressError `denied` for what cannot be sent.
 */
export const requestHeaders = (request: EgressRequest): Record<string, string> => {
  if (!methods.has(request.method)) throw denied("this method cannot be used");
  const entries = Object.entries(request.headers).map(([name, value]) => [name.toLowerCase(), value] as const);
  if (entries.length > maxHeaders) throw denied(`more than ${maxHeaders} request headers`);
  if (new Set(entries.map(([name]) => name)).size < entries.length) throw denied("a request header is given twice");
  let bytes = 0;
  for (const [name, value] of entries) {
    if (!token.test(name)) throw denied("the name of a request header is not valid");
    if (!fieldValue.test(value)) throw denied(`the value of the request header ${name} is not valid`);
    bytes += name.length + value.length + 4;
  }
  if (bytes > maxHeaderBytes) throw denied(`request headers of more than ${maxHeaderBytes} bytes`);
  const connection = entries.find(([name]) => name === "connection")?.[1] ?? "";
  const named = new Set(connection.split(",").map((part) => part.trim().toLowerCase()));
  const kept = entries.filter(([name]) => !ownHeaders.has(name) && !named.has(name));
  return { ...Object.fromEntries(kept), "accept-encoding": "identity" };
};
