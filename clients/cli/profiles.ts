/** What `moltwire login` keeps: servers by name, each with a key, in a file that its owner alone can read. */
import { randomBytes } from "node:crypto";
import { mkdirSync, readFileSync, renameSync, writeFileSync } from "node:fs";
import { homedir } from "node:os";
import { dirname, join } from "node:path";
import { UsageError } from "./usage-error.ts";

/** A server, and who calls it. */
export type Profile = { readonly url: string; readonly key: string };

/** By their names. */
export type Profiles = Readonly<Record<string, Profile>>;

/** The profile that is meant where none is named. */
export const defaultProfile = "default";

/** Where they are: in XDG_CONFIG_HOME, or ~/.config. */
export const profilesFile = (env: NodeJS.ProcessEnv): string =>
  join(env.XDG_CONFIG_HOME || join(env.HOME || homedir(), ".config"), "moltwire", "profiles.json");

/**
 * Reads them; none if there is no file.
 *
 * @throws UsageError if the file is not what was written.
 */
export function readProfiles(env: NodeJS.ProcessEnv): Profiles {
  const file = profilesFile(env);
  const fix = "correct or remove it, and `moltwire login` again";
  let text: string;
  try {
    text = readFileSync(file, "utf8");
  } catch (error) {
    const { code, message } = error as NodeJS.ErrnoException;
    if (code === "ENOENT" || code === "ENOTDIR") return {};
    throw new UsageError(`the profiles cannot be read: ${message}`, fix);
  }
  const profiles = parse(text);
  if (!profiles) throw new UsageError(`${file} holds no profiles`, fix);
  return profiles;
}

function parse(text: string): Profiles | undefined {
  try {
    const profiles: unknown = JSON.parse(text);
    if (typeof profiles !== "object" || profiles === null) return undefined;
    const isWhole = ({ url, key }: Partial<Profile>) => typeof url === "string" && typeof key === "string";
    return Object.values(profiles).every((one) => isWhole(one ?? {})) ? (profiles as Profiles) : undefined;
  } catch {
    return undefined;
  }
}

/** Replaces the file by one that its owner alone can read; a reader sees the old one or the new one. */
export function writeProfiles(env: NodeJS.ProcessEnv, profiles: Profiles): void {
  const file = profilesFile(env);
  const part = `${file}.${randomBytes(4).toString("hex")}.part`;
  try {
    mkdirSync(dirname(file), { recursive: true, mode: 0o700 });
    writeFileSync(part, `${JSON.stringify(profiles, null, 2)}\n`, { mode: 0o600, flag: "wx" });
    renameSync(part, file);
  } catch (error) {
    throw new UsageError(
      `the profiles cannot be written: ${(error as Error).message}`,
      "set XDG_CONFIG_HOME to a folder that you may write in",
    );
  }
}
