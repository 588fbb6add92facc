import { createHash } from "node:crypto";
import pg from "pg";
import { bindable } from "./bind.ts";
import type { Sql } from "./db.ts";

/** Distinct texts that are prepared by name; a program with more builds its SQL from data. */
const maxStatements = 1_000;
/** How long a server may be silent before the kernel asks whether it is there. */
const keepAliveMs = 10_000;

/** What every connection is made from, and how to name the server to a person, without the password. */
export type Target = { readonly connect: pg.ClientConfig; readonly shown: string };

/**
 * Reads a `postgres://user:password@host:port/name?…` address. `settings` are server settings for the session; they
 * are added to those in the address and win over them.
 */
export function readTarget(address: string, settings: Record<string, string | number> = {}): Target {
  const url = parse(address);
  const options = Object.entries(settings).map(([name, value]) => `-c ${name}=${value}`);
  const given = url.searchParams.get("options");
  // The driver would let an `options` in the address replace the ones passed beside it.
  url.searchParams.delete("options");
  const connect = {
    connectionString: url.href,
    options: [...(given ? [given] : []), ...options].join(" "),
    application_name: "moltwire",
    connectionTimeoutMillis: 10_000,
    keepAlive: true,
    keepAliveInitialDelayMillis: keepAliveMs,
    types,
  };
  const at = url.hostname || url.searchParams.get("host") || "the local socket";
  return { connect, shown: `${at}${url.port && `:${url.port}`}${url.pathname}` };
}

function parse(address: string): URL {
  const advice =
    "The database address must look like postgres://user:password@host:5432/name, with special characters of the " +
    "password percent-encoded (# as %23, / as %2F).";
  const url = URL.parse(address);
  if (!url || !["postgres:", "postgresql:"].includes(url.protocol)) throw new Error(advice);
  // A bare # or / in a password ends the host too early, and the rest of the password would be shown as a name.
  if (url.hash || (!url.username && `${url.pathname}${url.search}`.includes("@"))) throw new Error(advice);
  return url;
}

/** What went wrong, in a line; the driver's own error for several addresses of one host has no message. */
export function reasonOf(error: unknown): string {
  if (error instanceof AggregateError && error.errors.length > 0) return reasonOf(error.errors[0]);
  return error instanceof Error ? error.message : String(error);
}

const names = new Map<string, string>();

/** Named, so that each connection parses and plans a text once; unnamed beyond a bound on distinct texts. */
export function prepared(q: Sql): pg.QueryConfig {
  const text = q.text;
  let name = names.get(text);
  if (!name && names.size < maxStatements) {
    // From the text, so that behind a pooler that shares connections one name never means two texts.
    name = createHash("sha256").update(text).digest("base64url").slice(0, 22);
    names.set(text, name);
  }
  return { text, values: q.values.map(bindable), ...(name && { name }) };
}

/** An answer of the server after which the connection goes on; all else ends it. */
export const isAnswer = (error: unknown): error is pg.DatabaseError =>
  error instanceof pg.DatabaseError && !endsConnection.test(error.code ?? "");

/** By the code, for the severity is in the server's language: a shutdown or crash, of the connection, the login, the database, too many connections, an idle transaction. */
const endsConnection = /^(57P|08|28|3D|53300|25P0[345])/;

/** Lost a race with another transaction (serialization failure, deadlock): the same body may well succeed. */
export const isContention = (error: unknown): boolean =>
  isAnswer(error) && (error.code === "40001" || error.code === "40P01");

/** A prepared `select *` whose table was altered since. The connection is of no more use for it, a new one is. */
export const isStalePlan = (error: unknown): boolean => isAnswer(error) && error.routine === "RevalidateCachedQuery";

/** The connection was of no use, and nothing that was asked over it is committed: another one may do. */
export class LostError extends Error {
  override readonly name = "LostError";
}

/**
 * What a statement on a connection of the driver's failed with, or what a new connection did: a {@link LostError} unless it is an answer. A server that was
 * primary when it was connected to, and takes no writes now, is as good as gone: the address leads to another one, or will.
 */
export const asLost = (error: unknown): unknown =>
  isAnswer(error) && error.code !== readOnly ? error : new LostError("the connection was lost", { cause: error });

/** Waited too long for a row that another transaction holds, or worked too long. */
export const isTooSlow = (error: unknown): boolean =>
  isAnswer(error) && (error.code === "55P03" || error.code === "57014");

/** No server that takes writes is there to connect to; a refusal for any other reason comes from one. */
export const isAbsence = (error: unknown): boolean =>
  !(error instanceof pg.DatabaseError) || ["57P01", "57P02", "57P03", readOnly].includes(error.code ?? "");

/** Nobody answered in time. */
export const isSilence = (error: unknown): boolean =>
  error instanceof Error && /^(Query read timeout|timeout expired|Connection terminated due to)/.test(error.message);

const readOnly = "25006";

/** Ends the connection without a word: where nobody answers, a polite end would wait for ever. */
export const destroy = (client: pg.ClientBase): void =>
  void (client as pg.ClientBase & { connection: { stream: { destroy(): void } } }).connection.stream.destroy();

/** The server ended a transaction that was left idle. */
export const wasIdle = (error: unknown): boolean => error instanceof pg.DatabaseError && error.code === "25P03";

/** Integers as number where that is exact, as on SQLite. */
const parseInteger = (text: string): number | bigint => {
  const value = Number(text);
  return Number.isSafeInteger(value) ? value : BigInt(text);
};

const { BOOL, BYTEA, INT8, NUMERIC } = pg.types.builtins;
/** How columns come back where the driver's own way differs from what the same text gives on SQLite. */
const parsers = new Map<number, (text: string) => unknown>([
  [INT8, parseInteger],
  [NUMERIC, (text) => (/^-?\d+$/.test(text) ? parseInteger(text) : Number(text))],
  [BOOL, (text) => (text === "t" ? 1 : 0)],
  [BYTEA, (text) => new Uint8Array(Buffer.from(text.slice(2), "hex"))],
]);
const types: pg.CustomTypesConfig = {
  getTypeParser: ((oid: number, format?: "text") =>
    parsers.get(oid) ?? pg.types.getTypeParser(oid, format)) as typeof pg.types.getTypeParser,
};
