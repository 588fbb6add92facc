import type { X509Certificate } from "node:crypto";
import { isIP } from "node:net";
import type { Config } from "../config.ts";

type Facts = {
  readonly url: string;
  readonly config: Config;
  readonly operatorKey: string | undefined;
  readonly encrypts: boolean;
  /** What the port shows; undefined in cleartext. */
  readonly certificate: X509Certificate | undefined;
};

/** What the server prints when it is up. At the very first start: the operator key, this once, and two lines to copy. */
export function welcome({ url, config, operatorKey, encrypts, certificate }: Facts): string {
  const storage = config.databaseUrl
    ? `PostgreSQL at ${withoutPassword(config.databaseUrl)}`
    : config.data === ":memory:"
      ? "memory: gone at the stop"
      : config.data;
  const facts = [
    `Moltwire  ${url}`,
    `data      ${storage}`,
    encrypts ? `at rest   encrypted under ${config.masterKeys[0]?.id}` : "at rest   not encrypted",
  ];
  if (!operatorKey) return box(facts);
  const address = certificate ? coveredUrl(url, certificate) : url;
  const { curlFlags, grpcurlFlags } = tlsFlags(config, certificate);
  const method = "moltwire.bus.v1.BusService/SubmitTask";
  const body = `'{"contractId":"echo","input":{"hello":"world"}}'`;
  const curl = [
    `curl ${curlFlags}${address}/${method} \\`,
    `  -H "authorization: Bearer $MOLTWIRE_API_KEY" -H 'content-type: application/json' \\`,
    `  -d ${body}`,
  ];
  const grpcurl = [
    `grpcurl ${grpcurlFlags}-H "authorization: Bearer $MOLTWIRE_API_KEY" \\`,
    `  -d ${body} \\`,
    `  ${new URL(address).host} ${method}`,
  ];
  const key = ["operator key, shown this once:", `  ${operatorKey}`];
  const copied = ["To try it, copy:", "", `export MOLTWIRE_API_KEY=${operatorKey}`, "", ...curl, "", ...grpcurl].map(
    (line) => (line ? `  ${line}` : ""),
  );
  return [box([...facts, "", ...key]), "", ...copied, ""].join("\n");
}

/** The URL under a name that the certificate is for, if it is not for the address listened on. */
function coveredUrl(text: string, certificate: X509Certificate): string {
  const url = new URL(text);
  const host = url.hostname.replace(/^\[(.*)\]$/, "$1");
  if (isIP(host) ? certificate.checkIP(host) : certificate.checkHost(host)) return text;
  const name = /DNS:([^*\s,"]+)/.exec(certificate.subjectAltName ?? "")?.[1];
  return name ? `https://${name}:${url.port || 443}` : text;
}

/** What both tools need to know about the certificates; nothing when the system's authorities know the server's. */
function tlsFlags(
  config: Config,
  certificate: X509Certificate | undefined,
): { curlFlags: string; grpcurlFlags: string } {
  if (!certificate) return { curlFlags: "", grpcurlFlags: "-plaintext " };
  const isSelfSigned = certificate.checkIssued(certificate);
  const ca = isSelfSigned && config.tlsCert !== undefined ? `cacert ${quoted(config.tlsCert)} ` : undefined;
  const own =
    config.tlsClientCa === undefined || config.tlsClientAuth === "request"
      ? []
      : ["cert YOUR-CERT.pem ", "key YOUR-KEY.pem "];
  const flags = [...(ca ? [ca] : []), ...own];
  return {
    curlFlags: flags.map((flag) => `--${flag}`).join(""),
    grpcurlFlags: flags.map((flag) => `-${flag}`).join(""),
  };
}

const quoted = (path: string): string => (/^[\w./-]+$/.test(path) ? path : `'${path.replaceAll("'", `'\\''`)}'`);

function box(lines: readonly string[]): string {
  const width = Math.max(...lines.map((line) => line.length));
  return [
    `┌─${"─".repeat(width)}─┐`,
    ...lines.map((line) => `│ ${line.padEnd(width)} │`),
    `└─${"─".repeat(width)}─┘`,
  ].join("\n");
}

/** The host and the database: a URL can hold the password in more than one place. */
function withoutPassword(text: string): string {
  const { host, pathname } = new URL(text);
  return `${host}${pathname}`;
}
