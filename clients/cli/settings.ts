/** Where the server is and who calls: from options and environment. */
import { readFileSync, statSync } from "node:fs";

/** What was asked for is wrong, before anything was sent. `fix` says what would be right. */
export class UsageError extends Error {
  override readonly name = "UsageError";
  readonly fix: string;

  constructor(message: string, fix: string) {
    super(message);
    this.fix = fix;
  }
}

/** The options that every command with a server has. */
export type ConnectionOptions = {
  readonly url?: string;
  readonly keyFile?: string;
  readonly org?: string;
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
 * Reads --url or MOLTWIRE_URL, and --key-file or MOLTWIRE_API_KEY. Options win. There is no option for the key itself:
 * what stands on a command line shows in `ps` and in the shell's history.
 *
 * @throws UsageError
 */
export function readSettings(options: ConnectionOptions, env: NodeJS.ProcessEnv): Settings {
  const url = readUrl(
    options.url ?? (env.MOLTWIRE_URL || defaultUrl),
    options.url === undefined ? "MOLTWIRE_URL" : "--url",
  );
  const [text, keyFrom] =
    options.keyFile === undefined
      ? [env.MOLTWIRE_API_KEY ?? "", "MOLTWIRE_API_KEY"]
      : [readKeyFile(options.keyFile), options.keyFile];
  const key = text.trim();
  if (!/^[\x21-\x7e]*$/.test(key)) {
    throw new UsageError(
      `${keyFrom} holds no key: it has blanks or characters that no key has`,
      "copy the key whole, and nothing else",
    );
  }
  return { url, keyFrom, ...(key !== "" && { key }) };
}

function readUrl(text: string, from: string): string {
  const url = URL.parse(text);
  const fix = `write it like ${defaultUrl}`;
  if (!url || !/^https?:$/.test(url.protocol)) throw new UsageError(`${from} is no http or https URL: ${text}`, fix);
  if (url.username || url.password) throw new UsageError(`${from} must not hold a password`, fix);
  if (url.search || url.hash) throw new UsageError(`${from} must end before "?" and "#": ${text}`, fix);
  return url.href.replace(/\/+$/, "");
}

function readKeyFile(path: string): string {
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
