/** The certificate of the port: read, checked, and read again when its files change. */
import { createPrivateKey, X509Certificate } from "node:crypto";
import { type FSWatcher, watch } from "node:fs";
import { readFile, stat } from "node:fs/promises";
import { dirname } from "node:path";
import { createSecureContext, type SecureContextOptions } from "node:tls";
import type { Logger } from "pino";
import type { Clock } from "./clock.ts";
import { type Config, ConfigError } from "./config.ts";

/** Paths of PEM files. */
export type TlsFiles = {
  /** The server's certificate, and after it those that lead to its root. */
  readonly cert: string;
  readonly key: string;
  /** Whose certificates clients need; undefined: they need none. */
  readonly clientCa: string | undefined;
};

/** What the files hold, checked. */
export type Credentials = {
  readonly context: SecureContextOptions;
  readonly certificate: X509Certificate;
};

const maxPemBytes = 1_048_576;
const settleMs = 500;
const maxSettleMs = 5_000;
const soonMs = 14 * 86_400_000;

/** The files the settings name, or undefined when the port is to be cleartext. Throws {@link ConfigError} for half a pair. */
export function tlsFiles({ tlsCert, tlsKey, tlsClientCa, tlsClientAuth }: Config): TlsFiles | undefined {
  if (tlsClientAuth === "request" && tlsClientCa === undefined)
    throw new ConfigError(
      "MOLTWIRE_TLS_CLIENT_AUTH (--tls-client-auth): request means nothing without MOLTWIRE_TLS_CLIENT_CA; set the authorities.",
    );
  if (tlsCert !== undefined && tlsKey !== undefined) return { cert: tlsCert, key: tlsKey, clientCa: tlsClientCa };
  if (tlsCert !== undefined)
    throw new ConfigError(
      "MOLTWIRE_TLS_KEY (--tls-key): is missing; a certificate needs its key. Set both or neither.",
    );
  if (tlsKey !== undefined)
    throw new ConfigError(
      "MOLTWIRE_TLS_CERT (--tls-cert): is missing; a key needs its certificate. Set both or neither.",
    );
  if (tlsClientCa !== undefined)
    throw new ConfigError(
      "MOLTWIRE_TLS_CLIENT_CA (--tls-client-ca): needs TLS; set MOLTWIRE_TLS_CERT and MOLTWIRE_TLS_KEY too.",
    );
  return undefined;
}

/** Reads the files. Throws {@link ConfigError} naming the setting, its fault and the fix when the port could not be served with them. */
export async function readCredentials(files: TlsFiles, nowMs: number): Promise<Credentials> {
  const cert = await readPem("MOLTWIRE_TLS_CERT", files.cert);
  const key = await readPem("MOLTWIRE_TLS_KEY", files.key);
  const chain = certificatesIn("MOLTWIRE_TLS_CERT", files.cert, cert);
  const certificate = chain[0]!;
  const period = outsideItsPeriod(certificate, nowMs);
  if (period) throw bad("MOLTWIRE_TLS_CERT", files.cert, `${period}; renew it`);
  if (!certificate.checkPrivateKey(privateKey(files.key, key))) {
    throw bad("MOLTWIRE_TLS_KEY", files.key, `is not the key of the first certificate in ${files.cert}; set the pair`);
  }
  const ca = files.clientCa === undefined ? undefined : await readClientCa(files.clientCa, nowMs);
  const context = { cert, key, ...(ca !== undefined && { ca }) };
  try {
    createSecureContext(context);
  } catch (error) {
    throw bad("MOLTWIRE_TLS_CERT", files.cert, `cannot be used: ${(error as Error).message}`);
  }
  return { context, certificate };
}

/** A port whose certificate is kept up to date. */
export type Reloading = {
  /** Reads the files now. Resolves when the port has them, or has kept what it had and the log says why. Never rejects. */
  reload(): Promise<void>;
  /** Reads them if they are not those of the last time. */
  check(): Promise<void>;
  stop(): Promise<void>;
};

/**
 * Watches the folders of the files, since renewals replace files and links rather than write into them, and waits until they are quiet: certificate and key come
 * one after the other. File systems that tell nothing are for `check`.
 */
export function keepCertificates(options: {
  readonly files: TlsFiles;
  /** What the port has now. */
  readonly current: Credentials;
  /** Takes what was read; may throw. */
  readonly use: (credentials: Credentials) => void;
  readonly clock: Clock;
  readonly log: Logger;
}): Reloading {
  const { files, use, clock, log } = options;
  const paths = Object.values(files).filter((path) => path !== undefined);
  let lastTried = fingerprint(options.current);
  let running = Promise.resolve();
  let changedMs: number | undefined;
  let timer: { cancel(): void } | undefined;
  let stopped = false;

  const read = async (always: boolean) => {
    if (stopped) return;
    try {
      const credentials = await readCredentials(files, clock.now());
      const found = fingerprint(credentials);
      if (!always && found === lastTried) return;
      use(credentials);
      lastTried = found;
      log.info({ certificate: facts(credentials) }, "the port has the certificate that was read");
      warnOfEnd(log, credentials, clock.now());
    } catch (error) {
      const why = (error as Error).message;
      if (!always && why === lastTried) return;
      lastTried = why;
      log.error({ why }, "the new certificate cannot be used; the port keeps the one it has");
    }
  };
  const queue = (always: boolean) => (running = running.then(() => read(always)));
  const onChange = () => {
    if (stopped) return;
    const now = clock.now();
    changedMs ??= now;
    timer?.cancel();
    timer = clock.after(Math.max(0, Math.min(settleMs, changedMs + maxSettleMs - now)), () => {
      changedMs = undefined;
      queue(false);
    });
  };
  const watchers = [...new Set(paths.map((path) => dirname(path)))].flatMap((folder) => {
    const watcher = watchFolder(folder, onChange, log);
    return watcher ? [watcher] : [];
  });
  warnOfEnd(log, options.current, clock.now());
  return {
    reload: () => queue(true),
    check: () => queue(false),
    stop() {
      stopped = true;
      timer?.cancel();
      for (const watcher of watchers) watcher.close();
      return running;
    },
  };
}

function watchFolder(folder: string, onChange: () => void, log: Logger): FSWatcher | undefined {
  const failed = (error: unknown) =>
    log.warn({ err: error, folder }, "the folder of the certificate cannot be watched");
  try {
    return watch(folder, { persistent: false }, onChange).on("error", failed);
  } catch (error) {
    failed(error);
    return undefined;
  }
}

const bad = (name: string, path: string, fault: string, cause?: unknown): ConfigError =>
  new ConfigError(`${name}: ${path} ${fault}.`, { cause });

async function readPem(name: string, path: string): Promise<string> {
  try {
    // A pipe or a device would never end.
    const { size } = await stat(path).then((found) => {
      if (!found.isFile()) throw new Error("it is not a file");
      return found;
    });
    if (size > maxPemBytes) throw new Error(`it is larger than ${maxPemBytes} bytes`);
    return await readFile(path, "utf8");
  } catch (error) {
    throw bad(
      name,
      path,
      `cannot be read: ${(error as Error).message}; name a PEM file that this user may read`,
      error,
    );
  }
}

function certificatesIn(name: string, path: string, pem: string): X509Certificate[] {
  const blocks = pem.match(/-----BEGIN CERTIFICATE-----[^-]*-----END CERTIFICATE-----/g) ?? [];
  if (blocks.length === 0)
    throw bad(name, path, 'has no certificate; it has to be PEM ("-----BEGIN CERTIFICATE-----")');
  try {
    return blocks.map((block) => new X509Certificate(block));
  } catch (error) {
    throw bad(name, path, `has a certificate that cannot be read: ${(error as Error).message}`, error);
  }
}

function privateKey(path: string, pem: string) {
  try {
    return createPrivateKey(pem);
  } catch (error) {
    const isLocked = (error as NodeJS.ErrnoException).code === "ERR_MISSING_PASSPHRASE";
    const fault = isLocked
      ? "is encrypted; write it without its passphrase (`openssl pkey`) and let only this user read it"
      : `has no private key that can be read: ${(error as Error).message}; it has to be PEM ("-----BEGIN PRIVATE KEY-----")`;
    throw bad("MOLTWIRE_TLS_KEY", path, fault, error);
  }
}

/** Expired authorities are no fault while another is good: bundles keep the old one for a time. */
async function readClientCa(path: string, nowMs: number): Promise<string> {
  const pem = await readPem("MOLTWIRE_TLS_CLIENT_CA", path);
  const periods = certificatesIn("MOLTWIRE_TLS_CLIENT_CA", path, pem).map((one) => outsideItsPeriod(one, nowMs));
  if (periods.every((period) => period !== undefined))
    throw bad("MOLTWIRE_TLS_CLIENT_CA", path, `${periods[0]}; renew it, or no client gets in`);
  return pem;
}

function outsideItsPeriod({ validFromDate, validToDate }: X509Certificate, nowMs: number): string | undefined {
  if (validToDate.getTime() <= nowMs) return `expired on ${validToDate.toISOString()}`;
  if (validFromDate.getTime() > nowMs) return `is not valid before ${validFromDate.toISOString()}`;
  return undefined;
}

function warnOfEnd(log: Logger, credentials: Credentials, nowMs: number): void {
  if (credentials.certificate.validToDate.getTime() - nowMs < soonMs)
    log.warn({ certificate: facts(credentials) }, "the certificate of the port expires soon");
}

const facts = ({ certificate }: Credentials) => ({
  subject: certificate.subject,
  names: certificate.subjectAltName,
  expires: certificate.validToDate.toISOString(),
  sha256: certificate.fingerprint256,
});

const fingerprint = ({ context }: Credentials): string => JSON.stringify([context.cert, context.key, context.ca]);
