/** The settings of the export, as the operator writes them. */
import { parseTarget } from "../egress/target.ts";

const maxHeaders = 32;

/**
 * The URL that spans are posted to: the one given, with `/v1/traces` when it has no path.
 *
 * @throws Error saying what is wrong.
 */
export function parseEndpoint(text: string): string {
  parseTarget(text);
  const url = new URL(text);
  if (url.hash) throw new Error("must not have a fragment");
  if (url.pathname === "/") url.pathname = "/v1/traces";
  return url.href;
}

/**
 * The headers of each request: `name=value` with commas between, values percent-encoded where they hold commas, as
 * https://opentelemetry.io/docs/specs/otel/protocol/exporter/ has them. They hold secrets, so no error repeats a value.
 *
 * @throws Error saying which entry is wrong.
 */
export function parseHeaders(text: string): Readonly<Record<string, string>> {
  const entries = text
    .split(",")
    .map((entry) => entry.trim())
    .filter((entry) => entry !== "");
  if (entries.length > maxHeaders) throw new Error(`has more than ${maxHeaders} headers`);
  const headers: Record<string, string> = {};
  for (const [index, entry] of entries.entries()) {
    const at = entry.indexOf("=");
    const name = entry.slice(0, Math.max(0, at)).trim().toLowerCase();
    if (!/^[!#$%&'*+.^_`|~0-9a-z-]{1,256}$/.test(name))
      throw new Error(`entry ${index + 1} is not name=value with the name of a header`);
    if (name in headers) throw new Error(`names ${name} twice`);
    if (name === "content-type") throw new Error("cannot set content-type");
    headers[name] = headerValue(name, entry.slice(at + 1).trim());
  }
  return headers;
}

function headerValue(name: string, encoded: string): string {
  let value: string;
  try {
    value = decodeURIComponent(encoded);
  } catch {
    throw new Error(`the value of ${name} is not percent-encoded as it should be`);
  }
  if (!/^[\t\u0020-\u007e\u0080-\u00ff]*$/.test(value))
    throw new Error(`the value of ${name} holds a character that headers cannot`);
  return value;
}
