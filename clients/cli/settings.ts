/** Where the server is and who calls: from options and environment. */
import { readFileSync, statSync } from "node:fs";
import { defaultProfile, type Profile, readProfiles } from "./profiles.ts";
import { UsageError } from "./usage-error.ts";

export { UsageError } from "./usage-error.ts";

/** The options that every command with a server has. */
export type ConnectionOptions = {
  readonly url?: string;
  readonly keyFile?: string;
  readonly org?: string;
  readonly profile?: string;
  readonly json?: boolean;
};

/** Where and as whom to call. */
export type Settings = {
  /** Without a slash at the end. */
  readonly url: string;
  /** Not set: calls go out without a key. */
  readonly key?: string;
  /** Where the key comes from, for people. */
  readonly keyFrom: string;
};

/** Where a server is unless something else is said. */
export const defaultUrl = "http://127.0.0.1:6658";
const maxKeyFileBytes = 4_096;

/**
 * Reads --url or MOLTWIRE_URL, and --key-file or MOLTWIRE_API_KEY; what is missing is the profile's. Options win, --profile too, then variables. There is
 * no option for the key itself: what stands on a command line shows in `ps` and in the shell's history. A profile's key goes to no other server.
 *
 * @throws UsageError
 */
export function readSettings(options: ConnectionOptions, env: NodeJS.ProcessEnv): Settings {
  const profile = readProfile(options, env);
  const isNamed = options.profile !== undefined;
  const variable = isNamed ? undefined : env.MOLTWIRE_URL || undefined;
  const url = readUrl(
    options.url ?? variable ?? profile?.url ?? defaultUrl,
    options.url === undefined ? "MOLTWIRE_URL" : "--url",
  );
  const [text, keyFrom] = readKey();
  const key = checkKey(text, keyFrom);
  return { url, keyFrom, ...(key !== undefined && { key }) };

  function readKey(): [text: string, from: string] {
    if (options.keyFile !== undefined) return [readKeyFile(options.keyFile), options.keyFile];
    if (env.MOLTWIRE_API_KEY && !isNamed) return [env.MOLTWIRE_API_KEY, "MOLTWIRE_API_KEY"];
    if (profile?.url === url) return [profile.key, `the profile ${profile.name}`];
    return ["", "MOLTWIRE_API_KEY"];
  }
}

/** The server as messages name it, whatever else is wrong. */
export function shownUrl(options: ConnectionOptions, env: NodeJS.ProcessEnv): string {
  const { keyFile: _, ...where } = options;
  try {
    return readSettings(where, env).url;
  } catch {
    return options.url ?? defaultUrl;
  }
}

function readProfile({ profile }: ConnectionOptions, env: NodeJS.ProcessEnv): (Profile & { name: string }) | undefined {
  const named = profile ?? (env.MOLTWIRE_PROFILE || undefined);
  const name = named ?? defaultProfile;
  const found = readProfiles(env)[name];
  if (found) return { ...found, name };
  if (named === undefined) return undefined;
  throw new UsageError(
    `there is no profile ${named}`,
    `moltwire login --profile ${named}, or see moltwire profile list`,
  );
}

/**
 * The key without blanks around it; undefined for none.
 *
 * @throws UsageError for what can be none.
 */
export function checkKey(text: string, from: string): string | undefined {
  const key = text.trim();
  if (/^[\x21-\x7e]*$/.test(key)) return key === "" ? undefined : key;
  throw new UsageError(
    `${from} holds no key: it has blanks or characters that no key has`,
    "copy the key whole, and nothing else",
  );
}

/**
 * A server's address without a slash at its end.
 *
 * @throws UsageError naming where it came from.
 */
export function readUrl(text: string, from: string): string {
  const url = URL.parse(text);
  const fix = `write it like ${defaultUrl}`;
  if (!url || !/^https?:$/.test(url.protocol)) throw new UsageError(`${from} is no http or https URL: ${text}`, fix);
  if (url.username || url.password) throw new UsageError(`${from} must not hold a password`, fix);
  if (url.search || url.hash) throw new UsageError(`${from} must end before "?" and "#": ${text}`, fix);
  return url.href.replace(/\/+$/, "");
}

/**
 * What a file with a key holds.
 *
 * @throws UsageError
 */
export function readKeyFile(path: string): string {
  try {
    if (statSync(path).size > maxKeyFileBytes) throw new Error("it is too large to be a key");
    return readFileSync(path, "utf8");
  } catch (error) {
    throw new UsageError(
      `--key-file ${path} cannot be read: ${(error as Error).message}`,
      "give a file that holds the key and nothing else",
    );
  }
}
