/** Settings: each is an environment variable and a flag. A wrong one stops the start with its name, its fault and the fix. */
import { parseArgs } from "node:util";
import { TrustTier } from "../gen/moltwire/bus/v1/agent_pb.ts";
import { type AdapterKey, parseAdapterKeys } from "./bus/adapter-keys.ts";
import { parseAllow } from "./egress/allow.ts";
import { keyDigest } from "./federation/key-text.ts";
import { parsePublicNames } from "./federation/peer/public-names.ts";
import { type Mail, parseMailAddress, parseSmtpUrl } from "./ops/mail-settings.ts";
import { parseProxies } from "./rpc/client-address.ts";
import { parseOrigins } from "./rpc/cors.ts";
import { parseTierLimits, type TierLimits } from "./rpc/tier-limits.ts";
import { parseEndpoint, parseHeaders } from "./telemetry/settings.ts";
import { type MasterKey, parseMasterKey, parseMasterKeys, readMasterKeyFile } from "./vault/master-key.ts";
import { formOfSecret, isSecret } from "./webhook/signature.ts";

export type Config = {
  readonly host: string;
  readonly port: number;
  /** The folder of the data, or ":memory:". */
  readonly data: string;
  /** PostgreSQL instead of SQLite. */
  readonly databaseUrl: string | undefined;
  /** SHA-256 of the operator key that was given, instead of a generated one. */
  readonly operatorKeyDigest: string | undefined;
  /** The master key that data is encrypted under, then previous ones. None: data is not encrypted. Secrets. */
  readonly masterKeys: readonly MasterKey[];
  /** What outgoing calls may reach although private. */
  readonly egressAllow: readonly string[];
  /** Which variables of the environment agents' endpoints may name as their key, and for which origins. */
  readonly adapterKeys: readonly AdapterKey[];
  /** Who may register. */
  readonly registration: Registration;
  /** The name of the organisation that open registration leads into; empty: the operator's own. */
  readonly registrationOrg: string;
  /** How far who registers is trusted. */
  readonly registrationTier: TrustTier;
  /** Requests a minute and agent, and a minute and address without a key; 0: no limit. */
  readonly rateLimit: number;
  /** The same of agents of the tiers that it names. */
  readonly rateLimitTiers: TierLimits;
  /** PEM files of the port's certificate and key; both or neither. */
  readonly tlsCert: string | undefined;
  readonly tlsKey: string | undefined;
  /** PEM file of the authorities one of which clients need a certificate of. */
  readonly tlsClientCa: string | undefined;
  /** Whether they need one, or are asked for one. */
  readonly tlsClientAuth: ClientAuth;
  /** Whose scripts may call from a browser. */
  readonly corsOrigins: readonly string[];
  /** Whose `x-forwarded-for` is believed. */
  readonly trustedProxies: readonly string[];
  /** What other servers call this one; none: whatever a request says. */
  readonly publicNames: readonly string[];
  /** What of a price goes to the platform, in basis points: 10,000 is all of it. */
  readonly feeBps: number;
  /** How many keys and bytes of keys and values a memory holds at most. */
  readonly memoryMaxKeys: number;
  readonly memoryMaxBytes: number;
  /** How many changes the log of a memory keeps, and for how many hours. */
  readonly memoryLogChanges: number;
  readonly memoryLogHours: number;
  /** Days for which jobs that have ended, and the changes of jobs, are kept. */
  readonly queueRetentionDays: number;
  /** How many schedules an agent has at most. */
  readonly schedulesPerAgent: number;
  /** How many messages and bytes of messages an inbox or channel holds, and for how many days. */
  readonly relayMaxMessages: number;
  readonly relayMaxBytes: number;
  readonly relayRetentionDays: number;
  /** What happens to a message for an inbox that is full and whose oldest message is not read. */
  readonly relayFullInbox: FullInbox;
  /** Days for which deliveries to webhooks are kept after their last attempt, and for which they wait for a disabled one. */
  readonly webhookRetentionDays: number;
  /** Days for which traces, events, decisions of policies, and dead letters of tasks are kept; 0: for ever. */
  readonly traceRetentionDays: number;
  readonly eventRetentionDays: number;
  readonly decisionRetentionDays: number;
  readonly deadLetterRetentionDays: number;
  /** The same of the rows of audit logs. */
  readonly auditRetentionDays: number;
  /** What of the rewards of marketplace tasks the platform keeps, in hundredths of a percent. */
  readonly marketplaceFeeBps: number;
  /** The mail server and the addresses for what the contact form takes; none: it is only kept. Has a secret. */
  readonly mail: Mail | undefined;
  /** What confirmations of payments are signed with; none: payments are not taken. Secrets. */
  readonly paymentSecrets: readonly string[];
  readonly logLevel: string;
  /** Where spans are posted to by OTLP/HTTP; none: they are not made. */
  readonly otlpEndpoint: string | undefined;
  /** Sent with them. Secrets. */
  readonly otlpHeaders: Readonly<Record<string, string>>;
};

/** The message is refused, or the oldest goes. */
export type FullInbox = "refuse" | "drop-oldest";

const clientAuths = ["require", "request"] as const;

/** Every client needs a certificate; it is asked for one and let in without. */
export type ClientAuth = (typeof clientAuths)[number];

const registrations = ["closed", "invite", "open", "open-own-org"] as const;

/** Nobody; who has an invite; everybody, into one organisation; everybody, into one of their own. */
export type Registration = (typeof registrations)[number];

/** A setting is wrong. The message is for the terminal. */
export class ConfigError extends Error {
  override readonly name = "ConfigError";
}

type Setting<T> = {
  readonly flag: string;
  /** The value's form, for the help. */
  readonly form: string;
  readonly help: string;
  readonly fallback: string | undefined;
  /** Throws an Error that says what is wrong and what is right. */
  readonly parse: (text: string) => T;
};

const levels = ["fatal", "error", "warn", "info", "debug", "trace", "silent"];

const text = (value: string): string => value;
const integer = (low: number, high: number) => (value: string) => {
  const number = Number(value);
  if (!/^\d+$/.test(value) || number < low || number > high)
    throw new Error(`must be a whole number from ${low} to ${high}`);
  return number;
};

/** All settings, by their variable's name. */
export const settings = {
  MOLTWIRE_HOST: { flag: "host", form: "ADDRESS", help: "address to listen on", fallback: "127.0.0.1", parse: text },
  MOLTWIRE_PORT: {
    flag: "port",
    form: "NUMBER",
    help: "port to listen on; 0 chooses a free one",
    fallback: "6658",
    parse: integer(0, 65_535),
  },
  MOLTWIRE_DATA: {
    flag: "data",
    form: "FOLDER",
    help: 'folder of the data; ":memory:" keeps nothing',
    fallback: "./.moltwire",
    parse: text,
  },
  MOLTWIRE_DATABASE_URL: {
    flag: "database-url",
    form: "URL",
    help: "PostgreSQL instead of SQLite: postgres://user:password@host/database",
    fallback: undefined,
    parse: databaseUrl,
  },
  MOLTWIRE_OPERATOR_KEY: {
    flag: "operator-key",
    form: "KEY",
    help: "the operator's key, instead of a generated one (better as a variable: flags show in `ps`)",
    fallback: undefined,
    parse: operatorKeyDigest,
  },
  MOLTWIRE_MASTER_KEY: {
    flag: "master-key",
    form: "KEY",
    help: "32 bytes as base64: data is encrypted at rest (better as a variable or a file: flags show in `ps`)",
    fallback: undefined,
    parse: parseMasterKey,
  },
  MOLTWIRE_MASTER_KEY_FILE: {
    flag: "master-key-file",
    form: "FILE",
    help: "file with it on the first line, and previous ones on the lines below",
    fallback: undefined,
    parse: readMasterKeyFile,
  },
  MOLTWIRE_MASTER_KEY_PREVIOUS: {
    flag: "master-key-previous",
    form: "LIST",
    help: "keys it takes the place of, with commas between, until `moltwire vault rotate` is done",
    fallback: undefined,
    parse: parseMasterKeys,
  },
  MOLTWIRE_EGRESS_ALLOW: {
    flag: "egress-allow",
    form: "LIST",
    help: "private CIDRs, addresses and hosts that outgoing calls may reach, with commas between",
    fallback: "",
    parse: parseAllow,
  },
  MOLTWIRE_ADAPTER_KEYS: {
    flag: "adapter-keys",
    form: "LIST",
    help: "variables that endpoints may name as their key, each with the origin it may be sent to: OPENAI_API_KEY@https://api.openai.com",
    fallback: "",
    parse: parseAdapterKeys,
  },
  MOLTWIRE_REGISTRATION: {
    flag: "registration",
    form: "WHO",
    help: `who may register an agent without a key: ${registrations.join(", ")}`,
    fallback: "invite",
    parse: oneOf(registrations),
  },
  MOLTWIRE_REGISTRATION_ORG: {
    flag: "registration-org",
    form: "NAME",
    help: "the organisation that `open` leads into; none: the operator's own",
    fallback: "",
    parse: text,
  },
  MOLTWIRE_REGISTRATION_TIER: {
    flag: "registration-tier",
    form: "TIER",
    help: "how far who registers is trusted",
    fallback: "PUBLIC_VENDOR",
    parse: trustTier,
  },
  MOLTWIRE_RATE_LIMIT: {
    flag: "rate-limit",
    form: "NUMBER",
    help: "requests in any 60 s of an agent, and of an address without a good key; ten times as many for another server; 0 for no limit",
    fallback: "120",
    parse: integer(0, 100_000),
  },
  MOLTWIRE_RATE_LIMIT_TIERS: {
    flag: "rate-limit-tiers",
    form: "LIST",
    help: "another limit for agents of a trust tier, with commas between: INTERNAL_TRUSTED=600,PUBLIC_VENDOR=60; 0 for no limit",
    fallback: "",
    parse: parseTierLimits,
  },
  MOLTWIRE_FEE_BPS: {
    flag: "fee-bps",
    form: "NUMBER",
    help: "what of the price of a listing goes to the platform, in basis points: 1000 is 10 %",
    fallback: "1000",
    parse: integer(0, 10_000),
  },
  MOLTWIRE_TLS_CERT: {
    flag: "tls-cert",
    form: "FILE",
    help: "PEM certificate with its chain: the port speaks TLS; read again when it changes, and on SIGHUP",
    fallback: undefined,
    parse: text,
  },
  MOLTWIRE_TLS_KEY: { flag: "tls-key", form: "FILE", help: "its PEM key", fallback: undefined, parse: text },
  MOLTWIRE_TLS_CLIENT_CA: {
    flag: "tls-client-ca",
    form: "FILE",
    help: "PEM authorities: every client needs a certificate of one of them, besides its key",
    fallback: undefined,
    parse: text,
  },
  MOLTWIRE_TLS_CLIENT_AUTH: {
    flag: "tls-client-auth",
    form: "HOW",
    help: "require: a connection without such a certificate is closed; request: it is let in, one with another's is not",
    fallback: "require",
    parse: oneOf(clientAuths),
  },
  MOLTWIRE_CORS_ORIGINS: {
    flag: "cors-origins",
    form: "LIST",
    help: "origins whose scripts may call from a browser, with commas between; never *",
    fallback: "",
    parse: parseOrigins,
  },
  MOLTWIRE_TRUSTED_PROXIES: {
    flag: "trusted-proxies",
    form: "LIST",
    help: "addresses and CIDRs of proxies whose x-forwarded-for is believed, with commas between",
    fallback: "",
    parse: parseProxies,
  },
  MOLTWIRE_PUBLIC_NAMES: {
    flag: "public-names",
    form: "LIST",
    help: "hosts (with ports that are not usual) that peers reach this server by, with commas between: what they signed for another is refused; none: any",
    fallback: "",
    parse: parsePublicNames,
  },
  MOLTWIRE_MEMORY_MAX_KEYS: {
    flag: "memory-max-keys",
    form: "NUMBER",
    help: "keys of an agent's memory, and of a shared namespace, at most",
    fallback: "100000",
    parse: integer(1, 100_000_000),
  },
  MOLTWIRE_MEMORY_MAX_BYTES: {
    flag: "memory-max-bytes",
    form: "NUMBER",
    help: "bytes of its keys and values at most",
    fallback: "268435456",
    parse: integer(1, 2 ** 50),
  },
  MOLTWIRE_MEMORY_LOG_CHANGES: {
    flag: "memory-log-changes",
    form: "NUMBER",
    help: "changes of a memory that its watchers can resume in",
    fallback: "10000",
    parse: integer(1, 100_000_000),
  },
  MOLTWIRE_MEMORY_LOG_HOURS: {
    flag: "memory-log-hours",
    form: "NUMBER",
    help: "for how many hours they are kept at most",
    fallback: "168",
    parse: integer(1, 87_600),
  },
  MOLTWIRE_QUEUE_RETENTION_DAYS: {
    flag: "queue-retention-days",
    form: "NUMBER",
    help: "days for which jobs that have ended are kept",
    fallback: "7",
    parse: integer(1, 3_650),
  },
  MOLTWIRE_SCHEDULES_PER_AGENT: {
    flag: "schedules-per-agent",
    form: "NUMBER",
    help: "schedules of an agent at most",
    fallback: "1000",
    parse: integer(1, 1_000_000),
  },
  MOLTWIRE_RELAY_MAX_MESSAGES: {
    flag: "relay-max-messages",
    form: "NUMBER",
    help: "messages of an inbox or channel at most",
    fallback: "1000000",
    parse: integer(1, 1_000_000_000),
  },
  MOLTWIRE_RELAY_MAX_BYTES: {
    flag: "relay-max-bytes",
    form: "NUMBER",
    help: "bytes of its messages at most",
    fallback: "2147483648",
    parse: integer(1, 2 ** 50),
  },
  MOLTWIRE_RELAY_RETENTION_DAYS: {
    flag: "relay-retention-days",
    form: "NUMBER",
    help: "days for which messages are kept, read or not, and dead letters of channels",
    fallback: "30",
    parse: integer(1, 3_650),
  },
  MOLTWIRE_RELAY_FULL_INBOX: {
    flag: "relay-full-inbox",
    form: "POLICY",
    help: "an inbox that is full of messages nobody read: refuse another, or drop-oldest",
    fallback: "refuse",
    parse: fullInbox,
  },
  MOLTWIRE_WEBHOOK_RETENTION_DAYS: {
    flag: "webhook-retention-days",
    form: "NUMBER",
    help: "days for which deliveries to webhooks are kept after their last attempt",
    fallback: "7",
    // Longer than the longest wait between two attempts.
    parse: integer(1, 3_650),
  },
  MOLTWIRE_TRACE_RETENTION_DAYS: {
    flag: "trace-retention-days",
    form: "NUMBER",
    help: "days for which traces are kept after the last of their tasks has ended; 0 for ever",
    fallback: "90",
    parse: integer(0, 36_500),
  },
  MOLTWIRE_EVENT_RETENTION_DAYS: {
    flag: "event-retention-days",
    form: "NUMBER",
    help: "days for which events are kept; 0 for ever",
    fallback: "90",
    parse: integer(0, 36_500),
  },
  MOLTWIRE_DECISION_RETENTION_DAYS: {
    flag: "decision-retention-days",
    form: "NUMBER",
    help: "days for which decisions of policies are kept; 0 for ever",
    fallback: "90",
    parse: integer(0, 36_500),
  },
  MOLTWIRE_DEAD_LETTER_RETENTION_DAYS: {
    flag: "dead-letter-retention-days",
    form: "NUMBER",
    help: "days for which dead letters of tasks are kept, resolved or not; 0 for ever",
    fallback: "365",
    parse: integer(0, 36_500),
  },
  MOLTWIRE_AUDIT_RETENTION_DAYS: {
    flag: "audit-retention-days",
    form: "NUMBER",
    help: "days for which rows of the audit logs are kept; export them before; 0 for ever",
    fallback: "0",
    parse: integer(0, 36_500),
  },
  MOLTWIRE_MARKETPLACE_FEE_BPS: {
    flag: "marketplace-fee-bps",
    form: "NUMBER",
    help: "what the platform keeps of what workers are paid for marketplace tasks, in hundredths of a percent",
    fallback: "0",
    parse: integer(0, 10_000),
  },
  MOLTWIRE_SMTP_URL: {
    flag: "smtp-url",
    form: "URL",
    help: "mail server that sends you what /contact takes: smtp://user:password@host:587 (better as a variable: flags show in `ps`)",
    fallback: undefined,
    parse: parseSmtpUrl,
  },
  MOLTWIRE_CONTACT_TO: {
    flag: "contact-to",
    form: "ADDRESS",
    help: "the mail address it is sent to",
    fallback: undefined,
    parse: parseMailAddress,
  },
  MOLTWIRE_CONTACT_FROM: {
    flag: "contact-from",
    form: "ADDRESS",
    help: "the mail address it is sent from; none: that it is sent to",
    fallback: undefined,
    parse: parseMailAddress,
  },
  MOLTWIRE_PAYMENT_SECRET: {
    flag: "payment-secret",
    form: "SECRET",
    help: "what confirmations of payments are signed with (POST /payments/callback): whsec_ and base64, or two with a comma between while one is replaced; none: payments are not taken (better as a variable: flags show in `ps`)",
    fallback: undefined,
    parse: parsePaymentSecrets,
  },
  MOLTWIRE_LOG_LEVEL: { flag: "log-level", form: "LEVEL", help: levels.join(", "), fallback: "info", parse: logLevel },
  MOLTWIRE_OTLP_ENDPOINT: {
    flag: "otlp-endpoint",
    form: "URL",
    help: "OTLP/HTTP collector that traces are sent to; /v1/traces is added when there is no path",
    fallback: undefined,
    parse: parseEndpoint,
  },
  MOLTWIRE_OTLP_HEADERS: {
    flag: "otlp-headers",
    form: "LIST",
    help: "headers sent to it: name=value with commas between (better as a variable: flags show in `ps`)",
    fallback: undefined,
    parse: parseHeaders,
  },
} satisfies Record<string, Setting<unknown>>;

type Name = keyof typeof settings;

/**
 * Reads flags, then variables, then defaults. Throws {@link ConfigError} for a setting that is wrong or unknown: one that is ignored would
 * be believed to work.
 */
export function readConfig(args: readonly string[], env: NodeJS.ProcessEnv): Config {
  const flags = readFlags(args);
  const unknown = Object.keys(env).find(
    (name) => name.startsWith("MOLTWIRE_") && !(name in settings) && !notForServer.has(name),
  );
  if (unknown)
    throw new ConfigError(
      `${unknown}: this version of the server has no such setting.\n  Unset it, or see \`npm start -- --help\` for the settings there are.`,
    );
  const value = <N extends Name>(name: N): ReturnType<(typeof settings)[N]["parse"]> | undefined => {
    const setting: Setting<unknown> = settings[name];
    const given = flags[setting.flag] ?? env[name];
    const raw = given === undefined || given === "" ? setting.fallback : given;
    if (raw === undefined) return undefined;
    try {
      return setting.parse(raw) as ReturnType<(typeof settings)[N]["parse"]>;
    } catch (error) {
      throw new ConfigError(`${name} (--${setting.flag}): ${(error as Error).message}.`, { cause: error });
    }
  };
  const otlpEndpoint = value("MOLTWIRE_OTLP_ENDPOINT");
  const otlpHeaders = value("MOLTWIRE_OTLP_HEADERS");
  if (otlpHeaders && !otlpEndpoint)
    throw new ConfigError("MOLTWIRE_OTLP_HEADERS (--otlp-headers): means nothing without MOLTWIRE_OTLP_ENDPOINT.");
  const smtp = value("MOLTWIRE_SMTP_URL");
  const contactTo = value("MOLTWIRE_CONTACT_TO");
  const contactFrom = value("MOLTWIRE_CONTACT_FROM");
  if (smtp && !contactTo)
    throw new ConfigError("MOLTWIRE_SMTP_URL (--smtp-url): needs MOLTWIRE_CONTACT_TO, the address to mail to.");
  if (!smtp && (contactTo || contactFrom))
    throw new ConfigError("MOLTWIRE_CONTACT_TO and MOLTWIRE_CONTACT_FROM: mean nothing without MOLTWIRE_SMTP_URL.");
  return {
    host: value("MOLTWIRE_HOST")!,
    port: value("MOLTWIRE_PORT")!,
    data: value("MOLTWIRE_DATA")!,
    databaseUrl: value("MOLTWIRE_DATABASE_URL"),
    operatorKeyDigest: value("MOLTWIRE_OPERATOR_KEY"),
    masterKeys: masterKeysOf(
      value("MOLTWIRE_MASTER_KEY"),
      value("MOLTWIRE_MASTER_KEY_FILE"),
      value("MOLTWIRE_MASTER_KEY_PREVIOUS"),
    ),
    egressAllow: value("MOLTWIRE_EGRESS_ALLOW") ?? [],
    adapterKeys: value("MOLTWIRE_ADAPTER_KEYS") ?? [],
    registration: value("MOLTWIRE_REGISTRATION")!,
    registrationOrg: value("MOLTWIRE_REGISTRATION_ORG") ?? "",
    registrationTier: value("MOLTWIRE_REGISTRATION_TIER")!,
    rateLimit: value("MOLTWIRE_RATE_LIMIT")!,
    rateLimitTiers: value("MOLTWIRE_RATE_LIMIT_TIERS") ?? {},
    feeBps: value("MOLTWIRE_FEE_BPS")!,
    tlsCert: value("MOLTWIRE_TLS_CERT"),
    tlsKey: value("MOLTWIRE_TLS_KEY"),
    tlsClientCa: value("MOLTWIRE_TLS_CLIENT_CA"),
    tlsClientAuth: value("MOLTWIRE_TLS_CLIENT_AUTH")!,
    corsOrigins: value("MOLTWIRE_CORS_ORIGINS") ?? [],
    trustedProxies: value("MOLTWIRE_TRUSTED_PROXIES") ?? [],
    publicNames: value("MOLTWIRE_PUBLIC_NAMES") ?? [],
    memoryMaxKeys: value("MOLTWIRE_MEMORY_MAX_KEYS")!,
    memoryMaxBytes: value("MOLTWIRE_MEMORY_MAX_BYTES")!,
    memoryLogChanges: value("MOLTWIRE_MEMORY_LOG_CHANGES")!,
    memoryLogHours: value("MOLTWIRE_MEMORY_LOG_HOURS")!,
    queueRetentionDays: value("MOLTWIRE_QUEUE_RETENTION_DAYS")!,
    schedulesPerAgent: value("MOLTWIRE_SCHEDULES_PER_AGENT")!,
    relayMaxMessages: value("MOLTWIRE_RELAY_MAX_MESSAGES")!,
    relayMaxBytes: value("MOLTWIRE_RELAY_MAX_BYTES")!,
    relayRetentionDays: value("MOLTWIRE_RELAY_RETENTION_DAYS")!,
    relayFullInbox: value("MOLTWIRE_RELAY_FULL_INBOX")!,
    webhookRetentionDays: value("MOLTWIRE_WEBHOOK_RETENTION_DAYS")!,
    traceRetentionDays: value("MOLTWIRE_TRACE_RETENTION_DAYS")!,
    eventRetentionDays: value("MOLTWIRE_EVENT_RETENTION_DAYS")!,
    decisionRetentionDays: value("MOLTWIRE_DECISION_RETENTION_DAYS")!,
    deadLetterRetentionDays: value("MOLTWIRE_DEAD_LETTER_RETENTION_DAYS")!,
    auditRetentionDays: value("MOLTWIRE_AUDIT_RETENTION_DAYS")!,
    marketplaceFeeBps: value("MOLTWIRE_MARKETPLACE_FEE_BPS")!,
    mail: smtp && contactTo ? { server: smtp, to: contactTo, from: contactFrom ?? contactTo } : undefined,
    paymentSecrets: value("MOLTWIRE_PAYMENT_SECRET") ?? [],
    logLevel: value("MOLTWIRE_LOG_LEVEL")!,
    otlpEndpoint,
    otlpHeaders: otlpHeaders ?? {},
  };
}

/** Variables of the same prefix that clients and tests read. */
const notForServer: ReadonlySet<string> = new Set([
  "MOLTWIRE_URL",
  "MOLTWIRE_API_KEY",
  "MOLTWIRE_TEST_DATABASE_URL",
  "MOLTWIRE_MIGRATE_FROM",
  "MOLTWIRE_MIGRATE_TO",
]);

/** What `--help` prints. */
export const helpText = (): string =>
  [
    "Usage: npm start -- [flags]",
    "",
    "Each flag has a variable; a flag wins.",
    "",
    ...Object.entries(settings).map(
      ([name, { flag, form, help, fallback }]) =>
        `  --${`${flag} ${form}`.padEnd(22)} ${name.padEnd(24)} ${help}${fallback ? ` (${fallback})` : ""}`,
    ),
    "",
    "--json tells where it listens, and at the very first start the operator key, as a line of JSON.",
  ].join("\n");

function readFlags(args: readonly string[]): Record<string, string | undefined> {
  const options = Object.fromEntries(Object.values(settings).map(({ flag }) => [flag, { type: "string" as const }]));
  try {
    return parseArgs({ args: [...args], options, strict: true }).values as Record<string, string | undefined>;
  } catch (error) {
    throw new ConfigError(
      `${(error as Error).message.replace(/\. To specify.*$/s, "")}.\n  See --help for the flags there are.`,
      { cause: error },
    );
  }
}

function databaseUrl(value: string): string {
  if (!/^postgres(ql)?:\/\//.test(value) || !URL.canParse(value))
    throw new Error("must be postgres://user:password@host:port/database");
  return value;
}

/** A key that people chose is guessed sooner or later: 32 characters, and as many different ones as chance would give. */
function operatorKeyDigest(value: string): string {
  if (!/^[\x21-\x7e]{32,256}$/.test(value))
    throw new Error(
      "is weak: it needs 32 to 256 printable characters without spaces; `openssl rand -hex 32` makes one",
    );
  if (new Set(value).size < 10)
    throw new Error("is weak: too few different characters; `openssl rand -hex 32` makes a good one");
  return keyDigest(value);
}

function parsePaymentSecrets(value: string): readonly string[] {
  const secrets = value.split(",");
  if (secrets.length > 2 || !secrets.every(isSecret))
    throw new Error(`must be ${formOfSecret}, or two of them with a comma between`);
  return secrets;
}

/** The current one first. */
function masterKeysOf(
  key: MasterKey | undefined,
  file: readonly MasterKey[] | undefined,
  previous: readonly MasterKey[] = [],
): readonly MasterKey[] {
  if (key && file)
    throw new ConfigError(
      "MOLTWIRE_MASTER_KEY (--master-key): is given beside MOLTWIRE_MASTER_KEY_FILE; one is enough.",
    );
  const given = file ?? (key ? [key] : []);
  if (given.length === 0 && previous.length > 0)
    throw new ConfigError(
      "MOLTWIRE_MASTER_KEY_PREVIOUS (--master-key-previous): means nothing without MOLTWIRE_MASTER_KEY or MOLTWIRE_MASTER_KEY_FILE.",
    );
  const all = [...given, ...previous];
  return all.filter(({ id }, n) => all.findIndex((one) => one.id === id) === n);
}

function oneOf<const Choice extends string>(choices: readonly Choice[]): (value: string) => Choice {
  return (value) => {
    const found = choices.find((choice) => choice === value);
    if (found === undefined) throw new Error(`must be one of ${choices.join(", ")}`);
    return found;
  };
}

function trustTier(value: string): TrustTier {
  const tiers = Object.entries(TrustTier).filter(([, tier]) => tier !== TrustTier.UNSPECIFIED);
  const found = tiers.find(([name]) => name === value);
  if (!found) throw new Error(`must be one of ${tiers.map(([name]) => name).join(", ")}`);
  return found[1];
}

function logLevel(value: string): string {
  if (!levels.includes(value)) throw new Error(`must be one of ${levels.join(", ")}`);
  return value;
}

function fullInbox(value: string): FullInbox {
  if (value !== "refuse" && value !== "drop-oldest") throw new Error("must be refuse or drop-oldest");
  return value;
}
