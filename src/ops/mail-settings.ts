/** The settings of mail to the operator. */
import { isIP } from "node:net";
import { isHostName } from "../egress/target.ts";

/** A mail server. */
export type MailServer = {
  readonly host: string;
  readonly port: number;
  /** TLS from the first byte; else by STARTTLS, where the server offers it, and always before a password. */
  readonly secure: boolean;
  /** A secret. Not set: it wants no password. */
  readonly auth?: { readonly user: string; readonly pass: string };
};

/** Where what people send by the contact form is mailed to. */
export type Mail = { readonly server: MailServer; readonly to: string; readonly from: string };

const ports = { smtp: 587, smtps: 465 } as const;
const formOfUrl = "must be smtp://host:port or smtps://host:port, perhaps with user:password@ before the host";
const maxAddress = 254;

/** Throws an Error that says what is right, without the text: it has a password. */
export function parseSmtpUrl(text: string): MailServer {
  const [, scheme, rest] = /^(smtps?):\/\/([^/?#\s]+)\/?$/i.exec(text) ?? [];
  // As two schemes: each leaves its own default port out.
  const [http, https] = [URL.parse(`http://${rest}`), URL.parse(`https://${rest}`)];
  if (!scheme || !http || !https) throw new Error(formOfUrl);
  const host = http.hostname.replace(/^\[(.*)\]$/, "$1").replace(/\.$/, "");
  if (isIP(host) === 0 && !isHostName(host)) throw new Error(formOfUrl);
  const kind = scheme.toLowerCase() as keyof typeof ports;
  const port = Number(http.port || https.port || ports[kind]);
  if (port === 0) throw new Error(formOfUrl);
  const server = { host, port, secure: kind === "smtps" };
  if (http.username === "" && http.password === "") return server;
  return { ...server, auth: { user: decoded(http.username), pass: decoded(http.password) } };
}

function decoded(text: string): string {
  try {
    return decodeURIComponent(text);
  } catch {
    throw new Error("user and password must be percent-encoded");
  }
}

/** One address, as `ops@example.org`. Throws an Error that says so. */
export function parseMailAddress(text: string): string {
  if (text.length > maxAddress || !/^[A-Za-z0-9.!#$%&'*+/=?^_`{|}~-]+@[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)*$/.test(text))
    throw new Error("must be one mail address, such as ops@example.org");
  return text;
}
